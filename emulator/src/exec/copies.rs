//! `cp.async`: checked when issued, moved when waited for.
//!
//! A read ahead of the wait sees what it could see on hardware: the old bytes.

use super::lanes::lanes;
use super::mem::Spots;
use super::order::Me;
use super::race::{self, Bring, How, Past};
use super::{Cta, Machine, Pending};
use crate::inst::{NO_P, P, R};
use crate::limits::within;
use crate::types::Space;

impl Machine<'_> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn cp_async(
        &mut self,
        cta: &mut Cta,
        wi: usize,
        pc: u32,
        mask: u32,
        (dst, doff): (R, i64),
        (src, soff): (R, i64),
        bytes: u8,
        src_bytes: R,
        ignore: (P, bool),
    ) {
        self.check_regs(&mut cta.warps[wi], pc, mask, &[dst, src, src_bytes]);
        let total = usize::from(bytes);
        self.addresses(cta, wi, dst, doff);
        let to = self.spots(cta, wi, pc, mask, Space::Shared, total, true);
        self.count_access(cta, wi, &to, total, true);
        if self.check_race {
            let mut conflict = None;
            let Cta { warps, records, far, linear, .. } = &mut *cta;
            let mut me = Me::new(&warps[wi].clock, far, *linear, wi as u32);
            for lane in lanes(to.ok) {
                me.lane = lane as u32;
                let at = to.offset[lane];
                let cells = &mut records[race::within(at, total)];
                let hit = me.write(cells, at % 4, total, pc, How::default(), Bring::Later);
                if let (Some(hit), None) = (hit, conflict) {
                    conflict = Some((lane as u32, hit));
                }
            }
            self.race_found(cta, wi, pc, &to, conflict);
        }
        let mut size = [bytes; 32];
        if src_bytes.some() {
            let v = cta.warps[wi].bank.r32(src_bytes);
            for i in 0..32 {
                size[i] = v[i].min(u32::from(bytes)) as u8;
            }
        }
        if ignore.0 != NO_P {
            self.check_pred(&mut cta.warps[wi], pc, mask, ignore.0);
            let v = cta.warps[wi].preds[ignore.0 as usize];
            for lane in lanes(if ignore.1 { !v } else { v }) {
                size[lane] = 0;
            }
        }
        self.addresses(cta, wi, src, soff);
        // Lanes that copy nothing may have any address.
        let reads = lanes(to.ok).filter(|&i| size[i] > 0).fold(0, |m, i| m | 1 << i);
        let mut good = to.ok;
        if reads != 0 {
            let partial = lanes(reads).any(|i| size[i] != bytes);
            let from = if partial {
                // Bounds follow the bytes really read; alignment follows the copy.
                self.partial_spots(cta, wi, pc, reads, total, &size)
            } else {
                self.spots(cta, wi, pc, reads, Space::Global, total, false)
            };
            self.count_access(cta, wi, &from, total, false);
            if self.check_race {
                // Bytes beyond those read are in the same cells at most.
                if partial {
                    for lane in lanes(from.ok) {
                        let one = Spots { ok: 1 << lane, ..from };
                        let n = usize::from(size[lane]);
                        self.race_read(cta, wi, pc, &one, n, How::default(), false);
                    }
                } else {
                    self.race_read(cta, wi, pc, &from, total, How::default(), false);
                }
            }
            if self.check_init && !partial {
                self.check_written(cta, wi, pc, &from, total);
            }
            good = (to.ok & !reads) | from.ok;
        }
        let w = &mut cta.warps[wi];
        let (line, most) = (self.line(pc), self.l.options.limits.copies);
        let fits = within("copies", (w.pending.len() + 32) as u64, most, || {
            format!("PTX line {line}: copies of a warp in flight (cp.async without a wait)")
        });
        if let Err(e) = fits {
            self.fatal.get_or_insert(e);
            self.stop = true;
            return;
        }
        for lane in lanes(good) {
            w.pending.push(Pending {
                lane: lane as u8,
                bytes,
                src_bytes: size[lane],
                dst: to.offset[lane] as u32,
                src: w.addr[lane],
                group: w.committed[lane],
                bar: None,
                pc,
                time: 0,
            });
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn partial_spots(
        &mut self,
        cta: &mut Cta,
        wi: usize,
        pc: u32,
        mask: u32,
        total: usize,
        size: &[u8; 32],
    ) -> Spots {
        let mut out = Spots { space: Space::Global, ok: 0, alloc: [0; 32], uniform: false, offset: [0; 32] };
        for lane in lanes(mask) {
            let one = 1u32 << lane;
            let n = usize::from(size[lane]);
            let a = cta.warps[wi].addr[lane];
            if a & (total as u64 - 1) != 0 {
                // Reports the misalignment.
                self.spots(cta, wi, pc, one, Space::Global, total, false);
                continue;
            }
            let inside = self.l.mem.find(a).is_some_and(|i| {
                let al = &self.l.mem.allocs[i];
                al.live && a - al.base + n as u64 <= al.size
            });
            if inside {
                if let Some(i) = self.l.mem.find(a) {
                    out.alloc[lane] = i as u32;
                    out.offset[lane] = (a - self.l.mem.allocs[i].base) as usize;
                }
                out.ok |= one;
                let mut claimed = Spots { ok: one, ..out };
                self.claim(&mut claimed, n, false);
                out.ok = out.ok & !one | claimed.ok;
            } else {
                self.spots(cta, wi, pc, one, Space::Global, total, false);
            }
        }
        out
    }

    /// A lane that writes what a copy of the CTA has still to read, and that copy.
    pub(super) fn source_in_flight(cta: &Cta, wi: usize, s: &Spots, total: usize) -> Option<(u32, Past)> {
        let all = || cta.warps.iter().flat_map(|w| w.pending.iter().map(move |p| (w.index, p)));
        all().next()?;
        let addr = &cta.warps[wi].addr;
        lanes(s.ok).find_map(|lane| {
            let (from, to) = (addr[lane], addr[lane] + total as u64);
            let (warp, p) = all().find(|(_, p)| p.src < to && from < p.src + u64::from(p.src_bytes))?;
            Some((lane as u32, race::copy_of(cta.linear, warp, u32::from(p.lane), p.pc)))
        })
    }

    /// Completes all but the newest `pending` groups of each lane.
    pub(super) fn cp_wait(&mut self, cta: &mut Cta, wi: usize, mask: u32, pending: u32) {
        // wait_all also takes what was not committed.
        self.land(cta, wi, |p, committed| {
            let lane = usize::from(p.lane);
            mask >> lane & 1 != 0 && (pending == u32::MAX || p.group + pending < committed[lane])
        });
    }

    /// Moves the bytes of the copies of a warp that are `due`, given the groups its lanes committed.
    pub(super) fn land(&mut self, cta: &mut Cta, wi: usize, due: impl Fn(&Pending, &[u32; 32]) -> bool) {
        let Cta { shared, shared_known, warps, records, .. } = cta;
        let w = &mut warps[wi];
        let (now, check_race) = (w.clock.time, self.check_race);
        let committed = w.committed;
        let check_init = self.check_init;
        let mem = &self.l.mem;
        let mut last = 0usize;
        w.pending.retain(|p| {
            if !due(p, &committed) {
                return true;
            }
            let (n, total, dst) = (usize::from(p.src_bytes), usize::from(p.bytes), p.dst as usize);
            let to = &mut shared[dst..dst + total];
            if n < total {
                to.fill(0);
            }
            if n > 0 {
                let hit = mem.allocs.get(last).is_some_and(|a| p.src.wrapping_sub(a.base) < a.size);
                if !hit {
                    match mem.find(p.src) {
                        Some(i) => last = i,
                        None => return false,
                    }
                }
                let a = &mem.allocs[last];
                let at = (p.src - a.base) as usize;
                if at + 16 <= a.data.len() && n == 16 {
                    // SAFETY: as below.
                    to.copy_from_slice(&unsafe { a.data.get::<16>(at) });
                } else if at + n <= a.data.len() {
                    // SAFETY: claimed for reading when the copy was issued, where threads run beside
                    // each other.
                    to[..n].copy_from_slice(unsafe { a.data.slice(at, n) });
                }
            }
            if check_race {
                race::landed(
                    &mut records[race::within(dst, total)],
                    if p.bar.is_some() { p.time } else { now },
                );
            }
            if check_init {
                shared_known.set(dst, total);
            }
            false
        });
    }
}
