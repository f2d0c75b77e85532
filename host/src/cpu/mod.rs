//! The stages, fast, on the CPU: the same files and names as [`mod@crate::reference`], vector code inside,
//! threads outside.
//!
//! A task is one (sequence, KV head); where there are fewer tasks than threads, the splits of a task's
//! attention spread too. Selection has the reference's bits; attention is f32, added in an order that
//! depends on the sequence alone, so a sequence gets the same bits in any batch, on any number of threads
//! and at any vector width.

pub mod isa;

mod append;
mod attend;
mod lanes;
mod merge;
mod plan;
mod score;
mod tile;
mod vector;

pub use isa::Isa;

use crate::backend::{AppendStep, Backend, BackendSpec, DecodeResult, DecodeStep, Ranking, Selection};
use crate::element::widen;
use crate::estimator::{Estimator, estimator};
use crate::pool::{HostCopy, SlotCopy, TableChange, Tables};
use crate::reference::plan::Limits;
use crate::reference::truth;
use crate::store::{HeadView, HostStore};
use crate::tier::HostTier;
use crate::{Dtype, Error};
use kernels_gpu::layout::MAX_GROUP;
use kernels_gpu::numeric::LOG2_E;
use plan::Goal;
use rayon::prelude::*;

/// The CPU backend.
pub struct Cpu {
    store: HostStore,
    estimator: Box<dyn Estimator>,
    isa: Isa,
    /// `[B, KH, G, blocks]` of the current step.
    log_mass: Vec<f32>,
    /// Upper bounds `[B, KH, G, blocks]` of the current step, where it needs them.
    bound: Vec<f32>,
    /// `[B, KH, blocks]` of the current step.
    order: Vec<u32>,
}

/// The queries of a KV head's group.
#[derive(Clone, Copy)]
struct Queries<'a> {
    /// In the log2 domain, `(q * scale) * log2 e`: `[group, head_dim]`.
    scaled: &'a [f32],
    /// The same, channels by [`attend::place_of`]; empty where nothing is attended to.
    dealt: &'a [f32],
    group: usize,
}

/// What attention and merge need of a step.
#[derive(Clone, Copy)]
struct Step<'a> {
    view: HeadView<'a>,
    queries: Queries<'a>,
    isa: Isa,
}

/// `$call` with `$F` the element type's format and `$D` the head_dim.
macro_rules! by_format {
    ($view:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        use $crate::Dtype;
        use $crate::element::{Bf16, F16};
        match ($view.dtype(), $view.head_dim()) {
            (Dtype::F16, 64) => $function::<F16, 64>($($argument),*),
            (Dtype::F16, _) => $function::<F16, 128>($($argument),*),
            (Dtype::Bf16, 64) => $function::<Bf16, 64>($($argument),*),
            (Dtype::Bf16, _) => $function::<Bf16, 128>($($argument),*),
        }
    }};
}
use by_format;

impl Cpu {
    /// Storage for a cache.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(spec: &BackendSpec) -> Result<Cpu, Error> {
        Cpu::with_isa(spec, Isa::detect())
    }

    /// Storage for a cache, computing with the given instructions.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn with_isa(spec: &BackendSpec, isa: Isa) -> Result<Cpu, Error> {
        let store = HostStore::new("cpu", spec.shape, spec.format, spec.slots, spec.pages)?;
        let estimator = estimator(spec.format, &spec.shape);
        Ok(Cpu { store, estimator, isa, log_mass: vec![], bound: vec![], order: vec![] })
    }
}

/// What plans a row.
#[derive(Clone, Copy)]
struct Planner<'a> {
    store: &'a HostStore,
    estimator: &'a dyn Estimator,
    isa: Isa,
}

/// A row's ranking: blocks by rank, what they were ranked by, and by how much bounds may be off.
struct Ranked<'a> {
    /// `[width]`
    order: &'a mut [u32],
    /// `[group, width]`
    log_mass: &'a mut [f32],
    /// `[group, width]`, empty where there are no bounds.
    bound: &'a mut [f32],
    width: usize,
    rounding: &'a mut [f32; MAX_GROUP],
}

impl Planner<'_> {
    /// score and plan for entry b and KV head h, with queries `q` `[group, head_dim]`; the plan and the mirror bytes read.
    fn plan(
        self,
        step: &DecodeStep<'_>,
        (b, h): (usize, usize),
        view: &HeadView<'_>,
        queries: Queries<'_>,
        q: &[u16],
        buffers: Ranked<'_>,
    ) -> (plan::Planned, u32) {
        let (tokens, group) = (view.tokens(), queries.group);
        let limits = Limits {
            tokens,
            sink: step.sink as usize,
            recent: step.recent as usize,
            group: self.store.format.blocks(),
            unit: step.unit,
            floor: step.floor[b] as usize,
        };
        let Ranked { order, log_mass, bound, width, rounding } = buffers;
        let mut metadata = 0;
        let planned = match step.ranking {
            _ if limits.floor >= view.blocks() => plan::identity(view.blocks(), order),
            Ranking::Identity => plan::identity(view.blocks(), order),
            Ranking::Mirror => {
                let scores = score::Scores { log_mass, width, bounds: None };
                metadata = score::score(self.isa, view, self.estimator, queries, scores) as u32;
                let log_mass = plan::LogMass { rows: log_mass, width, group };
                plan::plan(self.isa, log_mass, limits, Goal::of_target(step.target[h]), step.budget[b], order)
            }
            Ranking::Bound => {
                let bounds = Some((&mut *bound, &mut rounding[..]));
                let scores = score::Scores { log_mass, width, bounds };
                metadata = score::score(self.isa, view, self.estimator, queries, scores) as u32;
                let estimate = plan::LogMass { rows: log_mass, width, group };
                let bound = plan::LogMass { rows: bound, width, group };
                let goal = Goal::Certain(step.target[h], estimate);
                plan::plan(self.isa, bound, limits, goal, step.budget[b], order)
            }
            Ranking::TrueMass(mass) => {
                let q: Vec<f32> = q.iter().map(|&x| widen(self.store.shape.dtype, x)).collect();
                for (to, from) in log_mass.chunks_mut(width).zip(truth::log_masses(view, &q, step.scale)) {
                    to[..from.len()].copy_from_slice(&from);
                }
                plan::Planned::from_reference(&truth::plan(view, &q, step.scale, limits, mass), order)
            }
        };
        (planned, metadata)
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        "cpu".into()
    }

    fn tables_changed(&mut self, _: &Tables, _: &[TableChange]) -> Result<(), Error> {
        Ok(())
    }

    fn append(&mut self, tables: &Tables, step: &AppendStep<'_>) -> Result<(), Error> {
        append::append(self.isa, &mut self.store, &*self.estimator, tables, step);
        Ok(())
    }

    fn decode(
        &mut self,
        tables: &Tables,
        step: &DecodeStep<'_>,
        result: &mut DecodeResult<'_>,
    ) -> Result<(), Error> {
        let shape = self.store.shape;
        let (group, d) = (shape.group(), shape.head_dim);
        // Rows of the scratch buffers: the longest sequence of this batch.
        let width =
            step.lens.iter().map(|&n| kernels_gpu::layout::blocks(n as usize)).max().unwrap_or(0).max(1);
        let rows = step.seqs.len() * shape.kv_heads;
        self.order.resize(self.order.len().max(rows * width), 0);
        self.log_mass.resize(self.log_mass.len().max(rows * group * width), 0.0);
        let bounds = if step.ranking == Ranking::Bound { rows * group * width } else { 0 };
        self.bound.resize(self.bound.len().max(bounds), 0.0);
        let (store, isa) = (&self.store, self.isa);
        let ranking = Planner { store, estimator: &*self.estimator, isa };
        // Where no bounds are needed every row gets an empty part.
        let mut bound_rows: Vec<&mut [f32]> = match bounds {
            0 => (0..rows).map(|_| &mut [][..]).collect(),
            _ => self.bound[..bounds].chunks_mut(group * width).collect(),
        };
        let spread = rows < rayon::current_num_threads();

        (self.order[..rows * width].par_chunks_mut(width))
            .zip(self.log_mass[..rows * group * width].par_chunks_mut(group * width))
            .zip(result.out.par_chunks_mut(group * d))
            .zip(result.lse.par_chunks_mut(group))
            .zip(result.mass.par_chunks_mut(group))
            .zip(result.read.par_chunks_mut(2))
            .zip(result.metadata.par_iter_mut())
            .zip(bound_rows.par_iter_mut())
            .zip(step.q.bits().par_chunks(group * d))
            .enumerate()
            .for_each(|(row, ((((((((order, log_mass), out), lse), mass), read), metadata), bound), q))| {
                let (b, h) = (row / shape.kv_heads, row % shape.kv_heads);
                let tokens = step.lens[b] as usize;
                let view = store.view(tables, step.seqs[b] as usize, step.layer, h, tokens);
                let mut scaled = [0.0f32; MAX_GROUP * 128];
                let scaled = &mut scaled[..group * d];
                scale_queries(shape.dtype, step.scale, q, scaled);
                let dealt = attend::deal(shape.dtype, scaled);
                let queries = Queries { scaled, dealt: &dealt[..group * d], group };
                let mut rounding = [0.0f32; MAX_GROUP];
                let buffers = Ranked { order, log_mass, bound, width, rounding: &mut rounding };
                let planned;
                (planned, *metadata) = ranking.plan(step, (b, h), &view, queries, q, buffers);
                let part = Step { view, queries, isa };
                let parts = attend::attend(part, &order[..planned.count], spread);
                let limit = (step.budget[b] as usize).min(view.blocks());
                let certain = step.ranking == Ranking::Bound;
                let ranked: &[f32] = if certain { bound } else { log_mass };
                let log_mass = plan::LogMass { rows: ranked, width, group };
                let stop = merge::Stop { mass: step.mass[h], limit, rounding: certain.then_some(&rounding) };
                merge::merge(
                    part,
                    &parts,
                    planned,
                    order,
                    log_mass,
                    stop,
                    merge::Results { out, lse, mass, read },
                );
            });

        if let Some(record) = &mut result.record {
            let max_blocks = tables.extents.max_blocks;
            for row in 0..rows {
                record.order[row * max_blocks..][..width]
                    .copy_from_slice(&self.order[row * width..][..width]);
            }
            if step.ranking != Ranking::Identity {
                let ranked = if step.ranking == Ranking::Bound { &self.bound } else { &self.log_mass };
                for row in 0..rows * group {
                    record.log_mass[row * max_blocks..][..width]
                        .copy_from_slice(&ranked[row * width..][..width]);
                }
            }
        }
        Ok(())
    }

    fn read_tokens(&mut self, slots: &[u32], k: &mut [u16], v: &mut [u16]) -> Result<(), Error> {
        self.store.read_tokens(slots, k, v);
        Ok(())
    }

    fn copy_slots(&mut self, copies: &[SlotCopy]) -> Result<(), Error> {
        self.store.copy_slots(copies);
        Ok(())
    }

    fn save(&mut self, copies: &[HostCopy], tier: &mut HostTier) -> Result<(), Error> {
        self.store.save(copies, tier);
        Ok(())
    }

    fn load(&mut self, copies: &[HostCopy], tier: &HostTier) -> Result<(), Error> {
        self.store.load(copies, tier);
        Ok(())
    }

    fn select(
        &mut self,
        tables: &Tables,
        step: &DecodeStep<'_>,
        selection: &mut Selection<'_>,
    ) -> Result<(), Error> {
        let shape = self.store.shape;
        let (group, d, max_blocks) = (shape.group(), shape.head_dim, tables.extents.max_blocks);
        let width =
            step.lens.iter().map(|&n| kernels_gpu::layout::blocks(n as usize)).max().unwrap_or(0).max(1);
        let planner = Planner { store: &self.store, estimator: &*self.estimator, isa: self.isa };
        (selection.order.par_chunks_mut(max_blocks))
            .zip(selection.count.par_iter_mut())
            .zip(step.q.bits().par_chunks(group * d))
            .enumerate()
            .for_each_init(
                || (vec![0.0; group * width], vec![0.0; group * width], vec![0.0; group * d]),
                |(log_mass, bound, scaled), (row, ((order, count), q))| {
                    let (b, h) = (row / shape.kv_heads, row % shape.kv_heads);
                    let tokens = step.lens[b] as usize;
                    let view = planner.store.view(tables, step.seqs[b] as usize, step.layer, h, tokens);
                    scale_queries(shape.dtype, step.scale, q, scaled);
                    let mut rounding = [0.0f32; MAX_GROUP];
                    let buffers = Ranked {
                        order: &mut order[..width],
                        log_mass,
                        bound,
                        width,
                        rounding: &mut rounding,
                    };
                    let queries = Queries { scaled, dealt: &[], group };
                    *count = planner.plan(step, (b, h), &view, queries, q, buffers).0.count as u32;
                },
            );
        Ok(())
    }

    fn knows_everything(&self) -> bool {
        true
    }
}

/// Queries in the log2 domain: `(q * scale) * log2 e`.
fn scale_queries(dtype: Dtype, scale: f32, q: &[u16], scaled: &mut [f32]) {
    for (to, &from) in scaled.iter_mut().zip(q) {
        *to = widen(dtype, from) * scale * LOG2_E;
    }
}
