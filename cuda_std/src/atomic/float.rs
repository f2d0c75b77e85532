//! rust-cuda's atomic floats. Device scope, and with the prefixes block and system scope.
//!
//! They live wherever the reference points, so the instructions are generic (`atom` without a state space):
//! in hot code use [`super::global`] or shared pointers. On the host they are plain cells to fill before a
//! launch; their operations run on the device only.

use core::cell::UnsafeCell;
use core::sync::atomic::Ordering;

use psa_codegen_macros::gpu_only;

#[cfg(target_arch = "nvptx64")]
use super::atom;
#[cfg(target_arch = "nvptx64")]
use super::{Scope, fence};

macro_rules! atomic_float {
    ($($(#[$doc:meta])* $name:ident($float:ident, $bits:ident, $class:ident, $add:literal, $b:literal, $scope:ident);)*) => {$(
        $(#[$doc])*
        #[repr(transparent)]
        pub struct $name(UnsafeCell<$float>);

        // SAFETY: all access through a shared reference is atomic.
        unsafe impl Sync for $name {}

        impl $name {
            /// The cell with this value.
            pub const fn new(value: $float) -> Self {
                Self(UnsafeCell::new(value))
            }

            /// The value; nobody else has access.
            pub const fn into_inner(self) -> $float {
                self.0.into_inner()
            }

            /// Adds, and returns the value before. The order of several adds is not fixed.
            #[doc = concat!("PTX `atom.SEM.SCOPE.add.", $add, "`.")]
            #[gpu_only]
            #[inline(always)]
            pub fn fetch_add(&self, value: $float, ordering: Ordering) -> $float {
                let old: $float;
                // SAFETY: a valid cell.
                unsafe {
                    atom!(
                        ordering, Scope::$scope, "add", "", $add, "{2}",
                        out($class) old, in(reg64) self.0.get(), in($class) value,
                    );
                }
                old
            }

            /// Subtracts, and returns the value before.
            #[inline(always)]
            pub fn fetch_sub(&self, value: $float, ordering: Ordering) -> $float {
                self.fetch_add(-value, ordering)
            }

            /// Bitwise and of the bit patterns; returns the value before.
            #[gpu_only]
            #[inline(always)]
            pub fn fetch_and(&self, value: $float, ordering: Ordering) -> $float {
                let old: $bits;
                // SAFETY: a valid cell.
                unsafe {
                    atom!(
                        ordering, Scope::$scope, "and", "", $b, "{2}",
                        out($class) old, in(reg64) self.0.get(), in($class) value.to_bits(),
                    );
                }
                $float::from_bits(old)
            }

            /// Bitwise or of the bit patterns; returns the value before.
            #[gpu_only]
            #[inline(always)]
            pub fn fetch_or(&self, value: $float, ordering: Ordering) -> $float {
                let old: $bits;
                // SAFETY: a valid cell.
                unsafe {
                    atom!(
                        ordering, Scope::$scope, "or", "", $b, "{2}",
                        out($class) old, in(reg64) self.0.get(), in($class) value.to_bits(),
                    );
                }
                $float::from_bits(old)
            }

            /// Bitwise exclusive or of the bit patterns; returns the value before.
            #[gpu_only]
            #[inline(always)]
            pub fn fetch_xor(&self, value: $float, ordering: Ordering) -> $float {
                let old: $bits;
                // SAFETY: a valid cell.
                unsafe {
                    atom!(
                        ordering, Scope::$scope, "xor", "", $b, "{2}",
                        out($class) old, in(reg64) self.0.get(), in($class) value.to_bits(),
                    );
                }
                $float::from_bits(old)
            }

            /// Loads the value. Relaxed `ld`, followed by a fence for `Acquire`, between fences for `SeqCst`.
            #[gpu_only]
            #[inline(always)]
            pub fn load(&self, ordering: Ordering) -> $float {
                let value: $float;
                if let Ordering::SeqCst = ordering {
                    fence(ordering, Scope::$scope);
                }
                // SAFETY: a valid cell.
                unsafe {
                    core::arch::asm!(
                        concat!("ld.relaxed.", atomic_float!(@ $scope), ".", $b, " {0}, [{1}];"),
                        out($class) value, in(reg64) self.0.get(), options(nostack, preserves_flags)
                    );
                }
                fence(ordering, Scope::$scope);
                value
            }

            /// Stores the value. Relaxed `st`, after a fence unless `ordering` is `Relaxed`.
            #[gpu_only]
            #[inline(always)]
            pub fn store(&self, value: $float, ordering: Ordering) {
                fence(ordering, Scope::$scope);
                // SAFETY: a valid cell.
                unsafe {
                    core::arch::asm!(
                        concat!("st.relaxed.", atomic_float!(@ $scope), ".", $b, " [{0}], {1};"),
                        in(reg64) self.0.get(), in($class) value, options(nostack, preserves_flags)
                    );
                }
            }
        }
    )*};
    (@ Block) => { "cta" };
    (@ Device) => { "gpu" };
    (@ System) => { "sys" };
}

atomic_float! {
    /// An `f32` that the threads of a device share.
    AtomicF32(f32, u32, reg32, "f32", "b32", Device);
    /// An `f64` that the threads of a device share.
    AtomicF64(f64, u64, reg64, "f64", "b64", Device);
    /// An `f32` that the threads of a block share.
    BlockAtomicF32(f32, u32, reg32, "f32", "b32", Block);
    /// An `f64` that the threads of a block share.
    BlockAtomicF64(f64, u64, reg64, "f64", "b64", Block);
    /// An `f32` that the whole system shares.
    SystemAtomicF32(f32, u32, reg32, "f32", "b32", System);
    /// An `f64` that the whole system shares.
    SystemAtomicF64(f64, u64, reg64, "f64", "b64", System);
}
