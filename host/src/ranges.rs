//! What a missed mass can do to the output: the range of V, channel by channel.
//!
//! With a share `tau` of the mass unread, `o - o_dense = tau (mu_read - mu_unread)`, where `mu_read` is the output itself
//! and `mu_unread` lies between the least and the largest V of each channel. So channel c is off by at most
//! `tau max(o_c - min_c, max_c - o_c)`, and the norm of these bounds the norm of the error. Half as wide as the whole
//! range where the output lies in its middle.
//!
//! A range is of all tokens that there are, and reads all of V: for audits, not for every step.
//!
//! Trap: this bounds what was left out. The rounding of attention itself, some 1e-6 of the values, comes on top.

use crate::{Dtype, widen};

/// Least and largest V of one (layer, sequence, KV head).
#[derive(Clone, Debug)]
pub(crate) struct ValueRange {
    /// `[head_dim]`
    least: Vec<f32>,
    /// `[head_dim]`
    largest: Vec<f32>,
}

impl ValueRange {
    /// Of V, bit patterns `[tokens, head_dim]`.
    pub(crate) fn of(dtype: Dtype, head_dim: usize, values: &[u16]) -> ValueRange {
        let mut range =
            ValueRange { least: vec![f32::INFINITY; head_dim], largest: vec![f32::NEG_INFINITY; head_dim] };
        for row in values.chunks_exact(head_dim) {
            for ((least, largest), &bits) in range.least.iter_mut().zip(&mut range.largest).zip(row) {
                let v = widen(dtype, bits);
                *least = if v < *least { v } else { *least };
                *largest = if v > *largest { v } else { *largest };
            }
        }
        range
    }

    /// Norm of the error that a missed share of the mass can have caused in `out`, `[head_dim]`.
    pub(crate) fn error(&self, missed: f32, out: &[f32]) -> f32 {
        // Of no tokens there is nothing to miss.
        if missed <= 0.0 {
            return 0.0;
        }
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
        let range = ValueRange { least: vec![-1.0, 0.0], largest: vec![3.0, 2.0] };
        // Farther ends: 3 - 0 = 3 and 2 - 2 + .. = 2 - 0.5 = 1.5.
        let want = 0.1 * (9.0f64 + 2.25).sqrt();
        let got = range.error(0.1, &[0.0, 0.5]) as f64;
        assert!(got >= want * (1.0 - 1e-7) && got < want * (1.0 + 1e-6), "{got} {want}");
        assert_eq!(range.error(0.0, &[0.0, 0.5]), 0.0);
    }
}
