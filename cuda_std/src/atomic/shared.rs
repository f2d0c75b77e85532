//! Atomics on shared memory, as methods of [`SharedPtr`]. Scope is the block, ordering relaxed: put a
//! barrier where other accesses must be ordered with them.

use psa_codegen_macros::gpu_only;

use crate::shared::SharedPtr;

macro_rules! rmw {
    ($($pointee:ty { $($(#[$doc:meta])* $name:ident = $op:literal, $ty:literal;)* })*) => {$(
        impl SharedPtr<$pointee> {$(
            $(#[$doc])*
            /// Returns the value before.
            #[doc = concat!("PTX `atom.relaxed.cta.shared.", $op, ".", $ty, "`.")]
            ///
            /// # Safety
            /// As [`SharedPtr::read`], except that other threads may access the element atomically.
            #[gpu_only]
            #[inline(always)]
            pub unsafe fn $name(self, value: $pointee) -> $pointee {
                let old: $pointee;
                // SAFETY: the caller's contract.
                unsafe {
                    core::arch::asm!(
                        concat!("atom.relaxed.cta.shared.", $op, ".", $ty, " {0}, [{1}], {2};"),
                        out(reg32) old, in(reg32) self.addr(), in(reg32) value,
                        options(nostack, preserves_flags)
                    );
                }
                old
            }
        )*}
    )*};
}

rmw! {
    u32 {
        /// Adds, wrapping.
        atomic_add = "add", "u32";
        /// Keeps the smaller one.
        atomic_min = "min", "u32";
        /// Keeps the larger one.
        atomic_max = "max", "u32";
        /// Bitwise and.
        atomic_and = "and", "b32";
        /// Bitwise or.
        atomic_or = "or", "b32";
        /// Bitwise exclusive or.
        atomic_xor = "xor", "b32";
        /// Replaces the value.
        atomic_exchange = "exch", "b32";
    }
    i32 {
        /// Adds, wrapping.
        atomic_add = "add", "s32";
        /// Keeps the smaller one.
        atomic_min = "min", "s32";
        /// Keeps the larger one.
        atomic_max = "max", "s32";
    }
    f32 {
        /// Adds; the order of several adds is not fixed, and so neither is the sum's rounding.
        atomic_add = "add", "f32";
    }
}
