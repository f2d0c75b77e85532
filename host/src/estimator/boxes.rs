//! Quest's box: minimum and maximum of every channel of a block, in the cache's type, so that they are exact.
//!
//! Page: for each block, minimum `[head_dim]`, maximum `[head_dim]`. The mass is that of 16 tokens at the largest
//! score that a key inside could have: an upper bound, and no estimate.

use super::{Bound, Estimator, FUNCTIONS, Keys, ROUNDING, SANE, element};
use crate::Dtype;
use crate::element::widen;
use kernels_gpu::layout::{BLOCK, box_offset};
use kernels_gpu::numeric::finite_score;

/// Boxes of keys of one type.
#[derive(Clone, Copy, Debug)]
pub struct Boxes {
    /// Elements of a key.
    pub head_dim: usize,
    /// Their type.
    pub dtype: Dtype,
}

impl Estimator for Boxes {
    fn write(&self, keys: Keys<'_>, page: &mut [u8]) {
        let d = self.head_dim;
        for block in 0..keys.tokens() / BLOCK {
            for c in 0..d {
                let bits = |t: usize| keys.bits[(block * BLOCK + t) * d + c];
                let (mut min, mut max) = (bits(0), bits(0));
                for t in 1..BLOCK {
                    let x = widen(self.dtype, bits(t));
                    min = if x < widen(self.dtype, min) { bits(t) } else { min };
                    max = if x > widen(self.dtype, max) { bits(t) } else { max };
                }
                let at = box_offset(d, block) + 2 * c;
                page[at..][..2].copy_from_slice(&min.to_le_bytes());
                page[at + 2 * d..][..2].copy_from_slice(&max.to_le_bytes());
            }
        }
    }

    fn masses(&self, page: &[u8], query: &[f32], out: &mut [f32]) {
        let d = self.head_dim;
        for (block, out) in out.iter_mut().enumerate() {
            let bounds = &page[box_offset(d, block)..][..4 * d];
            let mut bound = 0.0f32;
            for (c, q) in query.iter().enumerate() {
                let (a, b) = (q * element(self.dtype, bounds, c), q * element(self.dtype, bounds, d + c));
                bound += if a > b { a } else { b };
            }
            *out = finite_score(bound) + 4.0;
        }
    }

    fn bound(&self, page: &[u8], query: &[f32]) -> Bound {
        let (d, blocks) = (self.head_dim, page.len() / (4 * self.head_dim));
        let mut largest = 0.0f32;
        for block in 0..blocks {
            let bounds = &page[box_offset(d, block)..][..4 * d];
            let mut size = 0.0f32;
            for (c, q) in query.iter().enumerate() {
                let (a, b) = (element(self.dtype, bounds, c).abs(), element(self.dtype, bounds, d + c).abs());
                size += q.abs() * if a > b { a } else { b };
            }
            // False for NaN.
            let sane = size < SANE;
            if !sane {
                return Bound::NONE;
            }
            largest = if size > largest { size } else { largest };
        }
        let rounding = ROUNDING * 1.001 * largest;
        Bound { slack: rounding + FUNCTIONS, fine_slack: rounding + FUNCTIONS, rounding }
    }
}
