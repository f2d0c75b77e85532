//! Modules: PTX text in, a handle out; and the emulator's errors as codes.

use std::ffi::{CStr, c_void};

use ptx_emulator::{Error, Module};

use crate::code::Code;
use crate::state::{in_context, say};

/// The code of an emulator's error, after its words.
pub fn failed(error: Error) -> Code {
    say(&error.to_string());
    match error {
        Error::OutOfMemory { .. } => Code::OUT_OF_MEMORY,
        Error::UnknownKernel { .. } | Error::UnknownSymbol { .. } => Code::NOT_FOUND,
        Error::Parse { .. } | Error::Unsupported { .. } | Error::Unresolved { .. } => Code::INVALID_PTX,
        _ => Code::INVALID_VALUE,
    }
}

/// Loads a module from a NUL-terminated PTX text.
///
/// # Safety
/// `image` is null or an image as the driver takes it.
pub unsafe fn load(image: *const c_void) -> Result<(usize, Option<String>), Code> {
    if image.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: an image has at least four bytes.
    let magic = unsafe { std::slice::from_raw_parts(image.cast::<u8>(), 4) };
    // A cubin is an ELF file; a fat binary begins with this number.
    if magic == b"\x7fELF" || magic == 0xba55_ed50u32.to_le_bytes() {
        say("a cubin or fat binary cannot be emulated: load the PTX");
        return Err(Code::NO_BINARY_FOR_GPU);
    }
    // SAFETY: a PTX image ends with a NUL.
    let text = unsafe { CStr::from_ptr(image.cast()) }.to_string_lossy();
    in_context(|state| match Module::parse(&text) {
        Ok(module) => {
            let handle = state.handle();
            state.modules.insert(handle, module);
            Ok((handle, None))
        }
        Err(error) => {
            say(&error.to_string());
            Ok((0, Some(error.to_string())))
        }
    })
}
