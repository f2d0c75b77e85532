//! The driver's error codes that this library returns, with their names and texts.

use std::ffi::CStr;

/// A `CUresult` other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

macro_rules! codes {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        impl Code {
            $(#[doc = $text] pub const $name: Code = Code($number);)*
        }

        /// Name (`CUDA_ERROR_..`) and text of a result; none for what this library does not return.
        pub fn describe(result: u32) -> Option<(&'static CStr, &'static CStr)> {
            const fn c(text: &'static str) -> &'static CStr {
                match CStr::from_bytes_with_nul(text.as_bytes()) {
                    Ok(text) => text,
                    Err(_) => c"",
                }
            }
            match result {
                0 => Some((c"CUDA_SUCCESS", c"no error")),
                $($number => Some((
                    const { c(concat!("CUDA_ERROR_", stringify!($name), "\0")) },
                    const { c(concat!($text, "\0")) },
                )),)*
                _ => None,
            }
        }
    };
}

codes! {
    INVALID_VALUE = 1, "invalid argument";
    OUT_OF_MEMORY = 2, "out of memory";
    NOT_INITIALIZED = 3, "initialization error: call cuInit first";
    INVALID_DEVICE = 101, "invalid device ordinal: the emulator is device 0";
    INVALID_CONTEXT = 201, "invalid device context: no context is current on this thread";
    NO_BINARY_FOR_GPU = 209, "no kernel image is available: the emulator runs PTX only";
    INVALID_PTX = 218, "a PTX JIT compilation failed";
    FILE_NOT_FOUND = 301, "file not found";
    INVALID_HANDLE = 400, "invalid resource handle";
    NOT_FOUND = 500, "named symbol not found";
    ILLEGAL_ADDRESS = 700, "an illegal memory access was encountered";
    LAUNCH_TIMEOUT = 702, "the launch timed out and was terminated";
    LAUNCH_FAILED = 719, "unspecified launch failure";
    NOT_SUPPORTED = 801, "operation not supported by the emulator";
}
