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

/// Formats of matrix elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Elem {
    F16,
    BF16,
    Tf32,
    E4m3,
    E5m2,
    F64,
    S8,
    U8,
}

/// Matrix shapes and types. Register lists: d, a, b, c. `tall` has 16 rows, else 8.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum MmaKind {
    /// m16n8k16 or k8, f16 or bf16; `f32` accumulator, or f16 when false.
    Half { fmt: Hf, k: u8, acc_f32: bool },
    /// m16n8k4 or k8 of tf32, m16n8k16 or k32 of fp8 in either format.
    Single { a: Elem, b: Elem, k: u8, acc_f32: bool },
    /// f64: m8n8k4, or 16 rows with k 4, 8 or 16.
    Double { k: u8, tall: bool },
    /// Bytes or half bytes (`bits` 8 or 4), each side signed or not, saturating or not.
    Int { k: u8, bits: u8, tall: bool, a_signed: bool, b_signed: bool, sat: bool },
    /// Bits: k 128 or 256.
    Bit { k: u16, tall: bool, xor: bool },
    /// m8n8k4 of f16, four products at a time.
    Quad { a_row: bool, b_row: bool, d_f32: bool, c_f32: bool },
}

impl MmaKind {
    /// Rows and depth of one product (of all four for [`MmaKind::Quad`]).
    pub fn shape(self) -> (usize, usize) {
        let rows = |tall| if tall { 16 } else { 8 };
        match self {
            MmaKind::Half { k, .. } | MmaKind::Single { k, .. } => (16, usize::from(k)),
            MmaKind::Double { k, tall } | MmaKind::Int { k, tall, .. } => (rows(tall), usize::from(k)),
            MmaKind::Bit { k, tall, .. } => (rows(tall), usize::from(k)),
            MmaKind::Quad { .. } => (32, 4),
        }
    }

    /// Registers a lane has of d, a, b and c.
    pub fn registers(self) -> [usize; 4] {
        let (m, k) = self.shape();
        // Bits of an element, and of a register.
        let (bits, register) = match self {
            MmaKind::Quad { d_f32, c_f32, .. } => {
                let n = |f32s| if f32s { 8 } else { 4 };
                return [n(d_f32), 2, 2, n(c_f32)];
            }
            MmaKind::Half { .. } => (16, 32),
            MmaKind::Single { a: Elem::Tf32, .. } => (32, 32),
            MmaKind::Single { .. } => (8, 32),
            MmaKind::Double { .. } => (64, 64),
            MmaKind::Int { bits, .. } => (usize::from(bits), 32),
            MmaKind::Bit { .. } => (1, 32),
        };
        let of = |rows: usize| rows * k * bits / (32 * register);
        let sums = match self {
            MmaKind::Half { acc_f32: false, .. } | MmaKind::Single { acc_f32: false, .. } => 2,
            _ => m / 4,
        };
        [sums, of(m), of(8), sums]
    }
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

/// A wmma product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Product {
    /// Format of a and b.
    pub elem: Elem,
    /// Rows, columns, depth.
    pub shape: (u8, u8, u8),
    /// a by rows.
    pub a_row: bool,
    /// b by rows.
    pub b_row: bool,
    /// Whole numbers saturate.
    pub sat: bool,
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
