//! Counters by line and the commands that show them.

mod common;
use common::{kernel, run_with};
use ptx_emulator::{Arg, Checks, Counters, Device, LaunchConfig, Module, Options, Profile, Report};
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
    assert_eq!((part.counters.warp_instructions, part.idle_lanes), (10, 240));
    let mut sum = Counters::default();
    r.profile.iter().for_each(|p| sum.add(&p.counters));
    assert_eq!(sum, r.counters);
    let lines = Profile::new(&text, &r).text(10);
    let hot = lines.lines().rfind(|l| l.contains("// scattered")).unwrap();
    assert!(hot.contains("32.0 (4.0)"), "{hot}");
    assert!(lines.contains("-- k.rs:10") && lines.contains("75.0%"), "{lines}");
    // Off unless asked for.
    assert!(run_with(&text, Options::default(), config, &vec![1; 1024], 32).report.profile.is_empty());
}

const CUDA: &str = include_str!("cuda/transpose.cu");
const PTX: &str = include_str!("cuda/transpose.ptx");

/// A kernel of transpose.cu over 64 x 64 words, or 4096 numbers.
fn profiled(kernel: &str, config: LaunchConfig) -> Report {
    let module = Module::parse(PTX).unwrap();
    let mut device = Device::new(Options { profile: true, ..Options::default() });
    let data: Vec<u8> = (0..4096u32).flat_map(|i| i.to_le_bytes()).collect();
    let (x, y) = (device.alloc_init(&data, "x").unwrap(), device.alloc_init(&data, "y").unwrap());
    let n = if kernel == "histogram" { 4096 } else { 64 };
    let r = device.launch(&module, kernel, config, &[Arg::Ptr(x), Arg::Ptr(y), Arg::U32(n)]).unwrap();
    assert!(r.is_clean(), "{kernel}: {:?}", r.findings);
    if kernel.len() < 12 && config.block[1] == 8 {
        let mut out = vec![0; 4 * 4096];
        device.copy_from(y, &mut out).unwrap();
        let word = |i: usize| u32::from_le_bytes(out[4 * i..4 * i + 4].try_into().unwrap()) as usize;
        assert!((0..4096).all(|i| word(i) == i % 64 * 64 + i / 64), "{kernel} transposes");
    }
    r
}

/// Line of the source with the mark, in the function of that name.
fn fault(kernel: &str) -> u32 {
    let start = CUDA.lines().position(|l| l.contains(&format!(" {kernel}("))).unwrap();
    let at = CUDA.lines().skip(start).position(|l| l.contains("FAULT")).unwrap();
    (start + at + 1) as u32
}

const TILES: LaunchConfig = LaunchConfig { grid: [2, 2, 1], block: [32, 8, 1], shared_bytes: 0 };
const ROW: LaunchConfig = LaunchConfig { grid: [2, 1, 1], block: [128, 1, 1], shared_bytes: 0 };

#[test]
fn the_first_hint_is_the_line_that_was_made_slow_on_purpose() {
    for (kernel, config, kind, words) in [
        ("uncoalesced", TILES, "uncoalesced", "32.0 sectors a request where 4.0"),
        ("conflicted", TILES, "bank conflict", "32.0 passes"),
        ("histogram", ROW, "atomic contention", "75% of the lanes wait"),
        ("divergent", ROW, "idle lanes", "% of the lanes idle"),
    ] {
        let r = profiled(kernel, config);
        let hints = Profile::new(PTX, &r).hints();
        let first = &hints[0];
        assert_eq!(first.kind, kind, "{kernel}: {hints:#?}");
        // The atomic is a line of a header, inlined.
        let place = first.inlined_at.as_ref().or(first.source.as_ref());
        assert_eq!(place, Some(&("transpose.cu".to_string(), fault(kernel))), "{kernel}: {hints:#?}");
        assert!(first.message.contains(words), "{kernel}: {}", first.message);
        // Nothing else comes near.
        assert!(hints.get(1).is_none_or(|h| 2 * h.cost < first.cost), "{kernel}: {hints:#?}");
    }
}

#[test]
fn the_kernel_without_the_fault_has_no_hint_of_that_kind() {
    let r = profiled("padded", TILES);
    assert_eq!(Profile::new(PTX, &r).hints(), []);
    assert_eq!(r.counters.bank_conflicts, 0);
    assert_eq!(r.counters.global_sectors_ideal, r.counters.global_sectors());
}

#[test]
fn source_lines_sum_up_their_ptx_lines_and_show_their_text_when_it_is_found() {
    let r = profiled("conflicted", TILES);
    let profile = Profile::new(PTX, &r);
    let sources = profile.by_source();
    let with_source: u64 =
        r.profile.iter().filter(|l| l.source.is_some()).map(|l| l.counters.warp_instructions).sum();
    assert_eq!(sources.iter().map(|s| s.counters.warp_instructions).sum::<u64>(), with_source);
    assert_eq!(sources[0].line, fault("conflicted"), "the hottest line is the slow one");
    let text = "float v = tile[tx][i];  // FAULT";
    assert!(!profile.text(5).contains(text));
    let found =
        profile.with_sources(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda").as_path());
    for view in [found.text(5), found.html(5), found.svg(5)] {
        assert!(view.contains(text), "{view}");
    }
}

#[test]
fn pictures_are_well_formed_and_cite_what_they_show() {
    let r = profiled("uncoalesced", TILES);
    let profile = Profile::new(PTX, &r);
    let (html, svg) = (profile.html(5), profile.svg(5));
    for (name, text, end) in [("html", &html, "</html>\n"), ("svg", &svg, "</svg>\n")] {
        assert!(text.ends_with(end), "{name}");
        assert!(text.contains("not timed") && text.contains("32.0 (4.0)"), "{name}: {text}");
        // One file: nothing is fetched.
        assert!(!text.contains("<script") && !text.contains("src=") && !text.contains("href="), "{name}");
    }
    // Every tag of the picture is closed.
    let open = svg.matches('<').count() - svg.matches("</").count();
    assert_eq!(open, svg.matches("/>").count() + svg.matches("</").count());
}

#[test]
fn counters_do_not_depend_on_the_profile_but_for_those_that_say_so() {
    let module = Module::parse(PTX).unwrap();
    let mut got = [true, false].map(|profile| {
        let checks = Checks::all();
        let mut device = Device::new(Options { profile, checks, ..Options::default() });
        let x = device.alloc_init(&[1; 4096], "x").unwrap();
        let y = device.alloc_init(&[0; 64], "bins").unwrap();
        device
            .launch(&module, "histogram", ROW, &[Arg::Ptr(x), Arg::Ptr(y), Arg::U32(4096)])
            .unwrap()
            .counters
    });
    assert!(got[0].global_sectors_ideal > 0 && got[0].atomic_conflicts == 31 * got[0].atomics / 32);
    assert_eq!((got[1].global_sectors_ideal, got[1].atomic_conflicts), (0, 0));
    (got[0].global_sectors_ideal, got[0].atomic_conflicts) = (0, 0);
    assert_eq!(got[0], got[1]);
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
    assert!(text.contains("sectors (ideal)") && text.contains("shfl.sync"), "{text}");
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
