//! `demo`: builds the command line program and shows the main job.
//!
//! Needs nothing beyond cargo: the PTX is committed and the CPU is enough.

use crate::error::{Error, Result};
use crate::process;
use crate::workspace::Workspace;

/// Runs `psa demo` with `arguments` in the release profile.
pub fn demo(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    eprintln!("==> building psa (release)");
    let mut build = process::cargo();
    build.current_dir(workspace.root()).args(["build", "--release", "--locked", "-p", "psa"]);
    process::run(&mut build, "fix the errors above; `cargo xtask doctor` shows what is missing")?;
    let mut demo = process::cargo();
    // In the caller's folder: paths in the arguments are the caller's.
    demo.args(["run", "--quiet", "--release", "--locked", "--manifest-path"])
        .arg(workspace.root().join("Cargo.toml"))
        .args(["-p", "psa", "--bin", "psa", "--", "demo"])
        .args(arguments);
    let status = demo.status().map_err(|source| process::spawn_error(&demo, source))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Demo { code: status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1) })
}
