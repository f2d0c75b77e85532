//! Sharper than a bound: where every weight is the same, rounding it to 16 bits is exact, and the output is the
//! mean of the values. A fragment element in the wrong place, a token twice or not at all, a tail that is not
//! zero would each be seen at full precision.

use psa::{Device, Dtype, Mirror, Policy, Shape};
use psa_tests::{Tensor, Workload, run};

/// Small integers, different for neighbours in every direction; exact in both types.
fn value(token: usize, kv_head: usize, channel: usize) -> f32 {
    ((7 * token + 5 * kv_head + 13 * channel + token * channel / 3) % 17) as f32 - 8.0
}

#[test]
fn equal_keys_give_the_mean_of_the_values() {
    for (dtype, head_dim) in [(Dtype::Bf16, 64), (Dtype::Bf16, 128), (Dtype::F16, 64), (Dtype::F16, 128)] {
        for group in [1, 3, 8] {
            let shape = Shape { layers: 1, q_heads: 2 * group, kv_heads: 2, head_dim, dtype };
            let mut workload = Workload::random(shape, &[1, 15, 16, 17, 100, 1000], group as u64);
            for s in &mut workload.sequences {
                let n = s.tokens;
                let k = s.k.to_f64();
                let first: Vec<f32> = k[..2 * head_dim].iter().map(|&x| x as f32).collect();
                s.k = Tensor::new(dtype, &first.repeat(n));
                let v: Vec<f32> = (0..n * 2 * head_dim)
                    .map(|i| value(i / (2 * head_dim), i / head_dim % 2, i % head_dim))
                    .collect();
                s.v = Tensor::new(dtype, &v);
            }
            let got = run(&Device::emulator(), &workload, Mirror::Bits2, Policy::Dense).unwrap();
            for (s, out) in workload.sequences.iter().zip(&got.out) {
                for (i, &have) in out.iter().enumerate() {
                    let (kv_head, channel) = (i / head_dim / group, i % head_dim);
                    let sum: f32 = (0..s.tokens).map(|t| value(t, kv_head, channel)).sum();
                    let want = sum / s.tokens as f32;
                    // Sums of integers are exact. What rounds: a weight's exponential (2.5 ulp) against their
                    // unrounded sum (1 + tokens / 16 additions a lane), the merges (3 ulp), the reciprocal:
                    // below 64 ulp of the largest value.
                    let error = (have - want).abs();
                    assert!(
                        error <= 64.0 * f32::EPSILON * 8.0,
                        "{dtype:?} {head_dim} group {group}, {} tokens, head {}, channel {channel}: {have} for {want}",
                        s.tokens,
                        i / head_dim
                    );
                }
            }
        }
    }
}
