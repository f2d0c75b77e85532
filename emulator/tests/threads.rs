//! The number of host threads changes neither memory nor report, whatever the kernel does.

mod common;
use common::{HEADER, Ran, run_on, said};
use ptx_emulator::{Checks, Class, LaunchConfig, Options};

/// Warps enough that a launch is spread: 96 CTAs of two warps, a loop of 12 rounds.
const GRID: u32 = 96;
const THREADS: [usize; 3] = [2, 3, 8];
const SEEDS: [u64; 3] = [0, 1, 5];

/// Every CTA sums words of the input in shared memory, then does `end` with the sum in `%r9`; `%t` is
/// the thread, `%c` the CTA, `%g` both; `%at` is the thread's word of the output.
fn text(end: &str) -> String {
    format!(
        "{HEADER}.visible .entry k(.param .u64 in, .param .u64 out) {{\n\
         .reg .b64 %rd<20>; .reg .b32 %r<30>; .reg .b16 %h<9>; .reg .pred %p<9>; .reg .b64 %in; .reg .b64 %out;\n\
         .reg .b32 %t; .reg .b32 %c; .reg .b32 %g; .reg .b64 %at; .shared .align 4 .b8 buf[256];\n\
         ld.param.u64 %in, [in]; ld.param.u64 %out, [out]; mov.u32 %t, %tid.x; mov.u32 %c, %ctaid.x;\n\
         mad.lo.u32 %g, %c, 64, %t; mul.wide.u32 %rd1, %g, 4; add.u64 %at, %out, %rd1;\n\
         mul.wide.u32 %rd2, %t, 4; add.u64 %rd3, %in, %rd2; cvt.u32.u64 %r8, %rd2; mov.u32 %r7, buf; add.u32 %r8, %r8, %r7;\n\
         mov.u32 %r9, 0; mov.u32 %r1, 0;\n\
         L: ld.global.u32 %r2, [%rd3]; mad.lo.u32 %r9, %r9, 3, %r2; add.u32 %r9, %r9, %g; st.shared.u32 [%r8], %r9;\n\
         bar.sync 0; xor.b32 %r4, %t, 33; shl.b32 %r4, %r4, 2; add.u32 %r4, %r4, %r7; ld.shared.u32 %r5, [%r4]; add.u32 %r9, %r9, %r5;\n\
         bar.sync 0; add.u32 %r1, %r1, 1; setp.lt.u32 %p1, %r1, 12; @%p1 bra L;\n\
         {end}\nret;\n}}\n"
    )
}

fn go(text: &str, options: Options) -> Ran {
    let config = LaunchConfig { grid: [GRID, 1, 1], block: [64, 1, 1], shared_bytes: 0 };
    let input: Vec<u32> = (0..64).map(|i| i * i + 1).collect();
    run_on(text, options, config, &input, 64 * GRID as usize)
}

/// Runs the kernel on all numbers of threads, under several seeds, and gives the reports by seed.
#[track_caller]
fn same(end: &str, options: &Options) -> Vec<Ran> {
    let text = text(end);
    SEEDS
        .iter()
        .map(|&seed| {
            let serial = go(&text, Options { seed, threads: 1, ..options.clone() });
            for threads in THREADS {
                let spread = go(&text, Options { seed, threads, ..options.clone() });
                assert_eq!(
                    said(&serial.report),
                    said(&spread.report),
                    "{threads} threads, seed {seed}: {end}"
                );
                assert!(serial.out == spread.out, "memory, {threads} threads, seed {seed}: {end}");
            }
            serial
        })
        .collect()
}

#[track_caller]
fn same_checked_and_unchecked(end: &str) -> Vec<Ran> {
    same(end, &Options { checks: Checks::none(), profile: true, buffers: true, ..Options::default() });
    same(end, &Options::default())
}

const STORE: &str = "st.global.u32 [%at], %r9;";

#[test]
fn independent_ctas_give_the_same_on_any_number_of_threads() {
    for r in same_checked_and_unchecked(STORE) {
        assert!(r.report.is_clean(), "{:?}", r.report.findings);
    }
    // One word a CTA: eight CTAs share a sector.
    let one = "setp.ne.u32 %p2, %t, 0; @%p2 ret; mul.wide.u32 %rd4, %c, 4; add.u64 %rd4, %out, %rd4; st.global.u32 [%rd4], %r9; ld.global.u32 %r3, [%rd4]; add.u32 %r3, %r3, 1; st.global.u32 [%rd4], %r3;";
    for r in same_checked_and_unchecked(one) {
        assert!(r.report.is_clean(), "{:?}", r.report.findings);
    }
    // A byte a CTA: four CTAs share a word, so it is run serially.
    let byte = "setp.ne.u32 %p2, %t, 0; @%p2 ret; cvt.u64.u32 %rd4, %c; add.u64 %rd4, %out, %rd4; st.global.u8 [%rd4], %r9;";
    for r in same_checked_and_unchecked(byte) {
        assert!(r.report.is_clean(), "{:?}", r.report.findings);
    }
}

#[test]
fn ctas_that_meet_in_memory_give_the_same_on_any_number_of_threads() {
    // All add to one word, by an atomic and without.
    let atomic = "atom.global.add.u32 %r3, [%out], %r9; add.u32 %r3, %r3, 1; st.global.u32 [%at+4], %r3;";
    let last = "setp.lt.u32 %p2, %g, 6143; @%p2 atom.global.add.u32 %r3, [%out], 1; @%p2 st.global.u32 [%at+4], %r3;";
    assert_eq!(GRID * 64 - 1, 6143);
    same(last, &Options { checks: Checks::none(), ..Options::default() });
    same(atomic, &Options { checks: Checks { mem: true, ..Checks::none() }, ..Options::default() });
    for end in [
        "st.global.u32 [%out], %c;",
        "st.global.u32 [%out], %c; ld.global.u32 %r3, [%out]; st.global.u32 [%at], %r3;",
        "mul.wide.u32 %rd4, %t, 4; add.u64 %rd4, %out, %rd4; st.global.u32 [%rd4], %r9;",
        "xor.b32 %r3, %g, 64; mul.wide.u32 %rd4, %r3, 4; add.u64 %rd4, %out, %rd4; st.global.u32 [%at], %r9; ld.global.u32 %r4, [%rd4]; add.u32 %r4, %r4, 1; st.global.u32 [%at], %r4;",
        "st.global.u32 [%in], %c;",
    ] {
        for r in same_checked_and_unchecked(end) {
            assert!(r.report.of(Class::Race).count() > 0, "{end}: {:?}", r.report.findings);
        }
    }
}

#[test]
fn faults_are_reported_the_same_on_any_number_of_threads() {
    let beyond = "mul.wide.u32 %rd4, %c, 512; add.u64 %rd4, %in, %rd4; ld.global.u32 %r3, [%rd4]; st.global.u32 [%at], %r3;";
    let unwritten = "ld.global.u32 %r3, [%at]; add.u32 %r3, %r3, %r20; st.global.u32 [%at], %r3;";
    // Lanes of one warp, each CTA for itself, in words of its own.
    let within = "and.b32 %r3, %t, 62; mad.lo.u32 %r3, %c, 64, %r3; mul.wide.u32 %rd4, %r3, 4; add.u64 %rd4, %out, %rd4; st.global.u32 [%rd4], %t;";
    let odd = "add.u64 %rd4, %at, 2; @%p1 bra M; M: setp.eq.u32 %p2, %c, 70; @%p2 st.global.u32 [%rd4], %t;";
    for (end, class) in
        [(beyond, Class::Mem), (unwritten, Class::Init), (within, Class::Race), (odd, Class::Mem)]
    {
        for r in same(end, &Options::default()) {
            let n = r.report.of(class).count();
            assert!(n > 0, "{end}: {:?}", r.report.findings);
        }
    }
}

#[test]
fn a_cta_that_stops_the_launch_leaves_the_same_on_any_number_of_threads() {
    let trap = format!("{STORE} setp.eq.u32 %p2, %c, 50; @%p2 trap;");
    let deadlock = format!("{STORE} setp.eq.u32 %p2, %g, 3300; @%p2 bar.sync 1, 64;");
    for (end, class) in [(&trap, Class::Trap), (&deadlock, Class::Sync)] {
        for r in same(end, &Options::default()) {
            assert!(r.report.of(class).count() > 0, "{end}: {:?}", r.report.findings);
        }
    }
    let endless = format!("{STORE} setp.eq.u32 %p2, %c, 50; W: @%p2 bra W;");
    let all = 2 * 96 * 2 * 12 * 20;
    for r in same(&endless, &Options { max_steps: all, ..Options::default() }) {
        assert!(r.report.of(Class::Steps).count() > 0, "{:?}", r.report.findings);
    }
}
