//! What a missed mass can do to the output: the range of V, channel by channel.
//!
//! With a share `tau` of the mass unread, `o - o_dense = tau (mu_read - mu_unread)`, where `mu_read` is the output itself
//! and `mu_unread` lies between the least and the largest V of each channel. So channel c is off by at most
//! `tau max(o_c - min_c, max_c - o_c)`, and the norm of these bounds the norm of the error. Half as wide as the whole
//! range where the output lies in its middle.
//!
//! Ranges are kept for as long as the plan lives and grow by the tokens that are new; the first look reads all of V.
//!
//! Trap: this bounds what was left out. The rounding of attention itself, some 1e-6 of the values, comes on top.

use crate::{Error, KvCache, SequenceId, widen};
use kernels_gpu::layout::BLOCK;

/// Least and largest V of one (layer, sequence, KV head) so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct ValueRange {
    /// Tokens looked at.
    tokens: usize,
    /// `[head_dim]`
    least: Vec<f32>,
    /// `[head_dim]`
    largest: Vec<f32>,
}

impl ValueRange {
    /// Looks at the tokens up to `tokens` that are new.
    ///
    /// # Errors
    /// As [`KvCache::keys_and_values`].
    pub(crate) fn see(
        &mut self,
        cache: &mut KvCache,
        (sequence, layer, kv_head): (SequenceId, usize, usize),
        tokens: usize,
    ) -> Result<(), Error> {
        let shape = cache.shape();
        if self.tokens >= tokens {
            return Ok(());
        }
        // Whole blocks are read; the last one of the time before had room for more.
        let first = self.tokens / BLOCK;
        let values = cache.values_from(sequence, layer, kv_head, first, tokens)?;
        self.least.resize(shape.head_dim, f32::INFINITY);
        self.largest.resize(shape.head_dim, f32::NEG_INFINITY);
        for row in values.chunks_exact(shape.head_dim) {
            for ((least, largest), &bits) in self.least.iter_mut().zip(&mut self.largest).zip(row) {
                let v = widen(shape.dtype, bits);
                *least = if v < *least { v } else { *least };
                *largest = if v > *largest { v } else { *largest };
            }
        }
        self.tokens = tokens;
        Ok(())
    }

    /// Norm of the error that a missed share of the mass can have caused in `out`, `[head_dim]`.
    pub(crate) fn error(&self, missed: f32, out: &[f32]) -> f32 {
        let channels = out.iter().zip(&self.least).zip(&self.largest);
        let sum: f64 = channels
            .map(|((&o, &least), &largest)| {
                // The output is a mean of values, but for its rounding.
                let (o, least, largest) = (o as f64, least as f64, largest as f64);
                (o - least).max(largest - o).max(0.0).powi(2)
            })
            .sum();
        // f64 arithmetic is off by far less than the last place of an f32.
        crate::certificate::round_up(missed as f64 * sum.sqrt() * (1.0 + 1e-12))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_the_distance_to_the_farther_end_times_the_missed_share() {
        let range = ValueRange { tokens: 1, least: vec![-1.0, 0.0], largest: vec![3.0, 2.0] };
        // Farther ends: 3 - 0 = 3 and 2 - 2 + .. = 2 - 0.5 = 1.5.
        let want = 0.1 * (9.0f64 + 2.25).sqrt();
        let got = range.error(0.1, &[0.0, 0.5]) as f64;
        assert!(got >= want * (1.0 - 1e-7) && got < want * (1.0 + 1e-6), "{got} {want}");
        assert_eq!(range.error(0.0, &[0.0, 0.5]), 0.0);
    }
}
