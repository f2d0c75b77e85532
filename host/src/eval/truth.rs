//! What dense attention sees, in f64: the mass of every block for every query and query head.
//!
//! Computed once a case and shared by all policies. The queries, keys and values of the file are
//! taken as exact; the products and sums are f64, so masses carry an error of about 1e-15 times the
//! context, far below anything that is reported.

use kernels_gpu::layout;
use rayon::prelude::*;

use super::EvalError;
use crate::traces::{Case, logits};

/// Largest difference between a recorded lse and the exact one. A recorder in f32 stays below 1e-3; a
/// wrong scale or a damaged tensor is off by much more.
const LSE_TOLERANCE: f64 = 0.01;

/// Normalised exact masses of one case.
pub struct Truth {
    first: usize,
    group: usize,
    /// One entry a query from `first` on: `[group, blocks seen by that query]`.
    rows: Vec<Vec<f64>>,
}

impl Truth {
    /// Of the last `queries` queries of `case`; all where `None`.
    ///
    /// # Errors
    /// [`EvalError::Inconsistent`] where the recorded lse is not that of the recorded queries and keys.
    pub fn of(case: &Case, scale: f32, queries: Option<usize>) -> Result<Truth, EvalError> {
        let first = case.queries - queries.unwrap_or(case.queries).min(case.queries);
        let keys = case.k.to_f64(0..case.context * case.head_dim);
        let rows = (first..case.queries).into_par_iter().map(|i| block_masses(case, &keys, scale, i));
        Ok(Truth { first, group: case.group, rows: rows.collect::<Result<_, _>>()? })
    }

    /// The share of head `g`'s mass that query `i` leaves unread when it reads `blocks`, each once.
    pub fn missed(&self, i: usize, g: usize, blocks: &[u32]) -> f64 {
        let row = &self.rows[i - self.first];
        let masses = &row[g * (row.len() / self.group)..][..row.len() / self.group];
        let mut unread = vec![true; masses.len()];
        for &block in blocks {
            unread[block as usize] = false;
        }
        // Summing what was not read, instead of 1 - what was read, keeps small misses exact and makes
        // dense exactly 0 (`sum` of nothing would be -0.0).
        masses.iter().zip(unread).filter(|(_, unread)| *unread).fold(0.0, |sum, (mass, _)| sum + mass)
    }
}

fn block_masses(case: &Case, keys: &[f64], scale: f32, i: usize) -> Result<Vec<f64>, EvalError> {
    let (visible, d) = (case.visible(i), case.head_dim);
    let blocks = layout::blocks(visible);
    let mut masses = vec![0.0; case.group * blocks];
    for (g, masses) in masses.chunks_exact_mut(blocks).enumerate() {
        let row = (g * case.queries + i) * d;
        let query = case.q.to_f64(row..row + d);
        let logits = logits(&query, &keys[..visible * d], scale);
        let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        for (mass, tokens) in masses.iter_mut().zip(logits.chunks(layout::BLOCK)) {
            *mass = tokens.iter().map(|t| (t - top).exp()).sum();
        }
        let total: f64 = masses.iter().sum();
        masses.iter_mut().for_each(|mass| *mass /= total);
        let (exact, recorded) = (top + total.ln(), case.lse[g * case.queries + i]);
        if (exact - recorded as f64).abs() > LSE_TOLERANCE {
            let case = case.name.clone();
            return Err(EvalError::Inconsistent { case, head: g, query: i, recorded, exact, scale });
        }
    }
    Ok(masses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::tests::synthetic;

    #[test]
    fn reading_everything_misses_nothing_and_reading_nothing_misses_all() {
        let case = synthetic("case0", 2, 3, 50, 5);
        let truth = Truth::of(&case, 0.125, Some(2)).unwrap();
        for i in 1..3 {
            let all: Vec<u32> = (0..layout::blocks(case.visible(i)) as u32).collect();
            for g in 0..2 {
                assert_eq!(truth.missed(i, g, &all).to_bits(), 0.0f64.to_bits());
                assert!((truth.missed(i, g, &[]) - 1.0).abs() < 1e-12);
                let halves = truth.missed(i, g, &all[..2]) + truth.missed(i, g, &all[2..]);
                assert!((halves - 1.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn masses_agree_with_the_recorded_lse() {
        // exp(lse of the first block alone - lse of all) is the first block's mass.
        let case = synthetic("case0", 1, 1, 40, 9);
        let truth = Truth::of(&case, 0.125, None).unwrap();
        let (q, k) = (case.q.to_f64(0..64), case.k.to_f64(0..16 * 64));
        let first: f64 = k
            .chunks_exact(64)
            .map(|key| (0.125 * q.iter().zip(key).map(|(a, b)| a * b).sum::<f64>()).exp())
            .sum();
        let want = first.ln() - case.lse[0] as f64;
        let missed = truth.missed(0, 0, &[1, 2]);
        // The recorded lse is f32: half a unit in its last place, about 2e-7 here.
        assert!((missed.ln() - want).abs() < 1e-6, "{missed} {want}");
    }

    #[test]
    fn a_wrong_scale_is_noticed() {
        let case = synthetic("case3", 2, 3, 50, 5);
        let error = Truth::of(&case, 0.25, None).err().unwrap().to_string();
        assert!(error.contains("case3") && error.contains("scale 0.25"), "{error}");
    }
}
