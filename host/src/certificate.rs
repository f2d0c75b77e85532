//! How much mass can have been missed, for certain.
//!
//! A head has read `count` blocks and left `unread`. Of the unread ones it knows upper bounds, as fixed-point masses
//! relative to a peak; of the read ones the mass `z` that floating-point attention has summed up, relative to the same
//! peak. The missed mass is `rest / (read + rest)`; it is largest at the largest rest and the smallest mass read:
//!
//! * a fixed-point mass is rounded down (by less than 1) and carries exp2's error (2e-7), so the rest grows by one for
//!   each block and by 2^-20;
//! * a score may be `rounding` too large, so `z` shrinks by `2^-rounding`; exp2, the rescaling of a running sum and the
//!   sum itself are off by less than 1e-6 a block (16 additions and two exp2 of 2e-7 each), and by as much for each of
//!   at most 64 splits.
//!
//! Where `z` was clamped (to 2^60 peaks) or is not a number, it is taken as less than it is, or as nothing.

use kernels_gpu::numeric::MASS_BITS;

/// Largest share of the mass that can be unread. `rest`: fixed-point sum of the unread blocks' upper bounds.
pub fn missed(z: f64, rest: u64, unread: usize, count: usize, rounding: f32) -> f64 {
    if unread == 0 {
        return 0.0;
    }
    let rest = (rest + (rest >> 20) + unread as u64) as f64 / (1u64 << MASS_BITS) as f64;
    let slack = 1.0 - 1e-6 * (count + 64) as f64;
    let read = z * (-rounding as f64).exp2() * slack;
    // NaN, and a slack that is none, say nothing was read.
    if read > 0.0 { rest / (read + rest) } else { 1.0 }
}

/// A bound as f32, not below it.
pub fn round_up(bound: f64) -> f32 {
    let nearest = bound as f32;
    if (nearest as f64) < bound { nearest.next_up() } else { nearest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_unread_is_nothing_missed_and_nothing_known_is_all() {
        assert_eq!(missed(0.0, 0, 0, 10, f32::INFINITY), 0.0);
        for z in [0.0, f64::NAN, -1.0] {
            assert_eq!(missed(z, 0, 3, 10, 0.0), 1.0);
        }
        assert_eq!(missed(1.0, 0, 1, 10, f32::INFINITY), 1.0);
        assert_eq!(missed(1.0, 0, 1, 10, f32::NAN), 1.0);
    }

    #[test]
    fn the_bound_is_above_the_plain_ratio_and_near_it() {
        let (z, rest) = (0.9, 1u64 << 27);
        let plain = 0.125 / (0.9 + 0.125);
        let bound = missed(z, rest, 100, 50, 1e-4);
        assert!(bound > plain && bound < plain * 1.001, "{bound} {plain}");
    }

    #[test]
    fn rounding_to_f32_goes_up() {
        for bound in [0.1, 1.0 / 3.0, 0.0, 1.0, 1e-30] {
            assert!(round_up(bound) as f64 >= bound);
            assert!((round_up(bound) as f64) <= bound * (1.0 + 2e-7));
        }
    }
}
