//! Small whole kernels: results against plain Rust, under several schedules.

mod common;
use common::{HEADER, kernel, run, run_with};
use half::{bf16, f16};
use ptx_emulator::{Arg, Checks, Class, Device, LaunchConfig, Module, Options};

fn seeds() -> impl Iterator<Item = u64> {
    0..12
}

fn cfg(grid: u32, block: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid: [grid, 1, 1], block: [block, 1, 1], shared_bytes: shared }
}

#[test]
fn shuffles_follow_the_isa_in_all_modes_and_widths() {
    // c = ((32 - width) << 8) | clamp, clamp 31 for down, bfly and idx, 0 for up.
    for width in [32u32, 16, 8, 4] {
        let seg = (32 - width) << 8;
        for (mode, clamp) in [("up", 0), ("down", 31), ("bfly", 31), ("idx", 31)] {
            for b in [0u32, 1, 3, 7, 17] {
                let c = seg | clamp;
                let body = format!(
                    "add.u32 %r1, %t, 100; shfl.sync.{mode}.b32 %r2|%p1, %r1, {b}, {c}, -1;\n\
                     selp.u32 %r3, 1000, 0, %p1; add.u32 %r2, %r2, %r3; st.global.u32 [%my], %r2;"
                );
                let out = run(&kernel("", &body), 32, 0, &[0], 32);
                assert!(out.report.is_clean(), "{:?}", out.report.findings);
                for lane in 0..32i64 {
                    let (w, b) = (i64::from(width), i64::from(b));
                    let base = lane / w * w;
                    let j = match mode {
                        "up" => lane - b,
                        "down" => lane + b,
                        "bfly" => lane ^ b,
                        _ => base + b % w,
                    };
                    // bfly: only the upper end of the segment bounds it.
                    let inside = if mode == "bfly" { j < base + w } else { (base..base + w).contains(&j) };
                    let want = if inside { 1100 + j } else { 100 + lane };
                    assert_eq!(
                        i64::from(out.out[lane as usize]),
                        want,
                        "{mode} {b} width {width} lane {lane}"
                    );
                }
            }
        }
    }
}

#[test]
fn warp_votes_matches_and_reductions() {
    let body = "and.b32 %r1, %t, 3; setp.eq.u32 %p1, %r1, 0;\n\
        vote.sync.ballot.b32 %r2, %p1, -1; vote.sync.any.pred %p2, %p1, -1; vote.sync.all.pred %p3, %p1, -1;\n\
        vote.sync.uni.pred %p4, %p3, -1; match.any.sync.b32 %r3, %r1, -1; match.all.sync.b32 %r4|%p5, %r1, -1;\n\
        redux.sync.add.s32 %r5, %t, -1; sub.u32 %r9, 5, %t; redux.sync.min.s32 %r6, %r9, -1; redux.sync.max.u32 %r7, %r9, -1;\n\
        redux.sync.xor.b32 %r8, %t, -1; activemask.b32 %r10; elect.sync %r11|%p6, -1;\n\
        selp.u32 %r12, 1, 0, %p2; selp.u32 %r13, 2, 0, %p3; selp.u32 %r14, 4, 0, %p4; selp.u32 %r15, 8, 0, %p5; selp.u32 %r16, 16, 0, %p6;\n\
        or.b32 %r12, %r12, %r13; or.b32 %r14, %r14, %r15; or.b32 %r12, %r12, %r14; or.b32 %r12, %r12, %r16;\n\
        mul.wide.u32 %rd1, %t, 36; add.u64 %rd1, %out, %rd1;\n\
        st.global.u32 [%rd1], %r2; st.global.u32 [%rd1+4], %r3; st.global.u32 [%rd1+8], %r4; st.global.u32 [%rd1+12], %r5;\n\
        st.global.u32 [%rd1+16], %r6; st.global.u32 [%rd1+20], %r7; st.global.u32 [%rd1+24], %r8; st.global.u32 [%rd1+28], %r10; st.global.u32 [%rd1+32], %r12;";
    let r = run(&kernel("", body), 32, 0, &[0], 32 * 9);
    assert!(r.report.is_clean(), "{:?}", r.report.findings);
    for lane in 0..32u32 {
        let o = &r.out[lane as usize * 9..][..9];
        let elected = if lane == 0 { 16 } else { 0 };
        let want = [
            0x1111_1111,
            0x1111_1111 << (lane & 3),
            0,
            496,
            -26i32 as u32,
            u32::MAX,
            (0..32).fold(0, |a, b| a ^ b),
            u32::MAX,
            1 | 4 | elected,
        ];
        assert_eq!(o, want, "lane {lane}");
    }
}

#[test]
fn divergent_branches_join_again() {
    // Collatz steps: every lane leaves the loop at another time.
    let body = "add.u32 %r1, %t, 1; mov.u32 %r2, 0;\n\
        L: setp.eq.u32 %p1, %r1, 1; @%p1 bra D; and.b32 %r3, %r1, 1; setp.eq.u32 %p2, %r3, 0; @%p2 bra E;\n\
        mad.lo.u32 %r1, %r1, 3, 1; bra N; E: shr.u32 %r1, %r1, 1; N: add.u32 %r2, %r2, 1; bra L;\n\
        D: bar.warp.sync -1; shfl.sync.bfly.b32 %r4, %r2, 1, 31, -1; st.global.u32 [%my], %r4;";
    for seed in seeds() {
        let options = Options { seed, ..Options::default() };
        let r = run_with(&kernel("", body), options, cfg(1, 64, 0), &[0], 64);
        assert!(r.report.is_clean(), "{:?}", r.report.findings);
        let steps = |n: u32| {
            let (mut x, mut s) = (n, 0);
            while x != 1 {
                x = if x % 2 == 0 { x / 2 } else { 3 * x + 1 };
                s += 1;
            }
            s
        };
        for t in 0..64 {
            assert_eq!(r.out[t as usize], steps((t ^ 1) + 1));
        }
    }
}

#[test]
fn a_lane_may_spin_on_its_sibling() {
    // The spinning arm comes first in the text, so lowest-first alone would never leave it.
    let body = "st.global.u32 [%my], 0; bar.sync 0; setp.ne.u32 %p1, %t, 0; @%p1 bra OTHER;\n\
        SPIN: ld.volatile.global.u32 %r1, [%out+4]; setp.eq.u32 %p2, %r1, 0; @%p2 bra SPIN; bra END;\n\
        OTHER: st.volatile.global.u32 [%my], 7; END: bar.warp.sync -1; ld.global.u32 %r2, [%out+4]; st.global.u32 [%my], %r2;";
    let r = run(&kernel("", body), 32, 0, &[0], 32);
    assert!(r.report.is_clean(), "{:?}", r.report.findings);
    assert_eq!(r.out, [7; 32]);
}

#[test]
fn shared_memory_transposes_across_a_barrier() {
    let body = "mov.u32 %r1, buf; shl.b32 %r2, %t, 2; add.u32 %r2, %r1, %r2; add.u64 %rd1, %in, %i4;\n\
        ld.global.nc.L1::no_allocate.L2::128B.b32 %r3, [%rd1]; st.shared.u32 [%r2], %r3; bar.sync 0;\n\
        sub.u32 %r4, 127, %t; shl.b32 %r4, %r4, 2; add.u32 %r4, %r1, %r4; ld.shared.u32 %r5, [%r4]; st.global.u32 [%my], %r5;";
    let text = kernel(".shared .align 16 .b8 buf[512];", body);
    let input: Vec<u32> = (0..128).map(|i| i * 3).collect();
    for seed in seeds() {
        let r = run_with(&text, Options { seed, ..Options::default() }, cfg(1, 128, 0), &input, 128);
        assert!(r.report.is_clean(), "{:?}", r.report.findings);
        assert_eq!(r.out, input.iter().rev().copied().collect::<Vec<_>>());
        let c = r.report.counters;
        assert_eq!((c.global_bytes_read, c.global_sectors_read, c.bank_conflicts), (512, 16, 0));
        assert_eq!((c.global_bytes_written, c.global_sectors_written, c.shared_accesses), (512, 16, 8));
    }
}

#[test]
fn bank_conflicts_and_sectors_are_counted_as_defined() {
    // Stride 2 words: two-fold conflict; stride 32: 31 extra passes; one address: none.
    for (shift, want) in [(2u32, 0u64), (3, 1), (7, 31), (32, 0)] {
        let body = format!(
            "shl.b32 %r1, %t, {shift}; mov.u32 %r3, 0; st.shared.u32 [%r1], %r3; st.global.u32 [%my], %r3;"
        );
        let text = kernel(".extern .shared .align 16 .b8 dyn[];", &body);
        let r = run(&text, 32, 4096, &[0], 32);
        assert_eq!(r.report.counters.bank_conflicts, want, "shift {shift}");
    }
    // A load of every 64th byte touches a sector a lane.
    let body = "mul.wide.u32 %rd1, %t, 64; add.u64 %rd1, %in, %rd1; ld.global.u32 %r1, [%rd1]; st.global.u32 [%my], %r1;";
    let r = run(&kernel("", body), 32, 0, &vec![1; 16 * 32], 32);
    assert_eq!((r.report.counters.global_sectors_read, r.report.counters.global_bytes_read), (32, 128));
}

#[test]
fn asynchronous_copies_land_at_their_wait_and_fill_with_zero() {
    let body = "mov.u32 %r1, dyn; shl.b32 %r2, %t, 4; add.u32 %r1, %r1, %r2; mul.wide.u32 %rd1, %t, 16; add.u64 %rd1, %in, %rd1;\n\
        and.b32 %r3, %t, 1; mul.lo.u32 %r3, %r3, 16;\n\
        cp.async.cg.shared.global.L2::128B [%r1], [%rd1], 16, %r3; cp.async.commit_group;\n\
        cp.async.ca.shared.global [%r1+512], [%rd1], 8; cp.async.ca.shared.global [%r1+520], [%rd1+8], 8; cp.async.commit_group;\n\
        cp.async.wait_group 1; ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r1];\n\
        cp.async.wait_all; ld.shared.v2.b64 {%rd4, %rd5}, [%r1+512]; mov.b64 {%r8, %r9}, %rd4; mov.b64 {_, %r10}, %rd5;\n\
        mul.wide.u32 %rd2, %t, 16; add.u64 %rd2, %out, %rd2; st.global.v4.b32 [%rd2], {%r4, %r7, %r8, %r10};";
    let text = kernel(".extern .shared .align 16 .b8 dyn[];", body);
    let input: Vec<u32> = (0..128).map(|i| i + 1).collect();
    let r = run(&text, 32, 1024, &input, 128);
    assert!(r.report.is_clean(), "{:?}", r.report.findings);
    for t in 0..32u32 {
        let z = if t % 2 == 1 { 1 } else { 0 };
        let want = [z * (4 * t + 1), z * (4 * t + 4), 4 * t + 1, 4 * t + 4];
        assert_eq!(r.out[4 * t as usize..][..4], want, "lane {t}");
    }
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

/// A full fragment test of one mma shape: A and B from memory by the layouts of the manual.
fn mma_f32(
    shape: &str,
    ty: &str,
    k: usize,
    a_regs: usize,
    b_regs: usize,
    cast: fn(f32) -> u16,
    value: fn(u16) -> f32,
) {
    let list = |p: &str, n: usize| (0..n).map(|i| format!("%{p}{i}")).collect::<Vec<_>>().join(", ");
    let mut body = String::new();
    for i in 0..a_regs {
        body += &format!(
            "mul.lo.u32 %r30, %t, {a_regs}; add.u32 %r30, %r30, {i}; mul.wide.u32 %rd1, %r30, 4; add.u64 %rd1, %in, %rd1; ld.global.u32 %a{i}, [%rd1];\n"
        );
    }
    for i in 0..b_regs {
        body += &format!(
            "mul.lo.u32 %r30, %t, {b_regs}; add.u32 %r30, %r30, {}; mul.wide.u32 %rd1, %r30, 4; add.u64 %rd1, %in, %rd1; ld.global.u32 %b{i}, [%rd1];\n",
            32 * a_regs + i
        );
    }
    let regs = format!(".reg .b32 %a<4>; .reg .b32 %b<2>; .reg .f32 %c<4>;\n{body}");
    let body = format!(
        "{regs} mov.f32 %c0, 1.0; mov.f32 %c1, 2.0; mov.f32 %c2, 3.0; mov.f32 %c3, 4.0;\n\
         mma.sync.aligned.{shape}.row.col.f32.{ty}.{ty}.f32 {{{}}}, {{{}}}, {{{}}}, {{{}}};\n\
         mul.wide.u32 %rd2, %t, 16; add.u64 %rd2, %out, %rd2; st.global.v4.f32 [%rd2], {{{}}};",
        list("c", 4),
        list("a", a_regs),
        list("b", b_regs),
        list("c", 4),
        list("c", 4),
    );
    let a: Vec<Vec<u16>> =
        (0..16).map(|r| (0..k).map(|c| cast(((r * 7 + c * 3) % 11) as f32 * 0.25 - 1.0)).collect()).collect();
    let b: Vec<Vec<u16>> =
        (0..k).map(|r| (0..8).map(|c| cast(((r * 5 + c) % 9) as f32 * 0.5 - 2.0)).collect()).collect();
    let mut input = vec![0u32; 32 * (a_regs + b_regs)];
    for lane in 0..32 {
        let (group, tid) = (lane / 4, lane % 4);
        for i in 0..2 * a_regs {
            // ISA: row is group for a0,a1,a4,a5 and group + 8 else; columns from 8 on begin with a4.
            let row = if i % 4 < 2 { group } else { group + 8 };
            let col = tid * 2 + (i & 1) + if i >= 4 { 8 } else { 0 };
            input[lane * a_regs + i / 2] |= u32::from(a[row][col]) << (16 * (i & 1));
        }
        for i in 0..2 * b_regs {
            let row = tid * 2 + (i & 1) + if i >= 2 { 8 } else { 0 };
            input[32 * a_regs + lane * b_regs + i / 2] |= u32::from(b[row][group]) << (16 * (i & 1));
        }
    }
    let r = run(&kernel("", &body), 32, 0, &input, 128);
    assert!(r.report.is_clean(), "{:?}", r.report.findings);
    assert_eq!(r.report.counters.mma_operations, 2 * 16 * 8 * k as u64);
    for lane in 0..32 {
        for i in 0..4 {
            let (row, col) = (lane / 4 + if i < 2 { 0 } else { 8 }, (lane % 4) * 2 + (i & 1));
            let want: f32 = (0..k).map(|x| value(a[row][x]) * value(b[x][col])).sum::<f32>() + (i + 1) as f32;
            assert_eq!(f32::from_bits(r.out[lane * 4 + i]), want, "{shape} {ty} row {row} col {col}");
        }
    }
}

#[test]
fn mma_of_half_formats_is_a_matrix_product() {
    let (b, bv) = (|x: f32| bf16::from_f32(x).to_bits(), |x: u16| bf16::from_bits(x).to_f32());
    let (h, hv) = (|x: f32| f16::from_f32(x).to_bits(), |x: u16| f16::from_bits(x).to_f32());
    mma_f32("m16n8k16", "bf16", 16, 4, 2, b, bv);
    mma_f32("m16n8k16", "f16", 16, 4, 2, h, hv);
    mma_f32("m16n8k8", "bf16", 8, 2, 1, b, bv);
    mma_f32("m16n8k8", "f16", 8, 2, 1, h, hv);
}

#[test]
fn mma_of_bytes_is_a_matrix_product_with_either_sign() {
    for (k, a_regs, b_regs) in [(16usize, 2usize, 1usize), (32, 4, 2)] {
        for (ta, tb) in [("s8", "s8"), ("u8", "s8"), ("s8", "u8"), ("u8", "u8")] {
            let n = a_regs + b_regs;
            let mut body = ".reg .b32 %a<4>; .reg .b32 %b<2>;\n".to_string();
            for i in 0..n {
                let reg = if i < a_regs { format!("%a{i}") } else { format!("%b{}", i - a_regs) };
                body += &format!(
                    "mul.lo.u32 %r30, %t, {n}; add.u32 %r30, %r30, {i}; mul.wide.u32 %rd1, %r30, 4; add.u64 %rd1, %in, %rd1; ld.global.u32 {reg}, [%rd1];\n"
                );
            }
            let (al, bl) =
                if k == 16 { ("{%a0, %a1}", "{%b0}") } else { ("{%a0, %a1, %a2, %a3}", "{%b0, %b1}") };
            body += &format!(
                "mov.u32 %r0, 100; mma.sync.aligned.m16n8k{k}.row.col.s32.{ta}.{tb}.s32 {{%r1, %r2, %r3, %r4}}, {al}, {bl}, {{%r0, %r0, %r0, %r0}};\n\
                 mul.wide.u32 %rd2, %t, 16; add.u64 %rd2, %out, %rd2; st.global.v4.b32 [%rd2], {{%r1, %r2, %r3, %r4}};"
            );
            let a = |r: usize, c: usize| ((r * 37 + c * 91) % 256) as u8;
            let b = |r: usize, c: usize| ((r * 53 + c * 17 + 128) % 256) as u8;
            let mut input = vec![0u32; 32 * n];
            for lane in 0..32 {
                let (group, tid) = (lane / 4, lane % 4);
                for i in 0..4 * a_regs {
                    let low_row = if k == 16 { i < 4 } else { i < 4 || (8..12).contains(&i) };
                    let row = if low_row { group } else { group + 8 };
                    let col = tid * 4 + (i & 3) + if i >= 8 { 16 } else { 0 };
                    input[lane * n + i / 4] |= u32::from(a(row, col)) << (8 * (i & 3));
                }
                for i in 0..4 * b_regs {
                    let row = tid * 4 + (i & 3) + if i >= 4 { 16 } else { 0 };
                    input[lane * n + a_regs + i / 4] |= u32::from(b(row, group)) << (8 * (i & 3));
                }
            }
            let r = run(&kernel("", &body), 32, 0, &input, 128);
            let v = |x: u8, t: &str| if t == "s8" { i32::from(x as i8) } else { i32::from(x) };
            for lane in 0..32 {
                for i in 0..4 {
                    let (row, col) = (lane / 4 + if i < 2 { 0 } else { 8 }, (lane % 4) * 2 + (i & 1));
                    let want: i32 = (0..k).map(|x| v(a(row, x), ta) * v(b(x, col), tb)).sum::<i32>() + 100;
                    assert_eq!(r.out[lane * 4 + i] as i32, want, "k{k} {ta} {tb} row {row} col {col}");
                }
            }
        }
    }
}

#[test]
fn matrix_loads_distribute_rows_and_transpose() {
    for (trans, x) in [("", "x4"), (".trans", "x4"), ("", "x2"), (".trans", "x1")] {
        let n: usize = x[1..].parse().unwrap();
        let regs = (0..n).map(|i| format!("%r{}", 10 + i)).collect::<Vec<_>>().join(", ");
        let mut body = format!(
            "mov.u32 %r1, buf; shl.b32 %r2, %t, 4; add.u32 %r2, %r1, %r2; mul.wide.u32 %rd1, %t, 16; add.u64 %rd1, %in, %rd1;\n\
             ld.global.v4.b32 {{%r3, %r4, %r5, %r6}}, [%rd1]; st.shared.v4.b32 [%r2], {{%r3, %r4, %r5, %r6}}; bar.warp.sync -1;\n\
             ldmatrix.sync.aligned.m8n8.{x}{trans}.shared.b16 {{{regs}}}, [%r2];\n mul.wide.u32 %rd2, %t, 16; add.u64 %rd2, %out, %rd2;\n"
        );
        for i in 0..4 {
            let reg = if i < n { format!("%r{}", 10 + i) } else { "%t".to_string() };
            body += &format!("st.global.b32 [%rd2+{}], {reg};\n", 4 * i);
        }
        // Element e of the buffer of 16-bit values is e; matrix m has rows of 8 elements from 64 m on.
        let input: Vec<u32> = (0..128).map(|i| (2 * i) | (2 * i + 1) << 16).collect();
        let r = run(&kernel(".shared .align 16 .b8 buf[512];", &body), 32, 0, &input, 128);
        assert!(r.report.is_clean(), "{:?}", r.report.findings);
        for lane in 0..32u32 {
            for m in 0..n as u32 {
                let (row, col) = (lane / 4, 2 * (lane % 4));
                let at = |r: u32, c: u32| 64 * m + 8 * r + c;
                let want = if trans.is_empty() {
                    at(row, col) | at(row, col + 1) << 16
                } else {
                    at(col, row) | at(col + 1, row) << 16
                };
                assert_eq!(r.out[(4 * lane + m) as usize], want, "{x}{trans} lane {lane} matrix {m}");
            }
        }
    }
}

#[test]
fn movmatrix_transposes_a_fragment() {
    let body = "shl.b32 %r1, %t, 1; add.u32 %r2, %r1, 1; shl.b32 %r2, %r2, 16; or.b32 %r1, %r1, %r2;\n\
        movmatrix.sync.aligned.m8n8.trans.b16 %r3, %r1; st.global.u32 [%my], %r3;";
    let r = run(&kernel("", body), 32, 0, &[0], 32);
    for lane in 0..32u32 {
        let (row, col) = (lane / 4, 2 * (lane % 4));
        assert_eq!(r.out[lane as usize], (8 * col + row) | (8 * (col + 1) + row) << 16);
    }
}

#[test]
fn functions_take_arguments_return_values_and_have_locals() {
    let extra = ".func (.param .b32 ret) square(.param .b32 x, .param .align 8 .b8 pair[8]) {\n\
        .reg .b32 %r<4>; .local .align 4 .b8 stack[4]; ld.param.u32 %r1, [x]; ld.param.u32 %r2, [pair+4];\n\
        st.local.u32 [stack], %r2; mul.lo.u32 %r1, %r1, %r1; ld.local.u32 %r3, [stack]; add.u32 %r1, %r1, %r3;\n\
        st.param.b32 [ret], %r1; ret; }\n";
    let body = "{ .param .b32 p0; .param .align 8 .b8 p1[8]; .param .b32 back; st.param.b32 [p0], %t; mov.u32 %r1, 1000; st.param.b32 [p1+4], %r1; st.param.b32 [p1], %r1;\n\
        call.uni (back), square, (p0, p1); ld.param.b32 %r2, [back]; }\n setp.gt.u32 %p1, %t, 15; @%p1 bra SKIP;\n\
        { .param .b32 p0; .param .align 8 .b8 p1[8]; .param .b32 back; st.param.b32 [p0], %r2; st.param.b64 [p1], 0; call (back), square, (p0, p1); ld.param.b32 %r2, [back]; }\n\
        SKIP: st.global.u32 [%my], %r2;";
    let r = run(&kernel(extra, body), 32, 0, &[0], 32);
    assert!(r.report.is_clean(), "{:?}", r.report.findings);
    for t in 0..32u32 {
        let once = t * t + 1000;
        assert_eq!(r.out[t as usize], if t > 15 { once } else { once * once });
    }
}

#[test]
fn generic_addresses_reach_every_space() {
    let body = ".local .align 8 .b8 stack[16];\n mov.u32 %r1, buf; cvt.u64.u32 %rd1, %r1; cvta.shared.u64 %rd2, %rd1; add.u64 %rd2, %rd2, %i4;\n\
        mov.u64 %rd3, stack; cvta.local.u64 %rd4, %rd3; st.u32 [%rd4+4], %t; st.u32 [%rd2], %t; ld.u32 %r2, [%rd4+4]; ld.shared.u32 %r3, [buf];\n\
        ld.u32 %r4, [%rd2]; add.u32 %r5, %r2, %r4; ld.const.u32 %r6, [table+4]; mov.u64 %rd5, table; cvta.const.u64 %rd5, %rd5; ld.u32 %r7, [%rd5+8]; add.u32 %r5, %r5, %r6; add.u32 %r5, %r5, %r7;\n\
        isspacep.shared %p1, %rd2; isspacep.global %p2, %out; isspacep.local %p3, %rd4; selp.u32 %r8, 1000, 0, %p1; selp.u32 %r9, 2000, 0, %p2; selp.u32 %r10, 4000, 0, %p3;\n\
        add.u32 %r5, %r5, %r8; add.u32 %r5, %r5, %r9; add.u32 %r5, %r5, %r10; st.u32 [%my], %r5;";
    let text = kernel(".shared .align 4 .b8 buf[128]; .const .align 4 .u32 table[3] = {1, 20, 300};", body);
    let r = run(&text, 32, 0, &[0], 32);
    assert!(r.report.of(Class::Mem).next().is_none(), "{:?}", r.report.findings);
    for t in 0..32u32 {
        assert_eq!(r.out[t as usize], 2 * t + 320 + 7000);
    }
}

#[test]
fn branch_tables_send_each_lane_to_its_case() {
    let body = "and.b32 %r1, %t, 3; ts: .branchtargets A, B, C, D; brx.idx %r1, ts;\n\
        A: mov.u32 %r2, 10; bra E; B: mov.u32 %r2, 20; bra E; C: mov.u32 %r2, 30; bra E; D: mov.u32 %r2, 40; E: st.global.u32 [%my], %r2;";
    let r = run(&kernel("", body), 32, 0, &[0], 32);
    assert!(r.report.is_clean(), "{:?}", r.report.findings);
    assert_eq!(r.out, (0..32).map(|t| 10 * (t % 4 + 1)).collect::<Vec<_>>());
}

#[test]
fn special_registers_describe_the_launch() {
    let text = format!(
        "{HEADER}.visible .entry k(.param .u64 out) {{ .reg .b32 %r<20>; .reg .b64 %rd<5>; .reg .pred %p<2>; ld.param.u64 %rd1, [out];\n\
         mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.z; mov.u32 %r4, %ntid.x; mov.u32 %r5, %ntid.y; mad.lo.u32 %r6, %r3, %r5, %r2; mad.lo.u32 %r6, %r6, %r4, %r1;\n\
         mov.u32 %r7, %laneid; mov.u32 %r8, %warpid; mad.lo.u32 %r9, %r8, 32, %r7; sub.u32 %r6, %r6, %r9; mov.u32 %r10, %ctaid.y; mov.u32 %r11, %nctaid.y;\n\
         mov.u32 %r12, %lanemask_lt; popc.b32 %r12, %r12; sub.u32 %r12, %r12, %r7; or.b32 %r6, %r6, %r12; mov.u32 %r13, %dynamic_smem_size;\n\
         or.b32 %r6, %r6, %r10; mov.u64 %rd2, %clock64; setp.eq.u64 %p1, %rd2, 0; @%p1 trap; setp.eq.u32 %p1, %r13, 48; @!%p1 trap; setp.eq.u32 %p1, %r11, 2; @!%p1 trap;\n\
         red.global.add.u32 [%rd1], %r6; ret; }}"
    );
    let module = Module::parse(&text).unwrap();
    let mut device = Device::new(Options::default());
    let out = device.alloc_init(&[0; 4], "out").unwrap();
    let config = LaunchConfig { grid: [1, 2, 3], block: [5, 4, 3], shared_bytes: 48 };
    let report = device.launch(&module, "k", config, &[Arg::Ptr(out)]).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    let mut b = [0; 4];
    device.copy_from(out, &mut b).unwrap();
    // 60 threads in each of the three CTAs with y = 1 add 1; everything else is zero.
    assert_eq!(u32::from_le_bytes(b), 180);
}

#[test]
fn module_variables_keep_their_values_between_launches() {
    let text = kernel(
        ".visible .global .align 4 .u32 total = 5;",
        "mov.u64 %rd1, total; atom.global.add.u32 %r1, [%rd1], 1; st.global.u32 [%my], %r1;",
    );
    let module = Module::parse(&text).unwrap();
    let mut device = Device::new(Options { checks: Checks::none(), ..Options::default() });
    let (a, b) = (device.alloc(4, "in").unwrap(), device.alloc(128, "out").unwrap());
    for _ in 0..2 {
        device.launch(&module, "k", cfg(1, 32, 0), &[Arg::Ptr(a), Arg::Ptr(b)]).unwrap();
    }
    let at = device.symbol(&module, "total").unwrap();
    let mut v = [0; 4];
    device.copy_from(at, &mut v).unwrap();
    assert_eq!(u32::from_le_bytes(v), 69);
}

#[test]
fn device_prints_arrive_in_the_report() {
    let extra = ".extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);\n.global .align 1 .b8 text[11] = {120, 61, 37, 100, 32, 37, 102, 33, 10, 0, 0};";
    let body = ".local .align 8 .b8 list[16];\n setp.ne.u32 %p1, %t, 3; @%p1 bra END; st.local.u32 [list], -7; st.local.f64 [list+8], 0d3FF8000000000000;\n\
        mov.u64 %rd1, list; cvta.local.u64 %rd1, %rd1; mov.u64 %rd2, text;\n\
        { .param .b64 p0; st.param.b64 [p0], %rd2; .param .b64 p1; st.param.b64 [p1], %rd1; .param .b32 back; call.uni (back), vprintf, (p0, p1); }\n END:";
    let r = run(&kernel(extra, body), 32, 0, &[0], 32);
    assert_eq!(r.report.output, "x=-7 1.500000!\n");
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

#[test]
fn narrow_loads_extend_by_their_sign_and_narrow_stores_cut() {
    let body = "ld.global.s8 %r1, [%in]; ld.global.u8 %r2, [%in+1]; ld.global.s16 %rd1, [%in+2]; ld.global.s8 %h1, [%in];\n\
        mov.b64 {%r3, %r4}, %rd1; cvt.u32.u16 %r5, %h1; ld.global.u16 %r6, [%in+2]; ld.global.v2.u8 {%r7, %r8}, [%in];\n\
        mov.u32 %r9, 0x12345678; st.global.u8 [%in+4], %r9; st.global.u16 [%in+6], %r9; ld.global.u32 %r10, [%in+4];\n\
        st.global.v4.b32 [%out], {%r1, %r2, %r3, %r4}; st.global.v4.b32 [%out+16], {%r5, %r6, %r7, %r10};";
    let r = run(&kernel("", body), 1, 0, &[0x8001_fe80, 0], 8);
    assert!(r.report.is_clean(), "{:?}", r.report.findings);
    let want = [0xffff_ff80, 0xfe, 0xffff_8001, u32::MAX, 0xff80, 0x8001, 0x80, 0x5678_0078];
    assert_eq!(r.out, want);
}

/// Loads `n` words a lane into %a0.., runs `op`, stores %d0..%d{m}.
fn fragments(op: &str, n: usize, m: usize, input: &[u32]) -> Vec<u32> {
    let mut body = ".reg .b32 %a<16>; .reg .b32 %d<4>;\n".to_string();
    for i in 0..n {
        body += &format!(
            "mad.lo.u32 %r1, %t, {n}, {i}; mul.wide.u32 %rd1, %r1, 4; add.u64 %rd1, %in, %rd1; ld.global.u32 %a{i}, [%rd1];\n"
        );
    }
    body += op;
    for i in 0..m {
        body += &format!(
            "mad.lo.u32 %r1, %t, {m}, {i}; mul.wide.u32 %rd1, %r1, 4; add.u64 %rd1, %out, %rd1; st.global.u32 [%rd1], %d{i};\n"
        );
    }
    let r = run(&kernel(".shared .align 16 .b8 tile[512];", &body), 32, 0, input, 32 * m);
    assert!(r.report.is_clean(), "{:?}", r.report.findings);
    r.out
}

#[test]
fn mma_of_tf32_uses_its_own_fragments() {
    for k in [4usize, 8] {
        let (na, nb) = (k / 2, k / 4);
        let n = na + nb;
        let a = |r: usize, c: usize| ((r * 3 + c * 5) % 7) as f32 - 2.5;
        let b = |r: usize, c: usize| ((r * 2 + c) % 5) as f32 * 0.5 - 1.0;
        let mut input = vec![0u32; 32 * n];
        for lane in 0..32 {
            let (group, tid) = (lane / 4, lane % 4);
            for i in 0..na {
                input[lane * n + i] = a(group + 8 * (i & 1), tid + if i >= 2 { 4 } else { 0 }).to_bits();
            }
            for i in 0..nb {
                // Bits below tf32's ten are ignored.
                input[lane * n + na + i] = b(tid + 4 * i, group).to_bits() | 0x1f;
            }
        }
        let (al, bl) = if k == 4 { ("{%a0, %a1}", "{%a2}") } else { ("{%a0, %a1, %a2, %a3}", "{%a4, %a5}") };
        let op = format!(
            "mov.b32 %r2, 0f3F800000; mma.sync.aligned.m16n8k{k}.row.col.f32.tf32.tf32.f32 {{%d0, %d1, %d2, %d3}}, {al}, {bl}, {{%r2, %r2, %r2, %r2}};\n"
        );
        let out = fragments(&op, n, 4, &input);
        for lane in 0..32 {
            for i in 0..4 {
                let (row, col) = (lane / 4 + 8 * (i / 2), (lane % 4) * 2 + (i & 1));
                let want = 1.0 + (0..k).map(|x| a(row, x) * b(x, col)).sum::<f32>();
                assert_eq!(f32::from_bits(out[lane * 4 + i]), want, "k{k} row {row} col {col}");
            }
        }
    }
}

#[test]
fn mma_with_a_half_accumulator_packs_its_result() {
    let h = |x: f32| u32::from(f16::from_f32(x).to_bits());
    let a = |r: usize, c: usize| ((r + 2 * c) % 5) as f32 - 2.0;
    let b = |r: usize, c: usize| ((3 * r + c) % 4) as f32 - 1.5;
    let mut input = vec![0u32; 32 * 6];
    for lane in 0..32 {
        let (group, tid) = (lane / 4, lane % 4);
        for i in 0..8 {
            let (row, col) =
                (group + if i % 4 < 2 { 0 } else { 8 }, tid * 2 + (i & 1) + if i >= 4 { 8 } else { 0 });
            input[lane * 6 + i / 2] |= h(a(row, col)) << (16 * (i & 1));
        }
        for i in 0..4 {
            input[lane * 6 + 4 + i / 2] |=
                h(b(tid * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, group)) << (16 * (i & 1));
        }
    }
    let op = "mov.b32 %r2, 0x3c00bc00; mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%d0, %d1}, {%a0, %a1, %a2, %a3}, {%a4, %a5}, {%r2, %r2};\n";
    let out = fragments(op, 6, 2, &input);
    for lane in 0..32 {
        for i in 0..4 {
            let (row, col) = (lane / 4 + 8 * (i / 2), (lane % 4) * 2 + (i & 1));
            let c = if i & 1 == 0 { -1.0 } else { 1.0 };
            let want = c + (0..16).map(|x| a(row, x) * b(x, col)).sum::<f32>();
            let got = f16::from_bits((out[lane * 2 + i / 2] >> (16 * (i & 1))) as u16).to_f32();
            assert_eq!(got, want, "row {row} col {col}");
        }
    }
}

#[test]
fn mma_of_doubles_and_a_matrix_store() {
    let a = |r: usize, c: usize| (r * 4 + c) as f64 + 0.125;
    let b = |r: usize, c: usize| (r as f64) - (c as f64) * 0.5;
    let mut input = vec![0u32; 32 * 4];
    for lane in 0..32 {
        for (i, v) in [a(lane / 4, lane % 4), b(lane % 4, lane / 4)].into_iter().enumerate() {
            input[lane * 4 + 2 * i] = v.to_bits() as u32;
            input[lane * 4 + 2 * i + 1] = (v.to_bits() >> 32) as u32;
        }
    }
    let op = "mov.b64 %rd2, {%a0, %a1}; mov.b64 %rd3, {%a2, %a3}; mov.b64 %rd4, 0d3FF0000000000000;\n\
        mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%rd5, %rd6}, {%rd2}, {%rd3}, {%rd4, %rd4}; mov.b64 {%d0, %d1}, %rd5; mov.b64 {%d2, %d3}, %rd6;\n";
    let out = fragments(op, 4, 4, &input);
    for lane in 0..32 {
        for i in 0..2 {
            let (row, col) = (lane / 4, (lane % 4) * 2 + i);
            let want = 1.0 + (0..4).map(|x| a(row, x) * b(x, col)).sum::<f64>();
            let got = u64::from(out[lane * 4 + 2 * i]) | u64::from(out[lane * 4 + 2 * i + 1]) << 32;
            assert_eq!(f64::from_bits(got), want, "row {row} col {col}");
        }
    }
    // A transposing store and a transposing load cancel; one of them transposes.
    let frag: Vec<u32> = (0..64).map(|i| i * 0x0003_0001 + 0x0001_0000).collect();
    let go = |store: &str, load: &str| {
        let op = format!(
            "mov.u32 %r3, tile; and.b32 %r4, %t, 15; shl.b32 %r4, %r4, 4; add.u32 %r3, %r3, %r4;\n\
             stmatrix.sync.aligned.m8n8.x2{store}.shared.b16 [%r3], {{%a0, %a1}}; bar.warp.sync -1;\n\
             ldmatrix.sync.aligned.m8n8.x2{load}.shared.b16 {{%d0, %d1}}, [%r3];\n"
        );
        fragments(&op, 2, 2, &frag)
    };
    assert_eq!(go("", ""), frag);
    assert_eq!(go(".trans", ".trans"), frag);
    assert_eq!(go(".trans", ""), go("", ".trans"));
    assert_ne!(go(".trans", ""), frag);
}
