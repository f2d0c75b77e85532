//! The mutations: small changes of PTX that a programmer could have made by mistake.
//!
//! Every mutant has an identity that survives edits elsewhere: kernel, kind of change, and a hash of the
//! neighbouring instructions with registers and labels numbered by their order in that window.
//!
//! Not made are changes that cannot change anything: `<` for `<=` where both outcomes select the same value.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;

use super::statement::{Statement, address_registers, registers, statements};

/// What a mutation attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Barriers, waits, fences, orders of atomics, masks of warp-wide instructions.
    Synchronisation,
    /// Integer comparisons, off by one.
    Bounds,
    /// Guards, negated or dropped.
    Predicate,
    /// Arithmetic of addresses, offsets of accesses.
    Address,
}

impl Class {
    /// All of them.
    pub const ALL: [Class; 4] = [Class::Synchronisation, Class::Bounds, Class::Predicate, Class::Address];

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Class::Synchronisation => "synchronisation",
            Class::Bounds => "bounds",
            Class::Predicate => "predicate",
            Class::Address => "address",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One changed kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Mutant {
    /// `kernel:kind:context`, with `.n` behind it for the n-th of equal ones.
    pub id: String,
    /// What it attacks.
    pub class: Class,
    /// Kind of change.
    pub kind: &'static str,
    /// Line in the entry's text, from 1.
    pub line: usize,
    /// The instruction.
    pub before: String,
    /// What stands in its place; empty when it was deleted.
    pub after: String,
    range: Range<usize>,
}

impl Mutant {
    /// The entry's text with the change, as many lines as before.
    pub fn apply(&self, entry: &str) -> String {
        let lines = "\n".repeat(entry[self.range.clone()].matches('\n').count());
        let mut changed = entry.to_owned();
        changed.replace_range(self.range.clone(), &format!("{}{lines}", self.after));
        changed
    }
}

struct Change {
    class: Class,
    kind: &'static str,
    at: usize,
    after: String,
}

/// All mutants of an entry's text.
pub fn mutants(kernel: &str, text: &str) -> Vec<Mutant> {
    let all = statements(text);
    let mut changes = Vec::new();
    let addresses = address_registers(&all);
    let selected = selections(&all);
    for (at, s) in all.iter().enumerate() {
        let mut change = |class, kind, after: String| changes.push(Change { class, kind, at, after });
        synchronisation(s, &mut change);
        bounds(s, &selected, &mut change);
        predicate(s, &mut change);
        if s.operands.first().is_some_and(|d| addresses.contains(d)) {
            arithmetic(s, &mut change);
        }
        offset(s, &mut change);
    }
    let mut seen: HashMap<String, usize> = HashMap::new();
    changes
        .into_iter()
        .map(|c| {
            let s = &all[c.at];
            let mut id = format!("{kernel}:{}:{:08x}", c.kind, context(&all, c.at));
            let n = seen.entry(id.clone()).or_default();
            *n += 1;
            if *n > 1 {
                id = format!("{id}.{n}");
            }
            let before = text[s.range.clone()].split_whitespace().collect::<Vec<_>>().join(" ");
            let range = s.range.clone();
            Mutant { id, class: c.class, kind: c.kind, line: s.line, before, after: c.after, range }
        })
        .collect()
}

fn synchronisation(s: &Statement<'_>, change: &mut impl FnMut(Class, &'static str, String)) {
    let mut sync = |kind, after: String| change(Class::Synchronisation, kind, after);
    let guard = s.guard_text();
    if s.is("bar.warp.sync") {
        sync("delete-warp-barrier", String::new());
        if let Some(mask) = halved(s.operands.last().copied()) {
            sync("halve-mask", s.with(s.op, &[mask]));
        }
    } else if s.is("bar.sync") || s.is("bar.red") || s.is("bar.arrive") || s.is("barrier") {
        sync("delete-barrier", String::new());
        if !s.is("bar.red") && !s.has("red") && !s.has("arrive") {
            sync("barrier-of-a-warp", format!("{guard}bar.warp.sync -1;"));
        }
    } else if ["shfl.sync", "vote.sync", "match", "redux.sync", "elect.sync"].iter().any(|op| s.is(op)) {
        if let Some(mask) = halved(s.operands.last().copied()) {
            let mut operands = s.operands.clone();
            let last = operands.len() - 1;
            operands[last] = mask;
            sync("halve-mask", s.with(s.op, &operands));
        }
    } else if s.is("cp.async.wait_group") {
        sync("delete-wait", String::new());
        if let Some(n) = s.operands.first().and_then(|n| n.parse::<u32>().ok()) {
            sync("wait-for-one-less", s.with(s.op, &[&(n + 1).to_string()]));
        }
    } else if s.is("cp.async.wait_all") {
        sync("delete-wait", String::new());
    } else if s.is("cp.async.commit_group") {
        sync("delete-commit", String::new());
    } else if s.is("mbarrier.arrive") || s.is("cp.async.mbarrier") {
        // With a result it cannot be deleted without leaving a register unset: that is found as well.
        sync("delete-arrive", String::new());
    } else if s.is("fence") || s.is("membar") {
        sync("delete-fence", String::new());
        for wide in ["gpu", "gl"] {
            if s.has(wide) {
                let op = replace_part(s.op, wide, "cta");
                sync("fence-of-a-cta", s.with(&op, &s.operands));
            }
        }
    } else if s.is("atom") || s.is("red") || s.is("ld") || s.is("st") {
        for order in ["acq_rel", "acquire", "release"] {
            if s.has(order) {
                let op = replace_part(s.op, order, "relaxed");
                sync("relax-order", s.with(&op, &s.operands));
            }
        }
        if (s.is("atom") || s.is("red")) && s.has("gpu") {
            let op = replace_part(s.op, "gpu", "cta");
            sync("atomic-of-a-cta", s.with(&op, &s.operands));
        }
        if (s.is("ld") || s.is("st")) && (s.has("volatile") || s.has("relaxed")) {
            let op: Vec<_> =
                s.op.split('.')
                    .filter(|p| !["volatile", "relaxed", "gpu", "sys", "cta"].contains(p))
                    .collect();
            sync("weaken-access", s.with(&op.join("."), &s.operands));
        }
    }
}

/// The lower half of a full mask.
fn halved(mask: Option<&str>) -> Option<&'static str> {
    matches!(mask, Some("-1" | "0xffffffff" | "0xFFFFFFFF" | "4294967295")).then_some("65535")
}

fn replace_part(op: &str, from: &str, to: &str) -> String {
    op.split('.').map(|p| if p == from { to } else { p }).collect::<Vec<_>>().join(".")
}

/// Predicates that only choose between two values, with those values: `selp d, a, b, p`.
fn selections<'a>(all: &[Statement<'a>]) -> BTreeMap<&'a str, Option<(&'a str, &'a str)>> {
    let mut uses: BTreeMap<&str, Option<(&str, &str)>> = BTreeMap::new();
    for s in all {
        if let Some((p, _)) = s.guard {
            uses.insert(p, None);
        }
        for (i, operand) in s.operands.iter().enumerate().skip(1) {
            for p in registers(operand).filter(|r| r.starts_with("%p")) {
                let pair = (s.is("selp") && i == 3).then(|| (s.operands[1], s.operands[2]));
                let known = uses.entry(p).or_insert(pair);
                if *known != pair {
                    *known = None;
                }
            }
        }
    }
    uses
}

fn bounds(
    s: &Statement<'_>,
    selected: &BTreeMap<&str, Option<(&str, &str)>>,
    change: &mut impl FnMut(Class, &'static str, String),
) {
    let ty = s.op.rsplit('.').next().unwrap_or("");
    let integer = ty.starts_with(['u', 's', 'b']) && ty[1..].parse::<u32>().is_ok();
    if !(s.is("setp") || s.is("set")) || !integer || s.operands.len() < 3 {
        return;
    }
    let Some(order) = s.op.split('.').nth(1) else { return };
    if let Some(c) = s.operands[2].parse::<i64>().ok().filter(|_| s.operands.len() == 3) {
        for (kind, c) in [("bound-plus-1", c.wrapping_add(1)), ("bound-minus-1", c.wrapping_sub(1))] {
            // An unsigned bound has nothing below zero; `x != 1` for `x != 0` is the flip of a flag.
            if c < 0 && ty.starts_with('u') {
                continue;
            }
            let c = c.to_string();
            change(Class::Bounds, kind, s.with(s.op, &[s.operands[0], s.operands[1], &c]));
        }
        return;
    }
    // A minimum or maximum: where both are equal, either is right.
    if let Some(Some((a, b))) = selected.get(s.operands[0].split('|').next().unwrap_or(""))
        && ((*a == s.operands[1] && *b == s.operands[2]) || (*a == s.operands[2] && *b == s.operands[1]))
    {
        return;
    }
    let other = match order {
        "lt" => "le",
        "le" => "lt",
        "gt" => "ge",
        "ge" => "gt",
        "lo" => "ls",
        "ls" => "lo",
        "hi" => "hs",
        "hs" => "hi",
        _ => return,
    };
    change(Class::Bounds, "off-by-one", s.with(&s.op.replacen(order, other, 1), &s.operands));
}

fn predicate(s: &Statement<'_>, change: &mut impl FnMut(Class, &'static str, String)) {
    let Some((p, negated)) = s.guard else { return };
    let rest = format!("{} {};", s.op, s.operands.join(", "));
    let guard = if negated { format!("@{p}") } else { format!("@!{p}") };
    change(Class::Predicate, "negate-guard", format!("{guard} {rest}"));
    change(Class::Predicate, "drop-guard", rest);
}

fn arithmetic(s: &Statement<'_>, change: &mut impl FnMut(Class, &'static str, String)) {
    let o = &s.operands;
    let immediate = |i: usize| o.get(i).and_then(|v| v.parse::<i64>().ok());
    let mut address = |kind, after: String| change(Class::Address, kind, after);
    let ty = s.op.rsplit('.').next().unwrap_or("");
    if s.has("f32") || s.has("f64") {
        return;
    }
    match o.len() {
        3 if s.is("add") || s.is("sub") || s.is("shl") || s.is("shr") || s.is("mul") || s.is("or") => {
            if let Some(c) = immediate(2) {
                address("constant-plus-1", s.with(s.op, &[o[0], o[1], &c.wrapping_add(1).to_string()]));
            } else if s.is("add") && !s.has("cc") {
                address("add-to-sub", s.with(&s.op.replacen("add", "sub", 1), o));
            } else if s.is("sub") && o[1] != o[2] && !s.has("cc") {
                address("swap-operands", s.with(s.op, &[o[0], o[2], o[1]]));
            } else if s.is("mul.lo") {
                address("mul-to-add", s.with(&format!("add.{ty}"), o));
            }
        }
        4 if s.is("mad") => {
            if s.is("mad.lo") && o[2] != o[3] && immediate(2).is_none() {
                address("swap-operands", s.with(s.op, &[o[0], o[1], o[3], o[2]]));
            } else if let Some(c) = immediate(2) {
                let c = c.wrapping_add(1).to_string();
                address("constant-plus-1", s.with(s.op, &[o[0], o[1], &c, o[3]]));
            }
        }
        _ => {}
    }
}

/// Moves an access by its own width.
fn offset(s: &Statement<'_>, change: &mut impl FnMut(Class, &'static str, String)) {
    let access = ["ld", "st", "atom", "red", "cp.async", "ldmatrix"].iter().any(|op| s.is(op));
    if !access || s.has("param") {
        return;
    }
    let bits: i64 = s.op.rsplit('.').next().and_then(|t| t.get(1..)?.parse().ok()).unwrap_or(128);
    let lanes = if s.has("v2") {
        2
    } else if s.has("v4") {
        4
    } else {
        1
    };
    let width = (bits / 8 * lanes).max(1);
    for (i, operand) in s.operands.iter().enumerate() {
        let Some(inner) = operand.strip_prefix('[').and_then(|o| o.strip_suffix(']')) else { continue };
        let (base, old) = inner.split_once('+').unwrap_or((inner, "0"));
        let Ok(old) = old.trim().parse::<i64>() else { continue };
        let moved = format!("[{base}+{}]", old + width);
        let mut operands = s.operands.clone();
        operands[i] = &moved;
        change(Class::Address, "move-access", s.with(s.op, &operands));
    }
}

/// Hash of the instruction and its three neighbours on either side, registers and labels by their order of
/// appearance.
fn context(all: &[Statement<'_>], at: usize) -> u32 {
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut feed = |text: &str| {
        for b in text.bytes() {
            hash = (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    let window = at.saturating_sub(3)..(at + 4).min(all.len());
    for (i, s) in all[window.clone()].iter().enumerate() {
        feed(if window.start + i == at { "\n>" } else { "\n" });
        let text = format!("{}{} {}", s.guard_text(), s.op, s.operands.join(", "));
        let mut word = String::new();
        for c in text.chars().chain(std::iter::once(' ')) {
            if c.is_ascii_alphanumeric() || matches!(c, '%' | '_' | '$' | '.') {
                word.push(c);
                continue;
            }
            if !word.is_empty() {
                feed(&plain(&word, &mut names));
                word.clear();
            }
            feed(c.encode_utf8(&mut [0; 4]));
        }
    }
    (hash ^ hash >> 32) as u32
}

/// Numbered registers, labels and parameters without what changes when code elsewhere does.
fn plain(word: &str, names: &mut HashMap<String, usize>) -> String {
    let kind = word.trim_end_matches(|c: char| c.is_ascii_digit());
    if word.starts_with("$L") {
        return "L".into();
    }
    if let Some(at) = word.find("_param_") {
        return word[at..].to_owned();
    }
    if word.starts_with('%') && kind.len() < word.len() && !word.contains('.') {
        let n = names.len();
        return format!("{kind}{}", names.entry(word.to_owned()).or_insert(n));
    }
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &str) -> Vec<(Class, &'static str, String)> {
        mutants("k", &format!(".entry k()\n{{\n{body}\n}}"))
            .into_iter()
            .map(|m| (m.class, m.kind, m.after))
            .collect()
    }

    fn kinds(body: &str, class: Class) -> Vec<String> {
        of(body).into_iter().filter(|m| m.0 == class).map(|m| format!("{}: {}", m.1, m.2)).collect()
    }

    #[test]
    fn every_kind_of_synchronisation_is_deleted_or_weakened() {
        for (body, want) in [
            ("bar.sync 0;", vec!["delete-barrier: ", "barrier-of-a-warp: bar.warp.sync -1;"]),
            ("bar.warp.sync -1;", vec!["delete-warp-barrier: ", "halve-mask: bar.warp.sync 65535;"]),
            (
                "shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;",
                vec!["halve-mask: shfl.sync.bfly.b32 %r1, %r2, 1, 31, 65535;"],
            ),
            ("cp.async.wait_group 1;", vec!["delete-wait: ", "wait-for-one-less: cp.async.wait_group 2;"]),
            ("cp.async.wait_all;", vec!["delete-wait: "]),
            ("cp.async.commit_group;", vec!["delete-commit: "]),
            ("membar.gl;", vec!["delete-fence: ", "fence-of-a-cta: membar.cta ;"]),
            ("fence.acq_rel.gpu;", vec!["delete-fence: ", "fence-of-a-cta: fence.acq_rel.cta ;"]),
            (
                "atom.acq_rel.gpu.global.add.u32 %r1, [%rd1], 1;",
                vec![
                    "relax-order: atom.relaxed.gpu.global.add.u32 %r1, [%rd1], 1;",
                    "atomic-of-a-cta: atom.acq_rel.cta.global.add.u32 %r1, [%rd1], 1;",
                ],
            ),
            ("ld.volatile.global.u32 %r1, [%rd1];", vec!["weaken-access: ld.global.u32 %r1, [%rd1];"]),
        ] {
            assert_eq!(kinds(body, Class::Synchronisation), want, "{body}");
        }
    }

    #[test]
    fn bounds_move_by_one_in_the_direction_that_matters() {
        assert_eq!(
            kinds("setp.lt.u32 %p1, %r1, %r2; @%p1 ret;", Class::Bounds),
            ["off-by-one: setp.le.u32 %p1, %r1, %r2;"]
        );
        assert_eq!(
            kinds("setp.gt.u32 %p1, %r1, 0;", Class::Bounds),
            ["bound-plus-1: setp.gt.u32 %p1, %r1, 1;"]
        );
        assert_eq!(kinds("setp.eq.b32 %p1, %r1, 7;", Class::Bounds).len(), 2);
        // Nothing to move: floats, and equality of two registers.
        assert!(kinds("setp.lt.f32 %p1, %r1, %r2; setp.eq.b32 %p2, %r1, %r2;", Class::Bounds).is_empty());
    }

    #[test]
    fn a_minimum_is_not_taken_for_a_bound() {
        let min = "setp.lt.u32 %p1, %r1, %r2; selp.b32 %r3, %r1, %r2, %p1;";
        assert!(kinds(min, Class::Bounds).is_empty());
        // The twin: the predicate does something else as well.
        assert_eq!(kinds(&format!("{min} @%p1 ret;"), Class::Bounds).len(), 1);
    }

    #[test]
    fn guards_are_negated_and_dropped_and_addresses_changed() {
        assert_eq!(
            kinds("@!%p1 bra X;", Class::Predicate),
            ["negate-guard: @%p1 bra X;", "drop-guard: bra X;"]
        );
        let body = "shl.b64 %rd1, %rd9, 2; sub.s64 %rd2, %rd1, %rd8; mad.lo.s64 %rd3, %rd2, %rd4, %rd5; \
            ld.global.v2.b32 {%r1, %r2}, [%rd3+8]; add.s32 %r3, %r1, 1;";
        assert_eq!(
            kinds(body, Class::Address),
            [
                "constant-plus-1: shl.b64 %rd1, %rd9, 3;",
                "swap-operands: sub.s64 %rd2, %rd8, %rd1;",
                "swap-operands: mad.lo.s64 %rd3, %rd2, %rd5, %rd4;",
                "move-access: ld.global.v2.b32 {%r1, %r2}, [%rd3+16];",
            ]
        );
    }

    #[test]
    fn an_identity_does_not_depend_on_names_and_changes_with_its_neighbours_only() {
        let body = |first: &str, r: u32, next: &str| {
            format!(
                ".entry k()\n{{\n{first}\nadd.s32 %r{r}, %r{r}, 1;\nmov.b32 %r{}, %r{r};\nshl.b32 %r{r}, %r{r}, 1;\n\
                 bar.sync 0;\n{next} %r{r}, %r{r}, 3;\nret;\n}}",
                r + 9
            )
        };
        let id =
            |text: String| mutants("k", &text).into_iter().find(|m| m.kind == "delete-barrier").unwrap().id;
        let one = id(body("", 1, "add.s32"));
        assert_eq!(one, id(body("xor.b32 %r5, %r6, %r7;\n", 40, "add.s32")));
        assert_ne!(one, id(body("", 1, "sub.s32")));
        // Equal surroundings are told apart by their number.
        let twice = mutants(
            "k",
            ".entry k()\n{\nret;ret;ret;ret;bar.sync 0;ret;ret;ret;ret;bar.sync 0;ret;ret;ret;\n}",
        );
        let ids: Vec<_> = twice.iter().filter(|m| m.kind == "delete-barrier").map(|m| &m.id).collect();
        assert_eq!(format!("{}.2", ids[0]), *ids[1]);
    }

    #[test]
    fn a_mutant_has_the_lines_of_the_original() {
        let text = ".entry k()\n{\n\tbar.sync\n\t0;\n\tret;\n}";
        for m in mutants("k", text) {
            let changed = m.apply(text);
            assert_eq!(changed.lines().count(), text.lines().count(), "{changed}");
            assert_ne!(changed, text);
            assert_eq!(m.line, 3);
        }
    }
}
