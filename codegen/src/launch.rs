//! Typed device addresses, argument values, and a launch ready for a device to execute.
//!
//! Addresses are numbers: this module neither allocates nor frees, and building a `Launch` executes
//! nothing. A driver hands each [`ArgValue::as_ptr`] to its launch call; an emulator takes [`ArgValue::bytes`].

use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;

use crate::KernelDescriptor;

macro_rules! device_pointer {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[repr(transparent)]
        pub struct $name<T> {
            address: u64,
            element: PhantomData<fn() -> T>,
        }

        impl<T> $name<T> {
            /// The null address.
            pub const NULL: Self = Self::from_raw(0);

            /// The pointer to a device address.
            #[must_use]
            pub const fn from_raw(address: u64) -> Self {
                Self { address, element: PhantomData }
            }

            /// The device address.
            #[must_use]
            pub const fn addr(self) -> u64 {
                self.address
            }

            /// `count` elements further; wraps.
            #[must_use]
            #[allow(clippy::should_implement_trait)]
            pub const fn add(self, count: u64) -> Self {
                Self::from_raw(self.address.wrapping_add(count.wrapping_mul(size_of::<T>() as u64)))
            }

            /// `bytes` further; wraps.
            #[must_use]
            pub const fn byte_add(self, bytes: u64) -> Self {
                Self::from_raw(self.address.wrapping_add(bytes))
            }

            /// The same address for elements of another type.
            #[must_use]
            pub const fn cast<U>(self) -> $name<U> {
                $name::from_raw(self.address)
            }
        }

        impl<T> Clone for $name<T> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<T> Copy for $name<T> {}

        impl<T> PartialEq for $name<T> {
            fn eq(&self, other: &Self) -> bool {
                self.address == other.address
            }
        }

        impl<T> Eq for $name<T> {}

        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.address)
            }
        }

        impl<T> KernelArg for $name<T> {
            fn value(self) -> ArgValue {
                ArgValue::Ptr(self.address)
            }
        }
    };
}

device_pointer! {
    /// The address of `T`s in device memory that a kernel reads (`*const T` there).
    DevicePtr
}

device_pointer! {
    /// The address of `T`s in device memory that a kernel writes (`*mut T` there).
    DevicePtrMut
}

impl<T> DevicePtrMut<T> {
    /// The same address for reading.
    #[must_use]
    pub const fn as_const(self) -> DevicePtr<T> {
        DevicePtr::from_raw(self.addr())
    }
}

impl<T> From<DevicePtrMut<T>> for DevicePtr<T> {
    fn from(pointer: DevicePtrMut<T>) -> Self {
        pointer.as_const()
    }
}

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

/// A value that can be passed to a kernel.
pub trait KernelArg {
    /// The value, without its type.
    fn value(self) -> ArgValue;
}

macro_rules! scalar_arg {
    ($($ty:ty, $variant:ident;)*) => {$(
        impl KernelArg for $ty {
            fn value(self) -> ArgValue {
                ArgValue::$variant(self)
            }
        }
    )*};
}

scalar_arg! {
    u32, U32;
    i32, I32;
    u64, U64;
    i64, I64;
    f32, F32;
    f64, F64;
}

/// A launch for a device to execute. Executing it is the unsafe part: the addresses in it must be valid there.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
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
}

impl Launch {
    /// The launch of `kernel` with its own block size and shared memory.
    #[must_use]
    pub fn new(kernel: &'static KernelDescriptor, grid: [u32; 3], args: Vec<ArgValue>) -> Self {
        Self { kernel, grid, block: kernel.block, shared_bytes: kernel.shared_bytes, args }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_count_elements_and_bytes() {
        let p = DevicePtrMut::<half::bf16>::from_raw(0x1000);
        assert_eq!(p.add(3).addr(), 0x1006);
        assert_eq!(p.byte_add(3).addr(), 0x1003);
        assert_eq!(p.cast::<u64>().add(1).as_const().addr(), 0x1008);
    }

    #[test]
    fn arguments_have_the_size_and_bytes_of_their_type() {
        assert_eq!(1u32.value().bytes(), [1, 0, 0, 0]);
        assert_eq!((-1i64).value().bytes(), [255; 8]);
        assert_eq!(1.0f32.value().bytes(), 1.0f32.to_le_bytes());
        assert_eq!(DevicePtr::<f32>::from_raw(0x1_0000_0002).value().bytes(), [2, 0, 0, 0, 1, 0, 0, 0]);
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
