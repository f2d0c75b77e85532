//! 16 lanes of f32 as one value, at each vector width: what register tiles are made of.
//!
//! `[f32; 16]` is the definition; the others give the same bits. Elements of 2 bytes are widened as they are
//! loaded, 32 at a time into two vectors: halves of f16, which has an instruction for it, and every other one of
//! bf16, where the shift and the mask of a 32-bit word do it ([`place`]).
//!
//! Trap: the types of x86 may be used only inside the copies that `per_isa` makes for their level.

use super::lanes::{Lanes, Portable};
use crate::element::Format;
use kernels_gpu::numeric;

/// Elements that [`Vector::widen`] takes at a time.
pub(crate) const WIDENED: usize = 32;

/// Where [`Vector::widen`] puts element `c` of a row, as an index of lanes.
#[inline(always)]
pub(crate) const fn place<F: Format>(c: usize) -> usize {
    let i = c % WIDENED;
    c - i + if F::TOP_OF_F32 { i % 2 * 16 + i / 2 } else { i }
}

/// 16 lanes.
pub(crate) trait Vector: Copy {
    /// The same in all lanes.
    fn splat(x: f32) -> Self;
    /// From memory.
    fn load(x: &[f32; 16]) -> Self;
    /// To memory.
    fn store(self, to: &mut [f32; 16]);
    /// `self * b + c`, rounded once.
    fn fma(self, b: Self, c: Self) -> Self;
    /// `self + b`.
    fn add(self, b: Self) -> Self;
    /// `self * b`.
    fn mul(self, b: Self) -> Self;
    /// The larger ones; `b` where a lane of `self` is NaN.
    fn max(self, b: Self) -> Self;
    /// The smaller ones; `b` where a lane of `self` is NaN.
    fn min(self, b: Self) -> Self;
    /// [`numeric::exp2`] of the lanes: its loop becomes vector code by itself.
    #[inline(always)]
    fn exp2(self) -> Self {
        let mut x = [0.0; 16];
        self.store(&mut x);
        for x in &mut x {
            *x = numeric::exp2(*x);
        }
        Self::load(&x)
    }
    /// Sum of the lanes, pairwise at distance 8, 4, 2, 1.
    #[inline(always)]
    fn sum<L: Lanes>(self) -> f32 {
        let mut x = [0.0; 16];
        self.store(&mut x);
        L::sum(x)
    }
    /// Largest of the lanes, none of which is NaN.
    #[inline(always)]
    fn largest<L: Lanes>(self) -> f32 {
        let mut x = [0.0; 16];
        self.store(&mut x);
        L::max(x)
    }
    /// The sums over the lanes of 16 vectors, each pairwise at distance 8, 4, 2, 1.
    fn sums(x: &[Self; 16]) -> [f32; 16];
    /// The exact values of 32 elements, dealt to two vectors as [`place`] says.
    fn widen<F: Format>(bits: &[u16; WIDENED]) -> [Self; 2];
}

impl Vector for [f32; 16] {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        [x; 16]
    }

    #[inline(always)]
    fn load(x: &[f32; 16]) -> Self {
        *x
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; 16]) {
        *to = self;
    }

    #[inline(always)]
    fn fma(self, b: Self, mut c: Self) -> Self {
        for l in 0..16 {
            c[l] = numeric::fma(self[l], b[l], c[l]);
        }
        c
    }

    #[inline(always)]
    fn add(mut self, b: Self) -> Self {
        for l in 0..16 {
            self[l] += b[l];
        }
        self
    }

    #[inline(always)]
    fn mul(mut self, b: Self) -> Self {
        for l in 0..16 {
            self[l] *= b[l];
        }
        self
    }

    #[inline(always)]
    fn max(mut self, b: Self) -> Self {
        for l in 0..16 {
            self[l] = if self[l] > b[l] { self[l] } else { b[l] };
        }
        self
    }

    #[inline(always)]
    fn min(mut self, b: Self) -> Self {
        for l in 0..16 {
            self[l] = if self[l] < b[l] { self[l] } else { b[l] };
        }
        self
    }

    #[inline(always)]
    fn sums(x: &[Self; 16]) -> [f32; 16] {
        Portable::sums(x)
    }

    #[inline(always)]
    fn widen<F: Format>(bits: &[u16; WIDENED]) -> [Self; 2] {
        let mut lanes = [0.0f32; WIDENED];
        for c in 0..WIDENED {
            lanes[place::<F>(c)] = F::widen(bits[c]);
        }
        let [low, high] = lanes.as_chunks::<16>().0 else { unreachable!("32 are two times 16") };
        [*low, *high]
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::lanes::x86::{fold, store_f32};
    use super::{Vector, WIDENED};
    use crate::element::Format;
    use std::arch::x86_64::*;

    impl Vector for [__m256; 2] {
        #[inline(always)]
        fn splat(x: f32) -> Self {
            // SAFETY: the type's promise, AVX2, F16C and FMA, here and in the functions below.
            unsafe { [_mm256_set1_ps(x); 2] }
        }

        #[inline(always)]
        fn load(x: &[f32; 16]) -> Self {
            // SAFETY: both loads are inside the array.
            unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
        }

        #[inline(always)]
        fn store(self, to: &mut [f32; 16]) {
            // SAFETY: both stores are inside the array.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), self[0]);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), self[1]);
            }
        }

        #[inline(always)]
        fn fma(self, b: Self, c: Self) -> Self {
            // SAFETY: the type's promise.
            unsafe { [_mm256_fmadd_ps(self[0], b[0], c[0]), _mm256_fmadd_ps(self[1], b[1], c[1])] }
        }

        #[inline(always)]
        fn add(self, b: Self) -> Self {
            // SAFETY: the type's promise.
            unsafe { [_mm256_add_ps(self[0], b[0]), _mm256_add_ps(self[1], b[1])] }
        }

        #[inline(always)]
        fn mul(self, b: Self) -> Self {
            // SAFETY: the type's promise.
            unsafe { [_mm256_mul_ps(self[0], b[0]), _mm256_mul_ps(self[1], b[1])] }
        }

        #[inline(always)]
        fn max(self, b: Self) -> Self {
            // SAFETY: the type's promise.
            unsafe { [_mm256_max_ps(self[0], b[0]), _mm256_max_ps(self[1], b[1])] }
        }

        #[inline(always)]
        fn min(self, b: Self) -> Self {
            // SAFETY: the type's promise.
            unsafe { [_mm256_min_ps(self[0], b[0]), _mm256_min_ps(self[1], b[1])] }
        }

        #[inline(always)]
        fn sums(x: &[Self; 16]) -> [f32; 16] {
            // SAFETY: the type's promise.
            unsafe {
                let mut halves = [_mm256_setzero_ps(); 16];
                for (half, x) in halves.iter_mut().zip(x) {
                    *half = _mm256_add_ps(x[0], x[1]);
                }
                store_f32(fold(halves, |a, b| _mm256_add_ps(a, b)))
            }
        }

        #[inline(always)]
        fn widen<F: Format>(bits: &[u16; WIDENED]) -> [Self; 2] {
            // SAFETY: the loads are of 8 or 16 of the 32 elements, from 0, 8, 16 or 24 on.
            unsafe {
                if F::TOP_OF_F32 {
                    let top = _mm256_set1_epi32(0xffff_0000u32 as i32);
                    let a = _mm256_loadu_si256(bits.as_ptr().cast());
                    let b = _mm256_loadu_si256(bits.as_ptr().add(16).cast());
                    let even = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x));
                    let odd = |x| _mm256_castsi256_ps(_mm256_and_si256(x, top));
                    [[even(a), even(b)], [odd(a), odd(b)]]
                } else {
                    let eight =
                        |from: usize| _mm256_cvtph_ps(_mm_loadu_si128(bits.as_ptr().add(from).cast()));
                    [[eight(0), eight(8)], [eight(16), eight(24)]]
                }
            }
        }
    }

    impl Vector for __m512 {
        #[inline(always)]
        fn splat(x: f32) -> Self {
            // SAFETY: the type's promise, AVX-512 F, here and in the functions below.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        fn load(x: &[f32; 16]) -> Self {
            // SAFETY: the load is of the array.
            unsafe { _mm512_loadu_ps(x.as_ptr()) }
        }

        #[inline(always)]
        fn store(self, to: &mut [f32; 16]) {
            // SAFETY: the store is of the array.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self) }
        }

        #[inline(always)]
        fn fma(self, b: Self, c: Self) -> Self {
            // SAFETY: the type's promise.
            unsafe { _mm512_fmadd_ps(self, b, c) }
        }

        #[inline(always)]
        fn add(self, b: Self) -> Self {
            // SAFETY: the type's promise.
            unsafe { _mm512_add_ps(self, b) }
        }

        #[inline(always)]
        fn mul(self, b: Self) -> Self {
            // SAFETY: the type's promise.
            unsafe { _mm512_mul_ps(self, b) }
        }

        #[inline(always)]
        fn max(self, b: Self) -> Self {
            // SAFETY: the type's promise.
            unsafe { _mm512_max_ps(self, b) }
        }

        #[inline(always)]
        fn min(self, b: Self) -> Self {
            // SAFETY: the type's promise.
            unsafe { _mm512_min_ps(self, b) }
        }

        #[inline(always)]
        fn sums(x: &[Self; 16]) -> [f32; 16] {
            // SAFETY: the type's promise; the store is of the array.
            unsafe {
                // Each step halves the vectors. Quads of lanes by source: i, i, i + 4, i + 4 ..
                let mut eight = [_mm512_setzero_ps(); 8];
                for i in 0..8 {
                    let (a, b) = (x[i % 4 + i / 4 * 8], x[i % 4 + i / 4 * 8 + 4]);
                    let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
                    let high = _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b);
                    eight[i] = _mm512_add_ps(low, high);
                }
                // .. i, i + 4, i + 8, i + 12 ..
                let mut four = [_mm512_setzero_ps(); 4];
                for i in 0..4 {
                    let (a, b) = (eight[i], eight[i + 4]);
                    let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                    let high = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
                    four[i] = _mm512_add_ps(low, high);
                }
                // .. and within a quad the four of them.
                let two = |a, b| {
                    let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
                    let low = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    _mm512_add_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)))
                };
                let (a, b) = (two(four[0], four[1]), two(four[2], four[3]));
                let even = _mm512_shuffle_ps::<0b10_00_10_00>(a, b);
                let odd = _mm512_shuffle_ps::<0b11_01_11_01>(a, b);
                let mut sums = [0.0; 16];
                _mm512_add_ps(even, odd).store(&mut sums);
                sums
            }
        }

        #[inline(always)]
        fn widen<F: Format>(bits: &[u16; WIDENED]) -> [Self; 2] {
            // SAFETY: the loads are of all 32 elements, or of 16 from 0 or 16 on.
            unsafe {
                if F::TOP_OF_F32 {
                    let x = _mm512_loadu_si512(bits.as_ptr().cast());
                    let top = _mm512_set1_epi32(0xffff_0000u32 as i32);
                    let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x));
                    [even, _mm512_castsi512_ps(_mm512_and_si512(x, top))]
                } else {
                    let load = |from: usize| _mm256_loadu_si256(bits.as_ptr().add(from).cast());
                    [_mm512_cvtph_ps(load(0)), _mm512_cvtph_ps(load(16))]
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::{Bf16, F16};

    #[test]
    fn places_are_a_permutation_of_every_32_elements() {
        fn check<F: Format>() {
            let mut places: Vec<usize> = (0..128).map(place::<F>).collect();
            assert!(places.iter().enumerate().all(|(c, p)| c / WIDENED == p / WIDENED));
            places.sort_unstable();
            assert!(places.into_iter().eq(0..128));
        }
        check::<F16>();
        check::<Bf16>();
    }
}
