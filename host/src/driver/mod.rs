//! The seam between the toolkit and a device: memory, copies, launches.
//!
//! A driver executes untyped [`Launch`]es that the kernels' typed launchers built, so that it knows no
//! kernel; each checks the launch against its contract first. Addresses are plain `u64`, as in the launches. [`Emulated`] runs the shipped PTX on the CPU,
//! [`cuda`] on a GPU.

mod emulated;
mod faults;
mod gpu;
pub mod stream;

// Elsewhere the same names say why there is no GPU, so that callers need no cfg of their own.
#[cfg(all(feature = "cuda", target_os = "linux"))]
pub mod cuda;
#[cfg(not(all(feature = "cuda", target_os = "linux")))]
#[path = "without_cuda.rs"]
pub mod cuda;

pub use emulated::{Costs, Counters, Emulated, EmulatedOptions, Hazard, Order, StreamOptions};
pub use faults::{Call, Faults, Faulty};
pub use gpu::{Gpu, Unavailable};
pub use stream::{EventId, GraphId, StreamCounters, StreamId, Streams};

use psa_codegen::{ArgValue, ContractError, DeviceLimits, Launch, Region};

/// What went wrong in a driver, with everything needed to see why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// The device has no memory left.
    #[error("cannot allocate {bytes} bytes for {what} on {device}: {detail}; use a smaller cache")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// What they were for.
        what: String,
        /// The device.
        device: String,
        /// The driver's own words.
        detail: String,
    },
    /// A copy or a free named memory that is not there.
    #[error("{call} of {bytes} bytes at {address:#x} failed: {detail}")]
    Memory {
        /// The call.
        call: &'static str,
        /// Device address.
        address: u64,
        /// Bytes.
        bytes: usize,
        /// The driver's own words.
        detail: String,
    },
    /// The launch breaks its kernel's contract; nothing was executed.
    #[error(transparent)]
    Contract(#[from] ContractError),
    /// A kernel could not be launched or failed.
    #[error("{launch} failed: {detail}")]
    Launch {
        /// Kernel, grid, block, shared memory and parameter values.
        launch: String,
        /// The driver's own words.
        detail: String,
    },
    /// The kernel ran and a checker complained.
    #[error("{launch}: {findings} finding(s), the first: {first}")]
    Check {
        /// Kernel, grid, block, shared memory and parameter values.
        launch: String,
        /// Number of findings.
        findings: usize,
        /// The first one.
        first: String,
    },
    /// An earlier error destroyed the device's context: every call says so, with that error.
    #[error(
        "{device} is lost: {detail}; what was in its memory is gone, restart the program to use it again"
    )]
    Lost {
        /// The device.
        device: String,
        /// The error, and what was queued when it showed.
        detail: String,
    },
    /// Two streams, or a stream and the host, touch the same bytes and nothing orders them.
    #[error("{hazards} hazard(s), the first: {first}")]
    Hazard {
        /// Hazards found.
        hazards: usize,
        /// The first one.
        first: String,
    },
    /// A stream, event or graph that is not this driver's, or that nothing can complete.
    #[error("{what} cannot be used: {detail}")]
    Handle {
        /// Its kind and number.
        what: String,
        /// Why.
        detail: String,
    },
    /// The PTX does not load.
    #[error("the PTX module does not load on {device}: {detail}")]
    Module {
        /// The device.
        device: String,
        /// The driver's own words.
        detail: String,
    },
}

/// How [`Driver::time`] runs what it times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Rounds that run first and are not reported.
    pub warm_up: u32,
    /// Rounds that are reported.
    pub rounds: u32,
    /// Empty the L2 cache of the data before each round, outside the time taken.
    pub flush_l2: bool,
    /// Replay a graph of the launches instead of launching them one by one.
    pub graph: bool,
}

/// A device with its memory and the module of [`kernels_gpu::PTX`].
pub trait Driver: Send {
    /// Name of the device, for people.
    fn name(&self) -> String;

    /// Allocates `bytes` bytes (at least 1), aligned to 256; contents are undefined.
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`].
    fn alloc(&mut self, bytes: usize, what: &str) -> Result<u64, DriverError>;

    /// Allocates as [`Driver::alloc`] does, for the arguments of launches. It is the device's until it is freed; a launch
    /// that uses it afterwards is refused on the emulator and undefined on a GPU.
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`].
    fn region(&mut self, bytes: usize, what: &str) -> Result<Region, DriverError> {
        let address = self.alloc(bytes, what)?;
        // SAFETY: just allocated, `bytes` long, and this device's.
        Ok(unsafe { Region::new(address, bytes as u64) })
    }

    /// What the device allows a launch.
    fn limits(&self) -> DeviceLimits;

    /// Frees an allocation.
    ///
    /// # Errors
    /// [`DriverError::Memory`] for an address that [`Driver::alloc`] did not return.
    fn free(&mut self, address: u64) -> Result<(), DriverError>;

    /// Copies to the device.
    ///
    /// # Errors
    /// [`DriverError::Memory`].
    fn upload(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError>;

    /// Copies from the device, after everything launched so far.
    ///
    /// # Errors
    /// [`DriverError::Memory`].
    fn download(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError>;

    /// Copies within the device, behind everything launched so far and before everything after; the two ranges do not
    /// overlap. Drivers without such a copy go through the host.
    ///
    /// # Errors
    /// [`DriverError::Memory`].
    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), DriverError> {
        let mut data = vec![0; bytes];
        self.download(from, &mut data)?;
        self.upload(to, &data)
    }

    /// Launches a kernel, behind everything launched so far, if the launch keeps its contract ([`Launch::check`]).
    ///
    /// # Errors
    /// [`DriverError::Contract`], [`DriverError::Launch`], [`DriverError::Check`].
    fn launch(&mut self, launch: &Launch) -> Result<(), DriverError>;

    /// Runs `launches` in order, round after round, and says how long each round took on the device's own
    /// clock, in microseconds. `None` where the device does not time.
    ///
    /// # Errors
    /// As [`Driver::launch`]; [`DriverError::OutOfMemory`] where there is no room to flush with.
    fn time(&mut self, launches: &[Launch], how: Timing) -> Result<Option<Vec<f32>>, DriverError> {
        let _ = (launches, how);
        Ok(None)
    }

    /// Copies `bytes` bytes between two buffers of the device, round after round, as [`Driver::time`] does.
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`], [`DriverError::Memory`].
    fn time_copy(&mut self, bytes: usize, how: Timing) -> Result<Option<Vec<f32>>, DriverError> {
        let _ = (bytes, how);
        Ok(None)
    }

    /// Its streams and events, where it has them.
    fn streams(&mut self) -> Option<&mut dyn Streams> {
        None
    }

    /// What the device counted since it was made, where it counts.
    fn counters(&self) -> Option<Counters> {
        None
    }
}

/// Kernel, grid, block, shared memory and the parameters with their names.
fn describe(launch: &Launch) -> String {
    let args: Vec<String> = launch
        .kernel
        .params
        .iter()
        .zip(&launch.args)
        .map(|(p, a)| match a {
            ArgValue::Ptr(v) => format!("{}={v:#x}", p.name),
            ArgValue::F32(v) => format!("{}={v}", p.name),
            ArgValue::F64(v) => format!("{}={v}", p.name),
            ArgValue::U32(v) => format!("{}={v}", p.name),
            ArgValue::I32(v) => format!("{}={v}", p.name),
            ArgValue::U64(v) => format!("{}={v}", p.name),
            ArgValue::I64(v) => format!("{}={v}", p.name),
        })
        .collect();
    format!(
        "kernel {} grid {:?} block {:?} shared {} ({})",
        launch.kernel.name,
        launch.grid,
        launch.block,
        launch.shared_bytes,
        args.join(", ")
    )
}
