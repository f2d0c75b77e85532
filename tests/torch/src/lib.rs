//! PyTorch as an oracle: attention by an implementation that shares no code with ours.
//!
//! This is the only crate that links libtorch, and it is no default member: everything else builds without.
//! `cargo xtask test` installs libtorch and runs these tests; by hand, `cargo xtask setup --for torch` and
//! `cargo test -p psa-torch-oracle`. Without libtorch the build of torch-sys
//! fails with `Cannot find a libtorch install`.
//!
//! Layout everywhere: row-major, `q: [queries, head_dim]`, `k, v: [tokens, head_dim]`, f64.

use tch::{Kind, Tensor};

/// Dense attention by torch in f64, unmasked.
///
/// `q: [queries, head_dim]`, `k, v: [tokens, head_dim]`; returns `[queries, head_dim]`. The scale is
/// `1 / sqrt(head_dim)`.
///
/// # Errors
/// Torch's own error, for instance when a length is not a multiple of `head_dim`.
pub fn torch_attention(q: &[f64], k: &[f64], v: &[f64], head_dim: usize) -> Result<Vec<f64>, tch::TchError> {
    let matrix = |data: &[f64]| -> Result<Tensor, tch::TchError> {
        // Leading [batch, heads] of 1: what torch's function expects.
        Tensor::f_from_slice(data)?.f_view([1, 1, -1, head_dim as i64])
    };
    let out = Tensor::f_scaled_dot_product_attention(
        &matrix(q)?,
        &matrix(k)?,
        &matrix(v)?,
        None::<&Tensor>,
        0.0,
        false,
        None,
        false,
    )?;
    let out = out.f_to_kind(Kind::Double)?.f_contiguous()?.f_view([-1])?;
    let mut values = vec![0.0; out.numel()];
    let count = values.len();
    out.f_copy_data(&mut values, count)?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uniform in [-scale, scale), from a fixed seed (SplitMix64).
    fn random(count: usize, scale: f64, seed: u64) -> Vec<f64> {
        let mut state = seed;
        (0..count)
            .map(|_| {
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                z ^= z >> 31;
                scale * ((z >> 11) as f64 / (1u64 << 52) as f64 - 1.0)
            })
            .collect()
    }

    fn plain_attention(q: &[f64], k: &[f64], v: &[f64], head_dim: usize) -> Vec<f64> {
        let mut out = Vec::with_capacity(q.len());
        for query in q.chunks_exact(head_dim) {
            let scores: Vec<f64> = k
                .chunks_exact(head_dim)
                .map(|key| {
                    let dot: f64 = query.iter().zip(key).map(|(a, b)| a * b).sum();
                    dot / (head_dim as f64).sqrt()
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..head_dim {
                let sum: f64 = weights.iter().zip(v.chunks_exact(head_dim)).map(|(w, row)| w * row[d]).sum();
                out.push(sum / total);
            }
        }
        out
    }

    #[test]
    fn torch_attention_agrees_with_a_plain_softmax_in_f64() {
        for (seed, head_dim, queries, tokens) in
            [(1, 64, 1, 1), (2, 64, 3, 17), (3, 128, 8, 300), (4, 96, 2, 1000), (5, 256, 4, 65)]
        {
            // Scores reach tens, so that the softmax is far from flat.
            let q = random(queries * head_dim, 4.0, seed);
            let k = random(tokens * head_dim, 4.0, seed + 100);
            let v = random(tokens * head_dim, 1.0, seed + 200);
            let torch = torch_attention(&q, &k, &v, head_dim).expect("torch computes");
            let plain = plain_attention(&q, &k, &v, head_dim);
            assert_eq!(torch.len(), plain.len());
            for (index, (a, b)) in torch.iter().zip(&plain).enumerate() {
                // Both are sums of at most 1000 terms of magnitude <= 1 in f64, and scores below 100
                // carry an error below 1e-13 into the exponent. Written so that a NaN fails.
                let error = (a - b).abs();
                assert!(error < 1e-12, "head_dim {head_dim}, {tokens} tokens, element {index}: {a} and {b}");
            }
        }
    }

    #[test]
    fn a_length_that_does_not_fit_is_an_error() {
        assert!(torch_attention(&[0.0; 63], &[0.0; 64], &[0.0; 64], 64).is_err());
    }
}
