//! ldmatrix, stmatrix, movmatrix and mma.sync.
//!
//! Fragments are gathered into plain row-major tiles by the layouts of the ISA, multiplied, and
//! scattered back. Products are exact; the sum of one element is taken in double precision over k
//! and rounded once together with the accumulator. Hardware may differ in the last bits: the order
//! inside one mma is not specified.

use super::mem::{read_le, write_le};
use super::{Cta, Machine};
use crate::inst::*;
use crate::memory::SHARED_WINDOW;
use crate::num::half;
use crate::num::round::sum_odd;
use crate::types::{Rnd, Space};

impl Machine<'_> {
    pub(super) fn matrix(&mut self, op: &Op, cta: &mut Cta, wi: usize, pc: u32, mask: u32) {
        match *op {
            Op::Ldmatrix { n, trans, regs, base, offset, generic } => {
                self.ldmatrix(cta, wi, pc, mask, (n, trans, regs), base, offset, generic, true);
            }
            Op::Stmatrix { n, trans, regs, base, offset, generic } => {
                self.ldmatrix(cta, wi, pc, mask, (n, trans, regs), base, offset, generic, false);
            }
            Op::Movmatrix { d, a } => {
                let w = &mut cta.warps[wi];
                self.check_regs(w, pc, mask, &[a]);
                let v = *w.bank.r32(a);
                let get = |r: usize, c: usize| v[r * 4 + c / 2] >> (16 * (c & 1)) & 0xffff;
                let mut out = [0u32; 32];
                for (lane, o) in out.iter_mut().enumerate() {
                    let (r, c) = (lane / 4, 2 * (lane % 4));
                    *o = get(c, r) | get(c + 1, r) << 16;
                }
                w.bank.put32(d, mask, &out);
                self.wrote(w, mask, d);
            }
            Op::Mma { kind, regs } => self.mma(cta, wi, pc, mask, kind, regs as usize),
            Op::WmmaMove { load, m, frag, stride, regs, address, value } => {
                self.wmma_move(cta, wi, pc, mask, load, m, frag, stride, regs as usize, (address, value));
            }
            Op::WmmaMma { fmt, shape, a_row, b_row, n, regs } => {
                self.wmma_mma(cta, wi, pc, mask, fmt, shape, (a_row, b_row), n, regs as usize);
            }
            _ => {}
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn ldmatrix(
        &mut self,
        cta: &mut Cta,
        wi: usize,
        pc: u32,
        mask: u32,
        (n, trans, regs): (u8, bool, u32),
        base: R,
        offset: i64,
        generic: bool,
        load: bool,
    ) {
        let n = usize::from(n);
        // Lanes beyond the rows of n matrices may hold any address.
        let rows = if n == 4 { u32::MAX } else { (1u32 << (8 * n)) - 1 } & mask;
        self.check_regs(&mut cta.warps[wi], pc, rows, &[base]);
        self.addresses(cta, wi, base, offset);
        if generic {
            for a in cta.warps[wi].addr.iter_mut() {
                *a = a.wrapping_sub(SHARED_WINDOW);
            }
        }
        let prog = self.l.prog;
        let list = &prog.pool[regs as usize..regs as usize + n];
        let s = self.spots(cta, wi, pc, rows, Space::Shared, 16, !load);
        if self.hooks.is_some() {
            self.watch_memory(cta, wi, Space::Shared, s.ok, 16, !load);
        }
        if self.count {
            self.n.shared_accesses += 1;
            self.n.shared_bytes += 16 * u64::from(s.ok.count_ones());
            self.n.shared_passes_ideal += n as u64;
            self.n.bank_conflicts += row_conflicts(&cta.warps[wi].addr, s.ok, n);
        }
        if load && self.check_init {
            self.check_written(cta, wi, pc, &s, 16);
        }
        if !load {
            self.check_regs(&mut cta.warps[wi], pc, mask, list);
        }
        if load && self.check_race {
            self.race_read(cta, wi, pc, &s, 16, super::race::How::default(), true);
        }
        let Cta { shared, shared_known, warps, .. } = cta;
        let w = &mut warps[wi];
        for (m, &reg) in list.iter().enumerate() {
            let at = |r: usize| (s.ok >> (m * 8 + r) & 1 != 0).then(|| s.offset[m * 8 + r]);
            if load {
                let mut tile = [[0u16; 8]; 8];
                for (r, row) in tile.iter_mut().enumerate() {
                    if let Some(o) = at(r) {
                        for (c, v) in row.iter_mut().enumerate() {
                            *v = read_le(shared, o + 2 * c, 2) as u16;
                        }
                    }
                }
                let mut out = [0u32; 32];
                for (lane, o) in out.iter_mut().enumerate() {
                    let (r, c) = (lane / 4, 2 * (lane % 4));
                    let (lo, hi) =
                        if trans { (tile[c][r], tile[c + 1][r]) } else { (tile[r][c], tile[r][c + 1]) };
                    *o = u32::from(lo) | u32::from(hi) << 16;
                }
                w.bank.put32(reg, mask, &out);
            } else {
                let v = *w.bank.r32(reg);
                for lane in 0..32 {
                    let (r, c) = (lane / 4, 2 * (lane % 4));
                    for (k, x) in [v[lane] & 0xffff, v[lane] >> 16].into_iter().enumerate() {
                        let (row, col) = if trans { (c + k, r) } else { (r, c + k) };
                        if let Some(o) = at(row) {
                            write_le(shared, o + 2 * col, 2, u64::from(x));
                            shared_known.set(o + 2 * col, 2);
                        }
                    }
                }
            }
        }
        if load {
            for &reg in list {
                self.wrote(w, mask, reg);
            }
        }
    }

    fn mma(&mut self, cta: &mut Cta, wi: usize, pc: u32, mask: u32, kind: MmaKind, at: usize) {
        let (nd, na, nb) = match kind {
            MmaKind::Half { k, acc_f32, .. } => {
                (if acc_f32 { 4 } else { 2 }, usize::from(k) / 4, usize::from(k) / 8)
            }
            MmaKind::Tf32 { k } => (4, usize::from(k) / 2, usize::from(k) / 4),
            MmaKind::Int { k, bits, .. } => {
                let k = usize::from(k) * usize::from(bits);
                (4, k / 64, k / 128)
            }
            MmaKind::F64 => (2, 1, 1),
        };
        let prog = self.l.prog;
        let d = &prog.pool[at..at + nd];
        let a = &prog.pool[at + nd..at + nd + na];
        let b = &prog.pool[at + nd + na..at + nd + na + nb];
        let c = &prog.pool[at + nd + na + nb..at + 2 * nd + na + nb];
        let w = &mut cta.warps[wi];
        self.check_regs(w, pc, mask, a);
        self.check_regs(w, pc, mask, b);
        self.check_regs(w, pc, mask, c);
        let bank = &mut w.bank;
        match kind {
            MmaKind::Half { fmt, k, acc_f32 } => {
                let k = usize::from(k);
                self.n.mma_operations += 2 * 16 * 8 * k as u64;
                let mut ta = [[0f32; 16]; 16];
                let mut tb = [[0f32; 8]; 16];
                for (i, &r) in a.iter().enumerate() {
                    let v = bank.r32(r);
                    for (lane, &x) in v.iter().enumerate() {
                        let (row, col) = (lane / 4 + 8 * (i & 1), 2 * (lane % 4) + 8 * (i / 2));
                        ta[row][col] = half::to_f32(x as u16, fmt);
                        ta[row][col + 1] = half::to_f32((x >> 16) as u16, fmt);
                    }
                }
                for (i, &r) in b.iter().enumerate() {
                    let v = bank.r32(r);
                    for (lane, &x) in v.iter().enumerate() {
                        let (row, col) = (2 * (lane % 4) + 8 * i, lane / 4);
                        tb[row][col] = half::to_f32(x as u16, fmt);
                        tb[row + 1][col] = half::to_f32((x >> 16) as u16, fmt);
                    }
                }
                let mut acc = [[0f64; 8]; 16];
                for lane in 0..32 {
                    for i in 0..4 {
                        let (row, col) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + (i & 1));
                        acc[row][col] = if acc_f32 {
                            f64::from(f32::from_bits(bank.r32(c[i])[lane]))
                        } else {
                            let x = bank.r32(c[i / 2])[lane] >> (16 * (i & 1));
                            f64::from(half::to_f32(x as u16, Hf::F16))
                        };
                    }
                }
                multiply(&ta, &tb, &mut acc, k);
                for i in 0..4 {
                    for lane in 0..32 {
                        let (row, col) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + (i & 1));
                        let v = acc[row][col];
                        if acc_f32 {
                            bank.m32(d[i])[lane] = canon32(v as f32);
                        } else {
                            let h = u32::from(half::from_f64(v, Hf::F16, Rnd::Rn));
                            let x = &mut bank.m32(d[i / 2])[lane];
                            *x = if i & 1 == 0 { h } else { (*x & 0xffff) | h << 16 };
                        }
                    }
                }
            }
            MmaKind::Tf32 { k } => {
                let k = usize::from(k);
                self.n.mma_operations += 2 * 16 * 8 * k as u64;
                let tf = |x: u32| f32::from_bits(x & !0x1fff);
                let mut ta = [[0f32; 16]; 16];
                let mut tb = [[0f32; 8]; 16];
                for (i, &r) in a.iter().enumerate() {
                    for (lane, &x) in bank.r32(r).iter().enumerate() {
                        ta[lane / 4 + 8 * (i & 1)][lane % 4 + 4 * (i / 2)] = tf(x);
                    }
                }
                for (i, &r) in b.iter().enumerate() {
                    for (lane, &x) in bank.r32(r).iter().enumerate() {
                        tb[lane % 4 + 4 * i][lane / 4] = tf(x);
                    }
                }
                let mut acc = [[0f64; 8]; 16];
                for (i, &r) in c.iter().enumerate() {
                    for (lane, &x) in bank.r32(r).iter().enumerate() {
                        acc[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + (i & 1)] = f64::from(f32::from_bits(x));
                    }
                }
                multiply(&ta, &tb, &mut acc, k);
                for (i, &r) in d.iter().enumerate() {
                    for (lane, x) in bank.m32(r).iter_mut().enumerate() {
                        *x = canon32(acc[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + (i & 1)] as f32);
                    }
                }
            }
            MmaKind::Int { k, bits, a_signed, b_signed, sat } => {
                let k = usize::from(k);
                self.n.mma_operations += 2 * 16 * 8 * k as u64;
                let (bits, per) = (u32::from(bits), 32 / usize::from(bits));
                let int = |x: u32, j: usize, signed: bool| {
                    let top = x << (32 - bits * (j as u32 + 1));
                    if signed { top as i32 >> (32 - bits) } else { (top >> (32 - bits)) as i32 }
                };
                let mut ta = [[0i32; 64]; 16];
                let mut tb = [[0i32; 8]; 64];
                for (i, &r) in a.iter().enumerate() {
                    for (lane, &x) in bank.r32(r).iter().enumerate() {
                        for j in 0..per {
                            ta[lane / 4 + 8 * (i & 1)][per * (lane % 4) + j + 4 * per * (i / 2)] =
                                int(x, j, a_signed);
                        }
                    }
                }
                for (i, &r) in b.iter().enumerate() {
                    for (lane, &x) in bank.r32(r).iter().enumerate() {
                        for j in 0..per {
                            tb[per * (lane % 4) + j + 4 * per * i][lane / 4] = int(x, j, b_signed);
                        }
                    }
                }
                let mut out = [[0i32; 8]; 16];
                for (row, orow) in out.iter_mut().enumerate() {
                    for kk in 0..k {
                        for (o, &y) in orow.iter_mut().zip(&tb[kk]) {
                            *o += ta[row][kk] * y;
                        }
                    }
                }
                for i in 0..4 {
                    let acc = *bank.r32(c[i]);
                    for (lane, &base) in acc.iter().enumerate() {
                        let v = out[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + (i & 1)];
                        let base = base as i32;
                        let sum = if sat { base.saturating_add(v) } else { base.wrapping_add(v) };
                        bank.m32(d[i])[lane] = sum as u32;
                    }
                }
            }
            MmaKind::F64 => {
                self.n.mma_operations += 2 * 8 * 8 * 4;
                let (ta, tb) = (*bank.r64(a[0]), *bank.r64(b[0]));
                let acc = [*bank.r64(c[0]), *bank.r64(c[1])];
                for (i, acc) in acc.iter().enumerate() {
                    for lane in 0..32 {
                        let (row, col) = (lane / 4, 2 * (lane % 4) + i);
                        let mut v = f64::from_bits(acc[lane]);
                        for k in 0..4 {
                            v = f64::from_bits(ta[row * 4 + k]).mul_add(f64::from_bits(tb[col * 4 + k]), v);
                        }
                        bank.m64(d[i])[lane] = v.to_bits();
                    }
                }
            }
        }
        for &r in d {
            self.wrote(w, mask, r);
        }
    }
}

pub(super) fn canon32(v: f32) -> u32 {
    if v.is_nan() { 0x7fff_ffff } else { v.to_bits() }
}

/// acc += a * b over k, in double precision.
fn multiply(a: &[[f32; 16]; 16], b: &[[f32; 8]; 16], acc: &mut [[f64; 8]; 16], k: usize) {
    let wide = b.map(|row| row.map(f64::from));
    for (row, out) in acc.iter_mut().enumerate() {
        let mut sum = [0f64; 8];
        for kk in 0..k {
            let x = f64::from(a[row][kk]);
            for (s, &y) in sum.iter_mut().zip(&wide[kk]) {
                *s += x * y;
            }
        }
        for (o, &s) in out.iter_mut().zip(&sum) {
            // To odd, so that the rounding to single that follows is the only one.
            *o = sum_odd(*o, s);
        }
    }
}

/// Each matrix is one pass over eight rows of 16 bytes.
fn row_conflicts(addr: &[u64; 32], ok: u32, n: usize) -> u64 {
    let mut extra = 0;
    for m in 0..n {
        let mut rows: [u64; 8] = [u64::MAX; 8];
        let mut count = 0;
        let mut groups = [0u8; 8];
        for i in m * 8..m * 8 + 8 {
            let row = addr[i] / 16;
            if ok >> i & 1 != 0 && !rows[..count].contains(&row) {
                rows[count] = row;
                count += 1;
                groups[(row % 8) as usize] += 1;
            }
        }
        extra += u64::from(groups.iter().max().copied().unwrap_or(0).saturating_sub(1));
    }
    extra
}
