//! The kernel DSL's host half: what is known about a kernel, how a launch is put together, and what
//! happens to its PTX between the compiler and the repository.
//!
//! `#[kernel]` (from `cuda_std`) generates code against [`descriptor`], [`buffer`], [`contract`], [`family`] and
//! [`launch`]. The build of the
//! kernels' PTX goes raw text -> [`finish()`] -> [`lint()`] -> [`Manifest`]. Nothing here knows attention,
//! a driver or an emulator.

pub mod buffer;
pub mod contract;
pub mod descriptor;
pub mod expression;
pub mod family;
pub mod finish;
pub mod launch;
pub mod limits;
pub mod lint;
pub mod manifest;
mod text;

pub use buffer::{BufferElement, Extent, In, InOut, KernelArg, Out, Region};
pub use contract::ContractError;
pub use descriptor::{
    Access, Contract, GridRule, KernelDescriptor, Line, NoSuchInstance, Param, ParamType, SpecType,
};
pub use expression::{Binary, Compare, Leaf, Op, Relation};
pub use family::{
    Choice, Family, Hint, Infeasible, Kernel, KernelArgs, Prefer, Request, Selected, Violation, Why,
};
pub use finish::{FinishError, finish};
pub use launch::{ArgValue, Arguments, Launch, LaunchError, RawLaunch};
pub use limits::DeviceLimits;
pub use lint::{Finding, LintOptions, Rule, lint};
pub use manifest::{Manifest, ManifestError};
