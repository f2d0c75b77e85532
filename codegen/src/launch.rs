//! A launch ready for a device to execute, and the values in it.
//!
//! Building a [`Launch`] executes nothing. A typed launcher checks it against the kernel's contract when it is
//! built; what a driver executes it checks again, with the limits of its device, so that a launch made from
//! parts meets the same contract. A driver hands each [`ArgValue::as_ptr`] to its launch call; an emulator takes [`ArgValue::bytes`].

use std::ffi::c_void;
use std::ops::Deref;

use crate::contract::{self, ContractError};
use crate::{DeviceLimits, Extent, Infeasible, KernelArg, KernelDescriptor, NoSuchInstance};

/// The value of one kernel argument.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // The scalars are their names.
pub enum ArgValue {
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    /// A device address.
    Ptr(u64),
}

impl ArgValue {
    /// The argument's little-endian bytes, 4 or 8.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::U32(v) => v.to_le_bytes().to_vec(),
            Self::I32(v) => v.to_le_bytes().to_vec(),
            Self::F32(v) => v.to_le_bytes().to_vec(),
            Self::U64(v) | Self::Ptr(v) => v.to_le_bytes().to_vec(),
            Self::I64(v) => v.to_le_bytes().to_vec(),
            Self::F64(v) => v.to_le_bytes().to_vec(),
        }
    }

    /// Where the value lies, as `cuLaunchKernel` wants its parameters. Valid as long as `self` stays in place.
    #[must_use]
    pub fn as_ptr(&self) -> *const c_void {
        match self {
            Self::U32(v) => std::ptr::from_ref(v).cast(),
            Self::I32(v) => std::ptr::from_ref(v).cast(),
            Self::U64(v) | Self::Ptr(v) => std::ptr::from_ref(v).cast(),
            Self::I64(v) => std::ptr::from_ref(v).cast(),
            Self::F32(v) => std::ptr::from_ref(v).cast(),
            Self::F64(v) => std::ptr::from_ref(v).cast(),
        }
    }
}

/// The values of all parameters of a launch, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Arguments {
    values: Vec<ArgValue>,
    extents: Vec<Option<Extent>>,
}

impl Arguments {
    /// None yet, room for `count`.
    #[must_use]
    pub fn with_capacity(count: usize) -> Self {
        Self { values: Vec::with_capacity(count), extents: Vec::with_capacity(count) }
    }

    /// One more.
    #[must_use]
    pub fn with(mut self, argument: impl KernelArg) -> Self {
        let (value, extent) = argument.value();
        self.values.push(value);
        self.extents.push(extent);
        self
    }
}

/// A launch for a device to execute.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    raw: RawLaunch,
}

/// The parts of a launch, for everybody to read and change. [`Launch::from_raw`] makes a launch of them.
#[derive(Clone, Debug, PartialEq)]
pub struct RawLaunch {
    /// The entry.
    pub kernel: &'static KernelDescriptor,
    /// Blocks: x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block: x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory, in bytes.
    pub shared_bytes: u32,
    /// One value per parameter.
    pub args: Vec<ArgValue>,
    /// Of each argument that is a buffer, how long it is. Without it nothing about the buffer's length is checked.
    pub extents: Vec<Option<Extent>>,
}

impl RawLaunch {
    /// The parts of a launch of `kernel` with its own block and shared memory and buffers of unknown length.
    #[must_use]
    pub fn new(kernel: &'static KernelDescriptor, grid: [u32; 3], args: Vec<ArgValue>) -> Self {
        let extents = vec![None; args.len()];
        Self { kernel, grid, block: kernel.block, shared_bytes: kernel.shared_bytes, args, extents }
    }
}

impl Launch {
    /// A launch that keeps the kernel's contract; what typed launchers call.
    ///
    /// # Errors
    /// [`ContractError`].
    pub fn new(
        kernel: &'static KernelDescriptor,
        grid: [u32; 3],
        arguments: Arguments,
    ) -> Result<Self, ContractError> {
        let raw = RawLaunch {
            kernel,
            grid,
            block: kernel.block,
            shared_bytes: kernel.shared_bytes,
            args: arguments.values,
            extents: arguments.extents,
        };
        contract::check(&raw, None)?;
        Ok(Self { raw })
    }

    /// A launch from its parts, unchecked. A driver checks what of the contract can be checked before it executes it.
    ///
    /// # Safety
    /// The addresses are valid for what the kernel does with them, as its own `# Safety` says, when and where
    /// the launch is executed.
    #[must_use]
    pub unsafe fn from_raw(raw: RawLaunch) -> Self {
        Self { raw }
    }

    /// Its parts.
    #[must_use]
    pub fn into_raw(self) -> RawLaunch {
        self.raw
    }

    /// Checks the launch against its kernel's contract and the limits of the device that is to execute it.
    /// Every driver calls this first.
    ///
    /// # Errors
    /// [`ContractError`].
    pub fn check(&self, device: &DeviceLimits) -> Result<(), ContractError> {
        contract::check(&self.raw, Some(device))
    }

    /// The relations of the contract that [`Launch::check`] cannot check, because the length of a buffer or the largest
    /// value in it is not known.
    #[must_use]
    pub fn unchecked(&self) -> Vec<&'static str> {
        contract::unchecked(&self.raw)
    }
}

/// The parts can be read as fields: `launch.kernel`, `launch.grid`.
impl Deref for Launch {
    type Target = RawLaunch;

    fn deref(&self) -> &RawLaunch {
        &self.raw
    }
}

/// Why a launcher gives no launch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// The instance was not compiled.
    #[error(transparent)]
    NoSuchInstance(#[from] NoSuchInstance),
    /// No instance, or not the one asked for, can serve the request.
    #[error(transparent)]
    Infeasible(#[from] Infeasible),
    /// The arguments break the kernel's contract.
    #[error(transparent)]
    Contract(#[from] ContractError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_have_the_size_and_bytes_of_their_type() {
        let bytes = |argument: (ArgValue, Option<Extent>)| argument.0.bytes();
        assert_eq!(bytes(1u32.value()), [1, 0, 0, 0]);
        assert_eq!(bytes((-1i64).value()), [255; 8]);
        assert_eq!(bytes(1.0f32.value()), 1.0f32.to_le_bytes());
        assert_eq!(ArgValue::Ptr(0x1_0000_0002).bytes(), [2, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn as_ptr_points_at_the_value_and_not_at_the_enum() {
        let value = ArgValue::F64(2.5);
        // SAFETY: `value` lives, and holds an f64.
        assert_eq!(unsafe { value.as_ptr().cast::<f64>().read() }, 2.5);
        let value = ArgValue::U32(7);
        // SAFETY: `value` lives, and holds a u32.
        assert_eq!(unsafe { value.as_ptr().cast::<u32>().read() }, 7);
    }
}
