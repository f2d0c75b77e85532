//! The summary of a replay: the record that `psa eval` prints. Its JSON field names are a contract.

use std::time::Duration;

use serde::Serialize;

use super::{Entrant, Replay, Stats, Step};

/// Summary of one entrant on one case, or on all.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// Name of the case, or `all`.
    pub case: String,
    /// The policy as written on the command line.
    pub policy: String,
    /// `2`, `4` or `box`; none where the policy looks at no mirror.
    pub mirror: Option<String>,
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
    /// Share of steps with a certified bound; none, because no policy of this version certifies one.
    pub certified_fraction: Option<f64>,
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

impl Record {
    /// Of one case.
    pub fn of_case(entrant: Entrant, backend: &str, replay: &Replay) -> Record {
        summary(&replay.case, entrant, backend, replay.steps.iter())
    }

    /// Of all cases together.
    pub fn of_all(entrant: Entrant, backend: &str, replays: &[Replay]) -> Record {
        summary("all", entrant, backend, replays.iter().flat_map(|replay| &replay.steps))
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
    Record {
        case: case.to_owned(),
        policy: entrant.policy.to_string(),
        mirror: entrant.ranks_by().map(|mirror| mirror.to_string()),
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
        certified_fraction: None,
        wall_ms: steps.map(|s| s.time).sum::<Duration>().as_secs_f64() * 1e3,
    }
}
