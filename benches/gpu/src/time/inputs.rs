//! What the timings run on: the keys, values and queries of recorded attention heads, in the shape of a layer of
//! an 8B model. How much a policy reads depends on the scores, and random keys would tell nothing.
//!
//! The eight recorded KV heads are the KV heads; channels occur twice (64 recorded, 128 wanted), which leaves
//! the scores as they are where queries are divided by sqrt 2. Longer contexts repeat the 4,096 tokens.
//!
//! Without traces, as in a bundle that lost its data, a made-up mixture stands in: a few needles, a heavy tail.

use half::bf16;
use psa::traces::Traces;
use psa_tests::Rng;

use super::rig::{HEAD_DIM, KV_HEADS};
use crate::Error;

/// Tokens that are different; longer contexts repeat them.
pub const TOKENS: usize = 4096;

/// One sequence of a layer.
pub struct Template {
    /// `[TOKENS, KV_HEADS, HEAD_DIM]`.
    pub k: Vec<bf16>,
    /// As `k`.
    pub v: Vec<bf16>,
    /// `[KV_HEADS, 8, HEAD_DIM]`: eight queries of each KV head; a smaller group takes the first.
    pub q: Vec<bf16>,
    /// For people.
    pub origin: String,
}

/// Query heads of a KV head in [`Template::q`].
pub const QUERIES: usize = 8;

impl Template {
    /// Of recorded heads.
    ///
    /// # Errors
    /// [`Error::UnsuitableTraces`] where there are fewer than 8 heads of 64 dims and 4,096 tokens.
    pub fn recorded(traces: &Traces, file: &str) -> Result<Template, Error> {
        let unsuitable = |reason: String| Error::UnsuitableTraces { file: file.into(), reason };
        if traces.cases.len() < KV_HEADS {
            return Err(unsuitable(format!("{} cases, {KV_HEADS} are needed", traces.cases.len())));
        }
        let cases = &traces.cases[..KV_HEADS];
        if let Some(case) = cases.iter().find(|c| c.head_dim != HEAD_DIM / 2 || c.context < TOKENS) {
            return Err(unsuitable(format!(
                "{} has {} dims and {} tokens, {} and {TOKENS} are needed",
                case.name,
                case.head_dim,
                case.context,
                HEAD_DIM / 2
            )));
        }
        let d = HEAD_DIM / 2;
        let mut template = Template::empty(&traces.origin);
        let rows: Vec<[Vec<f64>; 2]> = cases
            .iter()
            .map(|case| {
                let range = (case.context - TOKENS) * d..case.context * d;
                [case.k.to_f64(range.clone()), case.v.to_f64(range)]
            })
            .collect();
        for t in 0..TOKENS {
            for [k, v] in &rows {
                for _ in 0..2 {
                    template.k.extend(k[t * d..][..d].iter().map(|&x| bf16::from_f64(x)));
                    template.v.extend(v[t * d..][..d].iter().map(|&x| bf16::from_f64(x)));
                }
            }
        }
        // The recorded scale is not always 1 / sqrt(64), ours is 1 / sqrt(128).
        let factor = f64::from(traces.scale) * (HEAD_DIM as f64).sqrt() / 2.0;
        for case in cases {
            for i in 0..QUERIES {
                let query = case.query(case.queries - 1 - (i / case.group).min(case.queries - 1));
                let row = i % case.group * d;
                let query = query.to_f64(row..row + d);
                for _ in 0..2 {
                    template.q.extend(query.iter().map(|&x| bf16::from_f64(x * factor)));
                }
            }
        }
        Ok(template)
    }

    /// Made up: queries look along one direction; a few keys lie near it (needles), the others have scores of a
    /// heavy tail.
    pub fn made_up(seed: u64) -> Template {
        let mut rng = Rng(seed);
        let mut template = Template::empty("made up: needles and a heavy tail");
        let axes: Vec<f32> = (0..KV_HEADS * HEAD_DIM).map(|_| rng.normal()).collect();
        for t in 0..TOKENS {
            for h in 0..KV_HEADS {
                let needle = rng.below(500) == 0 || t == 0;
                let tail = rng.normal().powi(3) * 0.05;
                let pull = if needle { 0.8 } else { tail.clamp(-0.6, 0.6) };
                let axis = &axes[h * HEAD_DIM..][..HEAD_DIM];
                template.k.extend(axis.iter().map(|a| bf16::from_f32(pull * a + 0.6 * rng.normal())));
                template.v.extend((0..HEAD_DIM).map(|_| bf16::from_f32(rng.normal())));
            }
        }
        for h in 0..KV_HEADS {
            let axis = &axes[h * HEAD_DIM..][..HEAD_DIM];
            for _ in 0..QUERIES {
                template.q.extend(axis.iter().map(|a| bf16::from_f32(a + 0.3 * rng.normal())));
            }
        }
        template
    }

    fn empty(origin: &str) -> Template {
        Template { k: Vec::new(), v: Vec::new(), q: Vec::new(), origin: origin.to_owned() }
    }

    /// The queries of a batch: `[batch, KV_HEADS * group, HEAD_DIM]`.
    pub fn queries(&self, batch: usize, group: usize) -> Vec<bf16> {
        let one = self.q.chunks_exact(QUERIES * HEAD_DIM).flat_map(|head| &head[..group * HEAD_DIM]);
        let one: Vec<bf16> = one.copied().collect();
        one.repeat(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn recorded_scores_survive_the_larger_shape() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/traces.safetensors");
        let traces = Traces::load(Path::new(file)).unwrap();
        let template = Template::recorded(&traces, file).unwrap();
        let (h, t) = (5, 4000);
        let case = &traces.cases[h];
        // Query head 1 of the last position.
        let q = case.query(case.queries - 1).to_f64(64..128);
        let k = case.k.to_f64(t * 64..(t + 1) * 64);
        let want: f64 = q.iter().zip(&k).map(|(a, b)| a * b).sum::<f64>() * f64::from(traces.scale);
        let size: f64 = q.iter().zip(&k).map(|(a, b)| (a * b).abs()).sum::<f64>() * f64::from(traces.scale);
        let q = &template.q[(h * QUERIES + 1) * 128..][..128];
        let k = &template.k[(t * KV_HEADS + h) * 128..][..128];
        let have: f64 = q.iter().zip(k).map(|(a, b)| a.to_f64() * b.to_f64()).sum::<f64>() / 128f64.sqrt();
        // bf16, of 8 significant bits, rounds both by 2^-8 at most: 2^-7 + 2^-16 of the product.
        assert!((want - have).abs() <= size / 127.0, "{want} {have}");
        assert!(want.abs() > 0.5, "a score of {want} tells nothing");
    }
}
