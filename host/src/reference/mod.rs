//! Every stage as docs/kernels.md defines it, in plain loops: the yardstick of the other backends.
//!
//! `append`, `score` and `plan` are defined bit by bit and are computed here with exactly those
//! operations; `attend` and `merge` are not, and use f64. Nothing here is meant to be fast.

pub mod append;
pub mod attend;
pub mod merge;
pub mod plan;
pub mod score;
pub mod truth;

#[cfg(test)]
pub(crate) mod tests;

use crate::Error;
use crate::backend::{AppendStep, Backend, BackendSpec, DecodeResult, DecodeStep, Ranking, Selection};
use crate::certificate::round_up;
use crate::element::widen;
use crate::estimator::{Estimator, estimator};
use crate::pool::{HostCopy, SlotCopy, TableChange, Tables};
use crate::store::{HeadView, HostStore};
use crate::tier::HostTier;
use merge::Stop;
use plan::{Goal, Limits, Plan};

/// The reference backend.
pub struct Reference {
    store: HostStore,
    estimator: Box<dyn Estimator>,
}

impl Reference {
    /// Storage for a cache.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(spec: &BackendSpec) -> Result<Reference, Error> {
        let store = HostStore::new("reference", spec.shape, spec.format, spec.slots, spec.pages)?;
        Ok(Reference { store, estimator: estimator(spec.format, &spec.shape) })
    }
}

/// score and plan of one (entry, KV head).
struct Ranked {
    log_mass: Vec<Vec<f32>>,
    plan: Plan,
    rounding: Option<Vec<f32>>,
    metadata: usize,
}

impl Reference {
    fn rank(&self, step: &DecodeStep<'_>, (b, h): (usize, usize), view: &HeadView<'_>, q: &[f32]) -> Ranked {
        let limits = Limits {
            tokens: view.tokens(),
            sink: step.sink as usize,
            recent: step.recent as usize,
            group: self.store.format.blocks(),
            unit: step.unit,
            floor: step.floor[b] as usize,
        };
        let group = self.store.shape.group();
        let scored = |bounds| score::score(view, &*self.estimator, q, step.scale, bounds);
        let (mut rounding, mut metadata) = (None, 0);
        let identity = || (vec![], Plan::identity(view.blocks(), group));
        let (log_mass, plan) = match step.ranking {
            _ if limits.floor >= view.blocks() => identity(),
            Ranking::Identity => identity(),
            Ranking::Mirror => {
                let scored = scored(false);
                metadata = scored.metadata;
                let goal = Goal::of_target(step.target[h]);
                let plan = plan::plan(&scored.log_mass, limits, goal, step.budget[b]);
                (scored.log_mass, plan)
            }
            Ranking::Bound => {
                let scored = scored(true);
                metadata = scored.metadata;
                let goal = Goal::Certain(step.target[h], &scored.log_mass);
                let plan = plan::plan(&scored.bound, limits, goal, step.budget[b]);
                rounding = Some(scored.rounding);
                (scored.bound, plan)
            }
            Ranking::TrueMass(mass) => {
                let log_mass = truth::log_masses(view, q, step.scale);
                (log_mass, truth::plan(view, q, step.scale, limits, mass))
            }
        };
        Ranked { log_mass, plan, rounding, metadata }
    }
}

impl Backend for Reference {
    fn name(&self) -> String {
        "reference".into()
    }

    fn tables_changed(&mut self, _: &Tables, _: &[TableChange]) -> Result<(), Error> {
        Ok(())
    }

    fn append(&mut self, tables: &Tables, step: &AppendStep<'_>) -> Result<(), Error> {
        append::append(&mut self.store, &*self.estimator, tables, step);
        Ok(())
    }

    fn decode(
        &mut self,
        tables: &Tables,
        step: &DecodeStep<'_>,
        result: &mut DecodeResult<'_>,
    ) -> Result<(), Error> {
        let shape = self.store.shape;
        let (group, d, max_blocks) = (shape.group(), shape.head_dim, tables.extents.max_blocks);
        let q: Vec<f32> = step.q.bits().iter().map(|&x| widen(shape.dtype, x)).collect();
        for (b, (&seq, &tokens)) in step.seqs.iter().zip(step.lens).enumerate() {
            for h in 0..shape.kv_heads {
                let view = self.store.view(tables, seq as usize, step.layer, h, tokens as usize);
                let row = b * shape.kv_heads + h;
                let q = &q[row * group * d..][..group * d];

                let Ranked { log_mass, plan, rounding, metadata } = self.rank(step, (b, h), &view, q);
                let queries = attend::scaled_queries(q, step.scale);
                let read = attend::attend(&view, &plan.order[..plan.count], &queries, d);
                let stop = Stop {
                    mass: step.mass[h],
                    limit: (step.budget[b] as usize).min(view.blocks()),
                    rounding: rounding.as_deref(),
                };
                let merged = merge::merge(&view, (q, step.scale), &queries, d, &plan, &log_mass, read, stop);

                for (g, head) in merged.heads.iter().enumerate() {
                    let out = &mut result.out[(row * group + g) * d..][..d];
                    out.iter_mut().zip(&head.out).for_each(|(to, &from)| *to = from as f32);
                    result.lse[row * group + g] = head.lse as f32;
                    // Rounded down where it is a promise.
                    result.mass[row * group + g] = match rounding {
                        Some(_) => -round_up(-head.mass),
                        None => head.mass as f32,
                    };
                }
                result.read[2 * row] = merged.blocks_read as u32;
                result.read[2 * row + 1] = merged.topups as u32;
                result.metadata[row] = metadata as u32;
                if let Some(record) = &mut result.record {
                    record.order[row * max_blocks..][..plan.order.len()].copy_from_slice(&plan.order);
                    for (g, log_mass) in log_mass.iter().enumerate() {
                        record.log_mass[(row * group + g) * max_blocks..][..log_mass.len()]
                            .copy_from_slice(log_mass);
                    }
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
        let (heads, max_blocks) = (shape.kv_heads, tables.extents.max_blocks);
        let q: Vec<f32> = step.q.bits().iter().map(|&x| widen(shape.dtype, x)).collect();
        for (row, q) in q.chunks_exact(shape.group() * shape.head_dim).enumerate() {
            let (b, h) = (row / heads, row % heads);
            let view = self.store.view(tables, step.seqs[b] as usize, step.layer, h, step.lens[b] as usize);
            let plan = self.rank(step, (b, h), &view, q).plan;
            selection.order[row * max_blocks..][..plan.order.len()].copy_from_slice(&plan.order);
            selection.count[row] = plan.count as u32;
        }
        Ok(())
    }

    fn knows_everything(&self) -> bool {
        true
    }
}
