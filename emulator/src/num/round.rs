//! Rounding: f64 to narrower formats in any mode, and f64 arithmetic in directed modes.
//!
//! Results of single and half precision are computed as an f64 *rounded to odd* (the exact value is
//! known to be there or just beside it), which a second rounding to at most 51 bits cannot spoil.
//! Doubles in directed modes are done in 128-bit integers with a sticky bit.

use crate::types::Rnd;

/// A binary format: exponent and significand field widths.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fmt {
    /// Bits of the exponent field.
    pub exp: u32,
    /// Bits of the significand field (without the hidden one).
    pub man: u32,
}

pub const F32: Fmt = Fmt { exp: 8, man: 23 };
pub const F16: Fmt = Fmt { exp: 5, man: 10 };
pub const BF16: Fmt = Fmt { exp: 8, man: 7 };
pub const TF32: Fmt = Fmt { exp: 8, man: 10 };
pub const E5M2: Fmt = Fmt { exp: 5, man: 2 };

fn rounds_up(rnd: Rnd, sign: bool, odd: bool, rem: u128, half: u128, sticky: bool) -> bool {
    let inexact = rem != 0 || sticky;
    match rnd {
        Rnd::Rz => false,
        Rnd::Rm => sign && inexact,
        Rnd::Rp => !sign && inexact,
        Rnd::Rn => rem > half || (rem == half && (sticky || odd)),
        Rnd::Rna => rem >= half,
    }
}

/// True when an overflow in this mode ends at infinity rather than at the largest finite value.
fn overflow_is_inf(rnd: Rnd, sign: bool) -> bool {
    match rnd {
        Rnd::Rn | Rnd::Rna => true,
        Rnd::Rz => false,
        Rnd::Rm => sign,
        Rnd::Rp => !sign,
    }
}

/// Rounds `x` (not NaN) to a format of at most 32 bits; returns its bits.
pub fn narrow(x: f64, fmt: Fmt, rnd: Rnd) -> u32 {
    let bits = x.to_bits();
    let sign = bits >> 63 != 0;
    let s = u32::from(sign) << (fmt.exp + fmt.man);
    let top = ((1u32 << fmt.exp) - 1) << fmt.man;
    if x.is_infinite() {
        return s | top;
    }
    if x == 0.0 {
        return s;
    }
    let bias = (1i32 << (fmt.exp - 1)) - 1;
    let (mut e, mut m) = (((bits >> 52) & 0x7ff) as i32 - 1023, (bits & ((1 << 52) - 1)) | 1 << 52);
    if e == -1023 {
        // A subnormal double is far below every narrower format: only its being there counts.
        (e, m) = (-1030, 1 << 52 | 1);
    }
    let emin = 1 - bias;
    let mut shift = (52 - fmt.man) as i32;
    if e < emin {
        shift += emin - e;
    }
    let shift = shift.min(62) as u32;
    let q = m >> shift;
    let rem = m & ((1u64 << shift) - 1);
    let up = rounds_up(rnd, sign, q & 1 != 0, u128::from(rem), 1u128 << (shift - 1), false);
    let q = (q + u64::from(up)) as u32;
    let v = if e < emin { q } else { (((e + bias) as u64) << fmt.man) as u32 + (q - (1 << fmt.man)) };
    if e > bias || v >= top {
        return s | if overflow_is_inf(rnd, sign) { top } else { top - 1 };
    }
    s | v
}

/// Widens a format of at most 32 bits; exact.
pub fn widen(bits: u32, fmt: Fmt) -> f64 {
    let bias = (1i32 << (fmt.exp - 1)) - 1;
    let sign = bits >> (fmt.exp + fmt.man) & 1 != 0;
    let e = (bits >> fmt.man & ((1 << fmt.exp) - 1)) as i32;
    let m = bits & ((1 << fmt.man) - 1);
    let v = if e == (1 << fmt.exp) - 1 {
        if m != 0 { f64::NAN } else { f64::INFINITY }
    } else if e == 0 {
        f64::from(m) * exp2i(1 - bias - fmt.man as i32)
    } else {
        f64::from(m | 1 << fmt.man) * exp2i(e - bias - fmt.man as i32)
    };
    if sign { -v } else { v }
}

/// 2^n for n in the normal range of f64.
pub fn exp2i(n: i32) -> f64 {
    f64::from_bits(((n + 1023) as u64) << 52)
}

/// `s` with its last bit set to "inexact" when the error `e` of `s` is not zero.
pub fn odd(s: f64, e: f64) -> f64 {
    if e == 0.0 || e.is_nan() || !s.is_finite() || s.to_bits() & 1 == 1 {
        return s;
    }
    let away = (e > 0.0) == (s > 0.0);
    f64::from_bits(if away { s.to_bits() + 1 } else { s.to_bits() - 1 })
}

/// Sum rounded to odd, for operands whose sum cannot overflow a double.
pub fn sum_odd(a: f64, b: f64) -> f64 {
    let s = a + b;
    if !s.is_finite() {
        return s;
    }
    let bb = s - a;
    odd(s, (a - (s - bb)) + (b - bb))
}

/// Quotient rounded to odd.
pub fn div_odd(a: f64, b: f64) -> f64 {
    let q = a / b;
    if !q.is_finite() || q == 0.0 || b.is_infinite() {
        return q;
    }
    odd(q, (-q).mul_add(b, a) / b)
}

/// Square root rounded to odd.
pub fn sqrt_odd(a: f64) -> f64 {
    let s = a.sqrt();
    if !s.is_finite() || s == 0.0 {
        return s;
    }
    odd(s, (-s).mul_add(s, a))
}

/// A subnormal double as a zero of its sign.
pub fn flush64(x: f64) -> f64 {
    if x.is_subnormal() { 0.0f64.copysign(x) } else { x }
}

/// Sign, significand with bit 52 set, exponent of its last bit.
fn unpack(x: f64) -> (bool, u64, i32) {
    let bits = x.to_bits();
    let e = (bits >> 52 & 0x7ff) as i32;
    let m = bits & ((1 << 52) - 1);
    if e == 0 {
        let up = m.leading_zeros() as i32 - 11;
        return (bits >> 63 != 0, m << up, -1074 - up);
    }
    (bits >> 63 != 0, m | 1 << 52, e - 1075)
}

/// Rounds `sig * 2^exp` plus a sticky rest to f64.
fn pack(sign: bool, sig: u128, exp: i32, sticky: bool, rnd: Rnd) -> f64 {
    let top = 127 - sig.leading_zeros() as i32;
    let e = exp + top;
    let mut shift = top - 52;
    if e < -1022 {
        shift += -1022 - e;
    }
    let s = u64::from(sign) << 63;
    if shift <= 0 {
        // Exact: fewer than 53 bits and no rest.
        let q = (sig << -shift) as u64;
        return finish(s, q, e, rnd, sign);
    }
    let (q, rem, half) = if shift > 126 {
        (0, 1, 2)
    } else {
        (sig >> shift, sig & ((1u128 << shift) - 1), 1u128 << (shift - 1))
    };
    let up = rounds_up(rnd, sign, q & 1 != 0, rem, half, sticky);
    finish(s, q as u64 + u64::from(up), e, rnd, sign)
}

fn finish(s: u64, q: u64, e: i32, rnd: Rnd, sign: bool) -> f64 {
    let inf = 0x7ffu64 << 52;
    let v = if e < -1022 {
        q
    } else if e > 1023 {
        inf
    } else {
        (((e + 1023) as u64) << 52) + (q - (1 << 52))
    };
    f64::from_bits(s | if v >= inf { if overflow_is_inf(rnd, sign) { inf } else { inf - 1 } } else { v })
}

/// a * b + c with one rounding in any mode.
pub fn fma64(a: f64, b: f64, c: f64, rnd: Rnd) -> f64 {
    if rnd == Rnd::Rn {
        return a.mul_add(b, c);
    }
    if !a.is_finite() || !b.is_finite() || !c.is_finite() {
        return a.mul_add(b, c);
    }
    let psign = a.is_sign_negative() != b.is_sign_negative();
    let zero = |same: bool| match (same, rnd) {
        (true, _) if psign => -0.0,
        (false, Rnd::Rm) => -0.0,
        _ => 0.0,
    };
    if a == 0.0 || b == 0.0 {
        return if c == 0.0 { zero(psign == c.is_sign_negative()) } else { c };
    }
    let ((_, ma, ea), (_, mb, eb)) = (unpack(a), unpack(b));
    let p = u128::from(ma) * u128::from(mb);
    let up = p.leading_zeros() as i32 - 3;
    let (p, pe) = (p << up, ea + eb - up);
    if c == 0.0 {
        return pack(psign, p, pe, false, rnd);
    }
    let (cs, mc, ec) = unpack(c);
    let (c, ce) = (u128::from(mc) << 72, ec - 72);
    // Both have bit 124 set: a rest is lost only when at most one bit can cancel.
    let (hs, h, he, ls, l, le) =
        if (pe, p) >= (ce, c) { (psign, p, pe, cs, c, ce) } else { (cs, c, ce, psign, p, pe) };
    let d = he - le;
    let (l, sticky) = if d > 126 { (0, true) } else { (l >> d, l & ((1u128 << d) - 1) != 0) };
    if hs == ls {
        return pack(hs, h + l, he, sticky, rnd);
    }
    let diff = h - l - u128::from(sticky);
    if diff == 0 {
        return if rnd == Rnd::Rm { -0.0 } else { 0.0 };
    }
    pack(hs, diff, he, sticky, rnd)
}

/// a + b in any mode.
pub fn add64(a: f64, b: f64, rnd: Rnd) -> f64 {
    if rnd == Rnd::Rn { a + b } else { fma64(a, 1.0, b, rnd) }
}

/// a * b in any mode.
pub fn mul64(a: f64, b: f64, rnd: Rnd) -> f64 {
    if rnd == Rnd::Rn || a == 0.0 || b == 0.0 { a * b } else { fma64(a, b, 0.0, rnd) }
}

/// a / b in any mode.
pub fn div64(a: f64, b: f64, rnd: Rnd) -> f64 {
    if rnd == Rnd::Rn || !a.is_finite() || !b.is_finite() || a == 0.0 || b == 0.0 {
        return a / b;
    }
    let ((sa, ma, ea), (sb, mb, eb)) = (unpack(a), unpack(b));
    let n = u128::from(ma) << 70;
    let q = n / u128::from(mb);
    pack(sa != sb, q, ea - eb - 70, n % u128::from(mb) != 0, rnd)
}

/// Square root in any mode.
pub fn sqrt64(a: f64, rnd: Rnd) -> f64 {
    if rnd == Rnd::Rn || !a.is_finite() || a <= 0.0 {
        return a.sqrt();
    }
    let (_, m, e) = unpack(a);
    let up = if (e - 70) % 2 == 0 { 70 } else { 71 };
    let n = u128::from(m) << up;
    let r = n.isqrt();
    pack(false, r, (e - up) / 2, r * r != n, rnd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<f64> {
        let mut v =
            vec![0.0, -0.0, 1.0, -1.0, 1.5, 3.0, 1e300, -1e300, 5e-324, 2.2e-308, f64::MAX, 0.1, -0.3];
        let mut x = 0x1234_5678_9abc_def1u64;
        for _ in 0..400 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let f = f64::from_bits(x);
            if f.is_finite() {
                v.push(f);
            }
            v.push((x >> 11) as f64 * 1e-16);
        }
        v
    }

    // The soft path in to-nearest mode must agree with the machine, and the directed modes must
    // bracket it by at most one step.
    #[test]
    fn soft_double_arithmetic_brackets_the_machine_result() {
        let s = samples();
        for (i, &a) in s.iter().enumerate() {
            let (b, c) = (s[(i * 7 + 3) % s.len()], s[(i * 13 + 5) % s.len()]);
            let cases: [(f64, [f64; 3]); 4] = [
                (a + b, [Rnd::Rm, Rnd::Rp, Rnd::Rz].map(|r| add64(a, b, r))),
                (a.mul_add(b, c), [Rnd::Rm, Rnd::Rp, Rnd::Rz].map(|r| fma64(a, b, c, r))),
                (a / b, [Rnd::Rm, Rnd::Rp, Rnd::Rz].map(|r| div64(a, b, r))),
                (a.abs().sqrt(), [Rnd::Rm, Rnd::Rp, Rnd::Rz].map(|r| sqrt64(a.abs(), r))),
            ];
            for (rn, [down, up, zero]) in cases {
                if rn.is_nan() {
                    continue;
                }
                assert!(down <= rn && rn <= up, "{a:e} {b:e} {c:e}: {down:e} {rn:e} {up:e}");
                assert!(down == up || down.next_up() == up, "{a:e} {b:e} {c:e}: {down:e} {up:e}");
                assert_eq!(zero, if rn.is_sign_negative() { up } else { down }, "{a:e} {b:e} {c:e}");
            }
        }
    }

    #[test]
    fn narrowing_to_single_agrees_with_the_machine() {
        for x in samples() {
            assert_eq!(narrow(x, F32, Rnd::Rn), (x as f32).to_bits(), "{x:e}");
            let y = (x as f32) as f64 * 1.000_000_01;
            assert_eq!(narrow(y, F32, Rnd::Rn), (y as f32).to_bits(), "{y:e}");
        }
        for x in [1e-45f64, 7e-46, 7.1e-46, 1.1754942e-38, 3.4028235677973366e38, 3.4e38] {
            assert_eq!(narrow(x, F32, Rnd::Rn), (x as f32).to_bits(), "{x:e}");
        }
    }

    #[test]
    fn half_formats_round_trip_and_agree_with_the_half_crate() {
        for b in 0..=u16::MAX {
            let (h, g) = (half::f16::from_bits(b), half::bf16::from_bits(b));
            if !h.is_nan() {
                assert_eq!(widen(u32::from(b), F16), h.to_f64());
                assert_eq!(narrow(h.to_f64(), F16, Rnd::Rn), u32::from(b));
            }
            if !g.is_nan() {
                assert_eq!(widen(u32::from(b), BF16), g.to_f64());
                assert_eq!(narrow(g.to_f64(), BF16, Rnd::Rn), u32::from(b));
            }
            let x = f32::from_bits(u32::from(b) << 16 | 0x8123);
            if !x.is_nan() {
                assert_eq!(narrow(f64::from(x), BF16, Rnd::Rn), u32::from(half::bf16::from_f32(x).to_bits()));
                assert_eq!(narrow(f64::from(x), F16, Rnd::Rn), u32::from(half::f16::from_f32(x).to_bits()));
            }
        }
    }
}
