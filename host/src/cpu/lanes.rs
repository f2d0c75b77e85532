//! 16 lanes at each vector width: what the compiler does not make of arrays by itself.
//!
//! A sum over lanes is pairwise at distance 8, 4, 2, 1, in every implementation; `Portable` is the
//! definition.

use kernels_gpu::layout::BLOCK;
use kernels_gpu::numeric::fma;

/// Codes of a mirror page, unpacked: 16-bit integers `[4][64][D / 4]`, see `score`.
pub(crate) type Codes<const D: usize> = [[[i16; D]; BLOCK]; 4];

/// Operations on 16 lanes.
pub(crate) trait Lanes: Copy {
    /// Dot products of `q` with the rows of a block: 16 lanes, lane l adding the channels `l, l + 16, ..`
    /// by fma, ascending; then the sum over the lanes.
    fn dots<const D: usize>(q: &[f32; D], rows: &[[f32; D]; BLOCK]) -> [f32; BLOCK];

    /// Integer dot products of weights `[4][D / 4]` with the codes of a page's block.
    fn code_dots<const D: usize>(weights: &[i16; D], codes: &Codes<D>, block: usize) -> [i32; BLOCK];

    /// Sum of the lanes.
    fn sum(x: [f32; 16]) -> f32;

    /// Largest of the lanes, none of which is NaN.
    fn max(x: [f32; 16]) -> f32;
}

/// Arrays, on any target.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Lanes for Portable {
    #[inline(always)]
    fn dots<const D: usize>(q: &[f32; D], rows: &[[f32; D]; BLOCK]) -> [f32; BLOCK] {
        let mut dots = [0.0; BLOCK];
        for (dot, row) in dots.iter_mut().zip(rows) {
            let mut lanes = [0.0f32; 16];
            for c in (0..D).step_by(16) {
                for l in 0..16 {
                    lanes[l] = fma(q[c + l], row[c + l], lanes[l]);
                }
            }
            *dot = Self::sum(lanes);
        }
        dots
    }

    #[inline(always)]
    fn code_dots<const D: usize>(weights: &[i16; D], codes: &Codes<D>, block: usize) -> [i32; BLOCK] {
        let mut dots = [0; BLOCK];
        for (weights, codes) in weights.chunks(D / 4).zip(codes) {
            let tokens = codes.as_flattened().chunks(D / 4).skip(block * BLOCK);
            for (dot, codes) in dots.iter_mut().zip(tokens) {
                *dot += weights.iter().zip(codes).map(|(&w, &c)| w as i32 * c as i32).sum::<i32>();
            }
        }
        dots
    }

    #[inline(always)]
    fn sum(mut x: [f32; 16]) -> f32 {
        for distance in [8, 4, 2, 1] {
            for i in 0..distance {
                x[i] += x[i + distance];
            }
        }
        x[0]
    }

    #[inline(always)]
    fn max(x: [f32; 16]) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{BLOCK, Codes, Lanes};
    use std::arch::x86_64::*;

    /// AVX2 and FMA. Its functions may run only where these are: inside the copies that `per_isa` makes
    /// for them.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;

    /// AVX-512 F and DQ besides, likewise.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512;

    impl Lanes for Avx2 {
        #[inline(always)]
        fn dots<const D: usize>(q: &[f32; D], rows: &[[f32; D]; BLOCK]) -> [f32; BLOCK] {
            // SAFETY: the type's promise; D is a multiple of 16, so all loads are inside the arrays.
            unsafe {
                let mut halves = [_mm256_setzero_ps(); BLOCK];
                for (half, row) in halves.iter_mut().zip(rows) {
                    let (mut low, mut high) = (_mm256_setzero_ps(), _mm256_setzero_ps());
                    for c in (0..D).step_by(16) {
                        let load = |x: &[f32; D], c: usize| _mm256_loadu_ps(x.as_ptr().add(c));
                        low = _mm256_fmadd_ps(load(q, c), load(row, c), low);
                        high = _mm256_fmadd_ps(load(q, c + 8), load(row, c + 8), high);
                    }
                    *half = _mm256_add_ps(low, high);
                }
                store_f32(fold(halves, |a, b| _mm256_add_ps(a, b)))
            }
        }

        #[inline(always)]
        fn code_dots<const D: usize>(weights: &[i16; D], codes: &Codes<D>, block: usize) -> [i32; BLOCK] {
            // SAFETY: the type's promise; D / 4 is a multiple of 16 and block below 4, so all loads are
            // inside the arrays.
            unsafe {
                let mut sums = [_mm256_setzero_ps(); BLOCK];
                for (t, sum) in sums.iter_mut().enumerate() {
                    let mut lanes = _mm256_setzero_si256();
                    for (j, codes) in codes.iter().enumerate() {
                        let row = codes.as_ptr().cast::<i16>().add((block * BLOCK + t) * (D / 4));
                        for i in (0..D / 4).step_by(16) {
                            let weights = _mm256_loadu_si256(weights.as_ptr().add(j * (D / 4) + i).cast());
                            let products = _mm256_madd_epi16(weights, _mm256_loadu_si256(row.add(i).cast()));
                            lanes = _mm256_add_epi32(lanes, products);
                        }
                    }
                    *sum = _mm256_castsi256_ps(lanes);
                }
                // The shuffles of `fold` move bits; only its additions are of a type.
                let add = |a, b| {
                    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)))
                };
                let [low, high] = fold(sums, add);
                let mut dots = [0i32; BLOCK];
                _mm256_storeu_si256(dots.as_mut_ptr().cast(), _mm256_castps_si256(low));
                _mm256_storeu_si256(dots.as_mut_ptr().add(8).cast(), _mm256_castps_si256(high));
                dots
            }
        }

        #[inline(always)]
        fn sum(x: [f32; 16]) -> f32 {
            // SAFETY: the type's promise; the loads are inside the array.
            unsafe {
                let (a, b) = (_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8)));
                let eight = _mm256_add_ps(a, b);
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            }
        }

        #[inline(always)]
        fn max(x: [f32; 16]) -> f32 {
            // SAFETY: as above.
            unsafe {
                let (a, b) = (_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8)));
                let eight = _mm256_max_ps(a, b);
                let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
            }
        }
    }

    impl Lanes for Avx512 {
        #[inline(always)]
        fn dots<const D: usize>(q: &[f32; D], rows: &[[f32; D]; BLOCK]) -> [f32; BLOCK] {
            // SAFETY: the type's promise; D is a multiple of 16, so all loads are inside the arrays.
            unsafe {
                let mut halves = [_mm256_setzero_ps(); BLOCK];
                for (half, row) in halves.iter_mut().zip(rows) {
                    let mut lanes = _mm512_setzero_ps();
                    for c in (0..D).step_by(16) {
                        let load = |x: &[f32; D]| _mm512_loadu_ps(x.as_ptr().add(c));
                        lanes = _mm512_fmadd_ps(load(q), load(row), lanes);
                    }
                    *half = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps::<1>(lanes));
                }
                store_f32(fold(halves, |a, b| _mm256_add_ps(a, b)))
            }
        }

        #[inline(always)]
        fn code_dots<const D: usize>(weights: &[i16; D], codes: &Codes<D>, block: usize) -> [i32; BLOCK] {
            Avx2::code_dots(weights, codes, block)
        }

        #[inline(always)]
        fn sum(x: [f32; 16]) -> f32 {
            Avx2::sum(x)
        }

        #[inline(always)]
        fn max(x: [f32; 16]) -> f32 {
            Avx2::max(x)
        }
    }

    /// Sums over 8 lanes, at distance 4, 2, 1, of 16 vectors, in the vectors' order.
    ///
    /// # Safety
    /// AVX.
    #[inline(always)]
    unsafe fn fold(x: [__m256; BLOCK], add: impl Fn(__m256, __m256) -> __m256) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            // Each step halves the vectors: at distance 4, i and i + 8 share one, 4 lanes each; at 2,
            // i and i + 1 join, 2 lanes each; at 1, four.
            let mut four = [_mm256_setzero_ps(); 8];
            for (i, four) in four.iter_mut().enumerate() {
                let low = _mm256_permute2f128_ps::<0x20>(x[i], x[i + 8]);
                let high = _mm256_permute2f128_ps::<0x31>(x[i], x[i + 8]);
                *four = add(low, high);
            }
            let mut two = [_mm256_setzero_ps(); 4];
            for (i, two) in two.iter_mut().enumerate() {
                let (a, b) = (_mm256_castps_pd(four[2 * i]), _mm256_castps_pd(four[2 * i + 1]));
                let low = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                let high = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
                *two = add(low, high);
            }
            let one = |a, b| {
                let even = _mm256_shuffle_ps::<0b10_00_10_00>(a, b);
                let odd = _mm256_shuffle_ps::<0b11_01_11_01>(a, b);
                add(even, odd)
            };
            let (a, b) = (one(two[0], two[1]), one(two[2], two[3]));
            [_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b)]
        }
    }

    /// # Safety
    /// AVX.
    #[inline(always)]
    unsafe fn store_f32([low, high]: [__m256; 2]) -> [f32; BLOCK] {
        let mut x = [0.0f32; BLOCK];
        // SAFETY: the caller's promise; the stores are inside the array.
        unsafe {
            _mm256_storeu_ps(x.as_mut_ptr(), low);
            _mm256_storeu_ps(x.as_mut_ptr().add(8), high);
        }
        x
    }
}
