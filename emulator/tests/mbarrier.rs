//! mbarrier objects: phases, counts, copies that arrive, and the order they give; broken kernels are
//! reported, correct twins are not.

mod common;
use common::bench::{Bench, IntoArg, SEEDS};
use common::{kernel, run_with};
use ptx_emulator::{Class, Finding, LaunchConfig, Options};

const TEXT: &str = include_str!("cuda/mbarrier.ptx");

fn split(text: &str, seed: u64) -> (Vec<Finding>, Vec<i32>) {
    let mut b = Bench::new(text, seed);
    b.max_steps(200_000);
    let x: Vec<i32> = (0..128).collect();
    let (px, y) = (b.input(&x), b.empty(4 * 384));
    let r = b.launch("split", [2, 1, 1], [128, 1, 1], &[px, y]);
    (r.findings, b.output(y, 384))
}

fn ring(text: &str, seed: u64) -> (Vec<Finding>, Vec<i32>) {
    let mut b = Bench::new(text, seed);
    b.max_steps(200_000);
    let x: Vec<i32> = (0..7 * 128).map(|i| i * 3 % 101).collect();
    let (px, y) = (b.input(&x), b.empty(4 * 7 * 32));
    let r = b.launch("ring", [1, 1, 1], [64, 1, 1], &[px, y, 7u32.into_arg()]);
    (r.findings, b.output(y, 7 * 32))
}

#[test]
fn kernels_of_nvcc_with_mbarriers_are_clean_and_right() {
    for seed in SEEDS {
        let (found, y) = split(TEXT, seed);
        assert!(found.is_empty(), "{seed}: {found:#?}");
        let want: Vec<i32> = (0..384).map(|i| (127 - i % 128) * (i / 128 + 1) + i / 128 * 7).collect();
        assert_eq!(y, want);
        let (found, y) = ring(TEXT, seed);
        assert!(found.is_empty(), "{seed}: {found:#?}");
        let at = |i: i32| i * 3 % 101;
        let want: Vec<i32> =
            (0..7 * 32).map(|i| (0..4).map(|k| at((i / 32 * 32 + 31 - i % 32) * 4 + k)).sum()).collect();
        assert_eq!(y, want);
    }
}

fn classes(run: impl Fn(&str, u64) -> (Vec<Finding>, Vec<i32>), text: &str) -> Vec<Class> {
    let mut all: Vec<Class> = SEEDS.iter().flat_map(|&s| run(text, s).0).map(|f| f.class).collect();
    all.dedup();
    all
}

#[test]
fn waits_that_are_missing_or_for_the_wrong_phase_are_found() {
    // A wait taken for done.
    let never = |k: &str, n: usize| {
        let start = TEXT.find(&format!(".entry {k}(")).unwrap();
        let (at, _) = TEXT[start..].match_indices("mbarrier.test_wait").nth(n).unwrap();
        let end = start + at + TEXT[start + at..].find(';').unwrap() + 1;
        let text = &TEXT[start + at..end];
        let p = text.split_whitespace().nth(1).unwrap().trim_end_matches(',');
        format!("{}setp.eq.u32 {p}, 0, 0;{}", &TEXT[..start + at], &TEXT[end..])
    };
    // The last one keeps nothing apart.
    for n in 0..5 {
        assert!(classes(split, &never("split", n)).contains(&Class::Race), "wait {n}");
    }
    for n in 0..2 {
        assert!(classes(ring, &never("ring", n)).contains(&Class::Race), "wait {n}");
    }
    // The copies do not arrive, only the threads.
    let text = TEXT.replace(
        "cp.async.mbarrier.arrive.noinc.shared.b64 ",
        "{ .reg .b64 %st; mbarrier.arrive.shared.b64 %st, ",
    );
    let text: String = text
        .lines()
        .map(|l| if l.contains("%st, ") { l.replace("];", "]; }") + "\n" } else { format!("{l}\n") })
        .collect();
    assert!(classes(ring, &text).contains(&Class::Race));
}

const HEAD: &str = "mov.u32 %r1, dyn; setp.eq.u32 %p1, %t, 0; .reg .b64 %st; .reg .pred %done;\n";

fn small(body: &str, threads: u32) -> Vec<Finding> {
    let config = LaunchConfig { grid: [1, 1, 1], block: [threads, 1, 1], shared_bytes: 256 };
    let text = kernel(".extern .shared .align 16 .b8 dyn[];", &format!("{HEAD}{body}"));
    let options = Options { max_steps: 100_000, ..Options::default() };
    run_with(&text, options, config, &[1, 2, 3, 4], 128).report.findings
}

#[test]
fn misuse_of_the_objects_is_found() {
    let kinds = |body: &str| {
        let mut k: Vec<String> = Vec::new();
        for f in small(body, 64) {
            if !k.contains(&f.kind) {
                k.push(f.kind);
            }
        }
        k
    };
    let init = |n: u32| format!("@%p1 mbarrier.init.shared::cta.b64 [%r1], {n}; bar.sync 0;");
    let wait = "mbarrier.arrive.shared.b64 %st, [%r1]; W: mbarrier.try_wait.shared.b64 %done, [%r1], %st; @!%done bra W;";
    assert_eq!(kinds(&format!("{} {wait}", init(64))), [""; 0]);
    assert_eq!(kinds(wait), ["shared memory", "mbarrier not initialised"]);
    assert_eq!(kinds(&format!("{} {wait}", init(0)))[0], "mbarrier count");
    // One more than ever come.
    assert_eq!(kinds(&format!("{} {wait}", init(65))), ["step limit"]);
    // More at once than are missing.
    let three = "mbarrier.arrive.shared.b64 %st, [%r1], 3;";
    assert_eq!(kinds(&format!("{} {three}", init(64))), ["mbarrier overrun"]);
    let inval = "bar.sync 0; @%p1 mbarrier.inval.shared.b64 [%r1]; bar.sync 0;";
    assert_eq!(kinds(&format!("{} {inval} {wait}", init(64))), ["mbarrier not initialised"]);
    assert_eq!(kinds("@%p1 mbarrier.init.shared.b64 [%r1+4], 3;"), ["misaligned"]);
}

#[test]
fn counts_phases_and_dropped_threads_follow_the_manual() {
    // One thread: count 3, two arrivals, the count left, a third by a drop; the next phase needs two.
    let body = "mbarrier.init.shared.b64 [%r1], 3; mbarrier.arrive.shared.b64 %rd1, [%r1], 2; mbarrier.pending_count.b64 %r2, %rd1;\n\
        mbarrier.test_wait.shared.b64 %p2, [%r1], %rd1; selp.u32 %r3, 1, 0, %p2; mbarrier.arrive_drop.release.cta.shared::cta.b64 %rd2, [%r1]; mbarrier.pending_count.b64 %r4, %rd2;\n\
        mbarrier.test_wait.acquire.cta.shared::cta.b64 %p2, [%r1], %rd1; selp.u32 %r5, 1, 0, %p2; mbarrier.test_wait.parity.shared.b64 %p2, [%r1], 0; selp.u32 %r6, 1, 0, %p2;\n\
        mbarrier.test_wait.parity.shared.b64 %p2, [%r1], 1; selp.u32 %r7, 1, 0, %p2; mbarrier.arrive.noComplete.shared.b64 %rd3, [%r1], 1; mbarrier.pending_count.b64 %r8, %rd3;\n\
        mbarrier.arrive.shared.b64 _, [%r1]; mbarrier.try_wait.parity.shared.b64 %p2, [%r1], 1, 1000; selp.u32 %r9, 1, 0, %p2;\n\
        st.global.v4.u32 [%out], {%r2, %r3, %r4, %r5}; st.global.v4.u32 [%out+16], {%r6, %r7, %r8, %r9};";
    let config = LaunchConfig { grid: [1, 1, 1], block: [1, 1, 1], shared_bytes: 64 };
    let text = kernel(".extern .shared .align 16 .b8 dyn[];", &format!("{HEAD}{body}"));
    let r = run_with(&text, Options::default(), config, &[0], 8);
    assert!(r.report.is_clean(), "{:#?}", r.report.findings);
    assert_eq!(r.out, [3, 0, 1, 1, 1, 0, 2, 1]);
}

#[test]
fn a_copy_without_noinc_changes_no_count_and_an_ignored_source_gives_zeros() {
    let copy = |arrive: &str| {
        format!(
            "@%p1 mbarrier.init.shared.b64 [%r1], 32; bar.sync 0; shl.b32 %r2, %t, 2; add.u32 %r2, %r2, %r1; setp.lt.u32 %p2, %t, 3; and.b32 %r5, %t, 3; mul.wide.u32 %rd1, %r5, 4; add.u64 %rd1, %in, %rd1;\n\
             cp.async.ca.shared.global [%r2+64], [%rd1], 4, !%p2; {arrive} mbarrier.arrive.shared.b64 %st, [%r1]; W: mbarrier.test_wait.shared.b64 %done, [%r1], %st; @!%done bra W;\n\
             xor.b32 %r3, %t, 1; shl.b32 %r3, %r3, 2; add.u32 %r3, %r3, %r1; ld.shared.u32 %r4, [%r3+64]; st.global.u32 [%my], %r4;"
        )
    };
    let run = |body: &str| {
        let config = LaunchConfig { grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 256 };
        let text = kernel(".extern .shared .align 16 .b8 dyn[];", &format!("{HEAD}{body}"));
        run_with(&text, Options { max_steps: 100_000, ..Options::default() }, config, &[1, 2, 3, 4], 32)
    };
    let r = run(&copy("cp.async.mbarrier.arrive.shared.b64 [%r1];"));
    assert!(r.report.is_clean(), "{:#?}", r.report.findings);
    let want: Vec<u32> = (0..32).map(|t| if t ^ 1 < 3 { (t ^ 1) + 1 } else { 0 }).collect();
    assert_eq!(r.out, want);
    let r = run(&copy(""));
    assert!(r.report.findings.iter().any(|f| f.class == Class::Race), "{:#?}", r.report.findings);
}

#[test]
fn copies_are_behind_the_arrival_of_their_warp_and_not_behind_its_later_ones() {
    // The producer's warp arrives first and goes on; the phase is completed by the other warp.
    let body = "mov.u32 %r1, dyn; add.u32 %r2, %r1, 512; setp.eq.u32 %p1, %t, 0; mov.u32 %r3, 64;\n\
        @%p1 mbarrier.init.shared.b64 [%r2], %r3;\nbar.sync 0;\n\
        setp.ge.u32 %p2, %t, 32; @%p2 bra SECOND;\n\
        shl.b32 %r4, %t, 4; add.u32 %r4, %r1, %r4; mul.wide.u32 %rd1, %t, 16; add.u64 %rd1, %in, %rd1;\n\
        cp.async.cg.shared.global [%r4], [%rd1], 16;\ncp.async.mbarrier.arrive.shared.b64 [%r2];\n\
        mbarrier.arrive.shared.b64 %rd2, [%r2];\n\
        bar.warp.sync -1; bar.warp.sync -1; mov.u32 %r5, 0;\n\
        SPIN: add.u32 %r5, %r5, 1; setp.lt.u32 %p3, %r5, 50; @%p3 bra SPIN; bra WAIT;\n\
        SECOND: mov.u32 %r5, 0;\nSPIN2: add.u32 %r5, %r5, 1; setp.lt.u32 %p3, %r5, 40; @%p3 bra SPIN2;\n\
        mbarrier.arrive.shared.b64 %rd2, [%r2];\n\
        WAIT: mbarrier.test_wait.shared.b64 %p4, [%r2], %rd2; @!%p4 bra WAIT;\n\
        and.b32 %r6, %t, 31; mov.u32 %r7, 31; sub.u32 %r6, %r7, %r6; shl.b32 %r6, %r6, 4; add.u32 %r6, %r6, %r1;\n\
        ld.shared.u32 %r8, [%r6]; st.global.u32 [%my], %r8;";
    let text = kernel(".extern .shared .align 16 .b8 dyn[];", body);
    let input: Vec<u32> = (0..128).collect();
    for seed in 0..12 {
        let options = Options { seed, ..Options::default() };
        let config = LaunchConfig { grid: [1, 1, 1], block: [64, 1, 1], shared_bytes: 520 };
        let r = run_with(&text, options, config, &input, 64);
        assert!(r.report.is_clean(), "{:#?}", r.report.findings);
        assert!((0..64).all(|t| r.out[t] == 4 * (31 - t as u32 % 32)));
    }
    // Without the wait the reads are reported.
    let early = text.replace("@!%p4 bra WAIT;", "");
    let config = LaunchConfig { grid: [1, 1, 1], block: [64, 1, 1], shared_bytes: 520 };
    let r = run_with(&early, Options::default(), config, &input, 64).report;
    assert!(r.findings.iter().any(|f| f.class == Class::Race), "{:#?}", r.findings);
}
