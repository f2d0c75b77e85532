//! Lane-wise instructions: fast loops for the frequent ones, [`num::eval`] lane by lane for the rest.

use super::lanes::{Bank, fma_lanes, lanes};
use super::{Machine, Warp};
use crate::inst::*;
use crate::num::{self, float, half};
use crate::types::{Rnd, Ty};

/// Plain to-nearest arithmetic without saturation.
fn plain(m: Fm) -> bool {
    m.rnd == Rnd::Rn && !m.sat && !m.relu
}

#[inline(always)]
fn ftz(bits: u32, on: bool) -> u32 {
    if on && bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

#[inline(always)]
fn canon(v: f32, on: bool) -> u32 {
    let b = v.to_bits();
    ftz(if b & 0x7fff_ffff > 0x7f80_0000 { 0x7fff_ffff } else { b }, on)
}

#[inline(always)]
fn f(bits: u32, on: bool) -> f32 {
    f32::from_bits(ftz(bits, on))
}

#[inline(always)]
fn pair(hi: u32, lo: u32, h: Hf) -> u32 {
    let one = |v: u32| u32::from(half::from_f32(f32::from_bits(v), h, Rnd::Rn));
    one(hi) << 16 | one(lo)
}

/// The frequent conversions, which have loops of their own.
fn simple(c: Cvt) -> bool {
    let half = matches!(c.from, Ty::F16 | Ty::BF16);
    if c.sat || c.relu || c.finite || c.integral {
        return false;
    }
    match (c.from.is_float(), c.to.is_float()) {
        (false, false) => true,
        (false, true) => c.to == Ty::F32 && matches!(c.from, Ty::S32 | Ty::U32) && c.rnd == Rnd::Rn,
        (true, true) => {
            half && c.to == Ty::F32
                || c.from == Ty::F32 && matches!(c.to, Ty::F16 | Ty::BF16) && c.rnd == Rnd::Rn
        }
        (true, false) => false,
    }
}

/// Those conversions; otherwise as [`num::eval`].
fn convert(bank: &mut Bank, c: Cvt, d: R, a: R, mask: u32) {
    let single = |h: u32, f: Hf| {
        let v = half::to_f32(h as u16, f);
        if v.is_nan() { 0x7fff_ffff } else { v.to_bits() }
    };
    let to_half = |v: u32, h: Hf| u32::from(half::from_f32(f(v, c.ftz), h, Rnd::Rn));
    match (c.from, c.to) {
        (Ty::F16, _) => bank.map1(d, mask, a, |v| single(v, Hf::F16)),
        (Ty::BF16, _) => bank.map1(d, mask, a, |v| ftz(single(v, Hf::BF16), c.ftz)),
        (Ty::F32, Ty::F16) => bank.map1(d, mask, a, |v| to_half(v, Hf::F16)),
        (Ty::F32, _) => bank.map1(d, mask, a, |v| to_half(v, Hf::BF16)),
        (Ty::S32, Ty::F32) => bank.map1(d, mask, a, |v| (v as i32 as f32).to_bits()),
        (Ty::U32, Ty::F32) => bank.map1(d, mask, a, |v| (v as f32).to_bits()),
        _ => {
            let (from, to) = (c.from.bits() as u8, c.to.bits() as u8);
            let (keep, fit) = (num::int::mask(from), num::int::mask(to));
            let (up, down) = (64 - u32::from(from), 64 - u32::from(to));
            let wide = num::int::mask(c.dbits);
            match (c.from.is_signed(), c.to.is_signed()) {
                (false, false) => bank.either1(d, mask, a, |v| v & keep & fit),
                (true, false) => bank.either1(d, mask, a, |v| ((v << up) as i64 >> up) as u64 & fit),
                (false, true) => {
                    bank.either1(d, mask, a, |v| (((v & keep) << down) as i64 >> down) as u64 & wide);
                }
                (true, true) => bank.either1(d, mask, a, |v| {
                    let x = (v << up) as i64 >> up;
                    (x << down >> down) as u64 & wide
                }),
            }
        }
    }
}

pub(super) fn alu(bank: &mut Bank, alu: Alu, d: R, s: [R; 4], mask: u32) {
    match alu {
        Alu::Mov(32) => bank.map1(d, mask, s[0], |a| a),
        Alu::Mov(64) => bank.wide1(d, mask, s[0], |a| a),
        Alu::Add(32) => bank.map2(d, mask, s[0], s[1], u32::wrapping_add),
        Alu::Add(64) => bank.wide2(d, mask, s[0], s[1], u64::wrapping_add),
        Alu::Sub(32) => bank.map2(d, mask, s[0], s[1], u32::wrapping_sub),
        Alu::Sub(64) => bank.wide2(d, mask, s[0], s[1], u64::wrapping_sub),
        Alu::MulLo(32) => bank.map2(d, mask, s[0], s[1], u32::wrapping_mul),
        Alu::MulLo(64) => bank.wide2(d, mask, s[0], s[1], u64::wrapping_mul),
        Alu::MadLo(32) => bank.map3(d, mask, s, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        Alu::MulWide(32, false) => bank.widen2(d, mask, s[0], s[1], |a, b| u64::from(a) * u64::from(b)),
        Alu::MulWide(32, true) => {
            bank.widen2(d, mask, s[0], s[1], |a, b| (i64::from(a as i32) * i64::from(b as i32)) as u64)
        }
        Alu::And(32) => bank.map2(d, mask, s[0], s[1], |a, b| a & b),
        Alu::Or(32) => bank.map2(d, mask, s[0], s[1], |a, b| a | b),
        Alu::Xor(32) => bank.map2(d, mask, s[0], s[1], |a, b| a ^ b),
        Alu::And(64) => bank.wide2(d, mask, s[0], s[1], |a, b| a & b),
        Alu::Or(64) => bank.wide2(d, mask, s[0], s[1], |a, b| a | b),
        Alu::Xor(64) => bank.wide2(d, mask, s[0], s[1], |a, b| a ^ b),
        Alu::Not(32) => bank.map1(d, mask, s[0], |a| !a),
        Alu::Lop3(lut) => bank
            .map3(d, mask, s, |a, b, c| num::int::lop3(u64::from(a), u64::from(b), u64::from(c), lut) as u32),
        Alu::Shl(32) => bank.map2(d, mask, s[0], s[1], |a, n| if n > 31 { 0 } else { a << n }),
        Alu::Shr(32, false) => bank.map2(d, mask, s[0], s[1], |a, n| if n > 31 { 0 } else { a >> n }),
        Alu::Shr(32, true) => bank.map2(d, mask, s[0], s[1], |a, n| ((a as i32) >> n.min(31)) as u32),
        Alu::Shl(64) => bank.shift64(d, mask, s[0], s[1], |a, n| if n > 63 { 0 } else { a << n }),
        Alu::Shr(64, false) => bank.shift64(d, mask, s[0], s[1], |a, n| if n > 63 { 0 } else { a >> n }),
        Alu::Min(32, true) => bank.map2(d, mask, s[0], s[1], |a, b| (a as i32).min(b as i32) as u32),
        Alu::Max(32, true) => bank.map2(d, mask, s[0], s[1], |a, b| (a as i32).max(b as i32) as u32),
        Alu::Min(32, false) => bank.map2(d, mask, s[0], s[1], u32::min),
        Alu::Max(32, false) => bank.map2(d, mask, s[0], s[1], u32::max),
        Alu::FAdd(m) if plain(m) => {
            bank.map2(d, mask, s[0], s[1], |a, b| canon(f(a, m.ftz) + f(b, m.ftz), m.ftz));
        }
        Alu::FSub(m) if plain(m) => {
            bank.map2(d, mask, s[0], s[1], |a, b| canon(f(a, m.ftz) - f(b, m.ftz), m.ftz));
        }
        Alu::FMul(m) if plain(m) => {
            bank.map2(d, mask, s[0], s[1], |a, b| canon(f(a, m.ftz) * f(b, m.ftz), m.ftz));
        }
        Alu::FFma(m) if plain(m) => {
            let mut v = [[0f32; 32]; 3];
            for (v, &r) in v.iter_mut().zip(&s) {
                let x = bank.r32(r);
                for i in 0..32 {
                    v[i] = f(x[i], m.ftz);
                }
            }
            let (mut out, mut bits) = ([0f32; 32], [0u32; 32]);
            fma_lanes(&v[0], &v[1], &v[2], &mut out);
            for i in 0..32 {
                bits[i] = canon(out[i], m.ftz);
            }
            bank.put32(d, mask, &bits);
        }
        Alu::FMin { nan: false, ftz, xorsign: false } => {
            bank.map2(d, mask, s[0], s[1], |a, b| float::minmax32(a, b, false, false, ftz, false));
        }
        Alu::FMax { nan: false, ftz, xorsign: false } => {
            bank.map2(d, mask, s[0], s[1], |a, b| float::minmax32(a, b, true, false, ftz, false));
        }
        Alu::Cvt(c) if simple(c) => convert(bank, c, d, s[0], mask),
        Alu::CvtPack(h, m, false) if plain(m) && h == Hf::F16 => {
            bank.map2(d, mask, s[0], s[1], |a, b| pair(a, b, Hf::F16));
        }
        Alu::CvtPack(h, m, false) if plain(m) && h == Hf::BF16 => {
            bank.map2(d, mask, s[0], s[1], |a, b| pair(a, b, Hf::BF16));
        }
        Alu::FMin { nan, ftz, xorsign } => {
            bank.map2(d, mask, s[0], s[1], |a, b| float::minmax32(a, b, false, nan, ftz, xorsign));
        }
        Alu::FMax { nan, ftz, xorsign } => {
            bank.map2(d, mask, s[0], s[1], |a, b| float::minmax32(a, b, true, nan, ftz, xorsign));
        }
        _ => {
            for lane in lanes(mask) {
                let get = |r: R| if r.some() { bank.get(r, lane) } else { 0 };
                let v = num::eval(alu, [get(s[0]), get(s[1]), get(s[2]), get(s[3])]);
                bank.set(d, lane, v);
            }
        }
    }
}

/// Mask of lanes for which the comparison holds (any lane may be set outside `active`).
pub(super) fn compare(bank: &Bank, cmp: Cmp, ty: Ty, flush: bool, a: R, b: R) -> u32 {
    let mut m = 0u32;
    macro_rules! each {
        ($get:expr) => {
            for i in 0..32 {
                let (x, y) = $get(i);
                let r = match cmp {
                    Cmp::Eq | Cmp::Equ => x == y,
                    Cmp::Ne | Cmp::Neu => x != y,
                    Cmp::Lt | Cmp::Ltu => x < y,
                    Cmp::Le | Cmp::Leu => x <= y,
                    Cmp::Gt | Cmp::Gtu => x > y,
                    Cmp::Ge | Cmp::Geu => x >= y,
                    Cmp::Num => true,
                    Cmp::Nan => false,
                };
                m |= u32::from(r) << i;
            }
        };
    }
    match ty {
        Ty::F32 => {
            let (x, y) = (bank.r32(a), bank.r32(b));
            macro_rules! all {
                ($op:tt) => {
                    for i in 0..32 {
                        m |= u32::from(f(x[i], flush) $op f(y[i], flush)) << i;
                    }
                };
            }
            match cmp {
                Cmp::Lt => all!(<),
                Cmp::Le => all!(<=),
                Cmp::Gt => all!(>),
                Cmp::Ge => all!(>=),
                Cmp::Eq => all!(==),
                _ => {
                    for i in 0..32 {
                        let (x, y) = (f64::from(f(x[i], flush)), f64::from(f(y[i], flush)));
                        m |= u32::from(compare_float(cmp, x, y)) << i;
                    }
                }
            }
        }
        Ty::F64 | Ty::F16 | Ty::BF16 => {
            for i in 0..32 {
                let get = |r: R| match ty {
                    Ty::F64 => f64::from_bits(bank.r64(r)[i]),
                    Ty::F16 => {
                        let v = half::flush(bank.r32(r)[i] as u16, Hf::F16, flush);
                        f64::from(half::to_f32(v, Hf::F16))
                    }
                    _ => f64::from(half::to_f32(bank.r32(r)[i] as u16, Hf::BF16)),
                };
                m |= u32::from(compare_float(cmp, get(a), get(b))) << i;
            }
        }
        Ty::S64 => {
            let (x, y) = (bank.r64(a), bank.r64(b));
            each!(|i: usize| (x[i] as i64, y[i] as i64));
        }
        Ty::B64 | Ty::U64 => {
            let (x, y) = (bank.r64(a), bank.r64(b));
            each!(|i: usize| (x[i], y[i]));
        }
        Ty::S32 => {
            let (x, y) = (bank.r32(a), bank.r32(b));
            each!(|i: usize| (x[i] as i32, y[i] as i32));
        }
        Ty::S16 => {
            let (x, y) = (bank.r32(a), bank.r32(b));
            each!(|i: usize| (x[i] as i16, y[i] as i16));
        }
        Ty::B16 | Ty::U16 => {
            let (x, y) = (bank.r32(a), bank.r32(b));
            each!(|i: usize| (x[i] as u16, y[i] as u16));
        }
        _ => {
            let (x, y) = (bank.r32(a), bank.r32(b));
            each!(|i: usize| (x[i], y[i]));
        }
    }
    m
}

/// The masks of the lower and the upper halves.
fn compare_pair(bank: &Bank, cmp: Cmp, fmt: Hf, ftz: bool, a: R, b: R) -> (u32, u32) {
    let get = |v: u32| f64::from(half::to_f32(half::flush(v as u16, fmt, ftz), fmt));
    let (mut lo, mut hi) = (0, 0);
    for i in 0..32 {
        let (x, y) = (bank.r32(a)[i], bank.r32(b)[i]);
        lo |= u32::from(compare_float(cmp, get(x), get(y))) << i;
        hi |= u32::from(compare_float(cmp, get(x >> 16), get(y >> 16))) << i;
    }
    (lo, hi)
}

pub(super) fn compare_float(cmp: Cmp, x: f64, y: f64) -> bool {
    let nan = x.is_nan() || y.is_nan();
    match cmp {
        Cmp::Eq => x == y,
        // An ordered comparison with NaN is false, `ne` too.
        Cmp::Ne => !nan && x != y,
        Cmp::Lt => x < y,
        Cmp::Le => x <= y,
        Cmp::Gt => x > y,
        Cmp::Ge => x >= y,
        Cmp::Equ => nan || x == y,
        Cmp::Neu => nan || x != y,
        Cmp::Ltu => nan || x < y,
        Cmp::Leu => nan || x <= y,
        Cmp::Gtu => nan || x > y,
        Cmp::Geu => nan || x >= y,
        Cmp::Num => !nan,
        Cmp::Nan => nan,
    }
}

#[inline(always)]
fn combine(bop: Bop, a: u32, b: u32) -> u32 {
    match bop {
        Bop::And => a & b,
        Bop::Or => a | b,
        Bop::Xor => a ^ b,
    }
}

/// Lanes in which a register is known that a `prmt` takes bytes from. Selectors are constants in
/// practice: that of lane 0 stands for all.
fn bytes_known(w: &Warp, op: Alu, s: &[R; 4]) -> u32 {
    let (a, b) = (w.known[s[0].slot()], w.known[s[1].slot()]);
    match op {
        Alu::Prmt(0) => {
            let selector = w.bank.r32(s[2])[0];
            let takes = |bit| (0..4).any(|i| selector >> (4 * i + 2) & 1 == bit);
            (if takes(0) { a } else { 0 }) | (if takes(1) { b } else { 0 })
        }
        _ => a | b,
    }
}

impl Machine<'_> {
    /// The lane-wise part of the instruction set.
    #[inline]
    pub(super) fn lanewise(&mut self, op: &Op, w: &mut Warp, pc: u32, mask: u32) {
        match *op {
            Op::Alu { alu: a, d, s } => {
                if self.check_init {
                    if let Alu::Mov(_) = a {
                        // A copy of something unwritten is not a use of it.
                        let k = w.known[s[0].slot()] & mask;
                        let old = w.known[d.slot()];
                        w.known[d.slot()] = (old & !mask) | k;
                    } else if let Alu::Prmt(_) = a {
                        // Nor is a permutation of bytes, some of which LLVM never reads: known when any
                        // register it takes bytes from is.
                        self.check_regs(w, pc, mask, &s[2..]);
                        let k = bytes_known(w, a, &s);
                        w.known[d.slot()] = (w.known[d.slot()] & !mask) | (k & mask);
                    } else {
                        self.check_regs(w, pc, mask, &s);
                        w.known[d.slot()] |= mask;
                    }
                }
                alu(&mut w.bank, a, d, s, mask);
            }
            Op::Setp { cmp, ty, ftz, p, q, a, b, bop, c, cneg } => {
                self.check_regs(w, pc, mask, &[a, b]);
                let r = compare(&w.bank, cmp, ty, ftz, a, b);
                if c == P_TRUE && q == NO_P {
                    self.set_pred(w, mask, p, r);
                    return;
                }
                self.check_pred(w, pc, mask, c);
                let third = w.preds[c as usize];
                let third = if cneg { !third } else { third };
                self.set_pred(w, mask, p, combine(bop, r, third));
                self.set_pred(w, mask, q, combine(bop, !r, third));
            }
            Op::SetpX2 { cmp, fmt, ftz, p, q, a, b, bop, c, cneg } => {
                self.check_regs(w, pc, mask, &[a, b]);
                self.check_pred(w, pc, mask, c);
                let (lo, hi) = compare_pair(&w.bank, cmp, fmt, ftz, a, b);
                let third = w.preds[c as usize];
                let third = if cneg { !third } else { third };
                self.set_pred(w, mask, p, combine(bop, lo, third));
                self.set_pred(w, mask, q, combine(bop, hi, third));
            }
            Op::SetX2 { cmp, fmt, float, ftz, d, a, b, bop, c, cneg } => {
                self.check_regs(w, pc, mask, &[a, b]);
                self.check_pred(w, pc, mask, c);
                let (lo, hi) = compare_pair(&w.bank, cmp, fmt, ftz, a, b);
                let third = w.preds[c as usize];
                let third = if cneg { !third } else { third };
                let (lo, hi) = (combine(bop, lo, third), combine(bop, hi, third));
                let one: u32 = match (float, fmt) {
                    (false, _) => 0xffff,
                    (true, Hf::F16) => 0x3c00,
                    (true, Hf::BF16) => 0x3f80,
                };
                let out = std::array::from_fn(|i| ((hi >> i & 1) * (one << 16)) | ((lo >> i & 1) * one));
                w.bank.put32(d, mask, &out);
                self.wrote(w, mask, d);
            }
            Op::Set { cmp, dty, ty, ftz, d, a, b, bop, c, cneg } => {
                self.check_regs(w, pc, mask, &[a, b]);
                self.check_pred(w, pc, mask, c);
                let third = w.preds[c as usize];
                let r = combine(bop, compare(&w.bank, cmp, ty, ftz, a, b), if cneg { !third } else { third });
                let one = match dty {
                    Ty::F32 => 0x3f80_0000,
                    Ty::F16 => 0x3c00,
                    Ty::BF16 => 0x3f80,
                    _ => num::int::mask(dty.bits() as u8),
                };
                for lane in lanes(mask) {
                    w.bank.set(d, lane, if r >> lane & 1 != 0 { one } else { 0 });
                }
                self.wrote(w, mask, d);
            }
            Op::Testp { what, ty, p, a } => {
                self.check_regs(w, pc, mask, &[a]);
                let mut r = 0u32;
                for lane in lanes(mask) {
                    let v = w.bank.get(a, lane);
                    let class = if ty == Ty::F64 {
                        f64::from_bits(v).classify()
                    } else {
                        f32::from_bits(v as u32).classify()
                    };
                    use std::num::FpCategory::*;
                    let yes = match what {
                        0 => !matches!(class, Nan | Infinite),
                        1 => class == Infinite,
                        2 => class != Nan,
                        3 => class == Nan,
                        // ISA: zeros count as normal.
                        4 => matches!(class, Normal | Zero),
                        _ => class == Subnormal,
                    };
                    r |= u32::from(yes) << lane;
                }
                self.set_pred(w, mask, p, r);
            }
            Op::Selp { bits, d, a, b, p, pneg } => {
                self.check_pred(w, pc, mask, p);
                let t = w.preds[p as usize];
                let t = if pneg { !t } else { t };
                if self.check_init {
                    let k = (w.known[a.slot()] & t) | (w.known[b.slot()] & !t);
                    let old = w.known[d.slot()];
                    w.known[d.slot()] = (old & !mask) | (k & mask);
                }
                if bits == 64 {
                    let (x, y) = (*w.bank.r64(a), *w.bank.r64(b));
                    let mut out = [0u64; 32];
                    for i in 0..32 {
                        out[i] = if t >> i & 1 != 0 { x[i] } else { y[i] };
                    }
                    w.bank.put64(d, mask, &out);
                } else {
                    let (x, y) = (*w.bank.r32(a), *w.bank.r32(b));
                    let mut out = [0u32; 32];
                    for i in 0..32 {
                        out[i] = if t >> i & 1 != 0 { x[i] } else { y[i] };
                    }
                    w.bank.put32(d, mask, &out);
                }
            }
            Op::PLogic { bop, d, a, aneg, b, bneg } => {
                let (x, y) = (w.preds[a as usize], w.preds[b as usize]);
                if self.check_init {
                    // A known operand that decides alone makes the result known.
                    let k = w.pknown[a as usize] | w.pknown[b as usize];
                    w.pknown[d as usize] = (w.pknown[d as usize] & !mask) | (k & mask);
                }
                let v = combine(bop, if aneg { !x } else { x }, if bneg { !y } else { y });
                let old = &mut w.preds[d as usize];
                *old = (*old & !mask) | (v & mask);
            }
            Op::Pack { bits, n, d, s } => {
                let n = usize::from(n);
                if self.check_init {
                    // LLVM packs halves it never reads: known when any part is.
                    let k = s[..n].iter().fold(0, |k, r| k | w.known[r.slot()]);
                    w.known[d.slot()] = (w.known[d.slot()] & !mask) | (k & mask);
                }
                let part = num::int::mask(bits);
                for lane in lanes(mask) {
                    let mut v = 0u64;
                    for (i, &r) in s[..n].iter().enumerate() {
                        v |= (w.bank.get(r, lane) & part) << (i * usize::from(bits));
                    }
                    w.bank.set(d, lane, v);
                }
            }
            Op::Unpack { bits, n, d, s } => {
                let part = num::int::mask(bits);
                let k = w.known[s.slot()];
                let source: [u64; 32] = std::array::from_fn(|i| w.bank.get(s, i));
                for (i, &r) in d[..usize::from(n)].iter().enumerate() {
                    for lane in lanes(mask) {
                        w.bank.set(r, lane, source[lane] >> (i * usize::from(bits)) & part);
                    }
                    if self.check_init {
                        w.known[r.slot()] = (w.known[r.slot()] & !mask) | (k & mask);
                    }
                }
            }
            Op::Carry { sub, inn, out, bits, d, a, b, cc } => {
                self.check_regs(w, pc, mask, &[a, b]);
                let part = u128::from(num::int::mask(bits));
                let flag = w.preds[cc as usize];
                let mut carry = 0u32;
                for lane in lanes(mask) {
                    let (x, y) =
                        (u128::from(w.bank.get(a, lane)) & part, u128::from(w.bank.get(b, lane)) & part);
                    let c = if inn { u128::from(flag >> lane & 1) } else { 0 };
                    let (v, over) = if sub {
                        (x.wrapping_sub(y).wrapping_sub(c), x < y + c)
                    } else {
                        (x + y + c, x + y + c > part)
                    };
                    w.bank.set(d, lane, (v & part) as u64);
                    carry |= u32::from(over) << lane;
                }
                self.wrote(w, mask, d);
                if out {
                    self.set_pred(w, mask, cc, carry);
                }
            }
            Op::MadCarry { hi, signed, inn, out, bits, d, a, b, c, cc } => {
                self.check_regs(w, pc, mask, &[a, b, c]);
                let part = u128::from(num::int::mask(bits));
                let flag = w.preds[cc as usize];
                let mut carry = 0u32;
                let product = if hi { Alu::MulHi(bits, signed) } else { Alu::MulLo(bits) };
                for lane in lanes(mask) {
                    let x = num::eval(product, [w.bank.get(a, lane), w.bank.get(b, lane), 0, 0]);
                    let c = u128::from(w.bank.get(c, lane)) & part;
                    let f = if inn { u128::from(flag >> lane & 1) } else { 0 };
                    let v = u128::from(x) + c + f;
                    w.bank.set(d, lane, (v & part) as u64);
                    carry |= u32::from(v > part) << lane;
                }
                self.wrote(w, mask, d);
                if out {
                    self.set_pred(w, mask, cc, carry);
                }
            }
            _ => {}
        }
    }
}
