//! The position of a thread in its block and grid, block barriers, fences.
//!
//! Names and signatures are rust-cuda's; vectors come as `[u32; 3]` (x, y, z) instead of a vector type
//! of another crate. Every barrier is convergent: all threads of the block must reach the same one.

use psa_codegen_macros::gpu_only;

#[cfg(target_arch = "nvptx64")]
use crate::intrinsics;

macro_rules! sreg {
    ($($name:ident = $intrinsic:ident, $ptx:literal, $what:literal;)*) => {$(
        #[doc = concat!($what, "\n\nPTX `mov.u32 d, ", $ptx, "`.")]
        #[gpu_only]
        #[inline(always)]
        pub fn $name() -> u32 {
            intrinsics::$intrinsic()
        }
    )*};
}

sreg! {
    thread_idx_x = tid_x, "%tid.x", "The thread's index in its block, x.";
    thread_idx_y = tid_y, "%tid.y", "The thread's index in its block, y.";
    thread_idx_z = tid_z, "%tid.z", "The thread's index in its block, z.";
    block_idx_x = ctaid_x, "%ctaid.x", "The block's index in the grid, x.";
    block_idx_y = ctaid_y, "%ctaid.y", "The block's index in the grid, y.";
    block_idx_z = ctaid_z, "%ctaid.z", "The block's index in the grid, z.";
    block_dim_x = ntid_x, "%ntid.x", "Threads of a block, x.";
    block_dim_y = ntid_y, "%ntid.y", "Threads of a block, y.";
    block_dim_z = ntid_z, "%ntid.z", "Threads of a block, z.";
    grid_dim_x = nctaid_x, "%nctaid.x", "Blocks of the grid, x.";
    grid_dim_y = nctaid_y, "%nctaid.y", "Blocks of the grid, y.";
    grid_dim_z = nctaid_z, "%nctaid.z", "Blocks of the grid, z.";
}

/// The thread's index in its block: `[x, y, z]`.
#[inline(always)]
pub fn thread_idx() -> [u32; 3] {
    [thread_idx_x(), thread_idx_y(), thread_idx_z()]
}

/// The block's index in the grid: `[x, y, z]`.
#[inline(always)]
pub fn block_idx() -> [u32; 3] {
    [block_idx_x(), block_idx_y(), block_idx_z()]
}

/// Threads of a block: `[x, y, z]`.
#[inline(always)]
pub fn block_dim() -> [u32; 3] {
    [block_dim_x(), block_dim_y(), block_dim_z()]
}

/// Blocks of the grid: `[x, y, z]`.
#[inline(always)]
pub fn grid_dim() -> [u32; 3] {
    [grid_dim_x(), grid_dim_y(), grid_dim_z()]
}

/// The thread's linear index in the whole grid: blocks in x, y, z order, then threads in x, y, z order.
/// Wraps beyond 2^32 threads.
#[inline(always)]
pub fn index() -> u32 {
    let [bx, by, bz] = block_idx();
    let [gx, gy, _] = grid_dim();
    let [nx, ny, nz] = block_dim();
    let [tx, ty, tz] = thread_idx();
    let block = bx.wrapping_add(gx.wrapping_mul(by.wrapping_add(gy.wrapping_mul(bz))));
    let thread = tx + nx * (ty + ny * tz);
    block.wrapping_mul(nx * ny * nz).wrapping_add(thread)
}

/// The thread's index along x in a one-dimensional launch.
#[inline(always)]
pub fn index_1d() -> u32 {
    block_idx_x().wrapping_mul(block_dim_x()).wrapping_add(thread_idx_x())
}

/// The thread's indices along x and y in a two-dimensional launch.
#[inline(always)]
pub fn index_2d() -> [u32; 2] {
    [index_1d(), block_idx_y().wrapping_mul(block_dim_y()).wrapping_add(thread_idx_y())]
}

/// The thread's indices along x, y and z in a three-dimensional launch.
#[inline(always)]
pub fn index_3d() -> [u32; 3] {
    let [x, y] = index_2d();
    [x, y, block_idx_z().wrapping_mul(block_dim_z()).wrapping_add(thread_idx_z())]
}

/// Whether this is the first thread of the grid.
#[inline(always)]
pub fn first() -> bool {
    block_idx() == [0; 3] && thread_idx() == [0; 3]
}

/// Threads of a warp: 32 on every supported device.
#[inline(always)]
pub const fn warp_size() -> u32 {
    32
}

/// Waits until all threads of the block are here; their writes before are visible after.
///
/// PTX `barrier.sync.aligned 0` (`bar.sync 0`). All threads of the block must reach it.
#[gpu_only]
#[inline(always)]
pub fn sync_threads() {
    // SAFETY: convergence is the documented contract; rust-cuda's signature is safe.
    unsafe { intrinsics::barrier_sync(0) }
}

/// [`sync_threads`], and the number of threads whose `predicate` is not 0.
///
/// PTX `barrier.red.popc.aligned.u32`.
#[gpu_only]
#[inline(always)]
pub fn sync_threads_count(predicate: u32) -> u32 {
    // SAFETY: as in `sync_threads`.
    unsafe { intrinsics::barrier_red_popc(0, predicate != 0) }
}

/// [`sync_threads`], and 1 if every thread's `predicate` is not 0, else 0.
///
/// PTX `barrier.red.and.aligned.pred`.
#[gpu_only]
#[inline(always)]
pub fn sync_threads_and(predicate: u32) -> u32 {
    // SAFETY: as in `sync_threads`.
    unsafe { intrinsics::barrier_red_and(0, predicate != 0) as u32 }
}

/// [`sync_threads`], and 1 if any thread's `predicate` is not 0, else 0.
///
/// PTX `barrier.red.or.aligned.pred`.
#[gpu_only]
#[inline(always)]
pub fn sync_threads_or(predicate: u32) -> u32 {
    // SAFETY: as in `sync_threads`.
    unsafe { intrinsics::barrier_red_or(0, predicate != 0) as u32 }
}

/// Named barrier `id` (1 to 15; 0 is [`sync_threads`]) among `threads` threads of the block.
///
/// PTX `barrier.sync.aligned id, threads`.
///
/// # Safety
/// `threads` is a multiple of 32 and the same for all participants; whole warps take part.
#[gpu_only]
#[inline(always)]
pub unsafe fn sync_named(id: u32, threads: u32) {
    // SAFETY: the caller's contract.
    unsafe { intrinsics::barrier_sync_count(id, threads) }
}

/// Arrives at named barrier `id` without waiting.
///
/// PTX `barrier.arrive.aligned id, threads`.
///
/// # Safety
/// As [`sync_named`].
#[gpu_only]
#[inline(always)]
pub unsafe fn arrive_named(id: u32, threads: u32) {
    // SAFETY: the caller's contract.
    unsafe { intrinsics::barrier_arrive_count(id, threads) }
}

/// Orders this thread's memory accesses for the threads of its block. PTX `membar.cta`.
#[gpu_only]
#[inline(always)]
pub fn block_fence() {
    // SAFETY: a fence has no requirement.
    unsafe { intrinsics::membar_cta() }
}

/// Orders this thread's memory accesses for the threads of the grid. PTX `membar.gl`.
#[inline(always)]
pub fn grid_fence() {
    device_fence();
}

/// Orders this thread's memory accesses for the threads of the device. PTX `membar.gl`.
#[gpu_only]
#[inline(always)]
pub fn device_fence() {
    // SAFETY: a fence has no requirement.
    unsafe { intrinsics::membar_gl() }
}

/// Orders this thread's memory accesses for the whole system, host included. PTX `membar.sys`.
#[gpu_only]
#[inline(always)]
pub fn system_fence() {
    // SAFETY: a fence has no requirement.
    unsafe { intrinsics::membar_sys() }
}

/// Suspends the thread for about `nanos` nanoseconds, at most 1 ms (twice as long is allowed).
///
/// PTX `nanosleep.u32`, sm_70, ISA 6.3.
#[gpu_only]
#[inline(always)]
pub fn nanosleep(nanos: u32) {
    // SAFETY: no memory is touched; not `nomem`, so that a spin loop around it re-reads its flag.
    unsafe { core::arch::asm!("nanosleep.u32 {};", in(reg32) nanos, options(nostack, preserves_flags)) }
}
