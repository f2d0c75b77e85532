//! The stop rule of merge, decided alike everywhere although the mass is not.
//!
//! A head has enough when `z (1 - p) >= p rest`: z is the exact mass read, the estimated `rest` is fixed point and
//! the same bits everywhere. But z comes out of attention, in f32 lanes on a CPU, in f64 in the reference, in an
//! order of the hardware's on tensor cores: each has it to some 1e-6, and near the threshold they could decide
//! differently. So z decides only where it is clear ([`verdict`]); within [`CLOSE`] of the threshold the mass is
//! computed again in an arithmetic that has one result ([`Threshold`]): scores in f64 in a fixed order, weights by
//! [`exp2`], summed in fixed point. Decisions then agree, as long as each z is right to [`CLOSE`].
//!
//! Trap: all that goes into the exact arithmetic must be the same bits on both sides: the queries scaled as in
//! `score`, `qs = (q * scale) * LOG2_E`, two f32 products.

use crate::numeric::{exp2, log2, reciprocal, rest_mass};

/// How near to the threshold, relative to it, f32 does not decide.
///
/// The error of z is ln 2 times that of the scores, plus sums (below 1e-4 up to 1,048,576 tokens, a thousand additions in a lane): with the worst case
/// of `step_bounds` (tests), `(2.2 D + 5) 2^-24 sum |q k| scale log2 e`, it stays below 2^-10 while that sum of
/// magnitudes is below 75 at 128 dims, 145 at 64. Errors of real additions grow with the root of their number and
/// leave two orders of magnitude more. Wider only costs time: a few decisions in a thousand are made exactly.
pub const CLOSE: f32 = 1.0 / 1024.0;

/// Whether a head has enough: exact mass `z` read and estimated `rest` left (fixed point), relative to the same
/// peak. None where it is too close to be told in f32.
#[inline(always)]
pub fn verdict(z: f32, rest: u64, mass: f32) -> Option<bool> {
    let (have, need) = (z * (1.0 - mass), mass * rest_mass(rest));
    if have >= need * (1.0 + CLOSE) {
        Some(true)
    } else if have < need * (1.0 - CLOSE) {
        Some(false)
    } else {
        // Also for NaN, which no comparison decides.
        None
    }
}

/// The least mass that is enough for a head, as the log2 of a sum of `2^score`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold(f64);

impl Threshold {
    /// Fixed-point mass of the threshold itself.
    pub const ENOUGH: u64 = 1 << 40;

    /// The threshold of a head whose largest estimated block mass is `peak` (log2), with `rest` left in units of
    /// it. For undecided heads: `rest > 0`, `0 < mass < 1`.
    #[inline(always)]
    pub fn new(peak: f32, rest: u64, mass: f32) -> Threshold {
        Threshold(peak as f64 + log2(mass * rest_mass(rest) * reciprocal(1.0 - mass)) as f64)
    }

    /// A token's mass in units of `1 / ENOUGH` of the threshold, capped at twice the threshold, so that the sum of
    /// 2^22 tokens fits. Truncated: 2^20 tokens together lose 2^-20 of the threshold.
    #[inline(always)]
    pub fn share(self, score: f64) -> u64 {
        let d = (score - self.0) as f32;
        // NaN stays, and has no mass, as in attention (`finite_score`).
        let d = if d > 1.0 { 1.0 } else { d };
        (exp2(d) * (Self::ENOUGH as f32)) as u64
    }

    /// Adds one channel to a score. The product is exact in f64 (24 + 11 bits), so this is one rounding.
    #[inline(always)]
    pub fn add(score: f64, scaled_query: f32, key: f32) -> f64 {
        score + scaled_query as f64 * key as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::MASS_BITS;

    const UNIT: u64 = 1 << MASS_BITS;

    #[test]
    fn clear_cases_are_decided_and_close_ones_are_not() {
        // p = 3/4, rest 8 peaks: 24 peaks are enough.
        let at = |z: f32| verdict(z, 8 * UNIT, 0.75);
        assert_eq!([at(24.1), at(23.9), at(24.0)], [Some(true), Some(false), None]);
        assert_eq!([at(24.0 * (1.0 + 1e-4)), at(24.0 * (1.0 - 1e-4)), at(f32::NAN)], [None; 3]);
        assert_eq!([at(f32::INFINITY), at(0.0)], [Some(true), Some(false)]);
        // Nothing left, or the test off: enough. All of it wanted, something left: never.
        assert_eq!([verdict(0.0, 0, 0.95), verdict(0.0, UNIT, 0.0)], [Some(true); 2]);
        assert_eq!([verdict(1e30, 0, 1.0), verdict(1e30, 1, 1.0)], [Some(true), Some(false)]);
    }

    #[test]
    fn shares_of_a_threshold_add_up_to_it() {
        // 24 blocks of 16 equal tokens, 8 blocks left: exactly the threshold at p = 3/4, to the rounding of log2.
        for peak in [-30.0f32, 0.0, 17.25] {
            let threshold = Threshold::new(peak, 8 * UNIT, 0.75);
            let sum = 24 * 16 * threshold.share(peak as f64 - 4.0);
            let error = sum as f64 / Threshold::ENOUGH as f64 - 1.0;
            assert!(error.abs() < 1e-6, "{peak}: {error:e}");
        }
        let threshold = Threshold::new(0.0, UNIT, 0.5);
        assert_eq!(threshold.share(f64::INFINITY), 2 * Threshold::ENOUGH);
        assert_eq!(threshold.share(f64::NAN), 0);
        assert_eq!(threshold.share(f64::NEG_INFINITY), 0);
        assert_eq!(threshold.share(-1e300), 0);
    }
}
