//! In place of the CUDA driver where it is not built: the same questions, and why the answer is no.

use super::{Gpu, Unavailable};
use crate::{Device, Error};

/// The GPUs that can be used: none in this build.
///
/// # Errors
/// [`Unavailable::NotBuilt`].
pub fn devices() -> Result<Vec<Gpu>, Unavailable> {
    Err(Unavailable::NotBuilt)
}

impl Device {
    /// An NVIDIA GPU: not in this build.
    ///
    /// # Errors
    /// [`Error::NoGpu`].
    pub fn cuda(_index: usize) -> Result<Device, Error> {
        Err(Error::NoGpu(Unavailable::NotBuilt))
    }
}
