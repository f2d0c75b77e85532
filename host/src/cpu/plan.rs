//! plan: ranking and count, with the reference's bits. The fixed-point masses are computed once.

use super::isa::{Isa, per_isa};
use super::lanes::Lanes;
use crate::reference::plan::{Limits, Plan};
use kernels_gpu::layout::MAX_GROUP;
use kernels_gpu::numeric::{TARGET_BITS, block_of_key, fixed_mass, fma, needed_mass, rank_key, reciprocal};

/// log2 masses `[group, width]`.
#[derive(Clone, Copy)]
pub(super) struct LogMass<'a> {
    pub rows: &'a [f32],
    pub width: usize,
    pub group: usize,
}

impl<'a> LogMass<'a> {
    pub(super) fn head(&self, g: usize) -> &'a [f32] {
        &self.rows[g * self.width..][..self.width]
    }
}

/// A plan whose order lies in a buffer of the backend's.
#[derive(Clone, Copy)]
pub(super) struct Planned {
    /// Blocks of the order to read.
    pub count: usize,
    /// Largest log2 mass, per query head.
    pub peak: [f32; MAX_GROUP],
    /// Fixed-point mass that is not planned, per query head.
    pub rest: [u64; MAX_GROUP],
}

impl Planned {
    /// The same plan, its order copied to `order`.
    pub(super) fn from_reference(plan: &Plan, order: &mut [u32]) -> Planned {
        let mut planned = Planned { count: plan.count, peak: [0.0; MAX_GROUP], rest: [0; MAX_GROUP] };
        order[..plan.order.len()].copy_from_slice(&plan.order);
        planned.peak[..plan.peak.len()].copy_from_slice(&plan.peak);
        planned.rest[..plan.rest.len()].copy_from_slice(&plan.rest);
        planned
    }
}

/// Everything, in order.
pub(super) fn identity(blocks: usize, order: &mut [u32]) -> Planned {
    order[..blocks].iter_mut().enumerate().for_each(|(b, to)| *to = b as u32);
    Planned { count: blocks, peak: [0.0; MAX_GROUP], rest: [0; MAX_GROUP] }
}

/// As [`crate::reference::plan::Goal`].
#[derive(Clone, Copy)]
pub(super) enum Goal<'a> {
    /// The budget.
    Budget,
    /// A share of every head's estimated mass.
    Estimated(u32),
    /// A share of the estimated mass read and the bound of the rest.
    Certain(u32, LogMass<'a>),
}

impl Goal<'_> {
    /// [`Goal::Estimated`], or the budget where the target is 0.
    pub(super) fn of_target(target: u32) -> Goal<'static> {
        if target == 0 { Goal::Budget } else { Goal::Estimated(target) }
    }
}

/// As [`crate::reference::plan::plan`].
pub(super) fn plan(
    isa: Isa,
    log_mass: LogMass<'_>,
    limits: Limits,
    goal: Goal<'_>,
    budget: u32,
    order: &mut [u32],
) -> Planned {
    let blocks = kernels_gpu::layout::blocks(limits.tokens);
    let group = log_mass.group;
    let mut planned = Planned { count: 0, peak: [0.0; MAX_GROUP], rest: [0; MAX_GROUP] };
    let mut total = [0u64; MAX_GROUP];
    // [group, blocks]
    let mut masses = vec![0u32; group * blocks];
    let unit = limits.unit;
    let mut ranks = vec![0.0f32; limits.units()];
    // Of units with more than one block.
    let mut sums = vec![0u64; if unit > 1 { limits.units() } else { 0 }];
    if blocks > 0 {
        for (g, masses) in masses.chunks_mut(blocks).enumerate() {
            (planned.peak[g], total[g]) = fixed_masses(isa, &log_mass.head(g)[..blocks], masses);
            let inverse = reciprocal(total[g] as f32);
            if unit == 1 {
                add_shares(isa, masses, inverse, &mut ranks);
            } else {
                for (sum, masses) in sums.iter_mut().zip(masses.chunks(unit)) {
                    *sum = masses.iter().map(|&mass| mass as u64).sum();
                }
                for (rank, &sum) in ranks.iter_mut().zip(&sums) {
                    *rank = fma(sum as f32, inverse, *rank);
                }
            }
        }
    }
    let mass = |g: usize, b: u32| masses[g * blocks + b as usize] as u64;

    let mut keys: Vec<u64> =
        ranks.iter().enumerate().map(|(u, &rank)| rank_key(limits.forced_unit(u), rank, u as u32)).collect();
    keys.sort_unstable_by(|a, b| b.cmp(a));
    let ranked = keys.into_iter().flat_map(|key| limits.blocks_of(block_of_key(key) as usize));
    for (to, block) in order.iter_mut().zip(ranked) {
        *to = block as u32;
    }
    let order = &mut order[..blocks];

    let budget = budget as usize;
    let prefix = |g: usize| {
        let mut sum = 0u64;
        let reached = match goal {
            Goal::Budget => return budget,
            Goal::Estimated(target) => {
                let needed = needed_mass(total[g], target);
                order.iter().position(|&b| {
                    sum += mass(g, b);
                    sum >= needed
                })
            }
            Goal::Certain(target, estimate) => {
                let (estimate, peak, mut rest) = (estimate.head(g), planned.peak[g], total[g]);
                order.iter().position(|&b| {
                    sum += fixed_mass(estimate[b as usize], peak) as u64;
                    rest -= mass(g, b);
                    sum * ((1 << TARGET_BITS) - target) as u64 >= rest * target as u64
                })
            }
        };
        reached.map_or(blocks, |i| i + 1)
    };
    let wanted = (0..group).map(prefix).max().unwrap_or(0).min(budget);
    let wanted = wanted.max(limits.floor).max(limits.forced_blocks()).min(blocks);
    planned.count = limits.whole_units(order, wanted);
    for (g, rest) in planned.rest[..group].iter_mut().enumerate() {
        *rest = total[g] - order[..planned.count].iter().map(|&b| mass(g, b)).sum::<u64>();
    }
    if planned.count == blocks {
        identity(blocks, order);
    }
    planned
}

per_isa! {
    /// Peak and total; masses relative to the peak.
    fn fixed_masses[][](log_mass: &[f32], masses: &mut [u32]) -> (f32, u64) = fixed_masses_body;
}

#[inline(always)]
fn fixed_masses_body<L: Lanes>(log_mass: &[f32], masses: &mut [u32]) -> (f32, u64) {
    let mut peak = f32::NEG_INFINITY;
    for &x in log_mass {
        peak = if x > peak { x } else { peak };
    }
    let mut total = 0u64;
    for (to, &x) in masses.iter_mut().zip(log_mass) {
        *to = fixed_mass(x, peak);
    }
    for &mass in masses.iter() {
        total += mass as u64;
    }
    (peak, total)
}

per_isa! {
    /// Adds each block's share of a head's mass to its rank.
    fn add_shares[][](masses: &[u32], inverse: f32, ranks: &mut [f32]) = add_shares_body;
}

#[inline(always)]
fn add_shares_body<L: Lanes>(masses: &[u32], inverse: f32, ranks: &mut [f32]) {
    for (rank, &mass) in ranks.iter_mut().zip(masses) {
        *rank = fma(mass as f32, inverse, *rank);
    }
}
