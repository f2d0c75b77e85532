//! Lane-wise operations: integer, float, half precision, conversions and comparisons.
//!
//! Everything here takes registers and gives one register (or one predicate); `num` evaluates it.

use crate::types::{Rnd, Ty};

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
    /// Pairs of 16 bits.
    Add16x2,
    /// Pairs of 16 bits: max, signed, negative results become zero.
    MinMax16x2(bool, bool, bool),
    /// Signed 32 bits, negative results become zero: `true` is max.
    MinMaxRelu(bool),
    Mad24HiSat,
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
    /// Two f32 (high first) to a packed pair; `true` is .satfinite.
    CvtPack(Hf, Fm, bool),
    /// Two f32 (high first) to an fp8 pair: e4m3, relu.
    CvtPackFp8(bool, bool),
    /// A pair of f16 to an fp8 pair: e4m3, relu.
    CvtHalvesFp8(bool, bool),
    /// Two s32 saturated to integers of so many bits, signed or not, above the low bits of a third.
    CvtPackInt(u8, bool),
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
    /// Over the full range of the divisor.
    DivFull,
}

/// Half-precision operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum HOp {
    Add,
    Sub,
    Mul,
    Fma,
    MinMax { max: bool, nan: bool, xorsign: bool },
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
    /// Overflow gives the largest finite value.
    pub finite: bool,
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
