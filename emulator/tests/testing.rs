//! The helpers for other projects: they pass what is right, and fail with a message one can act on.

use ptx_emulator::{Arg, Case, Device, LaunchConfig, Module, Options, assert_clean, ptx_test};

const SCALE: &str = include_str!("data/scale.ptx");

// What the README shows: ten lines for a whole test.
ptx_test! {
    fn scales_every_element {
        ptx: SCALE,
        kernel: "scale",
        grid: 2,
        block: 64,
        args: [in x: &[1.5f32; 100], out y: [f32; 100], 3.0f32, 100u32],
    } => {
        assert_eq!(y, [4.5; 100]);
    }
}

ptx_test! {
    /// In place, with dynamic shared memory that is not used, and a trailing comma.
    fn scales_in_place {
        ptx: SCALE.replace("ld.global.f32 %f2, [%rd4]", "ld.global.f32 %f2, [%rd5]").as_str(),
        kernel: "scale",
        grid: [2, 1],
        block: [64, 1, 1],
        shared: 64,
        args: [in _unused: &[0u8; 4], inout y: &[2.0f32; 128], 0.5f32, 128u32,],
    } => {
        assert_eq!(y, [1.0; 128]);
    }
}

fn scale(ptx: &str, n: u32) -> Case {
    let mut case = Case::new(ptx, "scale").grid(2).block(64);
    case.input("x", &[1.0f32; 100]);
    case.output::<f32>("y", 100);
    case.arg(2.0f32);
    case.arg(n);
    case
}

#[test]
fn a_failure_names_finding_buffer_seed_and_line() {
    let message = scale(SCALE, 101).try_run().unwrap_err();
    for words in [
        "with seed 0: kernel `scale` is not clean, 2 findings:",
        "  1. mem: out of bounds: load of 4 bytes outside every allocation",
        "PTX line 25",
        "offset 400 of `x` (400 bytes)",
        "        25 | \tld.global.f32 %f2, [%rd4];",
        "        27 | \tst.global.f32 [%rd5], %f3;",
    ] {
        assert!(message.contains(words), "{words}\n---\n{message}");
    }
    // Misfits of the launch and text that is no PTX fail as well.
    let misfit = scale(&SCALE.replace("\n{", "\n.reqntid 32\n{"), 100).try_run().unwrap_err();
    assert!(misfit.contains("block [64, 1, 1], the kernel requires [32, 1, 1]"), "{misfit}");
    let outside =
        scale(&SCALE.replace("ret;\n}", "wgmma.fence.sync.aligned;\n}"), 100).try_run().unwrap_err();
    assert!(outside.contains("line 28: `wgmma.fence.sync.aligned`"), "{outside}");
}

#[test]
fn a_result_that_depends_on_the_schedule_is_found() {
    // The last thread to come writes its number: clean by atomics, and yet not a function.
    let ptx = ".version 7.8\n.target sm_80\n.address_size 64\n.visible .entry last(.param .u64 x) {\n\
        .reg .b64 %rd<2>; .reg .b32 %r<3>;\nld.param.u64 %rd1, [x]; mov.u32 %r1, %ctaid.x;\n\
        atom.global.exch.b32 %r2, [%rd1], %r1; ret; }";
    let mut case = Case::new(ptx, "last").grid(8).block(32);
    let x = case.input("x", &[77u32]);
    let message = case.try_run().unwrap_err();
    assert!(
        message.contains("depends on the schedule: `x` differs at byte 0 between seeds 0 and"),
        "{message}"
    );
    let mut case = case.order_matters();
    case.run();
    assert!(case.read(x)[0] < 8);
}

#[test]
fn the_panic_of_a_case_and_of_the_assertion_are_their_messages() {
    let panic = std::panic::catch_unwind(|| scale(SCALE, 101).run()).unwrap_err();
    assert!(panic.downcast_ref::<String>().unwrap().contains("offset 400 of `x`"));

    let module = Module::parse(SCALE).unwrap();
    let mut device = Device::new(Options::default());
    let x = device.alloc_init(&[0; 8], "x").unwrap();
    let config = LaunchConfig { grid: [1, 1, 1], block: [3, 1, 1], shared_bytes: 0 };
    let args = [Arg::Ptr(x), Arg::Ptr(x), Arg::F32(1.0), Arg::U32(3)];
    let report = device.launch(&module, "scale", config, &args).unwrap();
    let panic = std::panic::catch_unwind(|| assert_clean!(report, module)).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("offset 8 of `x` (8 bytes)") && text.contains("ld.global.f32"), "{text}");
}
