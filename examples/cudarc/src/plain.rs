//! What the kernels' results are compared with: attention of one query head as its definition says, in f64, and
//! sequences to try it on.

use half::bf16;

use crate::{BLOCK, GROUP, HEAD_DIM, HEADS, KV_HEADS};

/// k and v `[tokens, KV_HEADS, HEAD_DIM]`, q `[HEADS, HEAD_DIM]`.
pub struct Sequence {
    pub tokens: usize,
    pub k: Vec<bf16>,
    pub v: Vec<bf16>,
    pub q: Vec<bf16>,
}

impl Sequence {
    /// Keys near one of four directions for some tokens, as in text; a query that looks along one of them.
    pub fn random(tokens: usize, mut seed: u64) -> Sequence {
        // splitmix64, and roughly a normal distribution out of it.
        let mut normal = || {
            let uniform = (0..12).map(|_| {
                seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32
            });
            uniform.sum::<f32>() - 6.0
        };
        let axes: Vec<f32> = (0..KV_HEADS * 4 * HEAD_DIM).map(|_| normal()).collect();
        let axis = |h: usize, i: usize| &axes[(4 * h + i) * HEAD_DIM..][..HEAD_DIM];
        let mut k = Vec::new();
        for t in 0..tokens {
            for h in 0..KV_HEADS {
                k.extend(axis(h, (t / 48) % 4).iter().map(|a| bf16::from_f32(0.7 * a + 0.7 * normal())));
            }
        }
        let v = (0..tokens * KV_HEADS * HEAD_DIM).map(|_| bf16::from_f32(normal())).collect();
        let mut q = Vec::new();
        for h in 0..HEADS {
            let kv = h / GROUP;
            q.extend(axis(kv, kv).iter().map(|a| bf16::from_f32(1.2 * a + 0.6 * normal())));
        }
        Sequence { tokens, k, v, q }
    }
}

/// Output of a query head over the tokens of `blocks`, the logarithm of its softmax sum, and the share of those
/// tokens in the softmax mass of all.
pub fn attention(s: &Sequence, head: usize, blocks: &[u32]) -> (Vec<f64>, f64, f64) {
    let row = |x: &[bf16], t: usize| -> Vec<f64> {
        x[(t * KV_HEADS + head / GROUP) * HEAD_DIM..][..HEAD_DIM].iter().map(|x| x.to_f64()).collect()
    };
    let q = &s.q[head * HEAD_DIM..][..HEAD_DIM];
    let scores: Vec<f64> = (0..s.tokens)
        .map(|t| {
            q.iter().zip(row(&s.k, t)).map(|(q, k)| q.to_f64() * k).sum::<f64>() / (HEAD_DIM as f64).sqrt()
        })
        .collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
    let (mut out, mut used) = (vec![0.0; HEAD_DIM], 0.0);
    for (t, weight) in weights.iter().enumerate().filter(|(t, _)| blocks.contains(&((t / BLOCK) as u32))) {
        used += weight;
        for (o, v) in out.iter_mut().zip(row(&s.v, t)) {
            *o += weight * v;
        }
    }
    out.iter_mut().for_each(|o| *o /= used);
    (out, top + used.ln(), used / weights.iter().sum::<f64>())
}
