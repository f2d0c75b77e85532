//! Integer and bit operations, one lane each. Nothing here can panic: arithmetic wraps, division by
//! zero gives all ones (the ISA leaves it open; hardware does that).

use crate::inst::Alu;

#[inline(always)]
pub(crate) fn mask(bits: u8) -> u64 {
    if bits >= 64 { u64::MAX } else { (1u64 << bits) - 1 }
}

/// Sign extension from `bits`.
#[inline(always)]
pub(crate) fn sx(v: u64, bits: u8) -> i64 {
    let s = 64 - u32::from(bits);
    ((v << s) as i64) >> s
}

/// Value of `v` as a signed or unsigned number of `bits`.
#[inline(always)]
fn ext(v: u64, bits: u8, signed: bool) -> i128 {
    if signed { i128::from(sx(v, bits)) } else { i128::from(v & mask(bits)) }
}

fn product(a: u64, b: u64, w: u8, s: bool) -> i128 {
    ext(a, w, s).wrapping_mul(ext(b, w, s))
}

/// Full unsigned product of 64-bit values does not fit `i128` arithmetic as a number, but its bits do.
fn high(a: u64, b: u64, w: u8, s: bool) -> u64 {
    if s {
        (product(a, b, w, true) >> w) as u64
    } else {
        ((u128::from(a & mask(w)) * u128::from(b & mask(w))) >> w) as u64
    }
}

pub(crate) fn eval(alu: Alu, s: [u64; 4]) -> u64 {
    let [a, b, c, d] = s;
    let m = mask;
    match alu {
        Alu::Mov(w) => a & m(w),
        Alu::Add(w) => a.wrapping_add(b) & m(w),
        Alu::Sub(w) => a.wrapping_sub(b) & m(w),
        Alu::AddSat => (a as i32).saturating_add(b as i32) as u32 as u64,
        Alu::SubSat => (a as i32).saturating_sub(b as i32) as u32 as u64,
        Alu::MulLo(w) => a.wrapping_mul(b) & m(w),
        Alu::MulHi(w, s) => high(a, b, w, s) & m(w),
        Alu::MulWide(w, s) => product(a, b, w, s) as u64 & m(w * 2),
        Alu::MadLo(w) => a.wrapping_mul(b).wrapping_add(c) & m(w),
        Alu::MadHi(w, s) => high(a, b, w, s).wrapping_add(c) & m(w),
        Alu::MadHiSat => {
            let p = sx(high(a, b, 32, true), 32) as i32;
            p.saturating_add(c as i32) as u32 as u64
        }
        Alu::MadWide(w, s) => (product(a, b, w, s) as u64).wrapping_add(c) & m(w * 2),
        Alu::Mul24(hi, s) => mul24(a, b, hi, s),
        Alu::Mad24(hi, s) => mul24(a, b, hi, s).wrapping_add(c) & m(32),
        Alu::Sad(w, s) => (ext(a, w, s).abs_diff(ext(b, w, s)) as u64).wrapping_add(c) & m(w),
        Alu::Div(w, s) => {
            let (x, y) = (ext(a, w, s), ext(b, w, s));
            (if y == 0 { u64::MAX } else { (x / y) as u64 }) & m(w)
        }
        Alu::Rem(w, s) => {
            let (x, y) = (ext(a, w, s), ext(b, w, s));
            (if y == 0 { x as u64 } else { (x % y) as u64 }) & m(w)
        }
        Alu::Abs(w) => sx(a, w).wrapping_abs() as u64 & m(w),
        Alu::Neg(w) => a.wrapping_neg() & m(w),
        Alu::Min(w, s) => ext(a, w, s).min(ext(b, w, s)) as u64 & m(w),
        Alu::Max(w, s) => ext(a, w, s).max(ext(b, w, s)) as u64 & m(w),
        Alu::Add16x2 => pair(a, b, u64::wrapping_add),
        Alu::MinMax16x2(max, s, relu) => pair(a, b, |x, y| {
            let (p, q) = (ext(x, 16, s), ext(y, 16, s));
            let v = if max { p.max(q) } else { p.min(q) };
            (if relu { v.max(0) } else { v }) as u64
        }),
        Alu::MinMaxRelu(max) => {
            let (p, q) = (a as i32, b as i32);
            (if max { p.max(q) } else { p.min(q) }).max(0) as u64
        }
        Alu::Mad24HiSat => {
            let p = mul24(a, b, true, true) as u32 as i32;
            p.saturating_add(c as i32) as u32 as u64
        }
        Alu::Popc(w) => u64::from((a & m(w)).count_ones()),
        Alu::Clz(w) => u64::from((a & m(w)).leading_zeros()) - (64 - u64::from(w)),
        Alu::Bfind(w, s, shiftamt) => {
            let mut v = a & m(w);
            if s && sx(a, w) < 0 {
                v = !v & m(w);
            }
            if v == 0 {
                return 0xffff_ffff;
            }
            let at = 63 - v.leading_zeros();
            u64::from(if shiftamt { u32::from(w) - 1 - at } else { at })
        }
        Alu::Brev(w) => (a & m(w)).reverse_bits() >> (64 - u32::from(w)),
        Alu::Bfe(w, s) => {
            let (pos, len) = (b & 0xff, c & 0xff);
            let w64 = u64::from(w);
            let v = a & m(w);
            let sign = if s && len > 0 { v >> (pos + len - 1).min(w64 - 1) & 1 != 0 } else { false };
            let mut out = if pos >= 64 { 0 } else { v >> pos };
            if pos >= w64 {
                out = 0;
            }
            // Bits beyond the field, or beyond the value, repeat the sign.
            let kept = len.min(w64.saturating_sub(pos));
            let keep = if kept >= 64 { u64::MAX } else { (1u64 << kept) - 1 };
            out &= keep;
            if sign {
                out |= !keep;
            }
            out & m(w)
        }
        Alu::Bfi(w) => {
            let (pos, len) = (c & 0xff, d & 0xff);
            if pos >= u64::from(w) {
                return b & m(w);
            }
            let field = if len >= 64 { u64::MAX } else { (1u64 << len) - 1 };
            let place = field << pos;
            ((b & !place) | ((a << pos) & place)) & m(w)
        }
        Alu::Fns => fns(a as u32, b as u32, c as i32),
        Alu::Dp4a(sa, sb) => {
            let mut t = c as u32;
            for i in 0..4 {
                let p = ext(a >> (8 * i), 8, sa) * ext(b >> (8 * i), 8, sb);
                t = t.wrapping_add(p as u32);
            }
            u64::from(t)
        }
        Alu::Dp2a(sa, sb, hi) => {
            let mut t = c as u32;
            let half = if hi { 16 } else { 0 };
            for i in 0..2 {
                let p = ext(a >> (16 * i), 16, sa) * ext(b >> (half + 8 * i), 8, sb);
                t = t.wrapping_add(p as u32);
            }
            u64::from(t)
        }
        Alu::And(w) => a & b & m(w),
        Alu::Or(w) => (a | b) & m(w),
        Alu::Xor(w) => (a ^ b) & m(w),
        Alu::Not(w) => !a & m(w),
        Alu::Cnot(w) => u64::from(a & m(w) == 0),
        Alu::Shl(w) => {
            let n = b as u32;
            if n >= u32::from(w) { 0 } else { (a << n) & m(w) }
        }
        Alu::Shr(w, s) => {
            let n = b as u32;
            let most = u32::from(w);
            if s {
                (sx(a, w) >> n.min(most - 1)) as u64 & m(w)
            } else if n >= most {
                0
            } else {
                (a & m(w)) >> n
            }
        }
        Alu::ShfL(wrap) => {
            let n = amount(c, wrap);
            let v = (b & m(32)) << 32 | (a & m(32));
            (v << n >> 32) & m(32)
        }
        Alu::ShfR(wrap) => {
            let n = amount(c, wrap);
            let v = (b & m(32)) << 32 | (a & m(32));
            (v >> n) & m(32)
        }
        Alu::Lop3(lut) => lop3(a, b, c, lut) & m(32),
        Alu::Prmt(mode) => prmt(a as u32, b as u32, c as u32, mode),
        Alu::Szext(wrap, s) => {
            let n = if wrap { b as u32 & 31 } else { (b as u32).min(32) };
            if n == 0 {
                return 0;
            }
            if s { sx(a, n as u8) as u64 & m(32) } else { a & m(n as u8) }
        }
        Alu::Bmsk(wrap) => {
            let (at, n) =
                if wrap { (a as u32 & 31, b as u32 & 31) } else { ((a as u32).min(32), (b as u32).min(32)) };
            (mask(n as u8) << at) & m(32)
        }
        Alu::SlctS32(w) => (if (c as i32) >= 0 { a } else { b }) & m(w),
        Alu::SlctF32(w, ftz) => {
            let f = f32::from_bits(c as u32);
            let f = if ftz && f.is_subnormal() { 0.0 } else { f };
            (if f >= 0.0 { a } else { b }) & m(w)
        }
        // Every other variant is taken by the float and conversion tables.
        _ => 0,
    }
}

fn amount(c: u64, wrap: bool) -> u32 {
    if wrap { c as u32 & 31 } else { (c as u32).min(32) }
}

fn mul24(a: u64, b: u64, hi: bool, s: bool) -> u64 {
    let p = if s { sx(a, 24).wrapping_mul(sx(b, 24)) as u64 } else { (a & mask(24)) * (b & mask(24)) };
    (if hi { p >> 16 } else { p }) & mask(32)
}

fn pair(a: u64, b: u64, f: impl Fn(u64, u64) -> u64) -> u64 {
    let lo = f(a & 0xffff, b & 0xffff) & 0xffff;
    let hi = f(a >> 16 & 0xffff, b >> 16 & 0xffff) & 0xffff;
    hi << 16 | lo
}

/// Three-input logic: `lut` bit (a << 2 | b << 1 | c) is the result.
#[inline(always)]
pub(crate) fn lop3(a: u64, b: u64, c: u64, lut: u8) -> u64 {
    let mut r = 0;
    for i in 0..8u8 {
        if lut >> i & 1 != 0 {
            let x = if i & 4 != 0 { a } else { !a };
            let y = if i & 2 != 0 { b } else { !b };
            let z = if i & 1 != 0 { c } else { !c };
            r |= x & y & z;
        }
    }
    r
}

/// prmt: mode 0 is the general form, then f4e, b4e, rc8, ecl, ecr, rc16.
fn prmt(a: u32, b: u32, c: u32, mode: u8) -> u64 {
    let v = u64::from(b) << 32 | u64::from(a);
    let byte = |i: u32| (v >> (8 * i)) as u32 & 0xff;
    let k = c & 3;
    let pick: [u32; 4] = match mode {
        0 => {
            let mut out = 0u32;
            for i in 0..4 {
                let sel = c >> (4 * i) & 0xf;
                let mut x = byte(sel & 7);
                if sel & 8 != 0 {
                    x = if x & 0x80 != 0 { 0xff } else { 0 };
                }
                out |= x << (8 * i);
            }
            return u64::from(out);
        }
        1 => [k, k + 1, k + 2, k + 3],
        2 => [k, (k + 7) & 7, (k + 6) & 7, (k + 5) & 7],
        3 => [k; 4],
        4 => [k, 1.max(k), 2.max(k), 3],
        5 => [0, 1.min(k), 2.min(k), k],
        _ => {
            let h = (k & 1) * 2;
            [h, h + 1, h, h + 1]
        }
    };
    u64::from((0..4).fold(0, |o, i| o | byte(pick[i]) << (8 * i)))
}

fn fns(m: u32, base: u32, offset: i32) -> u64 {
    let miss = 0xffff_ffff;
    if base > 31 {
        return miss;
    }
    let bit = |i: i64| m >> i & 1 != 0;
    if offset == 0 {
        return if bit(i64::from(base)) { u64::from(base) } else { miss };
    }
    let step = if offset > 0 { 1 } else { -1 };
    let mut left = i64::from(offset).abs();
    let mut at = i64::from(base);
    while (0..32).contains(&at) {
        if bit(at) {
            left -= 1;
            if left == 0 {
                return at as u64;
            }
        }
        at += step;
    }
    miss
}
