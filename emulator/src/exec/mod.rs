//! The machine: CTAs, warps, their schedule, and the instruction loop.
//!
//! A warp is a list of groups of lanes, each with its own place in the program; a converged warp has
//! one. The group with the lowest place runs first, which brings lanes together again at joins; a
//! group that keeps others waiting for long is put behind them, so spinning on a sibling lane ends.
//! Warp-wide `.sync` instructions and aligned barriers wait for the lanes of their mask; only when
//! nothing in the CTA can go on is a missing lane a finding.

// An access is a CTA, a warp, a place, a mask and what the instruction says.
#![allow(clippy::too_many_arguments)]

mod alu;
mod atomics;
mod barrier;
mod buffers;
mod copies;
mod findings;
mod lanes;
mod matrix;
mod mbarrier;
mod mem;
mod order;
mod print;
mod race;
mod start;
mod traffic;
mod warp;
mod watch;
mod wmma;

use crate::device::Options;
use crate::error::Error;
use crate::hooks::Hooks;
use crate::inst::*;
use crate::memory::{Bits, Memory};
use crate::report::{BufferTraffic, Class, Counters, Finding};
use lanes::Bank;
use std::collections::HashMap;

/// Instructions a group may run while others of its warp wait.
const PATIENCE: u32 = 20_000;
/// Instructions a group that was kept waiting may run before the others have their turn again.
const GRACE: u32 = 1_000;
/// Distinct findings kept.
const MOST_FINDINGS: usize = 200;

/// What a group of lanes does.
#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Ready,
    /// Waits for these lanes at a warp-wide instruction.
    Sync(u32),
    /// Waits at a CTA barrier.
    Bar(u8),
}

#[derive(Clone, Copy, Debug)]
struct Group {
    pc: u32,
    mask: u32,
    state: State,
    /// Go through the next warp-wide instruction without the missing lanes.
    forced: bool,
}

/// A pending asynchronous copy of one lane.
#[derive(Clone, Copy)]
struct Pending {
    lane: u8,
    bytes: u8,
    src_bytes: u8,
    dst: u32,
    src: u64,
    group: u32,
    /// mbarrier whose phase it belongs to.
    bar: Option<u32>,
}

struct Warp {
    index: u32,
    exists: u32,
    exited: u32,
    bank: Bank,
    preds: Vec<u32>,
    /// Which lanes of each slot were written.
    known: Vec<u32>,
    pknown: Vec<u32>,
    groups: Vec<Group>,
    /// Group to run next, when another one was put behind it.
    turn: Option<usize>,
    patience: u32,
    grace: u32,
    local: Vec<u8>,
    local_known: Bits,
    pending: Vec<Pending>,
    committed: [u32; 32],
    executed: u64,
    clock: order::Clock,
    addr: [u64; 32],
}

#[derive(Clone, Copy, Default)]
struct Barrier {
    arrived: u32,
    expected: u32,
    /// For the reductions.
    popc: u32,
    threads: u32,
    /// Times of the warps that came.
    seen: [u32; 32],
}

struct Cta {
    id: [u32; 3],
    shared: Vec<u8>,
    shared_known: Bits,
    bars: [Barrier; 16],
    /// Last accesses to shared memory, empty when nobody looks.
    records: Vec<race::Cell>,
    /// What is known of other CTAs.
    far: order::Far,
    /// Fences of the warps that wait at each barrier.
    bar_fences: [Vec<std::rc::Rc<order::Times>>; 16],
    /// mbarrier objects, by offset.
    phases: HashMap<usize, mbarrier::Phases>,
    /// Number of the CTA in the grid.
    linear: u32,
    /// Times seen by strong accesses.
    strong_seen: [u32; 32],
    warps: Vec<Warp>,
    /// A barrier changed since it was last looked at.
    bar_event: bool,
    next: usize,
}

/// What an instruction does to the flow.
enum Flow {
    Next,
    Jump(u32),
    /// Each active lane goes to the place in the warp's scratch list.
    Scatter,
    Exit,
    /// The group waits.
    Wait(State),
    /// The state of other groups changed; go on behind the instruction and choose anew.
    Again,
    Stop,
}

/// Everything a launch knows.
pub(crate) struct Launch<'a> {
    pub prog: &'a Program,
    pub mem: &'a mut Memory,
    pub params: &'a [u8],
    pub consts: Vec<(R, Const, u64)>,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub dynamic: u32,
    pub options: &'a Options,
    /// CTAs that are under way at the same time.
    pub resident: usize,
    pub files: &'a HashMap<u32, String>,
    /// Told of everything, in the order of the schedule: with hooks a launch stays on one thread.
    pub hooks: Option<&'a mut dyn Hooks>,
}

pub(crate) struct Outcome {
    pub findings: Vec<Finding>,
    pub counters: Counters,
    pub completed: bool,
    pub output: String,
    /// Counters of each instruction, when asked for.
    pub profile: Vec<Counters>,
    /// Traffic of each allocation, when asked for.
    pub buffers: Vec<BufferTraffic>,
}

struct Machine<'a> {
    l: Launch<'a>,
    insts: &'a [Inst],
    findings: Vec<Finding>,
    seen: HashMap<(Class, &'static str, u32, u32), usize>,
    dropped: u64,
    n: Counters,
    steps: u64,
    fatal: Option<Error>,
    stop: bool,
    check_init: bool,
    check_mem: bool,
    check_sync: bool,
    check_race: bool,
    count: bool,
    cta_id: [u32; 3],
    output: String,
    scatter: [u32; 32],
    /// Counters of each instruction, empty when nobody asked.
    profile: Vec<Counters>,
    profiling: bool,
    /// What was touched of each allocation, by its number.
    buffers: HashMap<u32, buffers::Seen>,
    /// Counters before the current instruction.
    before: Counters,
    /// Last accesses to global memory.
    pages: race::Pages,
    /// What strong writes left at their addresses.
    marks: HashMap<u64, order::Mark>,
    /// The other side of the race that is being reported.
    other_pc: u32,
    /// Instruction the hooks were last told of.
    watched: u32,
}

/// xorshift, enough for schedules.
struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 33) % n.max(1) as u64) as usize
    }
}

pub(crate) fn run(l: Launch<'_>) -> Result<Outcome, Error> {
    let options = l.options;
    let prog = l.prog;
    let mut m = Machine {
        insts: &prog.insts,
        findings: Vec::new(),
        seen: HashMap::new(),
        dropped: 0,
        n: Counters::default(),
        steps: 0,
        fatal: None,
        stop: false,
        check_init: options.checks.init,
        check_mem: options.checks.mem,
        check_sync: options.checks.sync,
        check_race: options.checks.race,
        count: options.counters,
        cta_id: [0; 3],
        output: String::new(),
        scatter: [0; 32],
        profiling: options.profile,
        buffers: HashMap::new(),
        before: Counters::default(),
        profile: if options.profile { vec![Counters::default(); prog.insts.len()] } else { Vec::new() },
        pages: race::Pages::default(),
        marks: HashMap::new(),
        other_pc: 0,
        watched: 0,
        l,
    };
    m.run();
    if let Some(e) = m.fatal {
        return Err(e);
    }
    let buffers = m.buffer_traffic();
    Ok(Outcome {
        buffers,
        completed: !m.stop,
        findings: m.findings,
        counters: m.n,
        output: m.output,
        profile: m.profile,
    })
}

impl Machine<'_> {
    fn run(&mut self) {
        let seed = self.l.options.seed;
        let mut rng = Rng::new(seed);
        let [gx, gy, gz] = self.l.grid.map(u64::from);
        let total = gx * gy * gz;
        let mut order: Option<Vec<u32>> = None;
        if seed != 0 && total <= 1 << 22 {
            let mut v: Vec<u32> = (0..total as u32).collect();
            for i in (1..v.len()).rev() {
                v.swap(i, rng.below(i + 1));
            }
            order = Some(v);
        }
        let resident = self.l.resident;
        let mut ctas: Vec<Cta> = Vec::new();
        let mut spare: Vec<Cta> = Vec::new();
        let mut started = 0u64;
        let mut turn = 0usize;
        while !self.stop {
            while ctas.len() < resident && started < total {
                let linear = order.as_ref().map_or(started, |o| u64::from(o[started as usize]));
                let id = [(linear % gx) as u32, (linear / gx % gy) as u32, (linear / (gx * gy)) as u32];
                let mut cta = spare.pop().unwrap_or_else(|| self.new_cta());
                self.start_cta(&mut cta, id, linear);
                ctas.push(cta);
                started += 1;
            }
            if ctas.is_empty() {
                return;
            }
            let (i, quantum) = if seed == 0 {
                turn = if turn + 1 < ctas.len() { turn + 1 } else { 0 };
                (turn, 2048)
            } else {
                (rng.below(ctas.len()), 1 + rng.below(96) as u32)
            };
            self.cta_id = ctas[i].id;
            let live = self.slice(&mut ctas[i], quantum, if seed == 0 { None } else { Some(&mut rng) });
            if !live {
                spare.push(ctas.swap_remove(i));
            }
            if self.steps > self.l.options.max_steps && !self.stop {
                self.step_limit(&ctas);
            }
        }
    }

    /// Runs warps of a CTA; false when it has ended. With a generator one warp for one quantum,
    /// without every warp once.
    fn slice(&mut self, cta: &mut Cta, quantum: u32, rng: Option<&mut Rng>) -> bool {
        let n = cta.warps.len();
        let mut ran = false;
        match rng {
            Some(rng) => {
                let start = rng.below(n);
                for k in 0..n {
                    let w = (start + k) % n;
                    if self.run_warp(cta, w, quantum) {
                        ran = true;
                        break;
                    }
                }
            }
            None => {
                for w in 0..n {
                    ran |= self.run_warp(cta, w, quantum);
                    if self.stop {
                        return false;
                    }
                    if cta.bar_event {
                        self.settle(cta);
                    }
                }
            }
        }
        if self.stop {
            return false;
        }
        if cta.bar_event {
            self.settle(cta);
        }
        if !ran {
            if cta.warps.iter().all(|w| w.groups.is_empty()) {
                return false;
            }
            let runnable = cta.warps.iter().any(|w| w.groups.iter().any(|g| g.state == State::Ready));
            if !runnable {
                self.unblock(cta);
            }
        }
        true
    }

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
    fn run_warp(&mut self, cta: &mut Cta, wi: usize, quantum: u32) -> bool {
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
                if self.l.hooks.is_some() {
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
