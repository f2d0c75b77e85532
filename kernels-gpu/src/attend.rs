//! attend: exact attention over the planned blocks of one (sequence, KV head), in splits.
//!
//! Grid (max_splits, kv_heads, batch), 128 threads. Split s of S takes the ranks s, s + S, .. of the
//! plan, so that all splits advance down the ranking together; its four warps take its ranks in turn
//! and are independent streams ([`crate::stream`]), merged once at the end in fixed order. Dense attention
//! is this kernel with the identity plan.
//!
//! Shared memory: a ring of pages for each warp, then the queries; at the end each warp's part lies where its ring was.

use crate::element::KvElement;
use crate::layout::{BLOCK, BLOCKS_PER_GROUP, BLOCKS_PER_SPLIT, MAX_GROUP, MAX_SPLITS, slot_elements};
use cuda_std::half::{bf16, f16};
use cuda_std::kernel;

#[cfg(target_arch = "nvptx64")]
use {
    crate::layout::splits,
    crate::pages::Pages,
    crate::parts::{Column, WarpParts},
    crate::row::Cache,
    crate::stream::{Queries, Stream},
    cuda_std::shared::dynamic_shared,
    cuda_std::thread::{block_idx_x, block_idx_y, block_idx_z, sync_threads, thread_idx_x},
    cuda_std::warp::lane_id,
};

/// Warps of a CTA.
pub const WARPS: usize = 4;
/// Threads of a CTA.
pub const THREADS: usize = 32 * WARPS;

/// Shared bytes of a warp: its ring, 16 KiB at every head_dim: 4 stages of 4 KiB (64), 2 of 8 KiB (128). A CTA
/// takes 66 KiB, so an SM holds three on sm_90 and sm_100, two on sm_80, one on sm_86, 89 and 120.
pub const fn warp_bytes(head_dim: usize) -> usize {
    stages(head_dim) * slot_elements(head_dim) * 2
}

/// Stages of a warp's ring.
pub const fn stages(head_dim: usize) -> usize {
    if head_dim <= 64 { 4 } else { 2 }
}

/// Bytes between two heads' queries in shared memory: 16 more than a row, so that the fragments of 8 heads come from
/// all banks.
pub const fn query_stride(head_dim: usize) -> usize {
    2 * head_dim + 16
}

/// Shared bytes of a group's queries, on their way into registers.
pub const fn query_bytes(head_dim: usize) -> usize {
    MAX_GROUP * query_stride(head_dim)
}

/// Shared bytes of a CTA: the warps' rings, then the queries.
pub const fn shared_bytes(head_dim: usize) -> usize {
    WARPS * warp_bytes(head_dim) + query_bytes(head_dim)
}

/// Attends to this split's share of the plan.
///
/// # Safety
/// Buffers as in docs/kernels.md; `group` is 1 to 8; the plan names blocks of the row.
#[kernel(
    block = 128,
    min_blocks_per_sm = 3,
    dynamic_shared = shared_bytes(D),
    instances(T in [bf16, f16], D in [64, 128]),
    shape(head_dim, group),
    feasible(
        head_dim == D => "the channels of a row are tiles of the tensor cores, laid out at compile time",
        1 <= group => "a KV head has a query head",
        group <= MAX_GROUP => "a group's query heads are the 8 columns of a tensor core's tile",
    ),
    grid = (let splits, kv_heads, let batch),
    out(partial, partial_ml),
    align(q = 16, arena = 16),
    requires(
        1 <= group,
        group <= MAX_GROUP,
        splits <= max_splits,
        splits >= lens.max().div_ceil(BLOCK * BLOCKS_PER_SPLIT).min(MAX_SPLITS),
        q.len() >= batch * kv_heads * group * D,
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
pub unsafe fn attend<T: KvElement, const D: usize>(
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
        let cache = Cache { arena, block_table, seqs, lens, layer, layers, kv_heads, max_blocks };
        let row = cache.row(b, h);
        let splits = splits(row.blocks() as usize) as u32;
        if split >= splits {
            return;
        }
        let (tid, warp, lane) = (thread_idx_x() as usize, thread_idx_x() / 32, lane_id());
        let head = b * kv_heads + h;
        let order = order.add((head * max_blocks) as usize);
        let first = split + warp * splits;
        let pages = Pages::new(&row, order, first, WARPS as u32 * splits, *count.add(head as usize), lane);
        let shared = dynamic_shared::<T>();
        let query_memory = shared.byte_add((WARPS * warp_bytes(D)) as u32);
        Queries::<T, D>::share::<THREADS>(q.add((head * group) as usize * D), group, query_memory, tid);
        sync_threads();
        let queries = Queries::<T, D>::load(query_memory, group, scale, lane);

        let memory = shared.byte_add(warp * warp_bytes(D) as u32);
        let mut stream = Stream::<D>::new();
        if D == 64 {
            stream.read::<T, { stages(64) }>(&queries, pages, memory);
        } else {
            stream.read::<T, { stages(128) }>(&queries, pages, memory);
        }
        let parts = WarpParts::<D>::new(shared.cast(), warp_bytes(D));
        parts.store(&stream, warp as usize, lane);
        sync_threads();

        let first = ((head * max_splits + split) * group) as usize;
        let mut i = tid;
        while i < group as usize * D {
            let (g, c) = (i / D, i % D);
            let mut column = Column::new();
            column.raise_to::<D, WARPS>(parts, g);
            column.add_all::<D, WARPS>(parts, g, c);
            *partial.add(first * D + i) = column.o;
            if c == 0 {
                *partial_ml.add(2 * (first + g)) = column.m;
                *partial_ml.add(2 * (first + g) + 1) = column.l;
            }
            i += THREADS;
        }
    }
}
