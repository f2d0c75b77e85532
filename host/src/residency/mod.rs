//! Which blocks stay on the device: policies that choose a victim when the pool is full, behind one trait, and
//! the study that compares them on recorded reads.
//!
//! A block is a number below `blocks`, one for each (sequence, layer, KV head, block): the pool is one for all.
//! What leaves the device is still in the host tier; a read of it is a *miss* and one fetch. A read block always
//! enters the pool (there is no bypass), unless its share of the pool is empty.
//!
//! | policy | victim | cost of a read |
//! |---|---|---|
//! | [`Lru`], one share | longest not read | O(1) |
//! | [`Lru`], shares by layer | the same, within the layer | O(1) |
//! | [`Clock`] | longest in the pool and not read since it was last spared | O(1) amortised |
//! | [`Frequency`] | lowest decayed number (or weight) of reads | O(1) |
//! | [`Belady`] | read again last; needs the future | O(log capacity) |
//!
//! Trap: reads in the same order every step are LRU's worst case. Below a step's demand it evicts each block
//! just before it is read; a policy for decode has to rank by frequency.

mod accesses;
mod belady;
mod clock;
mod frequency;
mod lists;
mod lru;
mod study;

pub use accesses::{AccessError, Accesses, BUNDLED, Row};
pub use belady::Belady;
pub use clock::Clock;
pub use frequency::{DECAY, Frequency};
pub use lru::{Lru, demand_shares, equal_shares};
pub use study::{PolicyName, StudyOptions, StudyRecord, study};

/// What a block's entry into the pool did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It was there.
    Hit,
    /// It was not there. It is now, in the place of `evicted` where the pool was full.
    Miss {
        /// The block that left.
        evicted: Option<u32>,
    },
}

/// Decides which blocks are on the device.
///
/// At most [`Residency::capacity`] blocks are resident after every call. Blocks are below the number given at
/// construction; others panic, as an index does.
pub trait Residency: Send {
    /// Most blocks on the device.
    fn capacity(&self) -> usize;

    /// Blocks on the device.
    fn len(&self) -> usize;

    /// True while nothing is on the device.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True where `block` is on the device.
    fn contains(&self, block: u32) -> bool;

    /// Attention reads `block`. `weight`, 0 to 1, is its share of the attention mass; most policies ignore it.
    fn read(&mut self, block: u32, weight: f32) -> Entry;

    /// `block` enters without a read: it was written, or is fetched ahead. For the choice of victims its past
    /// reads count, and the entry itself where there are none.
    fn bring(&mut self, block: u32) -> Entry;

    /// `block` is freed: its sequence is gone, and so is its past.
    fn remove(&mut self, block: u32);

    /// Chooses a victim, which leaves as if another block had entered; none where there is no candidate.
    fn evict(&mut self) -> Option<u32>;

    /// `block` leaves the candidates, without being evicted by this policy. Its past counts when it is read or brought
    /// again.
    fn hold(&mut self, block: u32);

    /// The step is over: what decays, decays.
    fn end_step(&mut self) {}
}

#[cfg(test)]
mod tests;
