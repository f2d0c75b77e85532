//! What is true, in f64: dense attention, every block's exact mass, and the oracle's plan. The yardsticks
//! of evaluation.

use super::attend::{attend, scaled_queries};
use super::plan::{Limits, Plan};
use crate::store::HeadView;
use kernels_gpu::layout::BLOCK;
use kernels_gpu::numeric::fixed_mass;

/// Dense attention of a group. q: `[group, head_dim]`; returns outputs `[group][head_dim]` and lse `[group]`.
pub fn dense_f64(view: &HeadView<'_>, q: &[f32], scale: f32) -> (Vec<Vec<f64>>, Vec<f64>) {
    let all: Vec<u32> = (0..view.blocks() as u32).collect();
    attend(view, &all, &scaled_queries(q, scale), view.head_dim())
        .into_iter()
        .map(|sum| {
            let out = sum.o.iter().map(|o| if sum.l > 0.0 { o / sum.l } else { 0.0 }).collect::<Vec<f64>>();
            (out, (sum.m + sum.l.log2()) * std::f64::consts::LN_2)
        })
        .unzip()
}

/// log2 masses of all blocks `[group][blocks]` in f64. q: `[group, head_dim]`.
fn log_masses_f64(view: &HeadView<'_>, q: &[f32], scale: f32) -> Vec<Vec<f64>> {
    let queries = scaled_queries(q, scale);
    let mut masses = vec![Vec::with_capacity(view.blocks()); queries.len() / view.head_dim()];
    for b in 0..view.blocks() {
        let tokens = b * BLOCK..b * BLOCK + view.tokens_of_block(b);
        let keys: Vec<Vec<f64>> = tokens.map(|t| view.key_values(t).map(f64::from).collect()).collect();
        for (q, masses) in queries.chunks(view.head_dim()).zip(&mut masses) {
            let scores: Vec<f64> = keys.iter().map(|k| k.iter().zip(q).map(|(k, q)| k * q).sum()).collect();
            let m = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            masses.push(m + scores.iter().map(|t| (t - m).exp2()).sum::<f64>().log2());
        }
    }
    masses
}

/// log2 masses of all blocks `[group][blocks]`, computed in f64. q: `[group, head_dim]`.
pub fn log_masses(view: &HeadView<'_>, q: &[f32], scale: f32) -> Vec<Vec<f32>> {
    let as_f32 = |row: Vec<f64>| row.into_iter().map(|x| x as f32).collect();
    log_masses_f64(view, q, scale).into_iter().map(as_f32).collect()
}

/// Share of the softmax mass of every block `[group][blocks]`; each row sums to 1. q: `[group, head_dim]`.
pub fn true_masses(view: &HeadView<'_>, q: &[f32], scale: f32) -> Vec<Vec<f64>> {
    let mut rows = log_masses_f64(view, q, scale);
    for row in &mut rows {
        let m = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row.iter_mut().for_each(|x| *x = (*x - m).exp2());
        let total: f64 = row.iter().sum();
        row.iter_mut().for_each(|x| *x /= total);
    }
    rows
}

/// The oracle: forced blocks, then by the group's summed true mass; the smallest prefix in which every head
/// has `mass`.
pub fn plan(view: &HeadView<'_>, q: &[f32], scale: f32, limits: Limits, mass: f32) -> Plan {
    let masses = true_masses(view, q, scale);
    let blocks = view.blocks();
    let rank: Vec<f64> =
        (0..limits.units()).map(|u| masses.iter().flat_map(|row| &row[limits.blocks_of(u)]).sum()).collect();
    let mut units: Vec<usize> = (0..limits.units()).collect();
    units.sort_by(|&a, &b| {
        let key = |u: usize| (limits.forced_unit(u), if limits.forced_unit(u) { 0.0 } else { rank[u] });
        let ((fa, ra), (fb, rb)) = (key(a), key(b));
        fb.cmp(&fa).then(rb.total_cmp(&ra)).then(a.cmp(&b))
    });
    let order: Vec<u32> = units.into_iter().flat_map(|u| limits.blocks_of(u)).map(|b| b as u32).collect();
    let prefix = |row: &Vec<f64>| {
        let mut sum = 0.0;
        order
            .iter()
            .position(|&b| {
                sum += row[b as usize];
                sum >= mass as f64
            })
            .map_or(blocks, |i| i + 1)
    };
    let wanted = masses.iter().map(prefix).max().unwrap_or(0);
    let count = wanted.max(limits.floor).max(limits.forced_blocks()).min(blocks);
    let count = limits.whole_units(&order, count);
    if count == blocks {
        return Plan::identity(blocks, masses.len());
    }
    let log_mass = log_masses(view, q, scale);
    let peak: Vec<f32> =
        log_mass.iter().map(|row| row.iter().copied().fold(f32::NEG_INFINITY, f32::max)).collect();
    let unread = |(row, &peak): (&Vec<f32>, &f32)| {
        order[count..].iter().map(|&b| fixed_mass(row[b as usize], peak) as u64).sum()
    };
    let rest = log_mass.iter().zip(&peak).map(unread).collect();
    Plan { order, count, peak, rest }
}
