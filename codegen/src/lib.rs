//! The kernel DSL's host half: what is known about a kernel, how a launch is put together, and what
//! happens to its PTX between the compiler and the repository.
//!
//! `#[kernel]` (from `cuda_std`) generates code against [`descriptor`] and [`launch`]. The build of the
//! kernels' PTX goes raw text -> [`finish()`] -> [`lint()`] -> [`Manifest`]. Nothing here knows attention,
//! a driver or an emulator.

pub mod descriptor;
pub mod finish;
pub mod launch;
pub mod lint;
pub mod manifest;
mod text;

pub use descriptor::{KernelDescriptor, NoSuchInstance, Param, ParamType, SpecType};
pub use finish::{FinishError, finish};
pub use launch::{ArgValue, DevicePtr, DevicePtrMut, KernelArg, Launch};
pub use lint::{Finding, LintOptions, Rule, lint};
pub use manifest::{Manifest, ManifestError};
