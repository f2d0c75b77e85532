//! attend: exact attention over a list of blocks, in f64, un-normalised so that more can be added.

use crate::store::HeadView;
use kernels_gpu::layout::BLOCK;

/// What a query head has read: the sum `l` of `2^(t - m)` over its tokens, and of the values so weighted.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadSum {
    /// Largest score, log2 domain; `-inf` before anything was read.
    pub m: f64,
    /// Sum of weights relative to `m`.
    pub l: f64,
    /// Weighted sum of values `[head_dim]`.
    pub o: Vec<f64>,
}

impl HeadSum {
    /// Nothing read.
    pub fn empty(head_dim: usize) -> HeadSum {
        HeadSum { m: f64::NEG_INFINITY, l: 0.0, o: vec![0.0; head_dim] }
    }

    /// Adds what another part has read.
    pub fn add(&mut self, other: &HeadSum) {
        let m = self.m.max(other.m);
        if m == f64::NEG_INFINITY {
            return;
        }
        let (a, b) = ((self.m - m).exp2(), (other.m - m).exp2());
        self.m = m;
        self.l = self.l * a + other.l * b;
        self.o.iter_mut().zip(&other.o).for_each(|(x, y)| *x = *x * a + y * b);
    }
}

/// Queries in the log2 domain: `q * scale * log2 e`, `[group, head_dim]`.
pub fn scaled_queries(q: &[f32], scale: f32) -> Vec<f64> {
    q.iter().map(|&x| x as f64 * scale as f64 * std::f64::consts::LOG2_E).collect()
}

/// Attends to `blocks`. queries: `[group, head_dim]` of [`scaled_queries`]. One sum per query head.
pub fn attend(view: &HeadView<'_>, blocks: &[u32], queries: &[f64], head_dim: usize) -> Vec<HeadSum> {
    let tokens: Vec<usize> = blocks
        .iter()
        .flat_map(|&b| (0..view.tokens_of_block(b as usize)).map(move |t| b as usize * BLOCK + t))
        .collect();
    queries
        .chunks(head_dim)
        .map(|q| {
            let scores: Vec<f64> = tokens.iter().map(|&t| exact_score(view, q, t)).collect();
            let m = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let mut sum = HeadSum { m, ..HeadSum::empty(head_dim) };
            for (&t, score) in tokens.iter().zip(&scores) {
                let weight = (score - m).exp2();
                sum.l += weight;
                sum.o.iter_mut().zip(view.value_values(t)).for_each(|(o, v)| *o += weight * v as f64);
            }
            sum
        })
        .collect()
}

/// The score of one token in f64, log2 domain.
pub fn exact_score(view: &HeadView<'_>, q: &[f64], token: usize) -> f64 {
    view.key_values(token).zip(q).map(|(k, q)| k as f64 * q).sum()
}
