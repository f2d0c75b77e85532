//! The launches of one decode step, built from addresses: docs/kernels.md as code.
//!
//! Each launch takes the instance that its family selects for the shape and the device, and is checked against the
//! kernel's contract. Nothing here executes; a [`Driver`](crate::driver::Driver) does. Grids follow from the batch's
//! longest sequence; a CTA without work leaves at once, so what a sequence gets does not depend on it.

use half::{bf16, f16};
use kernels_gpu::layout::{BLOCK, MirrorKind, splits};
use kernels_gpu::{append, attend, gather, merge, plan, score};
use psa_codegen::{DeviceLimits, Hint, In, Launch, LaunchError, Region, SpecType};

use super::plans::{self, PlanAddresses, PlanGoal, PlanScratch, PlanShape};
use crate::{Dtype, Shape};

/// Memory of a cache on a device, and what places a layer in it.
#[derive(Clone, Copy, Debug)]
pub struct CacheAddresses {
    /// Geometry of the model.
    pub shape: Shape,
    /// What the mirror pages hold.
    pub mirror_kind: MirrorKind,
    /// Width of a row of the block table, a multiple of 4.
    pub max_blocks: usize,
    /// Slots.
    pub arena: Region,
    /// Mirror pages.
    pub mirror: Region,
    /// u32 `[sequences, layers, kv_heads, max_blocks]`.
    pub block_table: Region,
    /// u32 `[sequences, layers, kv_heads, max_blocks / 4]`.
    pub mirror_table: Region,
    /// What the device allows.
    pub limits: DeviceLimits,
}

/// Memory that describes a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchAddresses {
    /// Sequences in the batch.
    pub batch: usize,
    /// Tokens of the longest one.
    pub max_tokens: usize,
    /// u32 `[batch]`, rows in the tables.
    pub seqs: Region,
    /// u32 `[batch]`, tokens.
    pub lens: Region,
}

impl BatchAddresses {
    pub(super) fn lens(&self) -> In<u32> {
        self.lens.with_largest(self.max_tokens as u64).input()
    }
}

/// Scratch and results of a decode step; every buffer as in docs/kernels.md.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // The names of docs/kernels.md.
pub struct StepAddresses {
    pub q: Region,
    pub budget: Region,
    pub log_mass: Region,
    pub order: Region,
    pub count: Region,
    pub peak: Region,
    pub rest: Region,
    /// Of `plan`, where a sequence is longer than one CTA sorts.
    pub plan_scratch: PlanScratch,
    pub partial: Region,
    pub partial_ml: Region,
    pub out: Region,
    pub lse: Region,
    pub read: Region,
    pub mass: Region,
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

/// The launch that appends `k` and `v` (`[tokens, kv_heads, head_dim]`) to the sequences of a batch.
/// `offsets` u32 `[batch + 1]`: tokens of each. `groups` is the largest number of 64-token groups that
/// one sequence's new tokens touch. The lengths include the new tokens.
///
/// # Errors
/// [`LaunchError`] for a shape that the kernels were not compiled for, and for memory that is too small for it.
pub fn append(
    cache: &CacheAddresses,
    batch: &BatchAddresses,
    layer: usize,
    [k, v, offsets]: [Region; 3],
    groups: usize,
) -> Result<Launch, LaunchError> {
    let s = &cache.shape;
    let grid = [s.kv_heads as u32, batch.batch as u32, groups as u32];
    macro_rules! args {
        ($family:ident) => {
            append::$family::Args {
                k: k.input(),
                v: v.input(),
                offsets: offsets.input(),
                arena: cache.arena.in_out(),
                mirror: cache.mirror.in_out(),
                block_table: cache.block_table.input(),
                mirror_table: cache.mirror_table.input(),
                seqs: batch.seqs.input(),
                lens: batch.lens(),
                layer: layer as u32,
                layers: s.layers as u32,
                kv_heads: s.kv_heads as u32,
                max_blocks: cache.max_blocks as u32,
            }
        };
    }
    let d = s.head_dim;
    with_element!(s.dtype, T => Ok(match cache.mirror_kind {
        MirrorKind::Planes(planes) => {
            let shape = append::append::Shape { d, p: planes as usize };
            append::append::select::<T>(shape, &cache.limits, Hint::None)?.launch(grid, args!(append))?
        }
        MirrorKind::Box => {
            let shape = append::append_box::Shape { d };
            append::append_box::select::<T>(shape, &cache.limits, Hint::None)?.launch(grid, args!(append_box))?
        }
    }))
}

/// The launches of one decode step of one layer, in order: score, plan (one launch, or six where a sequence is longer
/// than one CTA sorts), attend, merge (the identity plan needs no score).
///
/// # Errors
/// [`LaunchError`] for a shape that the kernels were not compiled for, and for memory that is too small for it.
pub fn decode(
    cache: &CacheAddresses,
    batch: &BatchAddresses,
    addresses: &StepAddresses,
    layer: usize,
    scale: f32,
    step: Step,
) -> Result<Vec<Launch>, LaunchError> {
    with_element!(cache.shape.dtype, T => {
        let stages = Stages::<T> { cache, batch, addresses, layer, scale, element: std::marker::PhantomData };
        match step {
            Step::Identity => Ok(vec![stages.plan_identity()?, stages.attend()?, stages.merge(0.0)?]),
            Step::Ranked { target, mass, sink, recent } => {
                let mut launches = vec![stages.score()?];
                launches.extend(stages.plan(PlanGoal { target, sink, recent })?);
                launches.extend([stages.attend()?, stages.merge(mass)?]);
                Ok(launches)
            }
        }
    })
}

/// The launch that copies `count` slots between two arenas; `pairs` u32 `[count, 2]`: source, target.
///
/// # Errors
/// [`LaunchError::Contract`] for a slot size that is no multiple of 16 bytes, and fewer pairs than `count`.
pub fn gather(
    source: Region,
    target: Region,
    pairs: Region,
    count: usize,
    slot_bytes: usize,
    ctas: u32,
) -> Result<Launch, LaunchError> {
    gather::gather::launch(
        [ctas, 1, 1],
        gather::gather::Args {
            source: source.input(),
            target: target.in_out(),
            pairs: pairs.input(),
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

    fn score(&self) -> Result<Launch, LaunchError> {
        let (cache, batch, a, s) = (self.cache, self.batch, self.addresses, &self.cache.shape);
        let grid = [score::grid_x(batch.max_tokens) as u32, s.kv_heads as u32, batch.batch as u32];
        macro_rules! args {
            ($family:ident) => {
                score::$family::Args {
                    q: a.q.input(),
                    arena: cache.arena.input(),
                    mirror: cache.mirror.input(),
                    block_table: cache.block_table.input(),
                    mirror_table: cache.mirror_table.input(),
                    seqs: batch.seqs.input(),
                    lens: batch.lens(),
                    log_mass: a.log_mass.output(),
                    scale: self.scale,
                    layer: self.layer as u32,
                    layers: s.layers as u32,
                    kv_heads: s.kv_heads as u32,
                    group: s.group() as u32,
                    max_blocks: cache.max_blocks as u32,
                }
            };
        }
        let d = s.head_dim;
        Ok(match cache.mirror_kind {
            MirrorKind::Planes(planes) => {
                let shape = score::score::Shape { d, p: planes as usize };
                score::score::select::<T>(shape, &cache.limits, Hint::None)?.launch(grid, args!(score))?
            }
            MirrorKind::Box => {
                let shape = score::score_box::Shape { d };
                score::score_box::select::<T>(shape, &cache.limits, Hint::None)?
                    .launch(grid, args!(score_box))?
            }
        })
    }

    fn plan(&self, goal: PlanGoal) -> Result<Vec<Launch>, LaunchError> {
        let (cache, a) = (self.cache, self.addresses);
        let shape = PlanShape {
            kv_heads: cache.shape.kv_heads,
            group: cache.shape.group(),
            max_blocks: cache.max_blocks,
        };
        let addresses = PlanAddresses {
            log_mass: a.log_mass,
            budget: a.budget,
            order: a.order,
            count: a.count,
            peak: a.peak,
            rest: a.rest,
            scratch: a.plan_scratch,
        };
        plans::ranked(&cache.limits, shape, self.batch, &addresses, goal)
    }

    fn plan_identity(&self) -> Result<Launch, LaunchError> {
        let (cache, batch, a, s) = (self.cache, self.batch, self.addresses, &self.cache.shape);
        plan::plan_identity::launch(
            self.rows(),
            plan::plan_identity::Args {
                lens: batch.lens(),
                order: a.order.output(),
                count: a.count.output(),
                peak: a.peak.output(),
                rest: a.rest.output(),
                kv_heads: s.kv_heads as u32,
                group: s.group() as u32,
                max_blocks: cache.max_blocks as u32,
            },
        )
    }

    fn attend(&self) -> Result<Launch, LaunchError> {
        let (cache, batch, a, s) = (self.cache, self.batch, self.addresses, &self.cache.shape);
        let used = splits(batch.max_tokens.div_ceil(BLOCK));
        let shape = attend::attend::Shape { head_dim: s.head_dim, group: s.group() };
        let choice = attend::attend::select::<T>(shape, &cache.limits, Hint::None)?;
        Ok(choice.launch(
            [used as u32, s.kv_heads as u32, batch.batch as u32],
            attend::attend::Args {
                q: a.q.input(),
                arena: cache.arena.input(),
                block_table: cache.block_table.input(),
                seqs: batch.seqs.input(),
                lens: batch.lens(),
                order: a.order.input(),
                count: a.count.input(),
                partial: a.partial.output(),
                partial_ml: a.partial_ml.output(),
                scale: self.scale,
                layer: self.layer as u32,
                layers: s.layers as u32,
                kv_heads: s.kv_heads as u32,
                group: s.group() as u32,
                max_blocks: cache.max_blocks as u32,
                max_splits: a.max_splits as u32,
            },
        )?)
    }

    fn merge(&self, mass: f32) -> Result<Launch, LaunchError> {
        let (cache, batch, a, s) = (self.cache, self.batch, self.addresses, &self.cache.shape);
        let shape = merge::merge::Shape { head_dim: s.head_dim, group: s.group() };
        let choice = merge::merge::select::<T>(shape, &cache.limits, Hint::None)?;
        Ok(choice.launch(
            self.rows(),
            merge::merge::Args {
                q: a.q.input(),
                arena: cache.arena.input(),
                block_table: cache.block_table.input(),
                seqs: batch.seqs.input(),
                lens: batch.lens(),
                log_mass: a.log_mass.input(),
                order: a.order.input(),
                count: a.count.input(),
                budget: a.budget.input(),
                peak: a.peak.input(),
                rest: a.rest.input(),
                partial: a.partial.input(),
                partial_ml: a.partial_ml.input(),
                out: a.out.output(),
                lse: a.lse.output(),
                read: a.read.output(),
                mass_read: a.mass.output(),
                scale: self.scale,
                mass,
                layer: self.layer as u32,
                layers: s.layers as u32,
                kv_heads: s.kv_heads as u32,
                group: s.group() as u32,
                max_blocks: cache.max_blocks as u32,
                max_splits: a.max_splits as u32,
            },
        )?)
    }
}
