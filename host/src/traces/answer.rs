//! Makes a case whole: the dense answer to its queries, in f64 arithmetic on the elements as stored.
//!
//! `out` and `lse` are what [`super::Case`] documents. Whoever has queries, keys and values (a dump, a
//! generator, an extension) comes here, so that no case is ever compared with an answer from elsewhere.

use rayon::prelude::*;

use super::{Case, Elements};

/// The parts of a case that are not computed.
pub(super) struct Parts {
    /// `case0`, ..
    pub name: String,
    /// For people.
    pub label: String,
    /// Elements of a row.
    pub head_dim: usize,
    /// Query heads.
    pub group: usize,
    /// `[group, queries, head_dim]`.
    pub q: Elements,
    /// `[context, head_dim]`.
    pub k: Elements,
    /// `[context, head_dim]`.
    pub v: Elements,
}

/// `scale * query.k` for every key, in f64. query: `[d]`; keys: `[tokens, d]`.
pub(crate) fn logits(query: &[f64], keys: &[f64], scale: f32) -> Vec<f64> {
    keys.chunks_exact(query.len())
        .map(|key| scale as f64 * query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>())
        .collect()
}

/// The case of `parts` at softmax scale `scale`. Query i stands at position `context - queries + i`.
pub(super) fn answer(parts: Parts, scale: f32) -> Case {
    let Parts { name, label, head_dim: d, group, q, k, v } = parts;
    let (context, queries) = (k.len() / d, q.len() / (group * d));
    let (queries_f64, keys, values) = (q.to_f64(0..q.len()), k.to_f64(0..k.len()), v.to_f64(0..v.len()));
    let rows: Vec<(Vec<f32>, f32)> = (0..group * queries)
        .into_par_iter()
        .map(|row| {
            let visible = context - queries + row % queries + 1;
            let query = &queries_f64[row * d..][..d];
            let logits = logits(query, &keys[..visible * d], scale);
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let (mut total, mut out) = (0.0, vec![0.0; d]);
            for (logit, value) in logits.iter().zip(values.chunks_exact(d)) {
                let weight = (logit - top).exp();
                total += weight;
                out.iter_mut().zip(value).for_each(|(o, v)| *o += weight * v);
            }
            (out.iter().map(|o| (o / total) as f32).collect(), (top + total.ln()) as f32)
        })
        .collect();
    let (out, lse): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    Case { name, label, group, queries, context, head_dim: d, q, k, v, out: out.concat(), lse }
}
