//! Conflicting accesses to shared memory without an order between them.
//!
//! Every byte remembers its last writer and its readers with the writer's logical time; 12 bytes a
//! byte. Time advances at synchronisations. Warps order each other by CTA barriers (a vector of the
//! times each warp has seen), lanes of one warp by any `.sync` both take part in. Strong accesses
//! and atomics are not checked and order everything through them, so locks give no false report.
//! Where the record is too small to decide (readers of several warps), the doubt is for the kernel.

use super::lanes::lanes;
use super::mem::Spots;
use super::{Cta, Machine};
use crate::report::{Class, Place};
use crate::types::Space;

/// Nobody.
const NONE: u16 = u16::MAX;
/// Lanes of more than one warp.
const MANY: u16 = u16::MAX - 1;
/// Time of a `cp.async` that was not waited for: ordered with nothing.
const IN_FLIGHT: u32 = u32::MAX;
/// Lane number that stands for several lanes of a warp.
pub(super) const SEVERAL: u32 = 32;

/// Last accesses to one byte.
#[derive(Clone, Copy)]
pub(super) struct Record {
    writer: u16,
    reader: u16,
    written: u32,
    read: u32,
}

pub(super) const FRESH: Record = Record { writer: NONE, reader: NONE, written: 0, read: 0 };

/// What a warp knows of time.
pub(super) struct Clock {
    pub time: u32,
    /// Time of the last synchronisation of all living lanes.
    full: u32,
    /// Newest time of each warp that this one is ordered behind.
    pub seen: [u32; 32],
    /// `pair[b][a]`: newest time of lane a that lane b is ordered behind, beyond `full`.
    pair: Box<[[u32; 32]; 32]>,
}

impl Clock {
    pub fn new() -> Clock {
        Clock { time: 1, full: 0, seen: [0; 32], pair: Box::new([[0; 32]; 32]) }
    }

    pub fn reset(&mut self) {
        self.time = 1;
        self.full = 0;
        self.seen = [0; 32];
        *self.pair = [[0; 32]; 32];
    }

    /// The lanes `mask` met; `live` are all there are.
    pub fn sync(&mut self, mask: u32, live: u32) {
        if mask & live == live {
            self.full = self.time;
        } else {
            let mut newest = [0u32; 32];
            for b in lanes(mask) {
                for a in 0..32 {
                    newest[a] = newest[a].max(self.pair[b][a]);
                }
            }
            for a in lanes(mask) {
                newest[a] = self.time;
            }
            for b in lanes(mask) {
                self.pair[b] = newest;
            }
        }
        self.time += 1;
    }

    fn ordered(&self, warp: u32, lane: u32, thread: u16, time: u32) -> bool {
        if time == IN_FLIGHT {
            return false;
        }
        let (w, l) = (u32::from(thread) / 33, u32::from(thread) % 33);
        if w != warp {
            return self.seen[(w & 31) as usize] >= time;
        }
        if self.full >= time {
            return true;
        }
        let after = |b: usize, a: usize| b == a || self.pair[b][a] >= time;
        match (l, lane) {
            (SEVERAL, SEVERAL) => true,
            (SEVERAL, b) => (0..32).any(|a| a != b as usize && after(b as usize, a)),
            (a, SEVERAL) => (0..32).all(|b| after(b, a as usize)),
            (a, b) => after(b as usize, a as usize),
        }
    }
}

fn thread(warp: u32, lane: u32) -> u16 {
    (warp * 33 + lane) as u16
}

/// The thread of a record, in words.
pub(super) fn describe(t: u16) -> String {
    match (t, t % 33) {
        (MANY, _) => "threads of several warps".to_string(),
        (_, 32) => format!("lanes of warp {}", t / 33),
        (_, lane) => format!("warp {} lane {lane}", t / 33),
    }
}

/// A read of bytes; gives the writer it conflicts with and whether that is a copy in flight.
pub(super) fn read(
    bytes: &mut [Record],
    c: &Clock,
    releases: u32,
    warp: u32,
    lane: u32,
) -> Option<(u16, bool)> {
    let me = thread(warp, lane);
    let mut bad = None;
    for b in bytes {
        if b.writer != NONE && !c.ordered(warp, lane, b.writer, b.written) {
            bad = Some((b.writer, b.written == IN_FLIGHT));
        }
        // Readers of several warps are forgotten at a barrier: this read is then the first since.
        let forgotten = b.reader == MANY && b.read != releases;
        if b.reader == MANY && !forgotten {
            b.read = releases;
        } else if forgotten || b.reader == NONE || b.reader == me || c.ordered(warp, lane, b.reader, b.read) {
            (b.reader, b.read) = (me, c.time);
        } else if u32::from(b.reader) / 33 == warp {
            (b.reader, b.read) = (thread(warp, SEVERAL), c.time);
        } else {
            (b.reader, b.read) = (MANY, releases);
        }
    }
    bad
}

/// A write of `new` over `old` (`None`: a copy that will land later). Writing what is there already
/// conflicts with no other write.
pub(super) fn write(
    bytes: &mut [Record],
    c: &Clock,
    releases: u32,
    warp: u32,
    lane: u32,
    values: Option<(&[u8], &[u8])>,
) -> Option<(u16, &'static str)> {
    let me = thread(warp, lane);
    let mut bad = None;
    for (i, b) in bytes.iter_mut().enumerate() {
        let same = values.is_some_and(|(old, new)| old[i] == new[i]) && b.written != IN_FLIGHT;
        if b.writer != NONE
            && !same
            && !c.ordered(warp, lane, b.writer, b.written)
            && (b.writer != me || b.written == IN_FLIGHT && values.is_some())
        {
            bad = Some((
                b.writer,
                if b.written == IN_FLIGHT { "overwrites copy in flight" } else { "write after write" },
            ));
        }
        let waits = match b.reader {
            NONE => true,
            MANY => releases != b.read,
            r => r == me || c.ordered(warp, lane, r, b.read),
        };
        if !waits && !same {
            bad = Some((b.reader, "write after read"));
        }
        *b = Record {
            writer: me,
            reader: NONE,
            written: if values.is_some() { c.time } else { IN_FLIGHT },
            read: 0,
        };
    }
    bad
}

/// A copy has landed: from now on it is a write of its lane.
pub(super) fn landed(bytes: &mut [Record], c: &Clock) {
    for b in bytes {
        if b.written == IN_FLIGHT {
            b.written = c.time;
        }
    }
}

impl Machine<'_> {
    /// Orders a warp behind every strong access of its CTA before this one, and the next behind it.
    pub(super) fn strong_order(&mut self, cta: &mut Cta, wi: usize) {
        let w = &mut cta.warps[wi];
        let live = w.exists & !w.exited;
        w.clock.seen[wi & 31] = w.clock.time;
        for (mine, all) in w.clock.seen.iter_mut().zip(cta.strong_seen.iter_mut()) {
            let newest = (*mine).max(*all);
            (*mine, *all) = (newest, newest);
        }
        w.clock.sync(live, live);
    }

    /// Checks a load of shared memory; `warp`: the lanes read together.
    pub(super) fn race_read(
        &mut self,
        cta: &mut Cta,
        wi: usize,
        pc: u32,
        s: &Spots,
        total: usize,
        warp: bool,
    ) {
        if s.space != Space::Shared {
            return;
        }
        let mut conflict = None;
        let w = &cta.warps[wi];
        for lane in lanes(s.ok) {
            let at = s.offset[lane]..s.offset[lane] + total;
            let who = if warp { SEVERAL } else { lane as u32 };
            let hit = read(&mut cta.records[at], &w.clock, cta.releases, w.index, who);
            if let (Some((other, flying)), None) = (hit, conflict) {
                let kind = if flying { "reads copy in flight" } else { "read after write" };
                conflict = Some((lane as u32, other, kind));
            }
        }
        if let Some((lane, other, kind)) = conflict {
            self.race_found(cta, wi, pc, lane, other, kind);
        }
    }

    #[cold]
    pub(super) fn race_found(
        &mut self,
        cta: &Cta,
        wi: usize,
        pc: u32,
        lane: u32,
        other: u16,
        kind: &'static str,
    ) {
        let a = cta.warps[wi].addr[lane as usize];
        let size = u64::from(self.l.shared);
        let place = Place { name: ".shared".to_string(), size, offset: a as i64 };
        self.find(Class::Race, kind, wi as u32, pc, 1 << lane, Some((a, Some(place))), || {
            format!("{kind}: nothing orders this access behind the one of {}", describe(other))
        });
    }
}
