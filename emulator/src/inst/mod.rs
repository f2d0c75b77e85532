//! Decoded instructions: what the execution loop reads.
//!
//! Registers, immediates, special registers and addresses of variables all are *slots* of the
//! warp's register file, so every operand is one index. A slot is 32 lanes of 32 bits; a 64-bit
//! register takes two neighbouring slots. Predicates live in a file of their own, one mask each.

mod alu;
mod memory;
mod program;
mod warp;

pub use alu::*;
pub use memory::*;
pub use program::*;
pub use warp::*;

use crate::types::{Space, Ty};

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
        ftz: bool,
        p: P,
        q: P,
        a: R,
        b: R,
        bop: Bop,
        c: P,
        cneg: bool,
    },
    /// Two comparisons, one per half; true is one in floats, all ones in integers.
    SetX2 {
        cmp: Cmp,
        fmt: Hf,
        float: bool,
        ftz: bool,
        d: R,
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
    /// Goes to the place of the function whose address is in `target`: pairs of function and place
    /// in the tables.
    CallIndirect {
        target: R,
        first: u32,
        n: u32,
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
        /// The upper half.
        hi: bool,
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
    /// wmma.mma, with the numbers of registers of d, a, b, c.
    WmmaMma {
        product: Product,
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
