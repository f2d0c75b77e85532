//! refine: the second look of a nested mirror. Blocks whose coarse mass leaves open that they matter are scored again,
//! from both planes.
//!
//! The grid of `score`: a warp takes one 64-token group. A lane asks about one (query head, block), so one ballot tells
//! which of the group's four blocks any head wants; most warps leave then, having read 20 bytes a head. Blocks of the
//! open group are exact already.
//!
//! Trap: a block that one head wants is scored again for all of them, as the definition says.

use crate::element::KvElement;
use crate::layout::{BLOCK, BLOCKS_PER_GROUP, MAX_GROUP, MirrorKind, QUANT_GROUP};
use crate::score::{WARPS, shared_bytes};
use cuda_std::half::{bf16, f16};
use cuda_std::kernel;

#[cfg(target_arch = "nvptx64")]
use {
    crate::layout::full_groups,
    crate::mirrored::{Head, Heads, Ranges, all_planes, block_mass, dots, read_codes},
    crate::numeric::{DOUBT, matters},
    crate::row::Tables,
    cuda_std::atomic::global::add_u32,
    cuda_std::atomic::{Ordering, Scope},
    cuda_std::shared::dynamic_shared,
    cuda_std::thread::{block_idx_x, block_idx_y, block_idx_z, thread_idx_x},
    cuda_std::warp::{lane_id, sync_warp, warp_vote_ballot},
};

/// Scores blocks again whose first score, raised by what it may be too low, exceeds the threshold of a head.
///
/// # Safety
/// Buffers as in docs/kernels.md, written by `score_nested` of the same step; the second of each pair of `looks`
/// counts the blocks.
#[kernel(
    block = 128,
    min_blocks_per_sm = if D == 64 { 7 } else { 5 },
    dynamic_shared = shared_bytes(D),
    instances(T in [bf16, f16], D in [64, 128]),
    grid = (let quarters, kv_heads, let batch),
    align(mirror = 16),
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
        mirror_table.len() * BLOCKS_PER_GROUP >= (seqs.max() + 1) * layers * kv_heads * max_blocks,
        mirror.len() >= (mirror_table.max() + 1) * MirrorKind::Nested.page_bytes(D),
    )
)]
pub unsafe fn refine<T: KvElement, const D: usize>(
    q: *const T,
    mirror: *const u8,
    mirror_table: *const u32,
    seqs: *const u32,
    lens: *const u32,
    doubt: *const f32,
    threshold: *const f32,
    log_mass: *mut f32,
    looks: *mut u32,
    scale: f32,
    layer: u32,
    layers: u32,
    kv_heads: u32,
    group: u32,
    max_blocks: u32,
) {
    unsafe {
        let (h, b, lane) = (block_idx_y(), block_idx_z(), lane_id());
        let place = Tables { seqs, lens, layer, layers, kv_heads, max_blocks }.place(b, h);
        let group_index = block_idx_x() * WARPS as u32 + thread_idx_x() / 32;
        if group_index as usize >= full_groups(place.tokens as usize) {
            return;
        }
        let row_index = (b * kv_heads + h) as usize;
        let first_head = row_index * group as usize;
        let heads = Heads::<T>::new::<D>(q, log_mass, scale, first_head, group, max_blocks);
        let first_block = group_index * BLOCKS_PER_GROUP as u32;

        // 8 heads of 4 blocks fill the warp.
        let (g, block) = (lane / BLOCKS_PER_GROUP as u32, lane % BLOCKS_PER_GROUP as u32);
        let mut wanted = false;
        if g < group {
            let head = first_head + g as usize;
            let width = max_blocks as usize / BLOCKS_PER_GROUP;
            let doubt = DOUBT * *doubt.add(head * width + group_index as usize);
            wanted = matters(*heads.mass(g, first_block + block), doubt, *threshold.add(head));
        }
        // Bit b: some head wants block b.
        let mut blocks = warp_vote_ballot(!0, wanted);
        blocks |= blocks >> 16;
        blocks |= blocks >> 8;
        blocks = (blocks | blocks >> 4) & 0xf;
        if blocks == 0 {
            return;
        }
        if lane == 0 {
            add_u32(looks.add(2 * row_index + 1), blocks.count_ones(), Ordering::Relaxed, Scope::Device);
        }

        let page = place.page(mirror, mirror_table, group_index, MirrorKind::Nested.page_bytes(D));
        // The blocks of the lane's two tokens.
        let own = [lane / BLOCK as u32, lane / BLOCK as u32 + 2];
        let codes = read_codes::<D, 2>(page, [blocks >> own[0] & 1 == 1, blocks >> own[1] & 1 == 1]);
        let ranges = Ranges::read::<D>(page);
        let weights = dynamic_shared::<f32>().add(thread_idx_x() / 32 * D as u32);
        let mut g = 0;
        while g < group {
            let head = Head::new::<T, D>(&heads, g, &ranges, weights);
            let dots = dots::<D, 2>(weights, &codes, all_planes);
            cuda_std::unroll!(i < 2, max 2, {
                let mass = block_mass(head.unit.score(head.zero, dots[i]));
                if lane as usize % BLOCK == 0 && blocks >> own[i] & 1 == 1 {
                    *heads.mass(g, first_block + own[i]) = mass;
                }
            });
            sync_warp(!0);
            g += 1;
        }
    }
}
