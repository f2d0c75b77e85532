//! Memory of every space: shared transposes, asynchronous copies, traffic, generic addresses, variables.

mod common;
use common::{kernel, run, run_with};
use ptx_emulator::{Arg, Checks, Class, Device, LaunchConfig, Module, Options};

fn seeds() -> impl Iterator<Item = u64> {
    0..12
}

fn cfg(grid: u32, block: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid: [grid, 1, 1], block: [block, 1, 1], shared_bytes: shared }
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
