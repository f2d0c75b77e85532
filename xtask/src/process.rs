//! Starting programs: checked exit codes, captured or streamed output, and an environment without the
//! outer cargo's settings.
//!
//! Trap: `cargo xtask` runs inside cargo and rustup, which export RUSTUP_TOOLCHAIN, CARGO_MANIFEST_DIR and
//! an LD_LIBRARY_PATH with their own libraries; users add RUSTFLAGS and wrappers. A device build that
//! inherits any of these builds something else.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// The cargo that runs us, else the one on the PATH.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The command line for messages.
pub fn show(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

/// Runs to the end with stdout sent to our stderr, so that a task's stdout holds only its answer.
pub fn run(command: &mut Command, remedy: &str) -> Result<()> {
    if let Ok(stderr) = std::io::stderr().as_fd().try_clone_to_owned() {
        command.stdout(Stdio::from(stderr));
    }
    let status = command.status().map_err(|source| spawn_error(command, source))?;
    check(command, status, remedy)
}

/// As [`run`], for an installer: its failure means that a part is missing, not that an answer is bad.
pub fn install(command: &mut Command, remedy: &str) -> Result<()> {
    run(command, remedy).map_err(as_install)
}

/// Turns the failure of a program into that of an installer.
pub fn as_install(error: Error) -> Error {
    match error {
        Error::Command { command, status, remedy } => Error::Install { command, status, remedy },
        other => other,
    }
}

/// Runs to the end, shows stderr as it comes and returns it as well, whatever the exit status.
pub fn run_keeping_stderr(command: &mut Command) -> Result<(std::process::ExitStatus, String)> {
    if let Ok(stderr) = std::io::stderr().as_fd().try_clone_to_owned() {
        command.stdout(Stdio::from(stderr));
    }
    command.stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| spawn_error(command, source))?;
    let mut kept = String::new();
    if let Some(pipe) = child.stderr.take() {
        for line in BufReader::new(pipe).lines().map_while(std::io::Result::ok) {
            eprintln!("{line}");
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    let status = child.wait().map_err(|source| spawn_error(command, source))?;
    Ok((status, kept))
}

/// Runs to the end, copies its stdout to `out` line by line and shows each line to `see`.
pub fn stream(
    command: &mut Command,
    out: &mut dyn Write,
    mut see: impl FnMut(&str),
) -> Result<std::process::ExitStatus> {
    command.stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|source| spawn_error(command, source))?;
    if let Some(pipe) = child.stdout.take() {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        // Bytes, not `lines()`: a test may print anything, and a line that is not UTF-8 must not end the copy.
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            // A closed output (`| head`) is no reason to stop the tests: the count goes on.
            let _ = out.write_all(&line).and_then(|()| out.flush());
            see(&String::from_utf8_lossy(&line));
            line.clear();
        }
    }
    child.wait().map_err(|source| spawn_error(command, source))
}

/// Stdout of a program that is expected to succeed; `None` if it is absent or fails.
pub fn answer<S: AsRef<OsStr>>(program: S, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Turns a bad exit status into an error.
pub fn check(command: &Command, status: std::process::ExitStatus, remedy: &str) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    Err(Error::Command { command: show(command), status, remedy: remedy.to_owned() })
}

/// An error for a program that could not be started.
pub fn spawn_error(command: &Command, source: std::io::Error) -> Error {
    Error::Spawn { program: command.get_program().to_string_lossy().into_owned(), source }
}

/// Whether `program` is on the PATH.
pub fn on_path(program: &str) -> Option<std::path::PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Removes from `command` what an outer cargo, rustup or user profile would impose on a build.
/// What says how to reach the registry stays.
pub fn forget_outer_cargo(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if let Some(name) = name.to_str()
            && leaks(name)
        {
            command.env_remove(name);
        }
    }
    // Empty means none, and outranks a wrapper of the user's config file.
    command.env("RUSTC_WRAPPER", "").env("RUSTC_WORKSPACE_WRAPPER", "");
}

fn leaks(name: &str) -> bool {
    const KEPT: [&str; 8] = [
        "CARGO_HOME",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
        "CARGO_RESOLVER_",
        "CARGO_BUILD_JOBS",
    ];
    if KEPT.iter().any(|kept| name.starts_with(kept)) {
        return false;
    }
    name == "CARGO"
        || name.starts_with("CARGO_")
        || name == "RUSTC"
        || name.starts_with("RUSTC_")
        || name.starts_with("RUSTDOC")
        || name == "RUSTFLAGS"
        || name == "RUSTUP_TOOLCHAIN"
        || name == "LD_LIBRARY_PATH"
        || name == "__CARGO_DEFAULT_LIB_METADATA"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_settings_leak_and_registry_settings_do_not() {
        for name in [
            "RUSTC",
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "RUSTC_WRAPPER",
            "CARGO_TARGET_DIR",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_TARGET_NVPTX64_NVIDIA_CUDA_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "LD_LIBRARY_PATH",
        ] {
            assert!(leaks(name), "{name} must not reach the device build");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "CARGO_REGISTRIES_X_INDEX",
            "HTTPS_PROXY",
            "PATH",
            "RUSTUP_HOME",
        ] {
            assert!(!leaks(name), "{name} must reach the device build");
        }
    }

    #[test]
    fn a_forgotten_variable_is_absent_in_the_child() {
        let mut command = Command::new("env");
        command.env("CARGO_UNRELATED", "1");
        forget_outer_cargo(&mut command);
        let output = command.output().expect("env runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // Cargo exports CARGO_MANIFEST_DIR to every test.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        assert!(!text.contains("CARGO_MANIFEST_DIR="), "{text}");
        assert!(text.contains("RUSTC_WRAPPER=\n"), "{text}");
    }
}
