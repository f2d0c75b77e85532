//! What is known of a GPU before it is used, and why there may be none.

use std::path::PathBuf;

/// A GPU of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// For [`Device::cuda`](crate::Device::cuda).
    pub index: usize,
    /// The maker's name.
    pub name: String,
    /// Compute capability, as 80 for 8.0.
    pub sm: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Device memory, in bytes.
    pub memory: usize,
    /// CUDA version of the driver, as 12040 for 12.4.
    pub driver: u32,
}

/// Why a GPU cannot be used, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// This build has no CUDA driver.
    #[error("this build has no CUDA: build psa on Linux with its feature `cuda`")]
    NotBuilt,
    /// There is no libcuda.
    #[error("{detail}; install the NVIDIA driver, in a container start it with GPU support")]
    NoLibrary {
        /// What was tried, and the loader's words.
        detail: String,
    },
    /// There is a libcuda.so.1 that does not work.
    #[error("{detail}; remove it, or point PSA_LIBCUDA at the driver's libcuda.so.1")]
    WrongLibrary {
        /// The file, and the loader's words.
        detail: String,
    },
    /// The driver cannot read the shipped PTX.
    #[error(
        "the NVIDIA driver is too old: it has CUDA {}.{}, the PTX needs {}.{} or newer; update the driver",
        .version / 1000, .version % 1000 / 10, .needed / 1000, .needed % 1000 / 10
    )]
    DriverTooOld {
        /// CUDA version of the driver, as 11040 for 11.4.
        version: u32,
        /// The lowest that will do.
        needed: u32,
    },
    /// The user may not open the device.
    #[error("no permission to open {}; add the user to the group that owns it", .file.display())]
    NoPermission {
        /// The device file.
        file: PathBuf,
    },
    /// The driver works and has no device.
    #[error("the NVIDIA driver finds no GPU: {detail}")]
    NoDevice {
        /// CUDA's error where there is one, and what may hide the GPU.
        detail: String,
    },
    /// There is no device of this number.
    #[error("there is no GPU {index}: this machine has {count}, numbered from 0")]
    NoSuchDevice {
        /// The number asked for.
        index: usize,
        /// GPUs here.
        count: usize,
    },
    /// The GPU cannot run the PTX.
    #[error("GPU {index} ({name}) has compute capability {}.{}; the kernels need 8.0 (Ampere) or newer", .sm / 10, .sm % 10)]
    DeviceTooOld {
        /// The number asked for.
        index: usize,
        /// The maker's name.
        name: String,
        /// Compute capability, as 75 for 7.5.
        sm: u32,
    },
    /// The GPU has no memory left for a context.
    #[error("GPU {index} has no memory left to work with: {detail}; stop what uses it, see nvidia-smi")]
    OutOfMemory {
        /// The number asked for.
        index: usize,
        /// CUDA's error.
        detail: String,
    },
    /// The driver refused a call.
    #[error("the NVIDIA driver does not work: {detail}")]
    Failed {
        /// CUDA's error.
        detail: String,
    },
}
