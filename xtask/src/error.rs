//! What can go wrong in a task, and the exit code it stands for.
//!
//! Every variant carries the values involved and says what to do next. Exit code 1 means that the work
//! was done and the answer is bad (a stale file, a failed test); 2 means bad input or a missing part.

use std::path::PathBuf;

/// Result of a task.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed task.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tool, file or network that the task needs is not there.
    #[error("{what}\n  remedy: {remedy}")]
    Missing {
        /// What is missing.
        what: String,
        /// How to get it.
        remedy: String,
    },
    /// An argument or a file that cannot be used as it is.
    #[error("{what}\n  remedy: {remedy}")]
    Input {
        /// What is wrong.
        what: String,
        /// What would be right.
        remedy: String,
    },
    /// The kernels are not as good as pinned; the table has been printed.
    #[error("{0}")]
    Worse(String),
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("cannot start `{program}`: {source}\n  remedy: install it, or see `cargo xtask doctor`")]
    Spawn {
        /// The program as called.
        program: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A program ended with a failure.
    #[error("`{command}` failed ({status})\n  remedy: {remedy}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What to try.
        remedy: String,
    },
    /// An installer (apt, pip, rustup) ended with a failure.
    #[error("`{command}` failed ({status})\n  remedy: {remedy}")]
    Install {
        /// The command line.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What to try.
        remedy: String,
    },
    /// A program of ours answered, and said why the answer is bad.
    #[error("the program ended with exit code {code}, see above")]
    Answered {
        /// Its exit code, which becomes ours.
        code: u8,
    },
    /// `psa demo` failed, after its own message.
    #[error("`psa demo` ended with exit code {code}")]
    Demo {
        /// Its exit code, which becomes ours.
        code: u8,
    },
    /// A downloaded file is not the pinned one.
    #[error(
        "{file} is not the pinned file and was not installed\n  sha256 expected: {expected}\n  sha256 found:    {found}\n  \
         remedy: run the command again; if it repeats, a proxy or mirror alters downloads, or {requirements} holds a wrong hash"
    )]
    HashMismatch {
        /// The downloaded file's name.
        file: String,
        /// The pinned hash, or hashes.
        expected: String,
        /// The hash of what arrived.
        found: String,
        /// The file with the pins.
        requirements: String,
    },
    /// A requirements file has a line that pins nothing.
    #[error(
        "{file}, line {line}: `{text}` is not `name==version --hash=sha256:<64 hex digits>`\n  remedy: restore the file from git"
    )]
    Requirement {
        /// The requirements file.
        file: String,
        /// Line number, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// A wheel cannot be read.
    #[error("cannot unpack {file}: {reason}\n  remedy: run the command again")]
    Archive {
        /// The wheel.
        file: String,
        /// Why.
        reason: String,
    },
    /// The committed PTX is not what the sources give.
    #[error("{0}\n  remedy: `cargo xtask build-ptx`, then commit kernels-gpu/ptx")]
    Stale(String),
    /// A generated source is not what its origin gives.
    #[error("{0}\n  remedy: `cargo xtask generate`, then commit the file")]
    StaleSource(String),
    /// The bindings look different from what `generate` reads.
    #[error("cannot read the bindings of cust_raw: {0}\n  remedy: adapt xtask/src/generate.rs to them")]
    Bindings(String),
    /// The PTX breaks a rule.
    #[error("{0}")]
    BadPtx(String),
    /// A built program would not run where it is meant to.
    #[error("{}: {reason}\n  remedy: build on an older Linux, or find what pulled the symbol in with `objdump -T`", file.display())]
    BadProgram {
        /// The program.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The bundle is too large.
    #[error(
        "the archive has {bytes} bytes, {limit} are allowed\n  remedy: look for what grew with `tar tvzf`"
    )]
    TooLarge {
        /// Its bytes.
        bytes: u64,
        /// Most bytes.
        limit: u64,
    },
    /// Tests failed; the summary has been printed.
    #[error("{failed} failed (see above)")]
    TestsFailed {
        /// How many.
        failed: u64,
    },
    /// A part that the default commands need is missing; the table has been printed.
    #[error("{0} needed for the default commands: see the remedy column")]
    Unhealthy(String),
}

impl Error {
    /// 1: done, and the answer is bad. 2: bad input or a missing part.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Demo { code } | Error::Answered { code } => *code,
            Error::Command { .. }
            | Error::HashMismatch { .. }
            | Error::Stale(_)
            | Error::StaleSource(_)
            | Error::Bindings(_)
            | Error::BadPtx(_)
            | Error::Worse(_)
            | Error::BadProgram { .. }
            | Error::TooLarge { .. }
            | Error::TestsFailed { .. }
            | Error::Unhealthy(_) => 1,
            Error::Missing { .. }
            | Error::Input { .. }
            | Error::Install { .. }
            | Error::Io { .. }
            | Error::Spawn { .. }
            | Error::Requirement { .. }
            | Error::Archive { .. } => 2,
        }
    }

    /// An [`Error::Io`] constructor for `map_err`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}
