//! gather: copies whole slots between two arenas that the device can read and write, such as the
//! pinned host tier and the device's own.
//!
//! Grid: as few CTAs as the link needs (a gather that holds many SMs slows decoding); CTA i takes the
//! pairs i, i + grid, ... 256 threads, 16 bytes each a step.
//!
//! Trap: a copy of `V4` through plain pointers becomes two accesses of 8 bytes, and half of every sector is read twice.

use cuda_std::kernel;

#[cfg(target_arch = "nvptx64")]
use {
    cuda_std::ptx::{V4, ld_nc_v4, st_v4},
    cuda_std::thread::{block_idx_x, grid_dim_x, thread_idx_x},
};

/// Copies slot `pairs[2 i]` of `source` to slot `pairs[2 i + 1]` of `target`, for i < count.
///
/// # Safety
/// Both arenas hold the slots named, of `slot_bytes` bytes (a multiple of 16), and do not overlap; no
/// target slot is named twice.
#[kernel(
    block = 256,
    grid = (let ctas),
    align(source = 16, target = 16),
    requires(slot_bytes % 16 == 0, pairs.len() >= 2 * count)
)]
pub unsafe fn gather(source: *const u8, target: *mut u8, pairs: *const u32, count: u32, slot_bytes: u32) {
    unsafe {
        let pieces = slot_bytes / 16;
        let mut pair = block_idx_x();
        while pair < count {
            let from = *pairs.add(2 * pair as usize) as usize * slot_bytes as usize;
            let to = *pairs.add(2 * pair as usize + 1) as usize * slot_bytes as usize;
            let from = source.add(from) as *const V4;
            let to = target.add(to) as *mut V4;
            let mut i = thread_idx_x();
            while i < pieces {
                st_v4(to.add(i as usize), ld_nc_v4(from.add(i as usize)));
                i += 256;
            }
            pair += grid_dim_x();
        }
    }
}
