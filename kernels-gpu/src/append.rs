//! append: new tokens into their blocks, and the mirror page of every group of 64 that fills.
//!
//! Grid (kv_heads, batch, groups touched): one CTA owns one 64-token group of one KV head, so no two
//! CTAs write the same slot or page, and one token of decode and thousands of prefill are one kernel.
//! The page is made from the slots, after a barrier, so that it does not matter which launch wrote
//! the group's earlier tokens.

use crate::element::KvElement;
use crate::layout::{BLOCK, BLOCKS_PER_GROUP, MirrorKind, QUANT_GROUP, plane_offset, slot_elements};
use cuda_std::half::{bf16, f16};
use cuda_std::kernel;

#[cfg(target_arch = "nvptx64")]
use {
    crate::layout::{box_offset, code_shift, key_offset, plane_row_bytes, step_offset, value_offset},
    crate::numeric::{quantise, quantiser_range},
    crate::row::{Cache, Row},
    cuda_std::ptx::V4,
    cuda_std::shared::dynamic_shared,
    cuda_std::thread::{block_idx_x, block_idx_y, block_idx_z, sync_threads, thread_idx_x},
};

/// Threads of a CTA.
pub const THREADS: u32 = 128;

/// Shared bytes: zero and step of every channel.
pub const fn shared_bytes(head_dim: usize) -> usize {
    2 * head_dim * 4
}

/// Groups of 64 that `new` tokens after `before` touch: the grid's third extent.
pub const fn groups_touched(before: usize, new: usize) -> usize {
    (before + new).div_ceil(QUANT_GROUP) - before / QUANT_GROUP
}

/// Appends and mirrors in `P` planes of 2 bits.
///
/// # Safety
/// k, v: `[offsets[batch], kv_heads, D]`; tokens `offsets[b] .. offsets[b + 1]` belong to batch entry
/// b, whose length *with* them is `lens[b]`. The tables name a slot for every block and a page for
/// every full group.
#[kernel(
    block = 128,
    dynamic_shared = shared_bytes(D),
    instances(T in [bf16, f16], D in [64, 128], P in [1, 2]),
    grid = (kv_heads, let batch, let groups),
    align(k = 16, v = 16, arena = 16, mirror = 16),
    requires(
        offsets.len() >= batch + 1,
        k.len() >= offsets.max() * kv_heads * D,
        v.len() >= offsets.max() * kv_heads * D,
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
pub unsafe fn append<T: KvElement, const D: usize, const P: usize>(
    k: *const T,
    v: *const T,
    offsets: *const u32,
    arena: *mut T,
    mirror: *mut u8,
    block_table: *const u32,
    mirror_table: *const u32,
    seqs: *const u32,
    lens: *const u32,
    layer: u32,
    layers: u32,
    kv_heads: u32,
    max_blocks: u32,
) {
    unsafe {
        let cache = Cache { arena, block_table, seqs, lens, layer, layers, kv_heads, max_blocks };
        let Some(group) = copy_tokens::<T, D>(k, v, offsets, cache) else { return };
        let page = group.page(mirror, mirror_table, plane_offset(D, P));
        let levels = 1u32 << (2 * P as u32);
        let zeros = dynamic_shared::<f32>();
        let steps = zeros.add(D as u32);

        // Range of every channel over the group's 64 keys.
        let c = thread_idx_x() as usize;
        if c < D {
            let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
            let mut t = 0;
            while t < QUANT_GROUP {
                let x = (*group.key::<D>(t).add(c)).to_f32();
                min = if x < min { x } else { min };
                max = if x > max { x } else { max };
                t += 1;
            }
            let (zero, step) = quantiser_range(min, max, levels);
            let (zero, step) = (f16::from_f32(zero), f16::from_f32(step));
            *(page as *mut f16).add(c) = zero;
            *(page.add(step_offset(D)) as *mut f16).add(c) = step;
            zeros.add(c as u32).write(zero.to_f32());
            steps.add(c as u32).write(step.to_f32());
        }
        sync_threads();

        // Codes: a thread makes one word of 16 channels of one token in every plane.
        let mut i = thread_idx_x() as usize;
        while i < QUANT_GROUP * D / 16 {
            let (t, word) = (i / (D / 16), i % (D / 16));
            let mut words = [0u32; P];
            let mut half = 0;
            while half < 2 {
                let c0 = 16 * word + 8 * half;
                let x = T::unpack8(*(group.key::<D>(t).add(c0) as *const V4));
                cuda_std::unroll!(e < 8, max 8, {
                    let c = (c0 + e) as u32;
                    let code = quantise(x[e], zeros.add(c).read(), steps.add(c).read(), levels);
                    cuda_std::unroll!(p < P, max 2, {
                        words[p] |= ((code >> (2 * (P - 1 - p))) & 3) << code_shift(8 * half + e);
                    });
                });
                half += 1;
            }
            cuda_std::unroll!(p < P, max 2, {
                let row = page.add(plane_offset(D, p) + t * plane_row_bytes(D)) as *mut u32;
                *row.add(word) = words[p];
            });
            i += THREADS as usize;
        }
    }
}

/// Appends and keeps each block's box (minimum and maximum of every channel), Quest's metadata.
///
/// # Safety
/// As [`append`].
#[kernel(
    block = 128,
    instances(T in [bf16, f16], D in [64, 128]),
    grid = (kv_heads, let batch, let groups),
    align(k = 16, v = 16, arena = 16, mirror = 16),
    requires(
        offsets.len() >= batch + 1,
        k.len() >= offsets.max() * kv_heads * D,
        v.len() >= offsets.max() * kv_heads * D,
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
pub unsafe fn append_box<T: KvElement, const D: usize>(
    k: *const T,
    v: *const T,
    offsets: *const u32,
    arena: *mut T,
    mirror: *mut u8,
    block_table: *const u32,
    mirror_table: *const u32,
    seqs: *const u32,
    lens: *const u32,
    layer: u32,
    layers: u32,
    kv_heads: u32,
    max_blocks: u32,
) {
    unsafe {
        let cache = Cache { arena, block_table, seqs, lens, layer, layers, kv_heads, max_blocks };
        let Some(group) = copy_tokens::<T, D>(k, v, offsets, cache) else { return };
        let page = group.page(mirror, mirror_table, MirrorKind::Box.page_bytes(D));
        let mut i = thread_idx_x() as usize;
        while i < BLOCKS_PER_GROUP * D {
            let (block, c) = (i / D, i % D);
            let first = *group.key::<D>(block * BLOCK).add(c);
            let (mut min, mut max) = (first, first);
            let mut t = 1;
            while t < BLOCK {
                let x = *group.key::<D>(block * BLOCK + t).add(c);
                min = if x.to_f32() < min.to_f32() { x } else { min };
                max = if x.to_f32() > max.to_f32() { x } else { max };
                t += 1;
            }
            let out = page.add(box_offset(D, block)) as *mut T;
            *out.add(c) = min;
            *out.add(D + c) = max;
            i += THREADS as usize;
        }
    }
}

/// The group of this CTA, all 64 tokens in place.
#[cfg(target_arch = "nvptx64")]
struct Group<T> {
    row: Row<T>,
    group: u32,
}

#[cfg(target_arch = "nvptx64")]
impl<T> Group<T> {
    /// Key of the group's token `t`.
    ///
    /// # Safety
    /// The group is full.
    #[inline(always)]
    unsafe fn key<const D: usize>(&self, t: usize) -> *const T {
        let block = self.group * BLOCKS_PER_GROUP as u32 + (t / BLOCK) as u32;
        // SAFETY: a full group lies below the row's length.
        unsafe { self.row.slot::<D>(block).add(key_offset(D, t % BLOCK)) }
    }

    /// The group's mirror page.
    ///
    /// # Safety
    /// The group is full, and the table has a page for it.
    #[inline(always)]
    unsafe fn page(&self, mirror: *mut u8, table: *const u32, page_bytes: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.row.page(mirror, table, self.group, page_bytes) as *mut u8 }
    }
}

/// Copies this CTA's share of the new tokens; returns the group if it is full afterwards.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
unsafe fn copy_tokens<T: KvElement, const D: usize>(
    k: *const T,
    v: *const T,
    offsets: *const u32,
    cache: Cache<T>,
) -> Option<Group<T>> {
    unsafe {
        let (h, b, z) = (block_idx_x(), block_idx_y(), block_idx_z());
        let row = cache.row(b, h);
        let (first, last) = (*offsets.add(b as usize), *offsets.add(b as usize + 1));
        let before = row.tokens - (last - first);
        let group = before / QUANT_GROUP as u32 + z;
        let start = group * QUANT_GROUP as u32;
        let end = start + QUANT_GROUP as u32;
        // New tokens of this group, as positions in the sequence.
        let from = if start > before { start } else { before };
        let to = if end < row.tokens { end } else { row.tokens };
        if from >= to {
            return None;
        }

        // 16 bytes a thread and step; D / 8 such pieces a row.
        let pieces = (D / 8) as u32;
        let mut i = thread_idx_x();
        while i < (to - from) * pieces {
            let (position, piece) = (from + i / pieces, (i % pieces) as usize);
            let token = first + position - before;
            let source = (token as usize * cache.kv_heads as usize + h as usize) * D;
            let slot = row.slot::<D>(position / BLOCK as u32) as *mut T;
            let t = position as usize % BLOCK;
            *(slot.add(key_offset(D, t)) as *mut V4).add(piece) = *(k.add(source) as *const V4).add(piece);
            *(slot.add(value_offset(D, t)) as *mut V4).add(piece) = *(v.add(source) as *const V4).add(piece);
            i += THREADS;
        }
        if to < end {
            return None;
        }
        sync_threads();
        Some(Group { row, group })
    }
}
