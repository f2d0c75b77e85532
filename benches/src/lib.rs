//! Inputs that the benches share, made of the bundled traces: how much a policy reads depends on the keys, and
//! random ones would tell nothing.
//!
//! All are batches of sequences for one layer. [`traces`] is what is in the file; [`layer_8b`] is the same
//! scores in the shape of a larger model's layer.

pub mod emulated;
pub mod gpu_model;
pub mod paired;

use half::f16;
use psa::{CacheConfig, Capacity, Device, Dtype, KvCache, Mirror, SequenceId, Shape};
use psa_tests::{Sequence, Tensor, Workload};
use safetensors::SafeTensors;

/// A layer of an 8B model of today: 8 KV heads, 4 query heads each, 128 dims, bf16.
pub const LAYER_8B: Shape = Shape { layers: 1, q_heads: 32, kv_heads: 8, head_dim: 128, dtype: Dtype::Bf16 };

/// The 8 cases of tests/data/traces.safetensors as sequences of 4,096 tokens, with the last position's
/// queries.
///
/// # Panics
/// Where the file is missing or no trace file.
pub fn traces() -> Workload {
    let shape = Shape { layers: 1, q_heads: 3, kv_heads: 1, head_dim: 64, dtype: Dtype::F16 };
    let sequences = Traces::load()
        .cases
        .into_iter()
        .map(|case| {
            let q = (0..3).flat_map(|h| case.query(h, 63).iter().copied()).collect();
            let tokens = case.k.len() / 64;
            Sequence { tokens, q: Tensor::F16(q), k: Tensor::F16(case.k), v: Tensor::F16(case.v) }
        })
        .collect();
    Workload { shape, sequences }
}

/// One sequence of `tokens` tokens in the shape [`LAYER_8B`], with the scores of [`traces`]: the cases are the
/// KV heads, their 3 query heads and the first one's query of the position before are the group. Channels occur
/// twice, which leaves the scores as they are where queries are divided by sqrt 2 (64 dims: q k / 8; 128 dims:
/// 2 q k / sqrt 2 / sqrt 128). Contexts are the last tokens of the traces, repeated beyond 4,096.
///
/// # Panics
/// As [`traces`].
pub fn layer_8b(tokens: usize) -> Workload {
    let Shape { kv_heads, head_dim, .. } = LAYER_8B;
    let group = LAYER_8B.group();
    let traces = Traces::load();
    let context = traces.cases[0].k.len() / 64;
    let start = (tokens.next_multiple_of(context) - tokens) % context;
    let mut k = Vec::with_capacity(tokens * kv_heads * head_dim);
    let mut v = k.clone();
    for t in 0..tokens {
        let row = (start + t) % context * 64;
        for case in &traces.cases {
            for _ in 0..2 {
                k.extend(case.k[row..row + 64].iter().map(|x| x.to_f32()));
                v.extend(case.v[row..row + 64].iter().map(|x| x.to_f32()));
            }
        }
    }
    let mut q = Vec::with_capacity(kv_heads * group * head_dim);
    for case in &traces.cases {
        for g in 0..group {
            let query = if g < 3 { case.query(g, 63) } else { case.query(0, 62) };
            for _ in 0..2 {
                q.extend(query.iter().map(|x| x.to_f32() * std::f32::consts::FRAC_1_SQRT_2));
            }
        }
    }
    let tensor = |x: &[f32]| Tensor::new(LAYER_8B.dtype, x);
    let sequence = Sequence { tokens, k: tensor(&k), v: tensor(&v), q: tensor(&q) };
    Workload { shape: LAYER_8B, sequences: vec![sequence] }
}

struct Traces {
    cases: Vec<Case>,
}

struct Case {
    /// `[3 heads, 64 queries, 64]`.
    q: Vec<f16>,
    /// `[4096, 64]`.
    k: Vec<f16>,
    v: Vec<f16>,
}

impl Case {
    fn query(&self, head: usize, query: usize) -> &[f16] {
        &self.q[(head * 64 + query) * 64..][..64]
    }
}

impl Traces {
    fn load() -> Traces {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/traces.safetensors");
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{path}: {e}"));
        let tensor = |i: usize, name: &str| -> Vec<f16> {
            let view = file.tensor(&format!("case{i}.{name}")).unwrap_or_else(|e| panic!("{path}: {e}"));
            view.data().chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect()
        };
        let case = |i| Case { q: tensor(i, "q"), k: tensor(i, "k"), v: tensor(i, "v") };
        Traces { cases: (0..8).map(case).collect() }
    }
}

/// Bytes of the keys and values of all sequences.
pub fn kv_bytes(workload: &Workload) -> u64 {
    let tokens: usize = workload.sequences.iter().map(|s| s.tokens).sum();
    (tokens * workload.shape.token_elements() * 2 * Dtype::BYTES) as u64
}

/// The queries of all sequences, `[batch, q_heads, head_dim]`.
pub fn queries(workload: &Workload) -> Tensor {
    let values: Vec<f32> = workload.sequences.iter().flat_map(|s| s.q.to_f64()).map(|x| x as f32).collect();
    Tensor::new(workload.shape.dtype, &values)
}

/// A cache that holds the workload.
///
/// # Errors
/// The device's.
pub fn filled(
    device: &Device,
    workload: &Workload,
    mirror: Mirror,
) -> Result<(KvCache, Vec<SequenceId>), psa::Error> {
    let tokens = workload.sequences.iter().map(|s| s.tokens.next_multiple_of(16)).sum();
    let config = CacheConfig {
        capacity: Capacity::Tokens(tokens),
        max_sequences: workload.sequences.len(),
        mirror,
        ..CacheConfig::default()
    };
    let mut cache = KvCache::new(device, workload.shape, config)?;
    let mut ids = vec![];
    for s in &workload.sequences {
        let id = cache.add_sequence()?;
        cache.append(id, 0, s.k.all(), s.v.all())?;
        ids.push(id);
    }
    Ok((cache, ids))
}

#[cfg(test)]
mod tests {
    use super::*;
    use psa::Policy;
    use psa_tests::run;

    #[test]
    fn the_larger_shape_has_the_scores_of_the_traces() {
        let small = run(&Device::cpu(), &traces(), Mirror::Bits2, Policy::Dense).unwrap();
        let large = run(&Device::cpu(), &layer_8b(4096), Mirror::Bits2, Policy::Dense).unwrap();
        for (i, case) in Traces::load().cases.iter().enumerate() {
            for h in 0..3 {
                // bf16 rounds every query and key by 2^-9 of itself, so no score is off by more than this, and
                // the log-sum-exp by no more than the scores. (f32 arithmetic is far below.)
                let size = |key: &[f16]| -> f32 {
                    case.query(h, 63).iter().zip(key).map(|(q, k)| (q.to_f32() * k.to_f32()).abs()).sum()
                };
                let bound = case.k.chunks_exact(64).map(size).fold(0.0, f32::max) / 8.0 * 1.01 / 256.0;
                let (a, b) = (small.lse[i][h], large.lse[0][i * 4 + h]);
                assert!((a - b).abs() <= bound, "case {i}, head {h}: {a}, {b}, bound {bound}");
                assert!(bound < 0.5, "case {i}, head {h}: a bound of {bound} says nothing");
            }
        }
    }
}
