//! Summaries of a block by moments: the mean key, the centre of the box, mean and variance.
//!
//! Page: for each block one or two rows `[head_dim]` of the cache's type. A block counts as 16 tokens at the
//! summary's score; with a variance, as 16 normal keys, whose mean of `2^t` is `2^(mean + ln 2 / 2 variance)`.
//! They are here to be compared with: see docs/algorithm.md for what they miss.

use super::{Estimator, Keys, element, narrow};
use crate::Dtype;
use kernels_gpu::layout::BLOCK;
use kernels_gpu::numeric::{finite_score, fma};

/// The mean key of a block.
#[derive(Clone, Copy, Debug)]
pub struct Mean {
    /// Elements of a key.
    pub head_dim: usize,
    /// Their type.
    pub dtype: Dtype,
}

/// The centre of a block's box.
#[derive(Clone, Copy, Debug)]
pub struct Cuboid {
    /// Elements of a key.
    pub head_dim: usize,
    /// Their type.
    pub dtype: Dtype,
}

/// Mean and variance of every channel of a block.
#[derive(Clone, Copy, Debug)]
pub struct MeanVariance {
    /// Elements of a key.
    pub head_dim: usize,
    /// Their type.
    pub dtype: Dtype,
}

/// Mean of channel `c` over a block; divided before it is summed, so that large keys do not overflow.
fn mean(keys: Keys<'_>, block: usize, c: usize) -> f32 {
    (0..BLOCK).fold(0.0, |sum, t| fma(keys.at(block * BLOCK + t, c), 1.0 / BLOCK as f32, sum))
}

/// log2 mass of 16 tokens at the score of a row.
fn row_mass(dtype: Dtype, row: &[u8], query: &[f32]) -> f32 {
    let dot = query.iter().enumerate().fold(0.0, |dot, (c, q)| fma(*q, element(dtype, row, c), dot));
    finite_score(dot) + 4.0
}

impl Estimator for Mean {
    fn write(&self, keys: Keys<'_>, page: &mut [u8]) {
        for (block, row) in page.chunks_exact_mut(2 * self.head_dim).enumerate() {
            for (c, to) in row.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                *to = narrow(self.dtype, mean(keys, block, c));
            }
        }
    }

    fn masses(&self, page: &[u8], query: &[f32], out: &mut [f32]) {
        for (row, out) in page.chunks_exact(2 * self.head_dim).zip(out) {
            *out = row_mass(self.dtype, row, query);
        }
    }
}

impl Estimator for Cuboid {
    fn write(&self, keys: Keys<'_>, page: &mut [u8]) {
        for (block, row) in page.chunks_exact_mut(2 * self.head_dim).enumerate() {
            for (c, to) in row.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
                for t in 0..BLOCK {
                    let x = keys.at(block * BLOCK + t, c);
                    min = if x < min { x } else { min };
                    max = if x > max { x } else { max };
                }
                *to = narrow(self.dtype, 0.5 * min + 0.5 * max);
            }
        }
    }

    fn masses(&self, page: &[u8], query: &[f32], out: &mut [f32]) {
        for (row, out) in page.chunks_exact(2 * self.head_dim).zip(out) {
            *out = row_mass(self.dtype, row, query);
        }
    }
}

impl Estimator for MeanVariance {
    fn write(&self, keys: Keys<'_>, page: &mut [u8]) {
        let d = self.head_dim;
        for (block, rows) in page.chunks_exact_mut(4 * d).enumerate() {
            for c in 0..d {
                let mean = mean(keys, block, c);
                let variance = (0..BLOCK).fold(0.0, |sum, t| {
                    let x = keys.at(block * BLOCK + t, c) - mean;
                    fma(x * (1.0 / BLOCK as f32), x, sum)
                });
                rows[2 * c..][..2].copy_from_slice(&narrow(self.dtype, mean));
                rows[2 * (d + c)..][..2].copy_from_slice(&narrow(self.dtype, variance));
            }
        }
    }

    fn masses(&self, page: &[u8], query: &[f32], out: &mut [f32]) {
        let d = self.head_dim;
        for (rows, out) in page.chunks_exact(4 * d).zip(out) {
            let (mut dot, mut variance) = (0.0f32, 0.0f32);
            for (c, &q) in query.iter().enumerate() {
                dot = fma(q, element(self.dtype, rows, c), dot);
                variance = fma(q * q, element(self.dtype, rows, d + c), variance);
            }
            *out = finite_score(fma(0.5 * std::f32::consts::LN_2, variance, dot)) + 4.0;
        }
    }
}
