//! The inner loops of attend, on tiles of registers: an element is loaded and widened once for all query heads of
//! a tile, and a tile has enough independent sums to keep the multipliers busy.
//!
//! Rows of a query or an output are in the order of [`place`](super::vector::place). No tile changes a bit: a
//! score adds its channels 32 at a time, in 16 lanes, and an output adds its tokens in their order, whatever is
//! computed beside it.

use super::lanes::Lanes;
use super::vector::{Vector, WIDENED};
use crate::element::Format;
use kernels_gpu::layout::BLOCK;

/// Scores `[heads][16 tokens]` of a block's keys. Asks for the rows of `ahead` on the way.
#[inline(always)]
pub(super) fn scores<L: Lanes, F: Format, const D: usize>(
    queries: &[[f32; D]],
    keys: &[[u16; D]; BLOCK],
    ahead: &[[u16; D]],
    scores: &mut [[f32; BLOCK]],
) {
    let (mut first, mut ahead) = (0, ahead);
    while first < queries.len() {
        let (queries, scores) = (&queries[first..], &mut scores[first..]);
        first += match queries.len() {
            4.. if L::WIDE => dots::<L, F, D, 4, 4>(queries, keys, ahead, scores),
            2.. if L::WIDE => dots::<L, F, D, 8, 2>(queries, keys, ahead, scores),
            _ if L::WIDE => dots::<L, F, D, 16, 1>(queries, keys, ahead, scores),
            2.. => dots::<L, F, D, 2, 2>(queries, keys, ahead, scores),
            _ => dots::<L, F, D, 4, 1>(queries, keys, ahead, scores),
        };
        ahead = &[];
    }
}

/// Scores of the first H queries, T tokens at a time; returns H.
#[inline(always)]
fn dots<L: Lanes, F: Format, const D: usize, const T: usize, const H: usize>(
    queries: &[[f32; D]],
    keys: &[[u16; D]; BLOCK],
    ahead: &[[u16; D]],
    scores: &mut [[f32; BLOCK]],
) -> usize {
    let (queries, scores) = (&queries[..H], &mut scores[..H]);
    // Tokens whose sums over lanes are made together: as many as give 16.
    let together = BLOCK / H;
    for start in (0..BLOCK).step_by(together) {
        let mut lanes = [L::V::splat(0.0); BLOCK];
        for first in (0..together).step_by(T) {
            let mut sums = [[L::V::splat(0.0); H]; T];
            for row in ahead.iter().skip(start + first).take(T) {
                L::prefetch(row);
            }
            for c in (0..D).step_by(WIDENED) {
                let mut q = [[L::V::splat(0.0); 2]; H];
                for (q, query) in q.iter_mut().zip(queries) {
                    let [low, high] = two(query, c);
                    *q = [L::V::load(low), L::V::load(high)];
                }
                for (t, sums) in sums.iter_mut().enumerate() {
                    let [low, high] = widened::<L, F, D>(&keys[start + first + t], c);
                    for (sum, q) in sums.iter_mut().zip(&q) {
                        *sum = q[1].fma(high, q[0].fma(low, *sum));
                    }
                }
            }
            for (t, sums) in sums.iter().enumerate() {
                for (h, sum) in sums.iter().enumerate() {
                    lanes[h * together + first + t] = *sum;
                }
            }
        }
        let sums = L::V::sums(&lanes);
        for (h, scores) in scores.iter_mut().enumerate() {
            scores[start..start + together].copy_from_slice(&sums[h * together..][..together]);
        }
    }
    H
}

/// Adds a block's values, weighted `[heads][16 tokens]`, to `outputs`. Asks for the rows of `ahead` on the way.
#[inline(always)]
pub(super) fn add_values<L: Lanes, F: Format, const D: usize>(
    weights: &[[f32; BLOCK]],
    values: &[[u16; D]; BLOCK],
    ahead: &[[u16; D]],
    outputs: &mut [[f32; D]],
) {
    let (mut first, mut ahead) = (0, ahead);
    while first < outputs.len() {
        let (weights, outputs) = (&weights[first..], &mut outputs[first..]);
        first += match outputs.len() {
            4.. if L::WIDE => add::<L, F, D, 2, 4>(weights, values, ahead, outputs),
            2.. if L::WIDE => add::<L, F, D, 2, 2>(weights, values, ahead, outputs),
            2.. => add::<L, F, D, 1, 2>(weights, values, ahead, outputs),
            _ => add::<L, F, D, 2, 1>(weights, values, ahead, outputs),
        };
        ahead = &[];
    }
}

/// For the first H outputs, W times 32 channels at a time; returns H.
#[inline(always)]
fn add<L: Lanes, F: Format, const D: usize, const W: usize, const H: usize>(
    weights: &[[f32; BLOCK]],
    values: &[[u16; D]; BLOCK],
    ahead: &[[u16; D]],
    outputs: &mut [[f32; D]],
) -> usize {
    let (weights, outputs) = (&weights[..H], &mut outputs[..H]);
    const { assert!(D.is_multiple_of(WIDENED * W), "channels would be left over") };
    let passes = D / (WIDENED * W);
    for pass in 0..passes {
        let c = pass * WIDENED * W;
        let mut sums = [[[L::V::splat(0.0); 2]; W]; H];
        for (sums, output) in sums.iter_mut().zip(&*outputs) {
            for (w, sum) in sums.iter_mut().enumerate() {
                let [low, high] = two(output, c + w * WIDENED);
                *sum = [L::V::load(low), L::V::load(high)];
            }
        }
        for t in 0..BLOCK {
            // A share of the rows in each pass.
            if t % passes == 0
                && let Some(row) = ahead.get((pass * BLOCK + t) / passes)
            {
                L::prefetch(row);
            }
            let mut wide = [[L::V::splat(0.0); 2]; W];
            for (w, wide) in wide.iter_mut().enumerate() {
                *wide = widened::<L, F, D>(&values[t], c + w * WIDENED);
            }
            for (sums, weights) in sums.iter_mut().zip(weights) {
                let weight = L::V::splat(weights[t]);
                for (sum, wide) in sums.iter_mut().zip(&wide) {
                    *sum = [weight.fma(wide[0], sum[0]), weight.fma(wide[1], sum[1])];
                }
            }
        }
        for (sums, output) in sums.iter().zip(&mut *outputs) {
            for (w, sum) in sums.iter().enumerate() {
                let (to, _) = output[c + w * WIDENED..][..WIDENED].as_chunks_mut::<16>();
                sum[0].store(&mut to[0]);
                sum[1].store(&mut to[1]);
            }
        }
    }
    H
}

/// Elements `c..c + 32` of a row.
#[inline(always)]
fn widened<L: Lanes, F: Format, const D: usize>(row: &[u16; D], c: usize) -> [L::V; 2] {
    L::V::widen::<F>(&row[c..][..WIDENED].as_chunks().0[0])
}

/// Lanes `c..c + 32` of a row, as two vectors.
#[inline(always)]
fn two<const D: usize>(row: &[f32; D], c: usize) -> [&[f32; 16]; 2] {
    let (vectors, _) = row[c..][..WIDENED].as_chunks::<16>();
    [&vectors[0], &vectors[1]]
}
