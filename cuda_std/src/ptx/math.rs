//! Fast f32 approximations and small integer dot products.

use psa_codegen_macros::gpu_only;

#[cfg(target_arch = "nvptx64")]
use crate::intrinsics;

/// `2^x`; denormals in and out are zero. Relative error up to 2^-22. PTX `ex2.approx.ftz.f32`.
#[gpu_only]
#[inline(always)]
pub fn ex2_approx(x: f32) -> f32 {
    intrinsics::ex2_approx_ftz(x)
}

/// Base-2 logarithm; denormals are zero. Absolute error up to 2^-22 in [0.5, 2], else relative.
/// PTX `lg2.approx.ftz.f32`.
#[gpu_only]
#[inline(always)]
pub fn lg2_approx(x: f32) -> f32 {
    intrinsics::lg2_approx_ftz(x)
}

/// `1 / x`, at most 1 ulp off; denormals are zero. PTX `rcp.approx.ftz.f32`.
#[gpu_only]
#[inline(always)]
pub fn rcp_approx(x: f32) -> f32 {
    intrinsics::rcp_approx_ftz(x)
}

/// `1 / sqrt(x)`, relative error up to 2^-22.4; denormals are zero. PTX `rsqrt.approx.ftz.f32`.
#[gpu_only]
#[inline(always)]
pub fn rsqrt_approx(x: f32) -> f32 {
    intrinsics::rsqrt_approx_ftz(x)
}

/// `a * b + c`, rounded once. PTX `fma.rn.f32`. On the host `f32::mul_add`.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    crate::float::GpuFloat::mul_add(a, b, c)
}

/// The larger one; the other one if one is NaN. PTX `max.f32`.
#[inline(always)]
pub fn max(a: f32, b: f32) -> f32 {
    #[cfg(target_arch = "nvptx64")]
    {
        intrinsics::fmax_f32(a, b)
    }
    #[cfg(not(target_arch = "nvptx64"))]
    a.max(b)
}

/// The smaller one; the other one if one is NaN. PTX `min.f32`.
#[inline(always)]
pub fn min(a: f32, b: f32) -> f32 {
    #[cfg(target_arch = "nvptx64")]
    {
        intrinsics::fmin_f32(a, b)
    }
    #[cfg(not(target_arch = "nvptx64"))]
    a.min(b)
}

macro_rules! dot {
    ($($(#[$doc:meta])* $name:ident, $ptx:literal, $c:ty, $a:ty, $b:ty, $lanes:literal, |$x:ident, $y:ident, $k:ident| $term:expr;)*) => {$(
        $(#[$doc])*
        #[doc = concat!("PTX `", $ptx, "`, sm_61. Also on the host.")]
        #[inline(always)]
        pub fn $name(a: u32, b: u32, c: $c) -> $c {
            #[cfg(target_arch = "nvptx64")]
            {
                let d: $c;
                // SAFETY: arithmetic.
                unsafe {
                    core::arch::asm!(
                        concat!($ptx, " {0}, {1}, {2}, {3};"),
                        out(reg32) d, in(reg32) a, in(reg32) b, in(reg32) c,
                        options(pure, nomem, nostack, preserves_flags)
                    );
                }
                d
            }
            #[cfg(not(target_arch = "nvptx64"))]
            {
                let ($x, $y) = (a, b);
                let mut sum = c;
                for $k in 0..$lanes {
                    sum = sum.wrapping_add($term as $c);
                }
                sum
            }
        }
    )*};
}

/// Signed or unsigned 16-bit part `k` and 8-bit part `k` of a word.
#[cfg(not(target_arch = "nvptx64"))]
mod part {
    pub fn i16(word: u32, k: u32) -> i32 {
        (word >> (16 * k)) as u16 as i16 as i32
    }
    pub fn u16(word: u32, k: u32) -> u32 {
        (word >> (16 * k)) as u16 as u32
    }
    pub fn i8(word: u32, k: u32) -> i32 {
        (word >> (8 * k)) as u8 as i8 as i32
    }
    pub fn u8(word: u32, k: u32) -> u32 {
        (word >> (8 * k)) as u8 as u32
    }
}

dot! {
    /// `c` plus the dot product of two signed 16-bit values in `a` with the unsigned bytes 0 and 1 of `b`.
    dp2a_lo_s32_u32, "dp2a.lo.s32.u32", i32, i16, u8, 2, |a, b, k| part::i16(a, k) * part::u8(b, k) as i32;
    /// `c` plus the dot product of two signed 16-bit values in `a` with the unsigned bytes 2 and 3 of `b`.
    dp2a_hi_s32_u32, "dp2a.hi.s32.u32", i32, i16, u8, 2, |a, b, k| part::i16(a, k) * part::u8(b, k + 2) as i32;
    /// `c` plus the dot product of two unsigned 16-bit values in `a` with the unsigned bytes 0 and 1 of `b`.
    dp2a_lo_u32_u32, "dp2a.lo.u32.u32", u32, u16, u8, 2, |a, b, k| part::u16(a, k) * part::u8(b, k);
    /// `c` plus the dot product of two unsigned 16-bit values in `a` with the unsigned bytes 2 and 3 of `b`.
    dp2a_hi_u32_u32, "dp2a.hi.u32.u32", u32, u16, u8, 2, |a, b, k| part::u16(a, k) * part::u8(b, k + 2);
    /// `c` plus the dot product of the four signed bytes of `a` with those of `b`.
    dp4a_s32_s32, "dp4a.s32.s32", i32, i8, i8, 4, |a, b, k| part::i8(a, k) * part::i8(b, k);
    /// `c` plus the dot product of the four signed bytes of `a` with the four unsigned bytes of `b`.
    dp4a_s32_u32, "dp4a.s32.u32", i32, i8, u8, 4, |a, b, k| part::i8(a, k) * part::u8(b, k) as i32;
    /// `c` plus the dot product of the four unsigned bytes of `a` with those of `b`.
    dp4a_u32_u32, "dp4a.u32.u32", u32, u8, u8, 4, |a, b, k| part::u8(a, k) * part::u8(b, k);
}

/// Four bytes picked from the eight of `b:a`: nibble `k` of `selector` names byte `k` of the result
/// (0 to 3 in `a`, 4 to 7 in `b`; bit 3 replicates that byte's sign). PTX `prmt.b32`. Also on the host.
#[inline(always)]
pub fn prmt(a: u32, b: u32, selector: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let d: u32;
        // SAFETY: arithmetic.
        unsafe {
            core::arch::asm!(
                "prmt.b32 {0}, {1}, {2}, {3};",
                out(reg32) d, in(reg32) a, in(reg32) b, in(reg32) selector,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        d
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        let bytes = (b as u64) << 32 | a as u64;
        (0..4).fold(0, |d, k| {
            let nibble = selector >> (4 * k) & 15;
            let byte = (bytes >> (8 * (nibble & 7))) as u8;
            let byte = if nibble & 8 == 0 { byte } else { (byte as i8 >> 7) as u8 };
            d | (byte as u32) << (8 * k)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_products_take_signs_and_halves_as_named() {
        // a = [-2, 3] as i16, b = [200, 1, 7, 255] as u8
        let (a, b) = (0x0003_fffe, 0xff07_01c8);
        assert_eq!(dp2a_lo_s32_u32(a, b, 10), 10 - 400 + 3);
        assert_eq!(dp2a_hi_s32_u32(a, b, 10), 10 - 14 + 765);
        assert_eq!(dp2a_lo_u32_u32(a, b, 1), 1 + 0xfffe * 200 + 3);
        assert_eq!(dp2a_hi_u32_u32(a, b, 1), 1 + 0xfffe * 7 + 765);
        // a = [-2, -1, 3, 0] as i8
        assert_eq!(dp4a_s32_s32(a, b, 0), -2 * -56 + -1 + 3 * 7);
        assert_eq!(dp4a_s32_u32(a, b, 0), -2 * 200 + -1 + 3 * 7);
        assert_eq!(dp4a_u32_u32(a, b, 0), 254 * 200 + 255 + 21);
    }

    #[test]
    fn prmt_picks_bytes_and_replicates_signs() {
        let (a, b) = (0x8433_2211, 0x8877_6655);
        assert_eq!(prmt(a, b, 0x3210), a);
        assert_eq!(prmt(a, b, 0x7654), b);
        assert_eq!(prmt(a, b, 0x0123), 0x1122_3384);
        assert_eq!(prmt(a, b, 0xfb40), 0xffff_5511);
        assert_eq!(prmt(a, b, 0x8c00), 0x0000_1111);
    }
}
