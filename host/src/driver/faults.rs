//! Faults on purpose: a driver that fails the nth allocation, copy, launch or event of another.
//!
//! Streams are counted with the rest: a copy is a copy on any stream; events are made, recorded and waited for.
//!
//! A fault strikes once; or it takes the device with it, and every later call on that driver fails as well. What was
//! called before it has happened, and the failed call has done nothing, as when a driver refuses a call.

use std::sync::{Arc, Mutex, PoisonError};

use psa_codegen::{DeviceLimits, Launch, Region};

use super::{Counters, Driver, DriverError, EventId, GraphId, StreamCounters, StreamId, Streams};
use crate::timeline::Timeline;

/// What can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// An allocation.
    Alloc,
    /// An upload, a download, or a copy within the device.
    Copy,
    /// A launch, a graph or its replay.
    Launch,
    /// An event made, recorded, waited for or signalled, and the wait of the host for a stream.
    Event,
}

impl Call {
    /// All of them.
    pub const ALL: [Call; 4] = [Call::Alloc, Call::Copy, Call::Launch, Call::Event];
}

#[derive(Debug, Default)]
struct State {
    /// Calls of each kind so far.
    calls: [u64; 4],
    /// Kind, calls to go, and whether the device is lost with it.
    armed: Option<(Call, u64, bool)>,
}

/// Arms faults and counts calls; clones share both.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<State>>);

impl Faults {
    /// No fault yet.
    pub fn new() -> Faults {
        Faults::default()
    }

    /// The `nth` call of this kind from now on fails, the first being 0; with `lost` so does every call after it on the same
    /// driver.
    pub fn arm(&self, call: Call, nth: u64, lost: bool) {
        self.state().armed = Some((call, nth, lost));
    }

    /// No fault any more; true where one was armed and has not struck.
    pub fn disarm(&self) -> bool {
        self.state().armed.take().is_some()
    }

    /// Calls of a kind so far, failed ones included.
    pub fn calls(&self, call: Call) -> u64 {
        self.state().calls[call as usize]
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Numbers only: whoever panicked left them whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call; whether it fails, and whether the device is lost with it.
    fn strikes(&self, call: Call) -> Option<bool> {
        let mut state = self.state();
        state.calls[call as usize] += 1;
        match &mut state.armed {
            Some((armed, 0, lost)) if *armed == call => {
                let lost = *lost;
                state.armed = None;
                Some(lost)
            }
            Some((armed, left, _)) if *armed == call => {
                *left -= 1;
                None
            }
            _ => None,
        }
    }
}

/// A driver with faults.
pub struct Faulty {
    driver: Box<dyn Driver>,
    faults: Faults,
    lost: bool,
    /// Of the streams, behind the last call on them.
    counters: StreamCounters,
}

impl Faulty {
    /// `driver`, but for what `faults` makes fail.
    pub fn new(driver: Box<dyn Driver>, faults: Faults) -> Faulty {
        Faulty { driver, faults, lost: false, counters: StreamCounters::default() }
    }

    fn check(&mut self, call: Call, refused: impl FnOnce(String) -> DriverError) -> Result<(), DriverError> {
        let strikes = self.faults.strikes(call);
        self.lost |= strikes == Some(true);
        if self.lost {
            return Err(DriverError::Lost {
                device: self.driver.name(),
                detail: "a fault on purpose".into(),
            });
        }
        match strikes {
            Some(_) => Err(refused("a fault on purpose".into())),
            None => Ok(()),
        }
    }

    fn check_copy(&mut self, call: &'static str, address: u64, bytes: usize) -> Result<(), DriverError> {
        self.check(Call::Copy, |detail| DriverError::Memory { call, address, bytes, detail })
    }
}

impl Driver for Faulty {
    fn name(&self) -> String {
        self.driver.name()
    }

    fn alloc(&mut self, bytes: usize, what: &str) -> Result<u64, DriverError> {
        self.check_alloc(bytes, what)?;
        self.driver.alloc(bytes, what)
    }

    fn limits(&self) -> DeviceLimits {
        self.driver.limits()
    }

    fn free(&mut self, address: u64) -> Result<(), DriverError> {
        self.driver.free(address)
    }

    fn upload(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError> {
        self.check_copy("upload", address, data.len())?;
        self.driver.upload(address, data)
    }

    fn download(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        self.check_copy("download", address, data.len())?;
        self.driver.download(address, data)
    }

    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), DriverError> {
        self.check_copy("copy", to, bytes)?;
        self.driver.copy(to, from, bytes)
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), DriverError> {
        self.check_launch(launch.kernel.name)?;
        self.driver.launch(launch)
    }

    fn streams(&mut self) -> Option<&mut dyn Streams> {
        // Only where there are some to pass the calls on to.
        self.driver.streams().is_some().then_some(self)
    }

    fn counters(&self) -> Option<Counters> {
        self.driver.counters()
    }
}

impl Faulty {
    /// Makes a call on the driver's streams; there are some, or nobody had these calls.
    fn pass<R>(
        &mut self,
        call: impl FnOnce(&mut dyn Streams) -> Result<R, DriverError>,
    ) -> Result<R, DriverError> {
        let none =
            || DriverError::Memory { call: "streams", address: 0, bytes: 0, detail: "there are none".into() };
        let below = self.driver.streams().ok_or_else(none)?;
        let done = call(below);
        self.counters = below.stream_counters();
        done
    }

    fn check_alloc(&mut self, bytes: usize, what: &str) -> Result<(), DriverError> {
        let (device, what) = (self.driver.name(), what.to_owned());
        self.check(Call::Alloc, |detail| DriverError::OutOfMemory { bytes, what, device, detail })
    }

    fn check_launch(&mut self, name: &str) -> Result<(), DriverError> {
        self.check(Call::Launch, |detail| DriverError::Launch { launch: name.to_owned(), detail })
    }

    fn check_event(&mut self, call: &'static str) -> Result<(), DriverError> {
        self.check(Call::Event, |detail| DriverError::Memory { call, address: 0, bytes: 0, detail })
    }
}

impl Streams for Faulty {
    fn stream(&mut self, name: &'static str) -> Result<StreamId, DriverError> {
        self.check_alloc(0, name)?;
        self.pass(|below| below.stream(name))
    }

    fn event(&mut self) -> Result<EventId, DriverError> {
        self.check_event("event")?;
        self.pass(|below| below.event())
    }

    fn pinned(&mut self, bytes: usize, what: &str) -> Result<Region, DriverError> {
        self.check_alloc(bytes, what)?;
        self.pass(|below| below.pinned(bytes, what))
    }

    fn write_pinned(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError> {
        self.pass(|below| below.write_pinned(address, data))
    }

    fn read_pinned(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        self.pass(|below| below.read_pinned(address, data))
    }

    fn launch_on(&mut self, stream: StreamId, launch: &Launch) -> Result<(), DriverError> {
        self.check_launch(launch.kernel.name)?;
        self.pass(|below| below.launch_on(stream, launch))
    }

    fn copy_on(&mut self, stream: StreamId, to: u64, from: u64, bytes: usize) -> Result<(), DriverError> {
        self.check_copy("copy", to, bytes)?;
        self.pass(|below| below.copy_on(stream, to, from, bytes))
    }

    fn signal(&mut self, stream: StreamId, address: u64, value: u32) -> Result<(), DriverError> {
        self.check_event("signal")?;
        self.pass(|below| below.signal(stream, address, value))
    }

    fn peek(&mut self, address: u64) -> Result<u32, DriverError> {
        self.pass(|below| below.peek(address))
    }

    fn record(&mut self, event: EventId, stream: StreamId) -> Result<(), DriverError> {
        self.check_event("record")?;
        self.pass(|below| below.record(event, stream))
    }

    fn wait_event(&mut self, stream: StreamId, event: EventId, why: &'static str) -> Result<(), DriverError> {
        self.check_event("wait")?;
        self.pass(|below| below.wait_event(stream, event, why))
    }

    fn synchronize(&mut self, stream: StreamId) -> Result<(), DriverError> {
        self.check_event("synchronize")?;
        self.pass(|below| below.synchronize(stream))
    }

    fn capture(&mut self, launches: &[Launch]) -> Result<GraphId, DriverError> {
        self.check_launch("a graph")?;
        self.pass(|below| below.capture(launches))
    }

    fn replay(&mut self, graph: GraphId, stream: StreamId) -> Result<(), DriverError> {
        self.check_launch("a graph")?;
        self.pass(|below| below.replay(graph, stream))
    }

    fn stream_counters(&self) -> StreamCounters {
        self.counters
    }

    fn occupy(&mut self, stream: StreamId, name: &'static str, us: f64) -> Result<(), DriverError> {
        self.pass(|below| below.occupy(stream, name, us))
    }

    fn trace(&mut self, on: bool) -> Result<(), DriverError> {
        self.pass(|below| below.trace(on))
    }

    fn timeline(&mut self) -> Result<Timeline, DriverError> {
        self.pass(|below| below.timeline())
    }
}
