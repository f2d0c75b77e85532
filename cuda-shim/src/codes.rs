//! Result codes: which ones `cust_raw` knows, their names and texts.
//!
//! `cuGetErrorName` and `cuGetErrorString` stand here and not in the generated file because they must
//! answer without a library too: cust panics while it prints an error that has no text.

use std::ffi::{CStr, c_char};

use crate::functions::CODES;
use crate::library::Symbol;
use crate::{Failure, remember};

const NOT_READY: u32 = 600;
const UNKNOWN: u32 = 999;

/// What Rust code may see of `code`, which `function` returned.
pub(crate) fn clamp(function: &'static str, code: u32) -> u32 {
    if code == 0 {
        return 0;
    }
    if code != NOT_READY {
        remember(Failure { function, code, lacking: false });
    }
    if known(code).is_some() { code } else { UNKNOWN }
}

fn known(code: u32) -> Option<&'static CStr> {
    CODES.binary_search_by_key(&code, |(value, _)| *value).ok().map(|index| CODES[index].1)
}

type Getter = unsafe extern "C" fn(u32, *mut *const c_char) -> u32;

static NAME: Symbol = Symbol::new(c"cuGetErrorName");
static TEXT: Symbol = Symbol::new(c"cuGetErrorString");

/// The driver's answer, which is static.
fn ask(getter: &Symbol, code: u32) -> Option<&'static CStr> {
    let address = getter.resolve().ok()?;
    // SAFETY: the type of both functions.
    let getter: Getter = unsafe { std::mem::transmute(address) };
    let mut text = std::ptr::null();
    // SAFETY: `text` is writable.
    let result = unsafe { getter(code, &mut text) };
    // SAFETY: the driver returns C strings that are never freed.
    (result == 0 && !text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
}

/// CUDA's name of a code, as `CUDA_ERROR_NO_DEVICE`: the driver's, else that of the bindings, else the number.
pub fn error_name(code: u32) -> String {
    match ask(&NAME, code).or_else(|| known(code)) {
        Some(name) => name.to_string_lossy().into_owned(),
        None => format!("CUDA error {code}"),
    }
}

/// The driver's explanation of a code, where there is a driver and it has one.
pub fn error_text(code: u32) -> Option<String> {
    ask(&TEXT, code).map(|text| text.to_string_lossy().into_owned())
}

/// Writes the first answer, which is never null.
///
/// # Safety
/// `out` is null or writable.
unsafe fn answer(found: Option<&'static CStr>, code: u32, out: *mut *const c_char) -> u32 {
    const INVALID_VALUE: u32 = 1;
    if out.is_null() {
        return INVALID_VALUE;
    }
    let text = found.or_else(|| known(code)).unwrap_or(c"unknown CUDA error");
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { out.write(text.as_ptr()) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(error: u32, out: *mut *const c_char) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { answer(ask(&NAME, error), error, out) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(error: u32, out: *mut *const c_char) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { answer(ask(&TEXT, error), error, out) }
}
