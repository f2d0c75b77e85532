//! Lanes of a warp: shuffles, votes, divergence and joins, special registers.

mod common;
use common::{HEADER, kernel, run, run_with};
use ptx_emulator::{Arg, Device, LaunchConfig, Module, Options};

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
fn device_prints_arrive_in_the_report() {
    let extra = ".extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);\n.global .align 1 .b8 text[11] = {120, 61, 37, 100, 32, 37, 102, 33, 10, 0, 0};";
    let body = ".local .align 8 .b8 list[16];\n setp.ne.u32 %p1, %t, 3; @%p1 bra END; st.local.u32 [list], -7; st.local.f64 [list+8], 0d3FF8000000000000;\n\
        mov.u64 %rd1, list; cvta.local.u64 %rd1, %rd1; mov.u64 %rd2, text;\n\
        { .param .b64 p0; st.param.b64 [p0], %rd2; .param .b64 p1; st.param.b64 [p1], %rd1; .param .b32 back; call.uni (back), vprintf, (p0, p1); }\n END:";
    let r = run(&kernel(extra, body), 32, 0, &[0], 32);
    assert_eq!(r.report.output, "x=-7 1.500000!\n");
}

#[test]
fn tiles_of_a_warp_name_their_own_sets_at_one_instruction() {
    // Four tiles of 8 lanes; those of odd tiles come later, and by halves.
    let body = "and.b32 %r1, %t, 24; mov.u32 %r2, 255; shl.b32 %r2, %r2, %r1; mov.u32 %r5, 0;\n\
        and.b32 %r3, %t, 8; setp.ne.u32 %p1, %r3, 0; and.b32 %r4, %t, 4; setp.ne.u32 %p2, %r4, 0;\n\
        and.pred %p3, %p1, %p2;\n@%p3 bra LATE;\nS: shfl.sync.bfly.b32 %r6, %t, 7, 6175, %r2;\n\
        redux.sync.add.s32 %r7, %t, %r2; bar.warp.sync %r2; bra E;\n\
        LATE: add.u32 %r5, %r5, 1; setp.lt.u32 %p4, %r5, 10; @%p4 bra LATE; bra S;\n\
        E: mad.lo.u32 %r6, %r6, 1000, %r7; st.global.u32 [%my], %r6;";
    for seed in seeds() {
        let options = Options { seed, ..Options::default() };
        let r = run_with(&kernel("", body), options, cfg(1, 32, 0), &[0], 32);
        assert!(r.report.is_clean(), "{:#?}", r.report.findings);
        for t in 0..32u32 {
            let tile = t / 8 * 8;
            assert_eq!(r.out[t as usize], (t ^ 7) * 1000 + (tile..tile + 8).sum::<u32>());
        }
    }
}

#[test]
fn a_set_that_names_a_lane_with_another_set_is_found() {
    // Lane 8 names the first tile, which does not name it; nobody of its own tile can wait for it.
    let body = "and.b32 %r1, %t, 24; setp.eq.u32 %p1, %t, 8; selp.u32 %r1, 0, %r1, %p1;\n\
        mov.u32 %r2, 255; shl.b32 %r2, %r2, %r1;\nredux.sync.add.s32 %r3, %t, %r2;";
    let r = run(&kernel("", body), 32, 0, &[0], 1).report;
    let kinds: Vec<(&str, u32)> = r.findings.iter().map(|f| (f.kind.as_str(), f.lanes)).collect();
    assert_eq!(kinds, [("outside its mask", 1 << 8), ("mask mismatch", 1 << 8)]);
}
