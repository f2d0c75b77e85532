//! What stops the program: a missing device, bad input, an unwritable file. What a device computes wrongly is
//! no error but a finding, with exit code 1.

use psa::driver::DriverError;

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such device here.
    #[error("--backend {backend}: {reason}")]
    Backend {
        /// As on the command line.
        backend: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// The device failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The toolkit refused.
    #[error(transparent)]
    Toolkit(#[from] psa::Error),
    /// The PTX lacks a kernel, or a launch breaks its contract.
    #[error("{0}")]
    Kernel(#[from] psa_codegen::LaunchError),
    /// The traces cannot be read.
    #[error("{0}; name the file with --traces")]
    Traces(#[from] psa::traces::TraceError),
    /// The traces do not suit.
    #[error("{file}: {reason}; name another file with --traces")]
    UnsuitableTraces {
        /// Path.
        file: String,
        /// What is wrong with them.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {file}: {source}")]
    Io {
        /// The verb.
        action: &'static str,
        /// Path.
        file: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{file}, line {line}: {reason}")]
    Format {
        /// Path.
        file: String,
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

impl Error {
    /// An [`Error::Io`] constructor for `map_err`.
    pub fn io(action: &'static str, file: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let file = file.display().to_string();
        move |source| Error::Io { action, file, source }
    }
}
