//! The table of instructions in the README is what the decoder takes: every cell was tried.
//!
//! `UPDATE_README=1 cargo test -p ptx-emulator --test opcodes` writes it anew.

mod common;
use common::HEADER;
use ptx_emulator::Module;
use std::fmt::Write as _;

/// Opcodes; forms of which one is needed; words that may be added; types; operands. In the operands
/// `d a b c` are registers of the type, `w` one of twice the width, `r` 32 bits, `q` 64 bits.
type Probe = (&'static str, &'static str, &'static str, &'static str, &'static str);

const INT: &str = "u16 s16 u32 s32 u64 s64";
const FLOAT: &str = "f16 f16x2 bf16 bf16x2 f32 f64";
const ALL: &str = "b8 u8 s8 b16 u16 s16 b32 u32 s32 b64 u64 s64 f32 f64";
const ARITH: &str = "u16 s16 u32 s32 u64 s64 u16x2 s16x2 f16 f16x2 bf16 bf16x2 f32 f64";
const ROUND: &str = "rn rz rm rp ftz sat";
const CMP: &str = "eq ne lt le gt ge lo ls hi hs equ neu ltu leu gtu geu num nan";

const MMA: &str = "mma.sync.aligned.row.col";
const FP8: &str = "f32.e4m3.e4m3.f32 f32.e4m3.e5m2.f32 f32.e5m2.e4m3.f32 f32.e5m2.e5m2.f32";
const BYTES: &str = "s32.s8.s8.s32 s32.s8.u8.s32 s32.u8.s8.s32 s32.u8.u8.s32";
const NIBBLES: &str = "s32.s4.s4.s32 s32.s4.u4.s32 s32.u4.s4.s32 s32.u4.u4.s32";
const BITS: &str = "s32.b1.b1.s32.and.popc s32.b1.b1.s32.xor.popc";

const PROBES: &[Probe] = &[
    ("add sub", "-", "rn rz rm rp ftz sat cc", ARITH, "d, a, b"),
    ("addc subc", "-", "cc", "u32 s32 u64 s64", "d, a, b"),
    ("mul", "- lo hi", ROUND, ARITH, "d, a, b"),
    ("mul mad", "wide", "", "u16 s16 u32 s32", "w, a, b*"),
    ("mad", "lo hi", "sat cc", INT, "d, a, b, c"),
    ("madc", "lo hi", "cc", "u32 s32 u64 s64", "d, a, b, c"),
    ("mul24", "lo hi", "", "u32 s32", "d, a, b"),
    ("mad24", "lo hi", "", "u32 s32", "d, a, b, c"),
    ("fma mad", "rn rz rm rp", "ftz sat relu", FLOAT, "d, a, b, c"),
    ("sad", "-", "", INT, "d, a, b, c"),
    ("div", "- rn rz rm rp approx full", "ftz", "u16 s16 u32 s32 u64 s64 f32 f64", "d, a, b"),
    ("rem", "-", "", INT, "d, a, b"),
    ("abs neg", "-", "ftz", "s16 s32 s64 f16 f16x2 bf16 bf16x2 f32 f64", "d, a"),
    ("min max", "-", "ftz NaN xorsign.abs relu", ARITH, "d, a, b"),
    ("copysign", "-", "", "f32 f64", "d, a, b"),
    ("rcp sqrt", "rn rz rm rp approx", "ftz", "f32 f64", "d, a"),
    ("rsqrt ex2 lg2 sin cos tanh", "approx -", "ftz", "f16 f16x2 bf16 bf16x2 f32 f64", "d, a"),
    ("ex2", "approx.ftz", "", "bf16 bf16x2", "d, a"),
    ("popc clz bfind", "-", "shiftamt", "b16 b32 b64 u32 s32 u64 s64", "r, a"),
    ("brev not cnot", "-", "", "b16 b32 b64 pred", "d, a"),
    ("and or xor", "-", "", "pred b16 b32 b64", "d, a, b"),
    ("shl shr", "-", "", "b16 b32 b64 u16 u32 u64 s16 s32 s64", "d, a, r"),
    ("shf", "l.wrap l.clamp r.wrap r.clamp", "", "b32", "d, a, b, r"),
    ("lop3", "-", "", "b32", "d, a, b, c, 0x96"),
    ("lop3", "and or", "", "b32", "r|p1, r, r, r, 0x96, p2"),
    ("prmt", "-", "f4e b4e rc8 ecl ecr rc16", "b32", "d, a, b, r"),
    ("bfe", "-", "", "u32 s32 u64 s64", "d, a, r, r"),
    ("bfi", "-", "", "b32 b64", "d, a, b, r, r"),
    ("szext bmsk", "clamp wrap", "", "u32 s32 b32", "d, a, b"),
    ("fns", "-", "", "b32", "d, a, b, c"),
    ("dp4a", "-", "", "u32.u32 u32.s32 s32.u32 s32.s32", "r, r, r, r"),
    ("cvt.pack", "sat", "", "u16.s32 s16.s32", "r, r, r"),
    (
        "cvt.pack",
        "sat",
        "",
        "u8.s32.b32 s8.s32.b32 u4.s32.b32 s4.s32.b32 u2.s32.b32 s2.s32.b32",
        "r, r, r, r",
    ),
    ("dp2a", "lo hi", "", "u32.u32 u32.s32 s32.u32 s32.s32", "r, r, r, r"),
    ("setp", CMP, "ftz and or xor", "b16 b32 b64 u16 s16 u32 s32 u64 s64 f16 bf16 f32 f64", "p1, a, b+"),
    (
        "set",
        CMP,
        "ftz and or xor",
        "u32.u32 u32.s32 u32.f32 s32.f32 f32.f32 f32.s32 u32.f16x2 f16x2.f16x2 u32.bf16x2 bf16x2.bf16x2",
        "r, r, r+",
    ),
    ("testp", "finite infinite number notanumber normal subnormal", "", "f32 f64", "p1, a"),
    ("selp", "-", "", "b16 b32 b64 u16 s16 u32 s32 u64 s64 f32 f64", "d, a, b, p1"),
    ("slct", "-", "ftz", "b32.s32 b32.f32 u32.s32 s32.s32 f32.f32", "r, r, r, r"),
    ("mov", "-", "", "pred b16 b32 b64 u16 s16 u32 s32 u64 s64 f32 f64", "d, a"),
    (
        "ld",
        "- global shared local param const",
        "weak volatile relaxed.cta relaxed.gpu relaxed.sys acquire.cta acquire.gpu acquire.sys mmio.relaxed.sys ca cg cs cv lu nc L1::no_allocate L1::evict_last L2::128B",
        ALL,
        "d, [q]",
    ),
    ("ldu", "- global", "", ALL, "d, [q]"),
    (
        "st",
        "- global shared local",
        "weak volatile relaxed.cta relaxed.gpu relaxed.sys release.cta release.gpu release.sys mmio.relaxed.sys wb cg cs wt L1::no_allocate",
        ALL,
        "[q], a",
    ),
    ("ld", "global shared", "nc", "v2.b32 v2.f32 v2.b64 v2.u16", "{a, b}, [q]"),
    ("ld", "global shared", "nc", "v4.b32 v4.f32 v4.u16 v4.u8", "{a, b, c, d}, [q]"),
    (
        "atom",
        "add min max and or xor exch inc dec",
        "global shared relaxed acquire release acq_rel cta gpu sys",
        "b32 u32 s32 b64 u64 s64 f32 f64",
        "d, [q], a",
    ),
    ("atom", "add.noftz", "global shared relaxed.gpu acquire.cta", "f16 f16x2 bf16 bf16x2", "d, [q], a"),
    ("atom", "add.v2", "global", "f32", "{r, r}, [q], {r, r}"),
    (
        "atom",
        "add.noftz.v4 min.noftz.v4 max.noftz.v4",
        "global",
        "f16 bf16 f16x2 bf16x2",
        "{d, a, b, c}, [q], {a, b, c, d}",
    ),
    (
        "atom",
        "cas",
        "global shared relaxed acquire release acq_rel cta gpu sys",
        "b16 b32 b64",
        "d, [q], a, b",
    ),
    (
        "red",
        "add min max and or xor inc dec",
        "global shared relaxed release cta gpu sys",
        "b32 u32 s32 b64 u64 s64 f32 f64",
        "[q], a",
    ),
    ("red", "add.noftz", "global shared", "f16 f16x2 bf16 bf16x2", "[q], a"),
    ("red", "add.v2", "global", "f32", "[q], {r, r}"),
    ("red", "add.noftz.v4 min.noftz.v4 max.noftz.v4", "global", "f16 bf16 f16x2 bf16x2", "[q], {a, b, c, d}"),
    ("cvta", "- to", "global shared local const param", "u64 u32", "d, a"),
    ("isspacep", "global shared local const param", "", "", "p1, q"),
    ("membar", "cta gl sys", "", "", ""),
    ("fence", "cta gpu sys acq_rel.cta acq_rel.gpu acq_rel.sys sc.cta sc.gpu sc.sys", "", "", ""),
    ("fence.proxy", "alias", "", "", ""),
    ("prefetch", "global local", "L1 L2", "", "[q]"),
    (
        "createpolicy",
        "fractional.L2::evict_last fractional.L2::evict_first fractional.L2::evict_normal fractional.L2::evict_unchanged",
        "L2::evict_unchanged",
        "b64",
        "q, 1.0",
    ),
    ("createpolicy", "range.L2::evict_last", "global", "b64", "q, [q], 128, 256"),
    ("createpolicy", "cvt.L2", "", "b64", "q, q"),
    ("applypriority", "L2::evict_normal", "global", "", "[q], 128"),
    ("discard", "global", "L2", "", "[q], 128"),
    ("cp.async", "ca cg", "L2::128B", "shared.global", "[r], [q], 16"),
    ("cp.async", "commit_group wait_all", "", "", ""),
    ("cp.async.wait_group", "-", "", "", "1"),
    ("cp.async.mbarrier.arrive", "-", "noinc shared", "b64", "[q]"),
    ("mbarrier.init", "-", "shared shared::cta", "b64", "[q], r"),
    ("mbarrier.inval", "-", "shared shared::cta", "b64", "[q]"),
    (
        "mbarrier.arrive mbarrier.arrive_drop",
        "-",
        "noComplete release.cta relaxed.cta shared",
        "b64",
        "q, [q], r",
    ),
    ("mbarrier.test_wait mbarrier.try_wait", "-", "acquire.cta relaxed.cta shared", "b64", "p1, [q], q"),
    ("mbarrier.test_wait mbarrier.try_wait", "parity", "acquire.cta relaxed.cta shared", "b64", "p1, [q], r"),
    ("mbarrier.pending_count", "-", "", "b64", "r, q"),
    ("bar.sync barrier.sync bar.arrive barrier.arrive", "-", "aligned", "", "1, 64"),
    ("bar.red barrier.red", "and or", "aligned", "pred", "p1, 1, 64, p2"),
    ("bar.red barrier.red", "popc", "aligned", "u32", "r, 1, 64, p2"),
    ("bar.warp.sync", "-", "", "", "r"),
    ("shfl.sync", "up down bfly idx", "", "b32", "r|p1, r, r, r, r"),
    ("vote.sync", "all any uni", "", "pred", "p1, p2, r"),
    ("vote.sync", "ballot", "", "b32", "r, p2, r"),
    ("match.sync", "any all", "", "b32 b64", "r, a, r"),
    ("redux.sync", "add min max and or xor", "", "u32 s32 b32", "d, a, r"),
    ("elect.sync", "-", "", "", "r|p1, r"),
    ("activemask", "-", "", "b32", "r"),
    ("ldmatrix.sync.aligned.m8n8", "x1", "trans shared", "b16", "{r}, [q]"),
    ("ldmatrix.sync.aligned.m8n8", "x4", "trans shared", "b16", "{r, r, r, r}, [q]"),
    ("stmatrix.sync.aligned.m8n8", "x4", "trans shared", "b16", "[q], {r, r, r, r}"),
    ("movmatrix.sync.aligned.m8n8", "trans", "", "b16", "r, r"),
    (
        MMA,
        "m16n8k16",
        "",
        "f32.f16.f16.f32 f32.bf16.bf16.f32",
        "{r, r, r, r}, {r, r, r, r}, {r, r}, {r, r, r, r}",
    ),
    (MMA, "m16n8k16 m16n8k8", "", "f16.f16.f16.f16", "{r, r}, {r, r*}, {r*}, {r, r}"),
    (MMA, "m16n8k8", "", "f32.f16.f16.f32 f32.bf16.bf16.f32", "{r, r, r, r}, {r, r}, {r}, {r, r, r, r}"),
    (MMA, "m16n8k4", "", "f32.tf32.tf32.f32", "{r, r, r, r}, {r, r}, {r}, {r, r, r, r}"),
    (MMA, "m16n8k8", "", "f32.tf32.tf32.f32", "{r, r, r, r}, {r, r, r, r}, {r, r}, {r, r, r, r}"),
    (MMA, "m16n8k16", "", FP8, "{r, r, r, r}, {r, r}, {r}, {r, r, r, r}"),
    (MMA, "m16n8k32", "", FP8, "{r, r, r, r}, {r, r, r, r}, {r, r}, {r, r, r, r}"),
    (MMA, "m16n8k32", "", "f16.e4m3.e4m3.f16", "{r, r}, {r, r, r, r}, {r, r}, {r, r}"),
    (MMA, "m8n8k16", "satfinite", BYTES, "{r, r}, {r}, {r}, {r, r}"),
    (MMA, "m16n8k16", "satfinite", BYTES, "{r, r, r, r}, {r, r}, {r}, {r, r, r, r}"),
    (MMA, "m16n8k32", "satfinite", BYTES, "{r, r, r, r}, {r, r, r, r}, {r, r}, {r, r, r, r}"),
    (MMA, "m8n8k32", "satfinite", NIBBLES, "{r, r}, {r}, {r}, {r, r}"),
    (MMA, "m16n8k32", "satfinite", NIBBLES, "{r, r, r, r}, {r, r}, {r}, {r, r, r, r}"),
    (MMA, "m16n8k64", "satfinite", NIBBLES, "{r, r, r, r}, {r, r, r, r}, {r, r}, {r, r, r, r}"),
    (MMA, "m8n8k128", "", BITS, "{r, r}, {r}, {r}, {r, r}"),
    (MMA, "m16n8k128", "", BITS, "{r, r, r, r}, {r, r}, {r}, {r, r, r, r}"),
    (MMA, "m16n8k256", "", BITS, "{r, r, r, r}, {r, r, r, r}, {r, r}, {r, r, r, r}"),
    (MMA, "m8n8k4", "rn", "f64.f64.f64.f64", "{q, q}, {q}, {q}, {q, q}"),
    (MMA, "m16n8k4", "rn", "f64.f64.f64.f64", "{q, q, q, q}, {q, q}, {q}, {q, q, q, q}"),
    (MMA, "m16n8k8", "rn", "f64.f64.f64.f64", "{q, q, q, q}, {q, q, q, q}, {q, q}, {q, q, q, q}"),
    (
        MMA,
        "m16n8k16",
        "rn",
        "f64.f64.f64.f64",
        "{q, q, q, q}, {q, q, q, q, q, q, q, q}, {q, q, q, q}, {q, q, q, q}",
    ),
    (
        "mma.sync.aligned.m8n8k4",
        "row.row row.col col.row col.col",
        "",
        "f32.f16.f16.f32",
        "{r, r, r, r, r, r, r, r}, {r, r}, {r, r}, {r, r, r, r, r, r, r, r}",
    ),
    (
        "wmma.load.c.sync.aligned",
        "row col",
        "global shared",
        "m16n16k16.f32 m32n8k16.f32 m8n32k16.f32 m16n16k16.s32 m32n8k16.s32 m8n32k16.s32 m16n16k8.f32",
        "{r, r, r, r, r, r, r, r}, [q], r",
    ),
    (
        "wmma.load.a.sync.aligned wmma.load.b.sync.aligned",
        "row col",
        "global shared",
        "m16n16k16.f16 m32n8k16.f16 m8n32k16.f16",
        "{r, r, r, r, r, r, r, r}, [q], r",
    ),
    (
        "wmma.load.a.sync.aligned wmma.load.b.sync.aligned",
        "row col",
        "global shared",
        "m16n16k16.bf16 m16n16k8.tf32",
        "{r, r, r, r}, [q], r",
    ),
    (
        "wmma.load.a.sync.aligned wmma.load.b.sync.aligned",
        "row col",
        "global shared",
        "m16n16k16.s8 m16n16k16.u8",
        "{r, r}, [q], r",
    ),
    (
        "wmma.load.a.sync.aligned wmma.load.b.sync.aligned",
        "row col",
        "global shared",
        "m8n8k4.f64",
        "{q}, [q], r",
    ),
    (
        "wmma.mma.sync.aligned",
        "row.row row.col col.row col.col",
        "",
        "m16n16k16.f32.f32 m32n8k16.f32.f32 m8n32k16.f32.f32",
        "{r, r, r, r, r, r, r, r}, {r, r, r, r, r, r, r, r}, {r, r, r, r, r, r, r, r}, {r, r, r, r, r, r, r, r}",
    ),
    (
        "wmma.mma.sync.aligned",
        "row.row row.col col.row col.col",
        "",
        "m16n16k16.f32.bf16.bf16.f32 m16n16k8.f32.tf32.tf32.f32",
        "{r, r, r, r, r, r, r, r}, {r, r, r, r}, {r, r, r, r}, {r, r, r, r, r, r, r, r}",
    ),
    (
        "wmma.mma.sync.aligned",
        "row.row row.col col.row col.col",
        "satfinite",
        "m16n16k16.s32.s8.s8.s32 m16n16k16.s32.u8.u8.s32",
        "{r, r, r, r, r, r, r, r}, {r, r}, {r, r}, {r, r, r, r, r, r, r, r}",
    ),
    (
        "wmma.mma.sync.aligned",
        "row.row row.col col.row col.col",
        "rn",
        "m8n8k4.f64.f64.f64.f64",
        "{q, q}, {q}, {q}, {q, q}",
    ),
    (
        "wmma.store.d.sync.aligned",
        "row col",
        "global shared",
        "m16n16k16.f32 m16n16k16.s32 m16n16k8.f32",
        "[q], {r, r, r, r, r, r, r, r}, r",
    ),
    ("griddepcontrol", "wait launch_dependents", "", "", ""),
    ("nanosleep", "-", "", "u32", "100"),
    ("exit ret trap brkpt", "-", "", "", ""),
];

/// The operands with registers of a type.
fn operands(form: &str, ty: &str) -> String {
    let width = |t: &str| match t {
        "pred" => 1,
        "f16x2" | "bf16x2" | "u16x2" | "s16x2" => 32,
        _ => t.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(32),
    };
    let own = width(ty.rsplit('.').next().unwrap_or(ty));
    let reg = |bits: u32, n: u32| match bits {
        1 => format!("%p{n}"),
        64 => format!("%rd{n}"),
        32 => format!("%r{n}"),
        _ => format!("%h{n}"),
    };
    let mut out = String::new();
    for c in form.chars() {
        match c {
            'd' => out += &reg(own, 1),
            'a' => out += &reg(own, 2),
            'b' => out += &reg(own, 3),
            'c' => out += &reg(own, 4),
            'w' => out += &reg(2 * own, 5),
            'r' => out += "%r6",
            'q' => out += "%rd7",
            'p' => out += "%p",
            c => out.push(c),
        }
    }
    out
}

fn taken(opcode: &str, form: &str, ty: &str) -> bool {
    let text = format!(
        "{HEADER}.visible .entry k() {{ .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .pred %p<9>;\n{opcode} {}; ret; }}\n",
        operands(form, ty)
    );
    Module::parse(&text).is_ok_and(|m| m.check().is_ok())
}

/// Forms of operands an abbreviation stands for.
fn forms(name: &str, form: &str, word: &str) -> Vec<String> {
    if let Some(f) = form.strip_suffix("b*") {
        // mad.wide has an addend of the wide type.
        return vec![if name == "mad" { format!("{f}b, w") } else { format!("{f}b") }];
    }
    if form.contains("r*") {
        return vec![
            form.replace(", r*}", ", r, r, r}").replace("{r*}", "{r, r}"),
            form.replace(", r*}", ", r}").replace("{r*}", "{r}"),
        ];
    }
    if let Some(f) = form.strip_suffix('+') {
        let combined = matches!(word, "and" | "or" | "xor");
        return vec![if combined { format!("{f}, p2") } else { f.to_string() }];
    }
    vec![form.to_string()]
}

fn table() -> String {
    let mut out = String::from("| instruction | one of | with | types |\n|---|---|---|---|\n");
    for &(names, bases, words, types, form) in PROBES {
        for name in names.split(' ') {
            let types: Vec<&str> = if types.is_empty() { vec![""] } else { types.split(' ').collect() };
            let attempt = |base: &str, word: &str, ty: &str| {
                let parts = [name, if base == "-" { "" } else { base }, word, ty];
                let opcode = parts.iter().filter(|p| !p.is_empty()).copied().collect::<Vec<_>>().join(".");
                forms(name, form, word).iter().any(|f| taken(&opcode, f, ty))
            };
            let some = |base: &str, word: &str| types.iter().any(|t| attempt(base, word, t));
            let bases: Vec<&str> = bases.split(' ').filter(|b| some(b, "")).collect();
            if bases.is_empty() {
                continue;
            }
            let words: Vec<&str> =
                words.split(' ').filter(|w| !w.is_empty() && bases.iter().any(|b| some(b, w))).collect();
            let types: Vec<&str> =
                types.iter().filter(|t| bases.iter().any(|b| attempt(b, "", t))).copied().collect();
            let bases = bases.join(" ");
            let bases = if bases == "-" { "" } else { &bases };
            let _ = writeln!(out, "| {name} | {bases} | {} | {} |", words.join(" "), types.join(" "));
        }
    }
    out
}

#[test]
fn the_readme_lists_what_the_decoder_takes() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- opcodes: begin -->\n", "<!-- opcodes: end -->");
    let (from, to) = (readme.find(begin).unwrap() + begin.len(), readme.find(end).unwrap());
    let table = table();
    // Every probe must find something, or it is written wrongly.
    for (names, ..) in PROBES {
        for n in names.split(' ') {
            assert!(table.contains(&format!("| {n} |")), "{n} is taken in no form");
        }
    }
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(&path, format!("{}{table}{}", &readme[..from], &readme[to..])).unwrap();
        return;
    }
    assert!(readme[from..to] == table, "run with UPDATE_README=1 and look at the difference");
}
