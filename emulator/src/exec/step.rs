//! The instruction loop: groups of lanes of one warp, and one instruction after the other.
//!
//! The group with the lowest place runs first, which brings lanes together again at joins; a group
//! that keeps others waiting for long is put behind them, so spinning on a sibling lane ends.

use super::lanes;
use super::{Cta, Flow, GRACE, Group, Machine, PATIENCE, State, Warp};
use crate::inst::*;

impl Machine<'_> {
    /// Chooses a group that can run.
    fn pick(w: &mut Warp) -> Option<usize> {
        if let Some(t) = w.turn.take()
            && w.groups.get(t).is_some_and(|g| g.state == State::Ready)
        {
            return Some(t);
        }
        for _ in 0..2 {
            let mut best: Option<usize> = None;
            for (i, g) in w.groups.iter().enumerate() {
                if g.state == State::Ready && best.is_none_or(|b| g.pc < w.groups[b].pc) {
                    best = Some(i);
                }
            }
            if best.is_some() {
                return best;
            }
            // Lanes waited for may have ended meanwhile.
            let mut any = false;
            let exited = w.exited;
            for g in &mut w.groups {
                if let State::Sync(need) = g.state
                    && need & !exited & !g.mask == 0
                {
                    g.state = State::Ready;
                    any = true;
                }
            }
            if !any {
                return None;
            }
        }
        None
    }

    /// Joins group `gi` with others at the same place; returns its new index.
    fn join(w: &mut Warp, gi: usize) -> usize {
        let (pc, mut i, mut at) = (w.groups[gi].pc, 0, gi);
        while i < w.groups.len() {
            let g = w.groups[i];
            if i != at && g.pc == pc && !matches!(g.state, State::Bar(_)) {
                w.groups[at].mask |= g.mask;
                w.groups[at].state = State::Ready;
                w.groups[at].forced &= g.forced;
                w.groups.swap_remove(i);
                if at == w.groups.len() {
                    at = i;
                }
                // The moved group now stands at `i` and is looked at next.
                continue;
            }
            i += 1;
        }
        at
    }

    /// Runs one warp for at most `quantum` instructions; false when it could not move.
    pub(super) fn run_warp(&mut self, cta: &mut Cta, wi: usize, quantum: u32) -> bool {
        let mut budget = quantum;
        let mut moved = false;
        while budget > 0 && !self.stop {
            let Some(gi) = Self::pick(&mut cta.warps[wi]) else { break };
            let mut gi = Self::join(&mut cta.warps[wi], gi);
            moved = true;
            let alone = cta.warps[wi].groups.len() == 1;
            let Group { mut pc, mut mask, .. } = cta.warps[wi].groups[gi];
            let favoured = cta.warps[wi].grace > 0;
            loop {
                if budget == 0 {
                    let w = &mut cta.warps[wi];
                    w.groups[gi].pc = pc;
                    w.turn = favoured.then_some(gi);
                    break;
                }
                let inst = &self.insts[pc as usize];
                let mut active = mask;
                if inst.guard != NO_P {
                    let p = (inst.guard & !GUARD_NEG) as usize;
                    let v = cta.warps[wi].preds[p];
                    if self.check_init && cta.warps[wi].pknown[p] & mask != mask {
                        let lanes = mask & !cta.warps[wi].pknown[p];
                        self.uninit_reg(&cta.warps[wi], pc, lanes);
                        cta.warps[wi].pknown[p] = u32::MAX;
                    }
                    active &= if inst.guard & GUARD_NEG != 0 { !v } else { v };
                }
                if self.profiling {
                    self.before = self.n;
                }
                if self.hooks.is_some() {
                    self.watch_instruction(&cta.warps[wi], pc, active);
                }
                budget -= 1;
                self.steps += 1;
                let w = &mut cta.warps[wi];
                w.executed += 1;
                self.n.warp_instructions += 1;
                self.n.lane_instructions += u64::from(active.count_ones());
                if active == 0 {
                    if self.profiling {
                        self.note(pc);
                    }
                    pc += 1;
                } else {
                    if active != mask && is_sync(&inst.op) {
                        // Lanes that do not take part go past it.
                        let rest =
                            Group { pc: pc + 1, mask: mask & !active, state: State::Ready, forced: false };
                        w.groups[gi] = Group { pc, mask: active, ..w.groups[gi] };
                        w.groups.push(rest);
                        mask = active;
                    }
                    w.groups[gi].pc = pc;
                    let flow = self.exec(&inst.op, cta, wi, pc, active, gi);
                    if self.profiling {
                        self.note(pc);
                    }
                    match flow {
                        Flow::Next => pc += 1,
                        Flow::Jump(t) if active == mask => pc = t,
                        Flow::Jump(t) => {
                            let w = &mut cta.warps[wi];
                            w.groups[gi] = Group {
                                pc: pc + 1,
                                mask: mask & !active,
                                state: State::Ready,
                                forced: false,
                            };
                            w.groups.push(Group { pc: t, mask: active, state: State::Ready, forced: false });
                            w.turn = favoured.then_some(gi);
                            break;
                        }
                        Flow::Scatter => {
                            self.scatter(&mut cta.warps[wi], gi, pc, mask, active);
                            break;
                        }
                        Flow::Exit => {
                            let w = &mut cta.warps[wi];
                            w.grace = 0;
                            w.exited |= active;
                            cta.bar_event = true;
                            if active == mask {
                                w.groups.swap_remove(gi);
                            } else {
                                w.groups[gi].mask = mask & !active;
                                w.groups[gi].pc = pc + 1;
                            }
                            break;
                        }
                        Flow::Wait(state) => {
                            cta.warps[wi].grace = 0;
                            let g = &mut cta.warps[wi].groups[gi];
                            g.state = state;
                            g.pc = pc;
                            if matches!(state, State::Bar(_)) {
                                cta.bar_event = true;
                            }
                            break;
                        }
                        Flow::Again => {
                            cta.warps[wi].groups[gi].pc = pc + 1;
                            break;
                        }
                        Flow::Stop => {
                            self.stop = true;
                            break;
                        }
                    }
                }
                if alone && cta.warps[wi].groups.len() == 1 {
                    continue;
                }
                // Others of the warp wait: join them here, or let one that is behind catch up.
                let w = &mut cta.warps[wi];
                w.groups[gi].pc = pc;
                let (mut meet, mut behind, mut waiting) = (false, false, false);
                for (i, g) in w.groups.iter().enumerate() {
                    if i == gi {
                        continue;
                    }
                    meet |= g.pc == pc && !matches!(g.state, State::Bar(_));
                    behind |= g.pc < pc && g.state == State::Ready;
                    waiting |= g.state == State::Ready;
                }
                if meet {
                    gi = Self::join(w, gi);
                    mask = w.groups[gi].mask;
                    if w.groups.len() == 1 {
                        continue;
                    }
                }
                if behind && !favoured {
                    break;
                }
                if !waiting {
                    continue;
                }
                if favoured {
                    w.grace -= 1;
                    if w.grace == 0 {
                        break;
                    }
                } else {
                    w.patience -= 1;
                    if w.patience == 0 {
                        w.patience = PATIENCE;
                        let n = w.groups.len();
                        w.turn = (1..n).map(|k| (gi + k) % n).find(|&i| w.groups[i].state == State::Ready);
                        w.grace = GRACE;
                        break;
                    }
                }
            }
        }
        moved
    }

    /// Adds what the last instruction counted to its line.
    #[cold]
    fn note(&mut self, pc: u32) {
        let spent = self.n.since(&self.before);
        self.profile[pc as usize].add(&spent);
    }

    fn scatter(&mut self, w: &mut Warp, gi: usize, pc: u32, mask: u32, active: u32) {
        w.grace = 0;
        let rest = mask & !active;
        let mut left = active;
        w.groups.swap_remove(gi);
        if rest != 0 {
            w.groups.push(Group { pc: pc + 1, mask: rest, state: State::Ready, forced: false });
        }
        while left != 0 {
            let target = self.scatter[left.trailing_zeros() as usize];
            let mut same = 0;
            for i in lanes::lanes(left) {
                if self.scatter[i] == target {
                    same |= 1 << i;
                }
            }
            w.groups.push(Group { pc: target, mask: same, state: State::Ready, forced: false });
            left &= !same;
        }
    }
}

/// Instructions at which lanes wait for each other.
fn is_sync(op: &Op) -> bool {
    matches!(
        op,
        Op::Bar { .. }
            | Op::WarpSync { .. }
            | Op::Shfl { .. }
            | Op::Vote { .. }
            | Op::Match { .. }
            | Op::Redux { .. }
            | Op::Elect { .. }
            | Op::Ldmatrix { .. }
            | Op::Stmatrix { .. }
            | Op::Movmatrix { .. }
            | Op::Mma { .. }
            | Op::WmmaMove { .. }
            | Op::WmmaMma { .. }
    )
}
