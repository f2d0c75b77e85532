//! Device standard library: the API of rust-cuda's `cuda_std` on the stock NVPTX back end.
//!
//! [`thread`], [`warp`], [`atomic`], [`float`], [`half`], [`misc`], [`mem`] and [`ptr`] follow rust-cuda's names and
//! signatures; [`shared`] and [`ptx`] add what decode kernels need and it lacks: 32-bit shared pointers,
//! `cp.async`, `ldmatrix`, `mma`, cache-hinted loads, packed half conversions.
//!
//! The crate builds for both sides. On `nvptx64` it is `no_std` and brings the panic handler (a trap);
//! on the host every device function exists with its signature and panics when called, and what is
//! pure ([`half`], [`float::GpuFloat`]) works. Nothing on the device depends on another crate.
//!
//! Minimum everywhere, unless an item says more: sm_80, PTX ISA 7.8. `conformance/` runs every helper on the
//! emulator and compares it with values computed independently.
//!
//! # Against rust-cuda
//! Same names and signatures, with these exceptions. Vectors of indices are arrays. `shared_array!` gives a
//! [`shared::SharedPtr`] (`.as_generic()` is the raw pointer of old). `profiler_counter` takes its event as a
//! const. Matches of floats compare bits; atomic orderings and scopes are what they say. Not there: `print!` and
//! the rest of `io`, the device heap, `float_ext` and libdevice `intrinsics`, `#[address_space]`,
//! `#[externally_visible]`, trigonometry.
//!
//! # A kernel
//! ```text
//! #![cfg_attr(target_arch = "nvptx64", no_std, feature(abi_ptx, asm_experimental_arch))]
//! use cuda_std::prelude::*;
//!
//! /// out[i] = x[i] * factor
//! #[kernel(block = 128, instances(T in [bf16, f16]))]
//! pub unsafe fn scale<T: Element>(x: *const T, factor: f32, out: *mut T, n: u32) {
//!     let i = thread::index_1d();
//!     if i < n {
//!         unsafe { *out.add(i as usize) = T::from_f32((*x.add(i as usize)).to_f32() * factor) }
//!     }
//! }
//! ```
//! On the host, `scale::launch::<bf16>([n.div_ceil(128), 1, 1], scale::Args { x, factor, out, n })?` is the launch.

#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(abi_unadjusted, asm_experimental_arch, core_float_math, link_llvm_intrinsics)
)]
#![cfg_attr(target_arch = "nvptx64", allow(internal_features))]

// `#[gpu_only]` and `shared_array!` name this crate by its public name.
extern crate self as cuda_std;

pub mod atomic;
pub mod float;
pub mod half;
#[cfg(target_arch = "nvptx64")]
mod intrinsics;
pub mod mem;
pub mod misc;
pub mod pipeline;
pub mod prelude;
pub mod ptr;
pub mod ptx;
pub mod shared;
pub mod thread;
pub mod tile;
pub mod warp;

pub use psa_codegen_macros::{gpu_only, kernel, shared_array};

pub use float::{GpuFloat, GpuFloatExp};

/// A panic on the device traps: the launch fails, and the host sees the error at its next call.
#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    misc::trap()
}

/// Marks the entry it is inlined into with its launch bounds; `#[kernel]` calls it, kernels do not.
///
/// rustc has no attribute for launch bounds, so they travel as a comment through inline asm, and
/// `psa_codegen::finish` moves them to where PTX wants them: `.reqntid X, Y, Z`, and unless they are 0
/// `.minnctapersm MIN_BLOCKS` and `.maxnreg MAX_REGISTERS`.
#[cfg(target_arch = "nvptx64")]
#[doc(hidden)]
#[inline(always)]
pub fn launch_bounds<
    const X: u32,
    const Y: u32,
    const Z: u32,
    const MIN_BLOCKS: u32,
    const MAX_REGISTERS: u32,
>() {
    const { assert!(X > 0 && Y > 0 && Z > 0 && X * Y * Z <= 1024, "a block has 1 to 1024 threads") };
    // SAFETY: a comment.
    unsafe {
        core::arch::asm!(
            "//@launch_bounds reqntid={x},{y},{z} minnctapersm={min} maxnreg={regs}",
            x = const X,
            y = const Y,
            z = const Z,
            min = const MIN_BLOCKS,
            regs = const MAX_REGISTERS,
            options(nomem, nostack, preserves_flags),
        );
    }
}
