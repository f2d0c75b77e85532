//! PyTorch as an oracle: decode attention by an implementation that shares no code with ours.
//!
//! This is the only crate that links libtorch, and it is no default member: everything else builds without.
//! `cargo xtask test` installs libtorch and runs these tests; by hand, `cargo xtask setup --for torch` and
//! `cargo test -p psa-torch-oracle`. Without libtorch the build of torch-sys fails with `Cannot find a
//! libtorch install`.
//!
//! Inputs come as f64, which holds every f16, bf16 and f32 exactly, and are converted to the type that torch
//! is to compute in. What is not read is a mask; that query heads share KV heads is undone by repeating k and
//! v, so torch sees neither blocks nor groups.

pub use tch::{Kind, TchError};

use tch::Tensor;

/// One decode step of one sequence: a query for each head.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Heads of `q`.
    pub q_heads: usize,
    /// Heads of `k` and `v`; query head h uses KV head `h / (q_heads / kv_heads)`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f64,
    /// `[q_heads, head_dim]`.
    pub q: &'a [f64],
    /// `[tokens, kv_heads, head_dim]`.
    pub k: &'a [f64],
    /// `[tokens, kv_heads, head_dim]`.
    pub v: &'a [f64],
    /// What each head sees, `[q_heads, tokens]`; without it everything.
    pub mask: Option<&'a [bool]>,
}

/// What torch gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// `[q_heads, head_dim]`.
    pub out: Vec<f64>,
    /// Natural logarithm of the sum of exponentials of the scores seen: `[q_heads]`.
    pub lse: Vec<f64>,
}

impl Attention<'_> {
    /// Torch's `scaled_dot_product_attention`, computed in `kind`, and the log-sum-exp of the scores.
    ///
    /// # Errors
    /// Torch's own error, for instance when a length does not fit the dimensions.
    pub fn compute(&self, kind: Kind) -> Result<Answer, TchError> {
        let [q_heads, kv_heads, d] = [self.q_heads, self.kv_heads, self.head_dim].map(|n| n as i64);
        // [1, heads, queries or tokens, head_dim]: what torch's function expects.
        let q = Tensor::f_from_slice(self.q)?.f_view([1, q_heads, 1, d])?.f_to_kind(kind)?;
        let per_query_head = |data: &[f64]| -> Result<Tensor, TchError> {
            Tensor::f_from_slice(data)?
                .f_view([1, -1, kv_heads, d])?
                .f_transpose(1, 2)?
                .f_repeat_interleave_self_int(q_heads / kv_heads.max(1), 1, None)?
                .f_contiguous()?
                .f_to_kind(kind)
        };
        let (k, v) = (per_query_head(self.k)?, per_query_head(self.v)?);
        let mask = match self.mask {
            Some(mask) => Some(Tensor::f_from_slice(mask)?.f_view([1, q_heads, 1, -1])?),
            None => None,
        };
        let out = Tensor::f_scaled_dot_product_attention(
            &q,
            &k,
            &v,
            mask.as_ref(),
            0.0,
            false,
            Some(self.scale),
            false,
        )?;
        let scores = (q.f_matmul(&k.f_transpose(2, 3)?)?).f_mul_scalar(self.scale)?;
        let scores = match &mask {
            Some(mask) => scores.f_masked_fill(&mask.f_logical_not()?, f64::NEG_INFINITY)?,
            None => scores,
        };
        Ok(Answer { out: values(&out)?, lse: values(&scores.f_logsumexp([-1i64].as_slice(), false)?)? })
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f64>, TchError> {
    let tensor = tensor.f_to_kind(Kind::Double)?.f_contiguous()?.f_view([-1])?;
    let mut values = vec![0.0; tensor.numel()];
    let count = values.len();
    tensor.f_copy_data(&mut values, count)?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::abs_diff_eq;
    use psa_tests::Rng;

    fn random(count: usize, scale: f64, rng: &mut Rng) -> Vec<f64> {
        (0..count).map(|_| scale * rng.normal() as f64).collect()
    }

    /// The definition, in loops.
    fn plain(a: &Attention<'_>) -> Answer {
        let (d, group) = (a.head_dim, a.q_heads / a.kv_heads);
        let tokens = a.k.len() / (a.kv_heads * d);
        let mut answer = Answer { out: vec![], lse: vec![] };
        for h in 0..a.q_heads {
            let row = |t: usize| (t * a.kv_heads + h / group) * d;
            let seen: Vec<usize> =
                (0..tokens).filter(|&t| a.mask.is_none_or(|mask| mask[h * tokens + t])).collect();
            let score = |t: usize| -> f64 { (0..d).map(|c| a.q[h * d + c] * a.k[row(t) + c]).sum() };
            let weights: Vec<f64> = seen.iter().map(|&t| (a.scale * score(t)).exp()).collect();
            let total: f64 = weights.iter().sum();
            for c in 0..d {
                let sum: f64 = weights.iter().zip(&seen).map(|(w, &t)| w * a.v[row(t) + c]).sum();
                answer.out.push(sum / total);
            }
            answer.lse.push(total.ln());
        }
        answer
    }

    fn agree(a: &Answer, b: &Answer) -> bool {
        // Sums of at most 300 terms of magnitude below 10 in f64, and scores below 100, which carry an error
        // below 1e-13 into the exponent. False for NaN.
        let pairs = a.out.iter().zip(&b.out).chain(a.lse.iter().zip(&b.lse));
        a.out.len() == b.out.len()
            && a.lse.len() == b.lse.len()
            && pairs.into_iter().all(|(a, b)| abs_diff_eq!(a, b, epsilon = 1e-11))
    }

    #[test]
    fn torch_agrees_with_the_definition_in_loops() {
        for (seed, q_heads, kv_heads, head_dim, tokens) in
            [(1, 1, 1, 64, 1), (2, 3, 1, 64, 17), (3, 6, 2, 128, 300), (4, 8, 1, 96, 100)]
        {
            let mut rng = Rng(seed);
            let q = random(q_heads * head_dim, 2.0, &mut rng);
            let k = random(tokens * kv_heads * head_dim, 1.0, &mut rng);
            let v = random(tokens * kv_heads * head_dim, 1.0, &mut rng);
            let scale = 1.0 / (head_dim as f64).sqrt();
            let dense = Attention { q_heads, kv_heads, head_dim, scale, q: &q, k: &k, v: &v, mask: None };
            let torch = dense.compute(Kind::Double).unwrap();
            assert!(agree(&torch, &plain(&dense)), "{dense:?}");

            // Every head sees the first token and about a third of the others.
            let mask: Vec<bool> =
                (0..q_heads * tokens).map(|i| i % tokens == 0 || rng.below(3) == 0).collect();
            let masked = Attention { mask: Some(&mask), ..dense };
            let torch_masked = masked.compute(Kind::Double).unwrap();
            assert!(agree(&torch_masked, &plain(&masked)), "{masked:?}");
            assert!(tokens == 1 || !agree(&torch_masked, &plain(&dense)), "the mask does nothing");
        }
    }

    #[test]
    fn a_length_that_does_not_fit_is_an_error() {
        let (short, right) = ([0.0; 63], [0.0; 64]);
        let good = Attention {
            q_heads: 1,
            kv_heads: 1,
            head_dim: 64,
            scale: 1.0,
            q: &right,
            k: &right,
            v: &right,
            mask: None,
        };
        assert!(good.compute(Kind::Double).is_ok());
        assert!(Attention { q: &short, ..good }.compute(Kind::Double).is_err());
        assert!(Attention { k: &short, ..good }.compute(Kind::Double).is_err());
        assert!(Attention { mask: Some(&[true; 2]), ..good }.compute(Kind::Double).is_err());
    }
}
