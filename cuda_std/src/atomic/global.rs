//! Atomics on global memory: free functions on raw pointers.
//!
//! Each is one `atom.SEM.SCOPE.global.OP.TYPE` and returns the old value (ptxas turns it into a `red` when
//! the result is unused). Ordering and scope must be constants at the call, or all variants are compiled.

use core::sync::atomic::Ordering;

use psa_codegen_macros::gpu_only;

use super::Scope;
#[cfg(target_arch = "nvptx64")]
use super::atom;

macro_rules! rmw {
    ($($(#[$doc:meta])* $name:ident($value:ty, $class:ident) = $op:literal, $ty:literal;)*) => {$(
        $(#[$doc])*
        /// Returns the value before.
        #[doc = concat!("PTX `atom.SEM.SCOPE.global.", $op, ".", $ty, "`.")]
        ///
        /// # Safety
        /// `address` points to global memory, is aligned, and is accessed by others only atomically or across
        /// a synchronisation.
        #[gpu_only]
        #[inline(always)]
        pub unsafe fn $name(address: *mut $value, value: $value, ordering: Ordering, scope: Scope) -> $value {
            let old: $value;
            // SAFETY: the caller's contract.
            unsafe {
                atom!(
                    ordering, scope, $op, ".global", $ty, "{2}",
                    out($class) old, in(reg64) address, in($class) value,
                );
            }
            old
        }
    )*};
}

rmw! {
    /// Adds, wrapping.
    add_u32(u32, reg32) = "add", "u32";
    /// Adds, wrapping.
    add_i32(i32, reg32) = "add", "s32";
    /// Adds, wrapping.
    add_u64(u64, reg64) = "add", "u64";
    /// Adds; the order of several adds is not fixed, and so neither is the sum's rounding.
    add_f32(f32, reg32) = "add", "f32";
    /// Adds; the order of several adds is not fixed, and so neither is the sum's rounding.
    add_f64(f64, reg64) = "add", "f64";
    /// Keeps the smaller one.
    min_u32(u32, reg32) = "min", "u32";
    /// Keeps the smaller one.
    min_i32(i32, reg32) = "min", "s32";
    /// Keeps the smaller one.
    min_u64(u64, reg64) = "min", "u64";
    /// Keeps the larger one.
    max_u32(u32, reg32) = "max", "u32";
    /// Keeps the larger one.
    max_i32(i32, reg32) = "max", "s32";
    /// Keeps the larger one.
    max_u64(u64, reg64) = "max", "u64";
    /// Bitwise and.
    and_u32(u32, reg32) = "and", "b32";
    /// Bitwise and.
    and_u64(u64, reg64) = "and", "b64";
    /// Bitwise or.
    or_u32(u32, reg32) = "or", "b32";
    /// Bitwise or.
    or_u64(u64, reg64) = "or", "b64";
    /// Bitwise exclusive or.
    xor_u32(u32, reg32) = "xor", "b32";
    /// Bitwise exclusive or.
    xor_u64(u64, reg64) = "xor", "b64";
    /// Replaces the value.
    exchange_u32(u32, reg32) = "exch", "b32";
    /// Replaces the value.
    exchange_u64(u64, reg64) = "exch", "b64";
    /// Adds 1; from `value` and above back to 0. The counter of a ring of `value + 1`.
    inc_u32(u32, reg32) = "inc", "u32";
    /// Subtracts 1; from 0 and from above `value` back to `value`.
    dec_u32(u32, reg32) = "dec", "u32";
}

macro_rules! cas {
    ($($name:ident($value:ty, $class:ident, $ty:literal);)*) => {$(
        /// Stores `new` if the value is `expected`. Returns the value before.
        #[doc = concat!("PTX `atom.SEM.SCOPE.global.cas.", $ty, "`.")]
        ///
        /// # Safety
        /// As [`add_u32`].
        #[gpu_only]
        #[inline(always)]
        pub unsafe fn $name(
            address: *mut $value,
            expected: $value,
            new: $value,
            ordering: Ordering,
            scope: Scope,
        ) -> $value {
            let old: $value;
            // SAFETY: the caller's contract.
            unsafe {
                atom!(
                    ordering, scope, "cas", ".global", $ty, "{2}, {3}",
                    out($class) old, in(reg64) address, in($class) expected, in($class) new,
                );
            }
            old
        }
    )*};
}

cas! {
    compare_exchange_u32(u32, reg32, "b32");
    compare_exchange_u64(u64, reg64, "b64");
}

macro_rules! load_store {
    ($($load:ident, $store:ident, $value:ty, $class:ident, $ty:literal;)*) => {$(
        /// Loads the value; `Release` and `AcqRel` mean `Acquire`.
        #[doc = concat!("PTX `ld.relaxed.SCOPE.global.", $ty, "` or `ld.acquire`, for `SeqCst` after `fence.sc`.")]
        ///
        /// # Safety
        /// As [`add_u32`].
        #[gpu_only]
        #[inline(always)]
        pub unsafe fn $load(address: *const $value, ordering: Ordering, scope: Scope) -> $value {
            let value: $value;
            if let Ordering::SeqCst = ordering {
                super::fence(ordering, scope);
            }
            macro_rules! ld {
                ($how:literal) => {
                    core::arch::asm!(
                        concat!("ld.", $how, ".global.", $ty, " {0}, [{1}];"),
                        out($class) value, in(reg64) address, options(nostack, preserves_flags)
                    )
                };
            }
            // SAFETY: the caller's contract.
            unsafe {
                match (ordering, scope) {
                    (Ordering::Relaxed, Scope::Block) => ld!("relaxed.cta"),
                    (Ordering::Relaxed, Scope::Device) => ld!("relaxed.gpu"),
                    (Ordering::Relaxed, Scope::System) => ld!("relaxed.sys"),
                    (_, Scope::Block) => ld!("acquire.cta"),
                    (_, Scope::Device) => ld!("acquire.gpu"),
                    (_, Scope::System) => ld!("acquire.sys"),
                }
            }
            value
        }

        /// Stores the value; `Acquire` and `AcqRel` mean `Release`.
        #[doc = concat!("PTX `st.relaxed.SCOPE.global.", $ty, "` or `st.release`, for `SeqCst` `fence.sc` and `st.relaxed`.")]
        ///
        /// # Safety
        /// As [`add_u32`].
        #[gpu_only]
        #[inline(always)]
        pub unsafe fn $store(address: *mut $value, value: $value, ordering: Ordering, scope: Scope) {
            if let Ordering::SeqCst = ordering {
                super::fence(ordering, scope);
            }
            macro_rules! st {
                ($how:literal) => {
                    core::arch::asm!(
                        concat!("st.", $how, ".global.", $ty, " [{0}], {1};"),
                        in(reg64) address, in($class) value, options(nostack, preserves_flags)
                    )
                };
            }
            // SAFETY: the caller's contract.
            unsafe {
                match (ordering, scope) {
                    (Ordering::Relaxed | Ordering::SeqCst, Scope::Block) => st!("relaxed.cta"),
                    (Ordering::Relaxed | Ordering::SeqCst, Scope::Device) => st!("relaxed.gpu"),
                    (Ordering::Relaxed | Ordering::SeqCst, Scope::System) => st!("relaxed.sys"),
                    (_, Scope::Block) => st!("release.cta"),
                    (_, Scope::Device) => st!("release.gpu"),
                    (_, Scope::System) => st!("release.sys"),
                }
            }
        }
    )*};
}

load_store! {
    load_u32, store_u32, u32, reg32, "b32";
    load_u64, store_u64, u64, reg64, "b64";
    load_f32, store_f32, f32, reg32, "b32";
    load_f64, store_f64, f64, reg64, "b64";
}
