//! What the fuzz targets do with their bytes, as plain functions: libFuzzer calls them, and so do the
//! bounded runs of `tests/robust.rs`, which include this file.
//!
//! None of them may panic, hang or take more memory than [`limits`] allows, whatever the bytes.

use ptx_emulator::{
    Arg, Device, Files, Hooks, InstructionEvent, LaunchConfig, LaunchFile, Limits, MemoryEvent, Module,
    Options, Profile,
};
use std::io::{Error, Result};
use std::path::Path;

/// Limits under which a case takes milliseconds.
pub fn limits() -> Limits {
    Limits {
        source_bytes: 1 << 20,
        registers: 1 << 12,
        instructions: 1 << 16,
        variable_bytes: 1 << 20,
        shared_bytes: 256 << 10,
        local_bytes: 16 << 10,
        memory_bytes: 16 << 20,
        state_bytes: 64 << 20,
        copies: 1 << 12,
        output_bytes: 1 << 16,
        ..Limits::default()
    }
}

/// Warp instructions a case may take.
const STEPS: u64 = 20_000;

/// Reads and decodes a module, and asks everything that can be asked of it.
pub fn parse(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(module) = Module::parse_with(text, &limits()) else { return };
    let _ = module.check();
    for k in module.kernels() {
        let _ = (module.static_shared_bytes(&k.name), module.opcodes(&k.name), module.line(k.line));
    }
    let _ = module.lint();
}

/// Watches, so that the events are exercised as well.
#[derive(Default)]
struct Watch(u64);

impl Hooks for Watch {
    fn instruction(&mut self, e: &InstructionEvent<'_>) {
        self.0 += u64::from(e.lanes.count_ones());
    }
    fn memory(&mut self, e: &MemoryEvent<'_>) {
        assert!(e.lanes != 0 && !e.units(32).is_empty());
    }
}

/// Runs every kernel of a module over small buffers; returns how many executed
/// something, with or without findings. The schedule follows from the text.
pub fn run(data: &[u8]) -> usize {
    let Ok(text) = std::str::from_utf8(data) else { return 0 };
    let Ok(module) = Module::parse_with(text, &limits()) else { return 0 };
    let mut ran = 0;
    for k in module.kernels() {
        let profile = data.len().is_multiple_of(2);
        let options = Options {
            max_steps: STEPS,
            seed: data.len() as u64 % 3,
            profile,
            limits: limits(),
            ..Options::default()
        };
        let mut device = Device::new(options);
        let Ok(p) = device.alloc_init(&[1; 4096], "buffer") else { continue };
        let args: Vec<Arg> = k
            .params
            .iter()
            .map(|q| if q.size == 8 { Arg::Ptr(p) } else { Arg::Bytes(vec![3; q.size as usize]) })
            .collect();
        let block = k.reqntid.filter(|b| b.iter().product::<u32>() <= 256).unwrap_or([64, 1, 1]);
        let config = LaunchConfig { grid: [2, 1, 1], block, shared_bytes: 1024 };
        let mut watch = Watch::default();
        let Ok(report) = device.launch_with(&module, &k.name, config, &args, &mut watch) else { continue };
        assert_eq!(watch.0, report.counters.lane_instructions);
        let view = Profile::new(text, &report);
        let _ = (view.text(5), view.html(5), view.svg(5));
        for f in &report.findings {
            let _ = f.to_string();
        }
        ran += usize::from(report.counters.warp_instructions > 0);
    }
    ran
}

/// Files of a launch in memory: any name is a PTX file or 256 bytes.
struct Memory;

const KERNEL: &str = ".version 7.8\n.target sm_80\n.address_size 64\n\
    .visible .entry k(.param .u64 x, .param .u32 n) {\n\
    .reg .b64 %rd<3>; .reg .b32 %r<3>; .reg .pred %p<2>;\n\
    ld.param.u64 %rd1, [x]; ld.param.u32 %r1, [n];\n\
    mov.u32 %r2, %tid.x; setp.ge.u32 %p1, %r2, %r1; @%p1 ret;\n\
    mul.wide.u32 %rd2, %r2, 4; add.u64 %rd1, %rd1, %rd2; st.global.u32 [%rd1], %r2; ret; }\n";

impl Files for Memory {
    fn read(&mut self, path: &Path, most: u64) -> Result<Vec<u8>> {
        let data = if path.extension().is_some_and(|e| e == "ptx") { KERNEL.as_bytes() } else { &[7; 256] };
        if data.len() as u64 > most { Err(Error::other("too long")) } else { Ok(data.to_vec()) }
    }
    fn can_write(&mut self, _: &Path) -> Result<()> {
        Ok(())
    }
    fn write(&mut self, _: &Path, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// Reads a LAUNCH.json and runs it over files in memory; true when it ran and was clean.
pub fn launch(data: &[u8]) -> bool {
    let Ok(file) = LaunchFile::from_json(data) else { return false };
    let options = Options { max_steps: STEPS, limits: limits(), ..Options::default() };
    file.run(&mut Memory, None, options).is_ok_and(|r| r.is_clean())
}
