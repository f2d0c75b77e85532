//! wmma: fragments whose layout is the implementation's own.
//!
//! Element `e` of a fragment lies in lane `e / n` as its element `e % n`, with `n` elements a lane;
//! fragments larger than their matrix repeat it. a and b count in the order of their memory layout,
//! accumulators by rows. A load or store goes element by element through the ordinary accesses, so
//! the checkers see every byte; the traffic is counted once for the whole matrix.

use super::mma::{canon32, element};
use super::{Cta, Machine};
use crate::inst::*;
use crate::num::half;
use crate::num::round::sum_odd;
use crate::types::{Rnd, Space};

/// Row and column of element `e`.
fn place(f: &Frag, e: usize) -> (usize, usize) {
    let (rows, cols) = (usize::from(f.rows), usize::from(f.cols));
    if f.part == Part::Acc || f.row { (e / cols, e % cols) } else { (e % rows, e / rows) }
}

impl Machine<'_> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn wmma_move(
        &mut self,
        cta: &mut Cta,
        wi: usize,
        pc: u32,
        mask: u32,
        load: bool,
        m: Access,
        frag: Frag,
        stride: R,
        regs: usize,
        (address, value): (R, R),
    ) {
        self.check_regs(&mut cta.warps[wi], pc, mask, &[m.base, stride]);
        let prog = self.l.prog;
        let list = &prog.pool[regs..regs + usize::from(frag.n)];
        if !load {
            self.check_regs(&mut cta.warps[wi], pc, mask, list);
        }
        let first = mask.trailing_zeros() as usize;
        let bank = &cta.warps[wi].bank;
        let ld = match stride.some() {
            true => bank.get(stride, first) as usize,
            false => usize::from(if frag.row { frag.cols } else { frag.rows }),
        };
        // The address is the warp's: every lane names the same one.
        let base = if m.base.some() { bank.get(m.base, first) } else { 0 }.wrapping_add(m.offset as u64);
        let (size, per) = (usize::from(frag.bytes), (4 / usize::from(frag.bytes)).max(1));
        let (n, total) = (list.len() * per, usize::from(frag.rows) * usize::from(frag.cols));
        let one = Access { base: address, offset: 0, ..m };
        self.count_lines(m.space, base, &frag, ld, load);
        let counting = std::mem::replace(&mut self.count, false);
        for j in 0..n {
            let reg = list[j / per];
            let shift = 8 * size * (j % per);
            let mut take = mask;
            let at: [u64; 32] = std::array::from_fn(|lane| {
                let e = lane * n + j;
                if !load && e >= total {
                    take &= !(1 << lane);
                }
                let (r, c) = place(&frag, e % total);
                let k = if frag.row { r * ld + c } else { c * ld + r };
                base.wrapping_add((k * size) as u64)
            });
            let w = &mut cta.warps[wi];
            *w.bank.m64(address) = at;
            w.known[address.slot()] = u32::MAX;
            if per == 1 {
                // The element is the register.
                let list = [reg, R::NONE, R::NONE, R::NONE];
                if load {
                    self.load(cta, wi, pc, take, one, list, 0);
                } else {
                    self.store(cta, wi, pc, take, one, list, 0);
                }
                continue;
            }
            let below = (1u32 << shift) - 1;
            if load {
                self.load(cta, wi, pc, take, one, [value, R::NONE, R::NONE, R::NONE], 0);
                let w = &mut cta.warps[wi];
                let v = *w.bank.r32(value);
                let out = w.bank.m32(reg);
                for lane in 0..32 {
                    out[lane] = (out[lane] & below) | v[lane] << shift;
                }
                self.wrote(w, mask, reg);
            } else {
                let w = &mut cta.warps[wi];
                let v = w.bank.r32(reg).map(|v| v >> shift);
                *w.bank.m32(value) = v;
                w.known[value.slot()] = u32::MAX;
                self.store(cta, wi, pc, take, one, [value, R::NONE, R::NONE, R::NONE], 0);
            }
        }
        self.count = counting;
    }

    /// Counts the matrix as `rows` (or columns) of contiguous bytes.
    fn count_lines(&mut self, space: Space, base: u64, f: &Frag, ld: usize, load: bool) {
        if !self.count {
            return;
        }
        let (lines, len) = if f.row { (f.rows, f.cols) } else { (f.cols, f.rows) };
        let bytes = u64::from(len) * u64::from(f.bytes);
        let mut sectors: Vec<u64> = (0..u64::from(lines))
            .flat_map(|i| {
                let at = base.wrapping_add(i * ld as u64 * u64::from(f.bytes));
                at / 32..=(at.wrapping_add(bytes - 1)) / 32
            })
            .collect();
        sectors.dedup();
        self.count_matrix(space, base, bytes * u64::from(lines), sectors.len() as u64, !load);
    }

    pub(super) fn wmma_mma(
        &mut self,
        cta: &mut Cta,
        wi: usize,
        pc: u32,
        mask: u32,
        p: Product,
        n: [u8; 4],
        at: usize,
    ) {
        let prog = self.l.prog;
        let mut next = at;
        let [d, a, b, c] = n.map(|k| {
            next += usize::from(k);
            &prog.pool[next - usize::from(k)..next]
        });
        let w = &mut cta.warps[wi];
        for list in [a, b, c] {
            self.check_regs(w, pc, mask, list);
        }
        let (rows, cols, depth) = p.shape;
        let (rows_n, cols_n, k_n) = (usize::from(rows), usize::from(cols), usize::from(depth));
        self.n.mma_operations += 2 * (rows_n * cols_n * k_n) as u64;
        let frag = |part, rows, cols, row| Frag { part, rows, cols, row, n: 0, bytes: 0 };
        let (fa, fb) = (frag(Part::A, rows, depth, p.a_row), frag(Part::B, depth, cols, p.b_row));
        let per = match p.elem {
            Elem::F16 | Elem::BF16 => 2,
            Elem::S8 | Elem::U8 => 4,
            _ => 1,
        };
        let (mut ta, mut tb) = ([[0f64; 16]; 32], [[0f64; 32]; 16]);
        let pick = |list: &[R], e: usize| {
            let k = per * list.len();
            let (lane, j) = (e / k, e % k);
            element(w.bank.get(list[j / per], lane), j % per, p.elem)
        };
        for e in 0..rows_n * k_n {
            let (r, k) = place(&fa, e);
            ta[r][k] = pick(a, e);
        }
        for e in 0..k_n * cols_n {
            let (k, j) = place(&fb, e);
            tb[k][j] = pick(b, e);
        }
        let total = rows_n * cols_n;
        // Elements a lane has of the accumulator: one a register, or two halves.
        let lanes_of = total / 32;
        let singles = |list: &[R]| list.len() == lanes_of;
        let mut out = vec![0u64; total];
        for (e, o) in out.iter_mut().enumerate() {
            let ((r, j), (lane, i)) = ((e / cols_n, e % cols_n), (e / lanes_of, e % lanes_of));
            let products = (0..k_n).map(|k| ta[r][k] * tb[k][j]);
            let old = if singles(c) { w.bank.get(c[i], lane) } else { w.bank.get(c[i / 2], lane) };
            *o = match p.elem {
                Elem::F64 => {
                    (0..k_n).fold(f64::from_bits(old), |v, k| ta[r][k].mul_add(tb[k][j], v)).to_bits()
                }
                Elem::S8 | Elem::U8 => {
                    // At most 16 products of 16 bits: exact.
                    let (v, base) = (products.sum::<f64>() as i32, old as u32 as i32);
                    u64::from(if p.sat { base.saturating_add(v) } else { base.wrapping_add(v) } as u32)
                }
                _ => {
                    let acc = if singles(c) {
                        f32::from_bits(old as u32)
                    } else {
                        half::to_f32((old >> (16 * (i & 1))) as u16, Hf::F16)
                    };
                    let v = sum_odd(f64::from(acc), products.sum());
                    if singles(d) {
                        u64::from(canon32(v as f32))
                    } else {
                        half::from_f64(v, Hf::F16, Rnd::Rn).into()
                    }
                }
            };
        }
        for (e, &v) in out.iter().enumerate() {
            let (lane, i) = (e / lanes_of, e % lanes_of);
            if singles(d) {
                w.bank.set(d[i], lane, v);
            } else {
                let x = &mut w.bank.m32(d[i / 2])[lane];
                *x = if i & 1 == 0 { v as u32 } else { (*x & 0xffff) | (v as u32) << 16 };
            }
        }
        for &r in d {
            self.wrote(w, mask, r);
        }
    }
}
