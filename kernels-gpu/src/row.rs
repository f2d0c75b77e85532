//! One (sequence, layer, KV head) as a CTA sees it: the row of the block table and the tokens in it.
//!
//! Trap: slots beyond the sequence's last block, and tokens beyond its length in that block, hold
//! whatever was there before. Every reader compares with `tokens` first.

use crate::layout::{blocks, slot_elements};

/// A row of the paged cache.
#[derive(Clone, Copy)]
pub struct Row<T> {
    arena: *const T,
    slots: *const u32, // [max_blocks]
    /// Tokens of the sequence.
    pub tokens: u32,
    /// Index of the row among all (sequence, layer, KV head): the row of the mirror table too.
    pub index: usize,
}

impl<T> Row<T> {
    /// The row of batch entry `batch`, KV head `kv_head`.
    ///
    /// # Safety
    /// `seqs` and `lens` hold at least `batch + 1` entries, and `block_table` the row they name.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn new(
        arena: *const T,
        block_table: *const u32,
        seqs: *const u32,
        lens: *const u32,
        batch: u32,
        kv_head: u32,
        geometry: Geometry,
    ) -> Row<T> {
        // SAFETY: the caller's promise.
        let (seq, tokens) = unsafe { (*seqs.add(batch as usize), *lens.add(batch as usize)) };
        let index = ((seq * geometry.layers + geometry.layer) * geometry.kv_heads + kv_head) as usize;
        // SAFETY: as above.
        let slots = unsafe { block_table.add(index * geometry.max_blocks as usize) };
        Row { arena, slots, tokens, index }
    }

    /// Blocks in use.
    #[inline(always)]
    pub fn blocks(&self) -> u32 {
        blocks(self.tokens as usize) as u32
    }

    /// The slot of a block.
    ///
    /// # Safety
    /// `block < self.blocks()`.
    #[inline(always)]
    pub unsafe fn slot_id(&self, block: u32) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { *self.slots.add(block as usize) }
    }

    /// First element of a slot.
    ///
    /// # Safety
    /// The arena has the slot.
    #[inline(always)]
    pub unsafe fn slot_at<const D: usize>(&self, slot: u32) -> *const T {
        // SAFETY: the caller's promise.
        unsafe { self.arena.add(slot as usize * slot_elements(D)) }
    }

    /// First element of a block's slot.
    ///
    /// # Safety
    /// `block < self.blocks()`, and the table names a slot of the arena.
    #[inline(always)]
    pub unsafe fn slot<const D: usize>(&self, block: u32) -> *const T {
        // SAFETY: the caller's promise.
        unsafe { self.slot_at::<D>(self.slot_id(block)) }
    }
}

/// The scalars that place a layer in the cache.
#[derive(Clone, Copy)]
pub struct Geometry {
    /// Layer of this launch.
    pub layer: u32,
    /// Layers of the cache.
    pub layers: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Width of a row of the block table.
    pub max_blocks: u32,
}
