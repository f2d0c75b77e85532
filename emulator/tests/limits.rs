//! Each limit is an error that names it, before anything of that size is allocated; what a run may
//! take is bounded as well.

mod common;
use common::{HEADER, kernel};
use ptx_emulator::{Arg, Checks, Device, Error, LaunchConfig, Limits, Module, Options, Report, Result};
use std::time::{Duration, Instant};

fn limited(change: impl Fn(&mut Limits)) -> Limits {
    let mut limits = Limits::default();
    change(&mut limits);
    limits
}

fn launch(text: &str, limits: &Limits, shared: u32) -> Result<Report> {
    let module = Module::parse_with(text, limits)?;
    // The launch checker would speak first of shared memory.
    let checks = Checks { launch: false, ..Checks::all() };
    let mut device =
        Device::new(Options { limits: limits.clone(), checks, max_steps: 3_000_000, ..Options::default() });
    let p = device.alloc_init(&[0; 4096], "x")?;
    let config = LaunchConfig { grid: [3, 1, 1], block: [32, 1, 1], shared_bytes: shared };
    device.launch(&module, "k", config, &[Arg::Ptr(p), Arg::Ptr(p)])
}

/// The limit that speaks, and what it says.
#[track_caller]
fn refused(text: &str, limits: &Limits, shared: u32) -> (&'static str, String) {
    match launch(text, limits, shared) {
        Err(e @ Error::Limit { name, .. }) => (name, e.to_string()),
        other => panic!("no limit spoke: {other:?}"),
    }
}

#[test]
fn every_limit_is_an_error_that_names_it_and_the_place() {
    let ok = kernel("", "mov.u32 %r1, 1;");
    let cases: [(&str, String, Limits, &str); 9] = [
        ("source_bytes", ok.clone(), limited(|l| l.source_bytes = 100), "bytes of PTX: "),
        ("nesting", kernel("", "{{{{{}}}}}"), limited(|l| l.nesting = 4), "line 10: braces"),
        (
            "instructions",
            kernel("", &"mov.u32 %r1, 1;\n".repeat(60)),
            limited(|l| l.instructions = 50),
            "kernel `k`",
        ),
        ("registers", ok.clone(), limited(|l| l.registers = 100), "line 6: virtual registers of kernel `k`"),
        (
            "variable_bytes",
            kernel(".global .b8 g[600];", ""),
            limited(|l| l.variable_bytes = 599),
            "line 4: bytes",
        ),
        (
            "shared_bytes",
            kernel("", ".shared .b8 s[600];"),
            limited(|l| l.shared_bytes = 599),
            "with `s`: 600 is",
        ),
        (
            "local_bytes",
            kernel("", ".local .b8 s[600];"),
            limited(|l| l.local_bytes = 599),
            "local memory a thread",
        ),
        ("ctas", ok.clone(), limited(|l| l.ctas = 2), "CTAs of a launch of kernel `k`: 3 is"),
        ("state_bytes", ok.clone(), limited(|l| l.state_bytes = 1000), "one CTA of kernel `k`"),
    ];
    for (name, text, limits, words) in cases {
        let (spoke, message) = refused(&text, &limits, 0);
        assert_eq!(spoke, name, "{message}");
        assert!(message.contains(words) && message.contains("of Limits"), "{name}: {message}");
        launch(&text, &Limits::default(), 0).unwrap_or_else(|e| panic!("{name} by default: {e}"));
    }
    let memory = limited(|l| l.memory_bytes = 4000);
    assert!(matches!(launch(&ok, &memory, 0), Err(Error::OutOfMemory { bytes: 4096, limit: 4000 })));
}

#[test]
fn shared_memory_beyond_the_limit_is_refused_even_when_no_one_checks_the_launch() {
    let e = launch(&kernel("", ""), &Limits::default(), 17 << 20).unwrap_err();
    assert!(matches!(e, Error::Launch { .. }), "{e}");
}

#[test]
fn copies_that_nobody_waits_for_do_not_pile_up() {
    let body =
        "mov.u32 %r1, dyn; L: cp.async.ca.shared.global [%r1], [%in], 4;\n cp.async.commit_group; bra L;";
    let text = kernel(".extern .shared .align 16 .b8 dyn[];", body);
    let (name, message) = refused(&text, &limited(|l| l.copies = 1000), 64);
    assert!(name == "copies" && message.contains("PTX line 10"), "{message}");
    // By default as well, long before the step limit.
    assert_eq!(refused(&text, &Limits::default(), 64).0, "copies");
}

#[test]
fn prints_beyond_the_limit_are_dropped_and_the_output_says_so() {
    let text = kernel(
        ".extern .func (.param .b32 r) vprintf(.param .b64 f, .param .b64 a);\n.global .b8 text[4] = {104, 105, 10, 0};",
        "mov.u32 %r1, 0;\n{ .param .b64 f; .param .b64 a; .param .b32 r;\n\
         mov.u64 %rd1, text; st.param.b64 [f], %rd1; mov.u64 %rd2, 0; st.param.b64 [a], %rd2;\n\
         L: call.uni (r), vprintf, (f, a); add.u32 %r1, %r1, 1; setp.lt.u32 %p1, %r1, 1000; @%p1 bra L; }",
    );
    let r = launch(&text, &limited(|l| l.output_bytes = 50), 0).unwrap();
    assert!(r.is_clean(), "{:?}", r.findings);
    assert!(
        r.output.starts_with("hi\nhi\n") && r.output.ends_with("`output_bytes` of Limits is 50]\n"),
        "{}",
        r.output
    );
    assert!(r.output.len() < 150, "{}", r.output.len());
}

#[test]
fn fewer_ctas_run_at_the_same_time_when_their_state_is_large() {
    // 256 KiB of local memory a thread: 16 CTAs of 512 threads would take 2 GiB and more.
    let text =
        kernel("", ".local .align 4 .b8 big[262144]; mov.u64 %rd1, big; st.local.u32 [%rd1+262140], %t;");
    let module = Module::parse(&text).unwrap();
    let limits = limited(|l| l.state_bytes = 200 << 20);
    let mut device = Device::new(Options { limits, ..Options::default() });
    let p = device.alloc_init(&[0; 4], "x").unwrap();
    let config = LaunchConfig { grid: [16, 1, 1], block: [512, 1, 1], shared_bytes: 0 };
    let r = device.launch(&module, "k", config, &[Arg::Ptr(p), Arg::Ptr(p)]).unwrap();
    assert!(r.is_clean(), "{:?}", r.findings);
}

#[test]
fn texts_that_ask_for_everything_are_refused_quickly() {
    let start = Instant::now();
    let entry = |body: &str| format!("{HEADER}.visible .entry k() {{\n{body}\nret; }}\n");
    for (text, name) in [
        (entry(&".reg .b32 %a<1048576>;\n".repeat(50_000)), "registers"),
        (entry(&format!("{}{}", "{".repeat(300_000), "}".repeat(300_000))), "nesting"),
        (entry(&".local .b8 x[100000];\n".repeat(50_000)), "local_bytes"),
        (entry(&".shared .b8 x[100000];\n".repeat(50_000)), "shared_bytes"),
        (format!("{}{}", entry(""), ".global .b8 x[1000000000];\n".repeat(50_000)), "variable_bytes"),
        (
            entry(&format!(
                ".reg .b32 %r<2>; mov.u32 %r1, 0;\nt: .branchtargets {};\n{}L: ",
                ["L"; 20_000].join(","),
                "brx.idx %r1, t;\n".repeat(20_000)
            )),
            "instructions",
        ),
    ] {
        match Module::parse(&text).and_then(|m| m.check()) {
            Err(Error::Limit { name: spoke, .. }) => assert_eq!(spoke, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    // About 0.2 s on one core; without the limits they take minutes or all memory.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}
