//! Prefixes by content: which sequence begins with these token ids, group for group.
//!
//! A published prefix is full groups only, which nobody writes again; a hash of all token ids up to the end of a group
//! leads to the sequences that have it. The ids themselves are compared as well, so a collision of hashes shares
//! nothing. A prefix lives as long as a sequence that begins with it: keep one, and nothing is computed twice.

use super::*;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// Sequences (by index) by the hash of what they begin with.
#[derive(Debug, Default)]
pub(super) struct Prefixes(HashMap<u64, Vec<u32>>);

/// Hashes of the first 1, 2, .. groups.
fn hashes(tokens: &[u32], group: usize) -> impl Iterator<Item = u64> + '_ {
    tokens.chunks_exact(group).scan(DefaultHasher::new(), |hasher, group| {
        group.hash(hasher);
        Some(hasher.finish())
    })
}

impl Pool {
    /// Lets others share what a sequence holds: its first tokens were computed from `tokens`, one id each. Only full
    /// groups count; those published before stay.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::BeyondEnd`] where a layer has fewer tokens.
    pub fn publish_prefix(&mut self, id: SequenceId, tokens: &[u32]) -> Result<(), Error> {
        let index = self.index(id)?;
        let length = self.complete_tokens(index);
        if tokens.len() > length {
            return Err(Error::BeyondEnd { sequence: id.to_string(), tokens: tokens.len(), length });
        }
        self.cut_prefix(index, 0);
        self.set_prefix(index, tokens);
        Ok(())
    }

    /// The sequence that shares the longest prefix of `tokens`, and how many tokens that is.
    pub fn find_prefix(&self, tokens: &[u32]) -> Option<(SequenceId, usize)> {
        let group = self.group_tokens();
        let known =
            |sequence: u32| self.sequences[sequence as usize].live.as_ref().map_or(&[][..], |l| &l.prefix);
        let mut best = None;
        for (i, hash) in hashes(tokens, group).enumerate() {
            let n = (i + 1) * group;
            let holders = self.prefixes.0.get(&hash).map_or(&[][..], |holders| holders);
            match holders.iter().find(|&&s| known(s).get(..n) == Some(&tokens[..n])) {
                Some(&sequence) => best = Some((sequence, n)),
                None => break,
            }
        }
        let (index, n) = best?;
        let generation = self.sequences[index as usize].generation;
        Some((SequenceId { cache: self.id, index, generation }, n))
    }

    fn group_tokens(&self) -> usize {
        self.tables.extents.group_blocks * BLOCK
    }

    fn set_prefix(&mut self, index: usize, tokens: &[u32]) {
        let group = self.group_tokens();
        let tokens = &tokens[..tokens.len() / group * group];
        for hash in hashes(tokens, group) {
            self.prefixes.0.entry(hash).or_default().push(index as u32);
        }
        if let Some(live) = &mut self.sequences[index].live {
            live.prefix = tokens.to_vec();
        }
    }

    /// A sequence keeps what it published of its first `tokens` tokens.
    pub(super) fn cut_prefix(&mut self, index: usize, tokens: usize) {
        let group = self.group_tokens();
        let Some(live) = &mut self.sequences[index].live else { return };
        let kept = tokens / group;
        for hash in hashes(&live.prefix, group).skip(kept) {
            if let Some(holders) = self.prefixes.0.get_mut(&hash) {
                holders.retain(|&holder| holder != index as u32);
                if holders.is_empty() {
                    self.prefixes.0.remove(&hash);
                }
            }
        }
        live.prefix.truncate(kept * group);
    }

    pub(super) fn inherit_prefix(&mut self, from: usize, to: usize, tokens: usize) {
        let Some(live) = &self.sequences[from].live else { return };
        let known = live.prefix[..live.prefix.len().min(tokens)].to_vec();
        self.set_prefix(to, &known);
    }
}
