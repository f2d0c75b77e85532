//! Barriers, atomics and CTAs that depend on each other.

mod common;
use common::{kernel, run, run_with};
use ptx_emulator::{LaunchConfig, Options};

fn seeds() -> impl Iterator<Item = u64> {
    0..12
}

fn cfg(grid: u32, block: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid: [grid, 1, 1], block: [block, 1, 1], shared_bytes: shared }
}

#[test]
fn the_last_block_sees_what_all_blocks_wrote() {
    // Each CTA writes its id, then counts up; the last one adds everything.
    let extra = ".global .align 4 .u32 counter; .shared .align 4 .u32 ticket; .global .align 4 .b8 part[64];";
    let body = "mov.u32 %r1, %ctaid.x; setp.ne.u32 %p1, %t, 0; @%p1 bra WAIT;\n\
        mul.wide.u32 %rd1, %r1, 4; mov.u64 %rd2, part; add.u64 %rd2, %rd2, %rd1; add.u32 %r9, %r1, 1; st.global.u32 [%rd2], %r9;\n\
        fence.acq_rel.gpu; mov.u64 %rd3, counter; atom.add.acq_rel.gpu.global.u32 %r2, [%rd3], 1; st.shared.u32 [ticket], %r2;\n\
        WAIT: bar.sync 0; ld.shared.u32 %r3, [ticket]; mov.u32 %r4, %nctaid.x; sub.u32 %r4, %r4, 1; setp.ne.u32 %p2, %r3, %r4; @%p2 exit;\n\
        setp.ne.u32 %p3, %t, 0; @%p3 bra DONE; mov.u32 %r5, 0; mov.u32 %r6, 0;\n\
        L: mul.wide.u32 %rd1, %r6, 4; mov.u64 %rd2, part; add.u64 %rd2, %rd2, %rd1; ld.global.u32 %r7, [%rd2]; add.u32 %r5, %r5, %r7;\n\
        add.u32 %r6, %r6, 1; setp.le.u32 %p4, %r6, %r4; @%p4 bra L; st.global.u32 [%out], %r5; DONE:";
    let text = kernel(extra, body);
    for seed in seeds() {
        let r = run_with(&text, Options { seed, ..Options::default() }, cfg(16, 64, 0), &[0], 1);
        assert!(r.report.is_clean(), "{:?}", r.report.findings);
        assert_eq!(r.out[0], 136, "seed {seed}");
    }
}

#[test]
fn ctas_may_wait_for_each_other() {
    // CTA 0 waits for a flag that the last CTA sets.
    let body = "mov.u32 %r1, %ctaid.x; setp.ne.u32 %p1, %r1, 0; @%p1 bra SET;\n\
        SPIN: ld.acquire.gpu.global.u32 %r2, [%in]; setp.eq.u32 %p2, %r2, 0; @%p2 bra SPIN; st.global.u32 [%my], %r2; ret;\n\
        SET: setp.ne.u32 %p3, %r1, 7; @%p3 bra END; st.release.gpu.global.u32 [%in], 5; END:";
    for seed in seeds() {
        let options = Options { seed, max_steps: 1_000_000, ..Options::default() };
        let r = run_with(&kernel("", body), options, cfg(8, 32, 0), &[0], 32);
        assert!(r.report.is_clean(), "{:?}", r.report.findings);
        assert_eq!(r.out, [5; 32]);
    }
}

#[test]
fn atomics_do_what_their_names_say() {
    for (op, start, operand, want) in [
        ("add.u32", 5u32, "1", 37u32),
        ("min.s32", 5, "%t", 0),
        ("max.u32", 5, "%t", 31),
        ("and.b32", 0xff, "%t", 0),
        ("or.b32", 0x100, "%t", 0x11f),
        ("xor.b32", 1, "%t", 1),
        ("exch.b32", 9, "%t", 31),
        ("inc.u32", 5, "6", 2),
        ("dec.u32", 5, "6", 1),
        ("add.f32", 0, "0f3F800000", 32f32.to_bits()),
    ] {
        for space in ["global", "shared"] {
            let (addr, init) = if space == "global" {
                ("%out", "st.global.u32 [%out], %r1;")
            } else {
                ("%r2", "st.shared.u32 [%r2], %r1;")
            };
            let text = kernel(
                ".shared .align 4 .b8 word[4];",
                &format!(
                    "mov.u32 %r1, {start}; mov.u32 %r2, word; setp.ne.u32 %p1, %t, 0; @%p1 bra G; {init} G: bar.sync 0;\n\
                     atom.{space}.{op} %r3, [{addr}], {operand}; red.relaxed.gpu.global.add.u32 [%in], 1; bar.sync 0;\n\
                     ld.{space}.u32 %r4, [{addr}]; @!%p1 st.global.u32 [%out], %r4;"
                ),
            );
            let r = run(&text, 32, 0, &[0], 1);
            assert!(r.report.is_clean(), "{op}: {:?}", r.report.findings);
            assert_eq!(r.out[0], want, "{space} {op}");
        }
    }
}

#[test]
fn compare_and_swap_gives_each_lane_its_turn() {
    // A lock-free count by cas, all lanes in a loop of their own.
    let body = "L: ld.volatile.global.u32 %r1, [%in]; add.u32 %r2, %r1, 1; atom.global.cas.b32 %r3, [%in], %r1, %r2;\n\
        setp.ne.u32 %p1, %r3, %r1; @%p1 bra L; st.global.u32 [%my], %r2;";
    let r = run(&kernel("", body), 32, 0, &[0], 32);
    assert!(r.report.is_clean(), "{:?}", r.report.findings);
    let mut seen = r.out.clone();
    seen.sort();
    assert_eq!(seen, (1..=32).collect::<Vec<_>>());
}

#[test]
fn barriers_with_counts_pair_producers_and_consumers() {
    // Warp 0 produces and arrives, warp 1 waits; the other two take no part.
    let body = "mov.u32 %r1, buf; shr.u32 %r2, %t, 5; and.b32 %r3, %t, 31; shl.b32 %r3, %r3, 2; add.u32 %r3, %r3, %r1;\n\
        setp.eq.u32 %p1, %r2, 0; @%p1 bra PRODUCE; setp.eq.u32 %p2, %r2, 1; @%p2 bra CONSUME; ret;\n\
        PRODUCE: add.u32 %r4, %t, 40; st.shared.u32 [%r3], %r4; bar.arrive 1, 64; ret;\n\
        CONSUME: bar.sync 1, 64; ld.shared.u32 %r4, [%r3]; and.b32 %r5, %t, 31; mul.wide.u32 %rd1, %r5, 4; add.u64 %rd1, %out, %rd1; st.global.u32 [%rd1], %r4;";
    for seed in seeds() {
        let text = kernel(".shared .align 4 .b8 buf[128];", body);
        let r = run_with(&text, Options { seed, ..Options::default() }, cfg(1, 128, 0), &[0], 32);
        assert!(r.report.is_clean(), "{:?}", r.report.findings);
        assert_eq!(r.out, (40..72).collect::<Vec<_>>());
    }
}

#[test]
fn barrier_reductions_count_and_combine() {
    let body = "setp.lt.u32 %p1, %t, 10; bar.red.popc.u32 %r1, 0, %p1; bar.red.or.pred %p2, 0, %p1; bar.red.and.pred %p3, 0, !%p1;\n\
        selp.u32 %r2, 1000, 0, %p2; selp.u32 %r3, 10000, 0, %p3; add.u32 %r1, %r1, %r2; add.u32 %r1, %r1, %r3; st.global.u32 [%my], %r1;";
    let r = run(&kernel("", body), 96, 0, &[0], 96);
    assert!(r.report.is_clean(), "{:?}", r.report.findings);
    assert_eq!(r.out, [1010; 96]);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    // Order of arrival at a counter depends on the schedule only.
    let body = "atom.global.add.u32 %r1, [%in], 1; mov.u32 %r2, %ctaid.x; mad.lo.u32 %r3, %r2, 64, %t; mul.wide.u32 %rd1, %r3, 4; add.u64 %rd1, %out, %rd1; st.global.u32 [%rd1], %r1;";
    let go = |seed| {
        run_with(&kernel("", body), Options { seed, ..Options::default() }, cfg(8, 64, 0), &[0], 512).out
    };
    assert_eq!(go(5), go(5));
    assert_ne!(go(5), go(6));
}
