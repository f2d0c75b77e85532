//! libcuda, loaded when it is first used, so that one binary runs with and without an NVIDIA driver.
//!
//! [`functions`] defines the symbols that `cust_raw` declares; `-lcuda` finds the empty archive in `link/`
//! (see `.cargo/config.toml`) and every call lands here. A call looks its symbol up in `libcuda.so.1` and
//! passes on; without the library it returns CUDA_ERROR_NO_DEVICE, without the symbol
//! CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND.
//!
//! Trap: `cust_raw` declares the result as a Rust enum, and a newer driver's code that the enum lacks would
//! be undefined behaviour. The functions here return the number, and unknown ones become 999;
//! [`last_failure`] remembers what the driver said.

#[macro_use]
mod forward;

mod codes;
mod functions;
mod library;

pub use codes::{error_name, error_text};
pub use functions::{CODES, FUNCTIONS};
pub use library::{AlreadyLoaded, Status, status, use_library};

use std::cell::Cell;

/// A call that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The function, as `cuMemAlloc_v2`.
    pub function: &'static str,
    /// The driver's own code, which may be one that `cust_raw` does not know.
    pub code: u32,
    /// The function is not in the library: the driver is too old, or too new.
    pub lacking: bool,
}

thread_local! {
    static LAST_FAILURE: Cell<Option<Failure>> = const { Cell::new(None) };
}

/// The last call of this thread that did not return CUDA_SUCCESS or CUDA_ERROR_NOT_READY. Successful calls
/// leave it, so it is meaningful right after an error: cust and `cust_raw` keep less of it.
pub fn last_failure() -> Option<Failure> {
    LAST_FAILURE.get()
}

pub(crate) fn remember(failure: Failure) {
    LAST_FAILURE.set(Some(failure));
}
