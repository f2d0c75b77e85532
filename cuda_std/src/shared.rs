//! Shared memory, through 32-bit addresses.
//!
//! `shared_array![T; N]` (static) and [`dynamic_shared`] (the launch's dynamic part, 1024-byte aligned)
//! give a [`SharedPtr`]: an address inside the `.shared` state space whose accesses are `ld.shared` and
//! `st.shared`. An ordinary `*mut T` to shared memory is a generic pointer, whose accesses stay generic;
//! [`dynamic_shared_mem`] and [`SharedPtr::as_generic`] are there for rust-cuda's API only.
//! A `static` with a link section is no way to shared memory: it silently becomes global memory.

use core::marker::PhantomData;

use psa_codegen_macros::gpu_only;

pub use psa_codegen_macros::shared_array;

// The name is part of no API. Every kernel that uses dynamic shared memory sees the same symbol.
#[cfg(target_arch = "nvptx64")]
core::arch::global_asm!(".extern .shared .align 1024 .b8 __dyn_smem[];");

/// What `shared_array!` does on the host.
#[cfg(not(target_arch = "nvptx64"))]
#[doc(hidden)]
pub fn host_has_no_shared_memory() -> u32 {
    panic!("`shared_array!` runs on the device only")
}

/// The start of the launch's dynamic shared memory, aligned to 1024 bytes. PTX `mov.u32 d, __dyn_smem`.
///
/// The size is the launch's (`#[kernel(dynamic_shared = ..)]`, [`crate::mem::dynamic_smem_size`]).
#[gpu_only]
#[inline(always)]
pub fn dynamic_shared<T>() -> SharedPtr<T> {
    let address: u32;
    // SAFETY: reads the address of the symbol declared above.
    unsafe {
        core::arch::asm!("mov.u32 {0}, __dyn_smem;", out(reg32) address, options(pure, nomem, nostack, preserves_flags));
    }
    SharedPtr::from_addr(address)
}

/// The start of the launch's dynamic shared memory as a generic pointer, as in rust-cuda.
///
/// Accesses through it are generic (slower, and the lint reports them): prefer [`dynamic_shared`].
#[inline(always)]
pub fn dynamic_shared_mem<T>() -> *mut T {
    dynamic_shared::<T>().as_generic()
}

/// The address of a `T` in the block's shared memory.
///
/// Plain arithmetic on 32 bits; nothing is checked. Reads and writes are as unordered as those through
/// a raw pointer: put a barrier between one thread's write and another's read.
#[repr(transparent)]
pub struct SharedPtr<T> {
    address: u32,
    element: PhantomData<*mut T>,
}

impl<T> Clone for SharedPtr<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedPtr<T> {}

impl<T> SharedPtr<T> {
    /// The pointer to a `.shared` address.
    #[inline(always)]
    pub const fn from_addr(address: u32) -> Self {
        Self { address, element: PhantomData }
    }

    /// The `.shared` address, in bytes.
    #[inline(always)]
    pub const fn addr(self) -> u32 {
        self.address
    }

    /// The same address for elements of another type.
    #[inline(always)]
    pub const fn cast<U>(self) -> SharedPtr<U> {
        SharedPtr::from_addr(self.address)
    }

    /// `count` elements further; wraps.
    #[inline(always)]
    #[allow(clippy::should_implement_trait)]
    pub const fn add(self, count: u32) -> Self {
        self.byte_add(count.wrapping_mul(size_of::<T>() as u32))
    }

    /// `bytes` further; wraps.
    #[inline(always)]
    pub const fn byte_add(self, bytes: u32) -> Self {
        Self::from_addr(self.address.wrapping_add(bytes))
    }

    /// The address with `bits` flipped: a step in an XOR swizzle.
    #[inline(always)]
    pub const fn byte_xor(self, bits: u32) -> Self {
        Self::from_addr(self.address ^ bits)
    }

    /// A generic pointer to the element. Accesses through it stay generic. PTX `cvta.shared.u64`.
    #[gpu_only]
    #[inline(always)]
    pub fn as_generic(self) -> *mut T {
        let address: u64;
        // SAFETY: arithmetic on an address.
        unsafe {
            core::arch::asm!(
                "cvta.shared.u64 {0}, {1};",
                out(reg64) address,
                in(reg64) self.address as u64,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        address as *mut T
    }
}

/// A value that one shared access moves: scalars of 1 to 8 bytes, and vectors of 32-bit words.
pub trait SharedValue: Copy {
    /// Reads the value at `address`.
    ///
    /// # Safety
    /// As [`SharedPtr::read`].
    #[doc(hidden)]
    unsafe fn load(address: u32) -> Self;

    /// Writes the value at `address`.
    ///
    /// # Safety
    /// As [`SharedPtr::write`].
    #[doc(hidden)]
    unsafe fn store(self, address: u32);
}

impl<T: SharedValue> SharedPtr<T> {
    /// Reads the element. PTX `ld.shared{.v2,.v4}.bN`.
    ///
    /// # Safety
    /// The address is aligned to the access (16 bytes for four words) and inside the block's shared
    /// memory; no other thread writes it without a barrier in between.
    #[inline(always)]
    pub unsafe fn read(self) -> T {
        // SAFETY: the caller's contract.
        unsafe { T::load(self.address) }
    }

    /// Writes the element. PTX `st.shared{.v2,.v4}.bN`.
    ///
    /// # Safety
    /// As [`SharedPtr::read`]; no other thread reads it either.
    #[inline(always)]
    pub unsafe fn write(self, value: T) {
        // SAFETY: the caller's contract.
        unsafe { value.store(self.address) }
    }
}

macro_rules! scalar {
    ($($ty:ty, $suffix:literal, $class:ident, $raw:ty, |$v:ident| $to:expr, |$r:ident| $from:expr;)*) => {$(
        impl SharedValue for $ty {
            #[gpu_only]
            #[inline(always)]
            unsafe fn load(address: u32) -> Self {
                let $r: $raw;
                // SAFETY: the caller's contract. `readonly` without `nomem`: stays behind barriers.
                unsafe {
                    core::arch::asm!(
                        concat!("ld.shared.", $suffix, " {0}, [{1}];"),
                        out($class) $r,
                        in(reg32) address,
                        options(pure, readonly, nostack, preserves_flags)
                    );
                }
                $from
            }

            #[gpu_only]
            #[inline(always)]
            unsafe fn store(self, address: u32) {
                let $v = self;
                let raw: $raw = $to;
                // SAFETY: the caller's contract.
                unsafe {
                    core::arch::asm!(
                        concat!("st.shared.", $suffix, " [{0}], {1};"),
                        in(reg32) address,
                        in($class) raw,
                        options(nostack, preserves_flags)
                    );
                }
            }
        }
    )*};
}

scalar! {
    u8, "b8", reg16, u16, |v| v as u16, |r| r as u8;
    i8, "b8", reg16, u16, |v| v as u8 as u16, |r| r as u8 as i8;
    u16, "b16", reg16, u16, |v| v, |r| r;
    i16, "b16", reg16, u16, |v| v as u16, |r| r as i16;
    crate::half::bf16, "b16", reg16, u16, |v| v.to_bits(), |r| crate::half::bf16::from_bits(r);
    crate::half::f16, "b16", reg16, u16, |v| v.to_bits(), |r| crate::half::f16::from_bits(r);
    u32, "b32", reg32, u32, |v| v, |r| r;
    i32, "b32", reg32, u32, |v| v as u32, |r| r as i32;
    f32, "b32", reg32, f32, |v| v, |r| r;
    u64, "b64", reg64, u64, |v| v, |r| r;
    i64, "b64", reg64, u64, |v| v as u64, |r| r as i64;
    f64, "b64", reg64, f64, |v| v, |r| r;
}

macro_rules! vector {
    ($($ty:ty;)*) => {$(
        impl SharedValue for [$ty; 2] {
            #[gpu_only]
            #[inline(always)]
            unsafe fn load(address: u32) -> Self {
                let (a, b): ($ty, $ty);
                // SAFETY: the caller's contract.
                unsafe {
                    core::arch::asm!(
                        "ld.shared.v2.b32 {{{0}, {1}}}, [{2}];",
                        out(reg32) a, out(reg32) b,
                        in(reg32) address,
                        options(pure, readonly, nostack, preserves_flags)
                    );
                }
                [a, b]
            }

            #[gpu_only]
            #[inline(always)]
            unsafe fn store(self, address: u32) {
                // SAFETY: the caller's contract.
                unsafe {
                    core::arch::asm!(
                        "st.shared.v2.b32 [{0}], {{{1}, {2}}};",
                        in(reg32) address,
                        in(reg32) self[0], in(reg32) self[1],
                        options(nostack, preserves_flags)
                    );
                }
            }
        }

        impl SharedValue for [$ty; 4] {
            #[gpu_only]
            #[inline(always)]
            unsafe fn load(address: u32) -> Self {
                let (a, b, c, d): ($ty, $ty, $ty, $ty);
                // SAFETY: the caller's contract.
                unsafe {
                    core::arch::asm!(
                        "ld.shared.v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}];",
                        out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d,
                        in(reg32) address,
                        options(pure, readonly, nostack, preserves_flags)
                    );
                }
                [a, b, c, d]
            }

            #[gpu_only]
            #[inline(always)]
            unsafe fn store(self, address: u32) {
                // SAFETY: the caller's contract.
                unsafe {
                    core::arch::asm!(
                        "st.shared.v4.b32 [{0}], {{{1}, {2}, {3}, {4}}};",
                        in(reg32) address,
                        in(reg32) self[0], in(reg32) self[1], in(reg32) self[2], in(reg32) self[3],
                        options(nostack, preserves_flags)
                    );
                }
            }
        }

        impl SharedPtr<$ty> {
            /// Reads two neighbouring words; 8-byte aligned. PTX `ld.shared.v2.b32`.
            ///
            /// # Safety
            /// As [`SharedPtr::read`].
            #[inline(always)]
            pub unsafe fn read_v2(self) -> [$ty; 2] {
                // SAFETY: the caller's contract.
                unsafe { self.cast::<[$ty; 2]>().read() }
            }

            /// Reads four neighbouring words; 16-byte aligned. PTX `ld.shared.v4.b32`.
            ///
            /// # Safety
            /// As [`SharedPtr::read`].
            #[inline(always)]
            pub unsafe fn read_v4(self) -> [$ty; 4] {
                // SAFETY: the caller's contract.
                unsafe { self.cast::<[$ty; 4]>().read() }
            }

            /// Writes two neighbouring words; 8-byte aligned. PTX `st.shared.v2.b32`.
            ///
            /// # Safety
            /// As [`SharedPtr::write`].
            #[inline(always)]
            pub unsafe fn write_v2(self, values: [$ty; 2]) {
                // SAFETY: the caller's contract.
                unsafe { self.cast::<[$ty; 2]>().write(values) }
            }

            /// Writes four neighbouring words; 16-byte aligned. PTX `st.shared.v4.b32`.
            ///
            /// # Safety
            /// As [`SharedPtr::write`].
            #[inline(always)]
            pub unsafe fn write_v4(self, values: [$ty; 4]) {
                // SAFETY: the caller's contract.
                unsafe { self.cast::<[$ty; 4]>().write(values) }
            }
        }
    )*};
}

vector! {
    u32;
    i32;
    f32;
}
