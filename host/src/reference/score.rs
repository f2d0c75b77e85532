//! score: the log2 mass of every block for one query head, estimated from the mirror; exact for the open
//! group. Defined bit by bit: the order of every addition below is part of the definition.

use crate::element::widen;
use crate::store::HeadView;
use half::f16;
use kernels_gpu::layout::{
    BLOCK, BLOCKS_PER_GROUP, MirrorKind, QUANT_GROUP, box_offset, code_shift, plane_offset, plane_row_bytes,
    step_offset,
};
use kernels_gpu::numeric::{LOG2_E, Unit, exp2, finite_score, fma, log2};

/// log2 masses of all blocks. q: `[head_dim]`, one query head.
pub fn score(view: &HeadView<'_>, q: &[f32], scale: f32) -> Vec<f32> {
    let qs: Vec<f32> = q.iter().map(|&x| x * scale * LOG2_E).collect();
    (0..view.blocks())
        .map(|block| {
            let group = block / BLOCKS_PER_GROUP;
            if group >= view.full_groups() {
                let tokens = block * BLOCK..block * BLOCK + view.tokens_of_block(block);
                return block_mass(&tokens.map(|t| exact_score(view, &qs, t)).collect::<Vec<_>>());
            }
            let block_in_group = block % BLOCKS_PER_GROUP;
            match view.mirror_kind() {
                MirrorKind::Planes(planes) => {
                    let scores = mirrored_scores(view.page(group), &qs, planes as usize);
                    block_mass(&scores[block_in_group * BLOCK..][..BLOCK])
                }
                MirrorKind::Box => box_mass(view, group, block_in_group, &qs),
            }
        })
        .collect()
}

/// log2 of the sum over a block's tokens (1 to 16) of `2^score`.
pub fn block_mass(scores: &[f32]) -> f32 {
    let m = scores.iter().fold(f32::NEG_INFINITY, |m, &t| if t > m { t } else { m });
    let mut e = [0.0f32; BLOCK];
    for (e, &t) in e.iter_mut().zip(scores) {
        *e = exp2(t - m);
    }
    for distance in [8, 4, 2, 1] {
        for i in 0..distance {
            e[i] += e[i + distance];
        }
    }
    m + log2(e[0])
}

/// The score of a token whose key is read. qs: the query in the log2 domain.
pub fn exact_score(view: &HeadView<'_>, qs: &[f32], token: usize) -> f32 {
    finite_score(view.key_values(token).zip(qs).fold(0.0, |dot, (k, &q)| fma(q, k, dot)))
}

/// Zeros or steps of a page.
fn halves(bytes: &[u8], d: usize) -> Vec<f32> {
    bytes[..2 * d].chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

/// The code of token `t`, channel `c`.
fn code(page: &[u8], d: usize, planes: usize, t: usize, c: usize) -> i32 {
    (0..planes).fold(0, |code, p| {
        let at = plane_offset(d, p) + t * plane_row_bytes(d) + c / 16 * 4;
        let word = u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        code << 2 | ((word >> code_shift(c)) & 3) as i32
    })
}

/// Scores of the 64 tokens of a page.
fn mirrored_scores(page: &[u8], qs: &[f32], planes: usize) -> Vec<f32> {
    let d = qs.len();
    let zeros = halves(page, d);
    let steps = halves(&page[step_offset(d)..], d);

    let w: Vec<f32> = qs.iter().zip(&steps).map(|(q, step)| q * step).collect();
    let peak = w.iter().fold(0.0f32, |peak, w| if w.abs() > peak { w.abs() } else { peak });
    let unit = Unit::of_peak(peak);

    let mut lanes = [0.0f32; 32];
    for c in 0..d {
        lanes[c % 32] = fma(qs[c], zeros[c], lanes[c % 32]);
    }
    for distance in [16, 8, 4, 2, 1] {
        for l in 0..distance {
            lanes[l] += lanes[l + distance];
        }
    }
    (0..QUANT_GROUP)
        .map(|t| {
            // Weights are 16 bits; where a query was not finite they hold anything.
            let products = (0..d).map(|c| (unit.weight(w[c]) as i16 as i32) * code(page, d, planes, t, c));
            unit.score(lanes[0], products.sum())
        })
        .collect()
}

/// Quest's bound: 16 tokens at the largest score that the box allows.
fn box_mass(view: &HeadView<'_>, group: usize, block_in_group: usize, qs: &[f32]) -> f32 {
    let (d, dtype) = (view.head_dim(), view.dtype());
    let bounds = &view.page(group)[box_offset(d, block_in_group)..][..4 * d];
    let element = |i: usize| widen(dtype, u16::from_le_bytes([bounds[2 * i], bounds[2 * i + 1]]));
    let mut bound = 0.0f32;
    for (c, q) in qs.iter().enumerate() {
        let (a, b) = (q * element(c), q * element(d + c));
        bound += if a > b { a } else { b };
    }
    finite_score(bound) + 4.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::tests::{Filled, random_q};
    use crate::{Dtype, Mirror};

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
            let MirrorKind::Planes(planes) = mirror.kind() else { unreachable!() };
            let levels = 1u32 << (2 * planes);
            let q = random_q(head_dim, 11);
            let scale = 1.0 / (head_dim as f32).sqrt();
            let qs: Vec<f64> =
                q.iter().map(|&x| x as f64 * scale as f64 * std::f64::consts::LOG2_E).collect();
            let got = score(&view, &q, scale);
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
        let got = score(&view, &q, 0.125);
        for (block, &bound) in got.iter().enumerate() {
            for t in block * BLOCK..(block + 1) * BLOCK {
                assert!(exact_score(&view, &qs, t) <= bound - 4.0 + 1e-4);
            }
        }
    }
}
