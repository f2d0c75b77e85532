//! The device's `bf16` and `f16`: bit patterns with hardware conversions.

use core::arch::asm;
use core::cmp::Ordering;

macro_rules! common {
    ($name:ident, one $one:literal, infinity $infinity:literal, max $max:literal, min_positive $min:literal) => {
        impl $name {
            /// 0.
            pub const ZERO: Self = Self(0);
            /// 1.
            pub const ONE: Self = Self($one);
            /// Positive infinity.
            pub const INFINITY: Self = Self($infinity);
            /// Negative infinity.
            pub const NEG_INFINITY: Self = Self($infinity | 0x8000);
            /// The largest finite value.
            pub const MAX: Self = Self($max);
            /// The smallest finite value.
            pub const MIN: Self = Self($max | 0x8000);
            /// The smallest positive normal value.
            pub const MIN_POSITIVE: Self = Self($min);

            /// The value of a bit pattern.
            #[inline(always)]
            pub const fn from_bits(bits: u16) -> Self {
                Self(bits)
            }

            /// The bit pattern.
            #[inline(always)]
            pub const fn to_bits(self) -> u16 {
                self.0
            }

            /// Whether the value is a NaN.
            #[inline(always)]
            pub const fn is_nan(self) -> bool {
                self.0 & 0x7fff > $infinity
            }
        }

        impl PartialEq for $name {
            #[inline(always)]
            fn eq(&self, other: &Self) -> bool {
                self.to_f32() == other.to_f32()
            }
        }

        impl PartialOrd for $name {
            #[inline(always)]
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                self.to_f32().partial_cmp(&other.to_f32())
            }
        }

        impl From<$name> for f32 {
            #[inline(always)]
            fn from(value: $name) -> f32 {
                value.to_f32()
            }
        }
    };
}

/// bfloat16: the upper half of an f32.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub struct bf16(u16);

common!(bf16, one 0x3f80, infinity 0x7f80, max 0x7f7f, min_positive 0x0080);

impl bf16 {
    /// The value as f32; exact. A shift.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        f32::from_bits((self.0 as u32) << 16)
    }

    /// The nearest bf16, ties to even. PTX `cvt.rn.bf16.f32`, sm_80, ISA 7.0.
    #[inline(always)]
    pub fn from_f32(value: f32) -> Self {
        let bits: u16;
        // SAFETY: arithmetic.
        unsafe {
            asm!("cvt.rn.bf16.f32 {0}, {1};", out(reg16) bits, in(reg32) value, options(pure, nomem, nostack, preserves_flags));
        }
        Self(bits)
    }
}

/// IEEE 754 binary16.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub struct f16(u16);

common!(f16, one 0x3c00, infinity 0x7c00, max 0x7bff, min_positive 0x0400);

impl f16 {
    /// The value as f32; exact. PTX `cvt.f32.f16`.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        let value: f32;
        // SAFETY: arithmetic.
        unsafe {
            asm!("cvt.f32.f16 {0}, {1};", out(reg32) value, in(reg16) self.0, options(pure, nomem, nostack, preserves_flags));
        }
        value
    }

    /// The nearest f16, ties to even. PTX `cvt.rn.f16.f32`.
    #[inline(always)]
    pub fn from_f32(value: f32) -> Self {
        let bits: u16;
        // SAFETY: arithmetic.
        unsafe {
            asm!("cvt.rn.f16.f32 {0}, {1};", out(reg16) bits, in(reg32) value, options(pure, nomem, nostack, preserves_flags));
        }
        Self(bits)
    }
}
