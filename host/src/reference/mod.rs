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
use crate::backend::{AppendStep, Backend, BackendSpec, DecodeResult, DecodeStep, Ranking};
use crate::element::widen;
use crate::pool::{TableChange, Tables};
use crate::store::HostStore;
use merge::Stop;
use plan::Plan;

/// The reference backend.
#[derive(Debug)]
pub struct Reference {
    store: HostStore,
}

impl Reference {
    /// Storage for a cache.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(spec: &BackendSpec) -> Result<Reference, Error> {
        let store = HostStore::new("reference", spec.shape, spec.mirror.kind(), spec.slots, spec.pages)?;
        Ok(Reference { store })
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
        append::append(&mut self.store, tables, step);
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

                let log_mass = match step.ranking {
                    Ranking::Identity => vec![],
                    Ranking::Mirror => q.chunks(d).map(|q| score::score(&view, q, step.scale)).collect(),
                    Ranking::TrueMass(_) => truth::log_masses(&view, q, step.scale),
                };
                let limits = plan::Limits {
                    tokens: tokens as usize,
                    sink: step.sink as usize,
                    recent: step.recent as usize,
                };
                let plan = match step.ranking {
                    Ranking::Identity => Plan::identity(view.blocks(), group),
                    Ranking::Mirror => plan::plan(&log_mass, limits, step.target, step.budget[b]),
                    Ranking::TrueMass(mass) => truth::plan(&view, q, step.scale, limits, mass),
                };
                let queries = attend::scaled_queries(q, step.scale);
                let read = attend::attend(&view, &plan.order[..plan.count], &queries, d);
                let stop = Stop { mass: step.mass, limit: (step.budget[b] as usize).min(view.blocks()) };
                let merged = merge::merge(&view, (q, step.scale), &queries, d, &plan, &log_mass, read, stop);

                for (g, head) in merged.heads.iter().enumerate() {
                    let out = &mut result.out[(row * group + g) * d..][..d];
                    out.iter_mut().zip(&head.out).for_each(|(to, &from)| *to = from as f32);
                    result.lse[row * group + g] = head.lse as f32;
                    result.mass[row * group + g] = head.mass as f32;
                }
                result.read[2 * row] = merged.blocks_read as u32;
                result.read[2 * row + 1] = merged.topups as u32;
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

    fn ranks_by_true_mass(&self) -> bool {
        true
    }
}
