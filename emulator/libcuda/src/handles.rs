//! The one device, its attributes, the one context, and handles of streams and events.

use std::ffi::{c_int, c_uint};

use crate::code::Code;
use crate::state::{CONTEXT, State, in_context, with};

/// Whether a device is the one.
pub fn device_zero(device: c_int) -> Result<(), Code> {
    if device == 0 { Ok(()) } else { Err(Code::INVALID_DEVICE) }
}

/// A device attribute by its number in `CUdevice_attribute`.
pub fn attribute(state: &State, number: c_uint) -> c_int {
    let sm = state.device.options().sm as c_int;
    let shared = match sm {
        80 | 87 => 163,
        86 | 89 | 120.. => 99,
        90.. => 227,
        _ => 48,
    };
    match number {
        1 | 2 => 1024,        // threads of a block, its x
        3 => 1024,            // y
        4 => 64,              // z
        5 => c_int::MAX,      // grid x
        6 | 7 => 65535,       // y, z
        8 => 48 * 1024,       // shared memory of a block
        9 => 64 * 1024,       // constant memory
        10 => 32,             // warp
        12 | 82 => 65536,     // registers of a block, of a multiprocessor
        13 | 36 => 1_000_000, // clocks, in kHz: made up
        16 => 1,              // multiprocessors
        37 => 64,             // bus width: made up
        38 => 1 << 20,        // L2 cache: made up
        39 => 2048,           // threads of a multiprocessor
        41 => 1,              // unified addressing
        75 => sm / 10,        // compute capability
        76 => sm % 10,
        81 => (shared + 1) * 1024, // shared memory of a multiprocessor
        97 => shared * 1024,       // of a block, with the attribute
        106 => 32,                 // blocks of a multiprocessor
        _ => 0,                    // what else there is: none
    }
}

/// Whether a handle is the one context.
pub fn known(context: usize) -> Result<(), Code> {
    with(|_| if context == CONTEXT { Ok(()) } else { Err(Code::INVALID_CONTEXT) })
}

/// A stream or an event.
pub fn new_handle() -> Result<usize, Code> {
    in_context(|state| {
        let handle = state.handle();
        state.handles.insert(handle);
        Ok(handle)
    })
}

/// Forgets one; twice is an error.
pub fn forget(handle: usize) -> Result<(), Code> {
    with(|state| if state.handles.remove(&handle) { Ok(()) } else { Err(Code::INVALID_HANDLE) })
}
