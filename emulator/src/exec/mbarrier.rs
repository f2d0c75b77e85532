//! mbarrier objects: counted arrivals in phases, in 64 bits of shared memory.
//!
//! Bits 0-19 are the arrivals still missing in this phase, 20-39 those of the next, 40-61 the phase;
//! the last two say that the object was initialised. The layout is this emulator's own: programs may only
//! pass the bits on. Copies tied to an object land when its phase completes, and whoever sees that
//! is ordered behind all that arrived.

use super::lanes::lanes;
use super::mem::{read_le, write_le};
use super::{Cta, Machine};
use crate::inst::*;
use crate::memory::SHARED_WINDOW;
use crate::report::{Class, Place};
use crate::types::Space;

const COUNT: u64 = (1 << 20) - 1;
const ALIVE: u64 = 1 << 62;

/// Times of the warps that arrived in this phase, and in the last complete one.
#[derive(Clone, Copy, Default)]
pub(super) struct Phases {
    coming: [u32; 32],
    done: [u32; 32],
}

fn join(to: &mut [u32; 32], from: &[u32; 32]) {
    for (t, &f) in to.iter_mut().zip(from) {
        *t = (*t).max(f);
    }
}

impl Machine<'_> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn mbarrier(
        &mut self,
        cta: &mut Cta,
        wi: usize,
        pc: u32,
        mask: u32,
        what: Mbar,
        (base, offset, generic): (R, i64, bool),
        (d, p, a): (R, P, R),
    ) {
        self.check_regs(&mut cta.warps[wi], pc, mask, &[base, a]);
        if what == Mbar::Pending {
            let w = &mut cta.warps[wi];
            for lane in lanes(mask) {
                let state = w.bank.get(a, lane);
                w.bank.set(d, lane, state & COUNT);
            }
            self.wrote(w, mask, d);
            return;
        }
        self.addresses(cta, wi, base, offset);
        if generic {
            for x in cta.warps[wi].addr.iter_mut() {
                *x = x.wrapping_sub(SHARED_WINDOW);
            }
        }
        let s = self.spots(cta, wi, pc, mask, Space::Shared, 8, true);
        if self.check_init && what != Mbar::Init {
            self.check_written(cta, wi, pc, &s, 8);
        }
        let mut done = 0u32;
        for lane in lanes(s.ok) {
            let at = s.offset[lane];
            let old = read_le(&cta.shared, at, 8);
            let arg = if a.some() { cta.warps[wi].bank.get(a, lane) } else { 1 };
            if what == Mbar::Init {
                let n = arg & COUNT;
                if arg == 0 || arg > COUNT {
                    self.mbarrier_fault(cta, wi, pc, lane, "mbarrier count", || {
                        format!("mbarrier initialised with a count of {arg}; 1 to {COUNT} are possible")
                    });
                }
                write_le(&mut cta.shared, at, 8, ALIVE | n << 20 | n);
                cta.shared_known.set(at, 8);
                cta.phases.remove(&at);
                continue;
            }
            if old >> 62 != 1 {
                self.mbarrier_fault(cta, wi, pc, lane, "mbarrier not initialised", || {
                    "an mbarrier that was not initialised, or is no longer valid".to_string()
                });
                // Nobody would ever come: go on.
                done |= 1 << lane;
                continue;
            }
            let (missing, next, phase) = (old & COUNT, old >> 20 & COUNT, old >> 40 & 0x3f_ffff);
            match what {
                Mbar::Inval => write_le(&mut cta.shared, at, 8, 0),
                Mbar::Wait { parity } => {
                    let over = if parity { phase & 1 != arg & 1 } else { phase != arg >> 40 & 0x3f_ffff };
                    if over {
                        done |= 1 << lane;
                        if let Some(p) = cta.phases.get(&at) {
                            join(&mut cta.warps[wi].clock.seen, &p.done);
                        }
                    }
                }
                Mbar::CopyArrive { .. } | Mbar::Arrive { .. } => {
                    let (mut count, mut fewer) = (arg, 0);
                    match what {
                        Mbar::Arrive { drop: true, .. } => fewer = arg,
                        Mbar::CopyArrive { counted } => {
                            count = u64::from(counted);
                            let time = cta.warps[wi].clock.time;
                            let copies = cta.warps[wi].pending.iter_mut();
                            for c in copies.filter(|c| usize::from(c.lane) == lane && c.bar.is_none()) {
                                (c.bar, c.time) = (Some(at as u32), time);
                            }
                        }
                        _ => {}
                    }
                    if d.some() {
                        cta.warps[wi].bank.set(d, lane, old);
                    }
                    let clock = &cta.warps[wi].clock;
                    let p = cta.phases.entry(at).or_default();
                    join(&mut p.coming, &clock.seen);
                    p.coming[wi & 31] = clock.time;
                    let ends = matches!(what, Mbar::Arrive { no_complete: true, .. }) && count >= missing;
                    if count > missing || ends {
                        self.mbarrier_fault(cta, wi, pc, lane, "mbarrier overrun", || {
                            format!("{count} arrivals at an mbarrier that waits for {missing} in this phase")
                        });
                    }
                    let (left, next) = (missing.saturating_sub(count), next.saturating_sub(fewer));
                    let new = if left > 0 {
                        ALIVE | phase << 40 | next << 20 | left
                    } else {
                        self.complete(cta, at);
                        ALIVE | ((phase + 1) & 0x3f_ffff) << 40 | next << 20 | next
                    };
                    write_le(&mut cta.shared, at, 8, new);
                }
                Mbar::Init | Mbar::Pending => {}
            }
        }
        let w = &mut cta.warps[wi];
        if d.some() {
            self.wrote(w, mask, d);
        }
        if matches!(what, Mbar::Wait { .. }) {
            self.set_pred(w, mask, p, done);
            if done != 0 {
                let live = w.exists & !w.exited;
                w.clock.sync(live, live);
            }
        } else {
            w.clock.time += 1;
        }
    }

    /// The phase of the object at `at` is complete: its copies land.
    fn complete(&mut self, cta: &mut Cta, at: usize) {
        for wi in 0..cta.warps.len() {
            if !cta.warps[wi].pending.is_empty() {
                self.land(cta, wi, |c, _| c.bar == Some(at as u32));
            }
        }
        if let Some(p) = cta.phases.get_mut(&at) {
            let coming = p.coming;
            join(&mut p.done, &coming);
        }
    }

    fn mbarrier_fault(
        &mut self,
        cta: &Cta,
        wi: usize,
        pc: u32,
        lane: usize,
        kind: &'static str,
        message: impl FnOnce() -> String,
    ) {
        if !self.check_sync {
            return;
        }
        let a = cta.warps[wi].addr[lane];
        let place = Place { name: ".shared".to_string(), size: u64::from(self.l.shared), offset: a as i64 };
        self.find(Class::Sync, kind, wi as u32, pc, 1 << lane, Some((a, Some(place))), message);
    }
}
