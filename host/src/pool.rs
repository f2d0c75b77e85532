//! Who holds which block: block tables, reference counts, lengths, reservations. Bookkeeping only, shared by every
//! backend; nobody here touches K or V.
//!
//! * Blocks, slots and pages come from stacks ([`blocks`]): allocation and release are O(1), any free slot fits any
//!   block, and there is no share of a layer, so there is no fragmentation.
//! * An append *reserves* everything it needs, or fails with nothing changed; then the backend writes; then
//!   the append is *committed* (the lengths grow) or *rolled back* (the free lists are as before, in order).
//! * Sequences share blocks after a fork. Before an append writes, it copies what others hold of the open group
//!   (copy on write). The whole group, so that every page has `group_blocks` blocks of its own and
//!   `blocks / group_blocks` pages never run out before the blocks.
//! * With a host tier a block may have no slot: then the tables name [`Pool::hole`], a slot of zeros.
//!
//! Trap: table entries beyond a row's length are stale; every reader compares with the length first.

mod blocks;
mod offload;
mod prefix;
mod share;

pub use offload::HostCopy;

use crate::residency::Residency;
use crate::{Error, Shape};
use blocks::{Block, Blocks, NONE};
use kernels_gpu::layout::{BLOCK, BLOCKS_PER_GROUP, blocks};
use prefix::Prefixes;
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

/// Table entries that are new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableChange {
    /// Row of both tables.
    pub row: usize,
    /// New entries of the block table's row.
    pub blocks: Range<usize>,
    /// New entries of the mirror table's row.
    pub groups: Range<usize>,
}

/// A copy on write: the first `tokens` tokens of slot `from` go to slot `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotCopy {
    /// Slot that others go on to hold.
    pub from: u32,
    /// New slot.
    pub to: u32,
    /// Tokens to copy, 1 to 16.
    pub tokens: u32,
}

/// What an append has reserved; it ends in [`Pool::commit`] or [`Pool::roll_back`].
#[must_use]
#[derive(Debug)]
pub struct Reservation {
    layer: usize,
    /// (sequence index, tokens afterwards).
    lengths: Vec<(usize, usize)>,
    /// What was done to the tables, in order.
    changes: Vec<Change>,
    copies: Vec<SlotCopy>,
}

#[derive(Debug)]
enum Change {
    /// Blocks and pages were taken for new entries.
    Taken(TableChange),
    /// This block was in the host tier, and is about to be written.
    Opened(u32),
    /// Block `block` of row `row` was `before`, and is a copy now.
    Copied { row: usize, block: usize, before: u32 },
}

impl Reservation {
    /// Copies to make before anything is written.
    pub fn copies(&self) -> &[SlotCopy] {
        &self.copies
    }
}

#[derive(Debug)]
struct Sequence {
    generation: u32,
    /// None while the place is free.
    live: Option<Live>,
}

#[derive(Debug, Default)]
struct Live {
    /// Tokens of each layer.
    lengths: Vec<usize>,
    /// Tokens up to which growth is reserved.
    target: usize,
    /// Blocks that each layer may still ask for until it has `target` tokens.
    promised: Vec<usize>,
    /// Everything is in the host tier, and stays there until it is swapped in.
    swapped: bool,
    /// Token ids of the full groups that others may share.
    prefix: Vec<u32>,
}

/// All blocks, slots and pages of a device, and the sequences that hold them.
#[derive(Debug)]
pub struct Pool {
    id: u32,
    tables: Tables,
    /// Block numbers, laid out as the block table.
    ids: Vec<u32>,
    /// By row, what the device has not been told of the tables: first and end of blocks, of groups. Small, and all zeros
    /// at first, as there can be millions of rows.
    dirty: Vec<[u32; 4]>,
    max_tokens: usize,
    slots: usize,
    pages: usize,
    blocks: Blocks,
    /// Sum of what is promised to all layers of all sequences.
    promised: usize,
    sequences: Vec<Sequence>,
    free_sequences: Vec<u32>,
    prefixes: Prefixes,
}

impl Pool {
    /// A pool of `slots` slots and `slots / 4` pages for at most `sequences` sequences of at most
    /// `max_tokens` tokens.
    pub fn new(shape: &Shape, slots: usize, sequences: usize, max_tokens: usize) -> Pool {
        Pool::with_extents(slots, max_tokens, TableExtents::new(shape, sequences, max_tokens))
    }

    /// A pool of `slots` slots and a page for each `group_blocks` of them.
    pub fn with_extents(slots: usize, max_tokens: usize, extents: TableExtents) -> Pool {
        Pool::build(slots, slots, max_tokens, extents, None)
    }

    /// A pool of `slots` slots for `blocks` blocks that each have a place in a host tier. `residency` chooses which
    /// blocks leave the device; it is one for `blocks` blocks, empty, that never evicts by itself.
    pub fn with_host_tier(
        slots: usize,
        blocks: usize,
        max_tokens: usize,
        extents: TableExtents,
        residency: Box<dyn Residency>,
    ) -> Pool {
        Pool::build(slots, blocks, max_tokens, extents, Some(residency))
    }

    fn build(
        slots: usize,
        blocks: usize,
        max_tokens: usize,
        extents: TableExtents,
        residency: Option<Box<dyn Residency>>,
    ) -> Pool {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (pages, sequences) = (blocks / extents.group_blocks, extents.sequences);
        Pool {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            tables: Tables {
                extents,
                block_table: vec![0; extents.rows() * extents.max_blocks],
                mirror_table: vec![0; extents.rows() * extents.max_groups()],
            },
            ids: vec![0; extents.rows() * extents.max_blocks],
            dirty: vec![[0; 4]; extents.rows()],
            max_tokens,
            slots,
            pages,
            blocks: Blocks::new(blocks, slots, pages, residency),
            promised: 0,
            sequences: (0..sequences).map(|_| Sequence { generation: 0, live: None }).collect(),
            free_sequences: (0..sequences as u32).rev().collect(),
            prefixes: Prefixes::default(),
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

    /// Blocks in all: with a host tier those that it has room for, otherwise as many as slots.
    pub fn blocks(&self) -> usize {
        self.blocks.block.len()
    }

    /// Pages in all.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Free slots.
    pub fn free_slots(&self) -> usize {
        self.blocks.free_slots.len()
    }

    /// Free blocks.
    pub fn free_blocks(&self) -> usize {
        self.blocks.free.len()
    }

    /// Blocks that are reserved for sequences and not taken yet.
    pub fn reserved_blocks(&self) -> usize {
        self.promised
    }

    /// Free pages.
    pub fn free_pages(&self) -> usize {
        self.blocks.free_pages.len()
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
        let layers = self.tables.extents.layers;
        let sequence = &mut self.sequences[index as usize];
        sequence.live = Some(Live { lengths: vec![0; layers], promised: vec![0; layers], ..Live::default() });
        Ok(SequenceId { cache: self.id, index, generation: sequence.generation })
    }

    /// Removes a sequence and frees what no other holds.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn remove_sequence(&mut self, id: SequenceId) -> Result<(), Error> {
        let index = self.index(id)?;
        self.cut(index, 0);
        self.set_target(index, 0);
        let sequence = &mut self.sequences[index];
        sequence.live = None;
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
                .is_some_and(|s| s.generation == id.generation && s.live.is_some());
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

    /// The sequences that there are.
    pub fn live(&self) -> impl Iterator<Item = SequenceId> + '_ {
        let id = |(index, s): (usize, &Sequence)| {
            let generation = s.generation;
            s.live.as_ref().map(|_| SequenceId { cache: self.id, index: index as u32, generation })
        };
        self.sequences.iter().enumerate().filter_map(id)
    }

    /// Tokens of a sequence in a layer; `index` comes from [`Pool::index`].
    pub fn tokens(&self, index: usize, layer: usize) -> usize {
        self.sequences[index].live.as_ref().map_or(0, |live| live.lengths[layer])
    }

    /// Tokens that a sequence has in every layer.
    pub fn complete_tokens(&self, index: usize) -> usize {
        self.sequences[index].live.as_ref().and_then(|l| l.lengths.iter().min().copied()).unwrap_or(0)
    }

    /// Reserves blocks, slots and pages for `new` tokens in `layer`, for each distinct (sequence index, new).
    ///
    /// # Errors
    /// [`Error::ContextTooLong`] and [`Error::PoolExhausted`], both with nothing changed.
    pub fn reserve(&mut self, layer: usize, growth: &[(usize, usize)]) -> Result<Reservation, Error> {
        let kv_heads = self.tables.extents.kv_heads;
        let (mut needed, mut own) = (0, 0);
        for &(index, new) in growth {
            let before = self.tokens(index, layer);
            let tokens = before.saturating_add(new);
            if tokens > self.max_tokens {
                return Err(Error::ContextTooLong { tokens, limit: self.max_tokens });
            }
            let taken = match new {
                0 => 0,
                _ => kv_heads * (blocks(tokens) - blocks(before)) + self.shared_open(index, layer, before),
            };
            needed += taken;
            own += taken.min(self.promised_to(index, layer));
        }
        // What others were promised is not free.
        let free = self.blocks.free.len() - (self.promised - own).min(self.blocks.free.len());
        let free = free.min(self.blocks.free_slots.len() + self.blocks.candidates());
        if needed > free {
            let held: usize = growth.iter().map(|&(index, _)| self.held(index)).sum();
            let evictable = (self.blocks.block.len() - self.blocks.free.len()).saturating_sub(held);
            return Err(Error::PoolExhausted { needed, free, evictable });
        }

        let mut reservation =
            Reservation { layer, lengths: Vec::with_capacity(growth.len()), changes: vec![], copies: vec![] };
        for &(index, new) in growth.iter().filter(|(_, new)| *new > 0) {
            let before = self.tokens(index, layer);
            let tokens = before + new;
            reservation.lengths.push((index, tokens));
            for head in 0..kv_heads {
                let row = self.tables.extents.row(index, layer, head);
                if self.blocks.shared > 0 {
                    self.copy_on_write(row, index, before, &mut reservation);
                }
                if !before.is_multiple_of(BLOCK) {
                    let id = self.ids[self.entry(row, before / BLOCK)];
                    if self.blocks.open(id) {
                        reservation.changes.push(Change::Opened(id));
                    }
                }
                let change = TableChange {
                    row,
                    blocks: blocks(before)..blocks(tokens),
                    groups: self.tables.extents.full_groups(before)..self.tables.extents.full_groups(tokens),
                };
                if !change.blocks.is_empty() || !change.groups.is_empty() {
                    self.take(index, &change);
                    reservation.changes.push(Change::Taken(change));
                }
            }
        }
        Ok(reservation)
    }

    /// Makes the reserved tokens part of their sequences.
    pub fn commit(&mut self, reservation: Reservation) {
        let Reservation { layer, lengths, changes, .. } = reservation;
        for (index, tokens) in lengths {
            let before = self.tokens(index, layer);
            for head in 0..self.tables.extents.kv_heads {
                let row = self.tables.extents.row(index, layer, head);
                for block in before / BLOCK..blocks(tokens) {
                    let id = self.ids[self.entry(row, block)];
                    let fill = &mut self.blocks.block[id as usize].fill;
                    *fill = (*fill).max((tokens - block * BLOCK).min(BLOCK) as u8);
                }
            }
            if let Some(live) = &mut self.sequences[index].live {
                live.lengths[layer] = tokens;
            }
            self.promise(index, layer);
        }
        if self.blocks.residency.is_some() {
            for change in changes {
                let Change::Taken(TableChange { row, groups, .. }) = change else { continue };
                let group = self.tables.extents.group_blocks;
                for block in groups.start * group..groups.end * group {
                    self.blocks.enqueue(self.ids[self.entry(row, block)]);
                }
            }
        }
    }

    /// Frees what was reserved; the free lists are as they were before, unless blocks had to leave the device.
    pub fn roll_back(&mut self, reservation: Reservation) {
        for change in reservation.changes.into_iter().rev() {
            match change {
                Change::Taken(TableChange { row, blocks, groups }) => self.release(row, blocks, groups),
                // What may have been written lies beyond the tokens that were saved.
                Change::Opened(id) => self.blocks.saved(id),
                Change::Copied { row, block, before } => {
                    let entry = self.entry(row, block);
                    self.blocks.release(self.ids[entry]);
                    self.blocks.share(before);
                    self.set(row, block, before);
                }
            }
        }
    }

    /// What the device has not been told of the tables of these sequences in `layer`, until [`Pool::told`].
    pub fn untold(&self, layer: usize, sequences: &[u32]) -> Vec<TableChange> {
        let rows = sequences.iter().flat_map(|&s| self.rows(s as usize, layer));
        let changes = rows.filter(|&row| self.dirty[row] != [0; 4]).map(|row| {
            let [first, end, first_group, end_group] = self.dirty[row].map(|entry| entry as usize);
            TableChange { row, blocks: first..end, groups: first_group..end_group }
        });
        changes.collect()
    }

    /// The device knows these entries now.
    pub fn told(&mut self, changes: &[TableChange]) {
        for change in changes {
            self.dirty[change.row] = [0; 4];
        }
    }

    /// Rows of a layer of a sequence, one for each KV head.
    pub(crate) fn rows(&self, index: usize, layer: usize) -> Range<usize> {
        let first = self.tables.extents.row(index, layer, 0);
        first..first + self.tables.extents.kv_heads
    }

    fn entry(&self, row: usize, block: usize) -> usize {
        row * self.tables.extents.max_blocks + block
    }

    /// The open group's blocks of a row of `tokens` tokens.
    fn open_blocks(&self, tokens: usize) -> Range<usize> {
        self.tables.extents.full_groups(tokens) * self.tables.extents.group_blocks..blocks(tokens)
    }

    /// Blocks of a sequence.
    fn held(&self, index: usize) -> usize {
        let lengths = self.sequences[index].live.as_ref().map_or(&[][..], |live| &live.lengths);
        lengths.iter().map(|&tokens| blocks(tokens) * self.tables.extents.kv_heads).sum()
    }

    fn take(&mut self, index: usize, change: &TableChange) {
        for block in change.blocks.clone() {
            let id = self.take_block(index, self.entry(change.row, block));
            self.set(change.row, block, id);
        }
        let first = change.row * self.tables.extents.max_groups();
        for group in change.groups.clone() {
            self.tables.mirror_table[first + group] = self.blocks.take_page();
        }
        self.changed(change.row, 0..0, change.groups.clone());
    }

    /// A free block for an entry of a sequence's row, with a slot.
    fn take_block(&mut self, index: usize, entry: usize) -> u32 {
        // There are enough: `reserve` has counted free slots and candidates.
        let slot = self.take_slot().unwrap_or(NONE);
        let TableExtents { layers, kv_heads, max_blocks, .. } = self.tables.extents;
        let place = entry - index * layers * kv_heads * max_blocks;
        self.blocks.take(slot, place as u32, index as u32)
    }

    /// An entry of the tables names this block from now on.
    fn set(&mut self, row: usize, block: usize, id: u32) {
        let entry = self.entry(row, block);
        self.ids[entry] = id;
        self.tables.block_table[entry] = self.device_slot(id);
        self.changed(row, block..block + 1, 0..0);
    }

    fn changed(&mut self, row: usize, blocks: Range<usize>, groups: Range<usize>) {
        let (known, new_groups) = self.dirty[row].split_at_mut(2);
        for (known, new) in [(known, blocks), (new_groups, groups)] {
            let (first, end) = (new.start as u32, new.end as u32);
            if known[0] == known[1] {
                known.copy_from_slice(&[first, end]);
            } else if first < end {
                known.copy_from_slice(&[known[0].min(first), known[1].max(end)]);
            }
        }
    }

    fn release(&mut self, row: usize, blocks: Range<usize>, groups: Range<usize>) {
        for block in blocks.rev() {
            self.blocks.release(self.ids[self.entry(row, block)]);
        }
        let first = row * self.tables.extents.max_groups();
        for group in groups.rev() {
            self.blocks.release_page(self.tables.mirror_table[first + group]);
        }
    }
}

#[cfg(test)]
mod tests;
