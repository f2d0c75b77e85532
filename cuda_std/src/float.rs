//! Float methods that `core` alone does not have on the device.
//!
//! On the host each method is std's inherent one, which also wins over the trait in a method call, so a
//! function written with these compiles on both sides. `a * b + c` is never fused: ask for `mul_add`.
//! On the device `GpuFloatExp` is approximate (errors below); it is for softmax, not for libm.

/// Rounding, square root, fused multiply-add, minimum and maximum.
pub trait GpuFloat: Copy + PartialOrd {
    /// Largest integer not above the value. PTX `cvt.rmi`.
    fn floor(self) -> Self;
    /// Smallest integer not below the value. PTX `cvt.rpi`.
    fn ceil(self) -> Self;
    /// Nearest integer, ties away from zero.
    fn round(self) -> Self;
    /// Nearest integer, ties to even. PTX `cvt.rni`.
    fn round_ties_even(self) -> Self;
    /// Integer part. PTX `cvt.rzi`.
    fn trunc(self) -> Self;
    /// The value minus its integer part.
    fn fract(self) -> Self;
    /// Absolute value. PTX `abs`.
    fn abs(self) -> Self;
    /// The value with the sign of `sign`. PTX `copysign`.
    fn copysign(self, sign: Self) -> Self;
    /// `self * a + b`, rounded once. PTX `fma.rn`.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// Square root, correctly rounded. PTX `sqrt.rn`.
    fn sqrt(self) -> Self;
    /// `1 / self`, correctly rounded (`rcp.rn`); see [`crate::ptx::rcp_approx`] for the fast one.
    fn recip(self) -> Self;
    /// The larger one; the other one if one is NaN. PTX `max`.
    fn max(self, other: Self) -> Self;
    /// The smaller one; the other one if one is NaN. PTX `min`.
    fn min(self, other: Self) -> Self;
}

/// The host's expression or the device's.
macro_rules! on {
    ($host:expr, $device:expr) => {{
        #[cfg(not(target_arch = "nvptx64"))]
        let value = $host;
        #[cfg(target_arch = "nvptx64")]
        let value = $device;
        value
    }};
}

macro_rules! gpu_float {
    ($ty:ident, $fma:ident) => {
        impl GpuFloat for $ty {
            #[inline(always)]
            fn floor(self) -> Self {
                on!($ty::floor(self), core::$ty::math::floor(self))
            }
            #[inline(always)]
            fn ceil(self) -> Self {
                on!($ty::ceil(self), core::$ty::math::ceil(self))
            }
            #[inline(always)]
            fn round(self) -> Self {
                on!($ty::round(self), {
                    // Exact for every value: the fraction of a float is itself a float.
                    let whole = core::$ty::math::trunc(self);
                    let up = $ty::copysign(1.0, self);
                    if $ty::abs(self - whole) >= 0.5 { whole + up } else { $ty::copysign(whole, self) }
                })
            }
            #[inline(always)]
            fn round_ties_even(self) -> Self {
                on!($ty::round_ties_even(self), core::$ty::math::round_ties_even(self))
            }
            #[inline(always)]
            fn trunc(self) -> Self {
                on!($ty::trunc(self), core::$ty::math::trunc(self))
            }
            #[inline(always)]
            fn fract(self) -> Self {
                on!($ty::fract(self), self - core::$ty::math::trunc(self))
            }
            #[inline(always)]
            fn abs(self) -> Self {
                on!($ty::abs(self), $ty::abs(self))
            }
            #[inline(always)]
            fn copysign(self, sign: Self) -> Self {
                on!($ty::copysign(self, sign), $ty::copysign(self, sign))
            }
            #[inline(always)]
            fn mul_add(self, a: Self, b: Self) -> Self {
                on!($ty::mul_add(self, a, b), crate::intrinsics::$fma(self, a, b))
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                on!($ty::sqrt(self), core::$ty::math::sqrt(self))
            }
            #[inline(always)]
            fn recip(self) -> Self {
                1.0 / self
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                $ty::max(self, other)
            }
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                $ty::min(self, other)
            }
        }
    };
}

gpu_float!(f32, fma_rn_f32);
gpu_float!(f64, fma_rn_f64);

/// Exponentials and logarithms of f32. std on the host; on the device approximations whose error is given.
pub trait GpuFloatExp: GpuFloat {
    /// `2^self`. Device: `ex2.approx.f32`, relative error up to 2^-22; denormals kept.
    fn exp2(self) -> Self;
    /// `e^self`. Device: `ex2.approx` with the rounding of `self * log2(e)` made good: relative error up
    /// to 2^-21.
    fn exp(self) -> Self;
    /// Base-2 logarithm. Device: `lg2.approx.f32`, absolute error up to 2^-22 in [0.5, 2], else relative.
    fn log2(self) -> Self;
    /// Natural logarithm. Device: `lg2.approx * ln 2`, with the error of [`GpuFloatExp::log2`].
    fn ln(self) -> Self;
}

impl GpuFloatExp for f32 {
    #[inline(always)]
    fn exp2(self) -> Self {
        on!(f32::exp2(self), crate::intrinsics::ex2_approx(self))
    }

    #[inline(always)]
    fn exp(self) -> Self {
        on!(f32::exp(self), {
            // log2(e) as a sum of two floats; the product's rounding error enters as a factor near 1.
            const HIGH: f32 = core::f32::consts::LOG2_E;
            const LOW: f32 = 1.925_963_1e-8;
            let product = self * HIGH;
            let rest = self.mul_add(LOW, self.mul_add(HIGH, -product));
            let power = crate::intrinsics::ex2_approx(product);
            // For infinite or huge arguments `rest` is NaN or infinite and the power says it all.
            if product.abs() < 200.0 { power.mul_add(rest * core::f32::consts::LN_2, power) } else { power }
        })
    }

    #[inline(always)]
    fn log2(self) -> Self {
        on!(f32::log2(self), crate::intrinsics::lg2_approx(self))
    }

    #[inline(always)]
    fn ln(self) -> Self {
        on!(f32::ln(self), crate::intrinsics::lg2_approx(self) * core::f32::consts::LN_2)
    }
}

#[cfg(test)]
mod tests {
    /// log2(e) = 1.44269504088896340735992..., minus its nearest f32.
    #[test]
    fn the_low_part_of_log2_e_completes_the_high_part() {
        let low = core::f64::consts::LOG2_E - f64::from(core::f32::consts::LOG2_E);
        assert!((low - 1.925_963_1e-8).abs() < 1e-14, "{low:e}");
    }
}
