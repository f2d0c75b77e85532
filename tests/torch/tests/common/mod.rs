//! A step of ours, the same step by torch, and what they may differ by.
#![allow(dead_code)] // Every test binary uses a part of it.

use approx::abs_diff_eq;
use psa::{Device, Dtype, Shape};
use psa_tests::{Arithmetic, Outcome, Sequence, step_bounds};
use psa_torch_oracle::{Answer, Attention, Kind};

/// A batch of unequal lengths: less than a block, a block and one token, a full group, many of both.
pub const LENGTHS: [usize; 4] = [1, 17, 64, 1000];

/// Every head_dim and some groups, two KV heads each, so that a confusion of heads shows.
pub fn shapes(dtype: Dtype) -> impl Iterator<Item = Shape> {
    [64, 128].into_iter().flat_map(move |head_dim| {
        [1, 3, 8].map(|group| Shape { layers: 1, q_heads: 2 * group, kv_heads: 2, head_dim, dtype })
    })
}

/// The factor of the scores that the toolkit uses: rounded to f32.
pub fn scale(shape: &Shape) -> f64 {
    (1.0 / (shape.head_dim as f32).sqrt()) as f64
}

/// The step by torch. mask: `[q_heads, tokens]`.
pub fn torch(shape: &Shape, s: &Sequence, mask: Option<&[bool]>, kind: Kind) -> Answer {
    let (q, k, v) = (s.q.to_f64(), s.k.to_f64(), s.v.to_f64());
    let Shape { q_heads, kv_heads, head_dim, .. } = *shape;
    let attention = Attention { q_heads, kv_heads, head_dim, scale: scale(shape), q: &q, k: &k, v: &v, mask };
    attention.compute(kind).expect("torch computes")
}

/// What the query heads of sequence `i` see after a step that kept a record: `[q_heads, tokens]`.
pub fn mask(shape: &Shape, s: &Sequence, outcome: &Outcome, i: usize) -> Vec<bool> {
    let mut mask = vec![false; shape.q_heads * s.tokens];
    for (h, seen) in mask.chunks_mut(s.tokens).enumerate() {
        for &block in &outcome.selection[i][h / shape.group()] {
            let first = 16 * block as usize;
            seen[first..(first + 16).min(s.tokens)].fill(true);
        }
    }
    mask
}

/// The first value of sequence `i` that is farther from torch's than allowed, in words. `bound`: for a query
/// head, what output and lse may be off by in absolute terms; none for a lse that is not compared.
pub fn difference(
    shape: &Shape,
    want: &Answer,
    outcome: &Outcome,
    i: usize,
    bound: impl Fn(usize) -> (Vec<f64>, Option<f64>),
) -> Option<String> {
    let d = shape.head_dim;
    assert_eq!((want.out.len(), want.lse.len()), (outcome.out[i].len(), outcome.lse[i].len()));
    for h in 0..shape.q_heads {
        let (out_bound, lse_bound) = bound(h);
        for (c, &bound) in out_bound.iter().enumerate() {
            let (want, have) = (want.out[h * d + c], outcome.out[i][h * d + c] as f64);
            // False for NaN.
            if !abs_diff_eq!(have, want, epsilon = bound) {
                return Some(format!("head {h}, channel {c}: {have}, torch {want}, bound {bound:e}"));
            }
        }
        if let Some(bound) = lse_bound {
            let (want, have) = (want.lse[h], outcome.lse[i][h] as f64);
            if !abs_diff_eq!(have, want, epsilon = bound) {
                return Some(format!("head {h}: lse {have}, torch {want}, bound {bound:e}"));
            }
        }
    }
    None
}

/// What the reference may differ by from torch in f64: half a unit in the last place of its f32 result
/// (2^-24), and 1e-11 for the two f64 computations: sums of at most 1,000 terms of magnitude below 10, scores
/// below 100.
pub fn reference_bound(shape: &Shape, want: &Answer, head: usize) -> (Vec<f64>, Option<f64>) {
    let bound = |x: f64| x.abs() * (-24f64).exp2() + 1e-11;
    let d = shape.head_dim;
    let out = want.out[head * d..][..d].iter().map(|&x| bound(x)).collect();
    (out, Some(bound(want.lse[head])))
}

/// What a step on `device` may differ by from torch in f64: the bound of the harness.
pub fn device_bound(
    device: &Device,
    shape: &Shape,
    s: &Sequence,
    outcome: &Outcome,
    i: usize,
    head: usize,
) -> (Vec<f64>, Option<f64>) {
    let topups = outcome.heads[i][head / shape.group()].topups;
    let arithmetic =
        if device.name() == "emulator" { Arithmetic::Kernels { topups } } else { Arithmetic::F32 };
    let (out, lse) = step_bounds(shape, s, head, scale(shape), arithmetic);
    (vec![out; shape.head_dim], Some(lse))
}

/// What torch's own result in f32 may be off by: the same bound with all additions in a row; torch's fast
/// exponential inside attention is good to 20 units in the last place (`exp_u20`), of every weight and of
/// their sum.
pub fn torch_f32_bound(shape: &Shape, s: &Sequence, head: usize) -> (f64, f64) {
    let (out, lse) = step_bounds(shape, s, head, scale(shape), Arithmetic::F32);
    let value = s.v.to_f64().iter().fold(0.0f64, |a, x| a.max(x.abs()));
    (out + 2.0 * 20.0 * (-23f64).exp2() * value, lse)
}

/// What torch's result in a 16-bit type may be off by in each channel. With u the type's unit roundoff (half
/// of the spacing at 1: 2^-8 for bf16, which has 8 significant bits, 2^-11 for f16, which has 11), to first order:
///
/// * each score s may be rounded to 16 bits when its dot product is done and when it is scaled, so a weight is
///   off by a factor of 1 +- 2u|s|; in a normalised sum that moves channel c by p (v - o) for each token;
/// * each weight is rounded to 16 bits for the product with the values: u p |v|; in f16 weights below 2^-14
///   are off by up to 2^-25 absolute;
/// * the result is rounded: u |o|.
///
/// Second order: the factor exp(2 max 2u|s|). Sums are f32 inside torch, which 1e-5 of the values covers.
pub fn torch_16_bit_bound(shape: &Shape, s: &Sequence, mask: Option<&[bool]>, head: usize) -> Vec<f64> {
    let unit = match shape.dtype {
        Dtype::Bf16 => (-8f64).exp2(),
        Dtype::F16 => (-11f64).exp2(),
    };
    let subnormal = if shape.dtype == Dtype::F16 { (-25f64).exp2() } else { 0.0 };
    let d = shape.head_dim;
    let (q, k, v) = (s.q.to_f64(), s.k.to_f64(), s.v.to_f64());
    let row = |t: usize| (t * shape.kv_heads + head / shape.group()) * d;
    let seen: Vec<usize> = (0..s.tokens).filter(|&t| mask.is_none_or(|m| m[head * s.tokens + t])).collect();
    let score = |t: usize| (0..d).map(|c| q[head * d + c] * k[row(t) + c]).sum::<f64>() * scale(shape);
    let scores: Vec<f64> = seen.iter().map(|&t| score(t)).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
    let second = scores.iter().fold(0.0f64, |a, s| a.max(4.0 * unit * s.abs())).exp();
    (0..d)
        .map(|c| {
            let tokens =
                || seen.iter().zip(&scores).map(|(&t, s)| ((s - top).exp() / total, s.abs(), v[row(t) + c]));
            let out: f64 = tokens().map(|(p, _, v)| p * v).sum();
            let weights: f64 = tokens()
                .map(|(p, s, v)| {
                    p * (second * 2.0 * unit * s * (v - out).abs() + unit * v.abs()) + subnormal * v.abs()
                })
                .sum();
            let value = tokens().fold(0.0f64, |a, (_, _, v)| a.max(v.abs()));
            weights + unit * out.abs() + 1e-5 * value
        })
        .collect()
}

/// The blocks that sequence `i` read for query head `head`, heaviest first, with their share of the mass it
/// read, in f64.
pub fn shares(shape: &Shape, s: &Sequence, outcome: &Outcome, i: usize, head: usize) -> Vec<(u32, f64)> {
    let whole = torch(shape, s, Some(&mask(shape, s, outcome, i)), Kind::Double).lse[head];
    let mut shares: Vec<(u32, f64)> = outcome.selection[i][head / shape.group()]
        .iter()
        .map(|&block| {
            let first = 16 * block as usize;
            let seen: Vec<bool> = (0..shape.q_heads * s.tokens)
                .map(|j| (first..first + 16).contains(&(j % s.tokens)))
                .collect();
            (block, (torch(shape, s, Some(&seen), Kind::Double).lse[head] - whole).exp())
        })
        .collect();
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    shares
}
