//! Counters by line and the commands that show them.

mod common;
use common::{kernel, run_with};
use ptx_emulator::{Counters, LaunchConfig, Options};
use std::process::Command;

#[test]
fn every_line_has_its_own_counters_and_they_add_up_to_those_of_the_launch() {
    let body = "mov.u32 %r1, dyn; mul.wide.u32 %rd1, %t, 128; add.u64 %rd1, %in, %rd1;\n\
        .loc 1 10 0\nld.global.u32 %r2, [%rd1]; // scattered\n\
        .loc 1 11 0\nmul.lo.u32 %r3, %t, 8; add.u32 %r3, %r3, %r1;\nst.shared.u32 [%r3], %r2; // conflicts\n\
        setp.lt.u32 %p1, %t, 8; mov.u32 %r4, 0;\n@!%p1 bra E;\n\
        L: add.u32 %r4, %r4, 1; // a quarter of the lanes\nsetp.lt.u32 %p2, %r4, 5; @%p2 bra L;\n\
        E: bar.warp.sync -1; st.global.u32 [%my], %r2;";
    let text = kernel(".file 1 \"k.rs\"\n.extern .shared .align 16 .b8 dyn[];", body);
    let options = Options { profile: true, ..Options::default() };
    let config = LaunchConfig { grid: [2, 1, 1], block: [32, 1, 1], shared_bytes: 1024 };
    let r = run_with(&text, options, config, &vec![1; 1024], 32).report;
    assert!(r.is_clean(), "{:?}", r.findings);
    let at = |word: &str| {
        let line = text.lines().position(|l| l.contains(word)).unwrap() as u32 + 1;
        r.profile.iter().find(|p| p.line == line).unwrap()
    };
    let load = at("// scattered");
    assert_eq!((load.counters.warp_instructions, load.counters.global_sectors_read), (2, 64));
    assert_eq!(load.counters.global_bytes_read, 256);
    assert_eq!(load.source, Some(("k.rs".to_string(), 10)));
    let store = at("// conflicts");
    assert_eq!((store.counters.bank_conflicts, store.counters.shared_accesses), (2, 2));
    assert_eq!(store.source, Some(("k.rs".to_string(), 11)));
    let part = at("// a quarter");
    assert_eq!((part.counters.warp_instructions, part.idle_lanes()), (10, 240));
    let mut sum = Counters::default();
    r.profile.iter().for_each(|p| sum.add(&p.counters));
    assert_eq!(sum, r.counters);
    let lines = ptx_emulator::listing(&text, &r.profile);
    let hot = lines.lines().find(|l| l.contains("// scattered")).unwrap();
    assert!(hot.contains("32.0/4.0"), "{hot}");
    assert!(lines.contains("-- k.rs:10") && lines.contains("75.0%"), "{lines}");
    // Off unless asked for.
    assert!(run_with(&text, Options::default(), config, &vec![1; 1024], 32).report.profile.is_empty());
}

#[test]
fn the_command_line_profiles_and_lints() {
    let d = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("profile");
    std::fs::create_dir_all(&d).unwrap();
    std::fs::write(d.join("sum.ptx"), include_str!("data/rust_sum.ptx")).unwrap();
    std::fs::write(d.join("x.bin"), vec![0u8; 512]).unwrap();
    let json = r#"{"ptx": "sum.ptx", "kernel": "sum", "grid": [1], "block": [128], "shared_bytes": 16,
        "args": [{"in": "x.bin"}, {"bytes": 4}, {"u32": 128}]}"#;
    std::fs::write(d.join("launch.json"), json).unwrap();
    let emu = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_ptx-emu")).args(args).current_dir(&d).output().unwrap()
    };
    let o = emu(&["run", "launch.json", "--profile"]);
    let text = String::from_utf8(o.stdout).unwrap();
    assert_eq!(o.status.code(), Some(0), "{text}");
    assert!(text.contains("sectors/needed") && text.contains("shfl.sync"), "{text}");
    let o = emu(&["run", "launch.json", "--profile", "--json"]);
    let v: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap();
    assert!(!v["profile"].as_array().unwrap().is_empty());

    std::fs::write(
        d.join("bad.ptx"),
        ".version 7.8\n.target sm_80\n.address_size 64\n.visible .entry k() {\n//@marker\nret; }\n",
    )
    .unwrap();
    let o = emu(&["lint", "bad.ptx"]);
    assert_eq!(
        (o.status.code(), String::from_utf8(o.stdout).unwrap().as_str()),
        (Some(1), "line 5: marker: //@marker\n")
    );
    assert_eq!(emu(&["lint", "nothing.ptx"]).status.code(), Some(2));
}

#[test]
fn distinct_bytes_of_every_buffer_are_counted_once() {
    // Each of 64 threads loads its own word and the first one.
    let body = "ld.global.u32 %r1, [%in]; mul.wide.u32 %rd1, %t, 4; add.u64 %rd1, %in, %rd1;\n\
        ld.global.u32 %r2, [%rd1]; add.u32 %r1, %r1, %r2; st.global.u32 [%my], %r1;";
    let options = Options { buffers: true, ..Options::default() };
    let config = LaunchConfig { grid: [1, 1, 1], block: [64, 1, 1], shared_bytes: 0 };
    let r = run_with(&kernel("", body), options, config, &[1; 64], 64).report;
    assert!(r.is_clean(), "{:?}", r.findings);
    let of = |name: &str| r.buffers.iter().find(|b| b.name == name).unwrap();
    let (input, out) = (of("in"), of("out"));
    assert_eq!((input.bytes_read, input.distinct_read, input.sectors_read), (512, 256, 10));
    assert_eq!((input.bytes_written, out.bytes_read), (0, 0));
    assert_eq!((out.bytes_written, out.distinct_written, out.sectors_written), (256, 256, 8));
}

#[test]
fn a_clone_repeats_a_launch_from_its_snapshot_and_can_stop_at_the_first_finding() {
    // Out of bounds twice, after a store to the output.
    let body = "st.global.u32 [%my], %t; ld.global.u32 %r1, [%in+400]; ld.global.u32 %r1, [%in+500];";
    let module = ptx_emulator::Module::parse(&kernel("", body)).unwrap();
    let mut device = ptx_emulator::Device::new(Options::default());
    let input = device.alloc_init(&[0; 256], "in").unwrap();
    let out = device.alloc_init(&[9; 256], "out").unwrap();
    let config = LaunchConfig { grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 0 };
    let launch = |device: &mut ptx_emulator::Device| {
        let args = [input, out].map(ptx_emulator::Arg::Ptr);
        let name = module.kernels()[0].name.clone();
        device.launch(&module, &name, config, &args).unwrap()
    };
    let mut snapshot = device.clone();
    assert_eq!(launch(&mut device).findings.len(), 2);
    let mut bytes = [0; 256];
    snapshot.copy_from(out, &mut bytes).unwrap();
    assert_eq!(bytes, [9; 256], "the snapshot keeps its memory");
    snapshot.options_mut().stop_at_finding = true;
    let stopped = launch(&mut snapshot);
    assert_eq!((stopped.findings.len(), stopped.completed), (1, false));
}
