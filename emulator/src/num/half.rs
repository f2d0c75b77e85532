//! f16 and bf16 arithmetic, single and packed, each result rounded once.

use crate::inst::{Fm, HOp, Hf};
use crate::num::round::{BF16, F16, Fmt, narrow, sum_odd, widen};
use crate::types::Rnd;

pub(crate) fn fmt(f: Hf) -> Fmt {
    match f {
        Hf::F16 => F16,
        Hf::BF16 => BF16,
    }
}

/// Widens 16 bits exactly.
#[inline]
pub(crate) fn to_f32(bits: u16, f: Hf) -> f32 {
    match f {
        Hf::BF16 => f32::from_bits(u32::from(bits) << 16),
        Hf::F16 => {
            let (s, e, m) =
                (u32::from(bits >> 15) << 31, u32::from(bits >> 10 & 31), u32::from(bits & 0x3ff));
            match e {
                0 => f32::from_bits(s | (m as f32 * 5.960_464_5e-8).to_bits()),
                31 => f32::from_bits(s | 0x7f80_0000 | m << 13),
                _ => f32::from_bits(s | (e + 112) << 23 | m << 13),
            }
        }
    }
}

/// Rounds to 16 bits; NaN becomes 0x7fff.
#[inline]
pub(crate) fn from_f32(v: f32, f: Hf, rnd: Rnd) -> u16 {
    if v.is_nan() {
        return 0x7fff;
    }
    if rnd == Rnd::Rn && f == Hf::BF16 {
        let b = v.to_bits();
        return (b.wrapping_add(0x7fff + (b >> 16 & 1)) >> 16) as u16;
    }
    if rnd == Rnd::Rn {
        return nearest_f16(v.to_bits());
    }
    narrow(f64::from(v), fmt(f), rnd) as u16
}

/// A single that is no NaN to the nearest f16, ties to even.
#[inline(always)]
fn nearest_f16(bits: u32) -> u16 {
    let (sign, size) = ((bits >> 16 & 0x8000) as u16, bits & 0x7fff_ffff);
    // Below 2^-14 the sum with 0.5, whose last place is that of f16's subnormals, rounds.
    let small = (f32::from_bits(size) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    // Above, half a place less one for even is added; the carry may reach the exponent, and infinity.
    let rebased = size.wrapping_sub(112 << 23);
    let normal = rebased.wrapping_add(0xfff + (rebased >> 13 & 1)) >> 13;
    sign | if size >= 0x4780_0000 {
        0x7c00
    } else if size < 0x3880_0000 {
        small as u16
    } else {
        normal as u16
    }
}

pub(crate) fn from_f64(v: f64, f: Hf, rnd: Rnd) -> u16 {
    if v.is_nan() { 0x7fff } else { narrow(v, fmt(f), rnd) as u16 }
}

/// Flushes a subnormal to zero of its sign.
pub(crate) fn flush(bits: u16, f: Hf, on: bool) -> u16 {
    let man = fmt(f).man;
    let exp = (bits & 0x7fff) >> man;
    if on && exp == 0 { bits & 0x8000 } else { bits }
}

/// One element.
pub(crate) fn one(op: HOp, f: Hf, fm: Fm, a: u16, b: u16, c: u16) -> u16 {
    let (a, b, c) = (flush(a, f, fm.ftz), flush(b, f, fm.ftz), flush(c, f, fm.ftz));
    let w = |x: u16| widen(u32::from(x), fmt(f));
    let r = match op {
        HOp::Neg => return a ^ 0x8000,
        HOp::Abs => return a & 0x7fff,
        HOp::MinMax { max, nan, xorsign } => {
            let sign = if xorsign { (a ^ b) & 0x8000 } else { 0 };
            let (a, b) = if xorsign { (a & 0x7fff, b & 0x7fff) } else { (a, b) };
            let (x, y) = (w(a), w(b));
            let pick = match (x.is_nan(), y.is_nan()) {
                (false, false) => {
                    let less = x < y || (x == y && x.is_sign_negative());
                    if less != max { a } else { b }
                }
                (true, false) if !nan => b,
                (false, true) if !nan => a,
                _ => return 0x7fff,
            };
            return pick | sign;
        }
        HOp::Add => sum_odd(w(a), w(b)),
        HOp::Sub => sum_odd(w(a), -w(b)),
        HOp::Mul => w(a) * w(b),
        HOp::Fma => sum_odd(w(a) * w(b), w(c)),
        HOp::Ex2 => w(a).exp2(),
        HOp::Tanh => w(a).tanh(),
    };
    if fm.sat {
        let r = if r >= 1.0 {
            1.0
        } else if r > 0.0 {
            r
        } else {
            0.0
        };
        return flush(from_f64(r, f, fm.rnd), f, fm.ftz);
    }
    if fm.relu && (r.is_nan() || r.is_sign_negative()) {
        return if r.is_nan() { 0x7fff } else { 0 };
    }
    flush(from_f64(r, f, fm.rnd), f, fm.ftz)
}

/// One lane, packed or not.
pub(crate) fn eval(op: HOp, f: Hf, packed: bool, fm: Fm, s: [u64; 4]) -> u64 {
    let lo = one(op, f, fm, s[0] as u16, s[1] as u16, s[2] as u16);
    if !packed {
        return u64::from(lo);
    }
    let hi = one(op, f, fm, (s[0] >> 16) as u16, (s[1] >> 16) as u16, (s[2] >> 16) as u16);
    u64::from(hi) << 16 | u64::from(lo)
}
