//! Decoded instructions: what the execution loop reads.
//!
//! Registers, immediates, special registers and addresses of variables all are *slots* of the
//! warp's register file, so every operand is one index. A slot is 32 lanes of 32 bits; a 64-bit
//! register takes two neighbouring slots. Predicates live in a file of their own, one mask each.

use crate::types::{Rnd, Space, Ty};

/// A register: slot index, and bit 31 set when it is 64 bits wide.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct R(pub u32);

impl R {
    /// No register (an unused operand, or the sink `_`).
    pub const NONE: R = R(0x7fff_ffff);
    /// A register at `slot`.
    pub fn new(slot: u32, wide: bool) -> R {
        R(slot | (u32::from(wide) << 31))
    }
    /// Slot index.
    #[inline(always)]
    pub fn slot(self) -> usize {
        (self.0 & 0x7fff_ffff) as usize
    }
    /// 64 bits wide.
    #[inline(always)]
    pub fn wide(self) -> bool {
        self.0 >> 31 != 0
    }
    /// Not [`R::NONE`].
    #[inline(always)]
    pub fn some(self) -> bool {
        self != R::NONE
    }
}

/// A predicate register's index.
pub type P = u32;
/// No predicate.
pub const NO_P: P = u32::MAX;
/// Predicate that is false, and one that is true, in every program.
pub const P_FALSE: P = 0;
/// See [`P_FALSE`].
pub const P_TRUE: P = 1;

/// Float attributes of an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fm {
    /// Rounding.
    pub rnd: Rnd,
    /// Subnormals become zero, on the way in and out.
    pub ftz: bool,
    /// Clamp to [0, 1].
    pub sat: bool,
    /// Negative results and NaN become zero (`.relu`).
    pub relu: bool,
}

/// Half-precision formats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hf {
    /// IEEE binary16.
    F16,
    /// bfloat16.
    BF16,
}

/// Lane-wise operations with register operands and one register result. `u8` payloads are widths in
/// bits, `bool` says signed.
#[derive(Clone, Copy, PartialEq, Debug)]
#[allow(missing_docs)]
pub enum Alu {
    Mov(u8),
    Add(u8),
    Sub(u8),
    AddSat,
    SubSat,
    MulLo(u8),
    MulHi(u8, bool),
    MulWide(u8, bool),
    MadLo(u8),
    MadHi(u8, bool),
    MadHiSat,
    MadWide(u8, bool),
    Mul24(bool, bool),
    Mad24(bool, bool),
    Sad(u8, bool),
    Div(u8, bool),
    Rem(u8, bool),
    Abs(u8),
    Neg(u8),
    Min(u8, bool),
    Max(u8, bool),
    /// Signed 16-bit pairs: `true` is max.
    MinMax16x2(bool, bool),
    Popc(u8),
    Clz(u8),
    Bfind(u8, bool, bool),
    Brev(u8),
    Bfe(u8, bool),
    Bfi(u8),
    Fns,
    Dp4a(bool, bool),
    Dp2a(bool, bool, bool),
    And(u8),
    Or(u8),
    Xor(u8),
    Not(u8),
    Cnot(u8),
    Shl(u8),
    Shr(u8, bool),
    ShfL(bool),
    ShfR(bool),
    Lop3(u8),
    Prmt(u8),
    Szext(bool, bool),
    Bmsk(bool),
    SlctS32(u8),
    SlctF32(u8, bool),
    FAdd(Fm),
    FSub(Fm),
    FMul(Fm),
    FFma(Fm),
    FDiv(Fm),
    FRcp(Fm),
    FSqrt(Fm),
    FApprox(Approx, bool),
    FMin {
        nan: bool,
        ftz: bool,
        xorsign: bool,
    },
    FMax {
        nan: bool,
        ftz: bool,
        xorsign: bool,
    },
    FAbs(bool),
    FNeg(bool),
    FCopysign,
    DAdd(Rnd),
    DSub(Rnd),
    DMul(Rnd),
    DFma(Rnd),
    DDiv(Rnd),
    DRcp(Rnd),
    DSqrt(Rnd),
    /// `true` is .ftz, which has the upper half of the bits only.
    DRsqrtApprox(bool),
    DRcpApprox,
    DMin,
    DMax,
    DAbs,
    DNeg,
    DCopysign,
    H(HOp, Hf, bool, Fm),
    Cvt(Cvt),
    /// Two f32 (high first) to a packed pair.
    CvtPack(Hf, Fm),
    /// Two f32 (high first) to an fp8 pair; `true` is e4m3.
    CvtPackFp8(bool, bool),
}

/// Approximate single-precision functions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Approx {
    Rcp,
    Sqrt,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
    Div,
}

/// Half-precision operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum HOp {
    Add,
    Sub,
    Mul,
    Fma,
    Min,
    Max,
    MinNan,
    MaxNan,
    Neg,
    Abs,
    Ex2,
    Tanh,
}

/// A conversion; `dbits` is the width of the destination register, which may exceed the type's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Cvt {
    pub to: Ty,
    pub from: Ty,
    pub rnd: Rnd,
    /// An `i` rounding: float to float of the same size rounds to an integral value.
    pub integral: bool,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
    pub dbits: u8,
}

/// Comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// How a comparison is combined with a predicate, and how predicates combine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Bop {
    And,
    Or,
    Xor,
}

/// A load or store, without its registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// State space written in the opcode.
    pub space: Space,
    /// Bytes of one element: 1, 2, 4, 8.
    pub bytes: u8,
    /// Elements: 1, 2, 4, 8.
    pub n: u8,
    /// Sign-extend into wider registers.
    pub signed: bool,
    /// Volatile, relaxed, acquire or release.
    pub strong: bool,
    /// Acquires by itself.
    pub acquire: bool,
    /// Releases by itself.
    pub release: bool,
    /// Of CTA scope.
    pub near: bool,
    /// Address register, or [`R::NONE`].
    pub base: R,
    /// Added to the address.
    pub offset: i64,
}

/// Atomic operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

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

/// Operations on an mbarrier object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Mbar {
    Init,
    Inval,
    Arrive {
        drop: bool,
        no_complete: bool,
    },
    /// test_wait and try_wait, for a state or a parity.
    Wait {
        parity: bool,
    },
    Pending,
    /// Arrival of the copies of a lane; `counted` (.noinc) as one of those expected.
    CopyArrive {
        counted: bool,
    },
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

/// An operation.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Op {
    Nop,
    Alu {
        alu: Alu,
        d: R,
        s: [R; 4],
    },
    /// Adds or subtracts with carry; `inn`/`out` say whether the flag is read and written.
    Carry {
        sub: bool,
        inn: bool,
        out: bool,
        bits: u8,
        d: R,
        a: R,
        b: R,
        cc: P,
    },
    /// mad with carry: `hi` takes the upper half of the product.
    MadCarry {
        hi: bool,
        signed: bool,
        inn: bool,
        out: bool,
        bits: u8,
        d: R,
        a: R,
        b: R,
        c: R,
        cc: P,
    },
    Setp {
        cmp: Cmp,
        ty: Ty,
        ftz: bool,
        p: P,
        q: P,
        a: R,
        b: R,
        bop: Bop,
        c: P,
        cneg: bool,
    },
    /// Two comparisons, one per half.
    SetpX2 {
        cmp: Cmp,
        fmt: Hf,
        p: P,
        q: P,
        a: R,
        b: R,
        bop: Bop,
        c: P,
        cneg: bool,
    },
    Set {
        cmp: Cmp,
        dty: Ty,
        ty: Ty,
        ftz: bool,
        d: R,
        a: R,
        b: R,
        bop: Bop,
        c: P,
        cneg: bool,
    },
    Testp {
        what: u8,
        ty: Ty,
        p: P,
        a: R,
    },
    Selp {
        bits: u8,
        d: R,
        a: R,
        b: R,
        p: P,
        pneg: bool,
    },
    PLogic {
        bop: Bop,
        d: P,
        a: P,
        aneg: bool,
        b: P,
        bneg: bool,
    },
    /// Packs `n` registers of `bits` into one (low first), or takes them apart.
    Pack {
        bits: u8,
        n: u8,
        d: R,
        s: [R; 4],
    },
    Unpack {
        bits: u8,
        n: u8,
        d: [R; 4],
        s: R,
    },
    Ld {
        m: Access,
        d: [R; 4],
        more: u32,
    },
    St {
        m: Access,
        s: [R; 4],
        more: u32,
    },
    Atom {
        m: Access,
        op: AtomOp,
        ty: Ty,
        ftz: bool,
        d: R,
        a: R,
        b: R,
    },
    CpAsync {
        dst: R,
        doff: i64,
        src: R,
        soff: i64,
        bytes: u8,
        src_bytes: R,
        /// Lanes whose source is ignored, and whether that is negated.
        ignore: (P, bool),
    },
    CpCommit,
    CpWait {
        pending: u32,
    },
    /// Converts an address between a space and generic.
    Cvta {
        to_space: bool,
        space: Space,
        bits: u8,
        d: R,
        a: R,
    },
    Isspacep {
        space: Space,
        p: P,
        a: R,
    },
    Bra {
        target: u32,
    },
    /// Indirect branch over a table of targets.
    Brx {
        index: R,
        first: u32,
        n: u32,
    },
    /// Call: copies argument bytes between local areas, remembers where to return.
    Call {
        target: u32,
        ret: R,
        first_copy: u32,
        copies: u32,
    },
    /// Return of a function: per lane, to the place kept in the register.
    RetFn {
        ret: R,
    },
    Exit,
    Trap,
    /// CTA barrier. `red` with its predicate and result.
    Bar {
        aligned: bool,
        arrive: bool,
        id: R,
        count: R,
        red: Option<Red>,
        p: P,
        pneg: bool,
        d: R,
        dp: P,
    },
    WarpSync {
        mask: R,
    },
    Shfl {
        mode: ShflMode,
        d: R,
        p: P,
        a: R,
        b: R,
        c: R,
        mask: R,
    },
    Vote {
        mode: VoteMode,
        d: R,
        p: P,
        a: P,
        aneg: bool,
        mask: R,
    },
    Match {
        all: bool,
        d: R,
        p: P,
        a: R,
        mask: R,
    },
    Redux {
        op: Red,
        signed: bool,
        d: R,
        a: R,
        mask: R,
    },
    Elect {
        d: R,
        p: P,
        mask: R,
    },
    Activemask {
        d: R,
    },
    Clock {
        d: R,
    },
    Nanosleep,
    Fence {
        /// Of CTA scope.
        near: bool,
    },
    /// `regs` in the register pool, `n` of them; rows from shared memory.
    Ldmatrix {
        n: u8,
        trans: bool,
        regs: u32,
        base: R,
        offset: i64,
        generic: bool,
    },
    Stmatrix {
        n: u8,
        trans: bool,
        regs: u32,
        base: R,
        offset: i64,
        generic: bool,
    },
    Movmatrix {
        d: R,
        a: R,
    },
    Mma {
        kind: MmaKind,
        regs: u32,
    },
    /// wmma.load and wmma.store; `address` and `value` are scratch registers.
    WmmaMove {
        load: bool,
        m: Access,
        frag: Frag,
        stride: R,
        regs: u32,
        address: R,
        value: R,
    },
    /// wmma.mma: rows and columns of the result, registers of d, a, b, c.
    WmmaMma {
        fmt: Hf,
        shape: (u8, u8),
        a_row: bool,
        b_row: bool,
        n: [u8; 4],
        regs: u32,
    },
    /// mbarrier: `d` the state, `p` the result of a wait, `a` a count, state or parity.
    Mbar {
        what: Mbar,
        base: R,
        offset: i64,
        generic: bool,
        d: R,
        p: P,
        a: R,
    },
    /// Prints of the device runtime: format pointer and argument pointer (in the local area).
    Vprintf {
        args: u32,
        ret: u32,
    },
}

/// One instruction.
#[derive(Clone, Debug)]
pub struct Inst {
    /// What it does.
    pub op: Op,
    /// Predicate that guards it, [`NO_P`] for none; bit 30 set negates.
    pub guard: P,
}

/// Set in [`Inst::guard`] when the guard is negated.
pub const GUARD_NEG: u32 = 1 << 30;

/// Where an instruction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Place {
    /// PTX line.
    pub line: u32,
    /// `.loc` file number, 0 for none.
    pub file: u32,
    /// `.loc` line.
    pub source: u32,
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
