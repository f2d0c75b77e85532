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
    crate::layout::{box_offset, full_groups, key_offset},
    crate::mirrored::{Head, Heads, Ranges, all_planes, block_mass, dots, read_codes},
    crate::numeric::{NEGLIGIBLE, finite_score, fixed_mass, fma, look_threshold, spread},
    crate::row::{Cache, Row},
    cuda_std::atomic::global::add_u32,
    cuda_std::atomic::{Ordering, Scope},
    cuda_std::ptx::V4,
    cuda_std::shared::{SharedPtr, dynamic_shared},
    cuda_std::thread::{block_idx_x, block_idx_y, block_idx_z, sync_threads, thread_idx_x},
    cuda_std::warp::{group_max_f32, lane_id, shfl_xor_u32, sync_warp},
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
        let page = task.row.page(mirror, mirror_table, task.group_index, plane_offset(D, P));
        let codes = read_codes::<D, P>(page, [true; 2]);
        let ranges = Ranges::read::<D>(page);
        let weights = task.scratch::<D>();
        let mut g = 0;
        while g < group {
            let head = Head::new::<T, D>(&task.heads, g, &ranges, weights);
            let dots = dots::<D, P>(weights, &codes, all_planes);
            cuda_std::unroll!(i < 2, max 2, {
                task.store_block(g, lane_id() as usize + 32 * i, head.unit.score(head.zero, dots[i]));
            });
            sync_warp(!0);
            g += 1;
        }
    }
}

/// Scores from the first of two planes, and says which masses would be worth the second: the first look of a nested
/// mirror. The last CTA of a row finds the threshold of each of its heads.
///
/// # Safety
/// As [`score`]. doubt: f32 `[batch, kv_heads * group, max_blocks / 4]`; threshold: f32 `[batch, kv_heads * group]`;
/// looks: u32 `[batch, kv_heads, 2]`, of which the first is 0, and is so again afterwards.
#[kernel(
    block = 128,
    min_blocks_per_sm = if D == 64 { 7 } else { 5 },
    dynamic_shared = shared_bytes(D),
    instances(T in [bf16, f16], D in [64, 128]),
    grid = (let quarters, kv_heads, let batch),
    out(log_mass, doubt, threshold),
    align(arena = 16, mirror = 16),
    requires(
        1 <= group,
        group <= MAX_GROUP,
        quarters * WARPS * QUANT_GROUP >= lens.max(),
        q.len() >= batch * kv_heads * group * D,
        log_mass.len() >= batch * kv_heads * group * max_blocks,
        doubt.len() * BLOCKS_PER_GROUP >= batch * kv_heads * group * max_blocks,
        threshold.len() >= batch * kv_heads * group,
        looks.len() >= batch * kv_heads * 2,
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
        mirror.len() >= (mirror_table.max() + 1) * MirrorKind::Nested.page_bytes(D),
    )
)]
pub unsafe fn score_nested<T: KvElement, const D: usize>(
    q: *const T,
    arena: *const T,
    mirror: *const u8,
    block_table: *const u32,
    mirror_table: *const u32,
    seqs: *const u32,
    lens: *const u32,
    log_mass: *mut f32,
    doubt: *mut f32,
    threshold: *mut f32,
    looks: *mut u32,
    scale: f32,
    layer: u32,
    layers: u32,
    kv_heads: u32,
    group: u32,
    max_blocks: u32,
) {
    unsafe {
        let cache = Cache { arena, block_table, seqs, lens, layer, layers, kv_heads, max_blocks };
        let row_index = block_idx_z() * kv_heads + block_idx_y();
        let row = cache.row(block_idx_z(), block_idx_y());
        if block_idx_x() * (WARPS * QUANT_GROUP) as u32 >= row.tokens {
            return;
        }
        let first_head = (row_index * group) as usize;
        if let Some(task) = Task::new::<D>(cache, q, log_mass, scale, group) {
            if task.open() {
                task.score_exactly::<D>();
            } else {
                let kind = MirrorKind::Nested;
                let page = task.row.page(mirror, mirror_table, task.group_index, kind.page_bytes(D));
                let doubt = doubt.add(first_head * (max_blocks as usize / BLOCKS_PER_GROUP));
                task.score_coarsely::<D>(page, doubt);
            }
        }

        // Behind the barrier are the masses of all warps of this CTA; who is last is ordered behind all others' tickets,
        // and so behind their masses.
        sync_threads();
        let looks = looks.add(2 * row_index as usize);
        let ticket = dynamic_shared::<u32>();
        if thread_idx_x() == 0 {
            ticket.write(add_u32(looks, 1, Ordering::AcqRel, Scope::Device));
        }
        sync_threads();
        if ticket.read() + 1 != grid_x(row.tokens as usize) as u32 {
            return;
        }
        let blocks = row.blocks();
        let heads = Heads::<T>::new::<D>(q, log_mass, scale, first_head, group, max_blocks);
        let mut g = thread_idx_x() / 32;
        while g < group {
            let value = row_threshold(heads.mass(g, 0), blocks);
            if lane_id() == 0 {
                *threshold.add(first_head + g as usize) = value;
            }
            g += WARPS as u32;
        }
        if thread_idx_x() == 0 {
            // For the next step, and for refine to count from.
            *looks = 0;
            *looks.add(1) = 0;
        }
    }
}

/// The log2 mass of a row of `blocks` blocks beyond which a second look matters.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
unsafe fn row_threshold(log_mass: *const f32, blocks: u32) -> f32 {
    // Masses that a lane asks for at a time.
    const AHEAD: usize = 8;
    unsafe {
        let mut peak = f32::NEG_INFINITY;
        let mut from = lane_id();
        while from < blocks {
            let mut x = [f32::NEG_INFINITY; AHEAD];
            cuda_std::unroll!(i < AHEAD, max 8, {
                let block = from + 32 * i as u32;
                if block < blocks {
                    x[i] = *log_mass.add(block as usize);
                }
            });
            cuda_std::unroll!(i < AHEAD, max 8, {
                peak = if x[i] > peak { x[i] } else { peak };
            });
            from += 32 * AHEAD as u32;
        }
        peak = group_max_f32::<32>(peak);
        let mut total = 0u64;
        let mut from = lane_id();
        while from < blocks {
            let mut x = [f32::NEG_INFINITY; AHEAD];
            cuda_std::unroll!(i < AHEAD, max 8, {
                let block = from + 32 * i as u32;
                if block < blocks {
                    x[i] = *log_mass.add(block as usize);
                }
            });
            cuda_std::unroll!(i < AHEAD, max 8, {
                total += fixed_mass(x[i], peak) as u64;
            });
            from += 32 * AHEAD as u32;
        }
        cuda_std::unroll!(s < 5, max 6, {
            let high = shfl_xor_u32((total >> 32) as u32, 16 >> s);
            let low = shfl_xor_u32(total as u32, 16 >> s);
            total += (high as u64) << 32 | low as u64;
        });
        look_threshold(peak, total, blocks, NEGLIGIBLE)
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
                    let qs = task.heads.query::<D>(g, c + e);
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
    heads: Heads<T>,
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
            let heads = Heads::new::<D>(q, log_mass, scale, head, group, cache.max_blocks);
            Some(Task { row, group_index, heads })
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

    /// Reduces the 16 token scores of a half warp to their block's log2 mass and stores it. `token` is
    /// the calling lane's token in the group.
    #[inline(always)]
    unsafe fn store_block(&self, g: u32, token: usize, score: f32) {
        unsafe {
            let mass = block_mass(score);
            if token % BLOCK == 0 {
                self.store(g, (token / BLOCK) as u32, mass);
            }
        }
    }

    /// Stores the log2 mass of a block of the group.
    #[inline(always)]
    unsafe fn store(&self, g: u32, block_in_group: u32, value: f32) {
        let block = self.group_index * BLOCKS_PER_GROUP as u32 + block_in_group;
        if block < self.row.blocks() {
            unsafe { *self.heads.mass(g, block) = value };
        }
    }

    /// A full group by the first of its two planes. doubt: f32 `[group, max_blocks / 4]`.
    #[inline(always)]
    unsafe fn score_coarsely<const D: usize>(&self, page: *const u8, doubt: *mut f32) {
        unsafe {
            let codes = read_codes::<D, 1>(page, [true; 2]);
            let ranges = Ranges::read::<D>(page);
            let weights = self.scratch::<D>();
            let width = self.heads.max_blocks as usize / BLOCKS_PER_GROUP;
            let mut g = 0;
            while g < self.heads.group {
                let head = Head::new::<T, D>(&self.heads, g, &ranges, weights);
                // Twice the middle of what a coarse code leaves open: 2 (4 code + 1.5).
                let halves = dots::<D, 1>(weights, &codes, |[code]| code << 3 | 0x0303_0303);
                cuda_std::unroll!(i < 2, max 2, {
                    let score = head.unit.coarse_score(head.zero, halves[i]);
                    self.store_block(g, lane_id() as usize + 32 * i, score);
                });
                let spread = spread(head.squares::<D>(), 2);
                if lane_id() == 0 {
                    *doubt.add(g as usize * width + self.group_index as usize) = spread;
                }
                sync_warp(!0);
                g += 1;
            }
        }
    }

    /// The open group: exact scores from the keys themselves.
    #[inline(always)]
    unsafe fn score_exactly<const D: usize>(&self) {
        unsafe {
            let lane = lane_id() as usize;
            let queries = self.scratch::<D>();
            let mut g = 0;
            while g < self.heads.group {
                cuda_std::unroll!(k < D / 32, max 4, {
                    let c = lane + 32 * k;
                    queries.add(c as u32).write(self.heads.query::<D>(g, c));
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
