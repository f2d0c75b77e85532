//! mma.sync: fragments become plain tiles by the layouts of the ISA, and the result goes back.
//!
//! All shapes but Volta's share one layout: lane 4 g + t holds of register i, with e elements in it,
//! row g (or g + 8 for odd i) and columns e t ... of block i / 2. Products are exact; the sum of one
//! element is taken in double precision over k and rounded once together with the accumulator.
//! Hardware may differ in the last bits: the order inside one mma is not specified.

use super::lanes::Bank;
use super::{Cta, Machine};
use crate::inst::*;
use crate::num::half;
use crate::num::round::sum_odd;
use crate::types::Rnd;

/// Element `j` of a register of `f`, exactly.
pub(super) fn element(x: u64, j: usize, f: Elem) -> f64 {
    let byte = (x >> (8 * j)) as u8;
    match f {
        Elem::F16 => f64::from(half::to_f32((x >> (16 * j)) as u16, Hf::F16)),
        Elem::BF16 => f64::from(half::to_f32((x >> (16 * j)) as u16, Hf::BF16)),
        // The last 13 bits are not looked at.
        Elem::Tf32 => f64::from(f32::from_bits(x as u32 & !0x1fff)),
        Elem::E4m3 => crate::num::cvt::fp8_value(byte, true),
        Elem::E5m2 => crate::num::cvt::fp8_value(byte, false),
        Elem::F64 => f64::from_bits(x),
        Elem::S8 => f64::from(byte as i8),
        Elem::U8 => f64::from(byte),
    }
}

pub(super) fn canon32(v: f32) -> u32 {
    if v.is_nan() { 0x7fff_ffff } else { v.to_bits() }
}

/// Row and column of element `i` of a lane's accumulator.
fn spot(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + (i & 1))
}

/// Elements a lane has of the accumulator, which are f32 or packed f16.
fn read_sums(
    bank: &Bank,
    c: &[R],
    f32s: bool,
    spot: impl Fn(usize, usize) -> (usize, usize),
) -> [[f64; 8]; 16] {
    let mut acc = [[0f64; 8]; 16];
    for i in 0..if f32s { c.len() } else { 2 * c.len() } {
        for lane in 0..32 {
            let (row, col) = spot(lane, i);
            acc[row][col] = if f32s {
                f64::from(f32::from_bits(bank.r32(c[i])[lane]))
            } else {
                let x = bank.r32(c[i / 2])[lane] >> (16 * (i & 1));
                f64::from(half::to_f32(x as u16, Hf::F16))
            };
        }
    }
    acc
}

fn write_sums(
    bank: &mut Bank,
    d: &[R],
    f32s: bool,
    acc: &[[f64; 8]; 16],
    spot: impl Fn(usize, usize) -> (usize, usize),
) {
    for i in 0..if f32s { d.len() } else { 2 * d.len() } {
        for lane in 0..32 {
            let (row, col) = spot(lane, i);
            let v = acc[row][col];
            if f32s {
                bank.m32(d[i])[lane] = canon32(v as f32);
            } else {
                let h = u32::from(half::from_f64(v, Hf::F16, Rnd::Rn));
                let x = &mut bank.m32(d[i / 2])[lane];
                *x = if i & 1 == 0 { h } else { (*x & 0xffff) | h << 16 };
            }
        }
    }
}

/// acc += a * b over k, in double precision.
fn multiply<const K: usize>(a: &[[f64; K]; 16], b: &[[f64; 8]; K], acc: &mut [[f64; 8]; 16], k: usize) {
    for (row, out) in acc.iter_mut().enumerate() {
        let mut sum = [0f64; 8];
        for kk in 0..k {
            let x = a[row][kk];
            for (s, &y) in sum.iter_mut().zip(&b[kk]) {
                *s += x * y;
            }
        }
        for (o, &s) in out.iter_mut().zip(&sum) {
            // To odd, so that the rounding to single that follows is the only one.
            *o = sum_odd(*o, s);
        }
    }
}

/// The tiles of a and b, with `per` elements in a register.
fn tiles<T: Copy, const K: usize>(
    bank: &Bank,
    (a, b): (&[R], &[R]),
    per: usize,
    tall: bool,
    zero: T,
    get: impl Fn(u64, usize, bool) -> T,
) -> ([[T; K]; 16], [[T; 8]; K]) {
    let (mut ta, mut tb) = ([[zero; K]; 16], [[zero; 8]; K]);
    for (i, &r) in a.iter().enumerate() {
        let (down, block) = if tall { (i & 1, i / 2) } else { (0, i) };
        for lane in 0..32 {
            let x = bank.get(r, lane);
            let row = &mut ta[lane / 4 + 8 * down];
            let from = per * (lane % 4) + 4 * per * block;
            for (j, v) in row[from..from + per].iter_mut().enumerate() {
                *v = get(x, j, true);
            }
        }
    }
    for (i, &r) in b.iter().enumerate() {
        for lane in 0..32 {
            let x = bank.get(r, lane);
            let from = per * (lane % 4) + 4 * per * i;
            for (j, row) in tb[from..from + per].iter_mut().enumerate() {
                row[lane / 4] = get(x, j, false);
            }
        }
    }
    (ta, tb)
}

impl Machine<'_> {
    pub(super) fn mma(&mut self, cta: &mut Cta, wi: usize, pc: u32, mask: u32, kind: MmaKind, at: usize) {
        let [nd, na, nb, nc] = kind.registers();
        let prog = self.l.prog;
        let d = &prog.pool[at..at + nd];
        let a = &prog.pool[at + nd..at + nd + na];
        let b = &prog.pool[at + nd + na..at + nd + na + nb];
        let c = &prog.pool[at + nd + na + nb..at + nd + na + nb + nc];
        let w = &mut cta.warps[wi];
        self.check_regs(w, pc, mask, a);
        self.check_regs(w, pc, mask, b);
        self.check_regs(w, pc, mask, c);
        let bank = &mut w.bank;
        let (m, k) = kind.shape();
        self.n.mma_operations += 2 * 8 * (m * k) as u64;
        match kind {
            MmaKind::Half { fmt, acc_f32, .. } => {
                let f = if fmt == Hf::F16 { Elem::F16 } else { Elem::BF16 };
                let (ta, tb) = tiles::<f64, 16>(bank, (a, b), 2, true, 0.0, |x, j, _| element(x, j, f));
                let mut acc = read_sums(bank, c, acc_f32, spot);
                multiply(&ta, &tb, &mut acc, k);
                write_sums(bank, d, acc_f32, &acc, spot);
            }
            MmaKind::Single { a: fa, b: fb, acc_f32, .. } => {
                let per = if fa == Elem::Tf32 { 1 } else { 4 };
                let (ta, tb) = tiles::<f64, 32>(bank, (a, b), per, true, 0.0, |x, j, first| {
                    element(x, j, if first { fa } else { fb })
                });
                let mut acc = read_sums(bank, c, acc_f32, spot);
                multiply(&ta, &tb, &mut acc, k);
                write_sums(bank, d, acc_f32, &acc, spot);
            }
            MmaKind::Double { tall, .. } => {
                let (ta, tb) = tiles::<f64, 16>(bank, (a, b), 1, tall, 0.0, |x, _, _| f64::from_bits(x));
                let acc: Vec<[u64; 32]> = c.iter().map(|&r| *bank.r64(r)).collect();
                for (i, acc) in acc.iter().enumerate() {
                    for (lane, &base) in acc.iter().enumerate() {
                        let (row, col) = spot(lane, i);
                        let sum =
                            (0..k).fold(f64::from_bits(base), |v, kk| ta[row][kk].mul_add(tb[kk][col], v));
                        bank.m64(d[i])[lane] = sum.to_bits();
                    }
                }
            }
            MmaKind::Int { bits, tall, a_signed, b_signed, sat, .. } => {
                let bits = u32::from(bits);
                let int = |x: u64, j: usize, signed: bool| {
                    let top = (x as u32) << (32 - bits * (j as u32 + 1));
                    if signed { top as i32 >> (32 - bits) } else { (top >> (32 - bits)) as i32 }
                };
                let (ta, tb) = tiles::<i32, 64>(bank, (a, b), 32 / bits as usize, tall, 0, |x, j, first| {
                    int(x, j, if first { a_signed } else { b_signed })
                });
                let mut out = [[0i32; 8]; 16];
                for (row, sums) in out.iter_mut().enumerate().take(m) {
                    for kk in 0..k {
                        for (o, &y) in sums.iter_mut().zip(&tb[kk]) {
                            *o += ta[row][kk] * y;
                        }
                    }
                }
                add_sums(bank, d, c, &out, sat);
            }
            MmaKind::Bit { tall, xor, .. } => {
                // One register is 32 steps of k.
                let (ta, tb) = tiles::<u32, 8>(bank, (a, b), 1, tall, 0, |x, _, _| x as u32);
                let mut out = [[0i32; 8]; 16];
                for (row, sums) in out.iter_mut().enumerate().take(m) {
                    for (col, o) in sums.iter_mut().enumerate() {
                        *o = (0..k / 32)
                            .map(|w| if xor { ta[row][w] ^ tb[w][col] } else { ta[row][w] & tb[w][col] })
                            .map(|v| v.count_ones() as i32)
                            .sum();
                    }
                }
                add_sums(bank, d, c, &out, false);
            }
            MmaKind::Quad { a_row, b_row, d_f32, c_f32 } => {
                // Four products of 8 x 8 x 4, each of the lanes 4 q ... 4 q + 3 and 16 higher.
                for q in 0..4 {
                    quad(bank, q, (d, a, b, c), (a_row, b_row), (d_f32, c_f32));
                }
            }
        }
        for &r in d {
            self.wrote(w, mask, r);
        }
    }
}

/// d = c + sums, in whole numbers.
fn add_sums(bank: &mut Bank, d: &[R], c: &[R], sums: &[[i32; 8]; 16], sat: bool) {
    let acc: Vec<[u32; 32]> = c.iter().map(|&r| *bank.r32(r)).collect();
    for (i, acc) in acc.iter().enumerate() {
        for (lane, &base) in acc.iter().enumerate() {
            let (row, col) = spot(lane, i);
            let (base, v) = (base as i32, sums[row][col]);
            let sum = if sat { base.saturating_add(v) } else { base.wrapping_add(v) };
            bank.m32(d[i])[lane] = sum as u32;
        }
    }
}

/// One of the four products of `m8n8k4` of halves.
fn quad(
    bank: &mut Bank,
    q: usize,
    (d, a, b, c): (&[R], &[R], &[R], &[R]),
    (a_row, b_row): (bool, bool),
    (d_f32, c_f32): (bool, bool),
) {
    let lanes: [usize; 8] = std::array::from_fn(|i| 4 * q + i % 4 + 16 * (i / 4));
    let half = |r: &[R], lane: usize, i: usize| {
        f64::from(half::to_f32((bank.r32(r[i / 2])[lane] >> (16 * (i & 1))) as u16, Hf::F16))
    };
    let (mut ta, mut tb, mut acc) = ([[0f64; 16]; 16], [[0f64; 8]; 16], [[0f64; 8]; 16]);
    // Accumulators: halves lie by rows, singles in a pattern of their own.
    let spot = |lane: usize, i: usize, f32s: bool| {
        let up = if lane < 16 { 0 } else { 4 };
        if f32s { ((lane & 1) + (i & 2) + up, (i & 4) + (lane & 2) + (i & 1)) } else { (lane % 4 + up, i) }
    };
    for lane in lanes {
        let (t, up) = (lane % 4, if lane < 16 { 0 } else { 4 });
        for i in 0..4 {
            let (row, k) = if a_row { (t + up, i) } else { (i + up, t) };
            ta[row][k] = half(a, lane, i);
            let (k, col) = if b_row { (t, i + up) } else { (i, t + up) };
            tb[k][col] = half(b, lane, i);
        }
        for i in 0..8 {
            let (row, col) = spot(lane, i, c_f32);
            acc[row][col] =
                if c_f32 { f64::from(f32::from_bits(bank.r32(c[i])[lane])) } else { half(c, lane, i) };
        }
    }
    multiply(&ta, &tb, &mut acc, 4);
    for lane in lanes {
        for i in 0..8 {
            let (row, col) = spot(lane, i, d_f32);
            let v = acc[row][col];
            if d_f32 {
                bank.m32(d[i])[lane] = canon32(v as f32);
            } else {
                let h = u32::from(half::from_f64(v, Hf::F16, Rnd::Rn));
                let x = &mut bank.m32(d[i / 2])[lane];
                *x = if i & 1 == 0 { h } else { (*x & 0xffff) | h << 16 };
            }
        }
    }
}
