//! Frequency with decay: a block's score is the number of its reads (or the sum of their weights), each worth
//! [`DECAY`] to the power of its age in steps. The lowest score leaves first.
//!
//! Every score decays by the same factor, so their order changes only by reads: `key = log(score) + step *
//! log(1 / decay)` is fixed between two reads. Blocks lie in lists by key, [`PER_E`] lists to a factor of e, in
//! a ring of [`LISTS`] with a bitmap over it. Within a list the block that was read last leaves first: among
//! equals it is the one whose turn in the next step is the farthest away. A read is O(1): at most [`LISTS`] / 64
//! words are looked at.
//!
//! The score of a block outlives its stay in the pool (8 bytes a block), so that one that returns is not a stranger.
//!
//! Trap: the ring covers [`LISTS`] / [`PER_E`] factors of e below the highest possible score, 2,400 steps of decay at
//! .9; blocks that fall behind are merged into the last list, and their order among each other is by age in it.

use super::lists::Lists;
use super::{Entry, Residency};

/// What a read is worth a step later. Tuned by `psa pool-study --decay` on the bundled reads: .85 to .95 differ by less
/// than 6 % in misses at every capacity from .1 to .4; the table is in docs/memory.md.
pub const DECAY: f64 = 0.9;

/// Lists to a factor of e. Tuned likewise: coarse enough for ties, which help below a step's demand.
const PER_E: f64 = 4.0;

/// Lists in the ring; a multiple of 64.
const LISTS: usize = 1024;

/// Lowest weight: e^-20 below one read, so that a block without any weight still has a logarithm.
const LEAST: f64 = 2e-9;

/// Frequency with decay over the whole pool, by number of reads or by weight.
pub struct Frequency {
    lists: Lists,
    full: [u64; LISTS / 64],
    /// Score at `last`, and that step.
    score: Vec<f32>,
    last: Vec<u32>,
    by_weight: bool,
    decay: f64,
    step: u32,
    /// Lowest key in the ring.
    base: i64,
    capacity: usize,
    len: usize,
}

impl Frequency {
    /// A pool of `capacity` for blocks `0..blocks` by number of reads. `decay` is above 0 and below 1: others are
    /// moved to the nearest of .01 and .999.
    pub fn new(blocks: usize, capacity: usize, decay: f64) -> Frequency {
        let decay = if decay.is_nan() { DECAY } else { decay.clamp(0.01, 0.999) };
        let mut new = Frequency {
            lists: Lists::new(blocks, LISTS),
            full: [0; LISTS / 64],
            score: vec![0.0; blocks],
            last: vec![0; blocks],
            by_weight: false,
            decay,
            step: 0,
            base: 0,
            capacity,
            len: 0,
        };
        new.base = new.lowest();
        new
    }

    /// The same by weight: each read counts with its share of the attention mass.
    pub fn by_weight(blocks: usize, capacity: usize, decay: f64) -> Frequency {
        Frequency { by_weight: true, ..Frequency::new(blocks, capacity, decay) }
    }

    /// Score of a block now.
    pub fn score(&self, block: u32) -> f64 {
        let score = self.score[block as usize] as f64;
        // Most blocks were read in this step or the last: no power for those.
        match self.step - self.last[block as usize] {
            0 => score,
            1 => score * self.decay,
            age => score * self.decay.powf(age as f64),
        }
    }

    /// The key of a score now.
    pub(super) fn key(&self, score: f64) -> i64 {
        ((score.max(LEAST).ln() - self.step as f64 * self.decay.ln()) * PER_E).floor() as i64
    }

    /// The lowest key that the ring holds now: its highest is that of a block read in every step, twice over.
    fn lowest(&self) -> i64 {
        self.key(2.0 / (1.0 - self.decay)) - LISTS as i64 + 1
    }

    fn put(&mut self, block: u32) {
        let key = self.key(self.score(block)).clamp(self.base, self.base + LISTS as i64 - 1);
        let list = key.rem_euclid(LISTS as i64) as usize;
        self.lists.push_front(list, block);
        self.full[list / 64] |= 1 << (list % 64);
    }

    fn take(&mut self, block: u32) {
        if let Some(list) = self.lists.remove(block) {
            self.full[list / 64] &= !(1 << (list % 64));
        }
    }

    fn victim(&self) -> Option<u32> {
        let start = self.base.rem_euclid(LISTS as i64) as usize;
        let words = LISTS / 64;
        // The word of `start` comes twice: its upper part first, its lower part last.
        for i in 0..=words {
            let word = (start / 64 + i) % words;
            let mask = match i {
                0 => u64::MAX << (start % 64),
                i if i == words => !(u64::MAX << (start % 64)),
                _ => u64::MAX,
            };
            let bits = self.full[word] & mask;
            if bits != 0 {
                return self.lists.front(word * 64 + bits.trailing_zeros() as usize);
            }
        }
        None
    }

    fn enter(&mut self, block: u32, worth: f64) -> Entry {
        let score = self.score(block) + worth;
        let resident = self.lists.in_list(block);
        if resident {
            self.take(block);
        }
        self.score[block as usize] = score as f32;
        self.last[block as usize] = self.step;
        if resident {
            self.put(block);
            return Entry::Hit;
        }
        if self.capacity == 0 {
            return Entry::Miss { evicted: None };
        }
        let evicted = if self.len == self.capacity { self.victim() } else { None };
        match evicted {
            Some(victim) => self.take(victim),
            None => self.len += 1,
        }
        self.put(block);
        Entry::Miss { evicted }
    }
}

impl Residency for Frequency {
    fn capacity(&self) -> usize {
        self.capacity
    }

    fn len(&self) -> usize {
        self.len
    }

    fn contains(&self, block: u32) -> bool {
        self.lists.in_list(block)
    }

    fn read(&mut self, block: u32, weight: f32) -> Entry {
        // Written so that NaN is 0.
        let weight = if weight > 0.0 { f64::from(weight.min(1.0)) } else { 0.0 };
        self.enter(block, if self.by_weight { weight } else { 1.0 })
    }

    fn bring(&mut self, block: u32) -> Entry {
        if self.lists.in_list(block) {
            return Entry::Hit;
        }
        // A block never read starts as if read once, or it would be the next victim.
        let worth = if self.score[block as usize] == 0.0 { 1.0 } else { 0.0 };
        self.enter(block, worth)
    }

    fn evict(&mut self) -> Option<u32> {
        let victim = self.victim()?;
        self.hold(victim);
        Some(victim)
    }

    fn hold(&mut self, block: u32) {
        if self.lists.in_list(block) {
            self.take(block);
            self.len -= 1;
        }
    }

    fn remove(&mut self, block: u32) {
        self.hold(block);
        self.score[block as usize] = 0.0;
    }

    fn end_step(&mut self) {
        self.step += 1;
        let lowest = self.lowest();
        while self.base < lowest {
            let (from, to) = (self.base.rem_euclid(LISTS as i64), (self.base + 1).rem_euclid(LISTS as i64));
            let (from, to) = (from as usize, to as usize);
            if self.lists.front(from).is_some() {
                self.lists.splice_front(from, to);
                self.full[from / 64] &= !(1 << (from % 64));
                self.full[to / 64] |= 1 << (to % 64);
            }
            self.base += 1;
        }
    }
}
