//! Runs PTX on a CPU and checks it while it runs.
mod decode;
mod device;
mod error;
mod exec;
mod inst;
mod launch;
mod lexer;
mod memory;
mod module;
mod num;
mod report;
mod types;

pub use device::{Arg, Checks, Device, DevicePtr, LaunchConfig, Options};
pub use error::{Error, Result};
pub use launch::{ArgSpec, LaunchError, LaunchFile, parse_checks, run_file};
pub use module::{Kernel, Module, Param};
pub use report::{Class, Counters, Finding, Place, Report};
pub use types::{Rnd, Space, Ty};
