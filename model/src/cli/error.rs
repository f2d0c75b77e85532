//! Errors of the commands, all of which end with exit code 2.

use psa_model::ModelError;

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The model cannot be used, or refused.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A value that the library refuses.
    #[error(transparent)]
    Psa(#[from] psa::Error),
    /// No file was named, and none is installed.
    #[error(
        "no model is installed: `cargo xtask setup --for model` fetches SmolLM2-135M-Instruct (93 MB); or name a GGUF \
         file with --model or PSA_MODEL"
    )]
    NoModel,
    /// A text cannot be read.
    #[error("cannot read {file}: {source}")]
    Text {
        /// Path.
        file: String,
        /// Reason.
        source: std::io::Error,
    },
    /// A text is too short for what was asked.
    #[error("{file} has {tokens} tokens, {needed} are needed; use a longer text or a smaller {option}")]
    TooShort {
        /// Path.
        file: String,
        /// Tokens it has.
        tokens: usize,
        /// Tokens that are needed.
        needed: usize,
        /// Option that can be lowered.
        option: &'static str,
    },
    /// Options that do not go together.
    #[error("{0}")]
    Options(String),
    /// A file cannot be written.
    #[error("cannot write {file}: {source}; free space or name another file with {option}")]
    Unwritable {
        /// Path.
        file: String,
        /// The option that named it.
        option: &'static str,
        /// Reason.
        source: std::io::Error,
    },
    /// The file is no results file.
    #[error("{file}, line {line} is no record of this command: {reason}; name another file with --results")]
    Results {
        /// Path.
        file: String,
        /// Line.
        line: usize,
        /// Why not.
        reason: String,
    },
    /// Ctrl-C cannot be caught.
    #[error("cannot catch Ctrl-C: {0}")]
    Signal(#[from] ctrlc::Error),
    /// stdout cannot be written.
    #[error("cannot write to stdout: {0}")]
    Output(#[from] std::io::Error),
    /// A record cannot be written as JSON.
    #[error("cannot write a record as JSON: {0}")]
    Json(#[from] serde_json::Error),
}
