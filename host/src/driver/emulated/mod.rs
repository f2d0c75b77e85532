//! The emulated driver: the shipped PTX on the CPU, by `ptx-emulator`, with its checkers on.
//!
//! It executes and checks. A finding of a checker is an error of the launch, so that nothing computed by a faulty kernel
//! is ever used. Its streams run in an order that a seed or a declared cost model chooses ([`Order`]); it does not
//! measure time, and the times of its timelines are those of the model.

mod costs;
mod hazards;
mod queues;
mod streams;

use psa_codegen::{DeviceLimits, Launch};
use ptx_emulator::{Checks, Device, DevicePtr, Module, Options};

use super::{Driver, DriverError, Streams};
pub use costs::Costs;
pub use hazards::Hazard;
use queues::Queues;
pub use queues::{Order, StreamOptions};

/// How the emulated device runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmulatedOptions {
    /// Order in which warps and blocks are scheduled; 0 is round robin. Results do not depend on it.
    pub seed: u64,
    /// Run the checkers (memory, initialisation, synchronisation, launch).
    pub checks: bool,
}

impl Default for EmulatedOptions {
    fn default() -> Self {
        EmulatedOptions { seed: 0, checks: true }
    }
}

/// What the emulated device has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Kernels launched.
    pub launches: u64,
    /// Instructions, counted once a lane.
    pub lane_instructions: u64,
    /// Bytes that kernels read from global memory, as requested by lanes.
    pub global_bytes_read: u64,
}

/// A CPU that runs [`kernels_gpu::PTX`].
pub struct Emulated {
    device: Device,
    module: Module,
    counters: Counters,
    queues: Queues,
}

impl Emulated {
    /// Loads the shipped PTX.
    ///
    /// # Errors
    /// [`DriverError::Module`].
    pub fn new(options: EmulatedOptions) -> Result<Self, DriverError> {
        Self::with_ptx(options, kernels_gpu::PTX)
    }

    /// Loads another PTX module.
    ///
    /// # Errors
    /// [`DriverError::Module`].
    pub fn with_ptx(options: EmulatedOptions, ptx: &str) -> Result<Self, DriverError> {
        let module = Module::parse(ptx)
            .map_err(|e| DriverError::Module { device: NAME.into(), detail: e.to_string() })?;
        let checks = if options.checks { Checks::all() } else { Checks::none() };
        let device = Device::new(Options { seed: options.seed, checks, ..Options::default() });
        let queues = Queues::new(StreamOptions::default());
        Ok(Emulated { device, module, counters: Counters::default(), queues })
    }

    /// The same with options for streams; accesses are watched for hazards from the start.
    #[must_use]
    pub fn with_streams(mut self, options: StreamOptions) -> Self {
        self.queues = Queues::new(options);
        self.queues.watched = true;
        self
    }
}

const NAME: &str = "emulator";

impl Driver for Emulated {
    fn name(&self) -> String {
        NAME.into()
    }

    fn alloc(&mut self, bytes: usize, what: &str) -> Result<u64, DriverError> {
        self.queues.counters.allocations += 1;
        let address = self.device.alloc(bytes.max(1) as u64, what).map(|p| p.0).map_err(|e| {
            DriverError::OutOfMemory { bytes, what: what.into(), device: NAME.into(), detail: e.to_string() }
        })?;
        self.queues.allocations.insert(address, (bytes.max(1), what.into()));
        Ok(address)
    }

    fn free(&mut self, address: u64) -> Result<(), DriverError> {
        self.freed(address);
        self.device.free(DevicePtr(address)).map_err(|e| memory("free", address, 0, &e))
    }

    fn upload(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError> {
        self.upload_now(address, data)
    }

    fn download(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        self.download_now(address, data)
    }

    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), DriverError> {
        self.copy_now(to, from, bytes)
    }

    fn limits(&self) -> DeviceLimits {
        DeviceLimits::of_sm(self.device.options().sm)
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), DriverError> {
        self.launch_now(launch)
    }

    fn streams(&mut self) -> Option<&mut dyn Streams> {
        Some(self)
    }

    fn counters(&self) -> Option<Counters> {
        Some(self.counters)
    }
}

fn memory(call: &'static str, address: u64, bytes: usize, e: &dyn std::fmt::Display) -> DriverError {
    DriverError::Memory { call, address, bytes, detail: e.to_string() }
}
