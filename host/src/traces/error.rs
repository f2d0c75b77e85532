//! What can be wrong with a traces file. Every variant says where, what was found, and what to do.

/// Why a traces file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("cannot read traces {file}: {source}; give a psa-traces-v1 safetensors file with --traces")]
    Read {
        /// Path.
        file: String,
        /// Reason.
        source: std::io::Error,
    },
    /// The JSON beside it cannot be read.
    #[error(
        "cannot read {file}: {source}; the scale and origin of {traces} stand in a JSON file of the same \
         name beside it: copy it too, or make both with psa record --from {traces} --to FILE"
    )]
    Description {
        /// Path of the JSON.
        file: String,
        /// Path of the tensors.
        traces: String,
        /// Reason.
        source: std::io::Error,
    },
    /// The safetensors container is broken.
    #[error(
        "{file} is not a valid safetensors file: {source}; it may be cut off or not fetched (Git LFS): \
         copy it again"
    )]
    Container {
        /// Path.
        file: String,
        /// Reason.
        source: safetensors::SafeTensorError,
    },
    /// The JSON does not parse, or a field is missing or of another type.
    #[error("{file} is not the JSON of a {} file: {source}", super::FORMAT)]
    Json {
        /// Path of the JSON.
        file: String,
        /// Reason, with line and column.
        source: serde_json::Error,
    },
    /// Another format.
    #[error(
        "{file}: format is {found:?}, this program reads {:?}; convert the file or use the program that \
         wrote it",
        super::FORMAT
    )]
    Format {
        /// Path of the JSON.
        file: String,
        /// What it says.
        found: String,
    },
    /// No softmax scale in the JSON.
    #[error("{file}: no \"scale\" (or \"softmax_scale\"); add it, usually 1/sqrt(head_dim)")]
    NoScale {
        /// Path of the JSON.
        file: String,
    },
    /// A softmax scale that cannot be meant.
    #[error(
        "{file}: softmax scale {found} is outside {:e} to {}; it multiplies q.k and is usually \
         1/sqrt(head_dim)",
        super::SCALES.start(),
        super::SCALES.end()
    )]
    Scale {
        /// Path of the JSON.
        file: String,
        /// What it says.
        found: f64,
    },
    /// A tensor whose name is not `caseI.part`.
    #[error(
        "{file}: unknown tensor {tensor:?}; tensors are called caseI.q, .k, .v, .out and .lse, with I a \
         number"
    )]
    UnknownTensor {
        /// Path.
        file: String,
        /// Its name.
        tensor: String,
    },
    /// No case at all.
    #[error("{file} holds no case; it needs at least case0.q, .k, .v, .out and .lse")]
    NoCases {
        /// Path.
        file: String,
    },
    /// A part of a case is missing.
    #[error(
        "{file}: tensor {tensor} is missing; a case needs q, k, v, out and lse: from q, k and v alone psa record --from \
         {file} --to FILE makes a whole one"
    )]
    MissingTensor {
        /// Path.
        file: String,
        /// Its name.
        tensor: String,
    },
    /// Wrong element type.
    #[error(
        "{file}: tensor {tensor} has element type {found}, expected {expected}; convert it (psa record --from makes traces \
         of q, k and v in F16, BF16, F32 or F64)"
    )]
    Dtype {
        /// Path.
        file: String,
        /// Its name.
        tensor: String,
        /// Type in the file.
        found: String,
        /// Types that are accepted.
        expected: &'static str,
    },
    /// Wrong number of dimensions, an empty dimension, or a shape that does not fit the other tensors.
    #[error("{file}: tensor {tensor} has shape {found:?}, expected {expected}")]
    Shape {
        /// Path.
        file: String,
        /// Its name.
        tensor: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// The shape that fits, with the reason.
        expected: String,
    },
    /// More queries than tokens.
    #[error(
        "{file}: {case} has {queries} queries but only {context} keys; query i stands at position \
         context - queries + i, so there must be at least as many keys"
    )]
    FewerKeysThanQueries {
        /// Path.
        file: String,
        /// Case.
        case: String,
        /// Queries.
        queries: usize,
        /// Keys.
        context: usize,
    },
    /// A size that the kernels do not have.
    #[error("{file}: {case} has {what} {found}; supported: {supported}")]
    Unsupported {
        /// Path.
        file: String,
        /// Case.
        case: String,
        /// Which size.
        what: &'static str,
        /// Its value.
        found: usize,
        /// What there is.
        supported: String,
    },
    /// NaN or an infinity.
    #[error(
        "{file}: tensor {tensor} holds {value} at {index:?}; attention over it means nothing: record it \
         again"
    )]
    NonFinite {
        /// Path.
        file: String,
        /// Its name.
        tensor: String,
        /// Index in each dimension.
        index: Vec<usize>,
        /// The value.
        value: f32,
    },
    /// A dump cannot be read.
    #[error("cannot read {file}: {source}; name a safetensors file with q, k and v with --from")]
    ReadDump {
        /// Path.
        file: String,
        /// Reason.
        source: std::io::Error,
    },
    /// A q/k/v dump that cannot be understood.
    #[error(
        "{file}: {what}; a dump holds q, k and v of each attention call, [heads, tokens, head_dim], in names \
         such as q, layers.3.q or layer_3_query"
    )]
    Dump {
        /// Path.
        file: String,
        /// What is wrong.
        what: String,
    },
    /// A context that cannot be made longer.
    #[error(
        "{case} has {context} tokens and cannot be made to have {tokens}: recordings of at least {shortest} tokens can be \
         made longer, all can be cut; use a length in between (--lengths of psa lengths, --tokens of psa record)"
    )]
    Extend {
        /// Case.
        case: String,
        /// Tokens recorded.
        context: usize,
        /// Tokens asked for.
        tokens: usize,
        /// Shortest recording that can be extended.
        shortest: usize,
    },
    /// `--case` names nothing.
    #[error("no case is called {name:?}; there are: {known}")]
    NoSuchCase {
        /// What was asked for.
        name: String,
        /// The cases there are.
        known: String,
    },
    /// Writing failed.
    #[error("cannot write {file}: {reason}")]
    Write {
        /// Path.
        file: String,
        /// Reason.
        reason: String,
    },
}
