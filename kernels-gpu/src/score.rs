//! score: the estimated log2 mass of every block for every query head, from the mirror.
//!
//! Grid (quarters of the row's groups, kv_heads, batch), 128 threads: a warp takes one 64-token group,
//! a lane two of its tokens. The query meets the group's steps in 15-bit integer weights, so a
//! token's score is an integer dot product, exact in any order; a block is half a warp. Blocks of the
//! open group have no mirror and are scored exactly from the slots.
//!
//! Trap: all of this is the bit-exact definition in `numeric` and docs/kernels.md; an "equivalent"
//! order of additions here is a different plan there.

use crate::element::KvElement;
use crate::layout::{
    BLOCK, BLOCKS_PER_GROUP, MAX_GROUP, MirrorKind, QUANT_GROUP, plane_offset, slot_elements,
};
use cuda_std::half::{bf16, f16};
use cuda_std::kernel;

#[cfg(target_arch = "nvptx64")]
use {
    crate::layout::{box_offset, full_groups, key_offset, plane_row_bytes, step_offset},
    crate::numeric::{LOG2_E, Unit, exp2, finite_score, fma, log2},
    crate::row::{Cache, Row},
    cuda_std::ptx::{V4, dp2a_hi_s32_u32, dp2a_lo_s32_u32},
    cuda_std::shared::{SharedPtr, dynamic_shared},
    cuda_std::thread::{block_idx_x, block_idx_y, block_idx_z, thread_idx_x},
    cuda_std::warp::{group_max_f32, group_sum_f32, lane_id, sync_warp},
};

/// Warps of a CTA, each with a group of its own.
pub const WARPS: usize = 4;

/// Shared bytes: per warp, the 16-bit weights of one query head, or its scaled elements in f32.
pub const fn shared_bytes(head_dim: usize) -> usize {
    WARPS * head_dim * 4
}

/// The grid's first extent for a row of `tokens` tokens.
pub const fn grid_x(tokens: usize) -> usize {
    tokens.div_ceil(QUANT_GROUP).div_ceil(WARPS)
}

/// Scores from `P` planes of 2 bits.
///
/// # Safety
/// q: `[batch, kv_heads * group, D]`; log_mass: `[batch, kv_heads * group, max_blocks]`; the tables
/// name a slot for every block and a page for every full group.
#[kernel(
    block = 128,
    // Without it ptxas aims at 8 CTAs at 64 dims and spills for sm_100 and sm_120.
    min_blocks_per_sm = if D == 64 { 7 } else { 5 },
    dynamic_shared = shared_bytes(D),
    instances(T in [bf16, f16], D in [64, 128], P in [1, 2]),
    grid = (let quarters, kv_heads, let batch),
    out(log_mass),
    align(arena = 16, mirror = 16),
    requires(
        1 <= group,
        group <= MAX_GROUP,
        quarters * WARPS * QUANT_GROUP >= lens.max(),
        q.len() >= batch * kv_heads * group * D,
        log_mass.len() >= batch * kv_heads * group * max_blocks,
        layer < layers,
        max_blocks % BLOCKS_PER_GROUP == 0,
        seqs.len() >= batch,
        lens.len() >= batch,
        lens.max() <= max_blocks * BLOCK,
        // Rows are numbered in 32 bits.
        (seqs.max() + 1) * layers * kv_heads <= u32::MAX,
        block_table.len() >= (seqs.max() + 1) * layers * kv_heads * max_blocks,
        arena.len() >= (block_table.max() + 1) * slot_elements(D),
        mirror_table.len() * BLOCKS_PER_GROUP >= (seqs.max() + 1) * layers * kv_heads * max_blocks,
        mirror.len() >= (mirror_table.max() + 1) * plane_offset(D, P),
    )
)]
pub unsafe fn score<T: KvElement, const D: usize, const P: usize>(
    q: *const T,
    arena: *const T,
    mirror: *const u8,
    block_table: *const u32,
    mirror_table: *const u32,
    seqs: *const u32,
    lens: *const u32,
    log_mass: *mut f32,
    scale: f32,
    layer: u32,
    layers: u32,
    kv_heads: u32,
    group: u32,
    max_blocks: u32,
) {
    unsafe {
        let cache = Cache { arena, block_table, seqs, lens, layer, layers, kv_heads, max_blocks };
        let Some(task) = Task::new::<D>(cache, q, log_mass, scale, group) else { return };
        if task.open() {
            task.score_exactly::<D>();
            return;
        }
        let lane = lane_id() as usize;
        let page = task.row.page(mirror, mirror_table, task.group_index, plane_offset(D, P));

        // Codes of the lane's two tokens, zeros and steps of its channels: read once for all heads.
        let mut codes = [[[0u32; 8]; P]; 2]; // [token, plane, word]
        cuda_std::unroll!(p < P, max 2, {
            cuda_std::unroll!(i < 2, max 2, {
                let row = page.add(plane_offset(D, p) + (lane + 32 * i) * plane_row_bytes(D)) as *const V4;
                cuda_std::unroll!(w < D / 64, max 2, {
                    let V4(words) = *row.add(w);
                    cuda_std::unroll!(e < 4, max 4, {
                        codes[i][p][4 * w + e] = words[e];
                    });
                });
            });
        });
        let mut zeros = [0.0f32; 4];
        let mut steps = [0.0f32; 4];
        cuda_std::unroll!(k < D / 32, max 4, {
            zeros[k] = (*(page as *const f16).add(lane + 32 * k)).to_f32();
            steps[k] = (*(page.add(step_offset(D)) as *const f16).add(lane + 32 * k)).to_f32();
        });

        let weights = task.scratch::<D>();
        let mut g = 0;
        while g < group {
            // The head's weights for this group.
            let mut products = [0.0f32; 4];
            let (mut zero, mut peak) = (0.0f32, 0.0f32);
            cuda_std::unroll!(k < D / 32, max 4, {
                let qs = task.query::<D>(g, lane + 32 * k);
                zero = fma(qs, zeros[k], zero);
                products[k] = qs * steps[k];
                let magnitude = products[k].abs();
                peak = if magnitude > peak { magnitude } else { peak };
            });
            zero = group_sum_f32::<32>(zero);
            peak = group_max_f32::<32>(peak);
            let unit = Unit::of_peak(peak);
            cuda_std::unroll!(k < D / 32, max 4, {
                weights.cast::<u16>().add((lane + 32 * k) as u32).write(unit.weight(products[k]) as u16);
            });
            sync_warp(!0);

            // Integer dot products of the lane's two tokens with the weights.
            let mut dot = [0i32; 2];
            cuda_std::unroll!(w < D / 16, max 8, {
                cuda_std::unroll!(j < 4, max 4, {
                    let pairs = weights.cast::<u32>().add((8 * w + 2 * j) as u32).read_v2();
                    cuda_std::unroll!(i < 2, max 2, {
                        let mut four = (codes[i][0][w] >> (2 * j)) & 0x0303_0303;
                        if P == 2 {
                            four = four << 2 | ((codes[i][P - 1][w] >> (2 * j)) & 0x0303_0303);
                        }
                        dot[i] = dp2a_lo_s32_u32(pairs[0], four, dot[i]);
                        dot[i] = dp2a_hi_s32_u32(pairs[1], four, dot[i]);
                    });
                });
            });
            cuda_std::unroll!(i < 2, max 2, {
                task.store_block(g, lane + 32 * i, unit.score(zero, dot[i]));
            });
            sync_warp(!0);
            g += 1;
        }
    }
}

/// Scores by Quest's box: the largest score that a key inside the block's bounds could have.
///
/// # Safety
/// As [`score`], with pages written by `append_box`.
#[kernel(
    block = 128,
    dynamic_shared = shared_bytes(D),
    instances(T in [bf16, f16], D in [64, 128]),
    grid = (let quarters, kv_heads, let batch),
    out(log_mass),
    align(arena = 16, mirror = 16),
    requires(
        1 <= group,
        group <= MAX_GROUP,
        quarters * WARPS * QUANT_GROUP >= lens.max(),
        q.len() >= batch * kv_heads * group * D,
        log_mass.len() >= batch * kv_heads * group * max_blocks,
        layer < layers,
        max_blocks % BLOCKS_PER_GROUP == 0,
        seqs.len() >= batch,
        lens.len() >= batch,
        lens.max() <= max_blocks * BLOCK,
        // Rows are numbered in 32 bits.
        (seqs.max() + 1) * layers * kv_heads <= u32::MAX,
        block_table.len() >= (seqs.max() + 1) * layers * kv_heads * max_blocks,
        arena.len() >= (block_table.max() + 1) * slot_elements(D),
        mirror_table.len() * BLOCKS_PER_GROUP >= (seqs.max() + 1) * layers * kv_heads * max_blocks,
        mirror.len() >= (mirror_table.max() + 1) * MirrorKind::Box.page_bytes(D),
    )
)]
pub unsafe fn score_box<T: KvElement, const D: usize>(
    q: *const T,
    arena: *const T,
    mirror: *const u8,
    block_table: *const u32,
    mirror_table: *const u32,
    seqs: *const u32,
    lens: *const u32,
    log_mass: *mut f32,
    scale: f32,
    layer: u32,
    layers: u32,
    kv_heads: u32,
    group: u32,
    max_blocks: u32,
) {
    unsafe {
        let cache = Cache { arena, block_table, seqs, lens, layer, layers, kv_heads, max_blocks };
        let Some(task) = Task::new::<D>(cache, q, log_mass, scale, group) else { return };
        if task.open() {
            task.score_exactly::<D>();
            return;
        }
        // A lane takes one (query head, block of the group): 8 heads of 4 blocks fill the warp.
        let page = task.row.page(mirror, mirror_table, task.group_index, MirrorKind::Box.page_bytes(D));
        let (g, block) = (lane_id() / BLOCKS_PER_GROUP as u32, lane_id() as usize % BLOCKS_PER_GROUP);
        if g < group {
            let bounds = page.add(box_offset(D, block)) as *const T;
            let mut bound = 0.0f32;
            let mut c = 0;
            while c < D {
                let low = T::unpack8(*(bounds.add(c) as *const V4));
                let high = T::unpack8(*(bounds.add(D + c) as *const V4));
                cuda_std::unroll!(e < 8, max 8, {
                    let qs = task.query::<D>(g, c + e);
                    let (a, b) = (qs * low[e], qs * high[e]);
                    bound += if a > b { a } else { b };
                });
                c += 8;
            }
            task.store(g, block as u32, finite_score(bound) + 4.0);
        }
    }
}

/// One warp's share: one 64-token group of one KV head.
#[cfg(target_arch = "nvptx64")]
struct Task<T> {
    row: Row<T>,
    group_index: u32,
    queries: *const T,  // [group, D], this KV head's
    log_mass: *mut f32, // [group, max_blocks], this KV head's
    scale: f32,
    group: u32,
    max_blocks: u32,
}

#[cfg(target_arch = "nvptx64")]
impl<T: KvElement> Task<T> {
    /// None for a warp beyond the row's end.
    #[inline(always)]
    unsafe fn new<const D: usize>(
        cache: Cache<T>,
        q: *const T,
        log_mass: *mut f32,
        scale: f32,
        group: u32,
    ) -> Option<Self> {
        unsafe {
            let (h, b) = (block_idx_y(), block_idx_z());
            let row = cache.row(b, h);
            let group_index = block_idx_x() * WARPS as u32 + thread_idx_x() / 32;
            if group_index * QUANT_GROUP as u32 >= row.tokens {
                return None;
            }
            let head = ((b * cache.kv_heads + h) * group) as usize;
            Some(Task {
                row,
                group_index,
                queries: q.add(head * D),
                log_mass: log_mass.add(head * cache.max_blocks as usize),
                scale,
                group,
                max_blocks: cache.max_blocks,
            })
        }
    }

    /// True for the group that is not full, and so has no page.
    #[inline(always)]
    fn open(&self) -> bool {
        self.group_index as usize >= full_groups(self.row.tokens as usize)
    }

    /// This warp's shared memory: `D` words.
    #[inline(always)]
    fn scratch<const D: usize>(&self) -> SharedPtr<f32> {
        dynamic_shared::<f32>().add(thread_idx_x() / 32 * D as u32)
    }

    /// Element `c` of query head `g`, scaled into the log2 domain.
    #[inline(always)]
    unsafe fn query<const D: usize>(&self, g: u32, c: usize) -> f32 {
        unsafe { (*self.queries.add(g as usize * D + c)).to_f32() * self.scale * LOG2_E }
    }

    /// Reduces the 16 token scores of a half warp to their block's log2 mass and stores it. `token` is
    /// the calling lane's token in the group.
    #[inline(always)]
    unsafe fn store_block(&self, g: u32, token: usize, score: f32) {
        unsafe {
            let m = group_max_f32::<16>(score);
            let sum = group_sum_f32::<16>(exp2(score - m));
            if token % BLOCK == 0 {
                self.store(g, (token / BLOCK) as u32, m + log2(sum));
            }
        }
    }

    /// Stores the log2 mass of a block of the group.
    #[inline(always)]
    unsafe fn store(&self, g: u32, block_in_group: u32, value: f32) {
        let block = self.group_index * BLOCKS_PER_GROUP as u32 + block_in_group;
        if block < self.row.blocks() {
            unsafe { *self.log_mass.add((g * self.max_blocks + block) as usize) = value };
        }
    }

    /// The open group: exact scores from the keys themselves.
    #[inline(always)]
    unsafe fn score_exactly<const D: usize>(&self) {
        unsafe {
            let lane = lane_id() as usize;
            let queries = self.scratch::<D>();
            let mut g = 0;
            while g < self.group {
                cuda_std::unroll!(k < D / 32, max 4, {
                    let c = lane + 32 * k;
                    queries.add(c as u32).write(self.query::<D>(g, c));
                });
                sync_warp(!0);
                let mut i = 0;
                while i < 2 {
                    let token = lane + 32 * i;
                    let position = self.group_index as usize * QUANT_GROUP + token;
                    let mut score = f32::NEG_INFINITY;
                    if position < self.row.tokens as usize {
                        let key = self
                            .row
                            .slot::<D>((position / BLOCK) as u32)
                            .add(key_offset(D, position % BLOCK));
                        let mut dot = 0.0f32;
                        let mut c = 0;
                        while c < D {
                            let k = T::unpack8(*(key.add(c) as *const V4));
                            let a = queries.add(c as u32).read_v4();
                            let b = queries.add(c as u32 + 4).read_v4();
                            cuda_std::unroll!(e < 4, max 4, {
                                dot = fma(a[e], k[e], dot);
                            });
                            cuda_std::unroll!(e < 4, max 4, {
                                dot = fma(b[e], k[e + 4], dot);
                            });
                            c += 8;
                        }
                        score = finite_score(dot);
                    }
                    // A block without tokens is not stored; one with some has a finite maximum.
                    self.store_block(g, token, score);
                    i += 1;
                }
                sync_warp(!0);
                g += 1;
            }
        }
    }
}
