//! The launches of one decode step, built from addresses: docs/kernels.md as code.
//!
//! Nothing here executes; a [`Driver`](crate::driver::Driver) does. Grids follow from the batch's
//! longest sequence; a CTA without work leaves at once, so what a sequence gets does not depend on it.

use half::{bf16, f16};
use kernels_gpu::layout::{BLOCK, MirrorKind, splits};
use kernels_gpu::{append, attend, gather, merge, plan, score};
use psa_codegen::{DevicePtr, DevicePtrMut, Launch, NoSuchInstance, SpecType};

use crate::{Dtype, Shape};

/// Addresses of a cache on a device, and what places a layer in it.
#[derive(Clone, Copy, Debug)]
pub struct CacheAddresses {
    /// Geometry of the model.
    pub shape: Shape,
    /// What the mirror pages hold.
    pub mirror_kind: MirrorKind,
    /// Width of a row of the block table, a multiple of 4.
    pub max_blocks: usize,
    /// Slots.
    pub arena: u64,
    /// Mirror pages.
    pub mirror: u64,
    /// u32 `[sequences, layers, kv_heads, max_blocks]`.
    pub block_table: u64,
    /// u32 `[sequences, layers, kv_heads, max_blocks / 4]`.
    pub mirror_table: u64,
}

/// Addresses that describe a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchAddresses {
    /// Sequences in the batch.
    pub batch: usize,
    /// Tokens of the longest one.
    pub max_tokens: usize,
    /// u32 `[batch]`, rows in the tables.
    pub seqs: u64,
    /// u32 `[batch]`, tokens.
    pub lens: u64,
}

/// Scratch and results of a decode step; every buffer as in docs/kernels.md.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // The names of docs/kernels.md.
pub struct StepAddresses {
    pub q: u64,
    pub budget: u64,
    pub log_mass: u64,
    pub order: u64,
    pub count: u64,
    pub peak: u64,
    pub rest: u64,
    pub partial: u64,
    pub partial_ml: u64,
    pub out: u64,
    pub lse: u64,
    pub read: u64,
    pub mass: u64,
    /// Splits that `partial` has room for in each row.
    pub max_splits: usize,
}

/// What a step does, as the kernels take it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// Every block, in order.
    Identity,
    /// By rank.
    Ranked {
        /// Fixed-point target of the prediction; 0: the budget alone.
        target: u32,
        /// Mass that merge makes sure of; 0: no test.
        mass: f32,
        /// Blocks at the beginning that are always read.
        sink: usize,
        /// Blocks at the end that are always read.
        recent: usize,
    },
}

/// Evaluates an expression with `$t` as the element type.
macro_rules! with_element {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            Dtype::Bf16 => {
                type $t = bf16;
                $body
            }
            Dtype::F16 => {
                type $t = f16;
                $body
            }
        }
    };
}

fn input<T>(address: u64) -> DevicePtr<T> {
    DevicePtr::from_raw(address)
}

fn output<T>(address: u64) -> DevicePtrMut<T> {
    DevicePtrMut::from_raw(address)
}

/// The launch that appends `k` and `v` (`[tokens, kv_heads, head_dim]`) to the sequences of a batch.
/// `offsets` u32 `[batch + 1]`: tokens of each. `groups` is the largest number of 64-token groups that
/// one sequence's new tokens touch. The lengths include the new tokens.
///
/// # Errors
/// [`NoSuchInstance`] for a shape that the kernels were not compiled for.
pub fn append(
    cache: &CacheAddresses,
    batch: &BatchAddresses,
    layer: usize,
    [k, v, offsets]: [u64; 3],
    groups: usize,
) -> Result<Launch, NoSuchInstance> {
    let s = &cache.shape;
    let grid = [s.kv_heads as u32, batch.batch as u32, groups as u32];
    macro_rules! args {
        ($family:ident) => {
            append::$family::Args {
                k: input(k),
                v: input(v),
                offsets: input(offsets),
                arena: output(cache.arena),
                mirror: output(cache.mirror),
                block_table: input(cache.block_table),
                mirror_table: input(cache.mirror_table),
                seqs: input(batch.seqs),
                lens: input(batch.lens),
                layer: layer as u32,
                layers: s.layers as u32,
                kv_heads: s.kv_heads as u32,
                max_blocks: cache.max_blocks as u32,
            }
        };
    }
    with_element!(s.dtype, T => match cache.mirror_kind {
        MirrorKind::Planes(planes) => append::append::launch::<T>(s.head_dim, planes as usize, grid, args!(append)),
        MirrorKind::Box => append::append_box::launch::<T>(s.head_dim, grid, args!(append_box)),
    })
}

/// The launches of one decode step of one layer, in order: score, plan, attend, merge (the identity
/// plan needs no score).
///
/// # Errors
/// [`NoSuchInstance`] for a shape that the kernels were not compiled for.
pub fn decode(
    cache: &CacheAddresses,
    batch: &BatchAddresses,
    addresses: &StepAddresses,
    layer: usize,
    scale: f32,
    step: Step,
) -> Result<Vec<Launch>, NoSuchInstance> {
    with_element!(cache.shape.dtype, T => {
        let stages = Stages::<T> { cache, batch, addresses, layer, scale, element: std::marker::PhantomData };
        match step {
            Step::Identity => Ok(vec![stages.plan_identity()?, stages.attend()?, stages.merge(0.0)?]),
            Step::Ranked { target, mass, sink, recent } => Ok(vec![
                stages.score()?,
                stages.plan(target, sink, recent)?,
                stages.attend()?,
                stages.merge(mass)?,
            ]),
        }
    })
}

/// The launch that copies `count` slots between two arenas; `pairs` u32 `[count, 2]`: source, target.
///
/// # Errors
/// None today: `gather` has one instance.
pub fn gather(
    source: u64,
    target: u64,
    pairs: u64,
    count: usize,
    slot_bytes: usize,
    ctas: u32,
) -> Result<Launch, NoSuchInstance> {
    gather::gather::launch(
        [ctas, 1, 1],
        gather::gather::Args {
            source: input(source),
            target: output(target),
            pairs: input(pairs),
            count: count as u32,
            slot_bytes: slot_bytes as u32,
        },
    )
}

struct Stages<'a, T> {
    cache: &'a CacheAddresses,
    batch: &'a BatchAddresses,
    addresses: &'a StepAddresses,
    layer: usize,
    scale: f32,
    element: std::marker::PhantomData<T>,
}

impl<T: SpecType> Stages<'_, T> {
    fn rows(&self) -> [u32; 3] {
        [self.cache.shape.kv_heads as u32, self.batch.batch as u32, 1]
    }

    fn score(&self) -> Result<Launch, NoSuchInstance> {
        let (cache, batch, a, s) = (self.cache, self.batch, self.addresses, &self.cache.shape);
        let grid = [score::grid_x(batch.max_tokens) as u32, s.kv_heads as u32, batch.batch as u32];
        macro_rules! args {
            ($family:ident) => {
                score::$family::Args {
                    q: input(a.q),
                    arena: input(cache.arena),
                    mirror: input(cache.mirror),
                    block_table: input(cache.block_table),
                    mirror_table: input(cache.mirror_table),
                    seqs: input(batch.seqs),
                    lens: input(batch.lens),
                    log_mass: output(a.log_mass),
                    scale: self.scale,
                    layer: self.layer as u32,
                    layers: s.layers as u32,
                    kv_heads: s.kv_heads as u32,
                    group: s.group() as u32,
                    max_blocks: cache.max_blocks as u32,
                }
            };
        }
        match cache.mirror_kind {
            MirrorKind::Planes(planes) => {
                score::score::launch::<T>(s.head_dim, planes as usize, grid, args!(score))
            }
            MirrorKind::Box => score::score_box::launch::<T>(s.head_dim, grid, args!(score_box)),
        }
    }

    fn plan(&self, target: u32, sink: usize, recent: usize) -> Result<Launch, NoSuchInstance> {
        let (cache, batch, a, s) = (self.cache, self.batch, self.addresses, &self.cache.shape);
        plan::plan::launch(
            plan::capacity(batch.max_tokens.div_ceil(BLOCK)),
            self.rows(),
            plan::plan::Args {
                log_mass: input(a.log_mass),
                lens: input(batch.lens),
                budget: input(a.budget),
                order: output(a.order),
                count: output(a.count),
                peak: output(a.peak),
                rest: output(a.rest),
                target,
                sink: sink as u32,
                recent: recent as u32,
                kv_heads: s.kv_heads as u32,
                group: s.group() as u32,
                max_blocks: cache.max_blocks as u32,
            },
        )
    }

    fn plan_identity(&self) -> Result<Launch, NoSuchInstance> {
        let (cache, batch, a, s) = (self.cache, self.batch, self.addresses, &self.cache.shape);
        plan::plan_identity::launch(
            self.rows(),
            plan::plan_identity::Args {
                lens: input(batch.lens),
                order: output(a.order),
                count: output(a.count),
                peak: output(a.peak),
                rest: output(a.rest),
                kv_heads: s.kv_heads as u32,
                group: s.group() as u32,
                max_blocks: cache.max_blocks as u32,
            },
        )
    }

    fn attend(&self) -> Result<Launch, NoSuchInstance> {
        let (cache, batch, a, s) = (self.cache, self.batch, self.addresses, &self.cache.shape);
        let used = splits(batch.max_tokens.div_ceil(BLOCK));
        attend::attend::launch::<T>(
            s.head_dim,
            [used as u32, s.kv_heads as u32, batch.batch as u32],
            attend::attend::Args {
                q: input(a.q),
                arena: input(cache.arena),
                block_table: input(cache.block_table),
                seqs: input(batch.seqs),
                lens: input(batch.lens),
                order: input(a.order),
                count: input(a.count),
                partial: output(a.partial),
                partial_ml: output(a.partial_ml),
                scale: self.scale,
                layer: self.layer as u32,
                layers: s.layers as u32,
                kv_heads: s.kv_heads as u32,
                group: s.group() as u32,
                max_blocks: cache.max_blocks as u32,
                max_splits: a.max_splits as u32,
            },
        )
    }

    fn merge(&self, mass: f32) -> Result<Launch, NoSuchInstance> {
        let (cache, batch, a, s) = (self.cache, self.batch, self.addresses, &self.cache.shape);
        merge::merge::launch::<T>(
            s.head_dim,
            self.rows(),
            merge::merge::Args {
                q: input(a.q),
                arena: input(cache.arena),
                block_table: input(cache.block_table),
                seqs: input(batch.seqs),
                lens: input(batch.lens),
                log_mass: input(a.log_mass),
                order: input(a.order),
                count: input(a.count),
                budget: input(a.budget),
                peak: input(a.peak),
                rest: input(a.rest),
                partial: input(a.partial),
                partial_ml: input(a.partial_ml),
                out: output(a.out),
                lse: output(a.lse),
                read: output(a.read),
                mass_read: output(a.mass),
                scale: self.scale,
                mass,
                layer: self.layer as u32,
                layers: s.layers as u32,
                kv_heads: s.kv_heads as u32,
                group: s.group() as u32,
                max_blocks: cache.max_blocks as u32,
                max_splits: a.max_splits as u32,
            },
        )
    }
}
