//! `libcuda.so.1` on the emulator: programs for NVIDIA's driver API run without a GPU, and every launch is
//! checked.
//!
//! One device, whose kernels must be PTX. Everything happens when it is called: streams are in order by
//! nature, events are done when recorded, and nothing is timed (`cuEventElapsedTime` says that it is not
//! supported). A finding of a checker is an error of the launch, in words on stderr; a fault of a kernel
//! (stray access, deadlock, trap) destroys the context for good, as on a GPU.
//!
//! `PTX_EMULATOR_CUDA` has settings: `sm=90 checks=none seed=7 log=1` ([`settings`]). Memory shows as `cuMemAlloc
//! #N` in findings, N counting allocations from 0.
//!
//! Trap: what is not in [`api`] is not in the library. Loaders that resolve on demand go a long way with that;
//! a program that needs a missing function fails to start, and says which.

pub mod api;
mod code;
mod handles;
mod launch;
mod link;
mod memory;
mod module;
mod settings;
mod state;

pub use code::Code;
