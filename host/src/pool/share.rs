//! Sharing and admission: fork, truncate, copy on write, reservations.

use super::*;

impl Pool {
    /// A new sequence that shares the first `tokens` tokens of `source`: its block and page references are copied,
    /// nothing else. The reservation of `source` is not.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::TooManySequences`], [`Error::BeyondEnd`] where a layer of `source` has
    /// fewer tokens, and [`Error::PoolExhausted`] where the reservation of `source` could then not be kept: it must
    /// copy what it shares before it writes.
    pub fn fork(&mut self, source: SequenceId, tokens: usize) -> Result<SequenceId, Error> {
        let from = self.index(source)?;
        let length = self.complete_tokens(from);
        if tokens > length {
            return Err(Error::BeyondEnd { sequence: source.to_string(), tokens, length });
        }
        let fork = self.add_sequence()?;
        let to = fork.index as usize;
        let TableExtents { layers, kv_heads, .. } = self.tables.extents;
        let groups = self.tables.extents.full_groups(tokens);
        for (layer, head) in (0..layers).flat_map(|layer| (0..kv_heads).map(move |head| (layer, head))) {
            let (old, new) =
                (self.tables.extents.row(from, layer, head), self.tables.extents.row(to, layer, head));
            for block in 0..blocks(tokens) {
                let id = self.ids[self.entry(old, block)];
                self.blocks.share(id);
                self.set(new, block, id);
            }
            let width = self.tables.extents.max_groups();
            for group in 0..groups {
                let page = self.tables.mirror_table[old * width + group];
                self.blocks.page_refs[page as usize] += 1;
                self.tables.mirror_table[new * width + group] = page;
            }
            self.changed(new, 0..0, 0..groups);
        }
        if let Some(live) = &mut self.sequences[to].live {
            live.lengths.fill(tokens);
        }
        for layer in 0..layers {
            self.promise(from, layer);
        }
        if self.promised > self.blocks.free.len() {
            let (needed, free) = (self.promised, self.blocks.free.len());
            self.remove_sequence(fork)?;
            for layer in 0..layers {
                self.promise(from, layer);
            }
            let evictable = (self.blocks.block.len() - free).saturating_sub(self.held(from));
            return Err(Error::PoolExhausted { needed, free, evictable });
        }
        self.inherit_prefix(from, to, tokens);
        Ok(fork)
    }

    /// Cuts a sequence to its first `tokens` tokens, in every layer; layers that have fewer stay as they are.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::BeyondEnd`] where every layer has fewer, [`Error::PoolExhausted`] where
    /// others go on to hold the blocks, so that its reservation could not be kept.
    pub fn truncate(&mut self, id: SequenceId, tokens: usize) -> Result<(), Error> {
        let index = self.index(id)?;
        let length =
            (0..self.tables.extents.layers).map(|layer| self.tokens(index, layer)).max().unwrap_or(0);
        if tokens > length {
            return Err(Error::BeyondEnd { sequence: id.to_string(), tokens, length });
        }
        let target = self.sequences[index].live.as_ref().map_or(0, |live| live.target);
        if self.blocks.shared > 0 && target > tokens {
            let (mut needed, mut freed) = (0, 0);
            for layer in 0..self.tables.extents.layers {
                let before = self.tokens(index, layer);
                needed += self.growth(index, layer, before.min(tokens), target);
                let cut = blocks(tokens.min(before))..blocks(before);
                let own = |row: usize| cut.clone().filter(|&b| self.refs(row, b) == 1).count();
                freed += self.rows(index, layer).map(own).sum::<usize>();
            }
            let free = self.blocks.free.len() + freed;
            let free = free - (self.promised - self.promised_to_all(index)).min(free);
            if needed > free {
                let held = self.blocks.block.len() - self.blocks.free.len();
                let evictable = held.saturating_sub(self.held(index));
                return Err(Error::PoolExhausted { needed, free, evictable });
            }
        }
        self.cut(index, tokens);
        Ok(())
    }

    fn refs(&self, row: usize, block: usize) -> u32 {
        self.blocks.block[self.ids[self.entry(row, block)] as usize].refs
    }

    pub(super) fn cut(&mut self, index: usize, tokens: usize) {
        self.cut_prefix(index, tokens);
        for layer in 0..self.tables.extents.layers {
            let before = self.tokens(index, layer);
            if before <= tokens {
                continue;
            }
            let extents = self.tables.extents;
            for row in self.rows(index, layer) {
                let groups = extents.full_groups(tokens)..extents.full_groups(before);
                self.release(row, blocks(tokens)..blocks(before), groups);
            }
            if let Some(live) = &mut self.sequences[index].live {
                live.lengths[layer] = tokens;
            }
            self.promise(index, layer);
        }
    }

    /// Sets aside what a sequence needs to grow to `tokens` tokens in every layer; 0 gives it back.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::ContextTooLong`], and [`Error::PoolExhausted`] with the reservation as it
    /// was.
    pub fn reserve_for(&mut self, id: SequenceId, tokens: usize) -> Result<(), Error> {
        let index = self.index(id)?;
        if tokens > self.max_tokens {
            return Err(Error::ContextTooLong { tokens, limit: self.max_tokens });
        }
        let before = self.sequences[index].live.as_ref().map_or(0, |live| live.target);
        let others = self.promised - self.promised_to_all(index);
        self.set_target(index, tokens);
        let free = self.blocks.free.len();
        if self.promised > free && tokens > before {
            let needed = self.promised_to_all(index);
            self.set_target(index, before);
            let evictable = (self.blocks.block.len() - free).saturating_sub(self.held(index));
            return Err(Error::PoolExhausted { needed, free: free.saturating_sub(others), evictable });
        }
        Ok(())
    }

    pub(super) fn set_target(&mut self, index: usize, tokens: usize) {
        if let Some(live) = &mut self.sequences[index].live {
            live.target = tokens;
        }
        for layer in 0..self.tables.extents.layers {
            self.promise(index, layer);
        }
    }

    pub(super) fn promised_to(&self, index: usize, layer: usize) -> usize {
        self.sequences[index].live.as_ref().map_or(0, |live| live.promised[layer])
    }

    fn promised_to_all(&self, index: usize) -> usize {
        self.sequences[index].live.as_ref().map_or(0, |live| live.promised.iter().sum())
    }

    /// Counts anew what a layer of a sequence may still ask for.
    pub(super) fn promise(&mut self, index: usize, layer: usize) {
        let Some(live) = &self.sequences[index].live else { return };
        let (before, length) = (live.promised[layer], live.lengths[layer]);
        let promised = self.growth(index, layer, length, live.target);
        self.promised = self.promised - before + promised;
        if let Some(live) = &mut self.sequences[index].live {
            live.promised[layer] = promised;
        }
    }

    /// Blocks that a layer of `length` tokens needs to grow to `target`.
    fn growth(&self, index: usize, layer: usize, length: usize, target: usize) -> usize {
        if target <= length {
            return 0;
        }
        let grown = blocks(target) - blocks(length);
        self.tables.extents.kv_heads * grown + self.shared_open(index, layer, length)
    }

    /// Blocks of the open group of a layer of `tokens` tokens that other sequences hold too: what an append must copy.
    pub(super) fn shared_open(&self, index: usize, layer: usize, tokens: usize) -> usize {
        if self.blocks.shared == 0 {
            return 0;
        }
        let open = self.open_blocks(tokens);
        let shared = |row: usize| open.clone().filter(move |&block| self.refs(row, block) > 1);
        self.rows(index, layer).map(|row| shared(row).count()).sum()
    }

    /// Gives a row blocks of its own for what it shares of its open group.
    pub(super) fn copy_on_write(
        &mut self,
        row: usize,
        index: usize,
        tokens: usize,
        reservation: &mut Reservation,
    ) {
        for block in self.open_blocks(tokens) {
            let entry = self.entry(row, block);
            let old = self.ids[entry];
            if self.refs(row, block) == 1 {
                continue;
            }
            let new = self.take_block(index, entry);
            let copied = (tokens - block * BLOCK).min(BLOCK);
            let slot = |id: u32| self.blocks.block[id as usize].slot;
            reservation.copies.push(SlotCopy { from: slot(old), to: slot(new), tokens: copied as u32 });
            reservation.changes.push(Change::Copied { row, block, before: old });
            self.blocks.block[new as usize].fill = copied as u8;
            self.blocks.release(old);
            self.set(row, block, new);
        }
    }
}
