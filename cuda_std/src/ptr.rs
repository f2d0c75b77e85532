//! Generic addresses and the state spaces behind them.
//!
//! Kernels should not need this: an access through a generic pointer that came from shared memory is
//! a generic access, and ptxas does not recover it. Use [`crate::shared::SharedPtr`].

use psa_codegen_macros::gpu_only;

/// A PTX state space that a generic address can point into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSpace {
    /// Device memory.
    Global,
    /// The block's shared memory.
    Shared,
    /// Constant memory.
    Constant,
    /// The thread's local memory.
    Local,
}

#[cfg(target_arch = "nvptx64")]
macro_rules! per_space {
    ($space:expr, $before:literal, $after:literal, $($operands:tt)*) => {
        // SAFETY: arithmetic on an address.
        unsafe {
            match $space {
                AddressSpace::Global => core::arch::asm!(concat!($before, "global", $after), $($operands)*),
                AddressSpace::Shared => core::arch::asm!(concat!($before, "shared", $after), $($operands)*),
                AddressSpace::Constant => core::arch::asm!(concat!($before, "const", $after), $($operands)*),
                AddressSpace::Local => core::arch::asm!(concat!($before, "local", $after), $($operands)*),
            }
        }
    };
}

/// Whether the generic address `ptr` points into `space`. PTX `isspacep`.
///
/// # Safety
/// None today; unsafe as in rust-cuda.
#[gpu_only]
#[inline(always)]
pub unsafe fn is_in_address_space<T>(ptr: *const T, space: AddressSpace) -> bool {
    let is: u32;
    // The predicate lives and dies in one braced block: inlining it twice declares it in two scopes.
    per_space!(
        space,
        "{{ .reg .pred p; isspacep.",
        " p, {1}; selp.u32 {0}, 1, 0, p; }}",
        out(reg32) is,
        in(reg64) ptr as u64,
        options(pure, nomem, nostack, preserves_flags)
    );
    is != 0
}

/// The address of a generic pointer inside `space`. PTX `cvta.to`.
///
/// # Safety
/// `ptr` points into `space`; the result is not a valid Rust pointer and only for asm that names the space.
#[gpu_only]
#[inline(always)]
pub unsafe fn convert_generic_to_specific_address_space<T>(ptr: *const T, space: AddressSpace) -> *const T {
    let address: u64;
    per_space!(
        space,
        "cvta.to.",
        ".u64 {0}, {1};",
        out(reg64) address,
        in(reg64) ptr as u64,
        options(pure, nomem, nostack, preserves_flags)
    );
    address as *const T
}

/// The generic pointer for an address inside `space`. PTX `cvta`.
///
/// # Safety
/// `ptr` is an address inside `space`.
#[gpu_only]
#[inline(always)]
pub unsafe fn convert_specific_address_space_to_generic<T>(ptr: *const T, space: AddressSpace) -> *const T {
    let address: u64;
    per_space!(
        space,
        "cvta.",
        ".u64 {0}, {1};",
        out(reg64) address,
        in(reg64) ptr as u64,
        options(pure, nomem, nostack, preserves_flags)
    );
    address as *const T
}
