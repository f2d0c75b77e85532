//! plan: ranks the blocks of one (sequence, KV head) and says how many to read.
//!
//! Grid (kv_heads, batch), 256 threads: one CTA ranks one row of up to 8,192 blocks in shared memory. The estimated masses
//! become fixed point, so that every sum is an integer sum and does not depend on who adds what when;
//! the ranking is a bitonic sort of keys that are all different (ties go to the lower index). The
//! plan is therefore the same bits on every machine and in every batch.
//!
//! Trap: `exp2` here is the exact one of `numeric`, evaluated again where a mass is needed; storing
//! masses would cost a buffer, computing them otherwise would cost the promise.

use crate::layout::{BLOCK, MAX_GROUP};
use crate::numeric::TARGET_BITS;
use cuda_std::kernel;

#[cfg(target_arch = "nvptx64")]
use {
    crate::layout::{forced, forced_blocks},
    crate::numeric::{block_of_key, fma, needed_mass, rank_key, reciprocal},
    crate::ranking::{Masses, reduce, sort_descending},
    cuda_std::shared::dynamic_shared,
    cuda_std::thread::{block_idx_x, block_idx_y, sync_threads, thread_idx_x},
};

/// Threads of a CTA.
pub const THREADS: usize = 256;

/// Warps of a CTA.
pub const WARPS: usize = THREADS / 32;

/// Most blocks that one CTA sorts: 64 KiB of keys. Longer rows are planned in passes, [`crate::plan_long`].
pub const RUN: usize = 8192;

/// Shared bytes: sort keys `[N]`, then a value of each warp `[WARPS]`, both u64.
pub const fn shared_bytes(capacity: usize) -> usize {
    8 * (capacity + WARPS)
}

/// The least capacity instance that holds a row of `blocks` blocks, at most [`RUN`].
pub const fn capacity(blocks: usize) -> usize {
    if blocks <= 512 {
        512
    } else if blocks <= 2048 {
        2048
    } else {
        RUN
    }
}

/// Ranks the blocks by estimated mass and predicts the count.
///
/// # Safety
/// Buffers as in docs/kernels.md; every row has at most `N` blocks; `N` is a power of two.
#[kernel(
    block = 256,
    min_blocks_per_sm = 1,
    dynamic_shared = shared_bytes(N),
    instances(N in [512, 2048, 8192]),
    shape(blocks),
    feasible(blocks <= N => "one block of threads sorts a whole row in its shared memory"),
    prefer(least N => "less shared memory"),
    grid = (kv_heads, let batch),
    out(order, count, peak, rest),
    requires(
        group <= MAX_GROUP,
        lens.len() >= batch,
        lens.max() <= max_blocks * BLOCK,
        order.len() >= batch * kv_heads * max_blocks,
        count.len() >= batch * kv_heads,
        peak.len() >= batch * kv_heads * group,
        rest.len() >= batch * kv_heads * group,
        lens.max() <= N * BLOCK,
        budget.len() >= batch,
        log_mass.len() >= batch * kv_heads * group * max_blocks,
        target <= 1u32 << TARGET_BITS,
    )
)]
pub unsafe fn plan<const N: usize>(
    log_mass: *const f32,
    lens: *const u32,
    budget: *const u32,
    order: *mut u32,
    count: *mut u32,
    peak: *mut f32,
    rest: *mut u64,
    target: u32,
    sink: u32,
    recent: u32,
    kv_heads: u32,
    group: u32,
    max_blocks: u32,
) {
    unsafe {
        let (h, b) = (block_idx_x(), block_idx_y());
        let tid = thread_idx_x() as usize;
        let head = (b * kv_heads + h) as usize;
        let tokens = *lens.add(b as usize) as usize;
        let (sink, recent) = (sink as usize, recent as usize);
        let blocks = crate::layout::blocks(tokens);
        let heads = group as usize;
        let masses = Masses {
            log_mass: log_mass.add(head * heads * max_blocks as usize),
            max_blocks: max_blocks as usize,
        };
        let peak = peak.add(head * heads);
        let rest = rest.add(head * heads);
        let keys = dynamic_shared::<u64>();
        let buffer = keys.add(N as u32);

        // Peak and total mass of every head. The totals wait in `rest`.
        let mut g = 0;
        while g < heads {
            let top = masses.peak(buffer, g, 0, blocks);
            let total = masses.sum(buffer, g, top, [0, blocks], |i| i);
            if tid == 0 {
                *peak.add(g) = top;
                *rest.add(g) = total;
            }
            g += 1;
        }
        sync_threads();

        // Keys, padded to a power of two with zeros, which sort behind every real key.
        let padded = blocks.next_power_of_two();
        let mut i = tid;
        while i < padded {
            let mut key = 0;
            if i < blocks {
                let mut rank = 0.0f32;
                let mut g = 0;
                while g < heads {
                    let inverse = reciprocal(*rest.add(g) as f32);
                    rank = fma(masses.fixed(g, i, *peak.add(g)) as f32, inverse, rank);
                    g += 1;
                }
                key = rank_key(forced(i, tokens, sink, recent), rank, i as u32);
            }
            keys.add(i as u32).write(key);
            i += THREADS;
        }
        sync_threads();
        sort_descending::<THREADS>(keys, padded);
        let block = |rank: usize| block_of_key(keys.add(rank as u32).read()) as usize;

        // How many of them.
        let mut wanted = *budget.add(b as usize) as usize;
        if target > 0 {
            let mut longest = 0u64;
            let mut g = 0;
            while g < heads {
                let needed = needed_mass(*rest.add(g), target);
                let length = masses.reached(buffer, (g, *peak.add(g)), [0, needed], [0, blocks], block);
                longest = if length > longest { length } else { longest };
                g += 1;
            }
            let predicted = reduce(buffer, longest, |a, b| if a > b { a } else { b }) as usize;
            wanted = if predicted < wanted { predicted } else { wanted };
        }
        let forced_blocks = forced_blocks(tokens, sink, recent);
        wanted = if wanted > forced_blocks { wanted } else { forced_blocks };
        wanted = if wanted < blocks { wanted } else { blocks };

        // What stays unread, by head.
        let mut g = 0;
        while g < heads {
            let left = masses.sum(buffer, g, *peak.add(g), [wanted, blocks], block);
            if tid == 0 {
                *rest.add(g) = left;
            }
            g += 1;
        }

        // Everything is read: the identity plan, so that the output has the bits of dense attention.
        let order = order.add(head * max_blocks as usize);
        let mut i = tid;
        while i < blocks {
            *order.add(i) = if wanted == blocks { i } else { block(i) } as u32;
            i += THREADS;
        }
        if tid == 0 {
            *count.add(head) = wanted as u32;
        }
    }
}

/// The plan of dense attention: every block, in order.
///
/// # Safety
/// Buffers as in docs/kernels.md.
#[kernel(
    block = 256,
    grid = (kv_heads, let batch),
    out(order, count, peak, rest),
    requires(
        group <= MAX_GROUP,
        lens.len() >= batch,
        lens.max() <= max_blocks * BLOCK,
        order.len() >= batch * kv_heads * max_blocks,
        count.len() >= batch * kv_heads,
        peak.len() >= batch * kv_heads * group,
        rest.len() >= batch * kv_heads * group,
    )
)]
pub unsafe fn plan_identity(
    lens: *const u32,
    order: *mut u32,
    count: *mut u32,
    peak: *mut f32,
    rest: *mut u64,
    kv_heads: u32,
    group: u32,
    max_blocks: u32,
) {
    unsafe {
        let (h, b) = (block_idx_x(), block_idx_y());
        let head = (b * kv_heads + h) as usize;
        let blocks = crate::layout::blocks(*lens.add(b as usize) as usize);
        let order = order.add(head * max_blocks as usize);
        let mut i = thread_idx_x() as usize;
        while i < blocks {
            *order.add(i) = i as u32;
            i += THREADS;
        }
        let g = thread_idx_x();
        if g < group {
            *peak.add(head * group as usize + g as usize) = 0.0;
            *rest.add(head * group as usize + g as usize) = 0;
        }
        if g == 0 {
            *count.add(head) = blocks as u32;
        }
    }
}
