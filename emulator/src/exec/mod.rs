//! The machine: what a launch, a CTA and a warp are made of.
//!
//! A warp is a list of groups of lanes, each with its own place in the program; a converged warp has
//! one (`step.rs`). `schedule.rs` gives CTAs and warps their turns, `parallel.rs` spreads CTAs over
//! threads where that gives the same result. Warp-wide `.sync` instructions and aligned barriers wait
//! for the lanes of their mask; only when nothing in the CTA can go on is a missing lane a finding.

// An access is a CTA, a warp, a place, a mask and what the instruction says.
#![allow(clippy::too_many_arguments)]

mod alu;
mod atomics;
mod barrier;
mod buffers;
mod cells;
mod claims;
mod copies;
mod findings;
mod lanes;
mod matrix;
mod mbarrier;
mod mem;
mod mma;
mod order;
mod paged;
mod parallel;
mod print;
mod race;
mod schedule;
mod start;
mod step;
mod traffic;
mod warp;
mod watch;
mod wmma;

use crate::counters::Counters;
use crate::device::Options;
use crate::error::Error;
use crate::hooks::Hooks;
use crate::inst::*;
use crate::memory::{Bits, Memory};
use crate::report::{BufferTraffic, Finding};
pub(crate) use cells::Spare;
use lanes::Bank;
use std::collections::HashMap;

/// Instructions a group may run while others of its warp wait.
const PATIENCE: u32 = 20_000;
/// Instructions a group that was kept waiting may run before the others have their turn again.
const GRACE: u32 = 1_000;

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
    /// Its instruction.
    pc: u32,
    /// Time of the arrival there: who waits for the phase is ordered behind it.
    time: u32,
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
    red: Option<Red>,
    /// Warps that came as a whole.
    warps: u32,
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
    /// Number of the CTA in the order in which they start.
    order: u64,
    /// Chooses its warps and quanta.
    rng: schedule::Rng,
    /// What release left at addresses for this CTA.
    near: HashMap<u64, order::Near>,
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

/// Everything a launch knows; the threads that run it share one.
#[derive(Clone, Copy)]
pub(crate) struct Launch<'a> {
    pub prog: &'a Program,
    pub mem: &'a Memory,
    pub params: &'a [u8],
    pub consts: &'a [(R, Const, u64)],
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub dynamic: u32,
    pub options: &'a Options,
    pub spare: &'a Spare,
    /// CTAs that are under way at the same time.
    pub resident: usize,
    pub files: &'a HashMap<u32, String>,
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

/// Runs a launch, or a part of it on one of several threads.
struct Machine<'a> {
    l: Launch<'a>,
    insts: &'a [Inst],
    found: findings::Found,
    n: Counters,
    steps: u64,
    fatal: Option<Error>,
    stop: bool,
    check_init: bool,
    check_mem: bool,
    check_sync: bool,
    check_race: bool,
    count: bool,
    /// The CTA that runs, and its number in the order of their start.
    cta_id: [u32; 3],
    cta_order: u64,
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
    pages: &'a cells::Pages<'a>,
    /// What strong writes left at their addresses.
    marks: HashMap<u64, order::Mark>,
    /// Beside other threads: the words this one may touch.
    claimer: Option<claims::Claimer<'a>>,
    /// Told of everything, in the order of the schedule: with hooks a launch stays on one thread.
    hooks: Option<&'a mut dyn Hooks>,
    /// Instruction the hooks were last told of.
    watched: u32,
}

#[cfg(test)]
thread_local! {
    /// Whether the last launch of this thread was spread.
    static SPREAD: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

pub(crate) fn run(l: Launch<'_>, hooks: Option<&mut dyn Hooks>) -> Result<Outcome, Error> {
    let spread = if hooks.is_none() { parallel::run(&l) } else { None };
    #[cfg(test)]
    SPREAD.set(spread.is_some());
    if let Some(outcome) = spread {
        return Ok(outcome);
    }
    let pages = cells::Pages::new(l.mem, l.spare);
    let mut m = Machine::new(l, &pages, None);
    m.hooks = hooks.map(|h| h as &mut dyn Hooks);
    m.run();
    match m.fatal.take() {
        Some(e) => Err(e),
        None => Ok(m.outcome()),
    }
}

impl<'a> Machine<'a> {
    fn new(l: Launch<'a>, pages: &'a cells::Pages<'a>, claimer: Option<claims::Claimer<'a>>) -> Machine<'a> {
        let options = l.options;
        let counts = if options.profile { l.prog.insts.len() } else { 0 };
        Machine {
            insts: &l.prog.insts,
            found: findings::Found::default(),
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
            cta_order: 0,
            output: String::new(),
            scatter: [0; 32],
            profiling: options.profile,
            buffers: HashMap::new(),
            before: Counters::default(),
            profile: vec![Counters::default(); counts],
            pages,
            marks: HashMap::new(),
            claimer,
            hooks: None,
            watched: 0,
            l,
        }
    }

    fn outcome(self) -> Outcome {
        Outcome {
            completed: !self.stop,
            buffers: buffers::traffic(self.buffers, self.l.mem),
            findings: self.found.list(),
            counters: self.n,
            output: self.output,
            profile: self.profile,
        }
    }
}
