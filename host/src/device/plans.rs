//! The launches of `plan`: one CTA a row up to [`RUN`] blocks, six launches beyond.
//!
//! Both give the same plan, bit for bit, so which one runs depends on the batch's longest sequence and nothing else
//! does.

use kernels_gpu::layout::BLOCK;
use kernels_gpu::plan::{self, RUN};
use kernels_gpu::plan_long::{self, MAX_RUNS, PLACED, runs};
use psa_codegen::{DeviceLimits, Hint, Launch, LaunchError, Region};

use super::launches::BatchAddresses;

/// Memory of a plan; every buffer as in docs/kernels.md.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // The names of docs/kernels.md.
pub struct PlanAddresses {
    pub log_mass: Region,
    pub budget: Region,
    pub order: Region,
    pub count: Region,
    pub peak: Region,
    pub rest: Region,
    /// Of rows beyond [`RUN`] blocks only.
    pub scratch: PlanScratch,
}

/// What the passes over long rows leave for each other. Empty regions where no row is long.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlanScratch {
    /// u64 `[batch, kv_heads, max_blocks]`.
    pub keys: Region,
    /// f32 `[batch, kv_heads, MAX_RUNS, group]`.
    pub run_peak: Region,
    /// u64 `[batch, kv_heads, MAX_RUNS, group]`.
    pub run_mass: Region,
}

impl PlanScratch {
    /// Bytes of `keys`, `run_peak` and `run_mass`; zeros where the longest sequence, of `max_tokens` tokens, is not long.
    pub const fn bytes(rows: usize, group: usize, max_blocks: usize, max_tokens: usize) -> [usize; 3] {
        if max_tokens.div_ceil(BLOCK) <= RUN {
            return [0; 3];
        }
        [8 * rows * max_blocks, 4 * rows * MAX_RUNS * group, 8 * rows * MAX_RUNS * group]
    }
}

/// The rows of a plan.
#[derive(Clone, Copy, Debug)]
pub struct PlanShape {
    /// KV heads.
    pub kv_heads: usize,
    /// Query heads of each.
    pub group: usize,
    /// Width of a row.
    pub max_blocks: usize,
}

/// What a plan by rank is asked for.
#[derive(Clone, Copy, Debug)]
pub struct PlanGoal {
    /// Fixed-point target of the prediction; 0: the budget alone.
    pub target: u32,
    /// Blocks at the beginning that are always read.
    pub sink: usize,
    /// Blocks at the end that are always read.
    pub recent: usize,
}

/// The launches of a plan by rank.
///
/// # Errors
/// [`LaunchError`] for a row beyond what the kernels hold, and for memory that is too small for the shape.
pub fn ranked(
    limits: &DeviceLimits,
    shape: PlanShape,
    batch: &BatchAddresses,
    a: &PlanAddresses,
    goal: PlanGoal,
) -> Result<Vec<Launch>, LaunchError> {
    if batch.max_tokens.div_ceil(BLOCK) <= RUN {
        Ok(vec![in_one(limits, shape, batch, a, goal)?])
    } else {
        in_passes(shape, batch, a, goal)
    }
}

/// The launch that plans a row in one CTA.
///
/// # Errors
/// As [`ranked`]; a row longer than [`RUN`] blocks has no kernel.
pub fn in_one(
    limits: &DeviceLimits,
    shape: PlanShape,
    batch: &BatchAddresses,
    a: &PlanAddresses,
    goal: PlanGoal,
) -> Result<Launch, LaunchError> {
    let blocks = batch.max_tokens.div_ceil(BLOCK);
    let choice = plan::plan::select(plan::plan::Shape { blocks }, limits, Hint::None)?;
    let args = plan::plan::Args {
        log_mass: a.log_mass.input(),
        lens: batch.lens(),
        budget: a.budget.input(),
        order: a.order.output(),
        count: a.count.output(),
        peak: a.peak.output(),
        rest: a.rest.output(),
        target: goal.target,
        sink: goal.sink as u32,
        recent: goal.recent as u32,
        kv_heads: shape.kv_heads as u32,
        group: shape.group as u32,
        max_blocks: shape.max_blocks as u32,
    };
    Ok(choice.launch([shape.kv_heads as u32, batch.batch as u32, 1], args)?)
}

/// The launches that plan rows of any length, in order.
///
/// # Errors
/// As [`ranked`].
pub fn in_passes(
    shape: PlanShape,
    batch: &BatchAddresses,
    a: &PlanAddresses,
    goal: PlanGoal,
) -> Result<Vec<Launch>, LaunchError> {
    let (kv_heads, group, max_blocks) = (shape.kv_heads as u32, shape.group as u32, shape.max_blocks as u32);
    let (sink, recent, target) = (goal.sink as u32, goal.recent as u32, goal.target);
    let (heads, entries) = (kv_heads, batch.batch as u32);
    // A batch without tokens has a plan too: of nothing.
    let blocks = batch.max_tokens.div_ceil(BLOCK).max(1);
    let s = &a.scratch;
    let (log_mass, lens) = (a.log_mass.input(), batch.lens());
    let by_run = [runs(blocks) as u32, heads, entries];
    let tiles = [blocks.div_ceil(PLACED) as u32, heads, entries];
    Ok(vec![
        plan_long::plan_peaks::launch(
            by_run,
            plan_long::plan_peaks::Args {
                log_mass,
                lens,
                run_peak: s.run_peak.output(),
                kv_heads,
                group,
                max_blocks,
            },
        )?,
        plan_long::plan_totals::launch(
            by_run,
            plan_long::plan_totals::Args {
                log_mass,
                lens,
                run_peak: s.run_peak.input(),
                peak: a.peak.output(),
                run_mass: s.run_mass.output(),
                kv_heads,
                group,
                max_blocks,
            },
        )?,
        plan_long::plan_runs::launch(
            by_run,
            plan_long::plan_runs::Args {
                log_mass,
                lens,
                peak: a.peak.input(),
                run_mass: s.run_mass.input(),
                keys: s.keys.output(),
                sink,
                recent,
                kv_heads,
                group,
                max_blocks,
            },
        )?,
        plan_long::plan_places::launch(
            tiles,
            plan_long::plan_places::Args {
                keys: s.keys.input(),
                lens,
                order: a.order.output(),
                kv_heads,
                max_blocks,
            },
        )?,
        plan_long::plan_sums::launch(
            by_run,
            plan_long::plan_sums::Args {
                log_mass,
                lens,
                order: a.order.input(),
                peak: a.peak.input(),
                run_mass: s.run_mass.output(),
                kv_heads,
                group,
                max_blocks,
            },
        )?,
        plan_long::plan_count::launch(
            [heads, entries, 1],
            plan_long::plan_count::Args {
                log_mass,
                lens,
                budget: a.budget.input(),
                peak: a.peak.input(),
                run_mass: s.run_mass.input(),
                order: a.order.in_out(),
                count: a.count.output(),
                rest: a.rest.output(),
                target,
                sink,
                recent,
                kv_heads,
                group,
                max_blocks,
            },
        )?,
    ])
}
