//! merge: the stop test on the exact mass, top-ups while it fails, and the results. In f64.
//!
//! The test is `progressive`'s (exact mass against the estimated rest) or `certified`'s (against a bound of the
//! rest, see [`crate::certificate`]); without one nothing is topped up.

use super::attend::{HeadSum, attend};
use super::plan::Plan;
use crate::certificate;
use crate::store::HeadView;
use kernels_gpu::layout::{BLOCK, TOPUP_CHUNK};
use kernels_gpu::numeric::{LOG2_E, MASS_BITS, fixed_mass};
use kernels_gpu::stop::{Threshold, verdict};

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub struct Stop<'a> {
    /// Share of the mass to reach; 0 switches the test off.
    pub mass: f32,
    /// Most blocks to read.
    pub limit: usize,
    /// Where the share is to be certain: by how much scores may be off `[group]`. The plan's masses are then
    /// upper bounds.
    pub rounding: Option<&'a [f32]>,
}

/// The result of one (sequence, KV head).
#[derive(Clone, Debug)]
pub struct Merged {
    /// Query heads of the group.
    pub heads: Vec<HeadResult>,
    /// Blocks read.
    pub blocks_read: usize,
    /// Chunks read after the plan.
    pub topups: usize,
}

/// The result of one query head.
#[derive(Clone, Debug)]
pub struct HeadResult {
    /// Output `[head_dim]`.
    pub out: Vec<f64>,
    /// Natural logarithm of the sum of exponentials.
    pub lse: f64,
    /// Share of the mass believed read.
    pub mass: f64,
}

/// Exact mass read and estimated rest of a head, in units of its largest estimated block mass.
fn masses(sum: &HeadSum, peak: f32, rest: u64) -> (f64, f64) {
    // Beyond 2^60 times the largest estimate the ratio means "more than any rest".
    let z = if sum.l > 0.0 { sum.l * (sum.m - peak as f64).min(60.0).exp2() } else { 0.0 };
    (z, rest as f64 / (1u64 << MASS_BITS) as f64)
}

/// Whether the blocks hold the threshold's mass for a head, in the arithmetic that has one result
/// (`kernels_gpu::stop`). scaled: `[head_dim]`, `(q * scale) * LOG2_E` in f32.
pub(crate) fn enough_exactly(
    view: &HeadView<'_>,
    blocks: &[u32],
    scaled: &[f32],
    threshold: Threshold,
) -> bool {
    let tokens = blocks.iter().flat_map(|&b| {
        let b = b as usize;
        b * BLOCK..b * BLOCK + view.tokens_of_block(b)
    });
    let shares = tokens.map(|t| {
        let score = view.key_values(t).zip(scaled).fold(0.0, |score, (k, &q)| Threshold::add(score, q, k));
        threshold.share(score)
    });
    shares.sum::<u64>() >= Threshold::ENOUGH
}

/// Tops up what was read by the plan, and finishes. q: `[group, head_dim]`, as given; queries: the same in the
/// log2 domain; log_mass: `[group][blocks]`, what the plan was made from.
#[allow(clippy::too_many_arguments)]
pub fn merge(
    view: &HeadView<'_>,
    (q, scale): (&[f32], f32),
    queries: &[f64],
    head_dim: usize,
    plan: &Plan,
    log_mass: &[Vec<f32>],
    mut read: Vec<HeadSum>,
    stop: Stop<'_>,
) -> Merged {
    let mut rest = plan.rest.clone();
    let (mut count, mut topups) = (plan.count, 0);
    // Certain or believed mass of a head.
    let certain = |sum: &HeadSum, g: usize, rest: u64, count: usize| {
        let rounding = stop.rounding.map(|r| r[g])?;
        let (z, _) = masses(sum, plan.peak[g], rest);
        Some(1.0 - certificate::missed(z, rest, plan.order.len() - count, count, rounding))
    };
    while count < stop.limit {
        let enough = (0..read.len()).all(|g| match certain(&read[g], g, rest[g], count) {
            Some(mass) => mass >= stop.mass as f64,
            None => {
                let (z, _) = masses(&read[g], plan.peak[g], rest[g]);
                verdict(z as f32, rest[g], stop.mass).unwrap_or_else(|| {
                    let scaled: Vec<f32> =
                        q[g * head_dim..][..head_dim].iter().map(|q| q * scale * LOG2_E).collect();
                    let threshold = Threshold::new(plan.peak[g], rest[g], stop.mass);
                    enough_exactly(view, &plan.order[..count], &scaled, threshold)
                })
            }
        });
        if enough {
            break;
        }
        let chunk = &plan.order[count..(count + TOPUP_CHUNK).min(stop.limit)];
        for (g, more) in attend(view, chunk, queries, head_dim).iter().enumerate() {
            read[g].add(more);
            rest[g] -=
                chunk.iter().map(|&b| fixed_mass(log_mass[g][b as usize], plan.peak[g]) as u64).sum::<u64>();
        }
        count += chunk.len();
        topups += 1;
    }
    let heads = read
        .iter()
        .enumerate()
        .map(|(g, sum)| {
            let certain = certain(sum, g, rest[g], count);
            let (z, rest) = masses(sum, plan.peak[g], rest[g]);
            HeadResult {
                out: sum.o.iter().map(|o| if sum.l > 0.0 { o / sum.l } else { 0.0 }).collect(),
                lse: (sum.m + sum.l.log2()) * std::f64::consts::LN_2,
                mass: certain.unwrap_or(if rest > 0.0 { z / (z + rest) } else { 1.0 }),
            }
        })
        .collect();
    Merged { heads, blocks_read: count, topups }
}
