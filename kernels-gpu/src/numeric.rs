//! The arithmetic that decides what is read, defined bit for bit.
//!
//! Everything between a query and the plan uses only operations that IEEE 754 or integer arithmetic
//! fixes exactly (add, multiply, fused multiply-add, divide, integer dot products), in a fixed order.
//! The CPU, the emulator and a GPU therefore select *the same* blocks, not nearly the same: no
//! `ex2.approx`, no libm, no order of accumulation left to the hardware. This file is compiled into
//! both sides.
//!
//! * scores are in the log2 domain: `t = (q * scale * log2 e) . k`;
//! * mirrored scores are integer dot products: `t = zero + unit * sum_c weight_c * code_c`, with
//!   weights of 15 bits sharing a power-of-two `unit` ([`Weights`]);
//! * masses are fixed point, so that sums do not depend on the order of addition ([`fixed_mass`]).

/// log2(e), rounded to f32.
pub const LOG2_E: f32 = core::f32::consts::LOG2_E;
/// The reference of a softmax that has seen nothing: finite, so that differences are no NaN.
pub const NOTHING: f32 = -1e30;
/// Fraction bits of a fixed-point mass: 1.0 is the block of largest mass of that head.
pub const MASS_BITS: u32 = 30;
/// Fraction bits of a mass target.
pub const TARGET_BITS: u32 = 16;
/// Bits of a weight's magnitude: weights lie in `-2^14 ..= 2^14`.
pub const WEIGHT_BITS: u32 = 14;

/// `a * b + c`, rounded once.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    #[cfg(target_arch = "nvptx64")]
    {
        cuda_std::ptx::fma(a, b, c)
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        a.mul_add(b, c)
    }
}

/// `x` rounded to the nearest integer, ties to even, for |x| <= 2^22: adding 1.5 * 2^23 leaves the
/// integer in the low mantissa bits. Two exact operations on every machine.
#[inline(always)]
pub fn round_ties_even(x: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32
}

/// 1 / x for x in 2^-100 ..= 2^100, relative error below 2e-7 (tested). A division would be exact too, but on
/// a GPU it is a subroutine, and registers are saved around its call.
#[inline(always)]
pub fn reciprocal(x: f32) -> f32 {
    // The exponent negated, the mantissa guessed to 12 %; each Newton step squares the error.
    let mut r = f32::from_bits(0x7ef3_11c7 - x.to_bits());
    let mut step = 0;
    while step < 4 {
        r = fma(r, fma(-x, r, 1.0), r);
        step += 1;
    }
    r
}

/// 2^x for x <= 127, relative error below 2e-7 (tested); 0 below -126, so -inf gives 0.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    // Minimax on [-1/2, 1/2], degree 6; the constant term is exactly 1, so exp2(0) = 1.
    const C: [f32; 6] =
        [6.931_472e-1, 2.402_264_8e-1, 5.550_332_5e-2, 9.618_438e-3, 1.339_887_5e-3, 1.535_326_4e-4];
    let y = if x > -126.0 { x } else { -126.0 };
    let n = round_ties_even(y);
    let f = y - n as f32;
    let mut p = C[5];
    p = fma(p, f, C[4]);
    p = fma(p, f, C[3]);
    p = fma(p, f, C[2]);
    p = fma(p, f, C[1]);
    p = fma(p, f, C[0]);
    p = fma(p, f, 1.0);
    let r = f32::from_bits(p.to_bits().wrapping_add((n as u32) << 23));
    if x > -126.0 { r } else { 0.0 }
}

/// log2(x) for normal x > 0, absolute error below 3e-7 near 1 and below 1 ulp of the result's
/// exponent part elsewhere (tested).
#[inline(always)]
pub fn log2(x: f32) -> f32 {
    // x = 2^e * m with m in [sqrt(1/2), sqrt(2)); log2 m = (2 / ln 2) atanh((m - 1) / (m + 1)).
    let shifted = x.to_bits().wrapping_sub(0x3f35_04f3);
    let e = (shifted as i32) >> 23;
    let m = f32::from_bits((shifted & 0x007f_ffff).wrapping_add(0x3f35_04f3));
    let t = (m - 1.0) * reciprocal(m + 1.0);
    let s = t * t;
    let mut p = 2.0 / 9.0 * LOG2_E;
    p = fma(p, s, 2.0 / 7.0 * LOG2_E);
    p = fma(p, s, 2.0 / 5.0 * LOG2_E);
    p = fma(p, s, 2.0 / 3.0 * LOG2_E);
    p = fma(p, s, 2.0 * LOG2_E);
    fma(p, t, e as f32)
}

/// The power-of-two unit shared by the weights of one (query head, mirror page).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unit {
    /// Value of a weight of 1. Zero where every weight is zero or too small to matter.
    pub unit: f32,
    /// 1 / unit, or zero.
    pub inverse: f32,
}

impl Unit {
    /// The unit for products `w_c = (q_c * scale * log2 e) * step_c` of largest magnitude `peak`.
    /// Products beyond 2^100 mean nothing as logits; they count as zero instead of overflowing.
    #[inline(always)]
    pub fn of_peak(peak: f32) -> Unit {
        // 2^floor(log2 peak) has the biased exponent `e`; unit = 2^(that + 1 - WEIGHT_BITS).
        let e = peak.to_bits() >> 23;
        if !(WEIGHT_BITS..=127 + 100).contains(&e) {
            return Unit { unit: 0.0, inverse: 0.0 };
        }
        let unit = e + 1 - WEIGHT_BITS;
        Unit { unit: f32::from_bits(unit << 23), inverse: f32::from_bits((254 - unit) << 23) }
    }

    /// The integer weight of a product `w`: |result| <= 2^14.
    #[inline(always)]
    pub fn weight(self, w: f32) -> i32 {
        round_ties_even(w * self.inverse)
    }

    /// The score of one mirrored key: `zero` = sum over channels of query times zero point, `dot` =
    /// sum of weight times code.
    #[inline(always)]
    pub fn score(self, zero: f32, dot: i32) -> f32 {
        finite_score(fma(self.unit, dot as f32, zero))
    }

    /// The score of a key of which only the coarse half of the codes is known: `halves` = sum of weight times twice
    /// the value that stands for it, the middle of what is open, which is an integer then.
    #[inline(always)]
    pub fn coarse_score(self, zero: f32, halves: i32) -> f32 {
        finite_score(fma(0.5 * self.unit, halves as f32, zero))
    }
}

/// Standard deviations by which a block's coarse estimate may be too low before it is left at that.
///
/// Measured together with [`NEGLIGIBLE`] on the bundled traces, see docs/algorithm.md.
pub const DOUBT: f32 = 1.0;
/// log2 of the share of a head's mass below which the fine plane of a block is not read, relative to the mean share,
/// 1 / blocks: half of it, so that all of them together hold at most half of the mass, at any length. A fixed share that
/// is right at 4K is too much at 32K.
pub const NEGLIGIBLE: f32 = -1.0;
/// The same where bounds are asked for: what is left at its coarse bound counts in full against the certificate, so
/// that all such blocks together must stay below a twentieth. log2(1 / 20).
pub const NEGLIGIBLE_BOUND: f32 = -4.321_928;

/// Standard deviation of a coarse score that leaves `fine` bits open: a coarse step is `2^fine` steps wide, and a value
/// anywhere in it is off by `2^fine / sqrt(12)` steps on average. `squares`: tree sum over channels of (query times
/// step) squared.
#[inline(always)]
pub fn spread(squares: f32, fine: u32) -> f32 {
    // The square root by the functions that every backend has.
    0.288_675_13 * (1u32 << fine) as f32 * exp2(0.5 * log2(if squares < 1e30 { squares } else { 1e30 }))
}

/// log2 mass beyond which a block's second look matters, from the largest log2 mass and the sum of the fixed-point
/// masses of all blocks. `negligible`: [`NEGLIGIBLE`] or [`NEGLIGIBLE_BOUND`].
#[inline(always)]
pub fn look_threshold(peak: f32, total: u64, blocks: u32, negligible: f32) -> f32 {
    peak + ((log2(total as f32) - log2(blocks as f32)) + (negligible - MASS_BITS as f32))
}

/// True where a block of this coarse log2 mass, too low by `doubt` at most, may be worth a second look. NaN says yes.
#[inline(always)]
pub fn matters(log_mass: f32, doubt: f32, threshold: f32) -> bool {
    let optimistic = log_mass + doubt;
    optimistic.is_nan() || optimistic > threshold
}

/// A score that later arithmetic can rely on: finite for any input, so that no difference of two
/// scores is NaN. Real scores are never near the bounds.
#[inline(always)]
pub fn finite_score(t: f32) -> f32 {
    let t = if t > -1e30 { t } else { -1e30 };
    if t < 1e30 { t } else { 1e30 }
}

/// Zero and step of one channel of a 64-token group, as stored in the page (f16 values held in f32).
#[inline(always)]
pub fn quantiser_range(min: f32, max: f32, levels: u32) -> (f32, f32) {
    // Saturate instead of storing an infinity: keys beyond the range of f16 get a poor estimate, and
    // are still attended to exactly.
    const TOP: f32 = 65504.0;
    let clamp = |x: f32| {
        let x = if x > TOP { TOP } else { x };
        if x < -TOP { -TOP } else { x }
    };
    (clamp(min), clamp((max - min) / (levels - 1) as f32))
}

/// The code of a key element, given zero and step as stored. A step of zero gives code 0.
#[inline(always)]
pub fn quantise(x: f32, zero: f32, step: f32, levels: u32) -> u32 {
    if step.is_nan() || step <= 0.0 {
        return 0;
    }
    let c = (x - zero) * reciprocal(step);
    let top = (levels - 1) as f32;
    // The zero was rounded to f16, so the extremes may fall just outside.
    let c = if c > 0.0 { c } else { 0.0 };
    let c = if c < top { c } else { top };
    round_ties_even(c) as u32
}

/// Fixed-point mass of a block of log2 mass `log_mass`, relative to the head's largest `peak`.
#[inline(always)]
pub fn fixed_mass(log_mass: f32, peak: f32) -> u32 {
    (exp2(log_mass - peak) * (1u32 << MASS_BITS) as f32) as u32
}

/// A mass target in `0.0 ..= 1.0` as fixed point, rounded up.
#[inline(always)]
pub fn fixed_target(mass: f32) -> u32 {
    let x = mass * (1u32 << TARGET_BITS) as f32;
    let floor = x as u32;
    if (floor as f32) < x { floor + 1 } else { floor }
}

/// The least fixed-point mass that reaches `target` of `total`.
#[inline(always)]
pub fn needed_mass(total: u64, target: u32) -> u64 {
    (total * target as u64 + ((1 << TARGET_BITS) - 1)) >> TARGET_BITS
}

/// Sort key of a block: forced first, then the larger rank value, then the lower index. Keys are
/// compared descending and are all different.
#[inline(always)]
pub fn rank_key(forced: bool, rank: f32, block: u32) -> u64 {
    // A rank is a sum of shares, so it is finite and not negative: its bits are ordered and leave the
    // top bit free. Forced blocks go by index alone.
    let high = if forced { 1u32 << 31 } else { rank.to_bits() };
    (high as u64) << 32 | (!block) as u64
}

/// The block of a rank key.
#[inline(always)]
pub fn block_of_key(key: u64) -> u32 {
    !(key as u32)
}

/// Exact mass `l * 2^m` that a running softmax has seen (maximum `m` in log2, sum `l`), relative to
/// `peak`, the largest estimated block mass. Where the estimate was so low that the ratio would
/// overflow, it saturates: more than any rest can be.
#[inline(always)]
pub fn relative_mass(m: f32, l: f32, peak: f32) -> f32 {
    let d = m - peak;
    l * exp2(if d < 60.0 { d } else { 60.0 })
}

/// A fixed-point rest as f32, in units of the head's largest block mass.
#[inline(always)]
pub fn rest_mass(rest: u64) -> f32 {
    rest as f32 * (1.0 / (1u32 << MASS_BITS) as f32)
}

/// The share of the mass that is believed read: z / (z + rest), 1 where nothing is left.
#[inline(always)]
pub fn believed_mass(z: f32, rest: f32) -> f32 {
    if rest > 0.0 { z * reciprocal(z + rest) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_is_within_two_units_of_the_last_place() {
        let mut worst = 0.0f64;
        for i in 0..2_000_000 {
            let x = -125.999 + i as f32 * (130.0 / 2_000_000.0);
            let want = (x as f64).exp2();
            worst = worst.max(((exp2(x) as f64) - want).abs() / want);
        }
        assert!(worst < 2e-7, "relative error {worst:e}");
        assert_eq!(exp2(0.0), 1.0);
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2(-1e30), 0.0);
        assert!(exp2(-1e-9) <= 1.0);
    }

    #[test]
    fn reciprocal_is_within_two_units_of_the_last_place() {
        let mut x = 2.0f32.powi(-100);
        while x < 2.0f32.powi(100) {
            let error = (reciprocal(x) as f64 * x as f64 - 1.0).abs();
            assert!(error < 2e-7, "{x:e}: {error:e}");
            x *= 1.000_123;
        }
        for e in -100..=100 {
            assert_eq!(reciprocal(2.0f32.powi(e)), 2.0f32.powi(-e));
        }
    }

    #[test]
    fn log2_is_close_and_exact_at_powers_of_two() {
        for e in -100..100 {
            assert_eq!(log2((e as f32).exp2()), e as f32);
        }
        let mut worst = 0.0f64;
        let mut x = 1e-30f32;
        while x < 1e30 {
            let want = (x as f64).log2();
            worst = worst.max(((log2(x) as f64) - want).abs() / want.abs().max(1.0));
            x *= 1.000_37;
        }
        assert!(worst < 3e-7, "error {worst:e}");
    }

    #[test]
    fn weights_stay_in_fifteen_bits_and_units_are_powers_of_two() {
        for peak in [1e-30f32, 1e-3, 0.5, 0.999_999_9, 1.0, 1.000_000_1, 3.7, 1e20, 1e30] {
            let u = Unit::of_peak(peak);
            assert_eq!(u.unit * u.inverse, 1.0, "{peak}");
            let w = u.weight(peak);
            assert!((1 << 13..=1 << 14).contains(&w), "{peak}: {w}");
            assert_eq!(u.weight(-peak), -w);
            let back = u.unit * w as f32;
            assert!((back - peak).abs() <= peak / 16384.0);
        }
        for peak in [0.0, 1e-45, f32::MAX, f32::INFINITY] {
            assert_eq!(Unit::of_peak(peak), Unit { unit: 0.0, inverse: 0.0 });
        }
    }

    #[test]
    fn rank_keys_order_by_force_then_rank_then_index() {
        let keys = [
            rank_key(true, 0.0, 0),
            rank_key(true, 5.0, 9),
            rank_key(false, 0.5, 3),
            rank_key(false, 0.5, 4),
            rank_key(false, 0.0, 1),
        ];
        assert!(keys.windows(2).all(|w| w[0] > w[1]));
        assert_eq!(keys.map(block_of_key), [0, 9, 3, 4, 1]);
    }

    #[test]
    fn needed_mass_is_met_only_at_or_above_the_target() {
        assert_eq!(fixed_target(1.0), 1 << TARGET_BITS);
        assert_eq!(fixed_target(0.0), 0);
        for total in [1u64, 3, 1 << 30, (1 << 43) - 1] {
            assert_eq!(needed_mass(total, 1 << TARGET_BITS), total);
            let n = needed_mass(total, fixed_target(0.95));
            assert!(n as f64 >= 0.95 * total as f64 && n as f64 <= 0.951 * total as f64 + 1.0);
        }
    }

    #[test]
    fn quantiser_reproduces_the_extremes_and_survives_odd_ranges() {
        let (zero, step) = quantiser_range(-1.0, 2.0, 4);
        assert_eq!((zero, step), (-1.0, 1.0));
        assert_eq!(
            [-9.0, -1.0, 0.4, 0.5, 1.6, 2.0, 9.0].map(|x| quantise(x, zero, step, 4)),
            [0, 0, 1, 2, 3, 3, 3]
        );
        assert_eq!(quantise(5.0, 5.0, 0.0, 4), 0);
        let (zero, step) = quantiser_range(-3e38, 3e38, 16);
        assert!(zero.is_finite() && step.is_finite());
    }
}
