//! The exported functions: the part of the driver API that programs with one device, modules, memory, streams
//! and launches use. Names, parameters and codes are those of NVIDIA's driver API reference; handles are numbers.
//!
//! # Safety
//! All functions: pointers are null, or valid for what the driver API reads and writes there.

#![allow(non_snake_case, clippy::missing_safety_doc)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use ptx_emulator::{DevicePtr, LaunchConfig};

use crate::code::{Code, describe};
use crate::handles::{attribute, device_zero, forget, known, new_handle};
use crate::memory::{alloc, fill, free, host, host_alloc, put};
use crate::module::{failed, load};
use crate::state::{self, CONTEXT, Function, current, in_context, say, set_current, with};
use crate::{launch, link};

/// Newest version of the driver API whose functions these are, as 12080 for 12.8.
const VERSION: c_int = 12080;

macro_rules! driver_api {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[$meta])*
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $ty),*) -> c_uint {
                // SAFETY: pointers are null or valid, as the driver API's callers promise.
                #[allow(unused_unsafe)]
                let result: Result<(), Code> = unsafe { (|| { $body; #[allow(unreachable_code)] Ok(()) })() };
                result.map_or_else(|code| code.0, |()| 0)
            }
        )*

        /// The address of a function by its name.
        fn address(name: &str) -> Option<*mut c_void> {
            match name {
                $(stringify!($name) => Some($name as *mut c_void),)*
                _ => None,
            }
        }
    };
}

driver_api! {
    /// Starts the emulator.
    fn cuInit(_flags: c_uint) {
        state::init()?
    }

    /// Version of the API.
    fn cuDriverGetVersion(version: *mut c_int) {
        put(version, VERSION)?
    }

    /// Name of a result.
    fn cuGetErrorName(result: c_uint, name: *mut *const c_char) {
        let (text, _) = describe(result).ok_or(Code::INVALID_VALUE)?;
        put(name, text.as_ptr())?
    }

    /// Text of a result.
    fn cuGetErrorString(result: c_uint, text: *mut *const c_char) {
        let (_, words) = describe(result).ok_or(Code::INVALID_VALUE)?;
        put(text, words.as_ptr())?
    }

    /// One.
    fn cuDeviceGetCount(count: *mut c_int) {
        with(|_| Ok(()))?;
        put(count, 1)?
    }

    /// Device 0.
    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        with(|_| device_zero(ordinal))?;
        put(device, 0)?
    }

    /// Says that it is the emulator.
    fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) {
        device_zero(device)?;
        let text = b"PTX emulator (CPU)";
        let room = usize::try_from(length).ok().and_then(|length| length.checked_sub(1)).ok_or(Code::INVALID_VALUE)?;
        let count = text.len().min(room);
        put(name.cast::<u8>(), 0)?;
        std::ptr::copy_nonoverlapping(text.as_ptr(), name.cast(), count);
        name.cast::<u8>().add(count).write(0)
    }

    /// A fixed number.
    fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) {
        device_zero(device)?;
        put(uuid, *b"ptx-emulator-cpu")?
    }

    /// As `cuDeviceGetUuid_v2`.
    fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) {
        device_zero(device)?;
        put(uuid, *b"ptx-emulator-cpu")?
    }

    /// Bytes of device memory.
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) {
        device_zero(device)?;
        let total = with(|state| Ok(state.device.options().limits.memory_bytes))?;
        put(bytes, total as usize)?
    }

    /// An attribute; 0 for what the emulator has none of.
    fn cuDeviceGetAttribute(value: *mut c_int, number: c_uint, device: c_int) {
        device_zero(device)?;
        let found = with(|state| Ok(attribute(state, number)))?;
        put(value, found)?
    }

    /// The one context.
    fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) {
        with(|_| device_zero(device))?;
        put(context, CONTEXT)?
    }

    /// Nothing: the context lives as long as the process.
    fn cuDevicePrimaryCtxRelease_v2(device: c_int) {
        with(|_| device_zero(device))?
    }

    /// Nothing: the context lives as long as the process.
    fn cuDevicePrimaryCtxReset_v2(device: c_int) {
        with(|_| device_zero(device))?
    }

    /// The one context, made current.
    fn cuCtxCreate_v2(context: *mut usize, _flags: c_uint, device: c_int) {
        with(|_| device_zero(device))?;
        put(context, CONTEXT)?;
        set_current(CONTEXT)
    }

    /// Takes the context off this thread.
    fn cuCtxDestroy_v2(context: usize) {
        known(context)?;
        set_current(0)
    }

    /// Makes a context current; null takes it off.
    fn cuCtxSetCurrent(context: usize) {
        if context != 0 {
            known(context)?;
        }
        set_current(context)
    }

    /// The current context.
    fn cuCtxGetCurrent(context: *mut usize) {
        with(|_| Ok(()))?;
        put(context, current())?
    }

    /// As `cuCtxSetCurrent`.
    fn cuCtxPushCurrent_v2(context: usize) {
        known(context)?;
        set_current(context)
    }

    /// Takes the context off this thread.
    fn cuCtxPopCurrent_v2(context: *mut usize) {
        if !context.is_null() {
            put(context, current())?;
        }
        set_current(0)
    }

    /// Device 0.
    fn cuCtxGetDevice(device: *mut c_int) {
        in_context(|_| Ok(()))?;
        put(device, 0)?
    }

    /// Whether the context lives: all work is done.
    fn cuCtxSynchronize() {
        in_context(|_| Ok(()))?
    }

    /// Version of the API.
    fn cuCtxGetApiVersion(_context: usize, version: *mut c_uint) {
        put(version, VERSION as c_uint)?
    }

    /// No priorities.
    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        put(least, 0)?;
        put(greatest, 0)?
    }

    /// Loads PTX.
    fn cuModuleLoadData(module: *mut usize, image: *const c_void) {
        match load(image)? {
            (handle, None) => put(module, handle)?,
            _ => return Err(Code::INVALID_PTX),
        }
    }

    /// Loads PTX; of the options, the error log is filled.
    fn cuModuleLoadDataEx(module: *mut usize, image: *const c_void, count: c_uint, options: *mut c_uint, values: *mut *mut c_void) {
        match load(image)? {
            (handle, None) => put(module, handle)?,
            (_, Some(text)) => {
                if let Some(log) = link::Log::of_options(count, options, values) {
                    log.write(&text);
                }
                return Err(Code::INVALID_PTX);
            }
        }
    }

    /// Loads a PTX file.
    fn cuModuleLoad(module: *mut usize, path: *const c_char) {
        if path.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let path = CStr::from_ptr(path).to_string_lossy();
        let mut data = std::fs::read(&*path).map_err(|_| Code::FILE_NOT_FOUND)?;
        data.extend([0; 4]);
        match load(data.as_ptr().cast())? {
            (handle, None) => put(module, handle)?,
            _ => return Err(Code::INVALID_PTX),
        }
    }

    /// Begins to link; of the options, the error log is kept for the text that is added.
    fn cuLinkCreate_v2(count: c_uint, options: *mut c_uint, values: *mut *mut c_void, link: *mut usize) {
        let log = link::Log::of_options(count, options, values);
        let handle = in_context(|state| {
            let handle = state.handle();
            state.links.insert(handle, link::Link::new(log));
            Ok(handle)
        })?;
        put(link, handle)?
    }

    /// Adds PTX (`CU_JIT_INPUT_PTX`); one text, since the emulator links nothing.
    fn cuLinkAddData_v2(
        link: usize,
        kind: c_uint,
        data: *mut c_void,
        bytes: usize,
        _name: *const c_char,
        _count: c_uint,
        _options: *mut c_uint,
        _values: *mut *mut c_void,
    ) {
        let text = host(data, bytes)?;
        in_context(|state| state.links.get_mut(&link).ok_or(Code::INVALID_HANDLE)?.add(kind, text))?
    }

    /// The "cubin": the PTX that was added, which `cuModuleLoadData` takes. It lives as long as the link.
    fn cuLinkComplete(link: usize, image: *mut *const c_void, bytes: *mut usize) {
        let (text, length) = in_context(|state| state.links.get(&link).ok_or(Code::INVALID_HANDLE)?.image())?;
        put(image, text.cast())?;
        put(bytes, length)?
    }

    /// Forgets a link.
    fn cuLinkDestroy(link: usize) {
        in_context(|state| state.links.remove(&link).map(drop).ok_or(Code::INVALID_HANDLE))?
    }

    /// Forgets a module and its functions.
    fn cuModuleUnload(module: usize) {
        in_context(|state| {
            state.functions.retain(|_, function| function.module != module);
            state.modules.remove(&module).map(drop).ok_or(Code::INVALID_HANDLE)
        })?
    }

    /// A kernel by its name.
    fn cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) {
        if name.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let name = CStr::from_ptr(name).to_string_lossy().into_owned();
        let handle = in_context(|state| {
            let found = state.modules.get(&module).ok_or(Code::INVALID_HANDLE)?.clone();
            let static_shared = found.static_shared_bytes(&name).map_err(failed)?;
            let handle = state.handle();
            let dynamic_limit = (48 * 1024u32).saturating_sub(static_shared);
            state.functions.insert(handle, Function { module, name, dynamic_limit, static_shared });
            Ok(handle)
        })?;
        put(function, handle)?
    }

    /// Address and bytes of a module's variable; the bytes are not known here.
    fn cuModuleGetGlobal_v2(pointer: *mut u64, bytes: *mut usize, module: usize, name: *const c_char) {
        if name.is_null() || !bytes.is_null() {
            return Err(if name.is_null() { Code::INVALID_VALUE } else { Code::NOT_SUPPORTED });
        }
        let name = CStr::from_ptr(name).to_string_lossy();
        let at = in_context(|state| {
            let module = state.modules.get(&module).ok_or(Code::INVALID_HANDLE)?.clone();
            state.device.symbol(&module, &name).map_err(failed)
        })?;
        put(pointer, at.0)?
    }

    /// Threads of a block, shared memory: what the PTX says. Registers are the assembler's: 0.
    fn cuFuncGetAttribute(value: *mut c_int, number: c_uint, function: usize) {
        let found = in_context(|state| {
            let function = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
            let module = state.modules.get(&function.module).ok_or(Code::INVALID_HANDLE)?;
            let kernel = module.kernel(&function.name).ok_or(Code::NOT_FOUND)?;
            let threads = kernel.reqntid.or(kernel.maxntid).map_or(1024, |block| block.iter().product());
            Ok(match number {
                0 => threads,
                1 => function.static_shared,
                5 | 6 => 80,
                8 => function.dynamic_limit,
                _ => 0,
            })
        })?;
        put(value, found as c_int)?
    }

    /// Admits more than 48 KiB of dynamic shared memory; other attributes change nothing.
    fn cuFuncSetAttribute(function: usize, number: c_uint, value: c_int) {
        in_context(|state| {
            let most = attribute(state, 97);
            let function = state.functions.get_mut(&function).ok_or(Code::INVALID_HANDLE)?;
            if number == 8 {
                if value < 0 || value + function.static_shared as c_int > most {
                    say(&format!("{}: {value} bytes of dynamic shared memory, the device has {most}", function.name));
                    return Err(Code::INVALID_VALUE);
                }
                function.dynamic_limit = value as u32;
            }
            Ok(())
        })?
    }

    /// Changes nothing.
    fn cuFuncSetCacheConfig(function: usize, _config: c_uint) {
        in_context(|state| state.functions.get(&function).map(|_| ()).ok_or(Code::INVALID_HANDLE))?
    }

    /// Allocates.
    fn cuMemAlloc_v2(pointer: *mut u64, bytes: usize) {
        put(pointer, alloc(bytes)?)?
    }

    /// Frees.
    fn cuMemFree_v2(pointer: u64) {
        free(pointer)?
    }

    /// Allocates at once.
    fn cuMemAllocAsync(pointer: *mut u64, bytes: usize, _stream: usize) {
        put(pointer, alloc(bytes)?)?
    }

    /// Frees at once.
    fn cuMemFreeAsync(pointer: u64, _stream: usize) {
        free(pointer)?
    }

    /// Free and total bytes.
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let (used, all) = in_context(|state| {
            Ok((state.sizes.values().sum::<u64>(), state.device.options().limits.memory_bytes))
        })?;
        put(free, all.saturating_sub(used) as usize)?;
        put(total, all as usize)?
    }

    /// Host to device.
    fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) {
        let data = host(from, bytes)?;
        in_context(|state| state.device.copy_to(DevicePtr(to), data).map_err(failed))?
    }

    /// Device to host.
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) {
        if to.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let mut data = vec![0; bytes];
        in_context(|state| state.device.copy_from(DevicePtr(from), &mut data).map_err(failed))?;
        std::ptr::copy_nonoverlapping(data.as_ptr(), to.cast::<u8>(), bytes)
    }

    /// Device to device.
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) {
        in_context(|state| state.device.copy_device(DevicePtr(to), DevicePtr(from), bytes as u64).map_err(failed))?
    }

    /// Host to device, at once.
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, _stream: usize) {
        let data = host(from, bytes)?;
        in_context(|state| state.device.copy_to(DevicePtr(to), data).map_err(failed))?
    }

    /// Device to host, at once.
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, _stream: usize) {
        if to.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let mut data = vec![0; bytes];
        in_context(|state| state.device.copy_from(DevicePtr(from), &mut data).map_err(failed))?;
        std::ptr::copy_nonoverlapping(data.as_ptr(), to.cast::<u8>(), bytes)
    }

    /// Device to device, at once.
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, _stream: usize) {
        in_context(|state| state.device.copy_device(DevicePtr(to), DevicePtr(from), bytes as u64).map_err(failed))?
    }

    /// Fills.
    fn cuMemsetD8_v2(at: u64, value: u8, count: usize) {
        fill(at, &value.to_le_bytes(), count)?
    }

    /// Fills, at once.
    fn cuMemsetD8Async(at: u64, value: u8, count: usize, _stream: usize) {
        fill(at, &value.to_le_bytes(), count)?
    }

    /// Fills.
    fn cuMemsetD16_v2(at: u64, value: u16, count: usize) {
        fill(at, &value.to_le_bytes(), count)?
    }

    /// Fills, at once.
    fn cuMemsetD16Async(at: u64, value: u16, count: usize, _stream: usize) {
        fill(at, &value.to_le_bytes(), count)?
    }

    /// Fills.
    fn cuMemsetD32_v2(at: u64, value: c_uint, count: usize) {
        fill(at, &value.to_le_bytes(), count)?
    }

    /// Fills, at once.
    fn cuMemsetD32Async(at: u64, value: c_uint, count: usize, _stream: usize) {
        fill(at, &value.to_le_bytes(), count)?
    }

    /// Host memory.
    fn cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize) {
        put(pointer, host_alloc(bytes)?)?
    }

    /// Host memory.
    fn cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        put(pointer, host_alloc(bytes)?)?
    }

    /// Frees host memory.
    fn cuMemFreeHost(pointer: *mut c_void) {
        let bytes = in_context(|state| state.host.remove(&(pointer as usize)).ok_or(Code::INVALID_VALUE))?;
        let layout = std::alloc::Layout::from_size_align(bytes, 256).map_err(|_| Code::INVALID_VALUE)?;
        std::alloc::dealloc(pointer.cast(), layout)
    }

    /// A stream: launches run when they are called.
    fn cuStreamCreate(stream: *mut usize, _flags: c_uint) {
        put(stream, new_handle()?)?
    }

    /// As `cuStreamCreate`.
    fn cuStreamCreateWithPriority(stream: *mut usize, _flags: c_uint, _priority: c_int) {
        put(stream, new_handle()?)?
    }

    /// Forgets a stream.
    fn cuStreamDestroy_v2(stream: usize) {
        forget(stream)?
    }

    /// Whether the context lives: all work is done.
    fn cuStreamSynchronize(_stream: usize) {
        in_context(|_| Ok(()))?
    }

    /// Whether the context lives: all work is done.
    fn cuStreamQuery(_stream: usize) {
        in_context(|_| Ok(()))?
    }

    /// Nothing to wait for.
    fn cuStreamWaitEvent(_stream: usize, _event: usize, _flags: c_uint) {
        in_context(|_| Ok(()))?
    }

    /// Nothing is captured.
    fn cuStreamIsCapturing(_stream: usize, status: *mut c_uint) {
        put(status, 0)?
    }

    /// An event.
    fn cuEventCreate(event: *mut usize, _flags: c_uint) {
        put(event, new_handle()?)?
    }

    /// Forgets an event.
    fn cuEventDestroy_v2(event: usize) {
        forget(event)?
    }

    /// Done when it is called.
    fn cuEventRecord(_event: usize, _stream: usize) {
        in_context(|_| Ok(()))?
    }

    /// Whether the context lives: all work is done.
    fn cuEventSynchronize(_event: usize) {
        in_context(|_| Ok(()))?
    }

    /// Whether the context lives: all work is done.
    fn cuEventQuery(_event: usize) {
        in_context(|_| Ok(()))?
    }

    /// Not supported: an emulator has no time.
    fn cuEventElapsedTime(_milliseconds: *mut f32, _start: usize, _end: usize) {
        return Err(Code::NOT_SUPPORTED)
    }

    /// Runs a kernel to its end.
    fn cuLaunchKernel(
        function: usize,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        _stream: usize,
        params: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) {
        let config = LaunchConfig {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            shared_bytes,
        };
        in_context(|state| launch::run(state, function, config, |formal| launch::arguments(formal, params, extra)))?
    }

    /// The address of a function by its name, the newest form first.
    fn cuGetProcAddress_v2(symbol: *const c_char, function: *mut *mut c_void, _version: c_int, _flags: u64, status: *mut c_uint) {
        if symbol.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let name = CStr::from_ptr(symbol).to_string_lossy();
        let found = address(&format!("{name}_v2")).or_else(|| address(&name));
        if !status.is_null() {
            // CU_GET_PROC_ADDRESS_SUCCESS or _SYMBOL_NOT_FOUND.
            put(status, c_uint::from(found.is_none()))?;
        }
        put(function, found.unwrap_or(std::ptr::null_mut()))?;
        if found.is_none() && status.is_null() {
            return Err(Code::NOT_FOUND);
        }
    }

    /// As `cuGetProcAddress_v2`.
    fn cuGetProcAddress(symbol: *const c_char, function: *mut *mut c_void, version: c_int, flags: u64) {
        let result = cuGetProcAddress_v2(symbol, function, version, flags, std::ptr::null_mut());
        if result != 0 {
            return Err(Code(result));
        }
    }
}
