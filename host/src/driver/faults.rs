//! Faults on purpose: a driver that fails the nth allocation, copy or launch of another.
//!
//! A fault strikes once; or it takes the device with it, and every later call on that driver fails as well. What was
//! called before it has happened, and the failed call has done nothing, as when a driver refuses a call.

use std::sync::{Arc, Mutex, PoisonError};

use psa_codegen::{DeviceLimits, Launch};

use super::{Counters, Driver, DriverError};

/// What can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// An allocation.
    Alloc,
    /// An upload, a download, or a copy within the device.
    Copy,
    /// A launch.
    Launch,
}

impl Call {
    /// All of them.
    pub const ALL: [Call; 3] = [Call::Alloc, Call::Copy, Call::Launch];
}

#[derive(Debug, Default)]
struct State {
    /// Calls of each kind so far.
    calls: [u64; 3],
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
}

impl Faulty {
    /// `driver`, but for what `faults` makes fail.
    pub fn new(driver: Box<dyn Driver>, faults: Faults) -> Faulty {
        Faulty { driver, faults, lost: false }
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
        let device = self.driver.name();
        let what_for = what.to_owned();
        self.check(Call::Alloc, |detail| DriverError::OutOfMemory { bytes, what: what_for, device, detail })?;
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
        let name = launch.kernel.name;
        self.check(Call::Launch, |detail| DriverError::Launch { launch: name.to_string(), detail })?;
        self.driver.launch(launch)
    }

    fn counters(&self) -> Option<Counters> {
        self.driver.counters()
    }
}
