//! CTA barriers, and what happens when nobody can go on.
//!
//! Arrivals count in whole warps (32) when all living lanes of a warp arrive together, as the ISA
//! counts them, and in lanes otherwise. The last to come releases everyone between two slices of
//! the schedule, so no warp ever writes another one's registers while it runs.

use super::{Barrier, Cta, Flow, Machine, State};
use crate::inst::*;
use crate::report::Class;

impl Machine<'_> {
    /// `bar` for group `gi`, whose lanes are `mask`.
    pub(super) fn barrier(
        &mut self,
        op: &Op,
        cta: &mut Cta,
        wi: usize,
        pc: u32,
        mask: u32,
        gi: usize,
    ) -> Flow {
        let Op::Bar { aligned, arrive, id, count, red, p, pneg, .. } = *op else { return Flow::Next };
        let w = &mut cta.warps[wi];
        self.check_regs(w, pc, mask, &[id, count]);
        let live = w.exists & !w.exited;
        if aligned && live & !mask != 0 && !w.groups[gi].forced {
            return Flow::Wait(State::Sync(live));
        }
        w.groups[gi].forced = false;
        let first = mask.trailing_zeros() as usize;
        let differs = |w: &super::Warp, r: R| {
            let v = w.bank.get(r, first);
            super::lanes::lanes(mask).any(|lane| w.bank.get(r, lane) != v)
        };
        let mixed = differs(w, id) || count.some() && differs(w, count);
        let number = w.bank.get(id, first);
        if self.check_sync && (mixed || number > 15) {
            let kind = if mixed { "barrier mismatch" } else { "barrier number" };
            self.find(Class::Sync, kind, wi as u32, pc, mask, None, || match mixed {
                true => "lanes of a warp name different barriers or counts".to_string(),
                false => format!("barrier {number}: there are 16, from 0 to 15"),
            });
        }
        let id = (number & 15) as usize;
        let all = cta_threads(cta);
        let w = &mut cta.warps[wi];
        let expected = if count.some() { w.bank.get(count, first) as u32 } else { all };
        let b = &mut cta.bars[id];
        let twice = mask == live && b.warps >> (wi & 31) & 1 != 0;
        let other = b.arrived > 0 && b.red != red;
        if self.check_sync && (twice || other) {
            let kind = if twice { "barrier twice" } else { "barrier mismatch" };
            self.find(Class::Sync, kind, wi as u32, pc, mask, None, || match twice {
                true => format!("a warp comes to barrier {id} again before it has opened"),
                false => format!("barrier {id} is used with and without a reduction at the same time"),
            });
        }
        let b = &mut cta.bars[id];
        b.red = red;
        b.warps |= u32::from(mask == live) << (wi & 31);
        if self.check_sync && count.some() && (expected == 0 || expected % 32 != 0) {
            self.find(Class::Sync, "barrier count", wi as u32, pc, mask, None, || {
                format!("barrier {id} with a count of {expected}, which is no multiple of 32")
            });
        }
        if b.arrived > 0 && b.expected != expected && self.check_sync {
            let before = b.expected;
            self.find(Class::Sync, "barrier mismatch", wi as u32, pc, mask, None, || {
                format!("barrier {id} is used with {expected} threads while others wait with {before}")
            });
        }
        b.expected = expected;
        b.arrived += if mask == live { 32 } else { mask.count_ones() };
        b.threads += mask.count_ones();
        if red.is_some() {
            let v = w.preds[p as usize];
            b.popc += (mask & if pneg { !v } else { v }).count_ones();
            self.check_pred(w, pc, mask, p);
        }
        if self.check_race {
            self.acquire_found(cta, wi);
            self.fence_comes(cta, wi, id);
        }
        let b = &mut cta.bars[id];
        let w = &mut cta.warps[wi];
        for (s, &t) in b.seen.iter_mut().zip(&w.clock.seen) {
            *s = (*s).max(t);
        }
        b.seen[wi & 31] = w.clock.time;
        w.clock.time += 1;
        self.n.barriers += 1;
        cta.bar_event = true;
        if arrive { Flow::Next } else { Flow::Wait(State::Bar(id as u8)) }
    }

    /// Releases barriers that are full.
    pub(super) fn settle(&mut self, cta: &mut Cta) {
        cta.bar_event = false;
        for id in 0..16 {
            let b = cta.bars[id];
            if b.arrived > 0 && b.arrived >= b.expected {
                self.release(cta, id);
            }
        }
    }

    fn release(&mut self, cta: &mut Cta, id: usize) {
        let b = std::mem::take(&mut cta.bars[id]);
        let insts = self.insts;
        if self.check_race {
            let waits = |w: &super::Warp| w.groups.iter().any(|g| g.state == State::Bar(id as u8));
            let who: Vec<usize> = (0..cta.warps.len()).filter(|&i| waits(&cta.warps[i])).collect();
            self.fence_goes(cta, &who, id);
        }
        for w in &mut cta.warps {
            let live = w.exists & !w.exited;
            for i in 0..w.groups.len() {
                let g = w.groups[i];
                if g.state != State::Bar(id as u8) {
                    continue;
                }
                if let Op::Bar { red: Some(red), d, dp, .. } = insts[g.pc as usize].op {
                    match red {
                        Red::Popc => {
                            for lane in super::lanes::lanes(g.mask) {
                                w.bank.set(d, lane, u64::from(b.popc));
                            }
                            self.wrote(w, g.mask, d);
                        }
                        Red::And => {
                            self.set_pred(w, g.mask, dp, if b.popc == b.threads { u32::MAX } else { 0 })
                        }
                        _ => self.set_pred(w, g.mask, dp, if b.popc > 0 { u32::MAX } else { 0 }),
                    }
                }
                for (s, &t) in w.clock.seen.iter_mut().zip(&b.seen) {
                    *s = (*s).max(t);
                }
                w.clock.sync(live, live);
                w.groups[i].state = State::Ready;
                w.groups[i].pc += 1;
            }
        }
    }

    /// Nothing in the CTA can run: says who waits for whom, and lets it go on where that makes sense.
    pub(super) fn unblock(&mut self, cta: &mut Cta) {
        let insts = self.insts;
        let mut moved = false;
        for w in &mut cta.warps {
            for i in 0..w.groups.len() {
                let g = w.groups[i];
                let State::Sync(need) = g.state else { continue };
                let missing = need & !w.exited & !g.mask;
                if self.check_sync {
                    let barrier = matches!(insts[g.pc as usize].op, Op::Bar { .. });
                    let kind = if barrier { "divergent barrier" } else { "missing lanes" };
                    let others: Vec<String> = w
                        .groups
                        .iter()
                        .filter(|o| o.mask & missing != 0)
                        .map(|o| {
                            format!(
                                "lanes {:#010x} at PTX line {}",
                                o.mask, self.l.prog.places[o.pc as usize].line
                            )
                        })
                        .collect();
                    let index = w.index;
                    self.find(Class::Sync, kind, index, g.pc, g.mask, None, || {
                        let what = if barrier { "barrier" } else { "warp-wide instruction" };
                        format!(
                            "{what} reached by lanes {:#010x} while lanes {missing:#010x} never come ({})",
                            g.mask,
                            others.join(", ")
                        )
                    });
                }
                w.groups[i].state = State::Ready;
                w.groups[i].forced = true;
                moved = true;
                break;
            }
        }
        if moved {
            return;
        }
        // Only CTA barriers hold them.
        let ended = 32 * cta.warps.iter().filter(|w| w.groups.is_empty()).count() as u32;
        for id in 0..16 {
            let b: Barrier = cta.bars[id];
            if b.arrived == 0 || ended == 0 || b.arrived + ended < b.expected {
                continue;
            }
            if let Some((warp, pc, lanes)) = waiting(cta, id) {
                if self.check_sync {
                    let (arrived, expected) = (b.arrived, b.expected);
                    self.find(Class::Sync, "exit before barrier", warp, pc, lanes, None, || {
                        format!(
                            "barrier {id} waits for {expected} threads; {arrived} came and {ended} have ended without it"
                        )
                    });
                }
                self.release(cta, id);
                return;
            }
        }
        let mut places = Vec::new();
        let mut first = None;
        for w in &cta.warps {
            for g in &w.groups {
                if let State::Bar(id) = g.state {
                    first.get_or_insert((w.index, g.pc, g.mask));
                    let b = cta.bars[usize::from(id)];
                    places.push(format!(
                        "warp {} lanes {:#010x} at barrier {id} ({} of {} threads), PTX line {}",
                        w.index,
                        g.mask,
                        b.arrived,
                        b.expected,
                        self.line(g.pc)
                    ));
                }
            }
        }
        let (warp, pc, lanes) = first.unwrap_or((0, 0, 0));
        // Said even with the checker off: the launch cannot end in another way.
        self.find(Class::Sync, "deadlock", warp, pc, lanes, None, || {
            places.truncate(16);
            format!("deadlock: {}", places.join("; "))
        });
        self.stop = true;
    }
}

/// Threads of the CTA in the unit of arrivals.
fn cta_threads(cta: &Cta) -> u32 {
    cta.warps.len() as u32 * 32
}

fn waiting(cta: &Cta, id: usize) -> Option<(u32, u32, u32)> {
    cta.warps.iter().find_map(|w| {
        w.groups.iter().find(|g| g.state == State::Bar(id as u8)).map(|g| (w.index, g.pc, g.mask))
    })
}
