//! The commands that run a language model are a program of their own, `psa-model`, beside this one: so that the library
//! and this program need neither a tokenizer nor a reader of model files.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Args;

/// What is passed on.
#[derive(Args)]
pub struct Forwarded {
    /// Passed on; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

/// Becomes `psa-model name arguments`; its exit code is ours.
pub fn run(name: &str, forwarded: &Forwarded) -> ExitCode {
    let program = beside();
    let mut command = Command::new(&program);
    command.arg(name).args(&forwarded.arguments);
    let error = become_it(&mut command);
    match error {
        Ok(code) => code,
        Err(error) => {
            let remedy =
                "build it with `cargo build --release -p psa-model`, in the profile that psa was built in";
            eprintln!("error: psa {name} is run by {}: {error}; {remedy}", program.display());
            ExitCode::from(2)
        }
    }
}

fn beside() -> PathBuf {
    let name = format!("psa-model{}", std::env::consts::EXE_SUFFIX);
    std::env::current_exe().map_or_else(|_| PathBuf::from(&name), |path| path.with_file_name(&name))
}

#[cfg(unix)]
fn become_it(command: &mut Command) -> Result<ExitCode, std::io::Error> {
    use std::os::unix::process::CommandExt;
    Err(command.exec())
}

#[cfg(not(unix))]
fn become_it(command: &mut Command) -> Result<ExitCode, std::io::Error> {
    let code = command.status()?.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
