//! The KV cache: sequences, their tokens, and the pool they share.
//!
//! Lengths are per layer, because a step appends to layer 0, attends in layer 0, appends to layer 1, ..:
//! attention in a layer sees the tokens appended to *that* layer. [`KvCache::len`] is what all layers have;
//! a caller that appends the same tokens to every layer never needs the others.
//!
//! Every call either does all it says or leaves the cache as it was: the same sequences with the same tokens. Where
//! their blocks are, on the device or in the host tier, may change.

mod offload;
mod rebuild;
mod sequences;

pub use rebuild::{Rebuilt, Shortened};

use crate::backend::{AppendStep, Backend, BackendSpec, RecentStep};
use crate::pool::{Pool, TableExtents};
use crate::residency::{Clock, DECAY, Frequency, Lru, Residency};
use crate::tail::ValueSums;
use crate::tier::HostTier;
use crate::{Device, Error, Forced, Mirror, MirrorFormat, Rows, SequenceId, Shape};
use kernels_gpu::layout::{BLOCK, QUANT_GROUP, blocks};
use std::fmt;
use std::ops::Range;

/// How much a cache can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// Tokens over all sequences, each sequence rounded up to whole blocks of 16.
    Tokens(usize),
    /// Bytes of slots and mirror pages.
    Bytes(usize),
}

/// Which block leaves the device when a slot is needed; only blocks that are in the host tier may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Eviction {
    /// The one read least, where a read counts for less the older it is ([`Frequency`]): the best of them in
    /// docs/memory.md.
    #[default]
    Frequency,
    /// The one not read for the longest time ([`Lru`]).
    Lru,
    /// An approximation of it ([`Clock`]).
    Clock,
}

/// What a cache is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Size of the pool on the device.
    pub capacity: Capacity,
    /// Size of the host tier, which then holds a copy of all that the cache holds: the device needs room only for what
    /// steps read. None: everything is on the device.
    pub host: Option<Capacity>,
    /// What leaves the device where there is a host tier.
    pub eviction: Eviction,
    /// Most sequences at a time.
    pub max_sequences: usize,
    /// Most tokens of a sequence; none for as many as the capacity and the device
    /// ([`Device::max_blocks`]) allow.
    pub max_tokens: Option<usize>,
    /// What blocks are ranked by.
    pub mirror: Mirror,
    /// Tokens of a quantisation group, one mirror page: 32, 64, 128 or 256.
    pub quant_group: usize,
    /// Tokens that are selected together: 16, 32 or 64.
    pub unit: usize,
    /// Blocks that are always read.
    pub forced: Forced,
    /// Refuse NaN and infinities in q, k and v. Without it they propagate: outputs of heads that read
    /// them are NaN, and what is selected is unspecified, but everything else stays as it should.
    pub check_finite: bool,
}

impl Default for CacheConfig {
    fn default() -> Self {
        CacheConfig {
            capacity: Capacity::Tokens(8192),
            host: None,
            eviction: Eviction::default(),
            max_sequences: 16,
            max_tokens: None,
            mirror: Mirror::Nested,
            quant_group: QUANT_GROUP,
            unit: BLOCK,
            forced: Forced::default(),
            check_finite: true,
        }
    }
}

/// Use of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// Slots in all.
    pub slots: usize,
    /// Free slots.
    pub free_slots: usize,
    /// Mirror pages in all.
    pub pages: usize,
    /// Free mirror pages.
    pub free_pages: usize,
    /// Blocks that the cache has room for, on the device or off it: as many as slots, or as the host tier holds.
    pub blocks: usize,
    /// Free blocks, those that are reserved included.
    pub free_blocks: usize,
    /// Blocks that are reserved for the growth of sequences ([`KvCache::reserve`]).
    pub reserved_blocks: usize,
}

/// What went between the device and the host tier since the cache was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Blocks that were read in decode steps, once for each row of the tables and step.
    pub reads: u64,
    /// Blocks fetched from the host tier.
    pub fetched: u64,
    /// Blocks saved to the host tier.
    pub saved: u64,
    /// Copies on write.
    pub copied: u64,
    /// Steps of a layer that merge had to finish again, because what it topped up was not on the device.
    pub repeats: u64,
}

/// A paged KV cache on a device.
pub struct KvCache {
    shape: Shape,
    config: CacheConfig,
    pool: Pool,
    tier: Option<HostTier>,
    traffic: Traffic,
    /// Layer of the last call of a decode step: a lower one begins a new step.
    last_layer: usize,
    /// First row of the batch whose call began the step: a layer of a step may be several calls, on other rows.
    first_row: Option<u32>,
    pub(crate) value_sums: ValueSums,
    pub(crate) backend: Box<dyn Backend>,
}

impl KvCache {
    /// An empty cache.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Config`], and the device's when it cannot allocate.
    pub fn new(device: &Device, shape: Shape, config: CacheConfig) -> Result<KvCache, Error> {
        shape.validate()?;
        let format = MirrorFormat::new(config.mirror, config.quant_group)?;
        if ![16, 32, 64].contains(&config.unit) {
            return Err(Error::Config {
                what: format!("selection unit of {} tokens", config.unit),
                remedy: "use 16, 32 or 64".into(),
            });
        }
        let (slots, blocks_in_all) = sizes(&shape, &config, format)?;
        let rows = shape.layers * shape.kv_heads;
        let config_error = |what: String, remedy: &str| Err(Error::Config { what, remedy: remedy.into() });
        if slots < rows {
            return config_error(
                format!(
                    "{:?} holds {slots} slots, one block of every layer and KV head takes {rows}",
                    config.capacity
                ),
                "give it more capacity",
            );
        }
        if blocks_in_all < slots {
            return config_error(
                format!("a host tier for {blocks_in_all} blocks behind {slots} slots"),
                "it holds a copy of everything: give it at least the device's capacity",
            );
        }
        if blocks_in_all > u32::MAX as usize / 2 {
            return config_error(
                format!("{:?} is {blocks_in_all} slots", config.host.unwrap_or(config.capacity)),
                "at most 2^31 fit the tables",
            );
        }
        if config.max_sequences == 0 || config.max_sequences > 1 << 16 {
            return config_error(format!("max_sequences = {}", config.max_sequences), "use 1 to 65536");
        }
        let longest = device.max_blocks() * BLOCK;
        let max_tokens = config.max_tokens.unwrap_or((blocks_in_all / rows * BLOCK).min(longest));
        if max_tokens == 0 || max_tokens > longest {
            return config_error(
                format!("max_tokens = {max_tokens}"),
                &format!("use 1 to {longest}, the longest context of {}", device.name()),
            );
        }
        let entries = config.max_sequences * rows * blocks(max_tokens).next_multiple_of(format.blocks());
        if entries > 1 << 30 {
            return config_error(
                format!("block table of {entries} entries (max_sequences * layers * kv_heads * blocks)"),
                "set max_sequences or max_tokens lower, so that it is at most 2^30",
            );
        }
        let extents = TableExtents::with_group(&shape, config.max_sequences, max_tokens, format.blocks());
        let spec = spec_of(&shape, &config, format, (slots, blocks_in_all), extents);
        // The arenas first: where they fit, the pool's lists do.
        let backend = device.backend(&spec)?;
        if config.unit != BLOCK && !backend.knows_everything() {
            return Err(Error::Unsupported {
                what: format!("a selection unit of {} tokens", config.unit),
                device: backend.name(),
                supported: "units of 16 tokens",
            });
        }
        let (pool, tier) = match config.host {
            None => (Pool::with_extents(slots, max_tokens, extents), None),
            Some(_) => {
                let residency = residency(config.eviction, blocks_in_all);
                let pool = Pool::with_host_tier(slots, blocks_in_all, max_tokens, extents, residency);
                (pool, Some(HostTier::new(&shape, blocks_in_all)?))
            }
        };
        Ok(KvCache {
            shape,
            config,
            pool,
            tier,
            traffic: Traffic::default(),
            last_layer: 0,
            first_row: None,
            value_sums: ValueSums::default(),
            backend,
        })
    }

    /// Geometry.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// What the mirror pages hold.
    pub fn mirror_format(&self) -> MirrorFormat {
        MirrorFormat { mirror: self.config.mirror, group: self.config.quant_group }
    }

    /// Configuration.
    pub fn config(&self) -> CacheConfig {
        self.config
    }

    /// Name of the device.
    pub fn device_name(&self) -> String {
        self.backend.name()
    }

    /// Longest context of a sequence, in tokens.
    pub fn max_tokens(&self) -> usize {
        self.pool.max_tokens()
    }

    /// Slots and pages, in all and free.
    pub fn pool_use(&self) -> PoolUse {
        PoolUse {
            slots: self.pool.slots(),
            free_slots: self.pool.free_slots(),
            pages: self.pool.pages(),
            free_pages: self.pool.free_pages(),
            blocks: self.pool.blocks(),
            free_blocks: self.pool.free_blocks(),
            reserved_blocks: self.pool.reserved_blocks(),
        }
    }

    /// What went between the device and the host tier so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Adds an empty sequence; it takes memory as it grows.
    ///
    /// # Errors
    /// [`Error::TooManySequences`].
    pub fn add_sequence(&mut self) -> Result<SequenceId, Error> {
        self.pool.add_sequence()
    }

    /// Removes a sequence and frees its memory.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn remove_sequence(&mut self, sequence: SequenceId) -> Result<(), Error> {
        self.pool.remove_sequence(sequence)?;
        self.value_sums.forget(sequence);
        Ok(())
    }

    /// Tokens that the sequence has in every layer.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn len(&self, sequence: SequenceId) -> Result<usize, Error> {
        Ok(self.pool.complete_tokens(self.pool.index(sequence)?))
    }

    /// Tokens that the sequence has in `layer`.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::UnknownLayer`].
    pub fn layer_len(&self, sequence: SequenceId, layer: usize) -> Result<usize, Error> {
        self.check_layer(layer)?;
        Ok(self.pool.tokens(self.pool.index(sequence)?, layer))
    }

    /// Appends tokens to one layer of a sequence: a whole prompt, a part of one, or one token.
    ///
    /// k, v: `[tokens, kv_heads, head_dim]`, of the cache's element type, k after its position encoding. With a host tier
    /// a prompt that is longer than the device's part goes in pieces that fit: a call's tokens are on the device at its
    /// end.
    ///
    /// # Errors
    /// Any mismatch, [`Error::NonFinite`], [`Error::ContextTooLong`], [`Error::PoolExhausted`], the device's.
    /// The cache is then as it was.
    pub fn append<'a>(
        &mut self,
        sequence: SequenceId,
        layer: usize,
        k: impl Into<Rows<'a>>,
        v: impl Into<Rows<'a>>,
    ) -> Result<(), Error> {
        let (k, v) = (k.into(), v.into());
        let tokens = k.len() / self.shape.token_elements();
        self.append_rows(&[sequence], layer, &[tokens], k, v)
    }

    /// Appends one token to one layer of every sequence of a batch.
    ///
    /// k, v: `[batch, kv_heads, head_dim]`.
    ///
    /// # Errors
    /// As [`KvCache::append`]; all sequences get their token or none does.
    pub fn append_batch<'a>(
        &mut self,
        layer: usize,
        sequences: &[SequenceId],
        k: impl Into<Rows<'a>>,
        v: impl Into<Rows<'a>>,
    ) -> Result<(), Error> {
        self.append_rows(sequences, layer, &vec![1; sequences.len()], k.into(), v.into())
    }

    fn append_rows(
        &mut self,
        sequences: &[SequenceId],
        layer: usize,
        new: &[usize],
        k: Rows<'_>,
        v: Rows<'_>,
    ) -> Result<(), Error> {
        self.check_layer(layer)?;
        let seqs = self.pool.indices(sequences)?;
        let total: usize = new.iter().sum();
        let Shape { kv_heads, head_dim, dtype, .. } = self.shape;
        for (name, rows) in [("k", k), ("v", v)] {
            rows.check(
                name,
                dtype,
                total * kv_heads * head_dim,
                || format!("[tokens = {total}, kv_heads = {kv_heads}, head_dim = {head_dim}]"),
                self.config.check_finite,
            )?;
        }
        if total == 0 {
            return Ok(());
        }
        for (&sequence, &index) in sequences.iter().zip(&seqs) {
            self.check_resident(sequence, index as usize)?;
        }
        let growth: Vec<(usize, usize)> = seqs.iter().zip(new).map(|(&s, &n)| (s as usize, n)).collect();
        let written =
            self.hold_open_groups(&seqs, layer).and_then(|()| self.append_held(layer, &seqs, &growth, k, v));
        self.pool.end_of_use();
        written
    }

    /// The append of checked arguments to sequences whose open groups are on the device.
    fn append_held(
        &mut self,
        layer: usize,
        seqs: &[u32],
        growth: &[(usize, usize)],
        k: Rows<'_>,
        v: Rows<'_>,
    ) -> Result<(), Error> {
        let reservation = match self.pool.reserve(layer, growth) {
            // Blocks that are complete may leave once they are saved.
            Err(Error::PoolExhausted { .. }) if self.pool.waiting() > 0 => {
                self.save_complete()?;
                self.pool.reserve(layer, growth)?
            }
            reservation => reservation?,
        };
        // In range: reserve has compared with max_tokens, which is far below 2^32.
        let lens: Vec<u32> = growth.iter().map(|&(s, n)| (self.pool.tokens(s, layer) + n) as u32).collect();
        let mut offsets = vec![0u32];
        offsets.extend(growth.iter().scan(0u32, |sum, &(_, n)| {
            *sum += n as u32;
            Some(*sum)
        }));
        let step = AppendStep { layer, seqs, lens: &lens, offsets: &offsets, k, v };
        let copies = reservation.copies();
        let written = match copies {
            [] => Ok(()),
            copies => self.backend.copy_slots(copies),
        }
        .and_then(|()| self.tell_tables(seqs, layer))
        .and_then(|()| self.backend.append(self.pool.tables(), &step));
        match written {
            Ok(()) => {
                self.traffic.copied += copies.len() as u64;
                self.pool.commit(reservation);
            }
            Err(_) => self.pool.roll_back(reservation),
        }
        written?;
        self.save_in_batches();
        Ok(())
    }

    /// K and V of one KV head as the cache holds them, copied from the device: bit patterns `[tokens, head_dim]` of the
    /// first `tokens` tokens, or of as many as there are.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::UnknownLayer`], [`Error::Config`] for a KV head that is not there, the
    /// device's.
    pub fn keys_and_values(
        &mut self,
        sequence: SequenceId,
        layer: usize,
        kv_head: usize,
        tokens: usize,
    ) -> Result<(Vec<u16>, Vec<u16>), Error> {
        let tokens = tokens.min(self.layer_len(sequence, layer)?);
        let kv_heads = self.shape.kv_heads;
        if kv_head >= kv_heads {
            return Err(Error::Config {
                what: format!("KV head {kv_head}"),
                remedy: format!("the cache has {kv_heads} (0 to {})", kv_heads - 1),
            });
        }
        self.tokens_of(sequence, layer, kv_head, 0..tokens)
    }

    /// The same of some tokens that are there; the first is the first of a block.
    pub(crate) fn tokens_of(
        &mut self,
        sequence: SequenceId,
        layer: usize,
        kv_head: usize,
        tokens: Range<usize>,
    ) -> Result<(Vec<u16>, Vec<u16>), Error> {
        let head_dim = self.shape.head_dim;
        let tables = self.pool.tables();
        let row = tables.extents.row(self.pool.index(sequence)?, layer, kv_head);
        let (mut k, mut v) = (vec![0; tokens.len() * head_dim], vec![0; tokens.len() * head_dim]);
        let (first, last) = (tokens.start / BLOCK, blocks(tokens.end));
        let Some(tier) = &self.tier else {
            self.backend.read_tokens(&tables.slots(row)[first..last], &mut k, &mut v)?;
            return Ok((k, v));
        };
        let parts = k.chunks_mut(BLOCK * head_dim).zip(v.chunks_mut(BLOCK * head_dim));
        for (block, (k, v)) in (first..).zip(parts) {
            match self.pool.block_of(row, block) {
                (_, Some(slot)) => self.backend.read_tokens(&[slot], k, v)?,
                (home, None) => tier.read_tokens(home, k, v),
            }
        }
        Ok((k, v))
    }

    /// Leaves what steps read on the device from now on, or brings it to the host with each step, as at first. A step
    /// then copies output and lse alone, and [`DecodePlan::report`](crate::DecodePlan::report) knows nothing of it;
    /// [`KvCache::recent_steps`] does.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the device has no memory of its own: results are on the host as soon as they are; and
    /// with a host tier, whose steps look at what was read.
    pub fn defer_reports(&mut self, defer: bool) -> Result<(), Error> {
        if !(defer && self.tier.is_some()) && self.backend.defer_reports(defer) {
            return Ok(());
        }
        Err(Error::Unsupported {
            what: "leaving reports on the device".into(),
            device: self.backend.name(),
            supported: "reports with each step, which cost no copy there",
        })
    }

    /// What the last steps read, oldest first, as far as the device remembers: at least the last step, 16 of every layer
    /// unless batches are very large. One copy, behind everything done so far; no step waits for it.
    ///
    /// # Errors
    /// The device's; [`Error::Unsupported`] where it remembers none.
    pub fn recent_steps(&mut self) -> Result<Vec<RecentStep>, Error> {
        self.backend.recent_steps()
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Tells the device what is new in the tables of these sequences.
    fn tell_tables(&mut self, seqs: &[u32], layer: usize) -> Result<(), Error> {
        let changes = self.pool.untold(layer, seqs);
        if !changes.is_empty() {
            self.backend.tables_changed(self.pool.tables(), &changes)?;
            self.pool.told(&changes);
        }
        Ok(())
    }

    pub(crate) fn check_resident(&self, sequence: SequenceId, index: usize) -> Result<(), Error> {
        match self.pool.is_swapped(index) {
            true => Err(Error::SwappedOut { sequence: sequence.to_string() }),
            false => Ok(()),
        }
    }

    pub(crate) fn check_layer(&self, layer: usize) -> Result<(), Error> {
        if layer < self.shape.layers {
            Ok(())
        } else {
            Err(Error::UnknownLayer { layer, layers: self.shape.layers })
        }
    }
}

impl fmt::Debug for KvCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvCache")
            .field("device", &self.backend.name())
            .field("shape", &self.shape)
            .field("config", &self.config)
            .field("pool", &self.pool_use())
            .finish_non_exhaustive()
    }
}

/// Slots on the device, and blocks in all.
fn sizes(shape: &Shape, config: &CacheConfig, format: MirrorFormat) -> Result<(usize, usize), Error> {
    let of_tokens = |tokens: usize| {
        blocks(tokens).checked_mul(shape.layers * shape.kv_heads).ok_or_else(|| Error::Config {
            what: format!("capacity of {tokens} tokens"),
            remedy: "it overflows; ask for less".into(),
        })
    };
    let page_bytes = format.page_bytes(shape.head_dim);
    let Some(host) = config.host else {
        let slots = match config.capacity {
            Capacity::Tokens(tokens) => of_tokens(tokens)?,
            // A page for every group of slots.
            Capacity::Bytes(bytes) => {
                bytes / (format.blocks() * shape.slot_bytes() + page_bytes) * format.blocks()
            }
        };
        return Ok((slots, slots));
    };
    let in_all = match host {
        Capacity::Tokens(tokens) => of_tokens(tokens)?,
        Capacity::Bytes(bytes) => bytes / shape.slot_bytes(),
    };
    let slots = match config.capacity {
        Capacity::Tokens(tokens) => of_tokens(tokens)?,
        // The pages of all blocks stay on the device, and so does the slot of zeros.
        Capacity::Bytes(bytes) => {
            let pages = in_all / format.blocks() * page_bytes;
            (bytes.saturating_sub(pages) / shape.slot_bytes()).saturating_sub(1)
        }
    };
    Ok((slots, in_all))
}

/// What a device has to hold for a cache of so many slots and blocks.
fn spec_of(
    shape: &Shape,
    config: &CacheConfig,
    format: MirrorFormat,
    (slots, blocks): (usize, usize),
    extents: TableExtents,
) -> BackendSpec {
    let hole = config.host.map(|_| slots as u32);
    let slots = slots + usize::from(hole.is_some());
    BackendSpec { shape: *shape, format, slots, pages: blocks / format.blocks(), hole, extents }
}

/// A policy for so many blocks that evicts when it is asked to.
fn residency(eviction: Eviction, blocks: usize) -> Box<dyn Residency> {
    match eviction {
        Eviction::Frequency => Box::new(Frequency::new(blocks, usize::MAX, DECAY)),
        Eviction::Lru => Box::new(Lru::unified(blocks, usize::MAX)),
        Eviction::Clock => Box::new(Clock::new(blocks, usize::MAX)),
    }
}
