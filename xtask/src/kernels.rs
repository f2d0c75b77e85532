//! `mutate` and `seeds`: long checks of the shipped kernels on the emulator.
//!
//! The programs live in the crate of the cross-crate tests, because they need the host crate and the emulator,
//! on which this crate does not depend. Built in the release profile: they run thousands of launches.

use std::process::Command;

use crate::error::{Error, Result};
use crate::process;
use crate::workspace::Workspace;

/// Builds and runs `program` of the tests crate; its exit code is the answer.
pub fn run(workspace: &Workspace, program: &str, arguments: &[String]) -> Result<()> {
    eprintln!("==> building {program} (release)");
    let package = ["--release", "--locked", "-p", "psa-tests", "--bin", program];
    let mut build = process::cargo();
    build.current_dir(workspace.root()).arg("build").args(package);
    process::run(&mut build, "fix the errors above; `cargo xtask doctor` shows what is missing")?;
    let mut command = process::cargo();
    command.current_dir(workspace.root()).args(["run", "--quiet"]).args(package).arg("--").args(arguments);
    answer(&mut command)
}

/// Runs a program whose exit code is the answer.
pub fn answer(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|source| process::spawn_error(command, source))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Answered { code: status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1) })
}
