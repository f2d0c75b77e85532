//! Protocols by which threads hand data on: the correct ones are clean under many schedules, and each
//! loses its order, and is reported, when one step is taken away.
//!
//! A protocol is a kernel with `{name}` where a step stands; `whole` fills all of them in, a mutant
//! leaves one out (or puts something weaker there).

mod common;
use common::{kernel, run_with};
use ptx_emulator::{Class, Finding, LaunchConfig, Options};

struct Protocol {
    text: &'static str,
    threads: u32,
    ctas: u32,
    /// What stands at each name; weaker versions that must be reported.
    steps: &'static [(&'static str, &'static str, &'static [&'static str])],
}

const EXTRA: &str = ".extern .shared .align 16 .b8 dyn[]; .global .align 8 .u32 word[64];";
/// %r1: shared memory, %r2: own word in it, %flag: zeroed global words, %p1: thread 0.
const HEAD: &str = ".reg .b64 %flag; .reg .b32 %c; mov.u64 %flag, word; mov.u32 %r1, dyn; shl.b32 %r2, %t, 2; add.u32 %r2, %r1, %r2; setp.eq.u32 %p1, %t, 0; mov.u32 %c, %ctaid.x;\n";

fn findings(body: &str, threads: u32, ctas: u32, seed: u64) -> Vec<Finding> {
    let config = LaunchConfig { grid: [ctas, 1, 1], block: [threads, 1, 1], shared_bytes: 2048 };
    let options = Options { seed, max_steps: 1_000_000, ..Options::default() };
    run_with(&kernel(EXTRA, &format!("{HEAD}{body}")), options, config, &vec![3; 1024], 1024).report.findings
}

fn check(name: &str, p: &Protocol) {
    let fill = |change: Option<(&str, &str)>| {
        p.steps.iter().fold(p.text.to_string(), |text, (step, whole, _)| {
            let code = change.filter(|c| c.0 == *step).map_or(*whole, |c| c.1);
            assert!(text.contains(&format!("{{{step}}}")), "{name}: no step {step}");
            text.replace(&format!("{{{step}}}"), code)
        })
    };
    for seed in 0..16 {
        let found = findings(&fill(None), p.threads, p.ctas, seed);
        assert!(found.is_empty(), "{name}, seed {seed}: {found:#?}");
    }
    for (step, _, weaker) in p.steps {
        for code in *weaker {
            let hit = (0..8).any(|seed| {
                findings(&fill(Some((step, code))), p.threads, p.ctas, seed).iter().any(|f| {
                    f.class == Class::Race && f.other.is_some() && f.allocation.is_some() && f.line > 0
                })
            });
            assert!(hit, "{name}: `{code}` for `{step}` is not reported");
        }
    }
}

#[test]
fn a_flag_in_shared_memory_needs_a_fence_on_either_side() {
    // Warp 1 writes, warp 0 waits.
    let text = "@%p1 st.shared.u32 [%r1+1024], 0; bar.sync 0; setp.lt.u32 %p2, %t, 32; @%p2 bra W;\n\
        st.shared.u32 [%r2], %t; bar.warp.sync -1; {before} setp.eq.u32 %p3, %t, 32; @%p3 {raise} bra E;\n\
        W: {poll} setp.eq.u32 %p4, %r4, 0; @%p4 bra W; {after} ld.shared.u32 %r5, [%r2+128]; E:";
    check(
        "fences",
        &Protocol {
            text,
            threads: 64,
            ctas: 1,
            steps: &[
                ("before", "fence.acq_rel.cta;", &[""]),
                ("raise", "st.volatile.shared.u32 [%r1+1024], 1;", &["st.shared.u32 [%r1+1024], 1;"]),
                ("poll", "ld.volatile.shared.u32 %r4, [%r1+1024];", &["ld.shared.u32 %r4, [%r1+1024];"]),
                ("after", "membar.cta;", &[""]),
            ],
        },
    );
    check(
        "release and acquire",
        &Protocol {
            text,
            threads: 64,
            ctas: 1,
            steps: &[
                ("before", "", &[]),
                (
                    "raise",
                    "st.release.cta.shared.u32 [%r1+1024], 1;",
                    &["st.relaxed.cta.shared.u32 [%r1+1024], 1;"],
                ),
                (
                    "poll",
                    "ld.acquire.cta.shared.u32 %r4, [%r1+1024];",
                    &["ld.relaxed.cta.shared.u32 %r4, [%r1+1024];"],
                ),
                ("after", "", &[]),
            ],
        },
    );
    check(
        "atomics",
        &Protocol {
            text,
            threads: 64,
            ctas: 1,
            steps: &[
                ("before", "", &[]),
                (
                    "raise",
                    "atom.acq_rel.cta.shared.exch.b32 %r9, [%r1+1024], 1;",
                    &[
                        "atom.acquire.cta.shared.exch.b32 %r9, [%r1+1024], 1;",
                        "atom.shared.exch.b32 %r9, [%r1+1024], 1;",
                    ],
                ),
                (
                    "poll",
                    "atom.acquire.cta.shared.or.b32 %r4, [%r1+1024], 0;",
                    &["atom.shared.or.b32 %r4, [%r1+1024], 0;"],
                ),
                ("after", "", &[]),
            ],
        },
    );
}

#[test]
fn a_flag_in_global_memory_orders_the_warps_of_a_cta_at_cta_scope() {
    check(
        "cta scope",
        &Protocol {
            text: "setp.lt.u32 %p2, %t, 32; mul.wide.u32 %rd2, %t, 4; add.u64 %rd2, %out, %rd2; @%p2 bra W;\n\
                st.global.u32 [%rd2], %t; bar.warp.sync -1; setp.eq.u32 %p3, %t, 32; @%p3 {raise} bra E;\n\
                W: {poll} setp.eq.u32 %p4, %r4, 0; @%p4 bra W; ld.global.u32 %r5, [%rd2+128]; E:",
            threads: 64,
            ctas: 1,
            steps: &[
                ("raise", "st.release.cta.global.u32 [%flag], 1;", &["st.volatile.global.u32 [%flag], 1;"]),
                (
                    "poll",
                    "ld.acquire.cta.global.u32 %r4, [%flag];",
                    &["ld.volatile.global.u32 %r4, [%flag];"],
                ),
            ],
        },
    );
}

#[test]
fn a_lock_needs_a_fence_after_it_is_taken_and_before_it_is_given_back() {
    // Every thread adds to a plain word; lanes of a warp and CTAs contend.
    let text = "mov.u32 %r9, 0; L: {take} setp.ne.u32 %p2, %r4, 0; @%p2 bra L; {after}\n\
        ld.global.u32 %r5, [%flag+64]; add.u32 %r5, %r5, 1; st.global.u32 [%flag+64], %r5;\n\
        {before} {give}";
    for (threads, ctas) in [(1, 4), (2, 1), (2, 2)] {
        check(
            "fences",
            &Protocol {
                text,
                threads,
                ctas,
                steps: &[
                    ("take", "atom.global.cas.b32 %r4, [%flag], 0, 1;", &[]),
                    ("after", "membar.gl;", &[""]),
                    ("before", "membar.gl;", &[""]),
                    ("give", "atom.global.exch.b32 %r6, [%flag], 0;", &[]),
                ],
            },
        );
        check(
            "acquire and release",
            &Protocol {
                text,
                threads,
                ctas,
                steps: &[
                    (
                        "take",
                        "atom.acquire.gpu.global.cas.b32 %r4, [%flag], 0, 1;",
                        &["atom.global.cas.b32 %r4, [%flag], 0, 1;"],
                    ),
                    ("after", "", &[]),
                    ("before", "", &[]),
                    (
                        "give",
                        "st.release.gpu.global.u32 [%flag], 0;",
                        &["st.relaxed.gpu.global.u32 [%flag], 0;"],
                    ),
                ],
            },
        );
    }
}

#[test]
fn a_barrier_of_the_grid_by_atomics_is_clean() {
    check(
        "grid barrier",
        &Protocol {
            text: "mul.lo.u32 %r3, %c, 64; add.u32 %r3, %r3, %t; mul.wide.u32 %rd2, %r3, 4; add.u64 %rd2, %out, %rd2; st.global.u32 [%rd2], %r3;\n\
                bar.sync 0; @!%p1 bra J; {before} red.global.add.u32 [%flag], 1;\n\
                W: ld.volatile.global.u32 %r4, [%flag]; setp.lt.u32 %p2, %r4, 4; @%p2 bra W; {after}\n\
                J: {meet} add.u32 %r3, %r3, 100; and.b32 %r3, %r3, 255; mul.wide.u32 %rd3, %r3, 4; add.u64 %rd3, %out, %rd3; ld.global.u32 %r5, [%rd3];",
            threads: 64,
            ctas: 4,
            steps: &[
                ("before", "membar.gl;", &["", "membar.cta;"]),
                ("after", "membar.gl;", &[]),
                ("meet", "bar.sync 0;", &["bar.warp.sync -1;"]),
            ],
        },
    );
}

#[test]
fn ping_pong_buffers_need_one_barrier_a_round() {
    check(
        "ping pong",
        &Protocol {
            text: "st.shared.u32 [%r2], %t; mov.u32 %r3, 0; xor.b32 %r6, %t, 63; shl.b32 %r6, %r6, 2; add.u32 %r6, %r6, %r1;\n\
                L: {meet} and.b32 %r4, %r3, 1; shl.b32 %r4, %r4, 9; add.u32 %r5, %r6, %r4; ld.shared.u32 %r7, [%r5]; xor.b32 %r4, %r4, 512; add.u32 %r5, %r2, %r4; add.u32 %r7, %r7, 1; st.shared.u32 [%r5], %r7;\n\
                add.u32 %r3, %r3, 1; setp.lt.u32 %p2, %r3, 6; @%p2 bra L;",
            threads: 64,
            ctas: 1,
            steps: &[("meet", "bar.sync 0;", &["", "bar.warp.sync -1;"])],
        },
    );
}

#[test]
fn a_reduction_within_a_warp_needs_every_syncwarp() {
    check(
        "warp tree",
        &Protocol {
            text: "st.shared.u32 [%r2], %t; {a} ld.shared.u32 %r3, [%r2]; setp.lt.u32 %p2, %t, 16; @%p2 ld.shared.u32 %r4, [%r2+64]; @!%p2 mov.u32 %r4, 0; {b}\n\
                add.u32 %r3, %r3, %r4; @%p2 st.shared.u32 [%r2], %r3; {c} setp.lt.u32 %p3, %t, 8; @%p3 ld.shared.u32 %r5, [%r2+32];",
            threads: 32,
            ctas: 1,
            steps: &[
                ("a", "bar.warp.sync -1;", &[""]),
                // Nobody writes what another lane reads here.
                ("b", "bar.warp.sync -1;", &[]),
                ("c", "bar.warp.sync -1;", &[""]),
            ],
        },
    );
}

#[test]
fn votes_and_shuffles_under_partial_masks_order_their_lanes_only() {
    check(
        "half warps",
        &Protocol {
            text: "setp.lt.u32 %p2, %t, 16; selp.b32 %r3, 0x0000ffff, 0xffff0000, %p2; st.shared.u32 [%r2], %t; {meet}\n\
                xor.b32 %r4, %t, 15; shl.b32 %r4, %r4, 2; add.u32 %r4, %r4, %r1; ld.shared.u32 %r5, [%r4];",
            threads: 32,
            ctas: 1,
            steps: &[(
                "meet",
                "@%p2 bra A; vote.sync.ballot.b32 %r6, 1, 0xffff0000; bra J; A: shfl.sync.idx.b32 %r6, %t, 3, 31, 0x0000ffff; J:",
                &[
                    "",
                    "@%p2 bra A; vote.sync.ballot.b32 %r6, 1, 0xffff0000; bra J; A: shfl.sync.idx.b32 %r6, %t, 3, 31, 0x000000ff; J:",
                ],
            )],
        },
    );
}

#[test]
fn copies_in_flight_hold_their_sources_and_their_places() {
    // %r4: own 16 bytes, %rd1: their source, in `out`.
    check(
        "cp.async",
        &Protocol {
            text: "shl.b32 %r4, %t, 4; add.u32 %r4, %r1, %r4; mul.wide.u32 %rd1, %t, 16; add.u64 %rd1, %out, %rd1; mov.u32 %r5, 7; st.global.v4.u32 [%rd1], {%r5, %r5, %r5, %r5};\n\
                cp.async.cg.shared.global [%r4], [%rd1], 16; cp.async.commit_group; {wait} mov.u32 %r6, 9; st.global.u32 [%rd1], %r6; {later} ld.shared.u32 %r7, [%r4];",
            threads: 32,
            ctas: 1,
            steps: &[
                ("wait", "cp.async.wait_group 0;", &["", "cp.async.wait_group 1;", "bar.sync 0;"]),
                ("later", "cp.async.wait_all;", &[]),
            ],
        },
    );
    // The place of a copy is written by stmatrix.
    check(
        "stmatrix",
        &Protocol {
            text: "shl.b32 %r4, %t, 4; add.u32 %r4, %r1, %r4; mul.wide.u32 %rd1, %t, 16; add.u64 %rd1, %in, %rd1; mov.u32 %r5, 7;\n\
                cp.async.cg.shared.global [%r4], [%rd1], 16; {wait} {meet} stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r4], {%r5, %r5, %r5, %r5}; {after} ld.shared.u32 %r7, [%r2];",
            threads: 32,
            ctas: 1,
            steps: &[
                ("wait", "cp.async.wait_all;", &[""]),
                ("meet", "bar.warp.sync -1;", &[]),
                ("after", "bar.warp.sync -1;", &[]),
            ],
        },
    );
    check(
        "stmatrix between warps",
        &Protocol {
            text: "and.b32 %r4, %t, 31; shl.b32 %r4, %r4, 4; add.u32 %r4, %r1, %r4; mov.u32 %r5, 7; setp.lt.u32 %p2, %t, 32; @!%p2 bra J; stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r4], {%r5, %r5, %r5, %r5};\n\
                J: {meet} @!%p2 ld.shared.u32 %r7, [%r2];",
            threads: 64,
            ctas: 1,
            steps: &[("meet", "bar.sync 0;", &["", "bar.warp.sync -1;"])],
        },
    );
}

#[test]
fn warp_aggregated_atomics_and_plain_reads_behind_a_barrier_are_clean() {
    check(
        "aggregated",
        &Protocol {
            text: "@%p1 st.shared.u32 [%r1+1024], 0; bar.sync 0; and.b32 %r3, %t, 3; setp.eq.u32 %p2, %r3, 1; @!%p2 bra J;\n\
                activemask.b32 %r4; match.any.sync.b32 %r5, %r3, %r4; popc.b32 %r6, %r5; brev.b32 %r7, %r5; clz.b32 %r7, %r7; mov.u32 %r8, %laneid; setp.eq.u32 %p3, %r7, %r8;\n\
                @%p3 atom.shared.add.u32 %r9, [%r1+1024], %r6; J: {meet} ld.shared.u32 %r10, [%r1+1024]; st.global.u32 [%my], %r10;",
            threads: 96,
            ctas: 1,
            steps: &[("meet", "bar.sync 0;", &["", "membar.cta;"])],
        },
    );
}

#[test]
fn arrivals_hand_a_buffer_over_and_back() {
    check(
        "producer and consumer",
        &Protocol {
            text: "mov.u32 %r3, 0; setp.lt.u32 %p2, %t, 32; @%p2 bra P;\n\
                C: {full} ld.shared.u32 %r4, [%r2+-128]; {empty} add.u32 %r3, %r3, 1; setp.lt.u32 %p3, %r3, 4; @%p3 bra C; bra E;\n\
                P: st.shared.u32 [%r2], %r3; {filled} {emptied} add.u32 %r3, %r3, 1; setp.lt.u32 %p3, %r3, 4; @%p3 bra P; E:",
            threads: 64,
            ctas: 1,
            steps: &[
                ("full", "bar.sync 1, 64;", &[]),
                ("empty", "bar.arrive 2, 64;", &[]),
                ("filled", "bar.arrive 1, 64;", &[]),
                ("emptied", "bar.sync 2, 64;", &["bar.arrive 2, 64;"]),
            ],
        },
    );
}
