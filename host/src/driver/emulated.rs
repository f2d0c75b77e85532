//! The emulated driver: the shipped PTX on the CPU, by `ptx-emulator`, with its checkers on.
//!
//! It executes and checks; it does not time. A finding of a checker is an error of the launch, so that
//! nothing computed by a faulty kernel is ever used.

use psa_codegen::{DeviceLimits, Launch};
use ptx_emulator::{Arg, Checks, Device, DevicePtr, LaunchConfig, Module, Options};

use super::{Driver, DriverError, describe};

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
        Ok(Emulated { device, module, counters: Counters::default() })
    }
}

const NAME: &str = "emulator";

impl Driver for Emulated {
    fn name(&self) -> String {
        NAME.into()
    }

    fn alloc(&mut self, bytes: usize, what: &str) -> Result<u64, DriverError> {
        self.device.alloc(bytes.max(1) as u64, what).map(|p| p.0).map_err(|e| DriverError::OutOfMemory {
            bytes,
            what: what.into(),
            device: NAME.into(),
            detail: e.to_string(),
        })
    }

    fn free(&mut self, address: u64) -> Result<(), DriverError> {
        self.device.free(DevicePtr(address)).map_err(|e| memory("free", address, 0, &e))
    }

    fn upload(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError> {
        self.device.copy_to(DevicePtr(address), data).map_err(|e| memory("upload", address, data.len(), &e))
    }

    fn download(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        let bytes = data.len();
        self.device.copy_from(DevicePtr(address), data).map_err(|e| memory("download", address, bytes, &e))
    }

    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), DriverError> {
        self.device
            .copy_device(DevicePtr(to), DevicePtr(from), bytes as u64)
            .map_err(|e| memory("copy", to, bytes, &e))
    }

    fn limits(&self) -> DeviceLimits {
        DeviceLimits::of_sm(self.device.options().sm)
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), DriverError> {
        launch.check(&self.limits())?;
        let args: Vec<Arg> = launch.args.iter().map(|arg| Arg::Bytes(arg.bytes())).collect();
        let config =
            LaunchConfig { grid: launch.grid, block: launch.block, shared_bytes: launch.shared_bytes };
        let report = self
            .device
            .launch(&self.module, launch.kernel.name, config, &args)
            .map_err(|e| DriverError::Launch { launch: describe(launch), detail: e.to_string() })?;
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
        Ok(())
    }

    fn counters(&self) -> Option<Counters> {
        Some(self.counters)
    }
}

fn memory(call: &'static str, address: u64, bytes: usize, e: &dyn std::fmt::Display) -> DriverError {
    DriverError::Memory { call, address, bytes, detail: e.to_string() }
}
