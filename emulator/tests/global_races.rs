//! Races in global memory, between lanes, warps and CTAs: every broken kernel is reported with both
//! sides, no correct twin is, under several schedules.

mod common;
use common::bench::{Bench, IntoArg, SEEDS};
use common::{kernel, run_with};
use ptx_emulator::{Class, Finding, LaunchConfig, Options};

const CTAS: u32 = 6;
/// %c: CTA, %mine: a word of the CTA, %all: its first word (all in `out`, as is the flag at 1024);
/// %flag points at a zeroed word, %p1: thread 0, %p2: CTA 0.
const HEAD: &str = ".reg .b32 %c; .reg .b64 %mine; .reg .b64 %flag; mov.u32 %c, %ctaid.x; mul.wide.u32 %rd1, %c, 4; add.u64 %mine, %out, %rd1;\n\
    mov.u64 %flag, word; setp.eq.u32 %p1, %t, 0; setp.eq.u32 %p2, %c, 0;\n";

fn findings(body: &str, threads: u32, seed: u64) -> Vec<Finding> {
    let config = LaunchConfig { grid: [CTAS, 1, 1], block: [threads, 1, 1], shared_bytes: 0 };
    let text = kernel(".global .u32 word[64];", &format!("{HEAD}{body}"));
    run_with(&text, Options { seed, ..Options::default() }, config, &vec![3; 1024], 1024).report.findings
}

/// The lines marked `//!` are the two sides, in either order.
#[track_caller]
fn racy(body: &str, threads: u32) {
    let text = kernel(".global .u32 word[64];", &format!("{HEAD}{body}"));
    let marked: Vec<u32> =
        text.lines().enumerate().filter(|(_, l)| l.contains("//!")).map(|(i, _)| i as u32 + 1).collect();
    for seed in 0..8 {
        let found = findings(body, threads, seed);
        assert!(
            found.iter().all(|f| matches!(f.class, Class::Race | Class::Init)),
            "seed {seed}: {found:#?}"
        );
        let hit = found.iter().any(|f| {
            let other = f.other.as_ref().map_or(0, |o| o.line);
            marked.contains(&f.line) && marked.contains(&other) && f.allocation.is_some()
        });
        assert!(hit, "{body}\nseed {seed}, lines {marked:?}: {found:#?}");
    }
}

#[track_caller]
fn ordered(body: &str, threads: u32) {
    for seed in 0..12 {
        let found = findings(body, threads, seed);
        assert!(found.is_empty(), "seed {seed}: {found:#?}");
    }
}

#[test]
fn ctas_that_write_different_values_to_one_place_are_found() {
    racy("st.global.u32 [%out], %c; //!\n", 32);
    ordered("mov.u32 %r1, 7; st.global.u32 [%out], %r1;", 64);
    ordered("atom.global.add.u32 %r1, [%flag], %c;", 64);
    // Neighbouring bytes and halves are no conflict.
    ordered(
        "mul.wide.u32 %rd2, %c, 32; cvt.u64.u32 %rd3, %t; add.u64 %rd2, %rd2, %rd3; add.u64 %rd2, %out, %rd2; cvt.u16.u32 %h1, %c; st.global.u8 [%rd2], %h1;",
        32,
    );
}

#[test]
fn neighbouring_ctas_are_told_apart() {
    // CTAs 2k and 2k + 1 read each other's words.
    racy(
        "mov.u32 %r1, %ctaid.x; mov.u32 %r6, %ntid.x; mad.lo.u32 %r2, %r1, %r6, %t; xor.b32 %r3, %r2, %r6; mul.wide.u32 %rd1, %r2, 4; \
         mul.wide.u32 %rd2, %r3, 4; add.u64 %rd1, %out, %rd1; add.u64 %rd2, %out, %rd2;\n\
         st.global.u32 [%rd1], 7; //!\nld.global.u32 %r4, [%rd2]; //!\n",
        32,
    );
}

#[test]
fn a_cta_that_reads_what_another_writes_is_found() {
    let own = "@%p1 st.global.u32 [%mine], %c; //!\n";
    let next =
        "add.u32 %r1, %c, 1; rem.u32 %r1, %r1, 6; mul.wide.u32 %rd2, %r1, 4; add.u64 %rd2, %flag, %rd2;";
    // In place: the word of the next CTA may be written already.
    racy(
        &format!(
            "{next}\nld.global.u32 %r2, [%rd2]; //!\nmul.wide.u32 %rd3, %c, 4; add.u64 %rd3, %flag, %rd3; add.u32 %r2, %r2, 1;\n@%p1 st.global.u32 [%rd3], %r2; //!\n"
        ),
        32,
    );
    ordered(&format!("{next} ld.global.u32 %r2, [%rd2]; {}", own.replace("//!", "")), 32);
}

#[test]
fn threads_of_a_cta_meet_at_barriers_and_lanes_at_syncs() {
    let exchange = |wait: &str| {
        format!(
            "mul.wide.u32 %rd2, %c, 512; add.u64 %rd2, %out, %rd2; add.u64 %rd3, %rd2, %i4; xor.b32 %r1, %t, 33; and.b32 %r1, %r1, 63; mul.wide.u32 %rd4, %r1, 4; add.u64 %rd4, %rd2, %rd4;\n\
             st.global.u32 [%rd3], %t; //!\n{wait}\nld.global.u32 %r2, [%rd4]; //!\n"
        )
    };
    racy(&exchange(""), 64);
    racy(&exchange("membar.gl;"), 64);
    racy(&exchange("bar.warp.sync -1;"), 64);
    ordered(&exchange("bar.sync 0;"), 64);
    // Lanes of one warp.
    let lanes = |wait: &str| exchange(wait).replace("%t, 33", "%t, 1");
    racy(&lanes(""), 32);
    ordered(&lanes("bar.warp.sync -1;"), 32);
    ordered(&lanes("shfl.sync.idx.b32 %r5, %t, 0, 31, -1;"), 32);
}

/// Every CTA leaves a word, the last to come adds them.
fn last_block(before: &str, ticket: &str, after: &str) -> String {
    format!(
        "add.u32 %r1, %c, 5;\n@%p1 st.global.u32 [%mine], %r1; //!\n{before}\nmov.u32 %r2, 0; @!%p1 bra J;\n{ticket}\n\
         J: setp.ne.u32 %p3, %r2, 5; @%p3 bra E; {after} mov.u32 %r3, 0; mov.u64 %rd5, %out;\n\
         L: ld.global.u32 %r4, [%rd5]; //!\nadd.u64 %rd5, %rd5, 4; add.u32 %r3, %r3, 1; setp.lt.u32 %p4, %r3, 6; @%p4 bra L;\nE:"
    )
}

#[test]
fn a_last_block_needs_its_fence_before_the_ticket() {
    let ticket = "atom.global.add.u32 %r2, [%flag], 1;";
    ordered(&last_block("membar.gl;", ticket, "membar.gl;"), 32);
    ordered(&last_block("fence.acq_rel.gpu;", ticket, "fence.acq_rel.gpu;"), 32);
    ordered(&last_block("", "atom.acq_rel.gpu.global.add.u32 %r2, [%flag], 1;", ""), 32);
    // The canonical sample has a barrier instead of the second fence; all may fence before the barrier.
    ordered(&last_block("membar.gl;", ticket, "bar.warp.sync -1; membar.gl;"), 32);
    ordered(&last_block("bar.sync 0; membar.gl;", ticket, "membar.gl;"), 96);
    ordered(&last_block("membar.gl; bar.sync 0;", ticket, "membar.gl;"), 96);
    // No fence, the fence too late, the fence of a CTA only, no acquire.
    racy(&last_block("", ticket, "membar.gl;"), 32);
    racy(&last_block("bar.sync 0;", ticket, "membar.gl;"), 96);
    racy(&last_block("", &format!("{ticket} membar.gl;"), ""), 32);
    racy(&last_block("membar.cta;", ticket, "membar.gl;"), 32);
    racy(&last_block("membar.gl;", ticket, ""), 32);
    racy(&last_block("", "atom.acquire.gpu.global.add.u32 %r2, [%flag], 1;", ""), 32);
    racy(&last_block("", "atom.release.gpu.global.add.u32 %r2, [%flag], 1;", ""), 32);
    racy(&last_block("", "atom.acq_rel.cta.global.add.u32 %r2, [%flag], 1;", ""), 32);
    // The write behind the fence is not covered by it.
    let late = "membar.gl;\n@%p1 st.global.u32 [%mine], 9; //!\n";
    racy(&last_block(late, ticket, "membar.gl;").replacen("[%mine], %r1; //!", "[%mine], %r1;", 1), 32);
}

#[test]
fn the_ticket_may_be_reset_by_the_last_block() {
    let reset = |before: &str| {
        format!(
            "{before} @!%p1 bra E;\natom.global.add.u32 %r2, [%flag], 1; //!\nsetp.ne.u32 %p3, %r2, 5; @%p3 bra E; membar.gl; st.global.u32 [%flag], 0;\nE:"
        )
    };
    ordered(&reset("membar.gl;"), 32);
    // Anybody else may not.
    racy(
        "atom.global.add.u32 %r2, [%flag], 1; //!\nsetp.eq.u32 %p3, %c, 3; @!%p3 bra E;\nst.global.u32 [%flag], 100; //!\nE:",
        1,
    );
}

/// CTA 0 writes and raises a flag, the others wait for it and read.
fn flag(raise: &str, poll: &str, after: &str) -> String {
    format!(
        "mov.u32 %r1, 1; @!%p2 bra W; add.u64 %rd6, %out, %i4;\nst.global.u32 [%rd6], %t; //!\nbar.sync 0; @!%p1 bra E; {raise} bra E;\n\
         W: @!%p1 bra M;\nP: {poll} setp.eq.u32 %p3, %r2, 0; @%p3 bra P; {after}\n\
         M: bar.sync 0; sub.u32 %r3, 63, %t; mul.wide.u32 %rd7, %r3, 4; add.u64 %rd7, %out, %rd7;\nld.global.u32 %r4, [%rd7]; //!\nE:"
    )
}

#[test]
fn spin_flags_with_release_and_acquire_or_fences_are_clean() {
    let (release, acquire) =
        ("st.release.gpu.global.u32 [%flag], %r1;", "ld.acquire.gpu.global.u32 %r2, [%flag];");
    let (fenced, polled) =
        ("membar.gl; st.volatile.global.u32 [%flag], %r1;", "ld.volatile.global.u32 %r2, [%flag];");
    ordered(&flag(release, acquire, ""), 64);
    ordered(&flag(fenced, polled, "membar.gl;"), 64);
    ordered(&flag("membar.gl; atom.global.exch.b32 %r9, [%flag], %r1;", acquire, ""), 64);
    ordered(&flag(release, "atom.global.or.b32 %r2, [%flag], 0;", "membar.gl;"), 64);
    ordered(&flag("red.release.gpu.global.add.u32 [%flag], %r1;", acquire, ""), 64);
    // Without the release, of too small a scope, or beside another address.
    racy(&flag("st.volatile.global.u32 [%flag], %r1;", acquire, ""), 64);
    racy(&flag("st.relaxed.gpu.global.u32 [%flag], %r1;", polled, "membar.gl;"), 64);
    racy(&flag("st.release.cta.global.u32 [%flag], %r1;", acquire, ""), 64);
    racy(
        &flag(
            "membar.gl; st.release.gpu.global.u32 [%flag+8], %r1; st.volatile.global.u32 [%flag], %r1;",
            acquire,
            "",
        )
        .replace("membar.gl; ", ""),
        64,
    );
}

#[test]
fn what_a_cta_was_told_it_may_tell_others() {
    // A chain: CTA n waits for CTA n-1, all data is read by the last one.
    let chain = |acquire: &str| {
        format!(
            "add.u32 %r1, %c, 1;\n@%p1 st.global.u32 [%mine], %r1; //!\n@!%p1 bra M; P: {acquire} setp.ne.u32 %p3, %r2, %c; @%p3 bra P; st.release.gpu.global.u32 [%flag], %r1;\n\
             M: bar.sync 0; setp.ne.u32 %p4, %c, 5; @%p4 bra E;\nld.global.u32 %r5, [%out]; //!\nld.global.u32 %r6, [%out+8];\nE:"
        )
    };
    ordered(&chain("ld.acquire.gpu.global.u32 %r2, [%flag];"), 64);
    // One link that only relaxes breaks it (a barrier would complete the read, there is none between).
    racy(&chain("ld.relaxed.gpu.global.u32 %r2, [%flag];"), 64);
}

#[test]
fn a_fault_in_nvccs_kernels_is_found_when_any_fence_or_barrier_is_deleted() {
    let run = |text: &str, seed: u64| -> Vec<Finding> {
        let mut b = Bench::new(text, seed);
        let x = b.input(&vec![1f32; 2000]);
        let (partial, out) = (b.empty(4 * 9), b.empty(4));
        let args = [x, partial, out, 2000u32.into_arg()];
        b.launch("sum_last_block", [9, 1, 1], [128, 1, 1], &args).findings
    };
    let text = include_str!("cuda/reduce.ptx");
    let start = text.find(".entry sum_last_block").unwrap();
    let end = start + text[start..].find("\n}").unwrap();
    let mut deleted = 0;
    let mut missed = Vec::new();
    for word in ["bar.sync", "membar.gl"] {
        for (at, _) in text[start..end].match_indices(word) {
            let at = start + at;
            let stop = at + text[at..].find(';').unwrap() + 1;
            let mutant = format!("{}{}{}", &text[..at], " ".repeat(stop - at), &text[stop..]);
            deleted += 1;
            if !SEEDS.iter().any(|&seed| !run(&mutant, seed).is_empty()) {
                missed.push(text[..at].lines().count());
            }
        }
    }
    assert!(deleted >= 6, "{deleted}");
    // The second fence: the barrier before it does its work, as in the sample of CUDA.
    let second = text[..start + text[start..end].rfind("membar.gl").unwrap()].lines().count();
    assert_eq!(missed, [second]);
}

#[test]
fn a_race_names_both_lines_of_the_cuda_source() {
    let text = include_str!("cuda/reduce_lines.ptx");
    let source = include_str!("cuda/reduce.cu");
    let line_of = |code: &str| source.lines().position(|l| l.contains(code)).unwrap() as u32 + 1;
    let start = text.find(".entry sum_last_block").unwrap();
    let fence = start + text[start..].find("membar.gl;").unwrap();
    let broken = format!("{}{}", &text[..fence], &text[fence + "membar.gl;".len()..]);
    let run = |text: &str| {
        let mut b = Bench::new(text, 0);
        let x = b.input(&vec![1f32; 2000]);
        let (partial, out) = (b.empty(4 * 9), b.empty(4));
        let args = [x, partial, out, 2000u32.into_arg()];
        b.launch("sum_last_block", [9, 1, 1], [128, 1, 1], &args).findings
    };
    assert!(run(text).is_empty());
    let found = run(&broken);
    let (read, write) = (line_of("s += partial[i]"), line_of("partial[blockIdx.x] ="));
    let f = found.iter().find(|f| f.kind == "read after write").unwrap();
    assert_eq!(f.source, Some(("reduce.cu".to_string(), read)));
    let other = f.other.as_ref().unwrap();
    assert_eq!(other.source, Some(("reduce.cu".to_string(), write)));
    let said = f.to_string();
    assert!(said.contains(&format!("(reduce.cu:{write})")), "{said}");
}
