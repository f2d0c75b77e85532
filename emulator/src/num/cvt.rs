//! cvt: every pair of integer and floating types, packed pairs, fp8 and tf32.
//!
//! NaN to integer is 0, or the sign bit alone when either side has 64 bits (ISA, cvt). Float to
//! integer clamps; integer to integer wraps unless `.sat`.

use crate::inst::{Cvt, Fm, Hf};
use crate::num::half::{from_f32, from_f64, to_f32};
use crate::num::int::{mask, sx};
use crate::num::round::{E5M2, F32, Fmt, TF32, exp2i, flush64, narrow, sum_odd};
use crate::types::{Rnd, Ty};

fn integral(x: f64, rnd: Rnd) -> f64 {
    match rnd {
        Rnd::Rn => x.round_ties_even(),
        Rnd::Rna => x.round(),
        Rnd::Rz => x.trunc(),
        Rnd::Rm => x.floor(),
        Rnd::Rp => x.ceil(),
    }
}

fn read_float(ty: Ty, v: u64, ftz: bool) -> f64 {
    match ty {
        Ty::F16 => f64::from(to_f32(v as u16, Hf::F16)),
        Ty::BF16 => f64::from(to_f32(v as u16, Hf::BF16)),
        Ty::F64 => f64::from_bits(v),
        _ => f64::from(crate::num::float::ftz32(f32::from_bits(v as u32), ftz)),
    }
}

fn write_float(x: f64, c: Cvt) -> u64 {
    let mut x = x;
    if c.relu && !x.is_nan() && x.is_sign_negative() {
        x = 0.0;
    }
    if c.finite && !x.is_nan() {
        let most = largest(c.to);
        x = x.clamp(-most, most);
    }
    if c.sat {
        x = if x >= 1.0 {
            1.0
        } else if x > 0.0 {
            x
        } else {
            0.0
        };
    }
    match c.to {
        Ty::F64 => {
            if x.is_nan() {
                x.to_bits() | 1 << 51
            } else {
                x.to_bits()
            }
        }
        Ty::F16 => u64::from(from_f64(x, Hf::F16, c.rnd)),
        Ty::BF16 => u64::from(from_f64(x, Hf::BF16, c.rnd)),
        // tf32 is an f32 whose last 13 bits are zero.
        Ty::Tf32 => {
            if x.is_nan() {
                0x7fff_ffff
            } else {
                u64::from(narrow(x, TF32, c.rnd)) << 13
            }
        }
        _ => {
            if x.is_nan() {
                return 0x7fff_ffff;
            }
            let v = f32::from_bits(narrow(x, F32, c.rnd));
            u64::from(crate::num::float::ftz32(v, c.ftz).to_bits())
        }
    }
}

pub(crate) fn eval(c: Cvt, v: u64) -> u64 {
    let (from, to) = (c.from, c.to);
    let fbits = from.bits() as u8;
    let tbits = to.bits() as u8;
    // Results of narrow integer types fill a wider register by their sign.
    let fill = |r: u64| {
        if to.is_signed() { sx(r, tbits) as u64 & mask(c.dbits) } else { r & mask(tbits) }
    };
    match (from.is_float(), to.is_float()) {
        (false, false) => {
            let x = if from.is_signed() { i128::from(sx(v, fbits)) } else { i128::from(v & mask(fbits)) };
            if c.sat {
                let (lo, hi) = range(to);
                return fill(x.clamp(lo, hi) as u64);
            }
            fill(x as u64)
        }
        (true, false) => {
            let x = read_float(from, v, c.ftz);
            let wide = from == Ty::F64 || tbits == 64;
            if x.is_nan() {
                return if wide { 1u64 << (tbits - 1) } else { 0 };
            }
            let (lo, hi) = range(to);
            let r = integral(x, c.rnd);
            // `as` saturates at the ends of i128, far outside every range here.
            fill((r as i128).clamp(lo, hi) as u64)
        }
        (false, true) => {
            let neg = from.is_signed() && sx(v, fbits) < 0;
            let mag = if neg { sx(v, fbits).unsigned_abs() } else { v & mask(fbits) };
            // High and low halves are exact doubles; their sum, rounded to odd, rounds right again.
            let (hi, lo) = ((mag >> 32) as f64 * exp2i(32), (mag & 0xffff_ffff) as f64);
            let (hi, lo) = if neg { (-hi, -lo) } else { (hi, lo) };
            if to == Ty::F64 {
                return crate::num::round::add64(hi, lo, c.rnd).to_bits();
            }
            let x = if mag == 0 { 0.0 } else { sum_odd(hi, lo) };
            write_float(x, c)
        }
        (true, true) => {
            if let (Ty::E4M3x2 | Ty::E5M2x2, Ty::F16x2) = (from, to) {
                return unpack_fp8(from == Ty::E4M3x2, c.relu, v as u16);
            }
            let mut x = read_float(from, v, c.ftz);
            if c.integral {
                x = if x.is_nan() { x } else { integral(x, c.rnd).copysign(x) };
            } else if from == Ty::F64 && to == Ty::F32 && c.ftz {
                x = flush64(x);
            }
            if from == to && x.is_nan() && !c.sat && from != Ty::F32 {
                return v & mask(fbits);
            }
            write_float(x, c)
        }
    }
}

/// Largest finite value of a type.
fn largest(ty: Ty) -> f64 {
    match ty {
        Ty::F16 => 65504.0,
        Ty::BF16 => (2.0 - exp2i(-7)) * exp2i(127),
        Ty::Tf32 => (2.0 - exp2i(-10)) * exp2i(127),
        _ => f64::from(f32::MAX),
    }
}

fn range(ty: Ty) -> (i128, i128) {
    let b = ty.bits();
    if ty.is_signed() { (-(1i128 << (b - 1)), (1i128 << (b - 1)) - 1) } else { (0, (1i128 << b) - 1) }
}

/// Two singles to a packed pair: `hi` is the first operand of the instruction.
pub(crate) fn pack(f: Hf, fm: Fm, finite: bool, hi: u32, lo: u32) -> u64 {
    let most = largest(if f == Hf::F16 { Ty::F16 } else { Ty::BF16 }) as f32;
    let one = |x: u32| {
        let v = f32::from_bits(x);
        if fm.relu && !v.is_nan() && v.is_sign_negative() {
            return 0;
        }
        from_f32(if finite && !v.is_nan() { v.clamp(-most, most) } else { v }, f, fm.rnd)
    };
    u64::from(one(hi)) << 16 | u64::from(one(lo))
}

const E4M3: Fmt = Fmt { exp: 4, man: 3 };

/// One fp8 element with `.satfinite`, to nearest even.
fn fp8(x: f64, e4m3: bool) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let most = if e4m3 { 448.0 } else { 57344.0 };
    if x.abs() >= most {
        return sign | if e4m3 { 0x7e } else { 0x7b };
    }
    // e4m3 uses its top exponent for numbers: everything below 256 rounds as in an IEEE layout, the
    // binade above has four values more.
    if e4m3 && x.abs() >= 248.0 {
        let q = (x.abs() / 32.0).round_ties_even() as u8;
        return sign | (0x78 + q.saturating_sub(8)).min(0x7e);
    }
    narrow(x, if e4m3 { E4M3 } else { E5M2 }, Rnd::Rn) as u8
}

pub(crate) fn pack_fp8(e4m3: bool, relu: bool, hi: u32, lo: u32) -> u64 {
    fp8_pair(e4m3, relu, f32::from_bits(hi), f32::from_bits(lo))
}

/// A pair of f16, rounded to fp8.
pub(crate) fn halves_fp8(e4m3: bool, relu: bool, pair: u32) -> u64 {
    fp8_pair(e4m3, relu, to_f32((pair >> 16) as u16, Hf::F16), to_f32(pair as u16, Hf::F16))
}

/// cvt.pack: `a` and `b` saturated to `bits` bits, `a` above `b`, above them the low bits of `c`.
pub(crate) fn pack_int(bits: u8, signed: bool, s: [u64; 4]) -> u64 {
    let one = |v: u64| {
        let (lo, hi) =
            if signed { (-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1) } else { (0, (1i64 << bits) - 1) };
        i64::from(v as i32).clamp(lo, hi) as u64 & mask(bits)
    };
    let pair = one(s[0]) << bits | one(s[1]);
    (s[2] << (2 * bits) | pair) & mask(32)
}

fn fp8_pair(e4m3: bool, relu: bool, hi: f32, lo: f32) -> u64 {
    let one = |b: f32| {
        let v = f64::from(b);
        if relu && v.is_sign_negative() && !v.is_nan() { 0 } else { u64::from(fp8(v, e4m3)) }
    };
    one(hi) << 8 | one(lo)
}

/// The value of an fp8 element.
pub(crate) fn fp8_value(b: u8, e4m3: bool) -> f64 {
    if e4m3 {
        if b & 0x7f == 0x7f {
            return f64::NAN;
        }
        let (e, m) = (i32::from(b >> 3 & 15), f64::from(b & 7));
        let v = if e == 0 { m * exp2i(-9) } else { (8.0 + m) * exp2i(e - 10) };
        return if b & 0x80 != 0 { -v } else { v };
    }
    // e5m2 is the upper half of an f16.
    f64::from(to_f32(u16::from(b) << 8, Hf::F16))
}

fn unpack_fp8(e4m3: bool, relu: bool, v: u16) -> u64 {
    let one = |b: u8| -> u64 {
        let x = fp8_value(b, e4m3);
        if relu && x.is_sign_negative() && !x.is_nan() { 0 } else { u64::from(from_f64(x, Hf::F16, Rnd::Rn)) }
    };
    one((v >> 8) as u8) << 16 | one(v as u8)
}
