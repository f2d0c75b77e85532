//! One (sequence, layer, KV head) as a CTA sees it: the row of the block table and the tokens in it.
//!
//! Trap: slots beyond the sequence's last block, and tokens beyond its length in that block, hold
//! whatever was there before. Every reader compares with `tokens` first.

use crate::layout::{BLOCKS_PER_GROUP, blocks, slot_elements};

/// The cache and the batch, as the parameters of a kernel give them.
#[derive(Clone, Copy)]
pub struct Cache<T> {
    /// T `[slots, 2, 16, head_dim]`.
    pub arena: *const T,
    /// u32 `[sequences, layers, kv_heads, max_blocks]`.
    pub block_table: *const u32,
    /// u32 `[batch]`: rows of the tables.
    pub seqs: *const u32,
    /// u32 `[batch]`: tokens.
    pub lens: *const u32,
    /// Layer of this launch.
    pub layer: u32,
    /// Layers of the cache.
    pub layers: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Width of a row of the block table.
    pub max_blocks: u32,
}

impl<T> Cache<T> {
    /// The row of batch entry `batch`, KV head `kv_head`.
    ///
    /// # Safety
    /// `seqs` and `lens` hold at least `batch + 1` entries, and `block_table` the row they name.
    #[inline(always)]
    pub unsafe fn row(self, batch: u32, kv_head: u32) -> Row<T> {
        let tables = Tables {
            seqs: self.seqs,
            lens: self.lens,
            layer: self.layer,
            layers: self.layers,
            kv_heads: self.kv_heads,
            max_blocks: self.max_blocks,
        };
        // SAFETY: the caller's promise.
        let place = unsafe { tables.place(batch, kv_head) };
        // SAFETY: as above.
        let slots = unsafe { self.block_table.add(place.index * self.max_blocks as usize) };
        Row { arena: self.arena, slots, tokens: place.tokens, place }
    }
}

/// What finds a row of the tables, without the tables: for kernels that read no slots.
#[derive(Clone, Copy)]
pub struct Tables {
    /// u32 `[batch]`: rows of the tables.
    pub seqs: *const u32,
    /// u32 `[batch]`: tokens.
    pub lens: *const u32,
    /// Layer of this launch.
    pub layer: u32,
    /// Layers of the cache.
    pub layers: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Width of a row of the block table.
    pub max_blocks: u32,
}

impl Tables {
    /// The place of batch entry `batch`, KV head `kv_head`.
    ///
    /// # Safety
    /// `seqs` and `lens` hold at least `batch + 1` entries.
    #[inline(always)]
    pub unsafe fn place(self, batch: u32, kv_head: u32) -> Place {
        // SAFETY: the caller's promise.
        let (seq, tokens) = unsafe { (*self.seqs.add(batch as usize), *self.lens.add(batch as usize)) };
        let index = ((seq * self.layers + self.layer) * self.kv_heads + kv_head) as usize;
        Place { tokens, index, max_blocks: self.max_blocks }
    }
}

/// A row's place in the tables.
#[derive(Clone, Copy)]
pub struct Place {
    /// Tokens of the sequence.
    pub tokens: u32,
    /// Index of the row among all (sequence, layer, KV head): the row of the mirror table too.
    index: usize,
    max_blocks: u32,
}

impl Place {
    /// The mirror page of a group of 64 tokens, in pages of `page_bytes`.
    ///
    /// # Safety
    /// The group is full; `table` u32 `[sequences, layers, kv_heads, max_blocks / 4]` has a page for it.
    #[inline(always)]
    pub unsafe fn page(
        &self,
        mirror: *const u8,
        table: *const u32,
        group: u32,
        page_bytes: usize,
    ) -> *const u8 {
        let width = self.max_blocks as usize / BLOCKS_PER_GROUP;
        // SAFETY: the caller's promise.
        unsafe {
            let id = *table.add(self.index * width + group as usize);
            mirror.add(id as usize * page_bytes)
        }
    }
}

/// A row of the paged cache.
#[derive(Clone, Copy)]
pub struct Row<T> {
    arena: *const T,
    slots: *const u32, // [max_blocks]
    /// Tokens of the sequence.
    pub tokens: u32,
    place: Place,
}

impl<T> Row<T> {
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

    /// The mirror page of a group of 64 tokens, in pages of `page_bytes`.
    ///
    /// # Safety
    /// The group is full; `table` u32 `[sequences, layers, kv_heads, max_blocks / 4]` has a page for it.
    #[inline(always)]
    pub unsafe fn page(
        &self,
        mirror: *const u8,
        table: *const u32,
        group: u32,
        page_bytes: usize,
    ) -> *const u8 {
        // SAFETY: the caller's promise.
        unsafe { self.place.page(mirror, table, group, page_bytes) }
    }
}
