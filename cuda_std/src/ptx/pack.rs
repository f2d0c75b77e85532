//! Two 16-bit floats in one word: the element with the lower index in the lower half.

/// `lo` and `hi` rounded to bf16 (nearest even) in one word.
/// PTX `cvt.rn.bf16x2.f32 d, hi, lo`, sm_80, ISA 7.0. Also on the host.
#[inline(always)]
pub fn pack_bf16x2(lo: f32, hi: f32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let d: u32;
        // SAFETY: arithmetic. The instruction takes the high half first.
        unsafe {
            core::arch::asm!(
                "cvt.rn.bf16x2.f32 {0}, {1}, {2};",
                out(reg32) d, in(reg32) hi, in(reg32) lo,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        d
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        use crate::half::bf16;
        bf16::from_f32(lo).to_bits() as u32 | (bf16::from_f32(hi).to_bits() as u32) << 16
    }
}

/// `lo` and `hi` rounded to f16 (nearest even) in one word.
/// PTX `cvt.rn.f16x2.f32 d, hi, lo`, sm_80, ISA 7.0. Also on the host.
#[inline(always)]
pub fn pack_f16x2(lo: f32, hi: f32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let d: u32;
        // SAFETY: arithmetic. The instruction takes the high half first.
        unsafe {
            core::arch::asm!(
                "cvt.rn.f16x2.f32 {0}, {1}, {2};",
                out(reg32) d, in(reg32) hi, in(reg32) lo,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        d
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        use crate::half::f16;
        f16::from_f32(lo).to_bits() as u32 | (f16::from_f32(hi).to_bits() as u32) << 16
    }
}

/// The two bf16 of a word as f32, low half first. A shift and a mask.
#[inline(always)]
pub fn unpack_bf16x2(word: u32) -> (f32, f32) {
    (f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000))
}

/// The two f16 of a word as f32, low half first. PTX `cvt.f32.f16`, twice. Also on the host.
#[inline(always)]
pub fn unpack_f16x2(word: u32) -> (f32, f32) {
    use crate::half::f16;
    (f16::from_bits(word as u16).to_f32(), f16::from_bits((word >> 16) as u16).to_f32())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_element_is_in_the_lower_half() {
        assert_eq!(pack_bf16x2(1.0, -2.0), 0xc000_3f80);
        assert_eq!(pack_f16x2(1.0, -2.0), 0xc000_3c00);
        assert_eq!(unpack_bf16x2(0xc000_3f80), (1.0, -2.0));
        assert_eq!(unpack_f16x2(0xc000_3c00), (1.0, -2.0));
    }

    #[test]
    fn packing_rounds_ties_to_even() {
        // Halfway between two bf16 values: 1 + 2^-8 down to 1, 1 + 3 * 2^-8 up to 1 + 2^-6.
        assert_eq!(pack_bf16x2(1.0 + 0.003_906_25, 1.0 + 3.0 * 0.003_906_25), 0x3f82_3f80);
    }
}
