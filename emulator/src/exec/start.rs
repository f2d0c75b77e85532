//! CTAs and warps as they begin: fresh memory, constants and special registers in their slots.

use super::lanes::Bank;
use super::schedule::{Order, Rng};
use super::{Barrier, Cta, Group, Machine, PATIENCE, State, Warp, order, race};
use crate::inst::*;
use crate::memory::Bits;
use std::collections::HashMap;

impl Machine<'_> {
    pub(super) fn new_cta(&self) -> Cta {
        let threads = self.l.block.iter().product::<u32>();
        let prog = self.l.prog;
        let local = prog.local_bytes as usize * 32;
        let warps = (0..threads.div_ceil(32))
            .map(|index| Warp {
                index,
                exists: 0,
                exited: 0,
                bank: Bank::new(prog.slots as usize),
                preds: vec![0; prog.preds as usize],
                known: vec![0; prog.slots as usize],
                pknown: vec![0; prog.preds as usize],
                groups: Vec::with_capacity(8),
                turn: None,
                patience: PATIENCE,
                grace: 0,
                local: vec![0; local],
                local_known: Bits::new(local),
                pending: Vec::new(),
                committed: [0; 32],
                executed: 0,
                clock: order::Clock::new(),
                addr: [0; 32],
            })
            .collect();
        Cta {
            id: [0; 3],
            shared: vec![0; self.l.shared as usize],
            shared_known: Bits::new(self.l.shared as usize),
            bars: [Barrier::default(); 16],
            records: if self.check_race {
                self.l.spare.take_shared(self.l.shared.div_ceil(4) as usize)
            } else {
                Vec::new()
            },
            far: order::Far::default(),
            bar_fences: Default::default(),
            phases: HashMap::new(),
            linear: 0,
            order: 0,
            rng: Rng::new(0),
            near: HashMap::new(),
            warps,
            bar_event: false,
            next: 0,
        }
    }

    /// Makes `cta` the one that starts as number `number`, with nothing left of what it was before.
    pub(super) fn start_cta(&self, cta: &mut Cta, order: &Order, number: u64) {
        let (id, linear) = order.cta(number);
        (cta.id, cta.order) = (id, number);
        cta.rng = Rng::new(self.l.options.seed ^ (linear + 1).wrapping_mul(0xd134_2543_de82_ef95));
        cta.shared_known.clear();
        // A pattern that is neither zero nor a small number, so that luck does not hide a fault.
        cta.shared.fill(0xcd);
        cta.bars = [Barrier::default(); 16];
        cta.records.fill(race::FRESH);
        cta.far.clear();
        cta.phases.clear();
        cta.bar_fences.iter_mut().for_each(Vec::clear);
        cta.linear = (linear % u64::from(race::CTAS)) as u32;
        cta.near.clear();
        cta.next = 0;
        let [bx, by, _] = self.l.block;
        let threads = self.l.block.iter().product::<u32>();
        for w in &mut cta.warps {
            let first = w.index * 32;
            let n = (threads - first).min(32);
            w.exists = if n == 32 { u32::MAX } else { (1 << n) - 1 };
            w.exited = 0;
            w.groups.clear();
            w.groups.push(Group { pc: 0, mask: w.exists, state: State::Ready, forced: false });
            (w.turn, w.grace, w.patience) = (None, 0, PATIENCE);
            w.preds.fill(0);
            w.preds[P_TRUE as usize] = u32::MAX;
            if self.check_init {
                w.known.fill(0);
                w.pknown.fill(0);
                w.pknown[P_TRUE as usize] = u32::MAX;
                w.pknown[P_FALSE as usize] = u32::MAX;
            }
            w.bank.clear();
            w.local.fill(0xcd);
            w.local_known.clear();
            w.pending.clear();
            w.committed = [0; 32];
            w.executed = 0;
            if self.check_race {
                w.clock.reset();
            }
            for (r, c, value) in self.l.consts {
                for lane in 0..32usize {
                    let v = match c {
                        Const::Special(s) => {
                            self.special(*s, w.index, first, lane as u32, bx, by, id, linear)
                        }
                        _ => *value,
                    };
                    w.bank.set(*r, lane, v);
                }
                w.known[r.slot()] = u32::MAX;
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn special(
        &self,
        s: Special,
        warp: u32,
        first: u32,
        lane: u32,
        bx: u32,
        by: u32,
        cta: [u32; 3],
        linear: u64,
    ) -> u64 {
        let t = first + lane;
        let bit = 1u32 << lane;
        u64::from(match s {
            Special::Tid(0) => t % bx,
            Special::Tid(1) => t / bx % by,
            Special::Tid(_) => t / (bx * by),
            Special::Ntid(i) => self.l.block[usize::from(i)],
            Special::Ctaid(i) => cta[usize::from(i)],
            Special::Nctaid(i) => self.l.grid[usize::from(i)],
            Special::Laneid => lane,
            Special::Warpid => warp,
            Special::Nwarpid => self.l.block.iter().product::<u32>().div_ceil(32),
            Special::Smid => (linear % 108) as u32,
            Special::Nsmid => 108,
            Special::Gridid => 1,
            Special::LanemaskEq => bit,
            Special::LanemaskLe => bit | (bit - 1),
            Special::LanemaskLt => bit - 1,
            Special::LanemaskGe => !(bit - 1),
            Special::LanemaskGt => !(bit | (bit - 1)),
            Special::DynamicSmemSize => self.l.dynamic,
            Special::TotalSmemSize => self.l.shared,
        })
    }
}
