//! score: the log2 mass of every block for every query head, estimated from the mirror pages; exact for the open
//! group. Defined bit by bit: the order of every addition here and in [`crate::estimator`] is part of the definition.
//!
//! Where the estimator has a second look, a block gets it if for any head its first estimate, raised by
//! [`DOUBT`] standard deviations (or, where a bound is asked for, by its bound), exceeds [`NEGLIGIBLE`] (or
//! [`NEGLIGIBLE_BOUND`]) of the head's mean.

use crate::estimator::{Bound, Estimator, FUNCTIONS, ROUNDING, block_mass, upper};
use crate::store::HeadView;
use kernels_gpu::layout::BLOCK;
use kernels_gpu::numeric::{
    DOUBT, LOG2_E, NEGLIGIBLE, NEGLIGIBLE_BOUND, finite_score, fixed_mass, fma, look_threshold, matters,
};

/// What is known about the blocks of one (sequence, KV head).
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Estimated log2 masses `[group][blocks]`.
    pub log_mass: Vec<Vec<f32>>,
    /// Upper bounds of them `[group][blocks]`; empty where not asked for.
    pub bound: Vec<Vec<f32>>,
    /// By so much any exact score in f32 may be off `[group]`; empty where not asked for.
    pub rounding: Vec<f32>,
    /// Mirror bytes read.
    pub metadata: usize,
}

/// Scores all blocks for the query heads `[group, head_dim]`; `bounds`: also how far the truth may lie above.
pub fn score(view: &HeadView<'_>, estimator: &dyn Estimator, q: &[f32], scale: f32, bounds: bool) -> Scored {
    let (d, blocks) = (view.head_dim(), view.blocks());
    let queries: Vec<Vec<f32>> =
        q.chunks(d).map(|q| q.iter().map(|&x| x * scale * LOG2_E).collect()).collect();
    let format = view.format();
    let mut log_mass: Vec<Vec<f32>> = queries.iter().map(|q| first_look(view, estimator, q)).collect();
    let page_bounds: Vec<Vec<Bound>> = if bounds {
        let of = |q: &Vec<f32>| (0..view.full_groups()).map(|g| estimator.bound(view.page(g), q)).collect();
        queries.iter().map(of).collect()
    } else {
        vec![]
    };
    let mut metadata = view.full_groups() * format.first_bytes(d);
    let mut fine = vec![false; blocks];
    if format.fine_bytes(d) > 0 {
        for (g, query) in queries.iter().enumerate() {
            let threshold = threshold(&log_mass[g], bounds);
            for group in 0..view.full_groups() {
                let doubt = match page_bounds.get(g) {
                    Some(bounds) => bounds[group].slack,
                    None => DOUBT * estimator.spread(view.page(group), query),
                };
                for block in group * format.blocks()..(group + 1) * format.blocks() {
                    fine[block] |= matters(log_mass[g][block], doubt, threshold);
                }
            }
        }
        for (block, _) in fine.iter().enumerate().filter(|(_, fine)| **fine) {
            let page = view.page(block / format.blocks());
            for (query, log_mass) in queries.iter().zip(&mut log_mass) {
                if let Some(mass) = estimator.fine_mass(page, query, block % format.blocks()) {
                    log_mass[block] = mass;
                }
            }
            metadata += format.fine_bytes(d);
        }
    }
    let (bound, rounding) = (0..page_bounds.len())
        .map(|g| bounds_of_head(view, &queries[g], &log_mass[g], &page_bounds[g], &fine))
        .unzip();
    Scored { log_mass, bound, rounding, metadata }
}

/// log2 mass beyond which a block's second look matters: [`NEGLIGIBLE`] (or
/// [`NEGLIGIBLE_BOUND`]) of the mean.
pub fn threshold(log_mass: &[f32], bounds: bool) -> f32 {
    let peak = log_mass.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m });
    let total: u64 = log_mass.iter().map(|&x| fixed_mass(x, peak) as u64).sum();
    let negligible = if bounds { NEGLIGIBLE_BOUND } else { NEGLIGIBLE };
    look_threshold(peak, total, log_mass.len() as u32, negligible)
}

fn first_look(view: &HeadView<'_>, estimator: &dyn Estimator, query: &[f32]) -> Vec<f32> {
    let per_page = view.format().blocks();
    let mut masses = vec![0.0; view.blocks()];
    for (group, masses) in masses.chunks_mut(per_page).take(view.full_groups()).enumerate() {
        estimator.masses(view.page(group), query, masses);
    }
    for (block, mass) in masses.iter_mut().enumerate().skip(view.described_blocks()) {
        let tokens = block * BLOCK..block * BLOCK + view.tokens_of_block(block);
        *mass = block_mass(&tokens.map(|t| exact_score(view, query, t)).collect::<Vec<_>>());
    }
    masses
}

/// Upper bounds of a head's masses, and how far off any score in f32 from its keys may be.
fn bounds_of_head(
    view: &HeadView<'_>,
    query: &[f32],
    log_mass: &[f32],
    pages: &[Bound],
    fine: &[bool],
) -> (Vec<f32>, f32) {
    let per_page = view.format().blocks();
    let mut rounding = pages.iter().fold(0.0f32, |m, b| if b.rounding > m { b.rounding } else { m });
    for token in view.described_blocks() * BLOCK..view.tokens() {
        rounding = open_rounding(rounding, view.key_values(token).zip(query).map(|(k, q)| (k, *q)));
    }
    let bound = log_mass.iter().enumerate().map(|(block, &mass)| match pages.get(block / per_page) {
        Some(bound) if fine[block] => upper(mass, bound.fine_slack),
        Some(bound) => upper(mass, bound.slack),
        // The open group is scored from its keys, and always read.
        None => upper(mass, rounding + FUNCTIONS),
    });
    (bound.collect(), rounding)
}

/// The larger of `rounding` and what the score of one open token may be off by.
pub fn open_rounding(rounding: f32, products: impl Iterator<Item = (f32, f32)>) -> f32 {
    let size = products.fold(0.0f32, |size, (k, q)| size + (k * q).abs());
    let own = if size < crate::estimator::SANE { 1.001 * ROUNDING * size } else { f32::INFINITY };
    if own > rounding { own } else { rounding }
}

/// The score of a token whose key is read. qs: the query in the log2 domain.
pub fn exact_score(view: &HeadView<'_>, qs: &[f32], token: usize) -> f32 {
    finite_score(view.key_values(token).zip(qs).fold(0.0, |dot, (k, &q)| fma(q, k, dot)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimator::planes::halves;
    use crate::reference::tests::{Filled, random_q};
    use crate::{Dtype, Mirror};
    use kernels_gpu::layout::{
        BLOCKS_PER_GROUP, MirrorKind, QUANT_GROUP, code_shift, plane_offset, plane_row_bytes, step_offset,
    };

    fn score_head(filled: &Filled, q: &[f32], scale: f32) -> Vec<f32> {
        score(&filled.view(), &*filled.estimator, q, scale, false).log_mass.remove(0)
    }

    /// The code of token `t`, channel `c`.
    fn code(page: &[u8], d: usize, planes: usize, t: usize, c: usize) -> i32 {
        (0..planes).fold(0, |code, p| {
            let at = plane_offset(d, p) + t * plane_row_bytes(d) + c / 16 * 4;
            let word = u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
            code << 2 | ((word >> code_shift(c)) & 3) as i32
        })
    }

    /// f64 scores of the keys as mirrored.
    fn mirrored_scores_f64(page: &[u8], qs: &[f64], planes: usize) -> Vec<f64> {
        let d = qs.len();
        let (zeros, steps) = (halves(page, d), halves(&page[step_offset(d)..], d));
        (0..QUANT_GROUP)
            .map(|t| {
                let key = |c: usize| zeros[c] as f64 + steps[c] as f64 * code(page, d, planes, t, c) as f64;
                (0..d).map(|c| qs[c] * key(c)).sum()
            })
            .collect()
    }

    #[test]
    fn scores_are_within_the_derived_bound_of_f64_arithmetic() {
        for (head_dim, mirror, dtype) in [
            (64, Mirror::Bits2, Dtype::F16),
            (128, Mirror::Bits2, Dtype::Bf16),
            (64, Mirror::Bits4, Dtype::Bf16),
            (128, Mirror::Bits4, Dtype::F16),
        ] {
            let filled = Filled::new(head_dim, dtype, mirror, 130, 7);
            let view = filled.view();
            let MirrorKind::Planes(planes) = mirror.kernel().unwrap() else { unreachable!() };
            let levels = 1u32 << (2 * planes);
            let q = random_q(head_dim, 11);
            let scale = 1.0 / (head_dim as f32).sqrt();
            let qs: Vec<f64> =
                q.iter().map(|&x| x as f64 * scale as f64 * std::f64::consts::LOG2_E).collect();
            let got = score_head(&filled, &q, scale);
            for group in 0..view.full_groups() {
                let page = view.page(group);
                let exact = mirrored_scores_f64(page, &qs, planes as usize);
                let (zeros, steps) =
                    (halves(page, head_dim), halves(&page[step_offset(head_dim)..], head_dim));
                // Rounding of a weight to 1/2 unit, times the largest code, over all channels; and
                // f32 rounding: three operations a query element, a few more in each sum, of terms no larger
                // than their magnitudes; a block's log2 of a sum of 16 exp2 adds 1e-6.
                let peak = (0..head_dim).map(|c| (qs[c] * steps[c] as f64).abs()).fold(0.0, f64::max);
                let magnitude: f64 = (0..head_dim)
                    .map(|c| qs[c].abs() * (zeros[c].abs() as f64 + steps[c] as f64 * levels as f64))
                    .sum();
                let bound = head_dim as f64 * (levels - 1) as f64 * peak / 8192.0 / 2.0
                    + magnitude * 12.0 * f32::EPSILON as f64
                    + 1e-6;
                for block in 0..BLOCKS_PER_GROUP {
                    let want = exact[block * BLOCK..][..BLOCK].iter().map(|t| t.exp2()).sum::<f64>().log2();
                    let error = (got[group * BLOCKS_PER_GROUP + block] as f64 - want).abs();
                    assert!(error <= bound, "{mirror} bits, {head_dim}: error {error:e}, bound {bound:e}");
                }
            }
            // The open group is exact up to f32 rounding.
            for (block, got) in got.iter().enumerate().skip(8) {
                let tokens = block * BLOCK..block * BLOCK + view.tokens_of_block(block);
                let exact: f64 = tokens
                    .map(|t| view.key_values(t).zip(&qs).map(|(k, q)| k as f64 * q).sum::<f64>().exp2())
                    .sum();
                assert!((*got as f64 - exact.log2()).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn boxes_bound_every_score_of_their_block() {
        let filled = Filled::new(64, Dtype::F16, Mirror::Box, 192, 3);
        let view = filled.view();
        let q = random_q(64, 5);
        let qs: Vec<f32> = q.iter().map(|x| x * 0.125 * LOG2_E).collect();
        let got = score_head(&filled, &q, 0.125);
        for (block, &bound) in got.iter().enumerate() {
            for t in block * BLOCK..(block + 1) * BLOCK {
                assert!(exact_score(&view, &qs, t) <= bound - 4.0 + 1e-4);
            }
        }
    }
}
