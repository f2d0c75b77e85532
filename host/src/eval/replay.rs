//! One case, one cache, one decode step a query.
//!
//! The cache has one layer and one KV head; its group is the case's query heads. Before query `i` it
//! holds the tokens that query `i` sees ([`Case::visible`]), appended as they would be in decoding:
//! the first ones at once, then one a step.

use std::time::{Duration, Instant};

use kernels_gpu::layout;
use rayon::prelude::*;

use super::Truth;
use crate::telemetry::{Audit, Telemetry};
use crate::traces::{Case, Elements};
use crate::{
    BlockLimits, CacheConfig, Capacity, DecodePlan, Device, Dtype, Error, Forced, KvCache, Mirror, Path,
    Policy, Shape,
};

/// A policy, and what it ranks by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entrant {
    /// The rule.
    pub policy: Policy,
    /// The mirror of the cache.
    pub mirror: Mirror,
    /// Tokens of a quantisation group.
    pub quant_group: usize,
    /// Tokens that are selected together.
    pub unit: usize,
}

impl Entrant {
    /// `policy` on `mirror`, or on the one that the policy is about: Quest ranks by boxes. Groups of 64, units of 16
    /// tokens.
    pub fn new(policy: Policy, mirror: Mirror) -> Entrant {
        let mirror = policy.own_mirror().unwrap_or(mirror);
        Entrant { policy, mirror, quant_group: layout::QUANT_GROUP, unit: layout::BLOCK }
    }

    /// The mirror, if the policy looks at it.
    pub fn ranks_by(&self) -> Option<Mirror> {
        let looks = !self.policy.reads_everything() && !matches!(self.policy, Policy::Oracle { .. });
        looks.then_some(self.mirror)
    }
}

/// How to replay.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// Where.
    pub device: Device,
    /// Blocks that are always read.
    pub forced: Forced,
    /// Fewest and most blocks of a step.
    pub limits: BlockLimits,
    /// Weight of the tail compensation ([`crate::tail`]) of the policies that can have one; 0 for none.
    pub tail: f32,
    /// The last so many queries of each case; all of them where `None`.
    pub queries: Option<usize>,
    /// Keep [`Step::selection`] and [`Step::out`].
    pub keep: bool,
}

/// What one decode step read and how far off it was.
#[derive(Clone, Debug)]
pub struct Step {
    /// Index of the query in the case.
    pub query: usize,
    /// Blocks read.
    pub blocks_read: usize,
    /// Blocks there were.
    pub blocks_total: usize,
    /// Chunks read after the plan.
    pub topups: usize,
    /// What became of the plan.
    pub path: Path,
    /// Mirror bytes read to make the plan.
    pub metadata_bytes: usize,
    /// Bytes of K and V that the query sees, 2 bytes an element.
    pub seen_bytes: usize,
    /// Share of the exact mass not read, by query head.
    pub missed: Vec<f64>,
    /// Largest share that can have been missed, by query head; empty where the policy certifies nothing.
    pub missed_bound: Vec<f64>,
    /// Bound of the output error that follows from it ([`DecodePlan::output_bounds`]), relative to `||o_dense||`.
    pub output_bound: Vec<f64>,
    /// ||o - o_dense|| / ||o_dense||, by query head.
    pub output_error: Vec<f64>,
    /// |lse - lse_dense|, by query head.
    pub lse_error: Vec<f64>,
    /// Time of the step without the append.
    pub time: Duration,
    /// Blocks read, by rank; empty unless kept.
    pub selection: Vec<u32>,
    /// `[group, head_dim]`; empty unless kept.
    pub out: Vec<f32>,
}

/// All steps of one case and entrant.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Name of the case.
    pub case: String,
    /// One a query.
    pub steps: Vec<Step>,
    /// What the library itself says about them; a step's number is its query.
    pub telemetry: Telemetry,
}

/// Reported after each case.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The case that is done.
    pub case: &'a str,
    /// Cases done.
    pub done: usize,
    /// Cases in all.
    pub cases: usize,
}

/// Why a replay failed.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The cache or the plan refused or failed.
    #[error("{case}, {what}: {source}")]
    Run {
        /// Case.
        case: String,
        /// Policy or call.
        what: String,
        /// Reason.
        source: Error,
    },
    /// The file contradicts itself.
    #[error(
        "{case}: lse of query head {head}, query {query} is {recorded} in the file, but its own queries and \
         keys give {exact} at scale {scale}; the scale in the JSON is wrong or the file is damaged"
    )]
    Inconsistent {
        /// Case.
        case: String,
        /// Query head.
        head: usize,
        /// Query.
        query: usize,
        /// In the file.
        recorded: f32,
        /// Computed in f64.
        exact: f64,
        /// Softmax scale.
        scale: f32,
    },
    /// A backend reports blocks that cannot have been read.
    #[error(
        "{case}, {policy}, query {query}: {device} reports a read of {what}; this is a bug, please report it"
    )]
    Selection {
        /// Case.
        case: String,
        /// Policy.
        policy: Policy,
        /// Query.
        query: usize,
        /// Device.
        device: String,
        /// What is wrong with it.
        what: String,
    },
}

/// Replays `cases` with every entrant: `result[e][c]` is entrant `e` on case `c`. Cases run in parallel.
///
/// # Errors
/// The first error by case.
pub fn evaluate(
    cases: &[(&Case, &Truth)],
    scale: f32,
    entrants: &[Entrant],
    options: &ReplayOptions,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<Vec<Vec<Replay>>, EvalError> {
    evaluate_audited(cases, scale, entrants, options, None, progress)
}

/// As [`evaluate`], with an audit of a sample in [`Replay::telemetry`].
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_audited(
    cases: &[(&Case, &Truth)],
    scale: f32,
    entrants: &[Entrant],
    options: &ReplayOptions,
    audit: Option<Audit>,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<Vec<Vec<Replay>>, EvalError> {
    let done = std::sync::atomic::AtomicUsize::new(0);
    let by_case: Vec<Vec<Replay>> = cases
        .par_iter()
        .map(|&(case, truth)| {
            let replays = replay(case, truth, scale, entrants, options, audit);
            let done = 1 + done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            progress(Progress { case: &case.name, done, cases: cases.len() });
            replays
        })
        .collect::<Result<_, _>>()?;
    let mut by_entrant: Vec<Vec<Replay>> = entrants.iter().map(|_| Vec::with_capacity(cases.len())).collect();
    for replays in by_case {
        for (list, replay) in by_entrant.iter_mut().zip(replays) {
            list.push(replay);
        }
    }
    Ok(by_entrant)
}

/// One case with every entrant, in their order.
fn replay(
    case: &Case,
    truth: &Truth,
    scale: f32,
    entrants: &[Entrant],
    options: &ReplayOptions,
    audit: Option<Audit>,
) -> Result<Vec<Replay>, EvalError> {
    let audit = audit.map(|audit| audit.named(&case.name));
    let telemetry = || Telemetry::new(shape(case), case.queries);
    let empty = || Replay { case: case.name.clone(), steps: Vec::new(), telemetry: telemetry() };
    let mut replays: Vec<Replay> = entrants.iter().map(|_| empty()).collect();
    let mut left: Vec<usize> = (0..entrants.len()).collect();
    while let Some(&first) = left.first() {
        let Entrant { mirror, quant_group, unit, .. } = entrants[first];
        let (now, later): (Vec<_>, Vec<_>) = left.into_iter().partition(|&e| {
            let other = entrants[e];
            (other.mirror, other.quant_group, other.unit) == (mirror, quant_group, unit)
        });
        left = later;
        let policies: Vec<Policy> = now.iter().map(|&e| entrants[e].policy).collect();
        let mut run = Run::new(case, truth, scale, entrants[first], &policies, options)?;
        let first_query = case.queries - options.queries.unwrap_or(case.queries).min(case.queries);
        for i in first_query..case.queries {
            run.append_up_to(case.visible(i))?;
            for (place, &e) in now.iter().enumerate() {
                let step = run.step(place, i, audit, &mut replays[e].telemetry)?;
                replays[e].steps.push(step);
            }
        }
    }
    Ok(replays)
}

/// Geometry of a cache that holds a case.
fn shape(case: &Case) -> Shape {
    let dtype = match case.q {
        Elements::F16(_) => Dtype::F16,
        Elements::Bf16(_) => Dtype::Bf16,
    };
    Shape { layers: 1, q_heads: case.group, kv_heads: 1, head_dim: case.head_dim, dtype }
}

/// A cache that holds a case, and the plans of the entrants that share it.
struct Run<'a> {
    case: &'a Case,
    truth: &'a Truth,
    keep: bool,
    device: String,
    cache: KvCache,
    sequence: crate::SequenceId,
    plans: Vec<DecodePlan>,
    tokens: usize,
}

impl<'a> Run<'a> {
    fn new(
        case: &'a Case,
        truth: &'a Truth,
        scale: f32,
        Entrant { mirror, quant_group, unit, .. }: Entrant,
        policies: &[Policy],
        options: &ReplayOptions,
    ) -> Result<Run<'a>, EvalError> {
        let config = CacheConfig {
            capacity: Capacity::Tokens(case.context),
            max_sequences: 1,
            mirror,
            quant_group,
            unit,
            forced: options.forced,
            ..CacheConfig::default()
        };
        let failed = |what: String, source| EvalError::Run { case: case.name.clone(), what, source };
        let cache = KvCache::new(&options.device, shape(case), config);
        let mut cache = cache.map_err(|source| failed("making the cache".into(), source))?;
        let sequence = cache.add_sequence().map_err(|source| failed("adding the sequence".into(), source))?;
        let plans = policies.iter().map(|&policy| {
            DecodePlan::new(&cache, &[sequence], policy)
                .and_then(|plan| plan.with_scale(scale))
                .map(DecodePlan::with_record)
                .and_then(|plan| plan.with_tail(if policy.estimates_rest() { options.tail } else { 0.0 }))
                .and_then(|mut plan| plan.set_block_limits(&[options.limits]).map(|()| plan))
                .map_err(|source| failed(policy.to_string(), source))
        });
        let plans = plans.collect::<Result<_, _>>()?;
        let device = options.device.name().to_owned();
        Ok(Run { case, truth, keep: options.keep, device, cache, sequence, plans, tokens: 0 })
    }

    fn append_up_to(&mut self, tokens: usize) -> Result<(), EvalError> {
        let d = self.case.head_dim;
        let range = self.tokens * d..tokens * d;
        let (k, v) = (self.case.k.rows(range.clone()), self.case.v.rows(range));
        self.cache.append(self.sequence, 0, k, v).map_err(|source| EvalError::Run {
            case: self.case.name.clone(),
            what: format!("appending tokens {} to {tokens}", self.tokens),
            source,
        })?;
        self.tokens = tokens;
        Ok(())
    }

    fn step(
        &mut self,
        place: usize,
        i: usize,
        audit: Option<Audit>,
        telemetry: &mut Telemetry,
    ) -> Result<Step, EvalError> {
        let case = self.case;
        let (group, d) = (case.group, case.head_dim);
        let plan = &mut self.plans[place];
        let query = case.query(i);
        let (mut out, mut lse) = (vec![0.0f32; group * d], vec![0.0f32; group]);
        let start = Instant::now();
        let rows = query.rows(0..query.len());
        let failed = |what: &str| {
            let what = format!("{}, {what} {i}", plan.policy());
            move |source| EvalError::Run { case: case.name.clone(), what, source }
        };
        let (failed, not_observed, not_audited, not_bounded) = (
            failed("query"),
            failed("telemetry of query"),
            failed("audit of query"),
            failed("output bounds of query"),
        );
        plan.attend_with_lse(&mut self.cache, 0, rows, &mut out, &mut lse).map_err(failed)?;
        let time = start.elapsed();
        telemetry.observe(i as u64, plan, 0).map_err(not_observed)?;
        if let Some(audit) = audit {
            let audits = audit.check(i as u64, plan, &mut self.cache, 0, rows, &out, &lse);
            telemetry.add_audits(audits.map_err(not_audited)?);
        }

        let output_bound = match plan.policy() {
            Policy::Certified { .. } => plan.output_bounds(&mut self.cache, 0, &out).map_err(not_bounded)?,
            _ => vec![],
        };
        let report = plan.report();
        let selection = plan.selection(0, 0, 0).unwrap_or_default();
        let impossible = |what: String| EvalError::Selection {
            case: case.name.clone(),
            policy: plan.policy(),
            query: i,
            device: self.device.clone(),
            what,
        };
        let [head] = report.heads.as_slice() else {
            return Err(impossible(format!("{} KV heads", report.heads.len())));
        };
        check_selection(selection, head.blocks_read, layout::blocks(case.visible(i))).map_err(impossible)?;

        let rows = (0..group).map(|g| g * case.queries + i);
        let output_error = rows
            .clone()
            .zip(out.chunks_exact(d))
            .map(|(row, out)| relative_error(out, &case.out[row * d..][..d]))
            .collect();
        let missed_bound: Vec<f64> = head.missed_bound.iter().flatten().map(|&bound| bound as f64).collect();
        let lse_error = rows.zip(&lse).map(|(row, lse)| (*lse as f64 - case.lse[row] as f64).abs()).collect();
        Ok(Step {
            query: i,
            blocks_read: head.blocks_read,
            blocks_total: head.blocks_total,
            topups: head.topups,
            path: head.path,
            metadata_bytes: head.metadata_bytes,
            seen_bytes: case.visible(i) * 2 * d * Dtype::BYTES,
            missed: (0..group).map(|g| self.truth.missed(i, g, selection)).collect(),
            output_bound: relative(&output_bound, case, i),
            missed_bound,
            output_error,
            lse_error,
            time,
            selection: if self.keep { selection.to_vec() } else { Vec::new() },
            out: if self.keep { out } else { Vec::new() },
        })
    }
}

/// Bounds of `||o - o_dense||` relative to `||o_dense||`, by query head.
fn relative(bounds: &[f32], case: &Case, query: usize) -> Vec<f64> {
    let dense = |g: usize| &case.out[(g * case.queries + query) * case.head_dim..][..case.head_dim];
    let norm = |o: &[f32]| o.iter().map(|&x| (x as f64).powi(2)).sum::<f64>().sqrt();
    let relative = |(g, &bound): (usize, &f32)| bound as f64 / norm(dense(g)).max(f64::MIN_POSITIVE);
    bounds.iter().enumerate().map(relative).collect()
}

/// Checks that `selection` is `read` different blocks below `blocks`.
fn check_selection(selection: &[u32], read: usize, blocks: usize) -> Result<(), String> {
    if selection.len() != read {
        return Err(format!("{read} blocks but names {}", selection.len()));
    }
    let mut seen = vec![false; blocks];
    for &block in selection {
        match seen.get_mut(block as usize) {
            None => return Err(format!("block {block} of {blocks}")),
            Some(true) => return Err(format!("block {block} twice")),
            Some(seen) => *seen = true,
        }
    }
    Ok(())
}

/// ||a - b|| / ||b||; the norm of `a` itself where b is zero.
fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| *a as f64 - *b as f64));
    let size = norm(&mut b.iter().map(|b| *b as f64));
    if size > 0.0 { difference / size } else { difference }
}

#[cfg(test)]
mod tests;
