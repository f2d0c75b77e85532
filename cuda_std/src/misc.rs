//! Traps, breakpoints, counters, clocks.

use psa_codegen_macros::gpu_only;

/// Stops the launch with an error. PTX `trap`.
#[gpu_only]
#[inline(always)]
pub fn trap() -> ! {
    // SAFETY: does not return.
    unsafe { core::arch::asm!("trap;", options(noreturn, nostack)) }
}

/// Ends this thread. PTX `exit`.
///
/// # Safety
/// No other thread may wait for this one at a barrier.
#[gpu_only]
#[inline(always)]
pub unsafe fn exit() -> ! {
    // SAFETY: does not return.
    unsafe { core::arch::asm!("exit;", options(noreturn, nostack)) }
}

/// Suspends execution for a debugger. PTX `brkpt`.
#[gpu_only]
#[inline(always)]
pub fn breakpoint() {
    // SAFETY: no operands.
    unsafe { core::arch::asm!("brkpt;", options(nostack)) }
}

/// Triggers performance monitor event `EVENT` (0 to 15). PTX `pmevent`.
///
/// rust-cuda takes the number as an argument; the instruction wants an immediate, hence the const.
#[gpu_only]
#[inline(always)]
pub fn profiler_counter<const EVENT: u32>() {
    const { assert!(EVENT < 16, "performance monitor events are 0 to 15") };
    // SAFETY: no operands.
    unsafe { core::arch::asm!("pmevent {};", const EVENT, options(nostack, nomem, preserves_flags)) }
}

/// The multiprocessor's cycle counter. PTX `mov.u64 d, %clock64`.
#[gpu_only]
#[inline(always)]
pub fn clock() -> u64 {
    let ticks: u64;
    // SAFETY: reads a register; volatile (not `pure`), so that two reads stay two, and not `nomem`, so that
    // memory accesses stay between them.
    unsafe { core::arch::asm!("mov.u64 {}, %clock64;", out(reg64) ticks, options(nostack, preserves_flags)) };
    ticks
}

/// Nanoseconds of the global timer (its step is about a microsecond). PTX `mov.u64 d, %globaltimer`.
#[gpu_only]
#[inline(always)]
pub fn global_timer() -> u64 {
    let nanos: u64;
    // SAFETY: as in `clock`.
    unsafe {
        core::arch::asm!("mov.u64 {}, %globaltimer;", out(reg64) nanos, options(nostack, preserves_flags))
    };
    nanos
}
