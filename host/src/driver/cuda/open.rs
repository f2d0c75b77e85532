//! Finding GPUs and opening one: context, compiled kernels, and whether the device still lives.
//!
//! A GPU is opened once for all caches on it: its primary context is retained and the kernels are compiled
//! or taken from the cache of cubins. Each call makes the context current on its thread.
//!
//! Trap: after an illegal address or the like every call on the context fails, destructors too. The device
//! is then marked lost with the first error, nothing of it is destroyed any more, and the context is given up.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use cust::context::{Context, CurrentContext};
use cust::device::{Device, DeviceAttribute};
use cust::module::Module;
use cust::sys::CUdevice_attribute_enum as Attribute;
use cust::{CudaApiVersion, CudaFlags};
use psa_cuda_shim::{Failure, Status};

use super::cubin::{self, CubinCache, Origin};
use super::raw::{self, Call, OUT_OF_MEMORY, of_cust};
use crate::Error;
use crate::driver::{DriverError, Gpu, Unavailable};

/// The first CUDA with PTX ISA 7.8.
const NEEDED_CUDA: u32 = 11_080;
/// The target of the shipped PTX.
const NEEDED_SM: u32 = 80;

/// The GPUs of this machine, by index. Starts the driver; makes no context.
///
/// # Errors
/// Why there is none, or why none can be used.
pub fn devices() -> Result<Vec<Gpu>, Unavailable> {
    let version = start()?;
    let failed = |failure| Unavailable::Failed { detail: words(failure) };
    let count = of_cust(Device::num_devices()).map_err(failed)?;
    if count == 0 {
        return Err(Unavailable::NoDevice { detail: hidden().unwrap_or_else(|| "it counts 0".into()) });
    }
    (0..count).map(|index| describe(index, version).map_err(failed)).collect()
}

/// Loads and initialises the driver; its CUDA version.
fn start() -> Result<u32, Unavailable> {
    let status = psa_cuda_shim::status();
    let detail = status.to_string();
    match status {
        Status::NotFound { .. } => return Err(Unavailable::NoLibrary { detail }),
        Status::Wrong { .. } => return Err(Unavailable::WrongLibrary { detail }),
        Status::Loaded { .. } => {}
    }
    of_cust(cust::init(CudaFlags::empty())).map_err(|failure| {
        const NO_DEVICE: u32 = 100;
        let detail = words(failure);
        match ["/dev/nvidiactl", "/dev/nvidia0"].iter().find_map(|file| refused(Path::new(file), open)) {
            Some(denied) => denied,
            None if failure.code == NO_DEVICE => Unavailable::NoDevice {
                detail: hidden().map_or(detail.clone(), |hidden| format!("{detail}; {hidden}")),
            },
            None => Unavailable::Failed { detail },
        }
    })?;
    let version = of_cust(CudaApiVersion::get()).map_err(|f| Unavailable::Failed { detail: words(f) })?;
    let version = (version.major() * 1000 + version.minor() * 10).max(0) as u32;
    if version < NEEDED_CUDA {
        return Err(Unavailable::DriverTooOld { version, needed: NEEDED_CUDA });
    }
    Ok(version)
}

fn open(file: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(file)
}

/// A device file that exists and may not be opened.
fn refused(file: &Path, open: impl Fn(&Path) -> std::io::Result<File>) -> Option<Unavailable> {
    open(file)
        .is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
        .then(|| Unavailable::NoPermission { file: file.to_owned() })
}

/// What may hide a GPU from the driver.
fn hidden() -> Option<String> {
    if let Some(visible) = std::env::var_os("CUDA_VISIBLE_DEVICES") {
        return Some(format!("CUDA_VISIBLE_DEVICES is {:?}", visible.display().to_string()));
    }
    let missing = !Path::new("/dev/nvidiactl").exists() && !Path::new("/dev/dxg").exists();
    missing.then(|| {
        "there is no /dev/nvidiactl: the kernel module is not loaded, or the container was started without GPUs"
            .into()
    })
}

fn describe(index: u32, driver: u32) -> Call<Gpu> {
    let device = of_cust(Device::get_device(index))?;
    let number = |attribute| of_cust(device.get_attribute(attribute)).map(|value| value.max(0) as u32);
    Ok(Gpu {
        index: index as usize,
        name: of_cust(device.name())?,
        sm: 10 * number(DeviceAttribute::ComputeCapabilityMajor)?
            + number(DeviceAttribute::ComputeCapabilityMinor)?,
        multiprocessors: number(DeviceAttribute::MultiprocessorCount)?,
        memory: of_cust(device.total_memory())?,
        driver,
    })
}

/// The error in CUDA's words.
pub(super) fn words(failure: Failure) -> String {
    let Failure { function, code, lacking } = failure;
    if lacking {
        return format!(
            "the NVIDIA driver has no function {function}; it is too old or too new for this program"
        );
    }
    let name = psa_cuda_shim::error_name(code);
    match psa_cuda_shim::error_text(code) {
        Some(text) => format!("{function}: {name} ({code}), {text}"),
        None => format!("{function}: {name} ({code})"),
    }
}

/// Errors after which the context is unusable, by the driver API's description of each.
fn is_sticky(code: u32) -> bool {
    const DEINITIALIZED: u32 = 4;
    const ECC_UNCORRECTABLE: u32 = 214;
    const NVLINK_UNCORRECTABLE: u32 = 220;
    const CONTAINED: u32 = 226;
    const ILLEGAL_ADDRESS: u32 = 700;
    const LAUNCH_TIMEOUT: u32 = 702;
    const CONTEXT_IS_DESTROYED: u32 = 709;
    const ASSERT: u32 = 710;
    // Hardware stack, illegal instruction, misaligned address, address space, program counter, launch failure.
    const KERNEL_FAULTS: std::ops::RangeInclusive<u32> = 714..=719;
    const TENSOR_MEMORY_LEAK: u32 = 721;
    matches!(
        code,
        DEINITIALIZED
            | ECC_UNCORRECTABLE
            | NVLINK_UNCORRECTABLE
            | CONTAINED
            | ILLEGAL_ADDRESS
            | LAUNCH_TIMEOUT
            | CONTEXT_IS_DESTROYED
            | ASSERT
            | TENSOR_MEMORY_LEAK
    ) || KERNEL_FAULTS.contains(&code)
}

/// Whether nothing works on the stream any more. A capture in progress also refuses the question.
fn is_broken(stream: &raw::Stream) -> bool {
    const CAPTURE: std::ops::RangeInclusive<u32> = 900..=908;
    stream.is_idle().is_err_and(|failure| !failure.lacking && !CAPTURE.contains(&failure.code))
}

/// An open GPU. Shared by everything on it.
pub(super) struct Opened {
    pub(super) gpu: Gpu,
    /// `cuda:0`.
    pub(super) short: String,
    /// Stream-ordered allocation works.
    pub(super) pools: bool,
    /// Most dynamic shared memory of a block.
    pub(super) shared_limit: u32,
    /// Bytes of the L2 cache; 0 where the driver does not say.
    pub(super) l2_bytes: usize,
    /// Where the kernels' code came from.
    pub(super) origin: Origin,
    pub(super) device: Device,
    context: Context,
    module: ManuallyDrop<Module>,
    lost: OnceLock<String>,
}

impl Opened {
    pub(super) fn new(index: usize, cache: &CubinCache, ptx: &str) -> Result<Arc<Opened>, Error> {
        let gpus = devices()?;
        let count = gpus.len();
        let gpu = gpus.into_iter().nth(index).ok_or(Unavailable::NoSuchDevice { index, count })?;
        if gpu.sm < NEEDED_SM {
            return Err(Unavailable::DeviceTooOld { index, name: gpu.name, sm: gpu.sm }.into());
        }
        let unavailable = |failure: Failure| match failure.code {
            OUT_OF_MEMORY => Unavailable::OutOfMemory { index, detail: words(failure) },
            _ => Unavailable::Failed { detail: words(failure) },
        };
        let device = of_cust(Device::get_device(index as u32)).map_err(unavailable)?;
        let context = of_cust(Context::new(device)).map_err(unavailable)?;
        // Context::new does not look at whether it became current.
        of_cust(CurrentContext::set_current(&context)).map_err(unavailable)?;
        let number =
            |attribute| raw::attribute(device.as_raw(), attribute).map_or(0, |value| value.max(0) as u32);
        let short = format!("cuda:{index}");
        let (module, origin) = cubin::load(&gpu, cache, ptx).map_err(|e| Error::Backend {
            device: short.clone(),
            call: "load".into(),
            detail: e.to_string(),
        })?;
        Ok(Arc::new(Opened {
            short,
            pools: number(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED) != 0,
            shared_limit: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
            l2_bytes: number(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE) as usize,
            gpu,
            origin,
            device,
            context,
            module: ManuallyDrop::new(module),
            lost: OnceLock::new(),
        }))
    }

    /// `cuda:0 (NVIDIA H100)`.
    pub(super) fn long_name(&self) -> String {
        format!("{} ({})", self.short, self.gpu.name)
    }

    /// Makes the context current on this thread.
    pub(super) fn enter(&self) -> Result<(), DriverError> {
        if let Some(detail) = self.lost.get() {
            return Err(DriverError::Lost { device: self.long_name(), detail: detail.clone() });
        }
        of_cust(CurrentContext::set_current(&self.context))
            .map_err(|failure| DriverError::Lost { device: self.long_name(), detail: words(failure) })
    }

    pub(super) fn function(&self, name: &str) -> Call<raw::Function> {
        of_cust(self.module.get_function(name)).map(|function| raw::Function::new(&function))
    }

    /// The error of a failed call: the device is lost if its code says so (newer drivers have codes unknown
    /// here), or if the stream fails as well. `context` adds to what a lost device will say.
    pub(super) fn error(
        &self,
        failure: Failure,
        stream: Option<&raw::Stream>,
        context: &str,
        other: impl FnOnce(String) -> DriverError,
    ) -> DriverError {
        let detail = words(failure);
        let gone = is_sticky(failure.code) || stream.is_some_and(is_broken);
        if !gone {
            return other(detail);
        }
        let first = self.lost.get_or_init(|| format!("{detail}{context}"));
        DriverError::Lost { device: self.long_name(), detail: first.clone() }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.enter().is_ok() {
            // SAFETY: dropped once, here, and no function of it is used any more.
            unsafe { ManuallyDrop::drop(&mut self.module) };
        }
        // The context is released by its own drop, whatever state it is in.
    }
}

/// A handle that is destroyed with its context current, and left alone if the device is lost.
pub(super) struct Owned<T> {
    pub(super) opened: Arc<Opened>,
    value: ManuallyDrop<T>,
}

impl<T> Owned<T> {
    pub(super) fn new(opened: &Arc<Opened>, value: T) -> Owned<T> {
        Owned { opened: opened.clone(), value: ManuallyDrop::new(value) }
    }
}

impl<T> std::ops::Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> std::ops::DerefMut for Owned<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if self.opened.enter().is_ok() {
            // SAFETY: dropped once, here.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_needed_cuda_and_capability_are_those_of_the_shipped_ptx() {
        // ISA 7.8 came with CUDA 11.8 (PTX ISA, release notes).
        assert!(kernels_gpu::PTX.contains("\n.version 7.8\n"));
        assert!(kernels_gpu::PTX.contains(&format!("\n.target sm_{NEEDED_SM}\n")));
        assert_eq!(NEEDED_CUDA, 11_080);
    }

    #[test]
    fn a_device_file_counts_as_refused_only_if_it_is_there_and_closed() {
        let file = Path::new("/dev/nvidiactl");
        let failing = |kind: ErrorKind| move |_: &Path| Err(std::io::Error::from(kind));
        let error = refused(file, failing(ErrorKind::PermissionDenied)).unwrap();
        assert!(error.to_string().contains("no permission to open /dev/nvidiactl; add the user"), "{error}");
        assert_eq!(refused(file, failing(ErrorKind::NotFound)), None);
        assert_eq!(refused(Path::new("/dev/null"), open), None);
    }

    #[test]
    fn errors_that_leave_the_context_alone_are_not_sticky() {
        for code in [1, 2, 100, 218, 400, 500, 600, 701, 801, 900, 901, 910] {
            assert!(!is_sticky(code), "{code}");
        }
        for code in [214, 220, 700, 702, 710, 714, 715, 716, 717, 718, 719] {
            assert!(is_sticky(code), "{code}");
        }
    }
}
