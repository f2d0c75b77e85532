//! Sequences that share, shrink, wait and come back: fork, truncate, reserve, prefixes, swap out and in.

use super::*;

impl KvCache {
    /// A new sequence with the tokens that `source` has in every layer. It shares their memory; either copies what it
    /// shares of its open group before it writes there. Costs a reference for each block, and no bytes of K and V.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::TooManySequences`]; [`Error::PoolExhausted`] where a reservation of
    /// `source` could then not be kept.
    pub fn fork(&mut self, source: SequenceId) -> Result<SequenceId, Error> {
        self.pool.fork(source, self.len(source)?)
    }

    /// As [`KvCache::fork`], but of the first `tokens` tokens only.
    ///
    /// # Errors
    /// As [`KvCache::fork`]; [`Error::BeyondEnd`] where `source` has fewer.
    pub fn fork_at(&mut self, source: SequenceId, tokens: usize) -> Result<SequenceId, Error> {
        self.pool.fork(source, tokens)
    }

    /// Cuts a sequence to its first `tokens` tokens in every layer, as after rejected speculation. Layers that have fewer
    /// stay as they are. Costs what is freed.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`]; [`Error::BeyondEnd`] where no layer has as many; [`Error::PoolExhausted`] where the
    /// sequence has a reservation that could not be kept, because others go on to hold its blocks.
    pub fn truncate(&mut self, sequence: SequenceId, tokens: usize) -> Result<(), Error> {
        self.pool.truncate(sequence, tokens)?;
        self.value_sums.cut(sequence, tokens);
        Ok(())
    }

    /// Sets aside what a sequence needs to grow to `tokens` tokens in every layer, so that its appends up to there do
    /// not fail for want of blocks, whatever others do: admission of a request. 0 gives the rest back.
    ///
    /// Without a host tier that is all an append needs. With one it is a place for every block; an append also needs
    /// slots, which others can have filled with open groups: swapping one of them out makes room.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::ContextTooLong`]; [`Error::PoolExhausted`], with the reservation as it was.
    pub fn reserve(&mut self, sequence: SequenceId, tokens: usize) -> Result<(), Error> {
        self.pool.reserve_for(sequence, tokens)
    }

    /// Offers what a sequence holds to others that begin alike: its first tokens were computed from the token ids
    /// `tokens`. Only full quantisation groups are shared. What was published before is replaced.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`]; [`Error::BeyondEnd`] where a layer has fewer tokens.
    pub fn publish_prefix(&mut self, sequence: SequenceId, tokens: &[u32]) -> Result<(), Error> {
        self.pool.publish_prefix(sequence, tokens)
    }

    /// Adds a sequence that shares the longest published prefix of `tokens`, and says how many tokens it has: the rest
    /// is to be computed and appended. A prefix lives as long as a sequence that begins with it.
    ///
    /// # Errors
    /// As [`KvCache::fork`].
    pub fn add_sequence_with_prefix(&mut self, tokens: &[u32]) -> Result<(SequenceId, usize), Error> {
        match self.pool.find_prefix(tokens) {
            Some((source, shared)) => Ok((self.pool.fork(source, shared)?, shared)),
            None => Ok((self.pool.add_sequence()?, 0)),
        }
    }

    /// Saves all of a sequence to the host tier and gives its slots to others, but for those it shares: preemption. It
    /// cannot be appended to or attended to until [`KvCache::swap_in`]; all else works. Mirror pages stay on the device.
    /// No effect where it is swapped out already.
    ///
    /// # Errors
    /// [`Error::NoHostTier`], [`Error::UnknownSequence`], the device's.
    pub fn swap_out(&mut self, sequence: SequenceId) -> Result<(), Error> {
        self.save(sequence)?;
        let index = self.pool.index(sequence)?;
        self.pool.set_swapped(index, true);
        self.pool.drop_from_device(index);
        Ok(())
    }

    /// Makes a sequence usable again. Its open groups come back to the device now, evicting others where they must, and
    /// the rest as far as slots are free; what does not fit comes when it is read. Bit for bit what it was. No effect
    /// where it is not swapped out.
    ///
    /// # Errors
    /// [`Error::NoHostTier`], [`Error::UnknownSequence`], the device's; [`Error::PoolExhausted`] where there is no room
    /// for its open groups. It is swapped out still.
    pub fn swap_in(&mut self, sequence: SequenceId) -> Result<(), Error> {
        let index = self.pool.index(sequence)?;
        if self.tier.is_none() {
            return Err(Error::NoHostTier { call: "KvCache::swap_in" });
        }
        if !self.pool.is_swapped(index) {
            return Ok(());
        }
        let mut missing = vec![];
        for layer in 0..self.shape.layers {
            self.pool.hold_open(index, layer, &mut missing);
        }
        let fetched = self.fetch(&missing);
        self.pool.end_of_use();
        fetched?;
        let rest = self.pool.absent(index, self.pool.free_slots());
        let fetched = self.fetch(&rest);
        self.pool.end_of_use();
        fetched?;
        self.pool.set_swapped(index, false);
        Ok(())
    }

    /// True where a sequence is swapped out.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn is_swapped_out(&self, sequence: SequenceId) -> Result<bool, Error> {
        Ok(self.pool.is_swapped(self.pool.index(sequence)?))
    }

    /// Saves all of a sequence to the host tier, the open groups too: after it, and until the next append, the sequence
    /// survives the loss of the device whole.
    ///
    /// # Errors
    /// [`Error::NoHostTier`], [`Error::UnknownSequence`], the device's.
    pub fn save(&mut self, sequence: SequenceId) -> Result<(), Error> {
        let index = self.pool.index(sequence)?;
        if self.tier.is_none() {
            return Err(Error::NoHostTier { call: "saving" });
        }
        self.pool.enqueue_all(index);
        self.save_complete()
    }
}
