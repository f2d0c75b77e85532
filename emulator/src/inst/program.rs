//! A decoded kernel: instructions, their places, and what the slots hold at the start.

use super::{Inst, R};

/// Where an instruction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Place {
    /// PTX line.
    pub line: u32,
    /// `.loc` file number, 0 for none.
    pub file: u32,
    /// `.loc` line.
    pub source: u32,
    /// File number and line of the call when the code was inlined, else 0.
    pub call: (u32, u32),
}

/// What a constant slot holds before the first instruction.
#[derive(Clone, Debug, PartialEq)]
pub enum Const {
    /// The same value in every lane.
    Value(u64),
    /// Address of a module variable, plus an offset.
    Symbol(usize, i64),
    /// A special register.
    Special(Special),
}

/// Special registers whose value is fixed for the life of a warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Laneid,
    Warpid,
    Nwarpid,
    Smid,
    Nsmid,
    Gridid,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    DynamicSmemSize,
    TotalSmemSize,
}

/// A copy of argument or result bytes between two local areas of the same lane.
#[derive(Clone, Copy, Debug)]
pub struct ArgCopy {
    /// From, in the local area.
    pub from: u32,
    /// To, in the local area.
    pub to: u32,
    /// Bytes.
    pub bytes: u32,
}

/// A decoded kernel with all the functions it calls.
#[derive(Debug)]
pub struct Program {
    /// Name of the kernel.
    pub name: String,
    /// Instructions of the kernel, then of the functions.
    pub insts: Vec<Inst>,
    /// Place of each instruction.
    pub places: Vec<Place>,
    /// Register lists of matrix instructions and wide vectors.
    pub pool: Vec<R>,
    /// Branch tables.
    pub tables: Vec<u32>,
    /// Argument copies of calls.
    pub copies: Vec<ArgCopy>,
    /// Slots of the register file.
    pub slots: u32,
    /// Predicates.
    pub preds: u32,
    /// Initial values.
    pub consts: Vec<(R, Const)>,
    /// Shared memory declared, in bytes; the dynamic part begins at `dynamic_at`.
    pub shared_bytes: u32,
    /// Offset of the dynamic part.
    pub dynamic_at: u32,
    /// Names, offsets and sizes of what is in shared memory.
    pub shared_vars: Vec<(String, u32, u32)>,
    /// Bytes of local memory a lane.
    pub local_bytes: u32,
    /// Opcodes written, with counts.
    pub opcodes: Vec<(String, u32)>,
}
