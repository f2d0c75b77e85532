//! The kernel DSL's host half: what is known about a kernel, how a launch is put together, and what
//! happens to its PTX between the compiler and the repository.
//!
//! `#[kernel]` (from `cuda_std`) generates code against [`descriptor`] and [`launch`]. The build of the
//! kernels' PTX goes raw text -> [`finish()`] -> [`lint()`] -> [`Manifest`]. Nothing here knows attention,
//! a driver or an emulator.

pub mod descriptor;
pub mod launch;

pub use descriptor::{KernelDescriptor, NoSuchInstance, Param, ParamType, SpecType};
pub use launch::{ArgValue, DevicePtr, DevicePtrMut, KernelArg, Launch};
