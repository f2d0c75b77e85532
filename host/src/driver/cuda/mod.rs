//! NVIDIA GPUs through the driver API.
//!
//! [`CudaDevice`] is an open GPU: context and compiled kernels. [`Cuda`] is what one cache has of it: a
//! stream, memory, pinned staging for uploads. Everything is queued on the stream; the host waits only in
//! [`Driver::download`], where errors of kernels show. docs/gpu.md tells what was run on a GPU and what not.
//!
//! Traps: an error of a kernel shows at a later call, so that the launches since the last wait are kept for
//! its text; a failed context is never touched again ([`DriverError::Lost`]).

mod cubin;
mod graph;
mod open;
mod raw;
mod staging;
mod streams;
mod timing;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::{Duration, Instant};

use psa_codegen::{DeviceLimits, Launch};
use psa_cuda_shim::Failure;

use super::{Driver, DriverError, Gpu, Streams, Timing, describe};
use crate::{Device, Error};
use open::{Opened, Owned};
use raw::Call;
use staging::Staging;

pub use cubin::{CubinCache, Origin};
pub use graph::{Graph, Updated};
pub use open::devices;

/// Dynamic shared memory that every kernel may have; beyond, an attribute must be set first.
const DEFAULT_SHARED: u32 = 48 << 10;

/// How long the drop of a [`Cuda`] waits for kernels that still run; then its memory is abandoned. A decode
/// step takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

impl Device {
    /// An NVIDIA GPU by its index, as in [`devices`]. Opens it and loads the kernels, which takes seconds the
    /// first time.
    ///
    /// # Errors
    /// [`Error::NoGpu`] with the reason, [`Error::Backend`] where the PTX does not load.
    pub fn cuda(index: usize) -> Result<Device, Error> {
        Ok(CudaDevice::open(index, &CubinCache::Usual)?.device())
    }
}

/// An open GPU. Clones are the same one.
#[derive(Clone)]
pub struct CudaDevice {
    opened: Arc<Opened>,
}

impl CudaDevice {
    /// Opens a GPU and loads the kernels.
    ///
    /// # Errors
    /// [`Error::NoGpu`], [`Error::Backend`] where the PTX does not load, with the compiler's log.
    pub fn open(index: usize, cache: &CubinCache) -> Result<CudaDevice, Error> {
        CudaDevice::open_with_ptx(index, cache, kernels_gpu::PTX)
    }

    /// Opens a GPU and loads another PTX module.
    ///
    /// # Errors
    /// As [`CudaDevice::open`].
    pub fn open_with_ptx(index: usize, cache: &CubinCache, ptx: &str) -> Result<CudaDevice, Error> {
        Ok(CudaDevice { opened: Opened::new(index, cache, ptx)? })
    }

    /// What is known of it.
    pub fn gpu(&self) -> &Gpu {
        &self.opened.gpu
    }

    /// Where the kernels' code came from.
    pub fn origin(&self) -> Origin {
        self.opened.origin
    }

    /// A place for caches.
    pub fn device(&self) -> Device {
        let this = self.clone();
        Device::with_driver(&self.opened.short, move || Ok(Box::new(this.driver()?) as Box<dyn Driver>))
    }

    /// A driver with a stream of its own.
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`], [`DriverError::Lost`].
    pub fn driver(&self) -> Result<Cuda, DriverError> {
        self.opened.enter()?;
        let made = raw::Stream::new().and_then(|stream| Staging::new().map(|staging| (stream, staging)));
        let (stream, staging) = made.map_err(|failure| {
            self.opened.error(failure, None, "", |detail| DriverError::OutOfMemory {
                bytes: 0,
                what: "a stream and its pinned memory".into(),
                device: self.opened.long_name(),
                detail,
            })
        })?;
        Ok(Cuda {
            opened: self.opened.clone(),
            stream: ManuallyDrop::new(stream),
            staging: ManuallyDrop::new(staging),
            allocations: BTreeMap::new(),
            functions: HashMap::new(),
            queued: Queued::default(),
            more: ManuallyDrop::new(streams::More::default()),
        })
    }
}

/// The launches since the last wait, for the text of an error that one of them caused.
#[derive(Default)]
struct Queued {
    last: VecDeque<Launch>,
    dropped: usize,
}

impl Queued {
    /// More than the launches of one layer's step.
    const KEPT: usize = 8;

    fn push(&mut self, launch: &Launch) {
        if self.last.len() == Self::KEPT {
            self.last.pop_front();
            self.dropped += 1;
        }
        self.last.push_back(launch.clone());
    }

    fn extend(&mut self, launches: &[Launch]) {
        launches.iter().for_each(|launch| self.push(launch));
    }

    fn clear(&mut self) {
        self.last.clear();
        self.dropped = 0;
    }

    fn text(&self) -> String {
        if self.last.is_empty() {
            return String::new();
        }
        let last: Vec<_> = self.last.iter().map(describe).collect();
        let more = if self.dropped > 0 { format!(" ({} more before)", self.dropped) } else { String::new() };
        format!(
            "; queued since the last wait{more}: {}; CUDA_LAUNCH_BLOCKING=1 shows which one failed",
            last.join("; ")
        )
    }
}

#[derive(Clone, Copy)]
struct Kernel {
    function: raw::Function,
    /// Dynamic shared memory that a launch may have.
    shared: u32,
}

/// One cache's part of a GPU.
pub struct Cuda {
    opened: Arc<Opened>,
    stream: ManuallyDrop<raw::Stream>,
    staging: ManuallyDrop<Staging>,
    /// Address to bytes.
    allocations: BTreeMap<u64, usize>,
    functions: HashMap<&'static str, Kernel>,
    queued: Queued,
    more: ManuallyDrop<streams::More>,
}

/// A point in a [`Cuda`]'s stream.
pub struct Event(Owned<raw::Event>);

/// Host memory that the GPU reads and writes by itself, zeroed at first.
pub struct Pinned {
    memory: Owned<raw::Pinned>,
    device_address: Option<u64>,
}

impl Pinned {
    /// Where kernels see it, if it was asked to be mapped.
    pub fn device_address(&self) -> Option<u64> {
        self.device_address
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether it has no bytes; it always has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn as_ptr(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// Copies `data` to `offset`; false, and nothing copied, where it does not fit.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> bool {
        let fits = offset.checked_add(data.len()).is_some_and(|end| end <= self.len());
        for (index, byte) in data.iter().enumerate().take(if fits { data.len() } else { 0 }) {
            // SAFETY: within the allocation. Volatile, since a kernel may look at the same time.
            unsafe { self.memory.as_ptr().add(offset + index).write_volatile(*byte) };
        }
        fits
    }

    /// Copies from `offset` to `data`; false, and nothing copied, where there is less.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> bool {
        let fits = offset.checked_add(data.len()).is_some_and(|end| end <= self.len());
        let wanted = if fits { data.len() } else { 0 };
        for (index, byte) in data.iter_mut().enumerate().take(wanted) {
            // SAFETY: within the allocation. Volatile, since a kernel may write at the same time.
            *byte = unsafe { self.memory.as_ptr().add(offset + index).read_volatile() };
        }
        fits
    }

    /// The aligned u32 at `index`, whole even while a kernel writes it.
    pub fn load(&self, index: usize) -> Option<u32> {
        let within =
            index.checked_add(1).and_then(|end| end.checked_mul(4)).is_some_and(|end| end <= self.len());
        // SAFETY: within the allocation, which is aligned to a page.
        within.then(|| unsafe { self.memory.as_ptr().cast::<u32>().add(index).read_volatile() })
    }
}

impl Cuda {
    /// Waits for everything queued.
    ///
    /// # Errors
    /// [`DriverError::Lost`] where something queued failed.
    pub fn wait(&mut self) -> Result<(), DriverError> {
        self.opened.enter()?;
        self.more.counters.host_syncs += 1;
        self.stream.synchronize().map_err(|failure| self.memory_error(failure, "wait", 0, 0))?;
        self.idle();
        Ok(())
    }

    /// Marks this point of the stream.
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`], [`DriverError::Lost`].
    pub fn record(&mut self) -> Result<Event, DriverError> {
        self.opened.enter()?;
        let event = raw::Event::new(true).map_err(|f| self.no_memory(f, 0, "an event"))?;
        let event = Owned::new(&self.opened, event);
        event.record(&self.stream).map_err(|f| self.memory_error(f, "record an event", 0, 0))?;
        Ok(Event(event))
    }

    /// Lets what is queued from now on wait for an event of another stream.
    ///
    /// # Errors
    /// [`DriverError::Lost`].
    pub fn wait_for(&mut self, event: &Event) -> Result<(), DriverError> {
        self.opened.enter()?;
        self.stream.wait(&event.0).map_err(|f| self.memory_error(f, "wait for an event", 0, 0))
    }

    /// Time on the device between two events; waits for the second.
    ///
    /// # Errors
    /// [`DriverError::Memory`] for events of different GPUs, [`DriverError::Lost`].
    pub fn elapsed(&mut self, start: &Event, end: &Event) -> Result<Duration, DriverError> {
        self.opened.enter()?;
        let milliseconds = end.0.synchronize().and_then(|()| end.0.since(&start.0));
        let milliseconds = milliseconds.map_err(|f| self.memory_error(f, "time between events", 0, 0))?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }

    /// Pinned host memory; `mapped` gives it a device address.
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`], [`DriverError::Lost`].
    pub fn pinned(&mut self, bytes: usize, mapped: bool) -> Result<Pinned, DriverError> {
        self.opened.enter()?;
        let what = "pinned host memory";
        let memory = raw::Pinned::new(bytes.max(1), mapped).map_err(|f| self.no_memory(f, bytes, what))?;
        let memory = Owned::new(&self.opened, memory);
        let device_address = mapped.then(|| memory.device_address()).transpose();
        Ok(Pinned { device_address: device_address.map_err(|f| self.no_memory(f, bytes, what))?, memory })
    }

    /// The stream is idle.
    fn idle(&mut self) {
        self.queued.clear();
        self.staging.idle();
    }

    fn error(&self, failure: Failure, other: impl FnOnce(String) -> DriverError) -> DriverError {
        self.opened.error(failure, Some(&self.stream), &self.queued.text(), other)
    }

    fn memory_error(&self, failure: Failure, call: &'static str, address: u64, bytes: usize) -> DriverError {
        self.error(failure, |detail| DriverError::Memory { call, address, bytes, detail })
    }

    fn no_memory(&self, failure: Failure, bytes: usize, what: &str) -> DriverError {
        self.error(failure, |mut detail| {
            if let Ok((free, total)) = raw::memory() {
                detail += &format!(", {free} of {total} bytes free");
            }
            DriverError::OutOfMemory { bytes, what: what.into(), device: self.opened.long_name(), detail }
        })
    }

    /// That `bytes` from `address` lie in one allocation: the driver notices only some of the others.
    fn within(&self, call: &'static str, address: u64, bytes: usize) -> Result<(), DriverError> {
        let inside = self.allocations.range(..=address).next_back().is_some_and(|(start, size)| {
            usize::try_from(address - start).is_ok_and(|offset| offset <= *size && bytes <= size - offset)
        });
        match inside {
            true => Ok(()),
            false => Err(DriverError::Memory {
                call,
                address,
                bytes,
                detail: format!("it is not within an allocation of this cache on {}", self.opened.short),
            }),
        }
    }

    fn try_alloc(&self, bytes: usize) -> Call<u64> {
        if self.opened.pools { self.stream.alloc(bytes) } else { raw::alloc(bytes) }
    }

    /// The kernel of a launch that keeps its contract, loaded, and allowed the shared memory that it asks for.
    fn function(&mut self, launch: &Launch) -> Result<raw::Function, DriverError> {
        let refused = |detail| DriverError::Launch { launch: describe(launch), detail };
        launch.check(&self.limits())?;
        let name = launch.kernel.name;
        let mut kernel = match self.functions.get(name) {
            Some(kernel) => *kernel,
            None => {
                let function = self.opened.function(name).map_err(|f| self.error(f, refused))?;
                Kernel { function, shared: DEFAULT_SHARED }
            }
        };
        if launch.shared_bytes > kernel.shared {
            kernel.function.allow_shared(launch.shared_bytes).map_err(|f| self.error(f, refused))?;
            kernel.shared = launch.shared_bytes;
        }
        self.functions.insert(name, kernel);
        Ok(kernel.function)
    }

    /// Queues a launch that [`Cuda::function`] has checked.
    fn queue(&self, function: raw::Function, launch: &Launch) -> Result<(), DriverError> {
        self.queue_on(&self.stream, function, launch)
    }

    fn queue_on(
        &self,
        stream: &raw::Stream,
        function: raw::Function,
        launch: &Launch,
    ) -> Result<(), DriverError> {
        let mut params: Vec<*mut c_void> = launch.args.iter().map(|arg| arg.as_ptr().cast_mut()).collect();
        // SAFETY: one value a parameter, of its type, as `function` checked. That the addresses are valid was
        // promised to whoever made the `Region`s, or the raw launch.
        let queued =
            unsafe { stream.launch(function, launch.grid, launch.block, launch.shared_bytes, &mut params) };
        queued.map_err(|f| self.error(f, |detail| DriverError::Launch { launch: describe(launch), detail }))
    }

    /// Waits for the streams, with an end. False: one does not get idle. An error loses the device.
    fn drained(&self) -> Result<bool, DriverError> {
        let end = Instant::now() + PATIENCE;
        for stream in std::iter::once(&*self.stream).chain(self.more.streams()) {
            loop {
                match stream.is_idle() {
                    Ok(true) => break,
                    Ok(false) if Instant::now() < end => std::thread::sleep(Duration::from_micros(200)),
                    Ok(false) => return Ok(false),
                    Err(failure) => return Err(self.memory_error(failure, "wait", 0, 0)),
                }
            }
        }
        Ok(true)
    }
}

impl Driver for Cuda {
    fn name(&self) -> String {
        self.opened.long_name()
    }

    fn alloc(&mut self, bytes: usize, what: &str) -> Result<u64, DriverError> {
        self.opened.enter()?;
        let bytes = bytes.max(1);
        let mut address = self.try_alloc(bytes);
        if self.opened.pools && address.is_err_and(|failure| failure.code == raw::OUT_OF_MEMORY) {
            // Memory that was freed on a stream is free for others only after a wait.
            self.wait()?;
            let _ = raw::trim_pool(self.opened.device.as_raw());
            address = self.try_alloc(bytes);
        }
        let address = address.map_err(|failure| self.no_memory(failure, bytes, what))?;
        self.allocations.insert(address, bytes);
        self.more.counters.allocations += 1;
        Ok(address)
    }

    fn free(&mut self, address: u64) -> Result<(), DriverError> {
        self.opened.enter()?;
        if self.more.pinned.remove(&address).is_some() {
            // Its drop frees it; the driver waits for what still uses it.
            return Ok(());
        }
        let Some(bytes) = self.allocations.remove(&address) else {
            let detail = format!("no allocation of this cache on {} begins there", self.opened.short);
            return Err(DriverError::Memory { call: "free", address, bytes: 0, detail });
        };
        let freed = if self.opened.pools { self.stream.free(address) } else { raw::free(address) };
        freed.map_err(|failure| self.memory_error(failure, "free", address, bytes))
    }

    fn upload(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError> {
        self.opened.enter()?;
        self.within("upload", address, data.len())?;
        self.staging
            .upload(&self.stream, address, data)
            .map_err(|failure| self.memory_error(failure, "upload", address, data.len()))
    }

    fn download(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        self.opened.enter()?;
        self.within("download", address, data.len())?;
        self.more.counters.host_syncs += 1;
        self.stream
            .download(address, data)
            .map_err(|failure| self.memory_error(failure, "download", address, data.len()))?;
        self.idle();
        Ok(())
    }

    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), DriverError> {
        self.opened.enter()?;
        self.within("copy", to, bytes)?;
        self.within("copy", from, bytes)?;
        self.stream.copy(to, from, bytes).map_err(|failure| self.memory_error(failure, "copy", to, bytes))
    }

    fn limits(&self) -> DeviceLimits {
        let shared_per_block = self.opened.shared_limit.max(DEFAULT_SHARED);
        DeviceLimits { shared_per_block, ..DeviceLimits::of_sm(self.opened.gpu.sm) }
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), DriverError> {
        self.opened.enter()?;
        let function = self.function(launch)?;
        self.queued.push(launch);
        self.more.counters.launches += 1;
        self.queue(function, launch)
    }

    fn streams(&mut self) -> Option<&mut dyn Streams> {
        Some(self)
    }

    fn time(&mut self, launches: &[Launch], how: Timing) -> Result<Option<Vec<f32>>, DriverError> {
        self.time_launches(launches, how).map(Some)
    }

    fn time_copy(&mut self, bytes: usize, how: Timing) -> Result<Option<Vec<f32>>, DriverError> {
        self.time_copies(bytes, how).map(Some)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        match self.opened.enter().and_then(|()| self.drained()) {
            Ok(true) => {}
            // Kernels still run. Freeing would wait for them, perhaps for ever; their context must stay.
            Ok(false) => return std::mem::forget(self.opened.clone()),
            // A lost device has nothing left to free, and calls on it may not come back.
            Err(_) => return,
        }
        for address in std::mem::take(&mut self.allocations).into_keys() {
            let _ = if self.opened.pools { self.stream.free(address) } else { raw::free(address) };
        }
        // SAFETY: dropped once, here; staging's copies are done.
        unsafe {
            ManuallyDrop::drop(&mut self.more);
            ManuallyDrop::drop(&mut self.staging);
            ManuallyDrop::drop(&mut self.stream);
        }
    }
}
