//! Streams and events: what a driver needs for work that overlaps, [`Streams`].
//!
//! A stream runs what is queued on it in order; two streams are ordered by nothing but events and by what the host has
//! seen. Everything here returns at once but [`Streams::synchronize`]. Handles are made once and used in every step, so
//! that a step allocates nothing.
//!
//! Trap: the host may learn of the device's progress without waiting ([`Streams::signal`], [`Streams::peek`]), and what
//! it queues afterwards is behind what it saw. A host that reads or reuses pinned memory on any other ground races.

use psa_codegen::{Launch, Region};

use super::{Driver, DriverError};

/// A queue of a device. [`StreamId::MAIN`] is the one that [`Driver::launch`] and the copies of [`Driver`] use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamId(pub u32);

impl StreamId {
    /// The stream of [`Driver::launch`].
    pub const MAIN: StreamId = StreamId(0);
}

/// A point in a stream, set by [`Streams::record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventId(pub u32);

/// Launches captured by [`Streams::capture`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphId(pub u32);

/// What was asked of a driver since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamCounters {
    /// Times that the host waited for a stream.
    pub host_syncs: u64,
    /// Times that memory was allocated, on the device or pinned.
    pub allocations: u64,
    /// Kernels launched, those of graphs included.
    pub launches: u64,
    /// Copies queued.
    pub copies: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Times that the host looked at a flag.
    pub peeks: u64,
}

impl std::ops::Sub for StreamCounters {
    type Output = StreamCounters;

    fn sub(self, before: StreamCounters) -> StreamCounters {
        StreamCounters {
            host_syncs: self.host_syncs - before.host_syncs,
            allocations: self.allocations - before.allocations,
            launches: self.launches - before.launches,
            copies: self.copies - before.copies,
            copied_bytes: self.copied_bytes - before.copied_bytes,
            peeks: self.peeks - before.peeks,
        }
    }
}

/// A driver with several streams.
pub trait Streams: Driver {
    /// Makes a stream; the name is for people.
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`].
    fn stream(&mut self, name: &'static str) -> Result<StreamId, DriverError>;

    /// Makes an event.
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`].
    fn event(&mut self) -> Result<EventId, DriverError>;

    /// Allocates host memory that copies and kernels reach at the address of the region; zeroed. Freed by
    /// [`Driver::free`].
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`].
    fn pinned(&mut self, bytes: usize, what: &str) -> Result<Region, DriverError>;

    /// The host writes pinned memory, now.
    ///
    /// # Errors
    /// [`DriverError::Memory`] outside pinned memory.
    fn write_pinned(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError>;

    /// The host reads pinned memory, now.
    ///
    /// # Errors
    /// [`DriverError::Memory`] outside pinned memory.
    fn read_pinned(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError>;

    /// Queues a launch, if it keeps its contract.
    ///
    /// # Errors
    /// As [`Driver::launch`].
    fn launch_on(&mut self, stream: StreamId, launch: &Launch) -> Result<(), DriverError>;

    /// Queues a copy between any two of device and pinned memory.
    ///
    /// # Errors
    /// [`DriverError::Memory`].
    fn copy_on(&mut self, stream: StreamId, to: u64, from: u64, bytes: usize) -> Result<(), DriverError>;

    /// Queues a write of `value` to an aligned word of pinned memory: behind it, everything queued before is done and
    /// visible to a host that sees the value by [`Streams::peek`].
    ///
    /// # Errors
    /// [`DriverError::Memory`].
    fn signal(&mut self, stream: StreamId, address: u64, value: u32) -> Result<(), DriverError>;

    /// The word at `address`, without waiting.
    ///
    /// # Errors
    /// [`DriverError::Memory`]; errors of what was queued, where they have shown.
    fn peek(&mut self, address: u64) -> Result<u32, DriverError>;

    /// Marks the end of what is queued on `stream`.
    ///
    /// # Errors
    /// [`DriverError::Memory`] for a handle that is not this driver's.
    fn record(&mut self, event: EventId, stream: StreamId) -> Result<(), DriverError>;

    /// What is queued on `stream` from now on waits for the event's last record. `why` names the wait: in timelines, and
    /// for tests that leave it out.
    ///
    /// # Errors
    /// As [`Streams::record`].
    fn wait_event(&mut self, stream: StreamId, event: EventId, why: &'static str) -> Result<(), DriverError>;

    /// The host waits until `stream` is idle.
    ///
    /// # Errors
    /// What queued work failed with; [`DriverError::Hazard`].
    fn synchronize(&mut self, stream: StreamId) -> Result<(), DriverError>;

    /// Makes a graph of launches; nothing runs.
    ///
    /// # Errors
    /// As [`Driver::launch`].
    fn capture(&mut self, launches: &[Launch]) -> Result<GraphId, DriverError>;

    /// Queues a graph.
    ///
    /// # Errors
    /// As [`Driver::launch`].
    fn replay(&mut self, graph: GraphId, stream: StreamId) -> Result<(), DriverError>;

    /// What was asked so far.
    fn stream_counters(&self) -> StreamCounters;

    /// Stands for the model's own work between two calls, `us` microseconds long, on drivers that model time. Others
    /// do nothing.
    ///
    /// # Errors
    /// As [`Streams::record`].
    fn occupy(&mut self, stream: StreamId, name: &'static str, us: f64) -> Result<(), DriverError> {
        let _ = (stream, name, us);
        Ok(())
    }

    /// The host's own time by the model, in microseconds since the driver was made, on drivers that model time.
    fn clock_us(&self) -> Option<f64> {
        None
    }

    /// Starts to keep times of everything queued from now on, for [`Streams::timeline`].
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`].
    fn trace(&mut self, on: bool) -> Result<(), DriverError>;

    /// What ran when since tracing began; call it behind [`Streams::synchronize`].
    ///
    /// # Errors
    /// Those of the device.
    fn timeline(&mut self) -> Result<crate::timeline::Timeline, DriverError>;
}
