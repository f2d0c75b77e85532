//! plan: ranks the blocks of one (sequence, KV head) and says how many to read.
//!
//! Grid (kv_heads, batch), 256 threads: one CTA ranks one row in shared memory. The estimated masses
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
    crate::layout::forced,
    crate::numeric::{block_of_key, fixed_mass, fma, needed_mass, rank_key, reciprocal},
    cuda_std::shared::{SharedPtr, dynamic_shared},
    cuda_std::thread::{block_idx_x, block_idx_y, sync_threads, thread_idx_x},
    cuda_std::warp::{lane_id, shfl_up_u32, shfl_xor_u32},
};

/// Threads of a CTA.
pub const THREADS: usize = 256;

/// Warps of a CTA.
pub const WARPS: usize = THREADS / 32;

/// Shared bytes: sort keys `[N]`, then a value of each warp `[WARPS]`, both u64.
pub const fn shared_bytes(capacity: usize) -> usize {
    8 * (capacity + WARPS)
}

/// The least capacity instance that holds a row of `blocks` blocks.
pub const fn capacity(blocks: usize) -> usize {
    if blocks <= 512 {
        512
    } else if blocks <= 2048 {
        2048
    } else {
        crate::layout::MAX_BLOCKS
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
        let blocks = crate::layout::blocks(tokens);
        let is_forced = |b: usize| forced(b, tokens, sink as usize, recent as usize);
        let masses = Masses {
            log_mass: log_mass.add(head * (group * max_blocks) as usize),
            max_blocks: max_blocks as usize,
        };
        let peak = peak.add(head * group as usize);
        let rest = rest.add(head * group as usize);
        let keys = dynamic_shared::<u64>();
        let buffer = keys.add(N as u32);

        // Peak and total mass of every head. The totals wait in `rest`.
        let mut g = 0;
        while g < group as usize {
            let mut top = f32::NEG_INFINITY;
            let mut i = tid;
            while i < blocks {
                let x = masses.log_mass(g, i);
                top = if x > top { x } else { top };
                i += THREADS;
            }
            let top = unordered(reduce(buffer, ordered(top), |a, b| if a > b { a } else { b }) as u32);
            let mut sum = 0u64;
            let mut i = tid;
            while i < blocks {
                sum += masses.fixed(g, i, top) as u64;
                i += THREADS;
            }
            let total = reduce(buffer, sum, |a, b| a + b);
            if tid == 0 {
                *peak.add(g) = top;
                *rest.add(g) = total;
            }
            g += 1;
        }
        sync_threads();

        // Keys, padded to a power of two with zeros, which sort behind every real key.
        let padded = blocks.next_power_of_two();
        let mut forced_here = 0u64;
        let mut i = tid;
        while i < padded {
            let mut key = 0;
            if i < blocks {
                let mut rank = 0.0f32;
                let mut g = 0;
                while g < group as usize {
                    let inverse = reciprocal(*rest.add(g) as f32);
                    rank = fma(masses.fixed(g, i, *peak.add(g)) as f32, inverse, rank);
                    g += 1;
                }
                forced_here += is_forced(i) as u64;
                key = rank_key(is_forced(i), rank, i as u32);
            }
            keys.add(i as u32).write(key);
            i += THREADS;
        }
        // Its barrier is the one between writing and sorting the keys.
        let forced_blocks = reduce(buffer, forced_here, |a, b| a + b) as usize;
        sort_descending(keys, padded);

        // How many of them.
        let budget = *budget.add(b as usize) as usize;
        let mut wanted = budget;
        if target > 0 {
            let share = blocks.div_ceil(THREADS);
            let from = if tid * share < blocks { tid * share } else { blocks };
            let to = if from + share < blocks { from + share } else { blocks };
            let mut longest = 0u64;
            let mut g = 0;
            while g < group as usize {
                let top = *peak.add(g);
                let needed = needed_mass(*rest.add(g), target);
                let mut own = 0u64;
                let mut i = from;
                while i < to {
                    own += masses.fixed(g, block_of_key(keys.add(i as u32).read()) as usize, top) as u64;
                    i += 1;
                }
                // The prefix in which the head's mass reaches the need ends in one thread's share.
                let mut seen = sum_before(buffer, own);
                let mut length = 0u64;
                let mut i = from;
                while i < to {
                    let before = seen;
                    seen += masses.fixed(g, block_of_key(keys.add(i as u32).read()) as usize, top) as u64;
                    if before < needed && needed <= seen {
                        length = i as u64 + 1;
                    }
                    i += 1;
                }
                longest = if length > longest { length } else { longest };
                g += 1;
            }
            let predicted = reduce(buffer, longest, |a, b| if a > b { a } else { b }) as usize;
            wanted = if predicted < budget { predicted } else { budget };
        }
        wanted = if wanted > forced_blocks { wanted } else { forced_blocks };
        wanted = if wanted < blocks { wanted } else { blocks };

        // What stays unread, by head.
        let mut g = 0;
        while g < group as usize {
            let top = *peak.add(g);
            let mut left = 0u64;
            let mut i = wanted + tid;
            while i < blocks {
                left += masses.fixed(g, block_of_key(keys.add(i as u32).read()) as usize, top) as u64;
                i += THREADS;
            }
            let left = reduce(buffer, left, |a, b| a + b);
            if tid == 0 {
                *rest.add(g) = left;
            }
            g += 1;
        }

        // Everything is read: the identity plan, so that the output has the bits of dense attention.
        let order = order.add(head * max_blocks as usize);
        let mut i = tid;
        while i < blocks {
            *order.add(i) = if wanted == blocks { i as u32 } else { block_of_key(keys.add(i as u32).read()) };
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

/// The estimated masses of one KV head.
#[cfg(target_arch = "nvptx64")]
#[derive(Clone, Copy)]
struct Masses {
    log_mass: *const f32, // [group, max_blocks]
    max_blocks: usize,
}

#[cfg(target_arch = "nvptx64")]
impl Masses {
    #[inline(always)]
    unsafe fn log_mass(self, g: usize, block: usize) -> f32 {
        // SAFETY: the callers stay below group and blocks.
        unsafe { *self.log_mass.add(g * self.max_blocks + block) }
    }

    #[inline(always)]
    unsafe fn fixed(self, g: usize, block: usize, peak: f32) -> u32 {
        // SAFETY: as above.
        fixed_mass(unsafe { self.log_mass(g, block) }, peak)
    }
}

/// f32 bits as an integer that is ordered like the number.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
fn ordered(x: f32) -> u64 {
    let bits = x.to_bits();
    (bits ^ if bits >> 31 == 1 { u32::MAX } else { 1 << 31 }) as u64
}

/// The number behind [`ordered`].
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
fn unordered(bits: u32) -> f32 {
    f32::from_bits(bits ^ if bits >> 31 == 1 { 1 << 31 } else { u32::MAX })
}

/// The value of another lane, as two shuffles.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
unsafe fn shuffled(value: u64, shuffle: impl Fn(u32) -> u32) -> u64 {
    (shuffle((value >> 32) as u32) as u64) << 32 | shuffle(value as u32) as u64
}

/// Combines one value a thread, in any order; every thread gets the result. Contains a barrier, and ends with
/// the buffer free.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
unsafe fn reduce(buffer: SharedPtr<u64>, value: u64, combine: impl Fn(u64, u64) -> u64) -> u64 {
    unsafe {
        let mut value = value;
        cuda_std::unroll!(s < 5, max 6, {
            value = combine(value, shuffled(value, |x| shfl_xor_u32(x, 16 >> s)));
        });
        if lane_id() == 0 {
            buffer.add(thread_idx_x() / 32).write(value);
        }
        sync_threads();
        let mut result = buffer.read();
        cuda_std::unroll!(w < WARPS - 1, max 8, {
            result = combine(result, buffer.add(w as u32 + 1).read());
        });
        sync_threads();
        result
    }
}

/// Sum of the values of all threads before the calling one. Contains a barrier, and ends with the buffer free.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
unsafe fn sum_before(buffer: SharedPtr<u64>, value: u64) -> u64 {
    unsafe {
        let (lane, warp) = (lane_id(), thread_idx_x() / 32);
        let mut sum = value;
        cuda_std::unroll!(s < 5, max 6, {
            let below = shuffled(sum, |x| shfl_up_u32(x, 1 << s));
            sum += if lane >= 1 << s { below } else { 0 };
        });
        if lane == 31 {
            buffer.add(warp).write(sum);
        }
        sync_threads();
        sum -= value;
        cuda_std::unroll!(w < WARPS - 1, max 8, {
            sum += if (w as u32) < warp { buffer.add(w as u32).read() } else { 0 };
        });
        sync_threads();
        sum
    }
}

/// Bitonic sort of `n` keys (a power of two), largest first. A barrier lies between the writing of the keys and
/// the call; where there is anything to sort, it ends with one.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
unsafe fn sort_descending(keys: SharedPtr<u64>, n: usize) {
    unsafe {
        let mut run = 2;
        while run <= n {
            let mut distance = run / 2;
            while distance > 0 {
                let mut pair = thread_idx_x() as usize;
                while pair < n / 2 {
                    let low = 2 * pair - pair % distance;
                    let (a, b) = (keys.add(low as u32), keys.add((low + distance) as u32));
                    let (x, y) = (a.read(), b.read());
                    let descending = low & run == 0;
                    if (x < y) == descending {
                        a.write(y);
                        b.write(x);
                    }
                    pair += THREADS;
                }
                sync_threads();
                distance /= 2;
            }
            run *= 2;
        }
    }
}
