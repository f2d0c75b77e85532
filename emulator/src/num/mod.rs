//! The meaning of every lane-wise instruction, as plain functions on bit patterns.
//!
//! [`eval`] is the reference: one lane, operands and result as `u64` (unused upper bits are ignored
//! on the way in and zero on the way out). The execution loop has faster paths for frequent cases.

pub(crate) mod cvt;
pub(crate) mod float;
pub(crate) mod half;
pub(crate) mod int;
pub(crate) mod round;

use crate::inst::Alu;

/// One lane of a lane-wise operation.
#[inline]
pub(crate) fn eval(alu: Alu, s: [u64; 4]) -> u64 {
    match alu {
        Alu::H(op, fmt, packed, fm) => half::eval(op, fmt, packed, fm, s),
        Alu::Cvt(c) => cvt::eval(c, s[0]),
        Alu::CvtPack(fmt, fm, finite) => cvt::pack(fmt, fm, finite, s[0] as u32, s[1] as u32),
        Alu::CvtPackFp8(e4m3, relu) => cvt::pack_fp8(e4m3, relu, s[0] as u32, s[1] as u32),
        Alu::CvtHalvesFp8(e4m3, relu) => cvt::halves_fp8(e4m3, relu, s[0] as u32),
        Alu::CvtPackInt(bits, signed) => cvt::pack_int(bits, signed, s),
        _ => match float::eval(alu, s) {
            Some(v) => v,
            None => int::eval(alu, s),
        },
    }
}
