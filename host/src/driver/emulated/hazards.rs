//! Hazards: two accesses to the same bytes, at least one a write, that nothing orders.
//!
//! Every operation has a vector clock, known when it is queued: what its stream did before, what events it waits for, and
//! what the host had seen. The shadow of memory has, for each word, the last write and each thread's last read. A hazard
//! is therefore found in whatever order things happen to run, as long as the two accesses happen.
//!
//! Trap: flags (`signal`, `peek`) are left out; they are how the host sees, and are atomic.

use std::collections::HashMap;
use std::fmt;

/// The host and seven streams.
pub(super) const THREADS: usize = 8;
/// Bytes of a word of the shadow.
const WORD: u64 = 4;
const WORDS: usize = 256;

/// For each thread, how many of its operations come before.
pub(super) type Clock = [u32; THREADS];

pub(super) fn join(into: &mut Clock, other: &Clock) {
    into.iter_mut().zip(other).for_each(|(a, b)| *a = (*a).max(*b));
}

/// Two accesses that nothing orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hazard {
    /// What the one that ran first did, `read` or `write`.
    pub first_access: &'static str,
    /// The one that ran first.
    pub first: String,
    /// What the other did.
    pub second_access: &'static str,
    /// The other.
    pub second: String,
    /// First address in question.
    pub address: u64,
    /// Memory that it lies in, with the offset.
    pub place: String,
}

impl fmt::Display for Hazard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hazard { first_access, first, second_access, second, place, .. } = self;
        write!(f, "{second} {second_access}s {place}, which {first} {first_access}s: nothing orders the two")
    }
}

#[derive(Clone, Copy)]
struct Cell {
    write: u32,
    reads: [u32; THREADS],
}

const NEVER: Cell = Cell { write: 0, reads: [0; THREADS] };

struct Operation {
    thread: usize,
    epoch: u32,
    name: String,
}

/// An operation that is running: its number and what comes before it.
#[derive(Clone, Copy)]
pub(super) struct Running {
    number: u32,
    thread: usize,
    clock: Clock,
}

#[derive(Default)]
pub(super) struct Hazards {
    operations: Vec<Operation>,
    pages: HashMap<u64, Box<[Cell; WORDS]>>,
    found: Vec<Hazard>,
}

impl Hazards {
    /// An operation of `thread` begins; `clock[thread]` is its own number there.
    pub(super) fn begin(&mut self, thread: usize, clock: Clock, name: String) -> Running {
        self.operations.push(Operation { thread, epoch: clock[thread], name });
        Running { number: self.operations.len() as u32, thread, clock }
    }

    /// The operation accesses bytes; the bytes that it had not touched in this way before.
    pub(super) fn access(&mut self, running: &Running, address: u64, bytes: u64, write: bool) -> u64 {
        let mut new = 0;
        if bytes == 0 {
            return 0;
        }
        for word in address / WORD..=(address + bytes - 1) / WORD {
            let page = self.pages.entry(word / WORDS as u64).or_insert_with(|| Box::new([NEVER; WORDS]));
            let cell = &mut page[(word % WORDS as u64) as usize];
            let own = if write { &mut cell.write } else { &mut cell.reads[running.thread] };
            if *own == running.number {
                continue;
            }
            new += WORD;
            let before = std::mem::replace(own, running.number);
            let cell = *cell;
            let written = if write { before } else { cell.write };
            self.check(running, written, true, write, word * WORD);
            if write {
                for read in cell.reads {
                    self.check(running, read, false, true, word * WORD);
                }
            }
        }
        new
    }

    fn check(&mut self, running: &Running, other: u32, wrote: bool, writes: bool, address: u64) {
        if other == 0 || other == running.number {
            return;
        }
        let first = &self.operations[other as usize - 1];
        if running.clock[first.thread] >= first.epoch {
            return;
        }
        let kind = |write| if write { "write" } else { "read" };
        let second = &self.operations[running.number as usize - 1];
        let known = |h: &Hazard| h.first == first.name && h.second == second.name;
        if self.found.iter().any(known) {
            return;
        }
        self.found.push(Hazard {
            first_access: kind(wrote),
            first: first.name.clone(),
            second_access: kind(writes),
            second: second.name.clone(),
            address,
            place: String::new(),
        });
    }

    /// What was found so far.
    pub(super) fn found(&self) -> &[Hazard] {
        &self.found
    }

    pub(super) fn found_mut(&mut self) -> &mut [Hazard] {
        &mut self.found
    }
}
