//! The seam between the cache and what computes: [`Backend`], and [`Device`], which makes one for a cache.
//!
//! The cache validates, allocates and keeps the tables; a backend moves and computes. Every argument that
//! reaches a backend has been checked: shapes, types, lengths, distinct sequences, layers in range. A
//! backend with memory of its own mirrors the tables from [`Backend::tables_changed`]; one in host memory
//! reads those passed to each call.
//!
//! Dimension names are those of docs/kernels.md.

use crate::pool::{HostCopy, SlotCopy, TableChange, TableExtents, Tables};
use crate::store::MAX_BLOCKS;
use crate::tier::HostTier;
use crate::{Error, MirrorFormat, Rows, Shape};
use std::fmt;
use std::sync::Arc;

/// Sizes of what a backend has to hold for one cache.
#[derive(Clone, Copy, Debug)]
pub struct BackendSpec {
    /// Geometry.
    pub shape: Shape,
    /// Mirror pages that every append maintains.
    pub format: MirrorFormat,
    /// Slots of the arena.
    pub slots: usize,
    /// Pages of the mirror arena.
    pub pages: usize,
    /// The slot, one of `slots`, that the tables name for blocks that are not on the device. It holds zeros.
    pub hole: Option<u32>,
    /// Extents of the tables; a batch has at most `extents.sequences` rows.
    pub extents: TableExtents,
}

/// New tokens of one layer.
#[derive(Clone, Copy, Debug)]
pub struct AppendStep<'a> {
    /// Layer.
    pub layer: usize,
    /// Row of each batch entry in the tables: `[B]`, all different.
    pub seqs: &'a [u32],
    /// Tokens of each, the new ones included: `[B]`.
    pub lens: &'a [u32],
    /// New tokens `offsets[b] .. offsets[b + 1]` of `k` and `v` belong to entry b: `[B + 1]`.
    pub offsets: &'a [u32],
    /// Keys `[offsets[B], KH, D]`.
    pub k: Rows<'a>,
    /// Values `[offsets[B], KH, D]`.
    pub v: Rows<'a>,
}

/// What orders the blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ranking {
    /// Nothing: all blocks, in order; `score` is not needed.
    Identity,
    /// The estimate of the mirror.
    Mirror,
    /// An upper bound of the mirror's; `merge` then tests for a certainty.
    Bound,
    /// True masses in f64, read up to this mass (the oracle).
    TrueMass(f32),
}

/// One decode step of one layer.
#[derive(Clone, Copy, Debug)]
pub struct DecodeStep<'a> {
    /// Layer.
    pub layer: usize,
    /// Row of each batch entry in the tables: `[B]`, all different.
    pub seqs: &'a [u32],
    /// Tokens of each in this layer: `[B]`.
    pub lens: &'a [u32],
    /// Queries `[B, KH * G, D]`.
    pub q: Rows<'a>,
    /// Factor of the scores.
    pub scale: f32,
    /// What orders the blocks.
    pub ranking: Ranking,
    /// Most blocks to read: `[B]`.
    pub budget: &'a [u32],
    /// Fewest blocks to read, where there are as many: `[B]`. A floor of all blocks is the identity plan: nothing is
    /// scored.
    pub floor: &'a [u32],
    /// Blocks that are selected together.
    pub unit: usize,
    /// `plan`'s target for the estimated mass, fixed point, 0 for a budget alone: `[KH]`.
    pub target: &'a [u32],
    /// `merge`'s target for the exact mass, 0 switches the test off: `[KH]`.
    pub mass: &'a [f32],
    /// Forced blocks at the start.
    pub sink: u32,
    /// Forced blocks at the end.
    pub recent: u32,
}

/// Where the results of a decode step go; all of it is written.
#[derive(Debug)]
pub struct DecodeResult<'a> {
    /// Outputs `[B, KH * G, D]`.
    pub out: &'a mut [f32],
    /// Natural logarithm of the sum of exponentials over what was read: `[B, KH * G]`.
    pub lse: &'a mut [f32],
    /// Blocks read, top-up chunks: `[B, KH, 2]`.
    pub read: &'a mut [u32],
    /// Mass believed read; by [`Ranking::Bound`] the mass certainly read: `[B, KH * G]`.
    pub mass: &'a mut [f32],
    /// Mirror bytes read: `[B, KH]`.
    pub metadata: &'a mut [u32],
    /// Where asked for, what the step was decided on.
    pub record: Option<DecodeRecord<'a>>,
}

/// The inside of a decode step, for comparisons between backends.
#[derive(Debug)]
pub struct DecodeRecord<'a> {
    /// Blocks by rank `[B, KH, NB]`; the first `read` of a row were read.
    pub order: &'a mut [u32],
    /// log2 masses by which blocks were ranked `[B, KH * G, NB]`; left alone by [`Ranking::Identity`].
    pub log_mass: &'a mut [f32],
}

/// One of the last decode steps of a cache, as its device remembers it.
#[derive(Clone, Debug, PartialEq)]
pub struct RecentStep {
    /// Which of the cache's steps, counted from 0 over all layers.
    pub number: u64,
    /// Layer.
    pub layer: usize,
    /// What ordered the blocks.
    pub ranking: Ranking,
    /// Row of each batch entry in the tables: `[B]`.
    pub seqs: Vec<u32>,
    /// Tokens of each: `[B]`.
    pub lens: Vec<u32>,
    /// Blocks read, top-up chunks: `[B, KH, 2]`.
    pub read: Vec<u32>,
    /// Mass believed read: `[B, KH * G]`.
    pub mass: Vec<f32>,
    /// Mirror bytes read: `[B, KH]`.
    pub metadata: Vec<u32>,
}

/// Where the selection of a decode step goes.
#[derive(Debug)]
pub struct Selection<'a> {
    /// Blocks by rank `[B, KH, NB]`; a row's are the first `blocks(tokens)`.
    pub order: &'a mut [u32],
    /// Blocks that the plan reads: `[B, KH]`.
    pub count: &'a mut [u32],
}

/// Something that stores and computes for one cache.
pub trait Backend: Send {
    /// Name of the device, for people.
    fn name(&self) -> String;

    /// Entries of the tables are new; comes before the [`Backend::append`] that needs them. Where it fails,
    /// the append is not tried; entries that were copied do no harm, since they are beyond every length.
    ///
    /// # Errors
    /// Errors of the device.
    fn tables_changed(&mut self, tables: &Tables, changes: &[TableChange]) -> Result<(), Error>;

    /// Writes new tokens into their slots, and the mirror pages of groups that fill. After an error the
    /// lengths stay as they were, so what was written beyond them does no harm.
    ///
    /// # Errors
    /// Errors of the device.
    fn append(&mut self, tables: &Tables, step: &AppendStep<'_>) -> Result<(), Error>;

    /// score, plan, attend, merge.
    ///
    /// # Errors
    /// Errors of the device.
    fn decode(
        &mut self,
        tables: &Tables,
        step: &DecodeStep<'_>,
        result: &mut DecodeResult<'_>,
    ) -> Result<(), Error>;

    /// Copies K and V of one (sequence, layer, KV head) out of its slots, behind everything done so far: k, v
    /// `[tokens, D]`, whole. `slots` are those of its `blocks(tokens)` blocks.
    ///
    /// # Errors
    /// Errors of the device; [`Error::Unsupported`] where it cannot.
    fn read_tokens(&mut self, slots: &[u32], k: &mut [u16], v: &mut [u16]) -> Result<(), Error> {
        let _ = (slots, k, v);
        Err(Error::Unsupported {
            what: "reading K and V back".into(),
            device: self.name(),
            supported: "no way to copy slots to the host",
        })
    }

    /// Leaves `read`, `mass` and `metadata` of results on the device from now on, or brings them with each step again;
    /// while they stay there the results hold anything. False where the device cannot leave them.
    fn defer_reports(&mut self, defer: bool) -> bool {
        !defer
    }

    /// True while results stay on the device.
    fn defers_reports(&self) -> bool {
        false
    }

    /// The last steps, oldest first, as many as the device remembers, by one copy behind everything done so far.
    ///
    /// # Errors
    /// Errors of the device; [`Error::Unsupported`] where it remembers none.
    fn recent_steps(&mut self) -> Result<Vec<RecentStep>, Error> {
        Err(Error::Unsupported {
            what: "remembering steps".into(),
            device: self.name(),
            supported: "results with each step: observe the plan after it attended",
        })
    }

    /// Copies tokens from slot to slot; the copies name different targets, and no target is a source.
    ///
    /// # Errors
    /// Errors of the device; [`Error::Unsupported`] where it cannot.
    fn copy_slots(&mut self, copies: &[SlotCopy]) -> Result<(), Error> {
        let _ = copies;
        Err(self.cannot("copy on write"))
    }

    /// Copies slots to the host tier, behind everything done so far. What lies beyond a copy's tokens was never written.
    ///
    /// # Errors
    /// As [`Backend::copy_slots`].
    fn save(&mut self, copies: &[HostCopy], tier: &mut HostTier) -> Result<(), Error> {
        let _ = (copies, tier);
        Err(self.cannot("a host tier"))
    }

    /// Copies from the host tier to slots, before everything that is to come.
    ///
    /// # Errors
    /// As [`Backend::copy_slots`].
    fn load(&mut self, copies: &[HostCopy], tier: &HostTier) -> Result<(), Error> {
        let _ = (copies, tier);
        Err(self.cannot("a host tier"))
    }

    /// score and plan alone, for a [`Ranking`] that has them. It reads the mirror, and of the arena the open groups
    /// only.
    ///
    /// # Errors
    /// As [`Backend::copy_slots`].
    fn select(
        &mut self,
        tables: &Tables,
        step: &DecodeStep<'_>,
        selection: &mut Selection<'_>,
    ) -> Result<(), Error> {
        let _ = (tables, step, selection);
        Err(self.cannot("a host tier"))
    }

    /// The step that was last selected, to its end: attend and merge. With `again` the planned blocks are those of the
    /// last such call, and only what merge tops up has changed.
    ///
    /// # Errors
    /// As [`Backend::decode`].
    fn finish(
        &mut self,
        tables: &Tables,
        step: &DecodeStep<'_>,
        again: bool,
        result: &mut DecodeResult<'_>,
    ) -> Result<(), Error> {
        let _ = again;
        self.decode(tables, step, result)
    }

    /// The error of a backend that lacks `what`.
    fn cannot(&self, what: &str) -> Error {
        Error::Unsupported {
            what: what.into(),
            device: self.name(),
            supported: "sequences that share nothing, all on the device",
        }
    }

    /// True where everything works: any ranking, unit, floor, page format, and targets by KV head. Others know
    /// [`Ranking::Identity`] and [`Ranking::Mirror`], single blocks, no floor, one target, and the formats that
    /// [`MirrorFormat::kernel`] names.
    fn knows_everything(&self) -> bool {
        false
    }
}

type Factory = dyn Fn(&BackendSpec) -> Result<Box<dyn Backend>, Error> + Send + Sync;

/// A place where caches can live.
#[derive(Clone)]
pub struct Device {
    name: String,
    max_blocks: usize,
    factory: Arc<Factory>,
}

impl Device {
    /// The CPU, with vector code, on the threads of the current rayon pool.
    pub fn cpu() -> Device {
        Device::from_factory("cpu", |spec| Ok(Box::new(crate::cpu::Cpu::new(spec)?)))
            .with_max_blocks(MAX_BLOCKS)
    }

    /// The plain definition of every stage, f64 where bits are not part of it: slow, for comparisons.
    pub fn reference() -> Device {
        Device::from_factory("reference", |spec| Ok(Box::new(crate::reference::Reference::new(spec)?)))
            .with_max_blocks(MAX_BLOCKS)
    }

    /// A device of your own; its contexts are as long as the kernels' ([`kernels_gpu::layout::MAX_BLOCKS`]).
    pub fn from_factory<F>(name: impl Into<String>, factory: F) -> Device
    where
        F: Fn(&BackendSpec) -> Result<Box<dyn Backend>, Error> + Send + Sync + 'static,
    {
        Device { name: name.into(), max_blocks: kernels_gpu::layout::MAX_BLOCKS, factory: Arc::new(factory) }
    }

    /// The same with another longest context, in blocks.
    #[must_use]
    pub fn with_max_blocks(self, max_blocks: usize) -> Device {
        Device { max_blocks, ..self }
    }

    /// Longest context of a sequence, in blocks, memory allowing.
    pub fn max_blocks(&self) -> usize {
        self.max_blocks
    }

    /// Name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn backend(&self, spec: &BackendSpec) -> Result<Box<dyn Backend>, Error> {
        (self.factory)(spec)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.name).finish()
    }
}
