//! The driver API's calls that cust lacks or gets wrong, with owned handles. All of `cust_raw` is here.
//!
//! cust 0.3.2 has no function attributes, stream capture, memory pools, flags of pinned memory or JIT logs;
//! its streams always wait for the default stream; its errors forget what newer drivers say, so that
//! every error is read from the shim ([`failure`]).
//!
//! Traps: every call but the release of a context needs the context current on its thread, so does the drop
//! of a handle ([`super::open::Owned`] sees to that). Enums that the driver writes are read as numbers.

use std::ffi::{CString, c_void};
use std::ptr;

use cust::error::CudaError;
use cust::sys::{self, CUresult};
use psa_cuda_shim::Failure;

/// Result of a call.
pub(super) type Call<T = ()> = Result<T, Failure>;

/// The code of CUDA_ERROR_OUT_OF_MEMORY.
pub(super) const OUT_OF_MEMORY: u32 = 2;
const UNKNOWN: u32 = 999;

fn check(result: CUresult) -> Call {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(failure(code as u32)),
    }
}

/// A result of cust, with what the shim knows of the error.
pub(super) fn of_cust<T>(result: Result<T, CudaError>) -> Call<T> {
    result.map_err(|error| failure(error as u32))
}

/// What the shim saw, where it is the error at hand: cust and cust_raw make 999 of codes they do not know.
fn failure(code: u32) -> Failure {
    match psa_cuda_shim::last_failure() {
        Some(failure) if failure.code == code || code == UNKNOWN => failure,
        _ => Failure { function: "a CUDA call", code, lacking: false },
    }
}

/// An attribute of a device that cust has no name for.
pub(super) fn attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Call<i32> {
    let mut value = 0;
    // SAFETY: `value` is writable.
    check(unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
    Ok(value)
}

/// Free and total bytes of the current context's device.
pub(super) fn memory() -> Call<(usize, usize)> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: both are writable.
    check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
    Ok((free, total))
}

/// Gives unused memory of the device's pool back.
pub(super) fn trim_pool(device: sys::CUdevice) -> Call {
    let mut pool = ptr::null_mut();
    // SAFETY: `pool` is writable; the default pool lives as long as the device.
    check(unsafe { sys::cuDeviceGetDefaultMemPool(&mut pool, device) })?;
    // SAFETY: as above.
    check(unsafe { sys::cuMemPoolTrimTo(pool, 0) })
}

/// Allocates device memory, where there are no pools.
pub(super) fn alloc(bytes: usize) -> Call<u64> {
    let mut address = 0;
    // SAFETY: `address` is writable.
    check(unsafe { sys::cuMemAlloc_v2(&mut address, bytes) })?;
    Ok(address)
}

/// Frees what [`alloc`] returned; waits for the device.
pub(super) fn free(address: u64) -> Call {
    // SAFETY: the driver checks the address.
    check(unsafe { sys::cuMemFree_v2(address) })
}

/// A kernel of a loaded module. Valid as long as the module is.
#[derive(Clone, Copy)]
pub(super) struct Function(sys::CUfunction);

// SAFETY: handles may be used from any thread that has their context current; so for all below.
unsafe impl Send for Function {}

impl Function {
    pub(super) fn new(function: &cust::function::Function<'_>) -> Function {
        Function(function.to_raw())
    }

    /// Allows launches with up to `bytes` of dynamic shared memory.
    pub(super) fn allow_shared(self, bytes: u32) -> Call {
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
        // SAFETY: the module is loaded.
        check(unsafe { sys::cuFuncSetAttribute(self.0, attribute, bytes) })
    }
}

/// A stream that does not wait for the default stream.
pub(super) struct Stream(sys::CUstream);

// SAFETY: see Function.
unsafe impl Send for Stream {}

impl Stream {
    pub(super) fn new() -> Call<Stream> {
        let mut stream = ptr::null_mut();
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: `stream` is writable.
        check(unsafe { sys::cuStreamCreateWithPriority(&mut stream, flags, 0) })?;
        Ok(Stream(stream))
    }

    /// Waits for everything queued.
    pub(super) fn synchronize(&self) -> Call {
        // SAFETY: the stream lives.
        check(unsafe { sys::cuStreamSynchronize(self.0) })
    }

    /// Whether everything queued is done.
    pub(super) fn is_idle(&self) -> Call<bool> {
        // SAFETY: the stream lives.
        match unsafe { sys::cuStreamQuery(self.0) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check(result).map(|()| true),
        }
    }

    /// Lets what is queued from now on wait for an event.
    pub(super) fn wait(&self, event: &Event) -> Call {
        // SAFETY: both live.
        check(unsafe { sys::cuStreamWaitEvent(self.0, event.0, 0) })
    }

    pub(super) fn alloc(&self, bytes: usize) -> Call<u64> {
        let mut address = 0;
        // SAFETY: `address` is writable.
        check(unsafe { sys::cuMemAllocAsync(&mut address, bytes, self.0) })?;
        Ok(address)
    }

    pub(super) fn free(&self, address: u64) -> Call {
        // SAFETY: the driver checks the address; work queued before still has it.
        check(unsafe { sys::cuMemFreeAsync(address, self.0) })
    }

    /// Queues a copy to the device.
    ///
    /// # Safety
    /// `bytes` from `from` stay readable and unchanged until the copy is done.
    pub(super) unsafe fn upload(&self, address: u64, from: *const u8, bytes: usize) -> Call {
        // SAFETY: the caller's promise.
        check(unsafe { sys::cuMemcpyHtoDAsync_v2(address, from.cast(), bytes, self.0) })
    }

    /// Copies from the device, after everything queued, and waits.
    pub(super) fn download(&self, address: u64, data: &mut [u8]) -> Call {
        // SAFETY: `data` is borrowed until the copy is done, which the next line waits for.
        let queued = check(unsafe {
            sys::cuMemcpyDtoHAsync_v2(data.as_mut_ptr().cast::<c_void>(), address, data.len(), self.0)
        });
        // After an error too: a copy that was queued all the same must not outlive the borrow.
        let done = self.synchronize();
        queued.and(done)
    }

    /// Queues a copy from device to device. The driver checks the addresses.
    pub(super) fn copy(&self, to: u64, from: u64, bytes: usize) -> Call {
        // SAFETY: no host memory is touched.
        check(unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.0) })
    }

    /// Queues a copy to pinned host memory.
    ///
    /// # Safety
    /// `to` is valid for `bytes` bytes until the copy is done.
    pub(super) unsafe fn download_later(&self, to: *mut u8, from: u64, bytes: usize) -> Call {
        // SAFETY: the caller's promise.
        check(unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.0) })
    }

    /// Queues a write of one word.
    pub(super) fn write(&self, address: u64, value: u32) -> Call {
        // SAFETY: the driver checks the address; pinned memory that is mapped lives until it is freed.
        check(unsafe { sys::cuMemsetD32Async(address, value, 1, self.0) })
    }

    /// Queues the writing of zeros; whole words only. The driver checks the address.
    pub(super) fn clear(&self, address: u64, bytes: usize) -> Call {
        // SAFETY: no host memory is touched.
        check(unsafe { sys::cuMemsetD32Async(address, 0, bytes / 4, self.0) })
    }

    /// Queues a kernel.
    ///
    /// # Safety
    /// `params` points at one value a parameter of the kernel, of its size; addresses among them are valid.
    pub(super) unsafe fn launch(
        &self,
        function: Function,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        params: &mut [*mut c_void],
    ) -> Call {
        // SAFETY: the caller's promise; the driver copies the parameters before it returns.
        check(unsafe {
            sys::cuLaunchKernel(
                function.0,
                grid[0],
                grid[1],
                grid[2],
                block[0],
                block[1],
                block[2],
                shared,
                self.0,
                params.as_mut_ptr(),
                ptr::null_mut(),
            )
        })
    }

    /// From here to [`Stream::end_capture`], what is queued becomes a graph instead of running.
    pub(super) fn begin_capture(&self) -> Call {
        // This thread's alone: another thread's allocation must not break the capture.
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        check(unsafe { sys::cuStreamBeginCapture_v2(self.0, mode) })
    }

    pub(super) fn end_capture(&self) -> Call<Captured> {
        let mut graph = ptr::null_mut();
        // SAFETY: `graph` is writable.
        check(unsafe { sys::cuStreamEndCapture(self.0, &mut graph) })?;
        Ok(Captured(graph))
    }

    /// Queues a graph.
    pub(super) fn replay(&self, graph: &Executable) -> Call {
        // SAFETY: both live.
        check(unsafe { sys::cuGraphLaunch(graph.0, self.0) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: not used afterwards. Does not wait.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}

/// A point in a stream.
pub(super) struct Event(sys::CUevent);

// SAFETY: see Function.
unsafe impl Send for Event {}

impl Event {
    pub(super) fn new(timing: bool) -> Call<Event> {
        let flags = match timing {
            true => sys::CUevent_flags_enum::CU_EVENT_DEFAULT,
            false => sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING,
        };
        let mut event = ptr::null_mut();
        // SAFETY: `event` is writable.
        check(unsafe { sys::cuEventCreate(&mut event, flags as u32) })?;
        Ok(Event(event))
    }

    pub(super) fn record(&self, stream: &Stream) -> Call {
        // SAFETY: both live.
        check(unsafe { sys::cuEventRecord(self.0, stream.0) })
    }

    pub(super) fn synchronize(&self) -> Call {
        // SAFETY: the event lives.
        check(unsafe { sys::cuEventSynchronize(self.0) })
    }

    /// Milliseconds from `start` to here; both have passed.
    pub(super) fn since(&self, start: &Event) -> Call<f32> {
        let mut milliseconds = 0.0;
        // SAFETY: `milliseconds` is writable.
        check(unsafe { sys::cuEventElapsedTime(&mut milliseconds, start.0, self.0) })?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: not used afterwards.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// Host memory that the device reaches without the host's help, zeroed.
pub(super) struct Pinned {
    address: *mut u8,
    bytes: usize,
}

// SAFETY: see Function; the memory is the owner's alone.
unsafe impl Send for Pinned {}

impl Pinned {
    /// `mapped`: kernels can use it, see [`Pinned::device_address`].
    pub(super) fn new(bytes: usize, mapped: bool) -> Call<Pinned> {
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | if mapped { sys::CU_MEMHOSTALLOC_DEVICEMAP } else { 0 };
        let mut address = ptr::null_mut();
        // SAFETY: `address` is writable.
        check(unsafe { sys::cuMemHostAlloc(&mut address, bytes, flags) })?;
        let address = address.cast::<u8>();
        // SAFETY: the driver returned that many bytes.
        unsafe { address.write_bytes(0, bytes) };
        Ok(Pinned { address, bytes })
    }

    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.address
    }

    /// Where kernels see it, if it is mapped.
    pub(super) fn device_address(&self) -> Call<u64> {
        let mut address = 0;
        // SAFETY: `address` is writable.
        check(unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, self.address.cast(), 0) })?;
        Ok(address)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: not used afterwards.
        let _ = unsafe { sys::cuMemFreeHost(self.address.cast()) };
    }
}

/// What a capture gave.
pub(super) struct Captured(sys::CUgraph);

impl Captured {
    pub(super) fn instantiate(&self) -> Call<Executable> {
        let mut graph = ptr::null_mut();
        // SAFETY: `graph` is writable, the captured one lives.
        check(unsafe { sys::cuGraphInstantiateWithFlags(&mut graph, self.0, 0) })?;
        Ok(Executable(graph))
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: not used afterwards; executables have copies.
            let _ = unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}

/// A graph ready to run.
pub(super) struct Executable(sys::CUgraphExec);

// SAFETY: see Function.
unsafe impl Send for Executable {}

impl Executable {
    /// Takes over the parameters of `graph`; false where it has other nodes, or where the driver lacks this
    /// version of the call: then nothing changed.
    pub(super) fn update(&mut self, graph: &Captured) -> Call<bool> {
        let (mut node, mut reason) = (ptr::null_mut(), 0u32);
        // The reason is an enum to which drivers add; a number holds them all, in the same four bytes.
        let out = ptr::from_mut(&mut reason).cast();
        // SAFETY: both graphs live, `node` and `out` are writable.
        match unsafe { sys::cuGraphExecUpdate(self.0, graph.0, &mut node, out) } {
            CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE => Ok(false),
            result => match check(result) {
                Err(failure) if failure.lacking => Ok(false),
                checked => checked.map(|()| true),
            },
        }
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: not used afterwards.
        let _ = unsafe { sys::cuGraphExecDestroy(self.0) };
    }
}

/// Bytes of each log of the compiler.
const LOG: usize = 16 << 10;

/// A failed compilation and what the compiler said.
pub(super) struct Rejected {
    pub(super) failure: Failure,
    pub(super) log: String,
}

/// Compiles PTX for the current context's device.
pub(super) fn compile(ptx: &str, name: &str) -> Result<Vec<u8>, Rejected> {
    use sys::CUjit_option_enum as Opt;
    let nul = |_| Rejected {
        failure: Failure { function: "cuLinkAddData_v2", code: 1, lacking: false },
        log: "the PTX or its name contains a NUL".into(),
    };
    let (ptx, name) = (CString::new(ptx).map_err(nul)?, CString::new(name).map_err(nul)?);
    // The driver keeps these addresses until the link is destroyed.
    let (mut info, mut error) = (vec![0u8; LOG], vec![0u8; LOG]);
    let mut options = [
        Opt::CU_JIT_INFO_LOG_BUFFER,
        Opt::CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES,
        Opt::CU_JIT_ERROR_LOG_BUFFER,
        Opt::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    // Sizes are passed as values in place of the pointers.
    let mut values = [
        info.as_mut_ptr().cast::<c_void>(),
        ptr::without_provenance_mut(LOG),
        error.as_mut_ptr().cast::<c_void>(),
        ptr::without_provenance_mut(LOG),
    ];
    let mut link = ptr::null_mut();
    // SAFETY: four options with four values; the buffers outlive the link.
    let created =
        check(unsafe { sys::cuLinkCreate_v2(4, options.as_mut_ptr(), values.as_mut_ptr(), &mut link) });
    let compiled = created.and_then(|()| {
        let data = ptx.as_bytes_with_nul();
        let kind = sys::CUjitInputType_enum::CU_JIT_INPUT_PTX;
        // SAFETY: the driver reads `data` and `name`, C strings, and takes no options.
        let added = check(unsafe {
            sys::cuLinkAddData_v2(
                link,
                kind,
                data.as_ptr().cast_mut().cast(),
                data.len(),
                name.as_ptr(),
                0,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        });
        let (mut cubin, mut bytes) = (ptr::null_mut(), 0);
        let completed = added
            // SAFETY: both are writable.
            .and_then(|()| check(unsafe { sys::cuLinkComplete(link, &mut cubin, &mut bytes) }))
            // SAFETY: the driver says so, and the link still lives.
            .map(|()| unsafe { std::slice::from_raw_parts(cubin.cast::<u8>(), bytes) }.to_vec());
        // SAFETY: the image was copied; nothing else refers to the link.
        let _ = unsafe { sys::cuLinkDestroy(link) };
        completed
    });
    compiled.map_err(|failure| Rejected { failure, log: log(&error, &info) })
}

/// The error log, or the other one where it is empty.
fn log(error: &[u8], info: &[u8]) -> String {
    let text = |buffer: &[u8]| {
        let end = buffer.iter().position(|byte| *byte == 0).unwrap_or(buffer.len());
        String::from_utf8_lossy(&buffer[..end]).trim().to_owned()
    };
    match text(error) {
        empty if empty.is_empty() => text(info),
        error => error,
    }
}
