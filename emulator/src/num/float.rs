//! Single and double precision, one lane each.
//!
//! IEEE operations are exact in every rounding mode; approximate ones are the f64 function rounded
//! to f32. NaN results of single precision are the canonical 0x7fffffff, as the ISA says; for doubles
//! a NaN operand is kept (quieted) and a new NaN is positive.

use crate::inst::{Alu, Approx, Fm};
use crate::num::round::{self, F32, add64, div_odd, div64, fma64, mul64, narrow, sqrt_odd, sqrt64, sum_odd};
use crate::types::Rnd;

const NAN32: u32 = 0x7fff_ffff;

/// Flushes a subnormal to zero of its sign.
#[inline(always)]
pub(crate) fn ftz32(v: f32, on: bool) -> f32 {
    if on && v.is_subnormal() { f32::from_bits(v.to_bits() & 0x8000_0000) } else { v }
}

#[inline(always)]
pub(crate) fn canon(v: f32) -> u32 {
    if v.is_nan() { NAN32 } else { v.to_bits() }
}

/// Output steps of a single-precision instruction.
#[inline(always)]
pub(crate) fn out32(v: f32, fm: Fm) -> u64 {
    let v = ftz32(v, fm.ftz);
    if fm.sat {
        // NaN becomes +0, and so does -0.
        let c = if v >= 1.0 {
            1.0
        } else if v > 0.0 {
            v
        } else {
            0.0
        };
        return u64::from(c.to_bits());
    }
    u64::from(canon(v))
}

fn rounded(x: f64, rnd: Rnd) -> f32 {
    if x.is_nan() { f32::from_bits(NAN32) } else { f32::from_bits(narrow(x, F32, rnd)) }
}

/// Sign of an exact zero sum of two values that are not both the same zero.
fn zero_sum(s: f64, a: f64, b: f64, rnd: Rnd) -> f64 {
    if s == 0.0 && rnd == Rnd::Rm && (a.is_sign_negative() || b.is_sign_negative()) { -0.0 } else { s }
}

fn sum32(a: f64, b: f64, rnd: Rnd) -> f32 {
    rounded(zero_sum(sum_odd(a, b), a, b, rnd), rnd)
}

/// Single-precision fused multiply-add in any mode.
pub(crate) fn fma32(a: f32, b: f32, c: f32, rnd: Rnd) -> f32 {
    if rnd == Rnd::Rn {
        return a.mul_add(b, c);
    }
    // The product of two singles is exact in a double.
    sum32(f64::from(a) * f64::from(b), f64::from(c), rnd)
}

pub(crate) fn add32(a: f32, b: f32, rnd: Rnd) -> f32 {
    if rnd == Rnd::Rn { a + b } else { sum32(f64::from(a), f64::from(b), rnd) }
}

fn mul32(a: f32, b: f32, rnd: Rnd) -> f32 {
    if rnd == Rnd::Rn { a * b } else { rounded(f64::from(a) * f64::from(b), rnd) }
}

fn div32(a: f32, b: f32, rnd: Rnd) -> f32 {
    if rnd == Rnd::Rn { a / b } else { rounded(div_odd(f64::from(a), f64::from(b)), rnd) }
}

fn sqrt32(a: f32, rnd: Rnd) -> f32 {
    if rnd == Rnd::Rn { a.sqrt() } else { rounded(sqrt_odd(f64::from(a)), rnd) }
}

/// min and max with the ISA's rules: a number beats NaN unless `nan`, and -0 is below +0.
#[inline(always)]
pub(crate) fn minmax32(a: u32, b: u32, max: bool, nan: bool, ftz: bool, xorsign: bool) -> u32 {
    let (mut x, mut y) = (ftz32(f32::from_bits(a), ftz), ftz32(f32::from_bits(b), ftz));
    let sign = (a ^ b) & 0x8000_0000;
    if xorsign {
        (x, y) = (x.abs(), y.abs());
    }
    if x.is_nan() || y.is_nan() {
        let keep = if x.is_nan() { y } else { x };
        if nan || keep.is_nan() {
            return NAN32;
        }
        return if xorsign { keep.to_bits() | sign } else { keep.to_bits() };
    }
    let less = x < y || (x == y && x.is_sign_negative());
    let v = if less != max { x } else { y }.to_bits();
    if xorsign { v | sign } else { v }
}

fn approx(f: Approx, a: f32, b: f32) -> f64 {
    let x = f64::from(a);
    match f {
        Approx::Rcp => 1.0 / x,
        Approx::Sqrt => x.sqrt(),
        Approx::Rsqrt => 1.0 / x.sqrt(),
        Approx::Ex2 => x.exp2(),
        Approx::Lg2 => x.log2(),
        Approx::Sin => x.sin(),
        Approx::Cos => x.cos(),
        Approx::Tanh => x.tanh(),
        // ISA: a divisor beyond 2^126 gives 0, or NaN under an infinite dividend.
        Approx::Div if b.is_finite() && f64::from(b.abs()) > round::exp2i(126) => {
            if x.is_infinite() {
                f64::NAN
            } else {
                (x * f64::from(b)).signum() * 0.0
            }
        }
        Approx::Div | Approx::DivFull => x / f64::from(b),
    }
}

fn fix64(v: f64, inputs: &[f64]) -> u64 {
    if !v.is_nan() {
        return v.to_bits();
    }
    match inputs.iter().find(|x| x.is_nan()) {
        Some(x) => x.to_bits() | 1 << 51,
        None => 0x7ff8_0000_0000_0000,
    }
}

fn minmax64(a: f64, b: f64, max: bool) -> u64 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => 0x7fff_ffff_ffff_ffff,
        (true, false) => b.to_bits(),
        (false, true) => a.to_bits(),
        _ => {
            let less = a < b || (a == b && a.is_sign_negative());
            if less != max { a.to_bits() } else { b.to_bits() }
        }
    }
}

/// The float operations; `None` for what is not one.
pub(crate) fn eval(alu: Alu, s: [u64; 4]) -> Option<u64> {
    let f = |i: usize, ftz: bool| ftz32(f32::from_bits(s[i] as u32), ftz);
    let d = |i: usize| f64::from_bits(s[i]);
    Some(match alu {
        Alu::FAdd(m) => out32(add32(f(0, m.ftz), f(1, m.ftz), m.rnd), m),
        Alu::FSub(m) => out32(add32(f(0, m.ftz), -f(1, m.ftz), m.rnd), m),
        Alu::FMul(m) => out32(mul32(f(0, m.ftz), f(1, m.ftz), m.rnd), m),
        Alu::FFma(m) => {
            let v = fma32(f(0, m.ftz), f(1, m.ftz), f(2, m.ftz), m.rnd);
            if m.relu && (v.is_nan() || v < 0.0) { 0 } else { out32(v, m) }
        }
        Alu::FDiv(m) => out32(div32(f(0, m.ftz), f(1, m.ftz), m.rnd), m),
        Alu::FRcp(m) => out32(div32(1.0, f(0, m.ftz), m.rnd), m),
        Alu::FSqrt(m) => out32(sqrt32(f(0, m.ftz), m.rnd), m),
        Alu::FApprox(op, ftz) => {
            let v = ftz32(approx(op, f(0, ftz), f(1, ftz)) as f32, ftz);
            u64::from(canon(v))
        }
        Alu::FMin { nan, ftz, xorsign } => {
            u64::from(minmax32(s[0] as u32, s[1] as u32, false, nan, ftz, xorsign))
        }
        Alu::FMax { nan, ftz, xorsign } => {
            u64::from(minmax32(s[0] as u32, s[1] as u32, true, nan, ftz, xorsign))
        }
        Alu::FAbs(ftz) => u64::from(f(0, ftz).to_bits() & 0x7fff_ffff),
        Alu::FNeg(ftz) => u64::from(f(0, ftz).to_bits() ^ 0x8000_0000),
        // The first operand gives the sign.
        Alu::FCopysign => (s[0] & 0x8000_0000) | (s[1] & 0x7fff_ffff),
        Alu::DAdd(r) => fix64(add64(d(0), d(1), r), &[d(0), d(1)]),
        Alu::DSub(r) => fix64(add64(d(0), -d(1), r), &[d(0), d(1)]),
        Alu::DMul(r) => fix64(mul64(d(0), d(1), r), &[d(0), d(1)]),
        Alu::DFma(r) => fix64(fma64(d(0), d(1), d(2), r), &[d(0), d(1), d(2)]),
        Alu::DDiv(r) => fix64(div64(d(0), d(1), r), &[d(0), d(1)]),
        Alu::DRcp(r) => fix64(div64(1.0, d(0), r), &[d(0)]),
        Alu::DSqrt(r) => fix64(sqrt64(d(0), r), &[d(0)]),
        // ISA: the lower 32 bits of the approximate double functions are zero.
        Alu::DRsqrtApprox(false) => fix64(1.0 / d(0).sqrt(), &[d(0)]),
        Alu::DRsqrtApprox(true) => fix64(1.0 / round::flush64(d(0)).sqrt(), &[d(0)]) & !0xffff_ffff,
        Alu::DRcpApprox => fix64(1.0 / round::flush64(d(0)), &[d(0)]) & !0xffff_ffff,
        Alu::DMin => minmax64(d(0), d(1), false),
        Alu::DMax => minmax64(d(0), d(1), true),
        Alu::DAbs => s[0] & !(1 << 63),
        Alu::DNeg => s[0] ^ 1 << 63,
        Alu::DCopysign => (s[0] & 1 << 63) | (s[1] & !(1 << 63)),
        _ => return None,
    })
}
