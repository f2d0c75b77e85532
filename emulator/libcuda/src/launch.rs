//! Launches: parameters out of the caller's memory, the checks that a driver makes, the run, and what a
//! finding means as an error code.

use std::ffi::c_void;

use ptx_emulator::{Arg, Class, Error, LaunchConfig};

use crate::code::Code;
use crate::state::{State, say};

/// `CU_LAUNCH_PARAM_END`, `_BUFFER_POINTER`, `_BUFFER_SIZE`.
const EXTRA: [usize; 3] = [0, 1, 2];

/// Reads one argument a parameter, from an array of pointers or a packed buffer.
///
/// # Safety
/// As `cuLaunchKernel` wants them: `params` has a pointer for each parameter, or `extra` is a list of keys and
/// values that ends with `CU_LAUNCH_PARAM_END`.
pub unsafe fn arguments(
    params: &[ptx_emulator::Param],
    values: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Result<Vec<Arg>, Code> {
    let read = |from: *const u8, bytes: u32| {
        // SAFETY: the caller's promise.
        Arg::Bytes(unsafe { std::slice::from_raw_parts(from, bytes as usize) }.to_vec())
    };
    if !values.is_null() {
        return (0..params.len())
            .map(|i| {
                // SAFETY: the caller's promise.
                let value = unsafe { *values.add(i) };
                if value.is_null() {
                    Err(Code::INVALID_VALUE)
                } else {
                    Ok(read(value.cast(), params[i].size))
                }
            })
            .collect();
    }
    let (mut buffer, mut bytes) = (std::ptr::null::<u8>(), 0usize);
    let mut at = extra;
    while !at.is_null() {
        // SAFETY: the caller's promise; a key that is not the end has a value.
        let (key, value) = unsafe {
            let key = *at as usize;
            if key == EXTRA[0] {
                break;
            }
            (key, *at.add(1))
        };
        match key {
            key if key == EXTRA[1] => buffer = value.cast(),
            // SAFETY: the caller's promise.
            key if key == EXTRA[2] => bytes = unsafe { *value.cast::<usize>() },
            _ => return Err(Code::INVALID_VALUE),
        }
        // SAFETY: as above.
        at = unsafe { at.add(2) };
    }
    let needed = params.last().map_or(0, |p| (p.offset + p.size) as usize);
    if needed > 0 && (buffer.is_null() || bytes < needed) {
        say(&format!("the kernel takes {needed} bytes of parameters, {bytes} were given"));
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the buffer holds `bytes` bytes, and every parameter ends within `needed`.
    Ok(params.iter().map(|p| read(unsafe { buffer.add(p.offset as usize) }, p.size)).collect())
}

/// Runs a kernel; `arguments` makes its arguments once its parameters are known.
pub fn run(
    state: &mut State,
    function: usize,
    config: LaunchConfig,
    arguments: impl FnOnce(&[ptx_emulator::Param]) -> Result<Vec<Arg>, Code>,
) -> Result<(), Code> {
    let function = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?.clone();
    let module = state.modules.get(&function.module).ok_or(Code::INVALID_HANDLE)?.clone();
    let name = &function.name;
    if config.shared_bytes > function.dynamic_limit {
        say(&format!(
            "{name}: {} bytes of dynamic shared memory, {} allowed; set \
             CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES first",
            config.shared_bytes, function.dynamic_limit
        ));
        return Err(Code::INVALID_VALUE);
    }
    let kernel = module.kernel(name).ok_or(Code::NOT_FOUND)?;
    let arguments = arguments(&kernel.params)?;
    let report = state.device.launch(&module, name, config, &arguments).map_err(|error| {
        say(&error.to_string());
        match error {
            Error::Launch { .. } => Code::INVALID_VALUE,
            _ => Code::LAUNCH_FAILED,
        }
    })?;
    if state.log {
        let c = &report.counters;
        say(&format!(
            "{name} grid {:?} block {:?} shared {}: {} warp instructions, {} bytes read, {} written, {} findings",
            config.grid,
            config.block,
            config.shared_bytes,
            c.warp_instructions,
            c.global_bytes_read,
            c.global_bytes_written,
            report.findings.len()
        ));
    }
    if !report.output.is_empty() {
        print!("{}", report.output);
    }
    for finding in &report.findings {
        say(&finding.to_string());
    }
    let Some(first) = report.findings.first() else { return Ok(()) };
    let code = match first.class {
        // Refused before it ran: the context lives.
        Class::Launch => return Err(Code::INVALID_VALUE),
        Class::Mem => Code::ILLEGAL_ADDRESS,
        Class::Steps => Code::LAUNCH_TIMEOUT,
        _ => Code::LAUNCH_FAILED,
    };
    state.lost = Some(code);
    Err(code)
}
