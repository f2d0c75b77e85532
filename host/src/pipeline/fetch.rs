//! From the host tier to slots: neighbours by the copy engine, scattered blocks by `gather`.
//!
//! A run is blocks that follow each other in the tier and whose slots follow each other too. The pairs of a gather lie in
//! a ring of pinned buffers; one is written again only when the host has seen the flag that its last gather set.

use psa_codegen::Region;

use super::memory::Memory;
use super::{PipelineConfig, PipelineStats, no_launch};
use crate::device::launches;
use crate::driver::{DriverError, StreamId, Streams};

/// Pairs of one gather at most.
const PAIRS: usize = 256;
const RING: usize = 16;

/// A block (its number in the tier) and the slot that it gets.
pub(super) type Fetch = (u32, u32);

pub(super) struct Fetcher {
    pub(super) stream: StreamId,
    /// Slots of every block, pinned.
    pub(super) tier: Region,
    /// `[RING, PAIRS, 2]`, pinned.
    pub(super) pairs: Region,
    /// Number of the last gather that is done, as the device wrote it.
    flag: u64,
    gathers: u32,
    pending: Vec<u32>,
}

impl Fetcher {
    pub(super) fn new(
        s: &mut dyn Streams,
        memory: &Memory,
        stream: StreamId,
        flag: u64,
    ) -> Result<Fetcher, DriverError> {
        let blocks = memory.layers * memory.rows * memory.max_blocks;
        Ok(Fetcher {
            stream,
            tier: s.pinned(blocks * memory.slot_bytes(), "host tier")?,
            pairs: s.pinned(8 * PAIRS * RING, "pairs")?,
            flag,
            gathers: 0,
            pending: Vec::with_capacity(2 * PAIRS),
        })
    }

    /// Queues the fetches.
    pub(super) fn fetch(
        &mut self,
        s: &mut dyn Streams,
        memory: &Memory,
        config: &PipelineConfig,
        wanted: &mut [Fetch],
        stats: &mut PipelineStats,
    ) -> Result<(), DriverError> {
        let bytes = memory.slot_bytes();
        wanted.sort_unstable();
        let mut rest = &*wanted;
        while let [first, ..] = rest {
            let follows = |(i, f): &(usize, &Fetch)| **f == (first.0 + *i as u32, first.1 + *i as u32);
            let run = rest.iter().enumerate().take_while(follows).count();
            if run >= config.copy_run {
                let to = memory.arena.address() + u64::from(first.1) * bytes as u64;
                let from = self.tier.address() + u64::from(first.0) * bytes as u64;
                s.copy_on(self.stream, to, from, run * bytes)?;
                stats.by_copy += run as u64;
            } else {
                for &(block, slot) in &rest[..run] {
                    self.pending.extend([block, slot]);
                    if self.pending.len() == 2 * PAIRS {
                        self.gather(s, memory, config, stats)?;
                    }
                }
            }
            rest = &rest[run..];
        }
        self.gather(s, memory, config, stats)
    }

    fn gather(
        &mut self,
        s: &mut dyn Streams,
        memory: &Memory,
        config: &PipelineConfig,
        stats: &mut PipelineStats,
    ) -> Result<(), DriverError> {
        let count = self.pending.len() / 2;
        if count == 0 {
            return Ok(());
        }
        while self.gathers >= RING as u32 && s.peek(self.flag)? <= self.gathers - RING as u32 {
            std::hint::spin_loop();
        }
        let offset = self.gathers as usize % RING * 8 * PAIRS;
        let pairs = self.pairs.part(offset as u64, 8 * count as u64).unwrap_or(Region::EMPTY);
        s.write_pinned(pairs.address(), bytemuck::cast_slice(&self.pending))?;
        self.pending.clear();
        let ctas = config.gather_ctas.min(count as u32);
        let launch = launches::gather(self.tier, memory.arena, pairs, count, memory.slot_bytes(), ctas)
            .map_err(no_launch)?;
        s.launch_on(self.stream, &launch)?;
        self.gathers += 1;
        stats.by_gather += count as u64;
        s.signal(self.stream, self.flag, self.gathers)
    }
}
