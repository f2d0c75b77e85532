//! What can go wrong, with the values in it and what to do about it.

/// Errors of the crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file cannot be read.
    #[error(
        "cannot read {file}: {source}; `cargo xtask setup --for model` fetches one, or name another with --model"
    )]
    Read {
        /// Path.
        file: String,
        /// Reason.
        source: std::io::Error,
    },
    /// The file is no GGUF, or damaged.
    #[error("{file} is no usable GGUF file: {reason}; fetch it again, it may be truncated")]
    Damaged {
        /// Path.
        file: String,
        /// What the parser says.
        reason: String,
    },
    /// The file is sound, but holds what this crate does not compute.
    #[error("{file} is not supported: {what}; supported: {supported}")]
    Unsupported {
        /// Path.
        file: String,
        /// The value.
        what: String,
        /// What would do.
        supported: &'static str,
    },
    /// The tokenizer cannot be made, or refused a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// Nothing to attend to.
    #[error("the prompt is empty; give it at least one token")]
    EmptyPrompt,
    /// A token that the vocabulary has not.
    #[error("token {token} is not in the vocabulary of {vocabulary} (0 to {})", .vocabulary - 1)]
    UnknownToken {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// More tokens than the model was trained for.
    #[error(
        "{tokens} tokens are more than the model's context of {context}; shorten the prompt, or ask for fewer tokens"
    )]
    TooLong {
        /// Tokens there would be.
        tokens: usize,
        /// Context of the model.
        context: usize,
    },
    /// A number that is not finite came out for a sequence. Others are not concerned.
    #[error(
        "sequence {entry} of the batch computed a number that is not finite in layer {layer}; remove it, the others go on"
    )]
    Poisoned {
        /// Its place in the batch.
        entry: usize,
        /// Where it was seen first; one past the last layer: in the logits.
        layer: usize,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// Attention failed.
    #[error(transparent)]
    Psa(#[from] psa::Error),
}
