//! The emulated device's streams: [`Streams`], and how a queued operation is carried out.

use psa_codegen::{Launch, Region};
use ptx_emulator::{AccessKind, Arg, DevicePtr, Hooks, LaunchConfig, MemoryEvent, Space};

use super::hazards::{Hazards, Running, THREADS, join};
use super::queues::{EventState, Order, Queued, Stream, Work, Written};
use super::{Emulated, NAME, memory};
use crate::driver::stream::StreamCounters;
use crate::driver::{Driver, DriverError, EventId, GraphId, StreamId, Streams, describe};
use crate::timeline::{SpanKind, Timeline};

/// Tells the shadow of a kernel's accesses, and counts the distinct bytes.
struct Watch<'a> {
    hazards: &'a mut Hazards,
    running: Running,
    pinned: &'a std::collections::BTreeMap<u64, usize>,
    memory: u64,
    link: u64,
}

impl Hooks for Watch<'_> {
    fn memory(&mut self, event: &MemoryEvent<'_>) {
        if event.space != Space::Global {
            return;
        }
        for (_, address) in event.lanes() {
            let mut new = 0;
            if event.kind != AccessKind::Write {
                new += self.hazards.access(&self.running, address, u64::from(event.bytes), false);
            }
            if event.kind != AccessKind::Read {
                new += self.hazards.access(&self.running, address, u64::from(event.bytes), true);
            }
            let pinned = self.pinned.range(..=address).next_back();
            match pinned.is_some_and(|(start, size)| address - start < *size as u64) {
                true => self.link += new,
                false => self.memory += new,
            }
        }
    }
}

impl Emulated {
    /// Runs one launch, watched or not, and says how many distinct bytes it touched: of device and of pinned memory.
    fn execute(&mut self, launch: &Launch, running: Option<Running>) -> Result<(u64, u64), DriverError> {
        let args: Vec<Arg> = launch.args.iter().map(|arg| Arg::Bytes(arg.bytes())).collect();
        let config =
            LaunchConfig { grid: launch.grid, block: launch.block, shared_bytes: launch.shared_bytes };
        let name = launch.kernel.name;
        let mut touched = (0, 0);
        let report = match running {
            None => self.device.launch(&self.module, name, config, &args),
            Some(running) => {
                let (hazards, pinned) = (&mut self.queues.hazards, &self.queues.pinned);
                let mut watch = Watch { hazards, running, pinned, memory: 0, link: 0 };
                let report = self.device.launch_with(&self.module, name, config, &args, &mut watch);
                touched = (watch.memory, watch.link);
                report
            }
        };
        let report =
            report.map_err(|e| DriverError::Launch { launch: describe(launch), detail: e.to_string() })?;
        if let Some(first) = report.findings.first() {
            return Err(DriverError::Check {
                launch: describe(launch),
                findings: report.findings.len(),
                first: first.to_string(),
            });
        }
        self.counters.launches += 1;
        self.counters.lane_instructions += report.counters.lane_instructions;
        self.counters.global_bytes_read += report.counters.global_bytes_read;
        Ok(touched)
    }

    /// Carries out the next operation of a stream.
    fn run_next(&mut self, index: usize) -> Result<(), DriverError> {
        let Some(Queued { work, clock, time }) = self.queues.streams[index].queue.pop_front() else {
            return Ok(());
        };
        let costs = self.queues.options.costs;
        let end = self.queues.streams[index].end;
        let start = end.max(time);
        let name = work.name();
        let stream_name = self.queues.streams[index].name;
        let running = match self.queues.watched {
            true => Some(self.queues.hazards.begin(index + 1, clock, format!("{name} on {stream_name}"))),
            false => None,
        };
        let (kind, start, end, bytes) = match work {
            Work::Launch(launch) => {
                let (memory, link) = self.execute(&launch, running)?;
                let start = if link > 0 { start.max(self.queues.link_end[0]) } else { start };
                let end = start + costs.of_kernel(memory, link);
                if link > 0 {
                    self.queues.link_end[0] = end;
                }
                (SpanKind::Kernel, start, end, memory + link)
            }
            Work::Copy { to, from, bytes } => {
                if let Some(running) = &running {
                    self.queues.hazards.access(running, from, bytes as u64, false);
                    self.queues.hazards.access(running, to, bytes as u64, true);
                }
                self.device
                    .copy_device(DevicePtr(to), DevicePtr(from), bytes as u64)
                    .map_err(|e| memory("copy", to, bytes, &e))?;
                let sides = [self.queues.is_pinned(from, bytes), self.queues.is_pinned(to, bytes)];
                let engine = usize::from(!sides[0]);
                let over_link = sides.contains(&true);
                let start = if over_link { start.max(self.queues.link_end[engine]) } else { start };
                let end = start + costs.of_copy(bytes as u64, over_link);
                if over_link {
                    self.queues.link_end[engine] = end;
                }
                (SpanKind::Copy, start, end, bytes as u64)
            }
            Work::Upload { to, data } => {
                if let Some(running) = &running {
                    self.queues.hazards.access(running, to, data.len() as u64, true);
                }
                self.device
                    .copy_to(DevicePtr(to), &data)
                    .map_err(|e| memory("upload", to, data.len(), &e))?;
                (SpanKind::Copy, start, start + costs.of_copy(data.len() as u64, true), data.len() as u64)
            }
            Work::Signal { address, value } => {
                self.device
                    .copy_to(DevicePtr(address), &value.to_le_bytes())
                    .map_err(|e| memory("signal", address, 4, &e))?;
                let written = Written { time: start + costs.peek, value, clock };
                self.queues.flags.entry(address).or_default().push_back(written);
                self.queues.streams[index].end = start;
                return Ok(());
            }
            Work::Record { event, generation } => {
                let state = &mut self.queues.events[event];
                (state.done, state.time) = (generation, start);
                self.queues.streams[index].end = start;
                return Ok(());
            }
            Work::Wait { event, .. } => {
                let reached = self.queues.events[event].time;
                self.queues.streams[index].end = start.max(reached);
                if reached > start {
                    self.queues.span(index, name, SpanKind::Stall, start, reached, 0);
                }
                return Ok(());
            }
            Work::Occupy { us, .. } => (SpanKind::Model, start, start + us, 0),
        };
        self.queues.streams[index].end = end;
        self.queues.span(index, name, kind, start, end, bytes);
        Ok(())
    }

    fn step(&mut self) -> Result<bool, DriverError> {
        let Some(index) = self.queues.choose() else {
            return Ok(false);
        };
        if let Err(error) = self.run_next(index) {
            self.queues.failed = Some(error.clone());
            self.queues.streams.iter_mut().for_each(|stream| stream.queue.clear());
            return Err(error);
        }
        Ok(true)
    }

    /// Queues, and lets the device go on as it likes.
    fn queue(&mut self, stream: StreamId, work: Work, host_us: f64) -> Result<(), DriverError> {
        self.queues.push(stream, work, host_us)?;
        match self.queues.options.order {
            Order::Timed => while self.step()? {},
            Order::Seeded(_) => {
                for _ in 0..self.queues.chance(4) {
                    self.step()?;
                }
            }
        }
        Ok(())
    }

    /// Runs until a stream has nothing left.
    fn drain(&mut self, stream: StreamId) -> Result<(), DriverError> {
        while !self.queues.stream(stream)?.queue.is_empty() {
            if !self.step()? {
                let error = DriverError::Handle {
                    what: format!("stream {}", stream.0),
                    detail: "it waits for an event that nothing queued will reach".into(),
                };
                self.queues.failed = Some(error.clone());
                return Err(error);
            }
        }
        Ok(())
    }

    /// The host has waited for a stream.
    fn waited(&mut self, stream: StreamId) -> Result<(), DriverError> {
        self.drain(stream)?;
        let (clock, end) = (self.queues.stream(stream)?.clock, self.queues.stream(stream)?.end);
        join(&mut self.queues.host, &clock);
        self.queues.host_time = self.queues.host_time.max(end) + self.queues.options.costs.synchronize;
        self.queues.counters.host_syncs += 1;
        self.refuse_hazards()
    }

    fn refuse_hazards(&mut self) -> Result<(), DriverError> {
        let places: Vec<String> =
            self.queues.hazards.found().iter().map(|h| self.queues.place(h.address)).collect();
        let found = self.queues.hazards.found_mut();
        found.iter_mut().zip(places).for_each(|(hazard, place)| hazard.place = place);
        match found.first() {
            None => Ok(()),
            Some(first) => Err(DriverError::Hazard { hazards: found.len(), first: first.to_string() }),
        }
    }

    /// Hazards found so far.
    pub fn hazards(&self) -> &[super::Hazard] {
        self.queues.hazards.found()
    }

    /// The host's own time by the model, in microseconds since the device was made.
    pub fn modelled_us(&self) -> f64 {
        self.queues.host_time
    }

    /// As [`Driver::launch`]: on the main stream, done when it returns, so that an error is this launch's own.
    pub(super) fn launch_now(&mut self, launch: &Launch) -> Result<(), DriverError> {
        launch.check(&self.limits())?;
        if !self.queues.watched {
            return self.execute(launch, None).map(|_| ());
        }
        let enqueue = self.queues.options.costs.enqueue;
        self.queues.counters.launches += 1;
        self.queue(StreamId::MAIN, Work::Launch(launch.clone()), enqueue)?;
        self.drain(StreamId::MAIN)
    }

    pub(super) fn upload_now(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError> {
        if !self.queues.watched {
            return self
                .device
                .copy_to(DevicePtr(address), data)
                .map_err(|e| memory("upload", address, data.len(), &e));
        }
        let enqueue = self.queues.options.costs.enqueue;
        self.queue(StreamId::MAIN, Work::Upload { to: address, data: data.to_vec() }, enqueue)?;
        self.drain(StreamId::MAIN)
    }

    pub(super) fn download_now(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        let bytes = data.len();
        self.waited(StreamId::MAIN)?;
        if self.queues.watched {
            self.host_access(address, bytes, false, "download");
        }
        self.device.copy_from(DevicePtr(address), data).map_err(|e| memory("download", address, bytes, &e))
    }

    pub(super) fn copy_now(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), DriverError> {
        if !self.queues.watched {
            return self
                .device
                .copy_device(DevicePtr(to), DevicePtr(from), bytes as u64)
                .map_err(|e| memory("copy", to, bytes, &e));
        }
        self.copy_on(StreamId::MAIN, to, from, bytes)?;
        self.drain(StreamId::MAIN)
    }

    fn host_access(&mut self, address: u64, bytes: usize, write: bool, name: &str) {
        let clock = self.queues.host_access();
        let running = self.queues.hazards.begin(0, clock, format!("{name} of the host"));
        self.queues.hazards.access(&running, address, bytes as u64, write);
    }

    /// Memory that is freed is written by the host, as far as order goes.
    pub(super) fn freed(&mut self, address: u64) {
        self.queues.pinned.remove(&address);
        if self.queues.watched
            && let Some(bytes) = self.queues.allocations.get(&address).map(|a| a.0)
        {
            self.host_access(address, bytes, true, "free");
        }
        self.queues.allocations.remove(&address);
    }

    fn check_pinned(&self, call: &'static str, address: u64, bytes: usize) -> Result<(), DriverError> {
        match self.queues.is_pinned(address, bytes) {
            true => Ok(()),
            false => {
                let detail = "it is not within pinned memory of this device".into();
                Err(DriverError::Memory { call, address, bytes, detail })
            }
        }
    }
}

impl Streams for Emulated {
    fn stream(&mut self, name: &'static str) -> Result<StreamId, DriverError> {
        if self.queues.streams.len() == THREADS - 1 {
            return Err(DriverError::OutOfMemory {
                bytes: 0,
                what: format!("stream {name}"),
                device: NAME.into(),
                detail: format!("it has at most {}", THREADS - 1),
            });
        }
        self.queues.watched = true;
        self.queues.streams.push(Stream {
            name,
            queue: Default::default(),
            clock: self.queues.host,
            end: 0.0,
        });
        Ok(StreamId(self.queues.streams.len() as u32 - 1))
    }

    fn event(&mut self) -> Result<EventId, DriverError> {
        self.queues.events.push(EventState::default());
        Ok(EventId(self.queues.events.len() as u32 - 1))
    }

    fn pinned(&mut self, bytes: usize, what: &str) -> Result<Region, DriverError> {
        let bytes = bytes.max(1);
        let region = self.region(bytes, what)?;
        self.device
            .memset(DevicePtr(region.address()), 0, bytes as u64)
            .map_err(|e| memory("clear", region.address(), bytes, &e))?;
        self.queues.pinned.insert(region.address(), bytes);
        Ok(region)
    }

    fn write_pinned(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError> {
        self.check_pinned("write", address, data.len())?;
        if self.queues.watched {
            self.host_access(address, data.len(), true, "write");
        }
        self.device.copy_to(DevicePtr(address), data).map_err(|e| memory("write", address, data.len(), &e))
    }

    fn read_pinned(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        let bytes = data.len();
        self.check_pinned("read", address, bytes)?;
        if self.queues.watched {
            self.host_access(address, bytes, false, "read");
        }
        self.device.copy_from(DevicePtr(address), data).map_err(|e| memory("read", address, bytes, &e))
    }

    fn launch_on(&mut self, stream: StreamId, launch: &Launch) -> Result<(), DriverError> {
        launch.check(&self.limits())?;
        self.queues.counters.launches += 1;
        let enqueue = self.queues.options.costs.enqueue;
        self.queue(stream, Work::Launch(launch.clone()), enqueue)
    }

    fn copy_on(&mut self, stream: StreamId, to: u64, from: u64, bytes: usize) -> Result<(), DriverError> {
        self.queues.counters.copies += 1;
        self.queues.counters.copied_bytes += bytes as u64;
        let enqueue = self.queues.options.costs.enqueue;
        self.queue(stream, Work::Copy { to, from, bytes }, enqueue)
    }

    fn signal(&mut self, stream: StreamId, address: u64, value: u32) -> Result<(), DriverError> {
        self.check_pinned("signal", address, 4)?;
        let enqueue = self.queues.options.costs.enqueue_event;
        self.queue(stream, Work::Signal { address, value }, enqueue)
    }

    fn peek(&mut self, address: u64) -> Result<u32, DriverError> {
        self.check_pinned("peek", address, 4)?;
        if let Some(error) = &self.queues.failed {
            return Err(error.clone());
        }
        self.queues.counters.peeks += 1;
        self.queues.host_time += self.queues.options.costs.peek;
        if let Order::Seeded(_) = self.queues.options.order {
            // At least one, so that who waits for a flag gets on.
            for _ in 0..1 + self.queues.chance(4) {
                self.step()?;
            }
        }
        let timed = self.queues.options.order == Order::Timed;
        let (now, flags) = (self.queues.host_time, self.queues.flags.entry(address).or_default());
        let shown = flags.iter().rposition(|w| !timed || w.time <= now);
        if let Some(shown) = shown {
            // Older values cannot show any more.
            flags.drain(..shown);
            let Written { time, value, clock } = flags[0];
            self.queues.host_time = now.max(time);
            join(&mut self.queues.host, &clock);
            return Ok(value);
        }
        Ok(0)
    }

    fn record(&mut self, event: EventId, stream: StreamId) -> Result<(), DriverError> {
        let state = self.queues.event(event)?;
        state.queued += 1;
        let work = Work::Record { event: event.0 as usize, generation: state.queued };
        let enqueue = self.queues.options.costs.enqueue_event;
        self.queue(stream, work, enqueue)
    }

    fn wait_event(&mut self, stream: StreamId, event: EventId, why: &'static str) -> Result<(), DriverError> {
        let generation = self.queues.event(event)?.queued;
        if self.queues.options.leave_out == Some(why) {
            return Ok(());
        }
        let enqueue = self.queues.options.costs.enqueue_event;
        self.queue(stream, Work::Wait { event: event.0 as usize, generation, why }, enqueue)
    }

    fn synchronize(&mut self, stream: StreamId) -> Result<(), DriverError> {
        if let Some(error) = &self.queues.failed {
            return Err(error.clone());
        }
        self.waited(stream)
    }

    fn capture(&mut self, launches: &[Launch]) -> Result<GraphId, DriverError> {
        let limits = self.limits();
        launches.iter().try_for_each(|launch| launch.check(&limits))?;
        self.queues.graphs.push(launches.to_vec());
        Ok(GraphId(self.queues.graphs.len() as u32 - 1))
    }

    fn replay(&mut self, graph: GraphId, stream: StreamId) -> Result<(), DriverError> {
        let Some(launches) = self.queues.graphs.get(graph.0 as usize).cloned() else {
            let detail = format!("this device has {}", self.queues.graphs.len());
            return Err(DriverError::Handle { what: format!("graph {}", graph.0), detail });
        };
        // One call of the host, however many kernels.
        let mut enqueue = self.queues.options.costs.enqueue;
        for launch in launches {
            self.queues.counters.launches += 1;
            self.queue(stream, Work::Launch(launch), std::mem::take(&mut enqueue))?;
        }
        Ok(())
    }

    fn stream_counters(&self) -> StreamCounters {
        self.queues.counters
    }

    fn occupy(&mut self, stream: StreamId, name: &'static str, us: f64) -> Result<(), DriverError> {
        let enqueue = self.queues.options.costs.enqueue;
        self.queue(stream, Work::Occupy { name, us }, enqueue)
    }

    fn clock_us(&self) -> Option<f64> {
        Some(self.modelled_us())
    }

    fn trace(&mut self, on: bool) -> Result<(), DriverError> {
        self.queues.watched |= on;
        self.queues.spans = on.then(Vec::new);
        Ok(())
    }

    fn timeline(&mut self) -> Result<Timeline, DriverError> {
        Ok(Timeline {
            device: format!("model {} on the {NAME}", self.queues.options.costs.name),
            modelled: true,
            streams: self.queues.streams.iter().map(|stream| stream.name.into()).collect(),
            spans: self.queues.spans.clone().unwrap_or_default(),
        })
    }
}
