//! Device and host memory behind the functions, and the callers' memory as Rust sees it.

use std::ffi::c_void;

use ptx_emulator::DevicePtr;

use crate::code::Code;
use crate::module::failed;
use crate::state::in_context;

/// Writes a result; a null pointer is the caller's mistake.
///
/// # Safety
/// `out` is null or valid.
pub unsafe fn put<T>(out: *mut T, value: T) -> Result<(), Code> {
    if out.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: not null, so valid.
    unsafe { out.write(value) };
    Ok(())
}

/// Host memory as bytes.
///
/// # Safety
/// `from` is valid for `bytes` bytes.
pub unsafe fn host<'a>(from: *const c_void, bytes: usize) -> Result<&'a [u8], Code> {
    if from.is_null() && bytes > 0 {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the caller's promise; a dangling pointer of the right alignment for nothing.
    Ok(if bytes == 0 { &[] } else { unsafe { std::slice::from_raw_parts(from.cast(), bytes) } })
}

/// `cuMemAlloc`: not nothing, and named by its number in findings.
pub fn alloc(bytes: usize) -> Result<u64, Code> {
    if bytes == 0 {
        return Err(Code::INVALID_VALUE);
    }
    in_context(|state| {
        let name = format!("cuMemAlloc #{}", state.allocations);
        let address = state.device.alloc(bytes as u64, &name).map_err(failed)?.0;
        state.allocations += 1;
        state.sizes.insert(address, bytes as u64);
        Ok(address)
    })
}

/// `cuMemFree`; null is nothing.
pub fn free(address: u64) -> Result<(), Code> {
    if address == 0 {
        return Ok(());
    }
    in_context(|state| {
        state.device.free(DevicePtr(address)).map_err(failed)?;
        state.sizes.remove(&address);
        Ok(())
    })
}

/// `cuMemset`: a pattern again and again.
pub fn fill(at: u64, pattern: &[u8], count: usize) -> Result<(), Code> {
    let data = pattern.repeat(count);
    in_context(|state| state.device.copy_to(DevicePtr(at), &data).map_err(failed))
}

/// `cuMemHostAlloc`: zeroed, aligned to 256.
pub fn host_alloc(bytes: usize) -> Result<*mut c_void, Code> {
    let layout = std::alloc::Layout::from_size_align(bytes, 256).map_err(|_| Code::INVALID_VALUE)?;
    if bytes == 0 {
        return Err(Code::INVALID_VALUE);
    }
    in_context(|state| {
        // SAFETY: not of size 0.
        let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
        if pointer.is_null() {
            return Err(Code::OUT_OF_MEMORY);
        }
        state.host.insert(pointer as usize, bytes);
        Ok(pointer.cast())
    })
}
