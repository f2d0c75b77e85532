//! An L2 of a given size over the emulator's memory events: hits and misses of a kernel that walks a
//! matrix along its rows, or down its columns.
//!
//!     cargo run --release -p ptx-emulator --example cache
//!
//! The cache is a model of a cache (fully associative, least recently used), not of a GPU's.

use ptx_emulator::{Arg, Device, Hooks, LaunchConfig, MemoryEvent, Module, Options, Space};

struct Cache {
    capacity: usize,
    /// 128-byte lines, most recently used last.
    lines: Vec<u64>,
    hits: u64,
    misses: u64,
}

impl Hooks for Cache {
    fn memory(&mut self, e: &MemoryEvent<'_>) {
        if e.space != Space::Global {
            return;
        }
        for line in e.units(128) {
            match self.lines.iter().position(|&l| l == line) {
                Some(at) => {
                    self.hits += 1;
                    self.lines.remove(at);
                }
                None => {
                    self.misses += 1;
                    if self.lines.len() == self.capacity {
                        self.lines.remove(0);
                    }
                }
            }
            self.lines.push(line);
        }
    }
}

/// Thread t reads words `t * a + i * b` for i in 0..32.
const PTX: &str = ".version 7.8
.target sm_80
.address_size 64
.visible .entry walk(.param .u64 x, .param .u32 a, .param .u32 b) {
    .reg .b64 %rd<6>; .reg .b32 %r<9>; .reg .pred %p<2>;
    ld.param.u64 %rd1, [x];
    ld.param.u32 %r1, [a];
    ld.param.u32 %r2, [b];
    mov.u32 %r3, %tid.x;
    mul.lo.u32 %r4, %r3, %r1;
    mov.u32 %r5, 0;
L:  mul.wide.u32 %rd2, %r4, 4;
    add.s64 %rd3, %rd1, %rd2;
    ld.global.u32 %r6, [%rd3];
    add.u32 %r4, %r4, %r2;
    add.u32 %r5, %r5, 1;
    setp.lt.u32 %p1, %r5, 32;
    @%p1 bra L;
    ret;
}";

fn main() -> ptx_emulator::Result<()> {
    let module = Module::parse(PTX)?;
    let mut device = Device::new(Options::default());
    let x = device.alloc_init(&[0; 4 * 128 * 32], "x")?;
    let config = LaunchConfig { grid: [1, 1, 1], block: [128, 1, 1], shared_bytes: 0 };
    for (name, a, b) in [("neighbouring threads, neighbouring words", 1, 128), ("a row a thread", 32, 1)] {
        let mut cache = Cache { capacity: 16, lines: Vec::new(), hits: 0, misses: 0 };
        let args = [Arg::Ptr(x), Arg::U32(a), Arg::U32(b)];
        device.launch_with(&module, "walk", config, &args, &mut cache)?;
        println!("{name}: {} line accesses, {} misses", cache.hits + cache.misses, cache.misses);
    }
    Ok(())
}
