//! attend: exact attention over the planned blocks of one (sequence, KV head), in splits.
//!
//! Grid (max_splits, kv_heads, batch), 128 threads. Split s of S takes the ranks s, s + S, .. of the
//! plan, so that all splits advance down the ranking together; its four warps take its ranks in turn
//! and are independent streams, merged once at the end. Dense attention is this kernel with the
//! identity plan.
//!
//! Within a warp: two lanes share a token while scoring (half the channels each); every lane owns
//! `D / 32` channels of the output. Query heads of the group share every byte of K and V that is read.
//!
//! Trap: tokens beyond the length are skipped, not multiplied by zero: their slots may hold NaN.

use crate::element::KvElement;
use crate::layout::{BLOCK, BLOCKS_PER_GROUP, BLOCKS_PER_SPLIT, MAX_SPLITS, slot_elements};
use cuda_std::half::{bf16, f16};
use cuda_std::kernel;

#[cfg(target_arch = "nvptx64")]
use {
    crate::layout::{key_offset, splits, value_offset},
    crate::numeric::{LOG2_E, finite_score, fma},
    crate::row::{Geometry, Row},
    cuda_std::ptx::{V2, V4, ex2_approx},
    cuda_std::shared::{SharedPtr, dynamic_shared},
    cuda_std::thread::{block_idx_x, block_idx_y, block_idx_z, sync_threads, thread_idx_x},
    cuda_std::warp::{lane_id, shfl_idx_f32, shfl_xor_f32},
};

/// Warps of a CTA.
pub const WARPS: usize = 4;
/// Threads of a CTA.
pub const THREADS: usize = 32 * WARPS;
/// The running maximum of a softmax that has seen nothing: finite, so that differences are no NaN.
pub const NOTHING: f32 = -1e30;

/// Query heads that a kernel computes for a group: the next power of two.
pub const fn head_tile(group: usize) -> usize {
    group.next_power_of_two()
}

/// Shared bytes: the scaled queries `[G, D]`, then output `[warps, G, D]` and (m, l) `[warps, G, 2]`.
pub const fn shared_bytes(head_dim: usize, heads: usize) -> usize {
    4 * (heads * head_dim + WARPS * heads * head_dim + WARPS * heads * 2)
}

/// Attends to this split's share of the plan.
///
/// # Safety
/// Buffers as in docs/kernels.md; `G = head_tile(group)`; the plan names blocks of the row.
#[kernel(
    block = 128,
    min_blocks_per_sm = 3,
    dynamic_shared = shared_bytes(D, G),
    instances(T in [bf16, f16], D in [64, 128], G in [1, 2, 4, 8]),
    shape(head_dim, group),
    feasible(
        head_dim == D => "the channels of a row are spread over the lanes at compile time",
        group <= G => "every query head of a group has its own accumulators",
    ),
    prefer(least G => "heads beyond the group are computed for nothing"),
    grid = (let splits, kv_heads, let batch),
    out(partial, partial_ml),
    align(arena = 16),
    requires(
        1 <= group,
        group <= G,
        splits <= max_splits,
        splits >= lens.max().div_ceil(BLOCK * BLOCKS_PER_SPLIT).min(MAX_SPLITS),
        q.len() >= batch * kv_heads * group * D,
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
pub unsafe fn attend<T: KvElement, const D: usize, const G: usize>(
    q: *const T,
    arena: *const T,
    block_table: *const u32,
    seqs: *const u32,
    lens: *const u32,
    order: *const u32,
    count: *const u32,
    partial: *mut f32,
    partial_ml: *mut f32,
    scale: f32,
    layer: u32,
    layers: u32,
    kv_heads: u32,
    group: u32,
    max_blocks: u32,
    max_splits: u32,
) {
    unsafe {
        let (split, h, b) = (block_idx_x(), block_idx_y(), block_idx_z());
        let row =
            Row::new(arena, block_table, seqs, lens, b, h, Geometry { layer, layers, kv_heads, max_blocks });
        let splits = splits(row.blocks() as usize) as u32;
        if split >= splits {
            return;
        }
        let head = b * kv_heads + h;
        let queries = stage_queries::<T, D, G>(q.add((head * group) as usize * D), group, scale);

        let order = order.add((head * max_blocks) as usize);
        let count = *count.add(head as usize);
        let mut warp = WarpSoftmax::<G>::new();
        let mut rank = split + thread_idx_x() / 32 * splits;
        while rank < count {
            warp.read_block::<T, D>(&row, *order.add(rank as usize), queries);
            rank += WARPS as u32 * splits;
        }
        let parts = WarpParts::<D, G>::after(queries);
        parts.store(&warp);
        sync_threads();

        let first = ((head * max_splits + split) as usize) * G;
        let mut i = thread_idx_x() as usize;
        while i < G * D {
            let (g, c) = (i / D, i % D);
            let mut column = Column::new();
            cuda_std::unroll!(w < WARPS, max 4, {
                column.raise(parts.m(w, g));
            });
            cuda_std::unroll!(w < WARPS, max 4, {
                column.add(parts.m(w, g), parts.l(w, g), parts.o(w, g, c));
            });
            *partial.add(first * D + i) = column.o;
            if c == 0 {
                *partial_ml.add(2 * (first + g)) = column.m;
                *partial_ml.add(2 * (first + g) + 1) = column.l;
            }
            i += THREADS;
        }
    }
}

/// Puts the group's queries, scaled into the log2 domain, into shared memory as f32 `[G, D]`; rows
/// beyond the group are zero. Ends with a barrier.
///
/// # Safety
/// q: `[group, D]`; all threads of the CTA call it.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
pub unsafe fn stage_queries<T: KvElement, const D: usize, const G: usize>(
    q: *const T,
    group: u32,
    scale: f32,
) -> SharedPtr<f32> {
    unsafe {
        let queries = dynamic_shared::<f32>();
        let mut i = thread_idx_x() as usize;
        while i < G * D {
            let x = if i < group as usize * D { (*q.add(i)).to_f32() } else { 0.0 };
            queries.add(i as u32).write(x * scale * LOG2_E);
            i += THREADS;
        }
        sync_threads();
        queries
    }
}

/// The online softmax of one warp over `G` query heads: maximum and sum per lane, and the lane's
/// `D / 32` channels of the un-normalised output.
#[cfg(target_arch = "nvptx64")]
pub struct WarpSoftmax<const G: usize> {
    m: [f32; G],
    /// Sum over the tokens this lane scored; both lanes of a token hold the same.
    l: [f32; G],
    o: [[f32; 4]; G],
}

#[cfg(target_arch = "nvptx64")]
impl<const G: usize> WarpSoftmax<G> {
    /// Nothing read yet.
    #[inline(always)]
    pub fn new() -> Self {
        WarpSoftmax { m: [NOTHING; G], l: [0.0; G], o: [[0.0; 4]; G] }
    }

    /// Attends to one block: scores its keys, rescales, adds its values.
    ///
    /// # Safety
    /// `block` is one of the row's; `queries` holds `[G, D]`; the whole warp calls it.
    #[inline(always)]
    pub unsafe fn read_block<T: KvElement, const D: usize>(
        &mut self,
        row: &Row<T>,
        block: u32,
        queries: SharedPtr<f32>,
    ) {
        unsafe {
            let lane = lane_id();
            let slot = row.slot::<D>(block);
            let visible = row.tokens - block * BLOCK as u32;

            let (token, half) = (lane / 2, lane % 2);
            let key = slot.add(key_offset(D, token as usize) + half as usize * (D / 2)) as *const V4;
            let q = queries.add(half * (D / 2) as u32);
            let mut p = [0.0f32; G];
            cuda_std::unroll!(i < D / 16, max 8, {
                let k = if token < visible { T::unpack8(*key.add(i)) } else { [0.0; 8] };
                cuda_std::unroll!(g < G, max 8, {
                    let a = q.add((g * D + 8 * i) as u32).read_v4();
                    let b = q.add((g * D + 8 * i + 4) as u32).read_v4();
                    cuda_std::unroll!(e < 4, max 4, {
                        p[g] = fma(a[e], k[e], p[g]);
                    });
                    cuda_std::unroll!(e < 4, max 4, {
                        p[g] = fma(b[e], k[e + 4], p[g]);
                    });
                });
            });

            cuda_std::unroll!(g < G, max 8, {
                let score = finite_score(p[g] + shfl_xor_f32(p[g], 1));
                let score = if token < visible { score } else { f32::NEG_INFINITY };
                let mut m = if score > self.m[g] { score } else { self.m[g] };
                cuda_std::unroll!(s < 4, max 4, {
                    let other = shfl_xor_f32(m, 16 >> s);
                    m = if other > m { other } else { m };
                });
                let rescale = ex2_approx(self.m[g] - m);
                p[g] = ex2_approx(score - m);
                self.l[g] = fma(self.l[g], rescale, p[g]);
                self.m[g] = m;
                cuda_std::unroll!(c < D / 32, max 4, {
                    self.o[g][c] *= rescale;
                });
            });

            let value = slot.add(value_offset(D, 0) + lane as usize * (D / 32));
            cuda_std::unroll!(t < BLOCK, max 16, {
                if (t as u32) < visible {
                    let v = load_channels::<T, D>(value.add(t * D));
                    cuda_std::unroll!(g < G, max 8, {
                        let weight = shfl_idx_f32(p[g], 2 * t as u32);
                        cuda_std::unroll!(c < D / 32, max 4, {
                            self.o[g][c] = fma(weight, v[c], self.o[g][c]);
                        });
                    });
                }
            });
        }
    }
}

/// `D / 32` neighbouring channels (2 or 4) of a value.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
unsafe fn load_channels<T: KvElement, const D: usize>(v: *const T) -> [f32; 4] {
    unsafe {
        if D == 64 {
            let [a, b] = T::unpack2(*(v as *const u32));
            [a, b, 0.0, 0.0]
        } else {
            let V2([x, y]) = *(v as *const V2);
            let ([a, b], [c, d]) = (T::unpack2(x), T::unpack2(y));
            [a, b, c, d]
        }
    }
}

/// The four warps' results in shared memory: output `[warps, G, D]`, then (m, l) `[warps, G, 2]`.
#[cfg(target_arch = "nvptx64")]
#[derive(Clone, Copy)]
pub struct WarpParts<const D: usize, const G: usize>(SharedPtr<f32>);

#[cfg(target_arch = "nvptx64")]
impl<const D: usize, const G: usize> WarpParts<D, G> {
    /// The space behind the queries `[G, D]`.
    #[inline(always)]
    pub fn after(queries: SharedPtr<f32>) -> Self {
        WarpParts(queries.add((G * D) as u32))
    }

    /// First word behind this space.
    #[inline(always)]
    pub fn end(self) -> SharedPtr<f32> {
        self.0.add((WARPS * G * D + WARPS * G * 2) as u32)
    }

    #[inline(always)]
    fn ml(self, w: usize, g: usize) -> SharedPtr<f32> {
        self.0.add((WARPS * G * D + 2 * (w * G + g)) as u32)
    }

    /// Stores the calling warp's state.
    ///
    /// # Safety
    /// The whole warp calls it; a barrier separates it from readers, before and after.
    #[inline(always)]
    pub unsafe fn store(self, warp: &WarpSoftmax<G>) {
        unsafe {
            let (w, lane) = (thread_idx_x() as usize / 32, lane_id() as usize);
            cuda_std::unroll!(g < G, max 8, {
                // Lanes 2 i and 2 i + 1 hold the same sums: add over the pairs.
                let mut l = warp.l[g];
                cuda_std::unroll!(s < 4, max 4, {
                    l += shfl_xor_f32(l, 16 >> s);
                });
                if lane == 0 {
                    self.ml(w, g).write(warp.m[g]);
                    self.ml(w, g).add(1).write(l);
                }
                let o = self.0.add(((w * G + g) * D + lane * (D / 32)) as u32);
                cuda_std::unroll!(c < D / 32, max 4, {
                    o.add(c as u32).write(warp.o[g][c]);
                });
            });
        }
    }

    /// Running maximum of warp `w`, head `g`.
    ///
    /// # Safety
    /// Stored, and a barrier since.
    #[inline(always)]
    pub unsafe fn m(self, w: usize, g: usize) -> f32 {
        unsafe { self.ml(w, g).read() }
    }

    /// Sum of warp `w`, head `g`.
    ///
    /// # Safety
    /// As [`Self::m`].
    #[inline(always)]
    pub unsafe fn l(self, w: usize, g: usize) -> f32 {
        unsafe { self.ml(w, g).add(1).read() }
    }

    /// Output of warp `w`, head `g`, channel `c`.
    ///
    /// # Safety
    /// As [`Self::m`].
    #[inline(always)]
    pub unsafe fn o(self, w: usize, g: usize, c: usize) -> f32 {
        unsafe { self.0.add(((w * G + g) * D + c) as u32).read() }
    }
}

/// One channel of one head while parts are combined: first the maximum of all parts, then their sums
/// in the order of the calls.
#[cfg(target_arch = "nvptx64")]
#[derive(Clone, Copy)]
pub struct Column {
    /// Running maximum, log2.
    pub m: f32,
    /// Sum of weights relative to `m`.
    pub l: f32,
    /// Un-normalised output.
    pub o: f32,
}

#[cfg(target_arch = "nvptx64")]
impl Column {
    /// Nothing read.
    #[inline(always)]
    pub fn new() -> Self {
        Column { m: NOTHING, l: 0.0, o: 0.0 }
    }

    /// Takes a part's maximum into account; all of these come before the first [`Self::add`].
    #[inline(always)]
    pub fn raise(&mut self, m: f32) {
        self.m = if m > self.m { m } else { self.m };
    }

    /// Adds a part.
    #[inline(always)]
    pub fn add(&mut self, m: f32, l: f32, o: f32) {
        let weight = ex2_approx(m - self.m);
        self.l = fma(l, weight, self.l);
        self.o = fma(o, weight, self.o);
    }
}
