//! Tail compensation: what a step does not read counts as its believed mass, at the mean of V.
//!
//! With `m` the share of the mass that a head believes it read, `o` its output and `mu` the mean of V over the
//! sequence's full groups of 64 tokens, the compensated output is
//!
//! ```text
//! o' = (m o + w (1 - m) mu) / (m + w (1 - m))
//! ```
//!
//! The weight w is less than 1 because the blocks that are left are those whose keys fit the query worst, and the
//! estimate of their mass is too high on average. At [`TAIL_WEIGHT`] the same output error takes fewer bytes at every
//! length measured, at 1 more; the table is in docs/algorithm.md. It changes no selection, and no lse.
//!
//! The mean is of everything, read or not, so that no read takes part in it: one running sum of f64 for each
//! (sequence, layer, KV head), in the order of the tokens. A group is added when first needed, by reading it back from
//! the device; truncation starts the sum anew, and a fork has its own.

use std::collections::HashMap;

use crate::element::widen;
use crate::{Error, KvCache, SequenceId};
use kernels_gpu::layout::QUANT_GROUP;

/// The weight of the believed rest that was measured to help.
pub const TAIL_WEIGHT: f32 = 0.5;

/// Which sum: sequence, layer, KV head.
pub(crate) type Head = (SequenceId, usize, usize);

/// Sum of V over the first tokens of a head.
#[derive(Clone, Debug, Default)]
struct Sum {
    /// A multiple of 64.
    tokens: usize,
    /// `[head_dim]`
    sum: Vec<f64>,
}

/// The running sums of a cache, of the heads that were asked for.
#[derive(Debug, Default)]
pub(crate) struct ValueSums(HashMap<Head, Sum>);

impl ValueSums {
    /// A sequence has no more than `tokens` tokens now.
    pub(crate) fn cut(&mut self, sequence: SequenceId, tokens: usize) {
        self.0.retain(|(s, ..), sum| *s != sequence || sum.tokens <= tokens);
    }

    /// A sequence is no more.
    pub(crate) fn forget(&mut self, sequence: SequenceId) {
        self.0.retain(|(s, ..), _| *s != sequence);
    }

    /// Sequences may hold other tokens than before.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Compensates the outputs of a KV head, `[group, head_dim]`, of believed masses `[group]`; the bytes of the mean that
/// it took, as a device would read it: f32 `[head_dim]`.
pub(crate) fn compensate(
    cache: &mut KvCache,
    head: Head,
    weight: f32,
    mass: &[f32],
    out: &mut [f32],
) -> Result<u32, Error> {
    let d = cache.shape().head_dim;
    let (sequence, layer, kv_head) = head;
    let full = cache.layer_len(sequence, layer)? / QUANT_GROUP * QUANT_GROUP;
    if full == 0 {
        return Ok(0);
    }
    let Sum { mut tokens, mut sum } = cache.value_sums.0.remove(&head).unwrap_or_default();
    sum.resize(d, 0.0);
    let dtype = cache.shape().dtype;
    while tokens < full {
        let (_, v) = cache.tokens_of(sequence, layer, kv_head, tokens..tokens + QUANT_GROUP)?;
        for v in v.chunks_exact(d) {
            sum.iter_mut().zip(v).for_each(|(sum, &v)| *sum += widen(dtype, v) as f64);
        }
        tokens += QUANT_GROUP;
    }
    for (&mass, out) in mass.iter().zip(out.chunks_exact_mut(d)).filter(|(mass, _)| **mass < 1.0) {
        let (read, rest) = (mass as f64, weight as f64 * (1.0 - mass as f64));
        for (out, sum) in out.iter_mut().zip(&sum) {
            *out = ((read * *out as f64 + rest * sum / tokens as f64) / (read + rest)) as f32;
        }
    }
    cache.value_sums.0.insert(head, Sum { tokens, sum });
    Ok(4 * d as u32)
}
