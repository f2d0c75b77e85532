//! Who owns which slot and page: free lists, block tables, lengths. Bookkeeping only, shared by every
//! backend; nobody here touches K or V.
//!
//! * Slots and pages come from two stacks: allocation and release are O(1) each, and any free slot fits
//!   any block, so there is no fragmentation.
//! * An append *reserves* everything it needs, or fails with nothing changed; then the backend writes; then
//!   the append is *committed* (the lengths grow) or *rolled back* (the free lists are as before, in order).
//! * A page is needed per full group of `group_blocks` blocks, so `slots / group_blocks` pages never run out
//!   before the slots.
//!
//! Trap: table entries beyond a row's length are stale; every reader compares with the length first.

use crate::{Error, Shape};
use kernels_gpu::layout::{BLOCK, BLOCKS_PER_GROUP, blocks};
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// A sequence of a cache. Ids are never reused: one of a removed sequence stays invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SequenceId {
    cache: u32,
    index: u32,
    generation: u32,
}

impl SequenceId {
    /// Its place in its cache and how often that was reused: the same in every run of a program.
    pub(crate) fn key(self) -> (u32, u32) {
        (self.index, self.generation)
    }
}

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {}.{} of cache {}", self.index, self.generation, self.cache)
    }
}

/// Extents of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableExtents {
    /// Most sequences.
    pub sequences: usize,
    /// Layers.
    pub layers: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Blocks of a row: a multiple of `group_blocks`.
    pub max_blocks: usize,
    /// Blocks of a quantisation group: a page describes so many.
    pub group_blocks: usize,
}

impl TableExtents {
    /// Extents for sequences of at most `max_tokens` tokens, with a page for every 64 tokens.
    pub fn new(shape: &Shape, sequences: usize, max_tokens: usize) -> TableExtents {
        TableExtents::with_group(shape, sequences, max_tokens, BLOCKS_PER_GROUP)
    }

    /// The same with a page for every `group_blocks` blocks.
    pub fn with_group(
        shape: &Shape,
        sequences: usize,
        max_tokens: usize,
        group_blocks: usize,
    ) -> TableExtents {
        let max_blocks = blocks(max_tokens).next_multiple_of(group_blocks);
        TableExtents { sequences, layers: shape.layers, kv_heads: shape.kv_heads, max_blocks, group_blocks }
    }

    /// Rows: one for each (sequence, layer, KV head).
    pub const fn rows(&self) -> usize {
        self.sequences * self.layers * self.kv_heads
    }

    /// Groups of a row.
    pub const fn max_groups(&self) -> usize {
        self.max_blocks / self.group_blocks
    }

    /// Groups of `tokens` tokens that are full, and so have a page.
    pub const fn full_groups(&self, tokens: usize) -> usize {
        tokens / (self.group_blocks * BLOCK)
    }

    /// Index of the row of (sequence, layer, KV head).
    pub const fn row(&self, sequence: usize, layer: usize, kv_head: usize) -> usize {
        (sequence * self.layers + layer) * self.kv_heads + kv_head
    }
}

/// The tables as the kernels read them.
#[derive(Debug)]
pub struct Tables {
    /// Extents.
    pub extents: TableExtents,
    /// Slots: `[sequences, layers, kv_heads, max_blocks]`.
    pub block_table: Vec<u32>,
    /// Pages: `[sequences, layers, kv_heads, max_groups]`.
    pub mirror_table: Vec<u32>,
}

impl Tables {
    /// Slots of a row.
    pub fn slots(&self, row: usize) -> &[u32] {
        let width = self.extents.max_blocks;
        &self.block_table[row * width..][..width]
    }

    /// Pages of a row.
    pub fn pages(&self, row: usize) -> &[u32] {
        let width = self.extents.max_groups();
        &self.mirror_table[row * width..][..width]
    }
}

/// Table entries that an append has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableChange {
    /// Row of both tables.
    pub row: usize,
    /// New entries of the block table's row.
    pub blocks: Range<usize>,
    /// New entries of the mirror table's row.
    pub groups: Range<usize>,
}

/// What an append has reserved; it ends in [`Pool::commit`] or [`Pool::roll_back`].
#[must_use]
#[derive(Debug)]
pub struct Reservation {
    layer: usize,
    /// (sequence index, tokens afterwards).
    lengths: Vec<(usize, usize)>,
    changes: Vec<TableChange>,
}

impl Reservation {
    /// Entries that are new in the tables.
    pub fn changes(&self) -> &[TableChange] {
        &self.changes
    }
}

#[derive(Debug)]
struct Sequence {
    generation: u32,
    /// Tokens of each layer; none while the place is free.
    lengths: Option<Vec<usize>>,
}

/// All slots and pages of a device, and the sequences that hold them.
#[derive(Debug)]
pub struct Pool {
    id: u32,
    tables: Tables,
    max_tokens: usize,
    slots: usize,
    pages: usize,
    free_slots: Vec<u32>,
    free_pages: Vec<u32>,
    sequences: Vec<Sequence>,
    free_sequences: Vec<u32>,
}

impl Pool {
    /// A pool of `slots` slots and `slots / 4` pages for at most `sequences` sequences of at most
    /// `max_tokens` tokens.
    pub fn new(shape: &Shape, slots: usize, sequences: usize, max_tokens: usize) -> Pool {
        Pool::with_extents(slots, max_tokens, TableExtents::new(shape, sequences, max_tokens))
    }

    /// A pool of `slots` slots and a page for each `group_blocks` of them.
    pub fn with_extents(slots: usize, max_tokens: usize, extents: TableExtents) -> Pool {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (pages, sequences) = (slots / extents.group_blocks, extents.sequences);
        Pool {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            tables: Tables {
                extents,
                block_table: vec![0; extents.rows() * extents.max_blocks],
                mirror_table: vec![0; extents.rows() * extents.max_groups()],
            },
            max_tokens,
            slots,
            pages,
            // Popped from the end: the lowest first.
            free_slots: (0..slots as u32).rev().collect(),
            free_pages: (0..pages as u32).rev().collect(),
            sequences: (0..sequences).map(|_| Sequence { generation: 0, lengths: None }).collect(),
            free_sequences: (0..sequences as u32).rev().collect(),
        }
    }

    /// The tables.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Distinguishes caches.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Slots in all.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Pages in all.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Free slots.
    pub fn free_slots(&self) -> usize {
        self.free_slots.len()
    }

    /// Free pages.
    pub fn free_pages(&self) -> usize {
        self.free_pages.len()
    }

    /// Longest context.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Adds an empty sequence.
    ///
    /// # Errors
    /// [`Error::TooManySequences`].
    pub fn add_sequence(&mut self) -> Result<SequenceId, Error> {
        let limit = self.sequences.len();
        let index = self.free_sequences.pop().ok_or(Error::TooManySequences { limit })?;
        let sequence = &mut self.sequences[index as usize];
        sequence.lengths = Some(vec![0; self.tables.extents.layers]);
        Ok(SequenceId { cache: self.id, index, generation: sequence.generation })
    }

    /// Removes a sequence and frees what it held.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn remove_sequence(&mut self, id: SequenceId) -> Result<(), Error> {
        let index = self.index(id)?;
        let lengths = self.sequences[index].lengths.take().unwrap_or_default();
        for (layer, &tokens) in lengths.iter().enumerate() {
            for head in 0..self.tables.extents.kv_heads {
                let row = self.tables.extents.row(index, layer, head);
                self.release(row, 0..blocks(tokens), 0..self.tables.extents.full_groups(tokens));
            }
        }
        let sequence = &mut self.sequences[index];
        sequence.generation = sequence.generation.wrapping_add(1);
        self.free_sequences.push(index as u32);
        Ok(())
    }

    /// Row of a sequence in the tables' first dimension.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn index(&self, id: SequenceId) -> Result<usize, Error> {
        let known = id.cache == self.id
            && self
                .sequences
                .get(id.index as usize)
                .is_some_and(|s| s.generation == id.generation && s.lengths.is_some());
        if known { Ok(id.index as usize) } else { Err(Error::UnknownSequence { sequence: id.to_string() }) }
    }

    /// Rows of a batch's sequences.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::DuplicateSequence`].
    pub fn indices(&self, batch: &[SequenceId]) -> Result<Vec<u32>, Error> {
        let mut seen = HashSet::with_capacity(batch.len());
        batch
            .iter()
            .map(|&id| {
                let index = self.index(id)? as u32;
                if !seen.insert(index) {
                    return Err(Error::DuplicateSequence { sequence: id.to_string() });
                }
                Ok(index)
            })
            .collect()
    }

    /// Tokens of a sequence in a layer; `index` comes from [`Pool::index`].
    pub fn tokens(&self, index: usize, layer: usize) -> usize {
        self.sequences[index].lengths.as_ref().map_or(0, |l| l[layer])
    }

    /// Tokens that a sequence has in every layer.
    pub fn complete_tokens(&self, index: usize) -> usize {
        self.sequences[index].lengths.as_ref().and_then(|l| l.iter().min().copied()).unwrap_or(0)
    }

    /// Reserves slots and pages for `new` tokens in `layer`, for each distinct (sequence index, new).
    ///
    /// # Errors
    /// [`Error::ContextTooLong`] and [`Error::PoolExhausted`], both with nothing changed.
    pub fn reserve(&mut self, layer: usize, growth: &[(usize, usize)]) -> Result<Reservation, Error> {
        let kv_heads = self.tables.extents.kv_heads;
        let mut needed = 0usize;
        for &(index, new) in growth {
            let before = self.tokens(index, layer);
            let tokens = before.saturating_add(new);
            if tokens > self.max_tokens {
                return Err(Error::ContextTooLong { tokens, limit: self.max_tokens });
            }
            needed += kv_heads * (blocks(tokens) - blocks(before));
        }
        let free = self.free_slots.len();
        if needed > free {
            let held: usize = growth.iter().map(|&(index, _)| self.held(index)).sum();
            return Err(Error::PoolExhausted { needed, free, evictable: self.slots - free - held });
        }

        let mut reservation =
            Reservation { layer, lengths: Vec::with_capacity(growth.len()), changes: vec![] };
        for &(index, new) in growth {
            let before = self.tokens(index, layer);
            let tokens = before + new;
            reservation.lengths.push((index, tokens));
            for head in 0..kv_heads {
                let change = TableChange {
                    row: self.tables.extents.row(index, layer, head),
                    blocks: blocks(before)..blocks(tokens),
                    groups: self.tables.extents.full_groups(before)..self.tables.extents.full_groups(tokens),
                };
                if !change.blocks.is_empty() || !change.groups.is_empty() {
                    self.take(&change);
                    reservation.changes.push(change);
                }
            }
        }
        Ok(reservation)
    }

    /// Makes the reserved tokens part of their sequences.
    pub fn commit(&mut self, reservation: Reservation) {
        for (index, tokens) in reservation.lengths {
            if let Some(lengths) = &mut self.sequences[index].lengths {
                lengths[reservation.layer] = tokens;
            }
        }
    }

    /// Frees what was reserved; the free lists are as they were before.
    pub fn roll_back(&mut self, reservation: Reservation) {
        for change in reservation.changes.into_iter().rev() {
            self.release(change.row, change.blocks, change.groups);
        }
    }

    /// Slots that a sequence holds.
    fn held(&self, index: usize) -> usize {
        let lengths = self.sequences[index].lengths.as_deref().unwrap_or_default();
        lengths.iter().map(|&tokens| blocks(tokens) * self.tables.extents.kv_heads).sum()
    }

    fn take(&mut self, change: &TableChange) {
        let TableExtents { max_blocks, .. } = self.tables.extents;
        let max_groups = self.tables.extents.max_groups();
        // Popping n from a stack in the order of its end: what `release` pushes back, reversed.
        let rest = self.free_slots.len() - change.blocks.len();
        let slots = &mut self.tables.block_table[change.row * max_blocks..][change.blocks.clone()];
        slots.iter_mut().zip(self.free_slots.drain(rest..).rev()).for_each(|(entry, slot)| *entry = slot);
        let rest = self.free_pages.len() - change.groups.len();
        let pages = &mut self.tables.mirror_table[change.row * max_groups..][change.groups.clone()];
        pages.iter_mut().zip(self.free_pages.drain(rest..).rev()).for_each(|(entry, page)| *entry = page);
    }

    fn release(&mut self, row: usize, blocks: Range<usize>, groups: Range<usize>) {
        self.free_slots.extend(self.tables.slots(row)[blocks].iter().rev());
        self.free_pages.extend(self.tables.pages(row)[groups].iter().rev());
    }
}

#[cfg(test)]
mod tests;
