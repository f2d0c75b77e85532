//! merge: the splits in fixed order, the stop test on the exact mass, top-ups while it fails, the results.

use super::Step;
use super::attend::{Part, attend_blocks, place_of};
use super::isa::per_isa;
use super::lanes::Lanes;
use super::plan::{LogMass, Planned};
use crate::certificate;
use crate::reference::merge::enough_exactly;
use kernels_gpu::layout::{MAX_GROUP, TOPUP_CHUNK};
use kernels_gpu::numeric::{believed_mass, exp2, fixed_mass, fma, log2, relative_mass, rest_mass};
use kernels_gpu::stop::{Threshold, verdict};

/// When to stop.
#[derive(Clone, Copy)]
pub(super) struct Stop<'a> {
    /// Share of the mass to reach; 0 switches the test off.
    pub mass: f32,
    /// Most blocks to read.
    pub limit: usize,
    /// Where the share is to be certain: by how much scores may be off; masses are then upper bounds.
    pub rounding: Option<&'a [f32; MAX_GROUP]>,
}

/// Where the results of one (sequence, KV head) go.
pub(super) struct Results<'a> {
    /// `[group, head_dim]`
    pub out: &'a mut [f32],
    /// `[group]`
    pub lse: &'a mut [f32],
    /// `[group]`
    pub mass: &'a mut [f32],
    /// Blocks, top-ups.
    pub read: &'a mut [u32],
}

/// Merges the parts, tops up, and writes the results.
pub(super) fn merge(
    step: Step<'_>,
    parts: &[Part],
    planned: Planned,
    order: &[u32],
    log_mass: LogMass<'_>,
    stop: Stop<'_>,
    results: Results<'_>,
) {
    let group = step.queries.group;
    let d = step.view.head_dim();
    let Planned { mut count, peak, mut rest } = planned;
    let mut state = combine(step, parts.iter());
    let mut topups = 0;
    let blocks = step.view.blocks();
    // The certain mass of a head.
    let certain = |z: f32, rest: u64, g: usize, count: usize| {
        let rounding = stop.rounding.map(|rounding| rounding[g])?;
        Some(1.0 - certificate::missed(z as f64, rest, blocks - count, count, rounding))
    };
    while count < stop.limit {
        let satisfied = (0..group).all(|g| {
            let z = relative_mass(state.m[g], state.l[g], peak[g]);
            match certain(z, rest[g], g, count) {
                Some(mass) => mass >= stop.mass as f64,
                None => verdict(z, rest[g], stop.mass).unwrap_or_else(|| {
                    let threshold = Threshold::new(peak[g], rest[g], stop.mass);
                    enough_exactly(&step.view, &order[..count], &step.queries.scaled[g * d..][..d], threshold)
                }),
            }
        });
        if satisfied {
            break;
        }
        let chunk = &order[count..(count + TOPUP_CHUNK).min(stop.limit)];
        let more = attend_blocks(step, chunk, 1);
        state = combine(step, [&state, &more].into_iter());
        for (g, rest) in rest[..group].iter_mut().enumerate() {
            let row = log_mass.head(g);
            *rest -= chunk.iter().map(|&b| fixed_mass(row[b as usize], peak[g]) as u64).sum::<u64>();
        }
        count += chunk.len();
        topups += 1;
    }

    for g in 0..group {
        let (m, l) = (state.m[g], state.l[g]);
        let inverse = if l > 0.0 { 1.0 / l } else { 0.0 };
        for (c, out) in results.out[g * d..][..d].iter_mut().enumerate() {
            *out = state.o[g * d + place_of(step.view.dtype(), c)] * inverse;
        }
        results.lse[g] = if l > 0.0 { (m + log2(l)) * std::f32::consts::LN_2 } else { f32::NEG_INFINITY };
        let z = relative_mass(m, l, peak[g]);
        results.mass[g] = match certain(z, rest[g], g, count) {
            Some(mass) => -certificate::round_up(-mass),
            None => believed_mass(z, rest_mass(rest[g])),
        };
    }
    results.read[0] = count as u32;
    results.read[1] = topups;
}

/// The sum of parts, in order, relative to the largest maximum.
fn combine<'p>(step: Step<'_>, parts: impl Iterator<Item = &'p Part> + Clone) -> Part {
    let d = step.view.head_dim();
    let mut sum = Part::new(step.queries);
    for g in 0..step.queries.group {
        for part in parts.clone() {
            sum.m[g] = if part.m[g] > sum.m[g] { part.m[g] } else { sum.m[g] };
        }
        for part in parts.clone() {
            let weight = exp2(part.m[g] - sum.m[g]);
            sum.l[g] = fma(part.l[g], weight, sum.l[g]);
            add_scaled(step.isa, &part.o[g * d..][..d], weight, &mut sum.o[g * d..][..d]);
        }
    }
    sum
}

per_isa! {
    fn add_scaled[][](from: &[f32], weight: f32, to: &mut [f32]) = add_scaled_body;
}

#[inline(always)]
fn add_scaled_body<L: Lanes>(from: &[f32], weight: f32, to: &mut [f32]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = fma(from, weight, *to);
    }
}
