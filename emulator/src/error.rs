//! What can go wrong before or outside a run: bad text, instructions out of scope, bad host calls.
//!
//! Faults *of the kernel* are not errors: they are findings in the [`Report`](crate::Report).

/// Why a module could not be loaded, or a call on a device could not be made.
#[derive(thiserror::Error, Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// The text is not PTX as far as this crate reads it.
    #[error("line {line}: {message}")]
    Parse {
        /// Line of the PTX text, from 1.
        line: u32,
        /// What was expected or found.
        message: String,
    },
    /// An instruction, modifier or directive outside the scope of the emulator.
    #[error("line {line}: `{instruction}` is outside the scope of this emulator: {reason}")]
    Unsupported {
        /// Line of the PTX text, from 1.
        line: u32,
        /// The opcode as written.
        instruction: String,
        /// Which part is not known.
        reason: String,
    },
    /// No entry of that name in the module.
    #[error("no kernel named `{name}` in the module; it has: {available}")]
    UnknownKernel {
        /// The name asked for.
        name: String,
        /// The entries there are, separated by commas.
        available: String,
    },
    /// No variable of that name in the module.
    #[error("no .global or .const variable named `{name}` in the module")]
    UnknownSymbol {
        /// The name asked for.
        name: String,
    },
    /// An external function or variable that nothing here defines.
    #[error("line {line}: `{name}` is declared but not defined, and is no function of the device runtime")]
    Unresolved {
        /// Line of the use.
        line: u32,
        /// The symbol.
        name: String,
    },
    /// A host copy, memset or free with a pointer that is not inside a live allocation.
    #[error("{call}: {bytes} bytes at {address:#x}: {problem}")]
    HostAccess {
        /// The call made.
        call: &'static str,
        /// Device address.
        address: u64,
        /// Length asked for.
        bytes: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The launch cannot be made at all (with the launch checker off; with it on this is a finding).
    #[error("kernel `{kernel}`: {problem}")]
    Launch {
        /// Kernel name.
        kernel: String,
        /// What does not fit, with both values.
        problem: String,
    },
    /// The kernel touched memory that does not exist while the memory checker was off.
    #[error(
        "kernel `{kernel}`, PTX line {line}: illegal address {address:#x} (the mem checker, which would say more, is off)"
    )]
    IllegalAddress {
        /// Kernel name.
        kernel: String,
        /// PTX line.
        line: u32,
        /// The address.
        address: u64,
    },
    /// More memory than a device may have.
    #[error("an allocation of {bytes} bytes is beyond the limit of {limit} bytes (`memory_bytes` of Limits)")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// More than [`Limits`](crate::Limits) allows.
    #[error("{what}: {value} is beyond the limit of {limit} (`{name}` of Limits)")]
    Limit {
        /// The field of `Limits`.
        name: &'static str,
        /// What there is too much of, with its place.
        what: String,
        /// How much was asked for.
        value: u64,
        /// The limit.
        limit: u64,
    },
}

impl Error {
    pub(crate) fn parse(line: u32, message: impl Into<String>) -> Error {
        Error::Parse { line, message: message.into() }
    }
    pub(crate) fn unsupported(line: u32, instruction: &str, reason: impl Into<String>) -> Error {
        Error::Unsupported { line, instruction: instruction.to_string(), reason: reason.into() }
    }
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
