//! plan for rows of more than [`RUN`] blocks, up to [`MAX_BLOCKS`]: the same plan, bit for bit, in six launches.
//!
//! A row is cut into runs of [`RUN`] blocks, a CTA each: peaks of the runs; masses of the runs relative to the row's
//! peak; keys of a run, sorted in shared memory; the place of every key, which is its place in its run and the number
//! of larger keys in the others (binary search: keys are all different); masses of the runs again, now of `RUN` ranks;
//! and the count, which lies in a run that those masses name, so that one CTA looks at that run only.
//!
//! Why it is the same plan: sums are of integers, keys are different, and a place depends on the keys alone. A short
//! row in a batch with a long one is one run here and gets what `plan` would have given it.
//!
//! Scratch: `keys` u64 `[B, KH, NB]`; `run_peak` f32 and `run_mass` u64 `[B, KH, MAX_RUNS, G]`.

use crate::layout::{BLOCK, MAX_BLOCKS, MAX_GROUP};
use crate::numeric::TARGET_BITS;
use crate::plan::{RUN, WARPS};
use cuda_std::kernel;

#[cfg(target_arch = "nvptx64")]
use {
    crate::layout::{forced, forced_blocks},
    crate::numeric::{block_of_key, fma, needed_mass, rank_key, reciprocal},
    crate::plan::THREADS,
    crate::ranking::{Masses, reduce, sort_descending},
    cuda_std::shared::dynamic_shared,
    cuda_std::thread::{block_idx_x, block_idx_y, block_idx_z, sync_threads, thread_idx_x},
};

/// Most runs of a row.
pub const MAX_RUNS: usize = MAX_BLOCKS / RUN;

/// Threads of a CTA that sorts a run: the sort is barriers and shared memory, which more warps hide.
pub const SORT_THREADS: usize = 1024;

/// Keys that a CTA of `plan_places` places, one a thread.
pub const PLACED: usize = 256;

/// Shared bytes of a CTA that reduces: a value of each warp, u64.
pub const fn reduce_bytes() -> usize {
    8 * WARPS
}

/// Runs of a row of `blocks` blocks.
pub const fn runs(blocks: usize) -> usize {
    blocks.div_ceil(RUN)
}

/// Shared bytes of `plan_runs`: keys `[RUN]` u64, then each head's peak and the reciprocal of its mass, f32.
pub const fn sort_bytes() -> usize {
    8 * RUN + 8 * MAX_GROUP
}

/// A run of a row.
#[cfg(target_arch = "nvptx64")]
struct Run {
    /// (sequence, KV head).
    head: usize,
    /// Of the row.
    run: usize,
    /// Blocks (or ranks) `from .. to`; none for a CTA beyond the row's end.
    from: usize,
    to: usize,
    tokens: usize,
    masses: Masses,
}

#[cfg(target_arch = "nvptx64")]
impl Run {
    /// The run of this CTA in grid (runs, kv_heads, batch).
    #[inline(always)]
    unsafe fn new(log_mass: *const f32, lens: *const u32, kv_heads: u32, group: u32, max_blocks: u32) -> Run {
        let (run, h, b) = (block_idx_x() as usize, block_idx_y(), block_idx_z());
        let head = (b * kv_heads + h) as usize;
        // SAFETY: the kernels' contract.
        unsafe {
            let tokens = *lens.add(b as usize) as usize;
            let (blocks, from) = (crate::layout::blocks(tokens), run * RUN);
            let to = if from + RUN < blocks { from + RUN } else { blocks };
            let log_mass = log_mass.add(head * (group * max_blocks) as usize);
            Run { head, run, from, to, tokens, masses: Masses { log_mass, max_blocks: max_blocks as usize } }
        }
    }

    /// Nothing to do.
    #[inline(always)]
    fn empty(&self) -> bool {
        self.from >= self.to
    }
}

/// Sum of what the runs of a row have for head `g`; `of_runs` `[MAX_RUNS, group]`.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
unsafe fn total(of_runs: *const u64, g: usize, group: usize, runs: usize) -> u64 {
    let mut sum = 0;
    let mut r = 0;
    while r < runs {
        // SAFETY: inside the array.
        sum += unsafe { *of_runs.add(r * group + g) };
        r += 1;
    }
    sum
}

/// Largest log2 mass of each run and head.
///
/// # Safety
/// Buffers as in docs/kernels.md.
#[kernel(
    block = 256,
    dynamic_shared = reduce_bytes(),
    grid = (let runs, kv_heads, let batch),
    out(run_peak),
    requires(
        group <= MAX_GROUP,
        runs * RUN * BLOCK >= lens.max(),
        lens.len() >= batch,
        lens.max() <= max_blocks * BLOCK,
        lens.max() <= MAX_BLOCKS * BLOCK,
        log_mass.len() >= batch * kv_heads * group * max_blocks,
        run_peak.len() >= batch * kv_heads * MAX_RUNS * group,
    )
)]
pub unsafe fn plan_peaks(
    log_mass: *const f32,
    lens: *const u32,
    run_peak: *mut f32,
    kv_heads: u32,
    group: u32,
    max_blocks: u32,
) {
    unsafe {
        let run = Run::new(log_mass, lens, kv_heads, group, max_blocks);
        if run.empty() {
            return;
        }
        let buffer = dynamic_shared::<u64>();
        let run_peak = run_peak.add((run.head * MAX_RUNS + run.run) * group as usize);
        let mut g = 0;
        while g < group as usize {
            let top = run.masses.peak(buffer, g, run.from, run.to);
            if thread_idx_x() == 0 {
                *run_peak.add(g) = top;
            }
            g += 1;
        }
    }
}

/// Peak of each head, and mass of each run and head relative to it.
///
/// # Safety
/// Buffers as in docs/kernels.md.
#[kernel(
    block = 256,
    dynamic_shared = reduce_bytes(),
    grid = (let runs, kv_heads, let batch),
    out(peak, run_mass),
    requires(
        group <= MAX_GROUP,
        runs * RUN * BLOCK >= lens.max(),
        lens.len() >= batch,
        lens.max() <= max_blocks * BLOCK,
        lens.max() <= MAX_BLOCKS * BLOCK,
        log_mass.len() >= batch * kv_heads * group * max_blocks,
        run_peak.len() >= batch * kv_heads * MAX_RUNS * group,
        run_mass.len() >= batch * kv_heads * MAX_RUNS * group,
        peak.len() >= batch * kv_heads * group,
    )
)]
pub unsafe fn plan_totals(
    log_mass: *const f32,
    lens: *const u32,
    run_peak: *const f32,
    peak: *mut f32,
    run_mass: *mut u64,
    kv_heads: u32,
    group: u32,
    max_blocks: u32,
) {
    unsafe {
        let run = Run::new(log_mass, lens, kv_heads, group, max_blocks);
        // The first CTA writes the peaks of an empty row too.
        if run.empty() && run.run > 0 {
            return;
        }
        let buffer = dynamic_shared::<u64>();
        let heads = group as usize;
        let runs = runs(crate::layout::blocks(run.tokens));
        let run_peak = run_peak.add(run.head * MAX_RUNS * heads);
        let run_mass = run_mass.add((run.head * MAX_RUNS + run.run) * heads);
        let mut g = 0;
        while g < heads {
            let mut top = f32::NEG_INFINITY;
            let mut r = 0;
            while r < runs {
                let x = *run_peak.add(r * heads + g);
                top = if x > top { x } else { top };
                r += 1;
            }
            let mass = run.masses.sum(buffer, g, top, [run.from, run.to], |i| i);
            if thread_idx_x() == 0 {
                *run_mass.add(g) = mass;
                if run.run == 0 {
                    *peak.add(run.head * heads + g) = top;
                }
            }
            g += 1;
        }
    }
}

/// The keys of each run, sorted.
///
/// # Safety
/// Buffers as in docs/kernels.md.
#[kernel(
    block = 1024,
    dynamic_shared = sort_bytes(),
    grid = (let runs, kv_heads, let batch),
    out(keys),
    requires(
        group <= MAX_GROUP,
        runs * RUN * BLOCK >= lens.max(),
        lens.len() >= batch,
        lens.max() <= max_blocks * BLOCK,
        lens.max() <= MAX_BLOCKS * BLOCK,
        log_mass.len() >= batch * kv_heads * group * max_blocks,
        peak.len() >= batch * kv_heads * group,
        run_mass.len() >= batch * kv_heads * MAX_RUNS * group,
        keys.len() >= batch * kv_heads * max_blocks,
    )
)]
pub unsafe fn plan_runs(
    log_mass: *const f32,
    lens: *const u32,
    peak: *const f32,
    run_mass: *const u64,
    keys: *mut u64,
    sink: u32,
    recent: u32,
    kv_heads: u32,
    group: u32,
    max_blocks: u32,
) {
    unsafe {
        let run = Run::new(log_mass, lens, kv_heads, group, max_blocks);
        if run.empty() {
            return;
        }
        let tid = thread_idx_x() as usize;
        let heads = group as usize;
        let sorted = dynamic_shared::<u64>();
        let tops = sorted.add(RUN as u32).cast::<f32>();
        let inverses = tops.add(MAX_GROUP as u32);
        if tid < heads {
            let runs = runs(crate::layout::blocks(run.tokens));
            let total = total(run_mass.add(run.head * MAX_RUNS * heads), tid, heads, runs);
            tops.add(tid as u32).write(*peak.add(run.head * heads + tid));
            inverses.add(tid as u32).write(reciprocal(total as f32));
        }
        sync_threads();

        let blocks = run.to - run.from;
        let padded = blocks.next_power_of_two();
        let mut i = tid;
        while i < padded {
            let mut key = 0;
            if i < blocks {
                let block = run.from + i;
                let mut rank = 0.0f32;
                let mut g = 0;
                while g < heads {
                    let mass = run.masses.fixed(g, block, tops.add(g as u32).read());
                    rank = fma(mass as f32, inverses.add(g as u32).read(), rank);
                    g += 1;
                }
                let forced = forced(block, run.tokens, sink as usize, recent as usize);
                key = rank_key(forced, rank, block as u32);
            }
            sorted.add(i as u32).write(key);
            i += SORT_THREADS;
        }
        sync_threads();
        sort_descending::<SORT_THREADS>(sorted, padded);
        let keys = keys.add(run.head * max_blocks as usize + run.from);
        let mut i = tid;
        while i < blocks {
            *keys.add(i) = sorted.add(i as u32).read();
            i += SORT_THREADS;
        }
    }
}

/// The place of every key among all keys of its row.
///
/// # Safety
/// Buffers as in docs/kernels.md.
#[kernel(
    block = 256,
    grid = (let tiles, kv_heads, let batch),
    out(order),
    requires(
        tiles * PLACED * BLOCK >= lens.max(),
        lens.len() >= batch,
        lens.max() <= max_blocks * BLOCK,
        lens.max() <= MAX_BLOCKS * BLOCK,
        keys.len() >= batch * kv_heads * max_blocks,
        order.len() >= batch * kv_heads * max_blocks,
    )
)]
pub unsafe fn plan_places(
    keys: *const u64,
    lens: *const u32,
    order: *mut u32,
    kv_heads: u32,
    max_blocks: u32,
) {
    unsafe {
        let (h, b) = (block_idx_y(), block_idx_z());
        let row = (b * kv_heads + h) as usize * max_blocks as usize;
        let blocks = crate::layout::blocks(*lens.add(b as usize) as usize);
        let i = block_idx_x() as usize * PLACED + thread_idx_x() as usize;
        if i < blocks {
            let (keys, order) = (keys.add(row), order.add(row));
            let key = *keys.add(i);
            let own = i / RUN;
            let mut place = i % RUN;
            let mut run = 0;
            while run * RUN < blocks {
                if run != own {
                    // Keys of the run that are larger: those before `low`.
                    let mut low = run * RUN;
                    let mut high = if low + RUN < blocks { low + RUN } else { blocks };
                    let first = low;
                    while low < high {
                        let middle = (low + high) / 2;
                        if *keys.add(middle) > key {
                            low = middle + 1;
                        } else {
                            high = middle;
                        }
                    }
                    place += low - first;
                }
                run += 1;
            }
            *order.add(place) = block_of_key(key);
        }
    }
}

/// Mass of every `RUN` ranks, by head.
///
/// # Safety
/// Buffers as in docs/kernels.md.
#[kernel(
    block = 256,
    dynamic_shared = reduce_bytes(),
    grid = (let runs, kv_heads, let batch),
    out(run_mass),
    requires(
        group <= MAX_GROUP,
        runs * RUN * BLOCK >= lens.max(),
        lens.len() >= batch,
        lens.max() <= max_blocks * BLOCK,
        lens.max() <= MAX_BLOCKS * BLOCK,
        log_mass.len() >= batch * kv_heads * group * max_blocks,
        order.len() >= batch * kv_heads * max_blocks,
        peak.len() >= batch * kv_heads * group,
        run_mass.len() >= batch * kv_heads * MAX_RUNS * group,
    )
)]
pub unsafe fn plan_sums(
    log_mass: *const f32,
    lens: *const u32,
    order: *const u32,
    peak: *const f32,
    run_mass: *mut u64,
    kv_heads: u32,
    group: u32,
    max_blocks: u32,
) {
    unsafe {
        let run = Run::new(log_mass, lens, kv_heads, group, max_blocks);
        if run.empty() {
            return;
        }
        let buffer = dynamic_shared::<u64>();
        let order = order.add(run.head * max_blocks as usize);
        let run_mass = run_mass.add((run.head * MAX_RUNS + run.run) * group as usize);
        let mut g = 0;
        while g < group as usize {
            let top = *peak.add(run.head * group as usize + g);
            let block = |rank: usize| *order.add(rank) as usize;
            let mass = run.masses.sum(buffer, g, top, [run.from, run.to], block);
            if thread_idx_x() == 0 {
                *run_mass.add(g) = mass;
            }
            g += 1;
        }
    }
}

/// How many blocks to read, and what stays unread; the identity where everything is read.
///
/// # Safety
/// Buffers as in docs/kernels.md.
#[kernel(
    block = 256,
    dynamic_shared = reduce_bytes(),
    grid = (kv_heads, let batch),
    out(count, rest),
    requires(
        group <= MAX_GROUP,
        lens.len() >= batch,
        lens.max() <= max_blocks * BLOCK,
        lens.max() <= MAX_BLOCKS * BLOCK,
        budget.len() >= batch,
        log_mass.len() >= batch * kv_heads * group * max_blocks,
        order.len() >= batch * kv_heads * max_blocks,
        count.len() >= batch * kv_heads,
        peak.len() >= batch * kv_heads * group,
        rest.len() >= batch * kv_heads * group,
        run_mass.len() >= batch * kv_heads * MAX_RUNS * group,
        target <= 1u32 << TARGET_BITS,
    )
)]
pub unsafe fn plan_count(
    log_mass: *const f32,
    lens: *const u32,
    budget: *const u32,
    peak: *const f32,
    run_mass: *const u64,
    order: *mut u32,
    count: *mut u32,
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
        let head = (b * kv_heads + h) as usize;
        let heads = group as usize;
        let tokens = *lens.add(b as usize) as usize;
        let blocks = crate::layout::blocks(tokens);
        let runs = runs(blocks);
        let masses = Masses {
            log_mass: log_mass.add(head * heads * max_blocks as usize),
            max_blocks: max_blocks as usize,
        };
        let peak = peak.add(head * heads);
        let run_mass = run_mass.add(head * MAX_RUNS * heads);
        let order = order.add(head * max_blocks as usize);
        let block = |rank: usize| *order.add(rank) as usize;
        let buffer = dynamic_shared::<u64>();
        let end = |run: usize| if (run + 1) * RUN < blocks { (run + 1) * RUN } else { blocks };

        let mut wanted = *budget.add(b as usize) as usize;
        if target > 0 {
            let mut longest = 0u64;
            let mut g = 0;
            while g < heads {
                let needed = needed_mass(total(run_mass, g, heads, runs), target);
                // The run in which the need is reached.
                let (mut run, mut seen) = (0, 0u64);
                while run + 1 < runs && seen + *run_mass.add(run * heads + g) < needed {
                    seen += *run_mass.add(run * heads + g);
                    run += 1;
                }
                let ranks = [run * RUN, end(run)];
                let length = masses.reached(buffer, (g, *peak.add(g)), [seen, needed], ranks, block);
                longest = if length > longest { length } else { longest };
                g += 1;
            }
            let predicted = reduce(buffer, longest, |a, b| if a > b { a } else { b }) as usize;
            wanted = if predicted < wanted { predicted } else { wanted };
        }
        let forced_blocks = forced_blocks(tokens, sink as usize, recent as usize);
        wanted = if wanted > forced_blocks { wanted } else { forced_blocks };
        wanted = if wanted < blocks { wanted } else { blocks };

        // What stays unread: the rest of the run in which the plan ends, and the runs behind it.
        let last = wanted / RUN;
        let mut g = 0;
        while g < heads {
            let mut left = 0;
            if last < runs {
                left = masses.sum(buffer, g, *peak.add(g), [wanted, end(last)], block);
                let mut run = last + 1;
                while run < runs {
                    left += *run_mass.add(run * heads + g);
                    run += 1;
                }
            }
            if thread_idx_x() == 0 {
                *rest.add(head * heads + g) = left;
            }
            g += 1;
        }

        // Everything is read: as in `plan`. A barrier lies behind the last reading of the order, in `reduce`.
        if wanted == blocks {
            let mut i = thread_idx_x() as usize;
            while i < blocks {
                *order.add(i) = i as u32;
                i += THREADS;
            }
        }
        if thread_idx_x() == 0 {
            *count.add(head) = wanted as u32;
        }
    }
}
