//! Atomics with the ordering and scope they say.
//!
//! `core`'s atomics lose their ordering on this back end (a `fetch_add(AcqRel)` becomes a relaxed atom), so
//! everything here is asm. [`global`] holds free functions on pointers to global memory, one instruction
//! each (`atom.add.acq_rel.gpu.global.u32`); [`crate::shared::SharedPtr`] has the same for shared memory;
//! the float types follow rust-cuda and work through generic addresses, which are slower.
//! `SeqCst` is `fence.sc` followed by an acquire operation, as in the PTX memory model's mapping.

mod float;
pub mod global;
mod shared;

pub use core::sync::atomic::Ordering;
pub use float::{AtomicF32, AtomicF64, BlockAtomicF32, BlockAtomicF64, SystemAtomicF32, SystemAtomicF64};

use psa_codegen_macros::gpu_only;

/// The threads an atomic operation is atomic, and its ordering visible, for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The block (`.cta`).
    Block,
    /// The device (`.gpu`).
    Device,
    /// The device, the host and other devices (`.sys`).
    System,
}

/// A fence of `ordering` among the threads of `scope`. PTX `fence.acq_rel.SCOPE`, for `SeqCst` `fence.sc.SCOPE`;
/// nothing for `Relaxed`.
#[gpu_only]
#[inline(always)]
pub fn fence(ordering: Ordering, scope: Scope) {
    // SAFETY: a fence has no requirement.
    unsafe {
        match (ordering, scope) {
            (Ordering::Relaxed, _) => {}
            (Ordering::SeqCst, Scope::Block) => {
                core::arch::asm!("fence.sc.cta;", options(nostack, preserves_flags))
            }
            (Ordering::SeqCst, Scope::Device) => {
                core::arch::asm!("fence.sc.gpu;", options(nostack, preserves_flags))
            }
            (Ordering::SeqCst, Scope::System) => {
                core::arch::asm!("fence.sc.sys;", options(nostack, preserves_flags))
            }
            (_, Scope::Block) => core::arch::asm!("fence.acq_rel.cta;", options(nostack, preserves_flags)),
            (_, Scope::Device) => core::arch::asm!("fence.acq_rel.gpu;", options(nostack, preserves_flags)),
            (_, Scope::System) => core::arch::asm!("fence.acq_rel.sys;", options(nostack, preserves_flags)),
        }
    }
}

/// One read-modify-write instruction per (ordering, scope), chosen at compile time when they are constants.
/// `$space` is `".global"`, `".shared"` or `""`.
#[cfg(target_arch = "nvptx64")]
macro_rules! atom {
    ($ordering:expr, $scope:expr, $op:literal, $space:literal, $ty:literal, $arguments:literal, $($operands:tt)*) => {{
        use $crate::atomic::{Ordering, Scope, fence};
        let (ordering, scope) = ($ordering, $scope);
        let ordering = if let Ordering::SeqCst = ordering {
            fence(Ordering::SeqCst, scope);
            Ordering::Acquire
        } else {
            ordering
        };
        match (ordering, scope) {
            (Ordering::Relaxed, Scope::Block) => atom!(@ "relaxed.cta", $op, $space, $ty, $arguments, $($operands)*),
            (Ordering::Relaxed, Scope::Device) => atom!(@ "relaxed.gpu", $op, $space, $ty, $arguments, $($operands)*),
            (Ordering::Relaxed, Scope::System) => atom!(@ "relaxed.sys", $op, $space, $ty, $arguments, $($operands)*),
            (Ordering::Acquire, Scope::Block) => atom!(@ "acquire.cta", $op, $space, $ty, $arguments, $($operands)*),
            (Ordering::Acquire, Scope::Device) => atom!(@ "acquire.gpu", $op, $space, $ty, $arguments, $($operands)*),
            (Ordering::Acquire, Scope::System) => atom!(@ "acquire.sys", $op, $space, $ty, $arguments, $($operands)*),
            (Ordering::Release, Scope::Block) => atom!(@ "release.cta", $op, $space, $ty, $arguments, $($operands)*),
            (Ordering::Release, Scope::Device) => atom!(@ "release.gpu", $op, $space, $ty, $arguments, $($operands)*),
            (Ordering::Release, Scope::System) => atom!(@ "release.sys", $op, $space, $ty, $arguments, $($operands)*),
            (_, Scope::Block) => atom!(@ "acq_rel.cta", $op, $space, $ty, $arguments, $($operands)*),
            (_, Scope::Device) => atom!(@ "acq_rel.gpu", $op, $space, $ty, $arguments, $($operands)*),
            (_, Scope::System) => atom!(@ "acq_rel.sys", $op, $space, $ty, $arguments, $($operands)*),
        }
    }};
    (@ $how:literal, $op:literal, $space:literal, $ty:literal, $arguments:literal, $($operands:tt)*) => {
        core::arch::asm!(
            concat!("atom.", $how, $space, ".", $op, ".", $ty, " {0}, [{1}], ", $arguments, ";"),
            $($operands)*
            options(nostack, preserves_flags)
        )
    };
}

#[cfg(target_arch = "nvptx64")]
use atom;
