//! The device under test: one driver that all caches share, and that remembers which kernels ran.
//!
//! A cache of the toolkit opens its own driver; here hundreds of caches come and go, and on a GPU each would
//! load the module again. So a [`Target`] hands out handles to one driver behind a lock.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use psa::Device;
use psa::driver::{Counters, Driver, DriverError, Emulated, EmulatedOptions, Timing};
use psa_codegen::{DeviceLimits, Launch, Region};

use crate::Error;

/// `--backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The emulator, with its checkers.
    Emulator,
    /// A GPU by index.
    Cuda(usize),
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "emulator" => Ok(Backend::Emulator),
            None if text == "cuda" => Ok(Backend::Cuda(0)),
            Some(("cuda", index)) => match index.parse() {
                Ok(index) => Ok(Backend::Cuda(index)),
                Err(_) => Err(format!("`{index}` is no index of a GPU; use cuda:0, cuda:1, ..")),
            },
            _ => Err("use emulator, cuda or cuda:INDEX".into()),
        }
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Backend::Emulator => f.write_str("emulator"),
            Backend::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl Backend {
    /// A driver with `ptx` loaded.
    ///
    /// # Errors
    /// [`Error::Backend`], which says what is missing; [`Error::Driver`].
    pub fn driver(self, ptx: &str) -> Result<Box<dyn Driver>, Error> {
        match self {
            Backend::Emulator => Ok(Box::new(Emulated::with_ptx(EmulatedOptions::default(), ptx)?)),
            Backend::Cuda(index) => cuda(self, index, ptx),
        }
    }
}

#[cfg(target_os = "linux")]
fn cuda(backend: Backend, index: usize, ptx: &str) -> Result<Box<dyn Driver>, Error> {
    use psa::driver::cuda::{CubinCache, CudaDevice};
    let device =
        CudaDevice::open_with_ptx(index, &CubinCache::Usual, ptx).map_err(|error| Error::Backend {
            backend: backend.to_string(),
            reason: format!("{error}. `--backend emulator` runs the same PTX on the CPU"),
        })?;
    Ok(Box::new(device.driver()?))
}

#[cfg(not(target_os = "linux"))]
fn cuda(backend: Backend, _: usize, _: &str) -> Result<Box<dyn Driver>, Error> {
    Err(Error::Backend {
        backend: backend.to_string(),
        reason: psa::driver::Unavailable::NotBuilt.to_string(),
    })
}

struct Inner {
    driver: Box<dyn Driver>,
    seen: BTreeSet<&'static str>,
}

/// A driver for many caches.
#[derive(Clone)]
pub struct Target {
    inner: Arc<Mutex<Inner>>,
    name: String,
}

impl Target {
    /// Opens the backend with the shipped PTX.
    ///
    /// # Errors
    /// As [`Backend::driver`].
    pub fn open(backend: Backend) -> Result<Target, Error> {
        Ok(Target::new(backend.driver(kernels_gpu::PTX)?))
    }

    /// Shares a driver that has the shipped PTX loaded.
    pub fn new(driver: Box<dyn Driver>) -> Target {
        let name = driver.name();
        Target { inner: Arc::new(Mutex::new(Inner { driver, seen: BTreeSet::new() })), name }
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A device whose caches live here.
    pub fn device(&self) -> Device {
        let handle = self.clone();
        Device::with_driver(&self.name, move || Ok(Box::new(handle.clone()) as Box<dyn Driver>))
    }

    /// The kernels that ran since the last call.
    pub fn take_seen(&self) -> BTreeSet<&'static str> {
        std::mem::take(&mut self.lock().seen)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves the driver as usable as it was.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver for Target {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn alloc(&mut self, bytes: usize, what: &str) -> Result<u64, DriverError> {
        self.lock().driver.alloc(bytes, what)
    }

    fn free(&mut self, address: u64) -> Result<(), DriverError> {
        self.lock().driver.free(address)
    }

    fn upload(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError> {
        self.lock().driver.upload(address, data)
    }

    fn download(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        self.lock().driver.download(address, data)
    }

    fn limits(&self) -> DeviceLimits {
        self.lock().driver.limits()
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), DriverError> {
        let mut inner = self.lock();
        inner.seen.insert(launch.kernel.name);
        inner.driver.launch(launch)
    }

    fn time(&mut self, launches: &[Launch], how: Timing) -> Result<Option<Vec<f32>>, DriverError> {
        self.lock().driver.time(launches, how)
    }

    fn time_copy(&mut self, bytes: usize, how: Timing) -> Result<Option<Vec<f32>>, DriverError> {
        self.lock().driver.time_copy(bytes, how)
    }

    fn counters(&self) -> Option<Counters> {
        self.lock().driver.counters()
    }
}

/// Uploads `data` to memory of its own.
///
/// # Errors
/// The driver's.
pub fn upload<T: bytemuck::NoUninit>(
    driver: &mut dyn Driver,
    data: &[T],
    what: &str,
) -> Result<Region, DriverError> {
    let region = driver.region(size_of_val(data), what)?;
    driver.upload(region.address(), bytemuck::cast_slice(data))?;
    Ok(region)
}

/// Downloads `count` elements.
///
/// # Errors
/// The driver's.
pub fn download<T: bytemuck::Pod>(
    driver: &mut dyn Driver,
    region: Region,
    count: usize,
) -> Result<Vec<T>, DriverError> {
    let mut data = vec![T::zeroed(); count];
    driver.download(region.address(), bytemuck::cast_slice_mut(&mut data))?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_parse_and_what_they_are_not_is_said() {
        assert_eq!("emulator".parse(), Ok(Backend::Emulator));
        assert_eq!("cuda".parse(), Ok(Backend::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(Backend::Cuda(3)));
        assert!("cuda:x".parse::<Backend>().unwrap_err().contains("cuda:0"));
        assert!("cpu".parse::<Backend>().unwrap_err().contains("emulator"));
        assert_eq!(Backend::Cuda(3).to_string().parse(), Ok(Backend::Cuda(3)));
    }

    #[test]
    fn kernels_that_ran_are_remembered_once() {
        let target = Target::open(Backend::Emulator).unwrap();
        let shape = psa::Shape { layers: 1, q_heads: 1, kv_heads: 1, head_dim: 64, dtype: psa::Dtype::F16 };
        let workload = psa_tests::Workload::random(shape, &[20], 1);
        psa_tests::run(&target.device(), &workload, psa::Mirror::Bits2, psa::Policy::Dense).unwrap();
        let seen: Vec<_> = target.take_seen().into_iter().collect();
        assert_eq!(seen, ["append_f16_d64_p1", "attend_f16_d64", "merge_f16_d64", "plan_identity"]);
        assert!(target.take_seen().is_empty());
    }
}
