//! Runs one instruction, or a whole kernel, from PTX text.
#![allow(dead_code)]

pub mod bench;
pub mod halves;

use ptx_emulator::{Arg, Device, DevicePtr, LaunchConfig, Module, Options, Report};

pub const HEADER: &str = ".version 7.8\n.target sm_80\n.address_size 64\n";

/// One thread runs `code`; `%rd1..`, `%r1..`, `%h1..` hold the inputs in three widths, the result is
/// whatever register of number 0 the code names (`%rd0`, `%r0`, `%h0` or `%p0`).
pub fn one(code: &str, inputs: &[u64]) -> u64 {
    let mut text = format!(
        "{HEADER}.visible .entry k(.param .u64 in, .param .u64 out) {{\n\
         .reg .b64 %rd<9>; .reg .b32 %r<9>; .reg .b16 %h<9>; .reg .pred %p<9>; .reg .b64 %in; .reg .b64 %out; .reg .b64 %res;\n\
         ld.param.u64 %in, [in]; ld.param.u64 %out, [out];\n"
    );
    for i in 1..=inputs.len() {
        text += &format!(
            "ld.global.u64 %rd{i}, [%in+{}]; cvt.u32.u64 %r{i}, %rd{i}; cvt.u16.u64 %h{i}, %rd{i}; setp.ne.u64 %p{i}, %rd{i}, 0;\n",
            8 * (i - 1)
        );
    }
    text += code;
    text += "\n";
    text += if code.contains("%rd0") {
        "mov.b64 %res, %rd0;"
    } else if code.contains("%r0") {
        "cvt.u64.u32 %res, %r0;"
    } else if code.contains("%h0") {
        "cvt.u64.u16 %res, %h0;"
    } else {
        "selp.u64 %res, 1, 0, %p0;"
    };
    text += "\nst.global.u64 [%out], %res; ret; }\n";
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let mut device = Device::new(Options::default());
    let data: Vec<u8> = inputs.iter().flat_map(|v| v.to_le_bytes()).collect();
    let a = device.alloc_init(if data.is_empty() { &[0; 8] } else { &data }, "in").unwrap();
    let b = device.alloc(8, "out").unwrap();
    let config = LaunchConfig { grid: [1, 1, 1], block: [1, 1, 1], shared_bytes: 0 };
    let report = device
        .launch(&module, "k", config, &[Arg::Ptr(a), Arg::Ptr(b)])
        .unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert!(report.is_clean(), "{code}: {:?}", report.findings);
    let mut out = [0; 8];
    device.copy_from(b, &mut out).unwrap();
    u64::from_le_bytes(out)
}

/// A kernel with one buffer of words in and one out, to be filled by `body`; `%in` and `%out` are
/// their addresses, `%tid`, `%r<40>`, `%rd<40>`, `%h<20>`, `%p<20>`, `%f<20>` are declared.
pub fn kernel(extra: &str, body: &str) -> String {
    format!(
        "{HEADER}{extra}\n.visible .entry k(.param .u64 in, .param .u64 out) {{\n\
         .reg .b64 %rd<40>; .reg .b32 %r<40>; .reg .b16 %h<20>; .reg .pred %p<20>; .reg .f32 %f<20>;\n\
         .reg .b64 %in; .reg .b64 %out; .reg .b32 %t; .reg .b64 %my; .reg .b64 %i4;\n\
         ld.param.u64 %in, [in]; ld.param.u64 %out, [out];\n\
         mov.u32 %t, %tid.x; mul.wide.u32 %i4, %t, 4; add.u64 %my, %out, %i4;\n\
         {body}\nret;\n}}\n"
    )
}

/// What a run gave.
pub struct Ran {
    pub report: Report,
    pub out: Vec<u32>,
}

/// All of a report but the time it took.
pub fn said(r: &Report) -> String {
    format!(
        "{:?} {:?} {} {:?} {:?} {:?}",
        r.findings, r.counters, r.completed, r.output, r.profile, r.buffers
    )
}

/// Runs `k` of `text` over `input`, with `words` words of output (never written before), on one
/// thread and on three: memory and report must be the same.
pub fn run_with(text: &str, options: Options, config: LaunchConfig, input: &[u32], words: usize) -> Ran {
    let serial = run_on(text, Options { threads: 1, ..options.clone() }, config, input, words);
    let spread = run_on(text, Options { threads: 3, ..options }, config, input, words);
    assert_eq!(said(&serial.report), said(&spread.report), "report of 1 and of 3 threads\n{text}");
    assert_eq!(serial.out, spread.out, "memory after 1 and after 3 threads\n{text}");
    spread
}

/// `run_with` on the threads that the options say.
pub fn run_on(text: &str, options: Options, config: LaunchConfig, input: &[u32], words: usize) -> Ran {
    let module = Module::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let mut device = Device::new(options);
    let data: Vec<u8> = input.iter().flat_map(|v| v.to_le_bytes()).collect();
    let a = device.alloc_init(&data, "in").unwrap();
    let b = device.alloc(4 * words as u64, "out").unwrap();
    let report = device
        .launch(&module, "k", config, &[Arg::Ptr(a), Arg::Ptr(b)])
        .unwrap_or_else(|e| panic!("{e}\n{text}"));
    Ran { report, out: words_at(&device, b, words) }
}

/// `run_with` in one CTA with default options.
pub fn run(text: &str, threads: u32, shared: u32, input: &[u32], words: usize) -> Ran {
    let config = LaunchConfig { grid: [1, 1, 1], block: [threads, 1, 1], shared_bytes: shared };
    run_with(text, Options::default(), config, input, words)
}

pub fn words_at(device: &Device, at: DevicePtr, words: usize) -> Vec<u32> {
    let mut out = vec![0; 4 * words];
    device.copy_from(at, &mut out).unwrap();
    out.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
}
