//! 2-byte tensors as the callers hold them, and their widening to f32.
//!
//! Inside the crate elements are `u16` bit patterns: slots and tensors of both types are copied as they
//! are, and only arithmetic widens them. Widening is exact and written without branches, so that loops
//! over it become vector code.

use crate::{Dtype, Error};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// A row-major tensor of either element type.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// IEEE 754 half precision.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

impl<'a> Rows<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bits().len()
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        match self {
            Rows::F16(_) => Dtype::F16,
            Rows::Bf16(_) => Dtype::Bf16,
        }
    }

    /// The elements' bit patterns.
    pub fn bits(&self) -> &'a [u16] {
        match self {
            Rows::F16(x) => x.reinterpret_cast(),
            Rows::Bf16(x) => x.reinterpret_cast(),
        }
    }

    /// Checks element type, number of elements (`layout` names the dimensions) and, on request, that
    /// all are finite.
    pub(crate) fn check(
        &self,
        tensor: &'static str,
        dtype: Dtype,
        expected: usize,
        layout: impl FnOnce() -> String,
        finite: bool,
    ) -> Result<(), Error> {
        if self.dtype() != dtype {
            return Err(Error::Dtype { tensor, expected: dtype, got: self.dtype() });
        }
        if self.len() != expected {
            return Err(Error::Length { tensor, expected, got: self.len(), layout: layout() });
        }
        match finite.then(|| self.first_non_finite()).flatten() {
            Some(index) => Err(Error::NonFinite { tensor, index }),
            None => Ok(()),
        }
    }

    /// Some of the elements.
    pub(crate) fn part(self, elements: std::ops::Range<usize>) -> Rows<'a> {
        match self {
            Rows::F16(x) => Rows::F16(&x[elements]),
            Rows::Bf16(x) => Rows::Bf16(&x[elements]),
        }
    }

    fn first_non_finite(&self) -> Option<usize> {
        let exponent = match self.dtype() {
            Dtype::F16 => 0x7c00,
            Dtype::Bf16 => 0x7f80,
        };
        let odd = |&x: &u16| x & exponent == exponent;
        // Whole chunks without an early exit become vector code; the search is for the error only.
        let chunk = self.bits().chunks(4096).position(|c| c.iter().fold(false, |any, x| any | odd(x)))?;
        let start = chunk * 4096;
        self.bits()[start..].iter().position(odd).map(|i| start + i)
    }
}

impl<'a> From<&'a [f16]> for Rows<'a> {
    fn from(x: &'a [f16]) -> Self {
        Rows::F16(x)
    }
}

impl<'a> From<&'a [bf16]> for Rows<'a> {
    fn from(x: &'a [bf16]) -> Self {
        Rows::Bf16(x)
    }
}

impl<'a> From<&'a Vec<f16>> for Rows<'a> {
    fn from(x: &'a Vec<f16>) -> Self {
        Rows::F16(x)
    }
}

impl<'a> From<&'a Vec<bf16>> for Rows<'a> {
    fn from(x: &'a Vec<bf16>) -> Self {
        Rows::Bf16(x)
    }
}

/// How bit patterns become numbers, as a type, so that loops are compiled for each.
pub(crate) trait Format: Copy + Send + Sync {
    /// Whether a bit pattern is the upper half of its value's f32.
    const TOP_OF_F32: bool;
    /// The exact value of a bit pattern.
    fn widen(bits: u16) -> f32;
}

/// bfloat16.
#[derive(Clone, Copy)]
pub(crate) struct Bf16;

impl Format for Bf16 {
    const TOP_OF_F32: bool = true;

    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        f32::from_bits((bits as u32) << 16)
    }
}

/// IEEE 754 half precision.
#[derive(Clone, Copy)]
pub(crate) struct F16;

impl Format for F16 {
    const TOP_OF_F32: bool = false;

    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        // Exponent and fraction in f32's places; the exponents' bias differs by 112. Exact for
        // subnormals too. Infinities and NaN keep a full exponent.
        let magnitude = (bits as u32 & 0x7fff) << 13;
        let scaled = (f32::from_bits(magnitude) * f32::from_bits((112 + 127) << 23)).to_bits();
        let value = if magnitude >= 0x7c00 << 13 { magnitude | 0x7f80_0000 } else { scaled };
        f32::from_bits(value | (bits as u32 & 0x8000) << 16)
    }
}

/// The exact value of a bit pattern of a type known at run time.
pub fn widen(dtype: Dtype, bits: u16) -> f32 {
    match dtype {
        Dtype::Bf16 => Bf16::widen(bits),
        Dtype::F16 => F16::widen(bits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_is_exact_for_every_bit_pattern() {
        for bits in 0..=u16::MAX {
            let (a, b) = (widen(Dtype::F16, bits), f16::from_bits(bits).to_f32());
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "f16 {bits:#x}: {a} {b}");
            let (a, b) = (widen(Dtype::Bf16, bits), bf16::from_bits(bits).to_f32());
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "bf16 {bits:#x}: {a} {b}");
        }
    }

    #[test]
    fn the_first_element_that_is_not_finite_is_named() {
        let mut x = vec![f16::ONE; 10_000];
        assert_eq!(Rows::from(&x).first_non_finite(), None);
        x[9_999] = f16::INFINITY;
        x[4_097] = f16::NAN;
        assert_eq!(Rows::from(&x).first_non_finite(), Some(4_097));
        let x = [bf16::MAX, bf16::NEG_INFINITY];
        assert_eq!(Rows::from(&x[..]).first_non_finite(), Some(1));
    }
}
