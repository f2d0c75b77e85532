//! Asynchronous copies from global to shared memory, 16 bytes a thread.
//!
//! A copy is visible to the thread that issued it after `cp_async_wait`, and to others after a barrier
//! behind that. Addresses are 16-byte aligned. The copies go through L2 only (`.cg`), with a hint to
//! fetch 128 bytes.

use psa_codegen_macros::gpu_only;

use crate::shared::SharedPtr;

/// Starts copying 16 bytes. PTX `cp.async.cg.shared.global.L2::128B [d], [s], 16`, sm_80, ISA 7.4.
///
/// # Safety
/// `source` is a global address with 16 readable bytes, both addresses are 16-byte aligned, and nobody
/// touches the destination before the wait.
#[gpu_only]
#[inline(always)]
pub unsafe fn cp_async_16<T, U>(destination: SharedPtr<T>, source: *const U) {
    // SAFETY: the caller's contract.
    unsafe {
        core::arch::asm!(
            "cp.async.cg.shared.global.L2::128B [{0}], [{1}], 16;",
            in(reg32) destination.addr(),
            in(reg64) source,
            options(nostack, preserves_flags)
        );
    }
}

/// Starts copying `bytes` (0 to 16) and fills the rest of the 16 with zero; `source` is not read when
/// `bytes` is 0, but must be an address all the same.
/// PTX `cp.async.cg.shared.global.L2::128B [d], [s], 16, bytes`, sm_80, ISA 7.4.
///
/// # Safety
/// As [`cp_async_16`], for `bytes` bytes.
#[gpu_only]
#[inline(always)]
pub unsafe fn cp_async_16_zfill<T, U>(destination: SharedPtr<T>, source: *const U, bytes: u32) {
    // SAFETY: the caller's contract.
    unsafe {
        core::arch::asm!(
            "cp.async.cg.shared.global.L2::128B [{0}], [{1}], 16, {2};",
            in(reg32) destination.addr(),
            in(reg64) source,
            in(reg32) bytes,
            options(nostack, preserves_flags)
        );
    }
}

/// Closes the group of copies this thread has started. PTX `cp.async.commit_group`, sm_80.
#[gpu_only]
#[inline(always)]
pub fn cp_async_commit() {
    // SAFETY: no operands.
    unsafe { core::arch::asm!("cp.async.commit_group;", options(nostack, preserves_flags)) }
}

/// Waits until at most the `PENDING` latest groups of this thread are in flight.
/// PTX `cp.async.wait_group PENDING`, sm_80.
#[gpu_only]
#[inline(always)]
pub fn cp_async_wait<const PENDING: usize>() {
    // SAFETY: a wait; not `nomem`, so that reads of the copied bytes stay behind it.
    unsafe { core::arch::asm!("cp.async.wait_group {};", const PENDING, options(nostack, preserves_flags)) }
}

/// Waits for all copies of this thread. PTX `cp.async.wait_all`, sm_80.
#[gpu_only]
#[inline(always)]
pub fn cp_async_wait_all() {
    // SAFETY: as in `cp_async_wait`.
    unsafe { core::arch::asm!("cp.async.wait_all;", options(nostack, preserves_flags)) }
}
