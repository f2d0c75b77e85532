//! Blocks with and without a slot: eviction, fetches, saves, sequences that are swapped out.
//!
//! Bookkeeping of moves that the cache makes: each has a part that finds slots, before the bytes move, and one that
//! makes the tables say so, after they have.

use super::blocks::State;
use super::*;

/// A block's place in the host tier, and its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostCopy {
    /// Slot on the device.
    pub slot: u32,
    /// Place in the host tier: the block's number.
    pub home: u32,
    /// Tokens to copy, 1 to 16.
    pub tokens: u32,
}

impl Pool {
    /// The slot that tables name for a block that has none: zeros, never written.
    pub fn hole(&self) -> u32 {
        self.slots as u32
    }

    /// True where there is a host tier.
    pub fn has_host_tier(&self) -> bool {
        self.blocks.residency.is_some()
    }

    /// Number and, where it is on the device, slot of a block of a row.
    pub(crate) fn block_of(&self, row: usize, block: usize) -> (u32, Option<u32>) {
        let id = self.ids[self.entry(row, block)];
        let slot = self.blocks.block[id as usize].slot;
        (id, (slot != NONE).then_some(slot))
    }

    pub(super) fn device_slot(&self, id: u32) -> u32 {
        match self.blocks.block[id as usize].slot {
            NONE => self.hole(),
            slot => slot,
        }
    }

    /// A free slot; where there is none, that of the block which the device needs least.
    pub(super) fn take_slot(&mut self) -> Option<u32> {
        if let Some(slot) = self.blocks.free_slots.pop() {
            return Some(slot);
        }
        let victim = self.blocks.evict()?;
        Some(self.leave(victim))
    }

    /// A saved block gives its slot up.
    fn leave(&mut self, id: u32) -> u32 {
        let slot = std::mem::replace(&mut self.blocks.block[id as usize].slot, NONE);
        self.point(id);
        slot
    }

    /// Writes a block's slot into the tables of all sequences that hold it.
    fn point(&mut self, id: u32) {
        let TableExtents { layers, kv_heads, max_blocks, sequences, .. } = self.tables.extents;
        let width = layers * kv_heads * max_blocks;
        let Block { place, owner, refs, .. } = self.blocks.block[id as usize];
        let (place, slot) = (place as usize, self.device_slot(id));
        let (layer, block) = (place / (kv_heads * max_blocks), place % max_blocks);
        let mut left = refs;
        // Whoever was the only holder last time comes first; most blocks have one.
        for index in std::iter::once(owner as usize).chain(0..sequences) {
            let entry = index * width + place;
            if left == 0 {
                break;
            }
            let holds = block < blocks(self.tokens(index, layer)) && self.ids[entry] == id;
            if !holds || (index == owner as usize && left < refs) {
                continue;
            }
            if self.tables.block_table[entry] != slot {
                self.tables.block_table[entry] = slot;
                self.changed(entry / max_blocks, block..block + 1, 0..0);
            }
            self.blocks.block[id as usize].owner = index as u32;
            left -= 1;
        }
    }

    /// Keeps blocks of a row on the device until [`Pool::end_of_use`]; those that are not there are added to `missing`.
    pub(crate) fn hold(&mut self, row: usize, wanted: impl Iterator<Item = usize>, missing: &mut Vec<u32>) {
        for block in wanted {
            let id = self.ids[self.entry(row, block)];
            match self.blocks.block[id as usize].slot {
                NONE => missing.push(id),
                _ => self.blocks.hold(id),
            }
        }
    }

    /// Slots for blocks that are not on the device; each block once.
    ///
    /// # Errors
    /// [`Error::PoolExhausted`] with nothing changed, but that blocks may have left the device.
    pub(crate) fn find_slots(&mut self, missing: &[u32]) -> Result<Vec<HostCopy>, Error> {
        let mut copies = Vec::with_capacity(missing.len());
        for &id in missing {
            if self.blocks.block[id as usize].slot != NONE {
                continue;
            }
            let Some(slot) = self.take_slot() else {
                self.give_slots_back(&copies);
                let free = self.blocks.free_slots.len() + self.blocks.candidates();
                let evictable = self.slots.saturating_sub(free + self.blocks.held.len());
                return Err(Error::PoolExhausted { needed: missing.len(), free, evictable });
            };
            let block = &mut self.blocks.block[id as usize];
            block.slot = slot;
            copies.push(HostCopy { slot, home: id, tokens: block.fill.into() });
        }
        Ok(copies)
    }

    /// The fetch failed: the slots are free again.
    pub(crate) fn give_slots_back(&mut self, copies: &[HostCopy]) {
        for copy in copies.iter().rev() {
            self.blocks.block[copy.home as usize].slot = NONE;
            self.blocks.free_slots.push(copy.slot);
        }
    }

    /// The blocks are on the device now, and are held.
    pub(crate) fn arrived(&mut self, copies: &[HostCopy]) {
        for copy in copies {
            self.point(copy.home);
            self.blocks.hold(copy.home);
        }
    }

    /// What was held may leave again.
    pub(crate) fn end_of_use(&mut self) {
        self.blocks.release_held();
    }

    /// A row's blocks were read.
    pub(crate) fn was_read(&mut self, row: usize, read: &[u32]) {
        for &block in read {
            let id = self.ids[self.entry(row, block as usize)];
            // Others are not candidates, whatever is read.
            if self.blocks.block[id as usize].state == State::Saved
                && let Some(residency) = &mut self.blocks.residency
            {
                residency.read(id, 1.0);
            }
        }
    }

    /// A step is over: what decays, decays.
    pub(crate) fn end_step(&mut self) {
        if let Some(residency) = &mut self.blocks.residency {
            residency.end_step();
        }
    }

    /// Complete blocks that are not in the host tier yet.
    pub(crate) fn take_queue(&mut self) -> Vec<HostCopy> {
        let queue = std::mem::take(&mut self.blocks.queue);
        let mut copies = Vec::with_capacity(queue.len());
        for &id in &queue {
            let Block { slot, fill, state, .. } = self.blocks.block[id as usize];
            if state == State::Queued {
                // So that a block queued twice is saved once; `saved` or `not_saved` follows.
                self.blocks.block[id as usize].state = State::Open;
                copies.push(HostCopy { slot, home: id, tokens: fill.into() });
            }
        }
        copies
    }

    /// Number of blocks that wait to be saved, at most.
    pub(crate) fn waiting(&self) -> usize {
        self.blocks.queue.len()
    }

    /// The copies are in the host tier.
    pub(crate) fn saved(&mut self, copies: &[HostCopy]) {
        for copy in copies {
            self.blocks.saved(copy.home);
        }
    }

    /// The copies failed: the blocks wait again.
    pub(crate) fn not_saved(&mut self, copies: &[HostCopy]) {
        for copy in copies {
            self.blocks.enqueue(copy.home);
        }
    }

    /// Puts all of a sequence's blocks in the queue, the open ones too.
    pub(crate) fn enqueue_all(&mut self, index: usize) {
        for layer in 0..self.tables.extents.layers {
            for row in self.rows(index, layer) {
                for block in 0..blocks(self.tokens(index, layer)) {
                    self.blocks.enqueue(self.ids[self.entry(row, block)]);
                }
            }
        }
    }

    /// True where the sequence is swapped out.
    pub(crate) fn is_swapped(&self, index: usize) -> bool {
        self.sequences[index].live.as_ref().is_some_and(|live| live.swapped)
    }

    pub(crate) fn set_swapped(&mut self, index: usize, swapped: bool) {
        if let Some(live) = &mut self.sequences[index].live {
            live.swapped = swapped;
        }
    }

    /// Takes a sequence's blocks off the device, all of them saved, but those that others share.
    pub(crate) fn drop_from_device(&mut self, index: usize) {
        for layer in 0..self.tables.extents.layers {
            for row in self.rows(index, layer) {
                for block in 0..blocks(self.tokens(index, layer)) {
                    let id = self.ids[self.entry(row, block)];
                    let Block { refs, slot, state, .. } = self.blocks.block[id as usize];
                    if refs == 1 && slot != NONE && state == State::Saved {
                        self.blocks.unlist(id);
                        let slot = self.leave(id);
                        self.blocks.free_slots.push(slot);
                    }
                }
            }
        }
    }

    /// Tokens of the longest layer, and where some of its blocks are on the device only, tokens that all layers have in
    /// the host tier.
    pub(crate) fn survivors(&self, index: usize) -> (usize, Option<usize>) {
        let (mut longest, mut shortest, mut whole) = (0, usize::MAX, true);
        for layer in 0..self.tables.extents.layers {
            let tokens = self.tokens(index, layer);
            let saved = |row: usize| {
                let unsaved = |&block: &usize| {
                    let id = self.ids[self.entry(row, block)];
                    self.blocks.block[id as usize].state != State::Saved
                };
                (0..blocks(tokens)).find(unsaved).map_or(tokens, |block| block * BLOCK)
            };
            let saved = self.rows(index, layer).map(saved).min().unwrap_or(tokens);
            longest = longest.max(tokens);
            shortest = shortest.min(saved);
            whole &= saved == tokens;
        }
        (longest, (!whole).then_some(shortest))
    }

    /// The device is gone, and with it all slots; every block is in the host tier.
    pub(crate) fn forget_device(&mut self) {
        self.blocks.queue.clear();
        self.blocks.release_held();
        for id in 0..self.blocks.block.len() as u32 {
            self.blocks.unlist(id);
            self.blocks.block[id as usize].slot = NONE;
        }
        self.blocks.free_slots = (0..self.slots as u32).rev().collect();
        let hole = self.hole();
        for index in 0..self.sequences.len() {
            for layer in 0..self.tables.extents.layers {
                let (n, groups) =
                    (self.tokens(index, layer), self.tables.extents.full_groups(self.tokens(index, layer)));
                for row in self.rows(index, layer) {
                    let first = self.entry(row, 0);
                    self.tables.block_table[first..first + blocks(n)].fill(hole);
                    self.changed(row, 0..blocks(n), 0..groups);
                }
            }
        }
    }

    /// Up to `most` blocks of a sequence that are not on the device.
    pub(crate) fn absent(&self, index: usize, most: usize) -> Vec<u32> {
        let layers = 0..self.tables.extents.layers;
        let of_row = |layer: usize, row: usize| {
            (0..blocks(self.tokens(index, layer))).map(move |block| self.block_of(row, block))
        };
        let all = layers
            .flat_map(|l| self.rows(index, l).map(move |row| (l, row)))
            .flat_map(|(l, row)| of_row(l, row));
        all.filter(|(_, slot)| slot.is_none()).map(|(id, _)| id).take(most).collect()
    }

    /// The open groups of a sequence's rows: what must be on the device for any step.
    pub(crate) fn hold_open(&mut self, index: usize, layer: usize, missing: &mut Vec<u32>) {
        let open = self.open_blocks(self.tokens(index, layer));
        for row in self.rows(index, layer) {
            self.hold(row, open.clone(), missing);
        }
    }
}
