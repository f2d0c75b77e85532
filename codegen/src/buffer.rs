//! Buffers as kernels take them: a piece of device memory, by element type and by what a kernel does with it.
//!
//! [`Region`] is a piece of memory that somebody vouched for; from it come [`In`] (`*const T` there),
//! [`Out`] (a `*mut T` that the kernel only writes) and [`InOut`] (any other `*mut T`). Each knows its length, so that a
//! launch can be checked against the kernel's contract. Nothing here allocates or frees.

use std::fmt;
use std::marker::PhantomData;

use crate::ArgValue;

/// A piece of device memory.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Region {
    address: u64,
    bytes: u64,
    largest: Option<u64>,
}

impl Region {
    /// No memory: address 0, length 0.
    pub const EMPTY: Self = Self { address: 0, bytes: 0, largest: None };

    /// `bytes` bytes from `address` on.
    ///
    /// # Safety
    /// They are memory of the device that launches with this region run on, stay so until those launches are
    /// over, and nothing else touches them meanwhile except as the stream's order allows.
    #[must_use]
    pub const unsafe fn new(address: u64, bytes: u64) -> Self {
        Self { address, bytes, largest: None }
    }

    /// Says that no element in it is larger than `largest`: contracts with `x.max()` are checked with it, and
    /// are not checked without.
    #[must_use]
    pub const fn with_largest(self, largest: u64) -> Self {
        Self { largest: Some(largest), ..self }
    }

    /// The device address.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.address
    }

    /// Its length in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// The part from byte `offset` on, of `bytes` bytes; `None` where the region has less.
    #[must_use]
    pub const fn part(self, offset: u64, bytes: u64) -> Option<Self> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => {
                // No overflow: a part of a region ends where the region ends or before.
                Some(Self { address: self.address + offset, bytes, largest: self.largest })
            }
            _ => None,
        }
    }

    /// For a parameter `*const T`. A rest shorter than an element does not count.
    #[must_use]
    pub const fn input<T>(self) -> In<T> {
        In { region: self, element: PhantomData }
    }

    /// For a parameter `*mut T` that the kernel only writes.
    #[must_use]
    pub const fn output<T>(self) -> Out<T> {
        Out { region: self, element: PhantomData }
    }

    /// For a parameter `*mut T` that the kernel reads and writes.
    #[must_use]
    pub const fn in_out<T>(self) -> InOut<T> {
        InOut { region: self, element: PhantomData }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x}", self.bytes, self.address)
    }
}

macro_rules! buffer {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[repr(transparent)]
        pub struct $name<T> {
            region: Region,
            element: PhantomData<fn() -> T>,
        }

        impl<T> $name<T> {
            /// `len` elements from `address` on.
            ///
            /// # Safety
            /// As [`Region::new`].
            #[must_use]
            pub const unsafe fn from_raw(address: u64, len: u64) -> Self {
                // Saturated: a length that does not fit in an address space is refused at the launch.
                let bytes = len.saturating_mul(size_of::<T>() as u64);
                // SAFETY: the caller's promise.
                Self { region: unsafe { Region::new(address, bytes) }, element: PhantomData }
            }

            /// The memory.
            #[must_use]
            pub const fn region(self) -> Region {
                self.region
            }

            /// Elements.
            #[must_use]
            pub const fn len(self) -> u64 {
                self.region.bytes / size_of::<T>() as u64
            }

            /// Whether it has no element.
            #[must_use]
            pub const fn is_empty(self) -> bool {
                self.len() == 0
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
                self.region == other.region
            }
        }

        impl<T> Eq for $name<T> {}

        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:?})"), self.region)
            }
        }

        impl<T> KernelArg for $name<T> {
            fn value(self) -> (ArgValue, Option<Extent>) {
                let extent = Extent { len: self.len(), bytes: self.region.bytes, largest: self.region.largest };
                (ArgValue::Ptr(self.region.address), Some(extent))
            }
        }
    };
}

buffer! {
    /// `T`s that a kernel reads: for a parameter `*const T`.
    In
}

buffer! {
    /// `T`s that a kernel writes and does not read: for a parameter `*mut T` listed in the kernel's `out(..)`.
    Out
}

buffer! {
    /// `T`s that a kernel may read and write: for any other parameter `*mut T`.
    InOut
}

impl<T> InOut<T> {
    /// The same memory for a kernel that only reads it.
    #[must_use]
    pub const fn as_in(self) -> In<T> {
        self.region.input()
    }

    /// The same memory for a kernel that only writes it.
    #[must_use]
    pub const fn as_out(self) -> Out<T> {
        self.region.output()
    }
}

impl<T> From<InOut<T>> for In<T> {
    fn from(buffer: InOut<T>) -> Self {
        buffer.as_in()
    }
}

impl<T> From<InOut<T>> for Out<T> {
    fn from(buffer: InOut<T>) -> Self {
        buffer.as_out()
    }
}

/// What the buffers of kernels hold: any plain type.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an element of a kernel's buffer, because it is not Copy: a device gets bytes, not \
               ownership. Derive Copy for a plain `#[repr(C)]` struct; of what owns memory (Vec, Box, String) upload the \
               elements and pass `*const T` of them",
    label = "not Copy"
)]
pub trait BufferElement {}

#[diagnostic::do_not_recommend]
impl<T: Copy + 'static> BufferElement for T {}

/// What a launch knows of a buffer argument beside its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Elements.
    pub len: u64,
    /// Bytes.
    pub bytes: u64,
    /// No element is larger, if the host knows.
    pub largest: Option<u64>,
}

/// A value that can be passed to a kernel.
pub trait KernelArg {
    /// The value without its type, and the extent of a buffer.
    fn value(self) -> (ArgValue, Option<Extent>);
}

macro_rules! scalar_arg {
    ($($ty:ty, $variant:ident;)*) => {$(
        impl KernelArg for $ty {
            fn value(self) -> (ArgValue, Option<Extent>) {
                (ArgValue::$variant(self), None)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn region(bytes: u64) -> Region {
        // SAFETY: nothing is launched with it.
        unsafe { Region::new(0x1000, bytes) }
    }

    #[test]
    fn lengths_count_whole_elements() {
        assert_eq!(region(10).input::<half::bf16>().len(), 5);
        assert_eq!(region(10).in_out::<u64>().len(), 1);
        assert!(Region::EMPTY.output::<f32>().is_empty());
        let (value, extent) = region(10).with_largest(7).input::<u32>().value();
        assert_eq!(value, ArgValue::Ptr(0x1000));
        assert_eq!(extent, Some(Extent { len: 2, bytes: 10, largest: Some(7) }));
    }

    #[test]
    fn a_part_ends_within_its_region() {
        let whole = region(64);
        assert_eq!(whole.part(16, 48).map(|p| (p.address(), p.bytes())), Some((0x1010, 48)));
        assert_eq!(whole.part(16, 49), None);
        assert_eq!(whole.part(u64::MAX, 2), None);
        assert_eq!(whole.part(64, 0).map(Region::bytes), Some(0));
    }

    #[test]
    fn a_length_beyond_the_address_space_does_not_wrap() {
        // SAFETY: nothing is launched with it.
        let huge = unsafe { In::<f64>::from_raw(8, u64::MAX) };
        assert_eq!(huge.region().bytes(), u64::MAX);
    }
}
