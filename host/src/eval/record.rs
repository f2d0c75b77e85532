//! The summary of a replay: the record that `psa eval` prints. Its JSON field names are a contract.

use std::time::Duration;

use serde::Serialize;

use super::{Entrant, Replay, Stats, Step};
use crate::telemetry::{AuditRecord, Telemetry};
use crate::{Dtype, MirrorFormat, Path, Policy, Shape};

/// Summary of one entrant on one case, or on all.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// Name of the case, or `all`.
    pub case: String,
    /// The policy as written on the command line.
    pub policy: String,
    /// As on the command line; none where the policy looks at no mirror.
    pub mirror: Option<String>,
    /// Tokens of a quantisation group.
    pub quant_group: usize,
    /// Tokens that are selected together.
    pub unit: usize,
    /// Bytes of the mirror kept / bytes of K and V; what is read of it is `metadata_fraction`.
    pub stored_fraction: f64,
    /// Device.
    pub backend: String,
    /// Decode steps.
    pub queries: usize,
    /// Blocks read, over all steps.
    pub blocks_read: usize,
    /// Blocks seen, over all steps.
    pub blocks_total: usize,
    /// `blocks_read / blocks_total`.
    pub kv_fraction: f64,
    /// Mirror bytes read / bytes of K and V seen (2 bytes an element).
    pub metadata_fraction: f64,
    /// `kv_fraction + metadata_fraction`: what is read, dense = 1.
    pub bytes_fraction: f64,
    /// Share of the exact softmax mass that was not read, over steps and query heads.
    pub missed_mass: Stats,
    /// ||o - o_dense|| / ||o_dense||, over steps and query heads.
    pub output_error: Stats,
    /// |lse - lse_dense|, over steps and query heads.
    pub lse_error: LseError,
    /// Share of steps that read on after the plan.
    pub topup_fraction: f64,
    /// Share of steps that read everything without a top-up: dense, short contexts, and plans of everything.
    pub identity_fraction: f64,
    /// By `certified`: share of (step, query head) whose bound closed before everything was read. Null for
    /// other policies.
    pub certified_fraction: Option<f64>,
    /// By `certified`: the largest share of the mass that can have been missed.
    pub missed_bound: Option<Stats>,
    /// By `certified`: the bound of the output error.
    pub output_bound: Option<Stats>,
    /// By `certified`: (step, query head) whose true missed mass is above its bound. Anything but 0 is a bug.
    pub bound_violations: Option<usize>,
    /// What an audit found; null where there was none.
    pub audit: Option<AuditSummary>,
    /// Sum of the times of all decode steps, appends not counted, in milliseconds. Cases run side by side,
    /// so it is neither the time that passed nor a benchmark.
    pub wall_ms: f64,
}

/// Error of the logarithm of the sum of exponentials.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LseError {
    /// Maximum of the absolute value.
    pub max: f64,
}

/// Audits of a replay: dense attention recomputed from the cache for a sample of the steps.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct AuditSummary {
    /// (Step, query head) pairs audited.
    pub heads: usize,
    /// Share of the mass that the policy believed missed; under `certified` its bound.
    pub believed_missed: Stats,
    /// Share truly missed.
    pub missed_mass: Stats,
    /// ||o - o_dense|| / ||o_dense||.
    pub output_error: Stats,
    /// Share of the pairs that missed more than was believed.
    pub underestimated: f64,
}

impl AuditSummary {
    fn of<'a>(audits: impl Iterator<Item = &'a AuditRecord> + Clone) -> Option<AuditSummary> {
        let all = |values: fn(&AuditRecord) -> &[f64]| {
            audits.clone().flat_map(values).copied().collect::<Vec<f64>>()
        };
        let missed = all(|audit| &audit.true_missed);
        let above: usize = audits.clone().map(AuditRecord::underestimated).sum();
        (!missed.is_empty()).then(|| AuditSummary {
            heads: missed.len(),
            believed_missed: Stats::of(&all(|audit| &audit.believed_missed)),
            missed_mass: Stats::of(&missed),
            output_error: Stats::of(&all(|audit| &audit.output_error)),
            underestimated: above as f64 / missed.len() as f64,
        })
    }
}

impl Record {
    /// Of one case.
    pub fn of_case(entrant: Entrant, backend: &str, replay: &Replay) -> Record {
        let summary = summary(&replay.case, entrant, backend, replay.steps.iter());
        Record { audit: AuditSummary::of(replay.telemetry.audits()), ..summary }
    }

    /// Of all cases together.
    pub fn of_all(entrant: Entrant, backend: &str, replays: &[Replay]) -> Record {
        let summary = summary("all", entrant, backend, replays.iter().flat_map(|replay| &replay.steps));
        let audits = replays.iter().map(|replay| &replay.telemetry).flat_map(Telemetry::audits);
        Record { audit: AuditSummary::of(audits), ..summary }
    }
}

fn summary<'a>(
    case: &str,
    entrant: Entrant,
    backend: &str,
    steps: impl Iterator<Item = &'a Step> + Clone,
) -> Record {
    let sum = |value: fn(&Step) -> usize| steps.clone().map(value).sum::<usize>();
    let all = |values: fn(&Step) -> &[f64]| steps.clone().flat_map(values).copied().collect::<Vec<f64>>();
    let share = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };

    let queries = steps.clone().count();
    let (blocks_read, blocks_total) = (sum(|s| s.blocks_read), sum(|s| s.blocks_total));
    let kv_fraction = share(blocks_read, blocks_total);
    let metadata_fraction = share(sum(|s| s.metadata_bytes), sum(|s| s.seen_bytes));
    let certifies = matches!(entrant.policy, Policy::Certified { .. });
    let heads = steps.clone().map(|s| s.missed_bound.len()).sum::<usize>();
    let closed = |s: &Step| if s.blocks_read < s.blocks_total { s.missed_bound.len() } else { 0 };
    // The yardstick itself is f64 arithmetic: a sum of n masses is off by n u.
    let above = |s: &Step| {
        let pairs = s.missed.iter().zip(&s.missed_bound);
        pairs.filter(|(missed, bound)| **missed > **bound + 1e-12).count()
    };
    let stored = MirrorFormat { mirror: entrant.mirror, group: entrant.quant_group };
    // The fraction does not depend on head_dim where a page holds a multiple of it; 64 stands for both.
    let shape = Shape { layers: 1, q_heads: 1, kv_heads: 1, head_dim: 64, dtype: Dtype::F16 };
    Record {
        case: case.to_owned(),
        policy: entrant.policy.to_string(),
        mirror: entrant.ranks_by().map(|mirror| mirror.to_string()),
        quant_group: entrant.quant_group,
        unit: entrant.unit,
        stored_fraction: entrant.ranks_by().map_or(0.0, |_| stored.stored_fraction(&shape)),
        backend: backend.to_owned(),
        queries,
        blocks_read,
        blocks_total,
        kv_fraction,
        metadata_fraction,
        bytes_fraction: kv_fraction + metadata_fraction,
        missed_mass: Stats::of(&all(|s| &s.missed)),
        output_error: Stats::of(&all(|s| &s.output_error)),
        lse_error: LseError { max: Stats::of(&all(|s| &s.lse_error)).max },
        topup_fraction: share(sum(|s| usize::from(s.topups > 0)), queries),
        identity_fraction: share(
            sum(|s| usize::from(matches!(s.path, Path::Dense | Path::Identity))),
            queries,
        ),
        certified_fraction: certifies.then(|| share(steps.clone().map(closed).sum(), heads)),
        missed_bound: certifies.then(|| Stats::of(&all(|s| &s.missed_bound))),
        output_bound: certifies.then(|| Stats::of(&all(|s| &s.output_bound))),
        bound_violations: certifies.then(|| steps.clone().map(above).sum()),
        audit: None,
        wall_ms: steps.map(|s| s.time).sum::<Duration>().as_secs_f64() * 1e3,
    }
}
