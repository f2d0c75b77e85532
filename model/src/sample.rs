//! The next token from logits: greedy, or drawn with a seed of its own for every sequence and position, so that a
//! draw does not depend on who else is in the batch.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// 0: the most probable token.
    pub temperature: f32,
    /// Share of the probability that is drawn from, most probable tokens first; 1: all.
    pub top_p: f32,
    /// Seed.
    pub seed: u64,
}

impl Sampler {
    /// The most probable token, always.
    pub const GREEDY: Sampler = Sampler { temperature: 0.0, top_p: 1.0, seed: 0 };

    /// The token for `position` of sequence number `sequence`. Ties go to the lower token.
    pub fn draw(&self, logits: &[f32], sequence: u64, position: usize) -> u32 {
        let best = logits.iter().enumerate().fold(0, |best, (i, x)| if *x > logits[best] { i } else { best });
        if self.temperature <= 0.0 || logits.is_empty() {
            return best as u32;
        }
        let top = logits[best] as f64;
        let mut weights: Vec<(usize, f64)> = logits
            .iter()
            .enumerate()
            .map(|(i, &x)| (i, ((x as f64 - top) / self.temperature as f64).exp()))
            .filter(|(_, weight)| *weight > 1e-9)
            .collect();
        weights.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        let mut kept = 0.0;
        let n = weights.iter().position(|(_, weight)| {
            kept += weight;
            kept >= total * self.top_p as f64
        });
        weights.truncate(n.map_or(weights.len(), |n| n + 1));
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(sequence);
        random.set_word_pos(position as u128 * 16);
        let mut left = random.random::<f64>() * weights.iter().map(|(_, weight)| weight).sum::<f64>();
        for (token, weight) in &weights {
            left -= weight;
            if left < 0.0 {
                return *token as u32;
            }
        }
        weights.last().map_or(best, |(token, _)| *token) as u32
    }
}

/// log softmax of logits, in f64.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let total = logits.iter().map(|&x| (x as f64 - top).exp()).sum::<f64>().ln() + top;
    logits.iter().map(|&x| x as f64 - total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_repeat_and_follow_the_probabilities() {
        let logits = [1.0f32, 3.0, 2.0, -9.0];
        assert_eq!(Sampler::GREEDY.draw(&logits, 0, 0), 1);
        let sampler = Sampler { temperature: 1.0, top_p: 1.0, seed: 4 };
        let draws: Vec<u32> = (0..4000).map(|position| sampler.draw(&logits, 1, position)).collect();
        let again: Vec<u32> = (0..4000).map(|position| sampler.draw(&logits, 1, position)).collect();
        assert_eq!(draws, again);
        assert_ne!(draws[..64], (0..64).map(|p| sampler.draw(&logits, 2, p)).collect::<Vec<_>>());
        let share = draws.iter().filter(|&&t| t == 1).count() as f64 / 4000.0;
        // Softmax gives .665; six deviations of sqrt(.665 * .335 / 4000) = .0075.
        assert!((share - 0.665).abs() < 0.045, "{share}");
    }

    #[test]
    fn top_p_leaves_out_the_improbable() {
        let sampler = Sampler { temperature: 1.0, top_p: 0.6, seed: 4 };
        assert!((0..500).all(|position| sampler.draw(&[1.0, 3.0, 2.0], 0, position) == 1));
    }

    #[test]
    fn probabilities_sum_to_one_for_logits_of_any_size() {
        let sum: f64 = log_softmax(&[1000.0, 999.0, -1e30]).iter().map(|x| x.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12);
    }
}
