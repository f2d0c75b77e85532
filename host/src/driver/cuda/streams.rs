//! More streams of a GPU: [`Streams`] by the driver API.
//!
//! Pinned memory is mapped, so kernels use it by the address of its region; copies from and to it are host copies by its
//! host pointer. A flag is a word written by `cuMemsetD32Async`, in stream order, and read by the host as it is. Times of a
//! timeline are events before and after each piece of work; with tracing on, work is queued with two more calls.

use std::collections::BTreeMap;

use psa_codegen::{Launch, Region};

use super::open::Owned;
use super::{Cuda, Graph, Pinned, raw};
use crate::driver::stream::StreamCounters;
use crate::driver::{Driver, DriverError, EventId, GraphId, StreamId, Streams};
use crate::timeline::{Span, SpanKind, Timeline};

/// Work between two events.
struct Traced {
    stream: usize,
    name: String,
    kind: SpanKind,
    start: Owned<raw::Event>,
    end: Owned<raw::Event>,
    bytes: u64,
}

/// What a driver has besides its main stream.
#[derive(Default)]
pub(super) struct More {
    streams: Vec<(&'static str, raw::Stream)>,
    events: Vec<Owned<raw::Event>>,
    pub(super) pinned: BTreeMap<u64, Pinned>,
    graphs: Vec<Option<Graph>>,
    pub(super) counters: StreamCounters,
    traced: Option<Vec<Traced>>,
}

impl More {
    /// All but the main stream.
    pub(super) fn streams(&self) -> impl Iterator<Item = &raw::Stream> {
        self.streams.iter().map(|(_, stream)| stream)
    }

    /// The pinned memory that holds `bytes` bytes from `address` on, and where in it.
    fn holding(&mut self, address: u64, bytes: usize) -> Option<(&mut Pinned, usize)> {
        let (start, memory) = self.pinned.range_mut(..=address).next_back()?;
        let offset = usize::try_from(address - start).ok()?;
        (offset <= memory.len() && bytes <= memory.len() - offset).then_some((memory, offset))
    }
}

fn unknown(kind: &str, number: u32) -> DriverError {
    DriverError::Handle { what: format!("{kind} {number}"), detail: "this driver has made no such".into() }
}

impl Cuda {
    fn raw_stream(&self, stream: StreamId) -> Result<&raw::Stream, DriverError> {
        match stream.0 {
            0 => Ok(&self.stream),
            n => match self.more.streams.get(n as usize - 1) {
                Some((_, stream)) => Ok(stream),
                None => Err(unknown("stream", n)),
            },
        }
    }

    fn raw_event(&self, event: EventId) -> Result<&raw::Event, DriverError> {
        self.more.events.get(event.0 as usize).map(|event| &**event).ok_or_else(|| unknown("event", event.0))
    }

    fn not_pinned(&self, call: &'static str, address: u64, bytes: usize) -> DriverError {
        let detail = format!("it is not within pinned memory of this cache on {}", self.opened.short);
        DriverError::Memory { call, address, bytes, detail }
    }

    /// An event at the end of a stream, where tracing is on.
    fn mark(&self, stream: StreamId) -> Result<Option<Owned<raw::Event>>, DriverError> {
        if self.more.traced.is_none() {
            return Ok(None);
        }
        let event = raw::Event::new(true).map_err(|f| self.no_memory(f, 0, "an event"))?;
        let event = Owned::new(&self.opened, event);
        event.record(self.raw_stream(stream)?).map_err(|f| self.memory_error(f, "record an event", 0, 0))?;
        Ok(Some(event))
    }

    /// Queues work between two marks.
    fn traced(
        &mut self,
        stream: StreamId,
        (name, kind, bytes): (&str, SpanKind, u64),
        work: impl FnOnce(&mut Cuda) -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        let start = self.mark(stream)?;
        work(self)?;
        let (end, name) = (self.mark(stream)?, name.to_owned());
        if let (Some(start), Some(end), Some(traced)) = (start, end, &mut self.more.traced) {
            traced.push(Traced { stream: stream.0 as usize, name, kind, start, end, bytes });
        }
        Ok(())
    }

    fn copy_queued(&mut self, stream: StreamId, to: u64, from: u64, bytes: usize) -> Result<(), DriverError> {
        let source = self.more.holding(from, bytes).map(|(memory, at)| memory.as_ptr().wrapping_add(at));
        let target = self.more.holding(to, bytes).map(|(memory, at)| memory.as_ptr().wrapping_add(at));
        if source.is_none() {
            self.within("copy", from, bytes)?;
        }
        if target.is_none() {
            self.within("copy", to, bytes)?;
        }
        let queue = self.raw_stream(stream)?;
        let queued = match (source, target) {
            // SAFETY: both are within memory that lives until it is freed, which waits; `Driver::free` has the order.
            (Some(source), None) => unsafe { queue.upload(to, source, bytes) },
            // SAFETY: as above.
            (None, Some(target)) => unsafe { queue.download_later(target, from, bytes) },
            _ => queue.copy(to, from, bytes),
        };
        queued.map_err(|f| self.memory_error(f, "copy", to, bytes))
    }
}

impl Streams for Cuda {
    fn stream(&mut self, name: &'static str) -> Result<StreamId, DriverError> {
        self.opened.enter()?;
        let stream = raw::Stream::new().map_err(|f| self.no_memory(f, 0, "a stream"))?;
        self.more.streams.push((name, stream));
        Ok(StreamId(self.more.streams.len() as u32))
    }

    fn event(&mut self) -> Result<EventId, DriverError> {
        self.opened.enter()?;
        let event = raw::Event::new(false).map_err(|f| self.no_memory(f, 0, "an event"))?;
        self.more.events.push(Owned::new(&self.opened, event));
        Ok(EventId(self.more.events.len() as u32 - 1))
    }

    fn pinned(&mut self, bytes: usize, what: &str) -> Result<Region, DriverError> {
        let memory = Cuda::pinned(self, bytes, true)?;
        let Some(address) = memory.device_address() else {
            return Err(self.not_pinned("map", 0, bytes));
        };
        self.more.counters.allocations += 1;
        let _ = what;
        let size = memory.len() as u64;
        self.more.pinned.insert(address, memory);
        // SAFETY: just allocated and mapped, and kept until it is freed.
        Ok(unsafe { Region::new(address, size) })
    }

    fn write_pinned(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError> {
        let written =
            self.more.holding(address, data.len()).is_some_and(|(memory, at)| memory.write(at, data));
        if written { Ok(()) } else { Err(self.not_pinned("write", address, data.len())) }
    }

    fn read_pinned(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        let bytes = data.len();
        match self.more.holding(address, bytes) {
            Some((memory, at)) if memory.read(at, data) => Ok(()),
            _ => Err(self.not_pinned("read", address, bytes)),
        }
    }

    fn launch_on(&mut self, stream: StreamId, launch: &Launch) -> Result<(), DriverError> {
        self.opened.enter()?;
        let function = self.function(launch)?;
        self.raw_stream(stream)?;
        self.queued.push(launch);
        self.more.counters.launches += 1;
        self.traced(stream, (launch.kernel.name, SpanKind::Kernel, 0), |cuda| {
            cuda.queue_on(cuda.raw_stream(stream)?, function, launch)
        })
    }

    fn copy_on(&mut self, stream: StreamId, to: u64, from: u64, bytes: usize) -> Result<(), DriverError> {
        self.opened.enter()?;
        self.more.counters.copies += 1;
        self.more.counters.copied_bytes += bytes as u64;
        self.traced(stream, ("copy", SpanKind::Copy, bytes as u64), |cuda| {
            cuda.copy_queued(stream, to, from, bytes)
        })
    }

    fn signal(&mut self, stream: StreamId, address: u64, value: u32) -> Result<(), DriverError> {
        self.opened.enter()?;
        if self.more.holding(address, 4).is_none() {
            return Err(self.not_pinned("signal", address, 4));
        }
        let queued = self.raw_stream(stream)?.write(address, value);
        queued.map_err(|f| self.memory_error(f, "signal", address, 4))
    }

    fn peek(&mut self, address: u64) -> Result<u32, DriverError> {
        self.more.counters.peeks += 1;
        let word = match self.more.holding(address, 4) {
            Some((memory, at)) if at.is_multiple_of(4) => memory.load(at / 4),
            _ => None,
        };
        let word = word.ok_or_else(|| self.not_pinned("peek", address, 4))?;
        // What the device wrote before the flag is visible to what follows.
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
        // A device that failed sets no flag any more: ask now and then, so that nobody looks for ever.
        if self.more.counters.peeks.is_multiple_of(1024) {
            self.opened.enter()?;
            let failed =
                std::iter::once(&*self.stream).chain(self.more.streams()).find_map(|s| s.is_idle().err());
            if let Some(failure) = failed {
                return Err(self.memory_error(failure, "look at a flag", address, 4));
            }
        }
        Ok(word)
    }

    fn record(&mut self, event: EventId, stream: StreamId) -> Result<(), DriverError> {
        self.opened.enter()?;
        let recorded = self.raw_event(event)?.record(self.raw_stream(stream)?);
        recorded.map_err(|f| self.memory_error(f, "record an event", 0, 0))
    }

    fn wait_event(&mut self, stream: StreamId, event: EventId, why: &'static str) -> Result<(), DriverError> {
        self.opened.enter()?;
        self.traced(stream, (why, SpanKind::Stall, 0), |cuda| {
            let waits = cuda.raw_stream(stream)?.wait(cuda.raw_event(event)?);
            waits.map_err(|f| cuda.memory_error(f, "wait for an event", 0, 0))
        })
    }

    fn synchronize(&mut self, stream: StreamId) -> Result<(), DriverError> {
        if stream == StreamId::MAIN {
            return self.wait();
        }
        self.opened.enter()?;
        self.more.counters.host_syncs += 1;
        let done = self.raw_stream(stream)?.synchronize();
        done.map_err(|f| self.memory_error(f, "wait", 0, 0))
    }

    fn capture(&mut self, launches: &[Launch]) -> Result<GraphId, DriverError> {
        let graph = Cuda::capture(self, launches)?;
        self.more.graphs.push(Some(graph));
        Ok(GraphId(self.more.graphs.len() as u32 - 1))
    }

    fn replay(&mut self, graph: GraphId, stream: StreamId) -> Result<(), DriverError> {
        if stream != StreamId::MAIN {
            let detail = "graphs run on the main stream".into();
            return Err(DriverError::Handle { what: format!("stream {}", stream.0), detail });
        }
        let place = self.more.graphs.get_mut(graph.0 as usize);
        // Out of its place while it is queued: both borrow the driver.
        let Some(taken) = place.and_then(Option::take) else {
            return Err(unknown("graph", graph.0));
        };
        self.more.counters.launches += taken.launches().len() as u64;
        let queued = Cuda::replay(self, &taken);
        self.more.graphs[graph.0 as usize] = Some(taken);
        queued
    }

    fn stream_counters(&self) -> StreamCounters {
        self.more.counters
    }

    fn trace(&mut self, on: bool) -> Result<(), DriverError> {
        self.more.traced = on.then(Vec::new);
        Ok(())
    }

    fn timeline(&mut self) -> Result<Timeline, DriverError> {
        self.opened.enter()?;
        let traced = self.more.traced.as_deref().unwrap_or_default();
        let mut spans = Vec::with_capacity(traced.len());
        for work in traced {
            // An earlier first event of another stream gives a small negative time, which is right.
            let time = |event: &raw::Event| event.synchronize().and_then(|()| event.since(&traced[0].start));
            let [start, end] = [&work.start, &work.end].map(|event| time(event));
            let of = |time: raw::Call<f32>| time.map(|ms| f64::from(ms) * 1e3);
            let bad = |f| self.memory_error(f, "time between events", 0, 0);
            spans.push(Span {
                stream: work.stream,
                name: work.name.clone(),
                kind: work.kind,
                start_us: of(start).map_err(bad)?,
                end_us: of(end).map_err(bad)?,
                bytes: work.bytes,
            });
        }
        let names = self.more.streams.iter().map(|(name, _)| (*name).to_owned());
        Ok(Timeline {
            device: self.name(),
            modelled: false,
            streams: std::iter::once("compute".to_owned()).chain(names).collect(),
            spans,
        })
    }
}
