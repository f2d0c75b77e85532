//! merge: combines the splits in fixed order, tests the stop rule on the exact mass, and tops up.
//!
//! Grid (kv_heads, batch), 128 threads. The splits are added 0, 1, 2, ..; then, while some query head
//! has not read its share of the mass, the next blocks of the ranking are attended to here, a chunk at
//! a time, with the same code as `attend`. The decision never leaves the device.
//!
//! State of the row in shared memory, behind what `attend` uses: output `[8, D]`, (m, l) `[8, 2]`,
//! rest u64 `[8]`. Every thread owns the same columns (g, c) throughout.

use crate::element::KvElement;
use crate::layout::{BLOCK, BLOCKS_PER_GROUP, BLOCKS_PER_SPLIT, MAX_GROUP, MAX_SPLITS, slot_elements};
use cuda_std::half::{bf16, f16};
use cuda_std::kernel;

#[cfg(target_arch = "nvptx64")]
use {
    crate::attend::{THREADS, WARPS, stages, warp_bytes},
    crate::layout::{TOPUP_CHUNK, key_offset, splits},
    crate::numeric::{LOG2_E, believed_mass, fixed_mass, relative_mass, rest_mass},
    crate::pages::Pages,
    crate::parts::{Column, WarpParts},
    crate::row::{Cache, Row},
    crate::stop::{Threshold, verdict},
    crate::stream::{Queries, Stream},
    cuda_std::ptx::{V4, lg2_approx, rcp_approx},
    cuda_std::shared::{SharedPtr, dynamic_shared},
    cuda_std::thread::{block_idx_x, block_idx_y, sync_threads, thread_idx_x},
    cuda_std::warp::{lane_id, warp_shuffle_xor},
};

/// Shared bytes: what `attend` uses, and the state of the row.
pub const fn shared_bytes(head_dim: usize) -> usize {
    crate::attend::shared_bytes(head_dim) + 4 * (MAX_GROUP * head_dim + 4 * MAX_GROUP) + 8 * MAX_GROUP
}

/// Merges the splits, tops up until `mass` is reached, and writes the results.
///
/// # Safety
/// Buffers as in docs/kernels.md, written by `score`, `plan` and `attend` of the same step; `group` is 1 to 8.
/// `mass = 0` switches the stop test off.
#[kernel(
    block = 128,
    // What shared memory allows on sm_90. Without it ptxas aims at an occupancy of its own and spills.
    min_blocks_per_sm = 3,
    dynamic_shared = shared_bytes(D),
    instances(T in [bf16, f16], D in [64, 128]),
    shape(head_dim, group),
    feasible(
        head_dim == D => "the channels of a row are tiles of the tensor cores, laid out at compile time",
        1 <= group => "a KV head has a query head",
        group <= MAX_GROUP => "a group's query heads are the 8 columns of a tensor core's tile",
    ),
    grid = (kv_heads, let batch),
    out(out, lse, read, mass_read),
    align(q = 16, arena = 16),
    requires(
        1 <= group,
        group <= MAX_GROUP,
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
        partial.len() >= batch * kv_heads * max_splits * group * D,
        partial_ml.len() >= batch * kv_heads * max_splits * group * 2,
        // Offsets in `order` and `partial_ml` are 32 bits.
        batch * kv_heads * max_blocks <= u32::MAX,
        batch * kv_heads * max_splits * group <= u32::MAX,
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
pub unsafe fn merge<T: KvElement, const D: usize>(
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
        let (tid, warp, lane) = (thread_idx_x() as usize, thread_idx_x() / 32, lane_id());
        let cache = Cache { arena, block_table, seqs, lens, layer, layers, kv_heads, max_blocks };
        let row = cache.row(b, h);
        let head = (b * kv_heads + h) as usize;
        let heads = group as usize;
        let shared = dynamic_shared::<T>();
        let parts = WarpParts::<D>::new(shared.cast(), warp_bytes(D));
        let state = RowState::<D>::at(shared.byte_add(crate::attend::shared_bytes(D) as u32).cast());
        let query_memory = shared.byte_add((WARPS * warp_bytes(D)) as u32);
        Queries::<T, D>::share::<THREADS>(q.add(head * heads * D), group, query_memory, tid);
        if tid < heads {
            state.rest(tid).write(*rest.add(head * heads + tid));
        }

        // The splits, in order.
        let splits = splits(row.blocks() as usize);
        let first = head * max_splits as usize * heads;
        let mut i = tid;
        while i < heads * D {
            let (g, c) = (i / D, i % D);
            let ml = |s: usize, k: usize| *partial_ml.add(2 * (first + s * heads + g) + k);
            let mut column = Column::new();
            let mut s = 0;
            while s < splits {
                column.raise(ml(s, 0));
                s += 1;
            }
            let mut s = 0;
            while s < splits {
                column.add(ml(s, 0), ml(s, 1), *partial.add((first + s * heads + g) * D + c));
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
            let (mut satisfied, mut close) = (true, 0u32);
            let mut g = 0;
            while g < heads {
                let (m, l) = state.ml(g);
                match verdict(relative_mass(m, l, *peak.add(g)), state.rest(g).read(), mass) {
                    Some(enough) => satisfied &= enough,
                    None => close |= 1 << g,
                }
                g += 1;
            }
            // All threads have seen the same, so they take these turns together.
            while satisfied && close != 0 {
                let g = close.trailing_zeros() as usize;
                close &= close - 1;
                let threshold = Threshold::new(*peak.add(g), state.rest(g).read(), mass);
                let q = q.add((head * heads + g) * D);
                satisfied = enough_exactly::<T, D>(&row, order, count, q, scale, threshold, shared.cast());
            }
            if satisfied {
                break;
            }
            let end = if count + (TOPUP_CHUNK as u32) < limit { count + TOPUP_CHUNK as u32 } else { limit };
            let pages = Pages::new(&row, order, count + warp, WARPS as u32, end, lane);
            let queries = Queries::<T, D>::load(query_memory, group, scale, lane);
            let memory = shared.byte_add(warp * warp_bytes(D) as u32);
            let mut stream = Stream::<D>::new();
            if D == 64 {
                stream.read::<T, { stages(64) }>(&queries, pages, memory);
            } else {
                stream.read::<T, { stages(128) }>(&queries, pages, memory);
            }
            parts.store(&stream, warp as usize, lane);
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
            while i < heads * D {
                let (g, c) = (i / D, i % D);
                // (m, l) of the state are rewritten by the owner of channel 0 only after the barrier.
                let (m, l) = state.ml(g);
                let o = state.o(g, c).read();
                let mut column = Column::new();
                column.raise(m);
                column.raise_to::<D, WARPS>(parts, g);
                column.add(m, l, o);
                column.add_all::<D, WARPS>(parts, g, c);
                state.o(g, c).write(column.o);
                if c == 0 {
                    state.next_ml(g).write(column.m);
                    state.next_ml(g).add(1).write(column.l);
                }
                i += THREADS;
            }
            sync_threads();
            if tid < 2 * heads {
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

/// Whether the first `count` blocks of the plan hold the threshold's mass for the head with query `q`, in the
/// arithmetic that has one result ([`crate::stop`]). A thread takes every 128th token. Rare, hence plain.
///
/// # Safety
/// All threads of the CTA make this call; `sums` has a word for each warp that nobody uses.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
unsafe fn enough_exactly<T: KvElement, const D: usize>(
    row: &Row<T>,
    order: *const u32,
    count: u32,
    q: *const T,
    scale: f32,
    threshold: Threshold,
    sums: SharedPtr<u64>,
) -> bool {
    unsafe {
        let mut sum = 0;
        let mut i = thread_idx_x();
        while i < count * BLOCK as u32 {
            let (block, token) = (*order.add(i as usize / BLOCK), i % BLOCK as u32);
            if block * BLOCK as u32 + token < row.tokens {
                let key = row.slot::<D>(block).add(key_offset(D, token as usize));
                let mut score = 0.0f64;
                let mut c = 0;
                while c < D {
                    let k = T::unpack8(*(key.add(c) as *const V4));
                    let q = T::unpack8(*(q.add(c) as *const V4));
                    cuda_std::unroll!(e < 8, max 8, {
                        score = Threshold::add(score, q[e] * scale * LOG2_E, k[e]);
                    });
                    c += 8;
                }
                sum += threshold.share(score);
            }
            i += THREADS as u32;
        }
        let mut distance = 16;
        while distance > 0 {
            sum += warp_shuffle_xor(u32::MAX, sum, distance, 32).0;
            distance /= 2;
        }
        sums.add(thread_idx_x() / 32).write(sum);
        sync_threads();
        let mut total = 0;
        cuda_std::unroll!(w < WARPS, max 4, { total += sums.add(w as u32).read() });
        // The next user of the memory comes behind this.
        sync_threads();
        total >= Threshold::ENOUGH
    }
}

/// The row's state in shared memory: output `[8, D]`, (m, l) `[8, 2]`, the next round's (m, l)
/// `[8, 2]` and rest u64 `[8]`.
#[cfg(target_arch = "nvptx64")]
#[derive(Clone, Copy)]
struct RowState<const D: usize>(SharedPtr<f32>);

#[cfg(target_arch = "nvptx64")]
impl<const D: usize> RowState<D> {
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
        self.0.add((MAX_GROUP * D + 2 * g) as u32)
    }

    #[inline(always)]
    fn next_ml(self, g: usize) -> SharedPtr<f32> {
        self.0.add((MAX_GROUP * D + 2 * MAX_GROUP + 2 * g) as u32)
    }

    #[inline(always)]
    fn rest(self, g: usize) -> SharedPtr<u64> {
        self.0.add((MAX_GROUP * D + 4 * MAX_GROUP) as u32).cast::<u64>().add(g as u32)
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
