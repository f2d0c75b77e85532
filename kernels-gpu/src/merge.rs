//! merge: combines the splits in fixed order, tests the stop rule on the exact mass, and tops up.
//!
//! Grid (kv_heads, batch), 128 threads. The splits are added 0, 1, 2, ..; then, while some query head
//! has not read its share of the mass, the next blocks of the ranking are attended to here, a chunk at
//! a time, with the same code as `attend`. The decision never leaves the device.
//!
//! State of the row in shared memory, behind what `attend` uses: output `[G, D]`, (m, l) `[G, 2]`,
//! rest u64 `[G]`. Every thread owns the same columns (g, c) throughout.

use crate::element::KvElement;
use crate::layout::{BLOCK, BLOCKS_PER_GROUP, BLOCKS_PER_SPLIT, MAX_SPLITS, slot_elements};
use cuda_std::half::{bf16, f16};
use cuda_std::kernel;

#[cfg(target_arch = "nvptx64")]
use {
    crate::attend::{Column, THREADS, WARPS, WarpParts, WarpSoftmax, stage_queries},
    crate::layout::{TOPUP_CHUNK, splits},
    crate::numeric::{believed_mass, enough, fixed_mass, relative_mass, rest_mass},
    crate::row::{Geometry, Row},
    cuda_std::ptx::{lg2_approx, rcp_approx},
    cuda_std::shared::SharedPtr,
    cuda_std::thread::{block_idx_x, block_idx_y, sync_threads, thread_idx_x},
};

/// Shared bytes: what `attend` uses, and the state of the row.
pub const fn shared_bytes(head_dim: usize, heads: usize) -> usize {
    crate::attend::shared_bytes(head_dim, heads) + 4 * (heads * head_dim + 4 * heads) + 8 * heads
}

/// Merges the splits, tops up until `mass` is reached, and writes the results.
///
/// # Safety
/// Buffers as in docs/kernels.md, written by `score`, `plan` and `attend` of the same step;
/// `G = head_tile(group)`. `mass = 0` switches the stop test off.
#[kernel(
    block = 128,
    // Without it ptxas aims at an occupancy of its own choice and spills to reach it.
    min_blocks_per_sm = 2,
    dynamic_shared = shared_bytes(D, G),
    instances(T in [bf16, f16], D in [64, 128], G in [1, 2, 4, 8]),
    shape(head_dim, group),
    feasible(
        head_dim == D => "the channels of a row are spread over the lanes at compile time",
        group <= G => "every query head of a group has its own accumulators",
    ),
    prefer(least G => "heads beyond the group are computed for nothing"),
    grid = (kv_heads, let batch),
    out(out, lse, read, mass_read),
    align(arena = 16),
    requires(
        1 <= group,
        group <= G,
        max_splits >= lens.max().div_ceil(BLOCK * BLOCKS_PER_SPLIT).min(MAX_SPLITS),
        q.len() >= batch * kv_heads * group * D,
        log_mass.len() >= batch * kv_heads * group * max_blocks,
        budget.len() >= batch,
        peak.len() >= batch * kv_heads * group,
        rest.len() >= batch * kv_heads * group,
        out.len() >= batch * kv_heads * group * D,
        lse.len() >= batch * kv_heads * group,
        read.len() >= batch * kv_heads * 2,
        mass_read.len() >= batch * kv_heads * group,
        order.len() >= batch * kv_heads * max_blocks,
        count.len() >= batch * kv_heads,
        partial.len() >= batch * kv_heads * max_splits * G * D,
        partial_ml.len() >= batch * kv_heads * max_splits * G * 2,
        layer < layers,
        max_blocks % BLOCKS_PER_GROUP == 0,
        seqs.len() >= batch,
        lens.len() >= batch,
        lens.max() <= max_blocks * BLOCK,
        // Rows are numbered in 32 bits.
        (seqs.max() + 1) * layers * kv_heads <= u32::MAX,
        block_table.len() >= (seqs.max() + 1) * layers * kv_heads * max_blocks,
        arena.len() >= (block_table.max() + 1) * slot_elements(D),
    )
)]
pub unsafe fn merge<T: KvElement, const D: usize, const G: usize>(
    q: *const T,
    arena: *const T,
    block_table: *const u32,
    seqs: *const u32,
    lens: *const u32,
    log_mass: *const f32,
    order: *const u32,
    count: *const u32,
    budget: *const u32,
    peak: *const f32,
    rest: *const u64,
    partial: *const f32,
    partial_ml: *const f32,
    out: *mut f32,
    lse: *mut f32,
    read: *mut u32,
    mass_read: *mut f32,
    scale: f32,
    mass: f32,
    layer: u32,
    layers: u32,
    kv_heads: u32,
    group: u32,
    max_blocks: u32,
    max_splits: u32,
) {
    unsafe {
        let (h, b) = (block_idx_x(), block_idx_y());
        let tid = thread_idx_x() as usize;
        let row =
            Row::new(arena, block_table, seqs, lens, b, h, Geometry { layer, layers, kv_heads, max_blocks });
        let head = (b * kv_heads + h) as usize;
        let heads = group as usize;
        let queries = stage_queries::<T, D, G>(q.add(head * heads * D), group, scale);
        let parts = WarpParts::<D, G>::after(queries);
        let state = RowState::<D, G>::at(parts.end());
        if tid < heads {
            state.rest(tid).write(*rest.add(head * heads + tid));
        }

        // The splits, in order.
        let splits = splits(row.blocks() as usize);
        let first = head * max_splits as usize * G;
        let mut i = tid;
        while i < G * D {
            let (g, c) = (i / D, i % D);
            let ml = |s: usize, k: usize| *partial_ml.add(2 * (first + s * G + g) + k);
            let mut column = Column::new();
            let mut s = 0;
            while s < splits {
                column.raise(ml(s, 0));
                s += 1;
            }
            let mut s = 0;
            while s < splits {
                column.add(ml(s, 0), ml(s, 1), *partial.add((first + s * G + g) * D + c));
                s += 1;
            }
            state.store(g, c, column);
            i += THREADS;
        }
        sync_threads();

        // Read on until every head has enough.
        let order = order.add(head * max_blocks as usize);
        let log_mass = log_mass.add(head * heads * max_blocks as usize);
        let peak = peak.add(head * heads);
        let budget = *budget.add(b as usize);
        let limit = if budget < row.blocks() { budget } else { row.blocks() };
        let mut count = *count.add(head);
        let mut topups = 0;
        while count < limit {
            let mut satisfied = true;
            let mut g = 0;
            while g < heads {
                let (m, l) = state.ml(g);
                let z = relative_mass(m, l, *peak.add(g));
                satisfied &= enough(z, rest_mass(state.rest(g).read()), mass);
                g += 1;
            }
            if satisfied {
                break;
            }
            let end = if count + (TOPUP_CHUNK as u32) < limit { count + TOPUP_CHUNK as u32 } else { limit };
            let mut warp = WarpSoftmax::<G>::new();
            let mut rank = count + thread_idx_x() / 32;
            while rank < end {
                warp.read_block::<T, D>(&row, *order.add(rank as usize), queries);
                rank += WARPS as u32;
            }
            parts.store(&warp);
            // Also: everybody has read the state of the last round.
            sync_threads();
            if tid < heads {
                let mut left = state.rest(tid).read();
                let mut r = count;
                while r < end {
                    let block = *order.add(r as usize) as usize;
                    left -=
                        fixed_mass(*log_mass.add(tid * max_blocks as usize + block), *peak.add(tid)) as u64;
                    r += 1;
                }
                state.rest(tid).write(left);
            }
            let mut i = tid;
            while i < G * D {
                let (g, c) = (i / D, i % D);
                // (m, l) of the state are rewritten by the owner of channel 0 only after the barrier.
                let (m, l) = state.ml(g);
                let o = state.o(g, c).read();
                let mut column = Column::new();
                column.raise(m);
                cuda_std::unroll!(w < WARPS, max 4, {
                    column.raise(parts.m(w, g));
                });
                column.add(m, l, o);
                cuda_std::unroll!(w < WARPS, max 4, {
                    column.add(parts.m(w, g), parts.l(w, g), parts.o(w, g, c));
                });
                state.o(g, c).write(column.o);
                if c == 0 {
                    state.next_ml(g).write(column.m);
                    state.next_ml(g).add(1).write(column.l);
                }
                i += THREADS;
            }
            sync_threads();
            if tid < 2 * G {
                state.take_next(tid);
            }
            sync_threads();
            count = end;
            topups += 1;
        }

        let mut i = tid;
        while i < heads * D {
            let (g, c) = (i / D, i % D);
            let (m, l) = state.ml(g);
            let row = head * heads + g;
            *out.add(row * D + c) = if l > 0.0 { state.o(g, c).read() * rcp_approx(l) } else { 0.0 };
            if c == 0 {
                *lse.add(row) =
                    if l > 0.0 { (m + lg2_approx(l)) * core::f32::consts::LN_2 } else { f32::NEG_INFINITY };
                let z = relative_mass(m, l, *peak.add(g));
                *mass_read.add(row) = believed_mass(z, rest_mass(state.rest(g).read()));
            }
            i += THREADS;
        }
        if tid == 0 {
            *read.add(2 * head) = count;
            *read.add(2 * head + 1) = topups;
        }
    }
}

/// The row's state in shared memory: output `[G, D]`, (m, l) `[G, 2]`, the next round's (m, l)
/// `[G, 2]` and rest u64 `[G]`.
#[cfg(target_arch = "nvptx64")]
#[derive(Clone, Copy)]
struct RowState<const D: usize, const G: usize>(SharedPtr<f32>);

#[cfg(target_arch = "nvptx64")]
impl<const D: usize, const G: usize> RowState<D, G> {
    #[inline(always)]
    fn at(base: SharedPtr<f32>) -> Self {
        RowState(base)
    }

    #[inline(always)]
    fn o(self, g: usize, c: usize) -> SharedPtr<f32> {
        self.0.add((g * D + c) as u32)
    }

    #[inline(always)]
    fn current_ml(self, g: usize) -> SharedPtr<f32> {
        self.0.add((G * D + 2 * g) as u32)
    }

    #[inline(always)]
    fn next_ml(self, g: usize) -> SharedPtr<f32> {
        self.0.add((G * D + 2 * G + 2 * g) as u32)
    }

    #[inline(always)]
    fn rest(self, g: usize) -> SharedPtr<u64> {
        self.0.add((G * D + 4 * G) as u32).cast::<u64>().add(g as u32)
    }

    #[inline(always)]
    unsafe fn ml(self, g: usize) -> (f32, f32) {
        // SAFETY: inside the state; the callers separate it from the writers by a barrier.
        unsafe { (self.current_ml(g).read(), self.current_ml(g).add(1).read()) }
    }

    /// Stores a column; the owner of channel 0 stores (m, l).
    #[inline(always)]
    unsafe fn store(self, g: usize, c: usize, column: Column) {
        // SAFETY: as above.
        unsafe {
            self.o(g, c).write(column.o);
            if c == 0 {
                self.current_ml(g).write(column.m);
                self.current_ml(g).add(1).write(column.l);
            }
        }
    }

    /// Word `i` of the next round's (m, l) becomes the current one.
    #[inline(always)]
    unsafe fn take_next(self, i: usize) {
        // SAFETY: as above.
        unsafe { self.current_ml(0).add(i as u32).write(self.next_ml(0).add(i as u32).read()) }
    }
}
