//! `--backend`: the devices by name.

use clap::ValueEnum;
use psa::Device;
use psa::driver::EmulatedOptions;

use super::CliError;

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Vector code on all threads
    Cpu,
    /// The shipped PTX on the CPU, with the emulator's checkers on; slow
    Emulator,
    /// An NVIDIA GPU, the one that --gpu names
    Cuda,
    /// The plain definition of every stage; slow
    Reference,
}

impl Backend {
    /// The device. `seed` is the order in which the emulator schedules, `gpu` the index of the GPU.
    pub fn device(self, seed: u64, gpu: usize) -> Result<Device, CliError> {
        match self {
            Backend::Cpu => Ok(Device::cpu()),
            Backend::Reference => Ok(Device::reference()),
            Backend::Emulator => Ok(emulator(seed)),
            Backend::Cuda => Device::cuda(gpu).map_err(|error| CliError::Backend {
                backend: "cuda",
                reason: format!("{error}. Or use cpu, or emulator to run the PTX that a GPU would run"),
            }),
        }
    }
}

/// The device that runs the shipped PTX on the CPU, with all checkers.
pub fn emulator(seed: u64) -> Device {
    Device::emulator_with(EmulatedOptions { seed, checks: true })
}
