//! ldmatrix, stmatrix and movmatrix, and the dispatch of the matrix products (`mma.rs`, `wmma.rs`).

use super::lanes::lanes;
use super::mem::{read_le, write_le};
use super::order::Me;
use super::race::{self, Bring, How, SEVERAL};
use super::{Cta, Machine};
use crate::inst::*;
use crate::memory::SHARED_WINDOW;
use crate::types::Space;

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
            Op::WmmaMma { product, n, regs } => self.wmma_mma(cta, wi, pc, mask, product, n, regs as usize),
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
            self.race_read(cta, wi, pc, &s, 16, How::default(), true);
        }
        if !load && self.check_race {
            let mut conflict = None;
            let Cta { warps, records, far, linear, .. } = &mut *cta;
            let mut me = Me::new(&warps[wi].clock, far, *linear, wi as u32);
            // A row comes from four lanes.
            me.lane = SEVERAL;
            for lane in lanes(s.ok) {
                let at = s.offset[lane];
                let cells = &mut records[race::within(at, 16)];
                let hit = me.write(cells, at % 4, 16, pc, How::default(), Bring::Atomic);
                conflict = conflict.or(hit.map(|hit| (lane as u32, hit)));
            }
            self.race_found(cta, wi, pc, &s, conflict);
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
