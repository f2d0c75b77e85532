//! Broken kernels are reported with the right class, kind and line; their correct twins are not.

mod common;
use common::{HEADER, kernel, run, run_with};
use ptx_emulator::{Arg, Checks, Class, Device, Error, LaunchConfig, Module, Options};

const DYN: &str = ".extern .shared .align 16 .b8 dyn[];";

/// The body marks its faulty line by `//!`; the finding must be there and nowhere else.
#[track_caller]
fn fault(extra: &str, body: &str, threads: u32, class: Class, kind: &str) -> ptx_emulator::Finding {
    let text = kernel(extra, body);
    let line = text.lines().position(|l| l.contains("//!")).expect("a marked line") as u32 + 1;
    let r = run(&text, threads, 256, &[7; 64], 64);
    let of: Vec<_> = r.report.of(class).collect();
    assert_eq!(of.len(), 1, "{:#?}", r.report.findings);
    assert_eq!((of[0].kind.as_str(), of[0].line), (kind, line), "{:#?}", of[0]);
    assert!(!r.report.is_clean());
    of[0].clone()
}

#[track_caller]
fn clean(extra: &str, body: &str, threads: u32) {
    let r = run(&kernel(extra, body), threads, 256, &[7; 64], 64);
    assert!(r.report.is_clean(), "{:#?}", r.report.findings);
}

#[test]
fn a_load_beyond_its_allocation_is_found_to_the_byte() {
    let f = fault("", "ld.global.u32 %r1, [%in+256]; //!\n", 1, Class::Mem, "out of bounds");
    let p = f.allocation.unwrap();
    assert_eq!((p.name.as_str(), p.size, p.offset), ("in", 256, 256));
    clean("", "ld.global.u32 %r1, [%in+252];", 1);
    // One byte of a vector is enough, on either side.
    fault("", "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%in+256]; //!\n", 1, Class::Mem, "out of bounds");
    let f = fault("", "ld.global.u8 %r1, [%in+-1]; //!\n", 1, Class::Mem, "out of bounds");
    assert_eq!(f.allocation.unwrap().offset, -1);
    clean("", "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%in+240];", 1);
}

#[test]
fn only_the_lanes_at_fault_are_named_and_the_others_work() {
    let body = "mul.wide.u32 %rd1, %t, 8; add.u64 %rd1, %out, %rd1;\nst.global.u32 [%rd1], %t; //!\n";
    let text = kernel("", body);
    let r = run(&text, 64, 0, &[7], 64);
    let f: Vec<_> = r.report.of(Class::Mem).collect();
    assert_eq!((f.len(), f[0].warp, f[0].lanes, f[0].count), (1, 1, u32::MAX, 1));
    assert_eq!((r.out[0], r.out[2], r.out[62]), (0, 1, 31));
    let f = fault(
        "",
        "mul.wide.u32 %rd1, %t, 4; add.u64 %rd1, %in, %rd1;\nld.global.u32 %r1, [%rd1+232]; //!\n",
        32,
        Class::Mem,
        "out of bounds",
    );
    assert_eq!(f.lanes, !0x3f);
}

#[test]
fn identical_findings_are_counted() {
    let body = "mov.u32 %r2, 0; L:\nld.global.u32 %r1, [%in+4096]; //!\nadd.u32 %r2, %r2, 1; setp.lt.u32 %p1, %r2, 10; @%p1 bra L;";
    assert_eq!(fault("", body, 1, Class::Mem, "out of bounds").count, 10);
}

#[test]
fn misaligned_accesses_are_found() {
    fault("", "ld.global.u32 %r1, [%in+2]; //!\n", 1, Class::Mem, "misaligned");
    fault("", "ld.global.v2.u32 {%r1, %r2}, [%in+4]; //!\n", 1, Class::Mem, "misaligned");
    clean("", "ld.global.v2.u32 {%r1, %r2}, [%in+8];", 1);
    fault(
        DYN,
        "mov.u32 %r1, dyn; st.shared.v4.u32 [%r1+8], {%r1, %r1, %r1, %r1}; //!\n",
        1,
        Class::Mem,
        "misaligned",
    );
    fault(
        DYN,
        "mov.u32 %r1, dyn; cp.async.cg.shared.global [%r1], [%in+8], 16; //!\n",
        1,
        Class::Mem,
        "misaligned",
    );
    fault(
        DYN,
        "mov.u32 %r1, dyn; cp.async.cg.shared.global [%r1+8], [%in], 16; //!\n",
        1,
        Class::Mem,
        "misaligned",
    );
    clean(DYN, "mov.u32 %r1, dyn; cp.async.cg.shared.global [%r1+16], [%in+16], 16; cp.async.wait_all;", 1);
}

#[test]
fn null_and_read_only_and_shared_overrun() {
    fault("", "mov.u64 %rd1, 0; ld.global.u32 %r1, [%rd1+16]; //!\n", 1, Class::Mem, "null");
    fault(
        ".const .align 4 .u32 c = 5;",
        "mov.u64 %rd1, c; mov.u32 %r1, 0; st.global.u32 [%rd1], %r1; //!\n",
        1,
        Class::Mem,
        "read-only",
    );
    fault(DYN, "mov.u32 %r1, dyn; st.shared.u32 [%r1+256], %t; //!\n", 1, Class::Mem, "out of bounds");
    clean(DYN, "mov.u32 %r1, dyn; st.shared.u32 [%r1+252], %t;", 1);
    fault(
        "",
        ".local .align 4 .b8 s[8];\nmov.u64 %rd1, s; st.local.u32 [%rd1+8], %t; //!\n",
        1,
        Class::Mem,
        "out of bounds",
    );
    clean("", ".local .align 4 .b8 s[8];\nmov.u64 %rd1, s; st.local.u32 [%rd1+4], %t;", 1);
    fault("", "atom.global.add.u32 %r1, [%in+1024], 1; //!\n", 1, Class::Mem, "out of bounds");
    // A zero-fill copy may point anywhere when it reads nothing.
    clean(
        DYN,
        "mov.u32 %r1, dyn; mov.u32 %r2, 0; mov.u64 %rd1, 0; cp.async.cg.shared.global [%r1], [%rd1], 16, %r2; cp.async.wait_all; ld.shared.u32 %r3, [%r1];",
        1,
    );
    fault(
        DYN,
        "mov.u32 %r1, dyn; mov.u32 %r2, 16; mov.u64 %rd1, 0; cp.async.cg.shared.global [%r1], [%rd1], 16, %r2; //!\n",
        1,
        Class::Mem,
        "null",
    );
}

#[test]
fn freed_memory_is_not_read_again() {
    let text = kernel("", "ld.global.u32 %r1, [%in];");
    let module = Module::parse(&text).unwrap();
    let mut device = Device::new(Options::default());
    let a = device.alloc_init(&[0; 64], "stale").unwrap();
    let b = device.alloc(64, "out").unwrap();
    let config = LaunchConfig { grid: [1; 3], block: [1; 3], shared_bytes: 0 };
    let args = [Arg::Ptr(a), Arg::Ptr(b)];
    assert!(device.launch(&module, "k", config, &args).unwrap().is_clean());
    device.free(a).unwrap();
    device.alloc_init(&[0; 64], "fresh").unwrap();
    let r = device.launch(&module, "k", config, &args).unwrap();
    assert_eq!(r.findings[0].kind, "use after free");
    assert_eq!(r.findings[0].allocation.as_ref().unwrap().name, "stale");
}

#[test]
fn reads_of_what_nobody_wrote_are_found_in_every_space() {
    fault("", "ld.global.u32 %r1, [%out]; //!\n", 1, Class::Init, "global memory");
    clean("", "st.global.u32 [%out], %t; ld.global.u32 %r1, [%out];", 1);
    fault("", "st.global.u8 [%out], %t; st.global.u16 [%out+2], %h1; //!\n", 1, Class::Init, "register");
    fault(DYN, "mov.u32 %r1, dyn; ld.shared.u32 %r2, [%r1]; //!\n", 1, Class::Init, "shared memory");
    fault(
        DYN,
        "mov.u32 %r1, dyn; st.shared.u8 [%r1], %t; ld.shared.u16 %r2, [%r1]; //!\n",
        1,
        Class::Init,
        "shared memory",
    );
    fault(
        "",
        ".local .align 4 .b8 s[8];\nmov.u64 %rd1, s; st.local.u32 [%rd1], %t; ld.local.u64 %rd2, [%rd1]; //!\n",
        1,
        Class::Init,
        "local memory",
    );
    fault("", "add.u32 %r1, %r2, 1; //!\n", 1, Class::Init, "register");
    fault("", "@%p1 add.u32 %r1, %t, 1; //!\n", 1, Class::Init, "register");
    // Only a lane that read it is at fault: lane 0 wrote its register.
    let f = fault(
        "",
        "setp.eq.u32 %p1, %t, 0; @%p1 mov.u32 %r1, 5;\nadd.u32 %r2, %r1, 1; //!\n",
        2,
        Class::Init,
        "register",
    );
    assert_eq!(f.lanes, 0b10);
    // Copies of unwritten registers are no use of them.
    clean(
        "",
        "mov.u32 %r1, %r2; mov.b64 %rd1, {%t, %r2}; mov.b64 {%r3, %r4}, %rd1; st.global.u32 [%out], %r3;",
        1,
    );
    // Nor are permutations of their bytes, as long as nothing but such bytes is made of them.
    clean("", "prmt.b32 %r1, %r2, %r3, 0x3340; prmt.b32 %r4, %t, %r1, 0x5410; st.global.u32 [%out], %r4;", 1);
    for selector in ["0x7654", "0x3210"] {
        let (a, b) = if selector == "0x7654" { ("%t", "%r2") } else { ("%r2", "%t") };
        let body = format!("prmt.b32 %r1, {a}, {b}, {selector};\nst.global.u32 [%out], %r1; //!\n");
        fault("", &body, 1, Class::Init, "register");
    }
}

#[test]
fn an_asynchronous_copy_is_not_there_before_its_wait() {
    let head = "mov.u32 %r1, dyn; cp.async.cg.shared.global [%r1], [%in], 16; cp.async.commit_group;\n";
    fault(DYN, &format!("{head}ld.shared.u32 %r2, [%r1]; //!\n"), 1, Class::Init, "shared memory");
    fault(
        DYN,
        &format!("{head}cp.async.wait_group 1;\nld.shared.u32 %r2, [%r1]; //!\n"),
        1,
        Class::Init,
        "shared memory",
    );
    clean(DYN, &format!("{head}cp.async.wait_group 0;\nld.shared.u32 %r2, [%r1];"), 1);
}

#[test]
fn barriers_must_be_reached_by_all() {
    let body = "setp.lt.u32 %p1, %t, 16; @%p1 bra A;\nbar.sync 0; //!\nbra E; A: bar.sync 1; E:";
    let r = run(&kernel("", body), 32, 0, &[0], 1);
    assert!(r.report.of(Class::Sync).any(|f| f.kind == "divergent barrier"), "{:#?}", r.report.findings);
    // The same barrier in both arms is still divergent for an aligned barrier.
    let body = "setp.lt.u32 %p1, %t, 16; @%p1 bra A; bar.sync 0; bra E; A: bar.sync 0; E:";
    let r = run(&kernel("", body), 32, 0, &[0], 1);
    assert!(r.report.of(Class::Sync).any(|f| f.kind == "divergent barrier"), "{:#?}", r.report.findings);
    // The unaligned form counts lanes and allows it.
    clean("", "setp.lt.u32 %p1, %t, 16; @%p1 bra A; barrier.sync 0; bra E; A: barrier.sync 0; E:", 32);
    // Whole warps on different paths are fine.
    clean("", "setp.lt.u32 %p1, %t, 32; @%p1 bra A; bar.sync 0; bra E; A: bar.sync 0; E:", 64);
    // Arms of unequal length that join before the barrier are fine.
    clean(
        "",
        "setp.lt.u32 %p1, %t, 16; @%p1 bra A; add.u32 %r1, %t, 1; add.u32 %r1, %r1, 1; A: bar.sync 0;",
        32,
    );
}

#[test]
fn barriers_of_a_wrong_number_a_mixed_use_or_a_second_arrival_are_reported() {
    fault("", "mov.u32 %r1, 17;\nbar.sync %r1; //!\n", 32, Class::Sync, "barrier number");
    fault("", "and.b32 %r1, %t, 1;\nbar.sync %r1; //!\n", 32, Class::Sync, "barrier mismatch");
    clean("", "shr.u32 %r1, %t, 5; bar.sync %r1, 32;", 64);
    // The second arrival of warp 0 would stand for warp 1.
    fault("", "bar.arrive 1, 64;\nbar.arrive 1, 64; //!\n", 32, Class::Sync, "barrier twice");
    clean("", "setp.lt.u32 %p1, %t, 32; @%p1 bra A; bar.sync 1, 64; bra E; A: bar.arrive 1, 64; E:", 64);
    // One warp reduces where the other only waits.
    let body =
        "setp.lt.u32 %p1, %t, 32; @%p1 bra A; bar.red.popc.u32 %r1, 1, 64, %p1; bra E; A: bar.sync 1, 64; E:";
    let r = run(&kernel("", body), 64, 0, &[0], 1);
    assert!(r.report.of(Class::Sync).any(|f| f.kind == "barrier mismatch"), "{:#?}", r.report.findings);
    let e = Module::parse(&kernel("", "bar.sync 16;")).unwrap().check().unwrap_err().to_string();
    assert!(e.contains("barrier 16"), "{e}");
}

#[test]
fn warps_that_leave_before_a_barrier_are_reported() {
    fault(
        "",
        "setp.lt.u32 %p1, %t, 32; @%p1 ret;\nbar.sync 0; //!\n",
        64,
        Class::Sync,
        "exit before barrier",
    );
    clean("", "setp.lt.u32 %p1, %t, 32; @%p1 ret;\nbar.sync 1, 32;", 64);
}

#[test]
fn a_deadlock_says_who_waits_where() {
    let f = fault(
        "",
        "setp.lt.u32 %p1, %t, 32; @%p1 bra A; bar.sync 1; ret;\nA: bar.sync 2; //!\n",
        64,
        Class::Sync,
        "deadlock",
    );
    assert!(f.message.contains("warp 0") && f.message.contains("barrier 1 (32 of 64"), "{}", f.message);
}

#[test]
fn warp_wide_instructions_need_the_lanes_of_their_mask() {
    fault(
        "",
        "setp.lt.u32 %p1, %t, 16; @%p1 exit;\nshfl.sync.bfly.b32 %r1, %t, 1, 31, 0x0000ffff; //!\n",
        32,
        Class::Sync,
        "outside its mask",
    );
    let body =
        "setp.lt.u32 %p1, %t, 16; @%p1 bra E;\nshfl.sync.bfly.b32 %r1, %t, 1, 31, -1; //!\nE: bar.sync 0;";
    let r = run(&kernel("", body), 32, 0, &[0], 1);
    assert!(r.report.of(Class::Sync).any(|f| f.kind == "missing lanes"), "{:#?}", r.report.findings);
    clean(
        "",
        "setp.lt.u32 %p1, %t, 16; @%p1 bra E; shfl.sync.bfly.b32 %r1, %t, 1, 31, 0xffff0000; E: bar.sync 0;",
        32,
    );
    // Both arms come to a syncwarp of their own: legal since independent scheduling.
    clean("", "setp.lt.u32 %p1, %t, 16; @%p1 bra A; bar.warp.sync -1; bra E; A: bar.warp.sync -1; E:", 32);
    fault(
        "",
        "setp.lt.u32 %p1, %t, 16; @%p1 exit;\nshfl.sync.idx.b32 %r1, %t, 3, 31, 0xffff0000; //!\n",
        32,
        Class::Sync,
        "inactive source",
    );
}

#[test]
fn launches_that_do_not_fit_are_refused_before_they_run() {
    let text = format!(
        "{HEADER}.visible .entry k(.param .u64 a, .param .u32 b) .reqntid 64, 1, 1 {{ trap; }}\n.visible .entry m() .maxntid 32, 2, 1 {{ ret; }}"
    );
    let module = Module::parse(&text).unwrap();
    let mut device = Device::new(Options::default());
    let p = device.alloc(4, "a").unwrap();
    let mut kinds = |kernel: &str, grid: u32, block: u32, shared: u32, args: &[Arg]| -> Vec<String> {
        let config = LaunchConfig { grid: [grid, 1, 1], block: [block, 1, 1], shared_bytes: shared };
        let r = device.launch(&module, kernel, config, args).unwrap();
        r.findings
            .iter()
            .inspect(|f| assert_eq!(f.class, if f.kind == "trap" { Class::Trap } else { Class::Launch }))
            .map(|f| f.kind.clone())
            .collect()
    };
    let good = [Arg::Ptr(p), Arg::U32(1)];
    assert_eq!(kinds("k", 1, 64, 0, &good), ["trap"]);
    assert_eq!(kinds("k", 1, 32, 0, &good), ["block differs from .reqntid"]);
    assert_eq!(kinds("k", 0, 64, 0, &good), ["empty launch"]);
    assert_eq!(kinds("k", 1, 64, 163 * 1024, &good), ["trap"]);
    assert_eq!(kinds("k", 1, 64, 163 * 1024 + 1, &good), ["too much shared memory"]);
    assert_eq!(kinds("k", 1, 64, 0, &good[..1]), ["argument count"]);
    assert_eq!(kinds("k", 1, 64, 0, &[Arg::Ptr(p), Arg::U64(1)]), ["argument size"]);
    assert_eq!(kinds("m", 1, 64, 0, &[]), Vec::<String>::new());
    assert_eq!(kinds("m", 1, 65, 0, &[]), ["block beyond .maxntid"]);
    assert_eq!(kinds("m", 1, 2000, 0, &[]).len(), 2);
}

#[test]
fn an_endless_loop_ends_at_the_limit_with_everyones_place() {
    let text = kernel("", "L:\nbra L;");
    let options = Options { max_steps: 10_000, ..Options::default() };
    let config = LaunchConfig { grid: [2, 1, 1], block: [64, 1, 1], shared_bytes: 0 };
    let r = run_with(&text, options, config, &[0], 1).report;
    assert_eq!((r.findings.len(), r.findings[0].class, r.completed), (1, Class::Steps, false));
    assert!(r.findings[0].message.contains("CTA (1,0,0) warp 1"), "{}", r.findings[0].message);
}

#[test]
fn every_checker_can_be_switched_off() {
    let config = LaunchConfig { grid: [1, 1, 1], block: [1, 1, 1], shared_bytes: 0 };
    let none = || Options { checks: Checks::none(), ..Options::default() };
    let r = run_with(
        &kernel("", "ld.global.u32 %r1, [%out]; add.u32 %r1, %r2, 1; ld.global.u32 %r3, [%in+2];"),
        none(),
        config,
        &[0; 4],
        1,
    );
    assert!(r.report.is_clean(), "{:?}", r.report.findings);
    // A stray access cannot be ignored: it is an error then.
    let module = Module::parse(&kernel("", "ld.global.u32 %r1, [%in+4096];")).unwrap();
    let mut device = Device::new(none());
    let a = device.alloc(4, "a").unwrap();
    let r = device.launch(&module, "k", config, &[Arg::Ptr(a), Arg::Ptr(a)]);
    assert!(matches!(r, Err(Error::IllegalAddress { .. })), "{r:?}");
}

#[test]
fn source_lines_come_from_loc() {
    let text = kernel(".file 3 \"src/kernel.rs\"", ".loc 3 42 7\nld.global.u32 %r1, [%in+4096];");
    let r = run(&text, 1, 0, &[0], 1);
    assert_eq!(r.report.findings[0].source, Some(("src/kernel.rs".to_string(), 42)));
}

#[test]
fn what_is_outside_the_scope_is_refused_with_instruction_and_line() {
    for (code, word) in [
        ("wgmma.fence.sync.aligned;", "wgmma"),
        ("tex.1d.v4.f32.s32 {%f1, %f2, %f3, %f4}, [%in, {%r1}];", ""),
        ("cp.async.bulk.commit_group;", "bulk"),
        ("add.s32.magic %r1, %r2, %r3;", "magic"),
        ("mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%r1}, {%r2}, {%r3}, {%r4};", "sparse"),
        ("mov.u32 %r1, %cluster_ctarank;", "clusters"),
        ("vadd.s32.s32.s32 %r1, %r2, %r3;", "vadd"),
        ("call.uni nobody;", "nobody"),
        ("add.s32 %r1, %rd2, %r3;", "%rd2"),
        ("bra NOWHERE;", "NOWHERE"),
    ] {
        let text = kernel("", &format!("\n{code}"));
        let want = text.lines().position(|l| l.contains(code)).unwrap() + 1;
        let e = Module::parse(&text).unwrap().check().unwrap_err().to_string();
        assert!(e.contains(word) && e.contains(&format!("line {want}")), "{code}: {e}");
    }
}

#[test]
fn an_access_that_only_begins_inside_is_found() {
    let module =
        Module::parse(&kernel("", "ld.global.u32 %r1, [%in+248]; st.global.u32 [%out], %r1;")).unwrap();
    let config = LaunchConfig { grid: [1; 3], block: [1; 3], shared_bytes: 0 };
    for (bytes, kind) in [(252, None), (251, Some("out of bounds")), (249, Some("out of bounds"))] {
        let mut device = Device::new(Options::default());
        let a = device.alloc_init(&vec![0; bytes], "in").unwrap();
        let b = device.alloc(4, "out").unwrap();
        let r = device.launch(&module, "k", config, &[Arg::Ptr(a), Arg::Ptr(b)]).unwrap();
        assert_eq!(r.findings.first().map(|f| f.kind.as_str()), kind, "{bytes} bytes");
    }
}

#[test]
fn a_device_can_move_to_another_thread() {
    let mut device = Device::new(Options::default());
    let p = device.alloc(4, "a").unwrap();
    let device = std::thread::spawn(move || {
        device.memset(p, 9, 4).unwrap();
        device
    });
    let mut out = [0; 4];
    device.join().unwrap().copy_from(p, &mut out).unwrap();
    assert_eq!(out, [9; 4]);
}
