//! Errors of the commands, all of which end with exit code 2.

use psa::eval::EvalError;
use psa::residency::AccessError;
use psa::traces::TraceError;

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The traces cannot be used.
    #[error(transparent)]
    Traces(#[from] TraceError),
    /// Recorded reads cannot be used.
    #[error(transparent)]
    Accesses(#[from] AccessError),
    /// A replay failed.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// A device that this version or machine has not.
    #[error("--backend {backend}: {reason}")]
    Backend {
        /// As on the command line.
        backend: &'static str,
        /// Why not, and what to use instead.
        reason: String,
    },
    /// A results file cannot be used.
    #[error("{file}: {reason}; name a results.json of the GPU bundle, or records of `psa-gpu time --json`")]
    Results {
        /// Path.
        file: String,
        /// Why not.
        reason: String,
    },
    /// Nothing to divide.
    #[error(
        "{case} is the only case and has one query: nothing is left to compare on; use --split none, or more \
         cases or queries"
    )]
    Halves {
        /// Case.
        case: String,
    },
    /// A context that does not fit the memory.
    #[error(
        "contexts of {tokens} tokens take about {needed} bytes to make and compare, and {available} are there; use fewer \
         tokens with --lengths, or one case with --case"
    )]
    Memory {
        /// Tokens.
        tokens: usize,
        /// Bytes.
        needed: usize,
        /// Bytes.
        available: usize,
    },
    /// The picture cannot be written.
    #[error("cannot write {file}: {source}; name another file with --out")]
    Picture {
        /// Path.
        file: String,
        /// Reason.
        source: std::io::Error,
    },
    /// A file of telemetry or audits cannot be written.
    #[error("cannot write {file}: {source}; name another file with {option}")]
    Unwritable {
        /// Path.
        file: String,
        /// The option that named it.
        option: &'static str,
        /// Reason.
        source: std::io::Error,
    },
    /// A name that says no format.
    #[error(
        "--telemetry {file}: the name says no format; end it in .jsonl or .prom, or add --telemetry-format \
         jsonl|prometheus"
    )]
    TelemetryFormat {
        /// Path.
        file: String,
    },
    /// A value that the library refuses.
    #[error(transparent)]
    Psa(#[from] psa::Error),
    /// stdout cannot be written.
    #[error("cannot write to stdout: {0}")]
    Output(#[from] std::io::Error),
    /// A record cannot be written as JSON.
    #[error("cannot write a record as JSON: {0}")]
    Json(#[from] serde_json::Error),
}
