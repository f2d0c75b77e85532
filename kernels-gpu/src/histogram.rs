//! histogram: how concentrated each query head's attention is, counted from the estimated block masses.
//!
//! Grid (query heads, batch), one warp each. Bin i counts the blocks whose log2 mass lies i to i + 1 below the
//! peak, the last bin all that lie further: lane i keeps bin i in a register, so nothing is atomic and the counts
//! are the same on every run.

use crate::layout::BLOCK;
use cuda_std::kernel;
#[cfg(target_arch = "nvptx64")]
use {
    crate::layout::blocks,
    cuda_std::thread::{block_idx_x, block_idx_y},
    cuda_std::warp::{lane_id, shfl_idx_u32},
};

/// Bins of a head.
pub const BINS: usize = 32;

/// The bin of a block: whole octaves below the peak. What is no number, as a masked block, is in the last.
pub fn bin(peak: f32, log_mass: f32) -> u32 {
    let below = peak - log_mass;
    if below < BINS as f32 - 1.0 { below as u32 } else { BINS as u32 - 1 }
}

/// Counts the blocks of every query head by mass.
///
/// # Safety
/// Buffers as in docs/kernels.md, written by `score` and `plan`; `counts`: `[batch, heads, BINS]`.
#[kernel(
    block = 32,
    grid = (heads, let batch),
    out(counts),
    requires(
        lens.len() >= batch,
        lens.max() <= max_blocks * BLOCK,
        peak.len() >= batch * heads,
        log_mass.len() >= batch * heads * max_blocks,
        counts.len() >= batch * heads * BINS,
    )
)]
pub unsafe fn histogram(
    log_mass: *const f32,
    peak: *const f32,
    lens: *const u32,
    counts: *mut u32,
    heads: u32,
    max_blocks: u32,
) {
    unsafe {
        let (h, b, lane) = (block_idx_x(), block_idx_y(), lane_id());
        let head = b as usize * heads as usize + h as usize;
        let row = log_mass.add(head * max_blocks as usize);
        let (peak, blocks) = (*peak.add(head), blocks(*lens.add(b as usize) as usize) as u32);
        let (mut count, mut first) = (0, 0);
        while first < blocks {
            let block = first + lane;
            let mine = if block < blocks { bin(peak, *row.add(block as usize)) } else { u32::MAX };
            cuda_std::unroll!(i < 32, max 32, {
                count += (shfl_idx_u32(mine, i as u32) == lane) as u32;
            });
            first += 32;
        }
        *counts.add(head * BINS + lane as usize) = count;
    }
}
