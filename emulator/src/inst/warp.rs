//! Modes of the warp-wide operations, and shapes and types of the matrix products.

use super::Hf;

/// shfl modes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

/// vote modes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

/// Matrix shapes and types. Register lists: d, a, b, c.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum MmaKind {
    /// m16n8k16 or k8 (the `u8`), f16 or bf16; `f32` accumulator, or f16 when false.
    Half { fmt: Hf, k: u8, acc_f32: bool },
    /// m16n8k4 or k8 tf32.
    Tf32 { k: u8 },
    /// m16n8k16 or k32 of bytes, k32 or k64 of half bytes (`bits` 8 or 4), each side signed or not,
    /// saturating or not.
    Int { k: u8, bits: u8, a_signed: bool, b_signed: bool, sat: bool },
    /// m8n8k4 f64.
    F64,
}

/// Matrices of a wmma product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Part {
    A,
    B,
    /// The accumulator, read as c or written as d.
    Acc,
}

/// A wmma fragment and its layout in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frag {
    /// Which matrix.
    pub part: Part,
    /// Its rows.
    pub rows: u8,
    /// Its columns.
    pub cols: u8,
    /// By rows in memory.
    pub row: bool,
    /// Registers a lane has of it.
    pub n: u8,
    /// Bytes of an element.
    pub bytes: u8,
}

/// Reductions of `bar.red` and `redux.sync`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Red {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Popc,
}
