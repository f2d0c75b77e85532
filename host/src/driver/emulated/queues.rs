//! What is queued on an emulated device, and in which order it runs.
//!
//! Every operation gets its vector clock when it is queued; see [`super::hazards`]. [`Order::Timed`] runs an operation at
//! once and computes when it would have started and ended; a flag shows when the host's own clock has come that far.
//! [`Order::Seeded`] leaves operations queued and lets chance choose among the streams whose next one may run: each time
//! the host queues, looks or waits, some of them run. Both are orders that a device could choose.

use std::collections::{BTreeMap, HashMap, VecDeque};

use psa_codegen::Launch;

use super::costs::Costs;
use super::hazards::{Clock, Hazards, THREADS, join};
use crate::driver::stream::StreamCounters;
use crate::driver::{DriverError, EventId, StreamId};
use crate::timeline::{Span, SpanKind};

/// Who runs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By the declared costs.
    Timed,
    /// By chance.
    Seeded(u64),
}

/// How an emulated device runs streams.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StreamOptions {
    /// Who runs next.
    pub order: Order,
    /// What everything costs.
    pub costs: Costs,
    /// Waits of this name are left out: for tests that show what they are for.
    pub leave_out: Option<&'static str>,
}

impl Default for StreamOptions {
    fn default() -> Self {
        StreamOptions { order: Order::Timed, costs: Costs::H100, leave_out: None }
    }
}

pub(super) enum Work {
    Launch(Launch),
    Copy { to: u64, from: u64, bytes: usize },
    Upload { to: u64, data: Vec<u8> },
    Signal { address: u64, value: u32 },
    Record { event: usize, generation: u32 },
    Wait { event: usize, generation: u32, why: &'static str },
    Occupy { name: &'static str, us: f64 },
}

impl Work {
    pub(super) fn name(&self) -> String {
        match self {
            Work::Launch(launch) => launch.kernel.name.into(),
            Work::Copy { bytes, .. } => format!("copy of {bytes} bytes"),
            Work::Upload { data, .. } => format!("upload of {} bytes", data.len()),
            Work::Signal { .. } => "signal".into(),
            Work::Record { .. } => "record".into(),
            Work::Wait { why, .. } => (*why).into(),
            Work::Occupy { name, .. } => (*name).into(),
        }
    }
}

pub(super) struct Queued {
    pub(super) work: Work,
    pub(super) clock: Clock,
    /// The host's time when it was queued.
    pub(super) time: f64,
}

pub(super) struct Stream {
    pub(super) name: &'static str,
    pub(super) queue: VecDeque<Queued>,
    /// Of the last operation queued.
    pub(super) clock: Clock,
    /// When the last operation that has run ended.
    pub(super) end: f64,
}

#[derive(Clone, Copy, Default)]
pub(super) struct EventState {
    /// What the last record queued has behind it.
    pub(super) clock: Clock,
    /// Records queued, and run.
    pub(super) queued: u32,
    pub(super) done: u32,
    /// When the last one run was reached.
    pub(super) time: f64,
}

/// A flag as the device wrote it.
pub(super) struct Written {
    pub(super) time: f64,
    pub(super) value: u32,
    pub(super) clock: Clock,
}

pub(super) struct Queues {
    pub(super) options: StreamOptions,
    /// Accesses are watched: off while there is one stream and nobody asked.
    pub(super) watched: bool,
    pub(super) streams: Vec<Stream>,
    pub(super) events: Vec<EventState>,
    pub(super) host: Clock,
    pub(super) host_time: f64,
    pub(super) hazards: Hazards,
    random: u64,
    /// All memory: address to bytes and name.
    pub(super) allocations: BTreeMap<u64, (usize, String)>,
    /// Pinned memory: address to bytes.
    pub(super) pinned: BTreeMap<u64, usize>,
    pub(super) flags: HashMap<u64, VecDeque<Written>>,
    /// When the link is free again: to the device, to the host.
    pub(super) link_end: [f64; 2],
    pub(super) failed: Option<DriverError>,
    pub(super) counters: StreamCounters,
    pub(super) graphs: Vec<Vec<Launch>>,
    pub(super) spans: Option<Vec<Span>>,
}

impl Queues {
    pub(super) fn new(options: StreamOptions) -> Queues {
        let random = match options.order {
            Order::Timed => 0,
            Order::Seeded(seed) => seed,
        };
        let main = Stream { name: "compute", queue: VecDeque::new(), clock: [0; THREADS], end: 0.0 };
        Queues {
            options,
            watched: false,
            streams: vec![main],
            events: vec![],
            host: [0; THREADS],
            host_time: 0.0,
            hazards: Hazards::default(),
            random,
            allocations: BTreeMap::new(),
            pinned: BTreeMap::new(),
            flags: HashMap::new(),
            link_end: [0.0; 2],
            failed: None,
            counters: StreamCounters::default(),
            graphs: vec![],
            spans: None,
        }
    }

    pub(super) fn stream(&mut self, stream: StreamId) -> Result<&mut Stream, DriverError> {
        let count = self.streams.len();
        self.streams.get_mut(stream.0 as usize).ok_or_else(|| DriverError::Handle {
            what: format!("stream {}", stream.0),
            detail: format!("this device has {count}"),
        })
    }

    pub(super) fn event(&mut self, event: EventId) -> Result<&mut EventState, DriverError> {
        let count = self.events.len();
        self.events.get_mut(event.0 as usize).ok_or_else(|| DriverError::Handle {
            what: format!("event {}", event.0),
            detail: format!("this device has {count}"),
        })
    }

    /// Whether `bytes` from `address` lie in pinned memory.
    pub(super) fn is_pinned(&self, address: u64, bytes: usize) -> bool {
        self.pinned
            .range(..=address)
            .next_back()
            .is_some_and(|(start, size)| address - start + bytes as u64 <= *size as u64)
    }

    /// Queues behind what `stream` has and what the host has seen.
    pub(super) fn push(&mut self, stream: StreamId, work: Work, host_us: f64) -> Result<(), DriverError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let awaited = match work {
            Work::Wait { event, .. } => Some(self.events[event].clock),
            _ => None,
        };
        let (host, time) = (self.host, self.host_time);
        let thread = stream.0 as usize + 1;
        let queue = self.stream(stream)?;
        join(&mut queue.clock, &host);
        if let Some(clock) = awaited {
            join(&mut queue.clock, &clock);
        }
        queue.clock[thread] += 1;
        let clock = queue.clock;
        queue.queue.push_back(Queued { work, clock, time });
        if let Work::Record { event, .. } = queue.queue[queue.queue.len() - 1].work {
            self.events[event].clock = clock;
        }
        self.host_time += host_us;
        Ok(())
    }

    /// Streams whose next operation may run.
    fn ready(&self) -> Vec<usize> {
        let may = |stream: &Stream| match stream.queue.front().map(|queued| &queued.work) {
            None => false,
            Some(Work::Wait { event, generation, .. }) => self.events[*event].done >= *generation,
            Some(_) => true,
        };
        (0..self.streams.len()).filter(|&i| may(&self.streams[i])).collect()
    }

    /// The stream to go on with, if any may.
    pub(super) fn choose(&mut self) -> Option<usize> {
        let ready = self.ready();
        match self.options.order {
            Order::Timed => ready.first().copied(),
            Order::Seeded(_) if ready.is_empty() => None,
            Order::Seeded(_) => Some(ready[self.chance(ready.len() as u64) as usize]),
        }
    }

    /// A number below `n`; splitmix64.
    pub(super) fn chance(&mut self, n: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }

    /// Name and offset of what lies at an address.
    pub(super) fn place(&self, address: u64) -> String {
        match self.allocations.range(..=address).next_back() {
            Some((start, (bytes, name))) if address - start < *bytes as u64 => {
                format!("byte {} of {name}", address - start)
            }
            _ => format!("{address:#x}"),
        }
    }

    /// An access of the host: its clock.
    pub(super) fn host_access(&mut self) -> Clock {
        self.host[0] += 1;
        self.host
    }

    pub(super) fn span(
        &mut self,
        stream: usize,
        name: String,
        kind: SpanKind,
        from: f64,
        to: f64,
        bytes: u64,
    ) {
        if let Some(spans) = &mut self.spans {
            spans.push(Span { stream, name, kind, start_us: from, end_us: to, bytes });
        }
    }
}
