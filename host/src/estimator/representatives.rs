//! Four keys of a block that stand for all sixteen.
//!
//! Chosen by farthest point: first the key farthest from the mean, then three times the one farthest from those
//! chosen; each stands for the keys that are nearest to it. Page: for each block the keys `[4, head_dim]` of the
//! cache's type, then how many each stands for, u8 `[4]`. The mass is the sum of `count 2^score`.

use super::{Estimator, Keys, element};
use crate::Dtype;
use kernels_gpu::layout::BLOCK;
use kernels_gpu::numeric::{exp2, finite_score, fma, log2};

/// Representatives of a block.
const CHOSEN: usize = 4;

/// Four keys of each block.
#[derive(Clone, Copy, Debug)]
pub struct Representatives {
    /// Elements of a key.
    pub head_dim: usize,
    /// Their type.
    pub dtype: Dtype,
}

impl Representatives {
    const fn block_bytes(&self) -> usize {
        CHOSEN * 2 * self.head_dim + CHOSEN
    }
}

/// First index of the largest value.
fn largest(values: &[f32; BLOCK]) -> usize {
    (1..BLOCK).fold(0, |best, t| if values[t] > values[best] { t } else { best })
}

impl Estimator for Representatives {
    fn write(&self, keys: Keys<'_>, page: &mut [u8]) {
        let d = self.head_dim;
        for (block, bytes) in page.chunks_exact_mut(self.block_bytes()).enumerate() {
            let key = |t: usize, c: usize| keys.at(block * BLOCK + t, c);
            let mean: Vec<f32> = (0..d)
                .map(|c| (0..BLOCK).fold(0.0, |sum, t| fma(key(t, c), 1.0 / BLOCK as f32, sum)))
                .collect();
            let distance = |t: usize, from: &dyn Fn(usize) -> f32| {
                (0..d).fold(0.0f32, |sum, c| {
                    let x = key(t, c) - from(c);
                    fma(x, x, sum)
                })
            };
            let mut far = [0.0f32; BLOCK];
            for (t, far) in far.iter_mut().enumerate() {
                *far = distance(t, &|c| mean[c]);
            }
            let mut nearest = [f32::INFINITY; BLOCK];
            let mut owner = [0usize; BLOCK];
            for i in 0..CHOSEN {
                let chosen = largest(&far);
                let row = (block * BLOCK + chosen) * d;
                for c in 0..d {
                    bytes[2 * (i * d + c)..][..2].copy_from_slice(&keys.bits[row + c].to_le_bytes());
                }
                for t in 0..BLOCK {
                    let distance = distance(t, &|c| key(chosen, c));
                    if distance < nearest[t] {
                        (nearest[t], owner[t]) = (distance, i);
                    }
                }
                far = nearest;
            }
            for i in 0..CHOSEN {
                bytes[CHOSEN * 2 * d + i] = owner.iter().filter(|&&o| o == i).count() as u8;
            }
        }
    }

    fn masses(&self, page: &[u8], query: &[f32], out: &mut [f32]) {
        let d = self.head_dim;
        for (bytes, out) in page.chunks_exact(self.block_bytes()).zip(out) {
            let mut scores = [0.0f32; CHOSEN];
            for (i, score) in scores.iter_mut().enumerate() {
                let dot = query
                    .iter()
                    .enumerate()
                    .fold(0.0, |dot, (c, q)| fma(*q, element(self.dtype, bytes, i * d + c), dot));
                *score = finite_score(dot);
            }
            let counts = &bytes[CHOSEN * 2 * d..];
            let top = scores.iter().fold(f32::NEG_INFINITY, |m, &s| if s > m { s } else { m });
            let sum = scores
                .iter()
                .zip(counts)
                .fold(0.0, |sum, (&score, &count)| fma(count as f32, exp2(score - top), sum));
            // The largest score may stand for no key where keys are equal.
            *out = top + log2(if sum > 1.0 { sum } else { 1.0 });
        }
    }
}
