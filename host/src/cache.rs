//! The KV cache: sequences, their tokens, and the pool they share.
//!
//! Lengths are per layer, because a step appends to layer 0, attends in layer 0, appends to layer 1, ..:
//! attention in a layer sees the tokens appended to *that* layer. [`KvCache::len`] is what all layers have;
//! a caller that appends the same tokens to every layer never needs the others.
//!
//! Every call either does all it says or leaves the cache as it was.

use crate::backend::{AppendStep, Backend, BackendSpec};
use crate::pool::{Pool, TableExtents};
use crate::{Device, Error, Forced, Mirror, MirrorFormat, Rows, SequenceId, Shape};
use kernels_gpu::layout::{BLOCK, MAX_BLOCKS, QUANT_GROUP, blocks};
use std::fmt;

/// How much a cache can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// Tokens over all sequences, each sequence rounded up to whole blocks of 16.
    Tokens(usize),
    /// Bytes of slots and mirror pages.
    Bytes(usize),
}

/// What a cache is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Size of the pool.
    pub capacity: Capacity,
    /// Most sequences at a time.
    pub max_sequences: usize,
    /// Most tokens of a sequence; none for as many as the capacity and the kernels (1,048,576) allow.
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
            max_sequences: 16,
            max_tokens: None,
            mirror: Mirror::Bits2,
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
}

/// A paged KV cache on a device.
pub struct KvCache {
    shape: Shape,
    config: CacheConfig,
    pool: Pool,
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
        let slots = slots(&shape, &config, format)?;
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
        if slots > u32::MAX as usize / 2 {
            return config_error(
                format!("{:?} is {slots} slots", config.capacity),
                "at most 2^31 fit the tables",
            );
        }
        if config.max_sequences == 0 || config.max_sequences > 1 << 16 {
            return config_error(format!("max_sequences = {}", config.max_sequences), "use 1 to 65536");
        }
        let longest = MAX_BLOCKS * BLOCK;
        let max_tokens = config.max_tokens.unwrap_or((slots / rows * BLOCK).min(longest));
        if max_tokens == 0 || max_tokens > longest {
            return config_error(format!("max_tokens = {max_tokens}"), "use 1 to 1048576");
        }
        let entries = config.max_sequences * rows * blocks(max_tokens).next_multiple_of(format.blocks());
        if entries > 1 << 30 {
            return config_error(
                format!("block table of {entries} entries (max_sequences * layers * kv_heads * blocks)"),
                "set max_sequences or max_tokens lower, so that it is at most 2^30",
            );
        }
        let extents = TableExtents::with_group(&shape, config.max_sequences, max_tokens, format.blocks());
        let spec = BackendSpec { shape, format, slots, pages: slots / format.blocks(), extents };
        // The arenas first: where they fit, the pool's lists do.
        let backend = device.backend(&spec)?;
        if config.unit != BLOCK && !backend.knows_everything() {
            return Err(Error::Unsupported {
                what: format!("a selection unit of {} tokens", config.unit),
                device: backend.name(),
                supported: "units of 16 tokens",
            });
        }
        let pool = Pool::with_extents(slots, max_tokens, extents);
        Ok(KvCache { shape, config, pool, backend })
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
        }
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
        self.pool.remove_sequence(sequence)
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
    /// k, v: `[tokens, kv_heads, head_dim]`, of the cache's element type, k after its position encoding.
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
        let growth: Vec<(usize, usize)> = seqs.iter().zip(new).map(|(&s, &n)| (s as usize, n)).collect();
        let reservation = self.pool.reserve(layer, &growth)?;
        // In range: reserve has compared with max_tokens, which is far below 2^32.
        let lens: Vec<u32> = growth.iter().map(|&(s, n)| (self.pool.tokens(s, layer) + n) as u32).collect();
        let mut offsets = vec![0u32];
        offsets.extend(new.iter().scan(0u32, |sum, &n| {
            *sum += n as u32;
            Some(*sum)
        }));
        let step = AppendStep { layer, seqs: &seqs, lens: &lens, offsets: &offsets, k, v };
        let tables = self.pool.tables();
        let written = match reservation.changes() {
            [] => Ok(()),
            changes => self.backend.tables_changed(tables, changes),
        }
        .and_then(|()| self.backend.append(tables, &step));
        match written {
            Ok(()) => self.pool.commit(reservation),
            Err(_) => self.pool.roll_back(reservation),
        }
        written
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
        let Shape { kv_heads, head_dim, .. } = self.shape;
        if kv_head >= kv_heads {
            return Err(Error::Config {
                what: format!("KV head {kv_head}"),
                remedy: format!("the cache has {kv_heads} (0 to {})", kv_heads - 1),
            });
        }
        let tables = self.pool.tables();
        let row = tables.extents.row(self.pool.index(sequence)?, layer, kv_head);
        let (mut k, mut v) = (vec![0; tokens * head_dim], vec![0; tokens * head_dim]);
        self.backend.read_tokens(&tables.slots(row)[..blocks(tokens)], &mut k, &mut v)?;
        Ok((k, v))
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The backend to compute with and the tables it needs.
    pub(crate) fn backend_and_tables(&mut self) -> (&mut dyn Backend, &crate::pool::Tables) {
        (&mut *self.backend, self.pool.tables())
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

/// Slots that the capacity amounts to.
fn slots(shape: &Shape, config: &CacheConfig, format: MirrorFormat) -> Result<usize, Error> {
    match config.capacity {
        Capacity::Tokens(tokens) => {
            blocks(tokens).checked_mul(shape.layers * shape.kv_heads).ok_or_else(|| Error::Config {
                what: format!("capacity of {tokens} tokens"),
                remedy: "it overflows; ask for less".into(),
            })
        }
        Capacity::Bytes(bytes) => {
            // A page for every group of slots.
            let group = format.blocks() * shape.slot_bytes() + format.page_bytes(shape.head_dim);
            Ok(bytes / group * format.blocks())
        }
    }
}
