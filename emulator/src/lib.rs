//! Runs PTX on a CPU, exactly, and checks it while it runs.
//!
//! A [`Module`] is parsed PTX; a [`Device`] owns memory and launches kernels; a [`Report`] has what the
//! checkers found and what was counted. Nothing here knows about any particular kernel.
//!
//! ```
//! use ptx_emulator::{Arg, Device, LaunchConfig, Module, Options};
//!
//! let ptx = "
//! .version 7.8
//! .target sm_80
//! .address_size 64
//! .visible .entry twice(.param .u64 x, .param .u32 n) {
//!     .reg .b32 %r<5>; .reg .b64 %rd<4>; .reg .pred %p<2>;
//!     ld.param.u64 %rd1, [x];
//!     ld.param.u32 %r1, [n];
//!     mov.u32 %r2, %tid.x;
//!     setp.ge.u32 %p1, %r2, %r1;
//!     @%p1 ret;
//!     mul.wide.u32 %rd2, %r2, 4;
//!     add.s64 %rd3, %rd1, %rd2;
//!     ld.global.f32 %r3, [%rd3];
//!     add.rn.f32 %r4, %r3, %r3;
//!     st.global.f32 [%rd3], %r4;
//!     ret;
//! }";
//! let module = Module::parse(ptx)?;
//! let mut device = Device::new(Options::default());
//! let data: Vec<u8> = [1.5f32, 2.5].iter().flat_map(|v| v.to_le_bytes()).collect();
//! let x = device.alloc_init(&data, "x")?;
//! let config = LaunchConfig { grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 0 };
//!
//! let report = device.launch(&module, "twice", config, &[Arg::Ptr(x), Arg::U32(2)])?;
//! assert!(report.is_clean());
//! let mut out = [0; 8];
//! device.copy_from(x, &mut out)?;
//! assert_eq!(out[..4], 3.0f32.to_le_bytes());
//!
//! // With a wrong bound the same kernel is caught, and says where.
//! let report = device.launch(&module, "twice", config, &[Arg::Ptr(x), Arg::U32(3)])?;
//! assert_eq!(report.findings[0].kind, "out of bounds");
//! assert_eq!(report.findings[0].line, 14);
//! # Ok::<(), ptx_emulator::Error>(())
//! ```
//!
//! Approximate instructions are the double-precision function rounded to single; sums inside one
//! `mma` are taken in double precision. Everything else is what IEEE 754 and the PTX ISA say.

// Loops over lanes index several arrays by the lane number: that is what they mean.
#![allow(clippy::needless_range_loop)]

mod counters;
mod decode;
mod device;
mod error;
mod exec;
mod expr;
mod hooks;
mod inst;
mod launch;
mod lexer;
mod limits;
mod lint;
mod memory;
mod module;
mod num;
mod profile;
mod report;
mod testing;
mod types;

pub use counters::Counters;
pub use device::{Arg, Checks, Device, DevicePtr, LaunchConfig, Options};
pub use error::{Error, Result};
pub use hooks::{AccessKind, Hooks, InstructionEvent, MemoryEvent};
pub use launch::{ArgSpec, Disk, Files, LaunchError, LaunchFile, parse_checks, read_launch, run_file};
pub use limits::Limits;
pub use lint::Lint;
pub use module::{Kernel, Module, Param};
pub use profile::{Hint, LineProfile, Profile, SourceProfile};
pub use report::{BufferTraffic, Class, Finding, Place, Report, Side};
pub use testing::{Buffer, Case, Dims, Number, describe};
pub use types::{Rnd, Space, Ty};

/// The examples of the README are compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
