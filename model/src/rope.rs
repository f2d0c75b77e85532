//! Rotary position encoding: angles in f64, one table of cosines and sines for the whole context.

use crate::config::{Config, Pairs};

/// Cosines and sines of every position.
#[derive(Debug)]
pub struct Rope {
    pairs: Pairs,
    rotated: usize,
    head_dim: usize,
    /// `[context][rotated / 2]` of (cosine, sine).
    table: Vec<(f32, f32)>,
}

impl Rope {
    /// The table of a model. `factors`: divisors of the frequencies (Llama 3's scaling), `[rotated / 2]`, or empty.
    pub fn new(config: &Config, factors: &[f32]) -> Rope {
        let half = config.rotated / 2;
        let frequencies: Vec<f64> = (0..half)
            .map(|i| {
                let frequency = (config.rope_base as f64).powf(-2.0 * i as f64 / config.rotated as f64);
                frequency / factors.get(i).copied().unwrap_or(1.0) as f64
            })
            .collect();
        let table = (0..config.context)
            .flat_map(|position| {
                let position = position as f64 * config.position_scale as f64;
                frequencies.iter().map(move |frequency| {
                    let (sin, cos) = (position * frequency).sin_cos();
                    (cos as f32, sin as f32)
                })
            })
            .collect();
        Rope { pairs: config.pairs, rotated: config.rotated, head_dim: config.head_dim, table }
    }

    /// Rotates the heads of one token: `[heads, head_dim]`. `position` is below the context.
    pub fn rotate(&self, heads: &mut [f32], position: usize) {
        let half = self.rotated / 2;
        let turns = &self.table[position * half..][..half];
        for head in heads.chunks_exact_mut(self.head_dim) {
            for (i, &(cos, sin)) in turns.iter().enumerate() {
                let (a, b) = match self.pairs {
                    Pairs::Neighbours => (2 * i, 2 * i + 1),
                    Pairs::Halves => (i, i + half),
                };
                let (x, y) = (head[a], head[b]);
                head[a] = x * cos - y * sin;
                head[b] = x * sin + y * cos;
            }
        }
    }
}
