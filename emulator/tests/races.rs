//! Races in shared memory: every broken kernel is reported at its line, no correct twin is, under
//! several schedules.

mod common;
use common::{kernel, run_with};
use ptx_emulator::{Class, LaunchConfig, Options};

const DYN: &str = ".extern .shared .align 16 .b8 dyn[];";
/// %r1: start, %r2: own word, %r3: word of the lane one further (within 128 threads).
const HEAD: &str = "mov.u32 %r1, dyn; shl.b32 %r2, %t, 2; add.u32 %r2, %r1, %r2; add.u32 %r3, %t, 1; and.b32 %r3, %r3, 127; shl.b32 %r3, %r3, 2; add.u32 %r3, %r1, %r3;\n";

fn findings(body: &str, threads: u32, seed: u64) -> Vec<ptx_emulator::Finding> {
    let config = LaunchConfig { grid: [1, 1, 1], block: [threads, 1, 1], shared_bytes: 4096 };
    let text = kernel(DYN, &format!("{HEAD}{body}"));
    let r = run_with(&text, Options { seed, ..Options::default() }, config, &vec![3; 1024], 128);
    r.report.findings
}

#[track_caller]
fn racy(body: &str, threads: u32, kinds: &[&str]) {
    let text = kernel(DYN, &format!("{HEAD}{body}"));
    let line = text.lines().position(|l| l.contains("//!")).unwrap() as u32 + 1;
    for seed in 0..8 {
        let found = findings(body, threads, seed);
        let hit = found
            .iter()
            .any(|f| f.class == Class::Race && f.line == line && kinds.contains(&f.kind.as_str()));
        // Which side comes second depends on the schedule: one of the two must be reported.
        let other = found.iter().any(|f| f.class == Class::Race);
        assert!(if seed == 0 { hit } else { other }, "seed {seed}: {found:#?}");
    }
}

#[track_caller]
fn ordered(body: &str, threads: u32) {
    for seed in 0..8 {
        let found = findings(body, threads, seed);
        assert!(found.is_empty(), "seed {seed}: {found:#?}");
    }
}

#[test]
fn a_missing_barrier_between_warps_is_found() {
    racy(
        "st.shared.u32 [%r2], %t;\nbar.warp.sync -1; ld.shared.u32 %r4, [%r3]; //!\n",
        128,
        &["read after write"],
    );
    ordered("st.shared.u32 [%r2], %t; bar.sync 0; ld.shared.u32 %r4, [%r3];", 128);
    racy(
        "st.shared.u32 [%r2], %t; bar.sync 0; ld.shared.u32 %r4, [%r3];\nst.shared.u32 [%r2], %r4; //!\n",
        128,
        &["write after read"],
    );
    ordered(
        "st.shared.u32 [%r2], %t; bar.sync 0; ld.shared.u32 %r4, [%r3]; bar.sync 0; st.shared.u32 [%r2], %r4;",
        128,
    );
    // Everybody reads one word, then one thread changes it.
    let all = "setp.eq.u32 %p1, %t, 0; @%p1 st.shared.u32 [%r1], %t; bar.sync 0; ld.shared.u32 %r4, [%r1];";
    racy(
        &format!("{all} mov.u32 %r5, 9; setp.eq.u32 %p2, %t, 127;\n@%p2 st.shared.u32 [%r1], %r5; //!\n"),
        128,
        &["write after read"],
    );
    ordered(
        &format!(
            "{all} mov.u32 %r5, 9; bar.sync 0; setp.eq.u32 %p2, %t, 127; @%p2 st.shared.u32 [%r1], %r5;"
        ),
        128,
    );
}

#[test]
fn readers_of_several_warps_are_forgotten_at_a_barrier_even_if_one_reads_again() {
    let all = "mov.u32 %r4, 5; st.shared.u32 [%r1], %r4; bar.sync 0; ld.shared.u32 %r4, [%r1]; bar.sync 0;";
    let change = "add.u32 %r4, %r4, 1; setp.eq.u32 %p2, %t, 64;";
    // The thread that changes the word reads it again first.
    ordered(&format!("{all} {change} @%p2 ld.shared.u32 %r4, [%r1]; @%p2 st.shared.u32 [%r1], %r4;"), 128);
    // So do the others, after the barrier.
    racy(
        &format!("{all} {change} ld.shared.u32 %r5, [%r1];\n@%p2 st.shared.u32 [%r1], %r4; //!\n"),
        128,
        &["write after read"],
    );
}

#[test]
fn a_missing_syncwarp_between_lanes_is_found() {
    let back = "xor.b32 %r5, %t, 1; shl.b32 %r5, %r5, 2; add.u32 %r5, %r1, %r5;";
    racy(
        &format!("{back} st.shared.u32 [%r2], %t;\nld.shared.u32 %r4, [%r5]; //!\n"),
        32,
        &["read after write"],
    );
    ordered(&format!("{back} st.shared.u32 [%r2], %t; bar.warp.sync -1; ld.shared.u32 %r4, [%r5];"), 32);
    // A pair of lanes may meet alone.
    let pair = "mov.u32 %r6, 3; and.b32 %r7, %t, 30; shl.b32 %r6, %r6, %r7;";
    ordered(
        &format!("{back} {pair} st.shared.u32 [%r2], %t; bar.warp.sync -1; ld.shared.u32 %r4, [%r5];"),
        64,
    );
}

#[test]
fn writes_of_different_values_to_one_place_are_found() {
    racy("st.shared.u32 [%r1], %t; //!\n", 32, &["write after write"]);
    ordered("mov.u32 %r4, 7; st.shared.u32 [%r1], %r4;", 128);
    // Neighbouring bytes are no conflict.
    ordered("add.u32 %r4, %r1, %t; st.shared.u8 [%r4], %t;", 128);
}

#[test]
fn asynchronous_copies_need_wait_and_meeting() {
    // %r4: own 16 bytes, %rd1: their source, %r5: the neighbour's.
    let copy = "shl.b32 %r4, %t, 4; add.u32 %r4, %r1, %r4; mul.wide.u32 %rd1, %t, 16; add.u64 %rd1, %in, %rd1;\n\
        xor.b32 %r5, %t, 1; shl.b32 %r5, %r5, 4; add.u32 %r5, %r1, %r5;\n\
        cp.async.cg.shared.global [%r4], [%rd1], 16; cp.async.commit_group;\n";
    racy(
        &format!("{copy} cp.async.wait_group 0;\nld.shared.u32 %r6, [%r5]; //!\n"),
        32,
        &["read after write"],
    );
    racy(
        &format!("{copy} bar.warp.sync -1;\nld.shared.u32 %r6, [%r5]; //!\n"),
        32,
        &["reads copy in flight"],
    );
    racy(
        &format!("{copy} mov.u32 %r6, 1;\nst.shared.u32 [%r4], %r6; //!\n"),
        32,
        &["overwrites copy in flight"],
    );
    ordered(&format!("{copy} cp.async.wait_group 0; bar.warp.sync -1; ld.shared.u32 %r6, [%r5];"), 32);
    ordered(&format!("{copy} cp.async.wait_group 0; ld.shared.u32 %r6, [%r4];"), 32);
    let matrix = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r6, %r7, %r8, %r9}, [%r4];";
    racy(&format!("{copy} cp.async.wait_group 0;\n{matrix} //!\n"), 32, &["read after write"]);
    ordered(&format!("{copy} cp.async.wait_group 0; bar.warp.sync -1; {matrix}"), 32);
    // The slot is filled again while the neighbour may still read it.
    let again = "cp.async.cg.shared.global [%r4], [%rd1], 16; cp.async.wait_all;";
    let read = "cp.async.wait_group 0; bar.warp.sync -1; ld.shared.u32 %r6, [%r5];";
    racy(&format!("{copy} {read}\n{again} //!\n"), 32, &["write after read"]);
    ordered(&format!("{copy} {read} bar.warp.sync -1; {again}"), 32);
}

#[test]
fn named_barriers_and_strong_accesses_order_too() {
    // A ring of one slot between a producing and a consuming warp, several rounds.
    let ring = |full: &str, empty: &str| {
        format!(
            "and.b32 %r4, %t, 31; shl.b32 %r4, %r4, 2; add.u32 %r4, %r1, %r4; mov.u32 %r5, 0; setp.lt.u32 %p1, %t, 32; @%p1 bra P;\n\
             C: bar.sync 1, 64; ld.shared.u32 %r6, [%r4+4]; {empty} add.u32 %r5, %r5, 1; setp.lt.u32 %p2, %r5, 5; @%p2 bra C; bra E;\n\
             P: st.shared.u32 [%r4], %r5; st.shared.u32 [%r4+4], %r5; {full} bar.sync 2, 64; add.u32 %r5, %r5, 1; setp.lt.u32 %p2, %r5, 5; @%p2 bra P; E:"
        )
    };
    ordered(
        &ring("bar.arrive 1, 64;", "bar.arrive 2, 64;")
            .replace("[%r4+4], %r5", "[%r4+256], %r5")
            .replace("%r6, [%r4+4]", "%r6, [%r4]"),
        64,
    );
    // A flag: data, then a release store; the other warp spins on it.
    let flag = "setp.eq.u32 %p3, %t, 0; mov.u32 %r9, 0; @%p3 st.shared.u32 [%r1+2048], %r9; bar.sync 0; setp.lt.u32 %p1, %t, 32; @%p1 bra W; mov.u32 %r6, 1;\n\
        st.shared.u32 [%r1+1024], %r6; fence.acq_rel.cta; st.relaxed.cta.shared.u32 [%r1+2048], %r6; bra E;\n\
        W: ld.relaxed.cta.shared.u32 %r7, [%r1+2048]; setp.eq.u32 %p2, %r7, 0; @%p2 bra W; fence.acq_rel.cta; ld.shared.u32 %r8, [%r1+1024]; E:";
    ordered(flag, 64);
    ordered(
        "mov.u32 %r4, 0; st.shared.u32 [%r1], %r4; bar.sync 0; atom.shared.add.u32 %r5, [%r1], 1; bar.sync 0; ld.shared.u32 %r6, [%r1];",
        128,
    );
}
