//! 16 lanes at the vector width of this machine, chosen at run time.
//!
//! Hot loops are `#[inline(always)]` bodies over [`Lanes`], compiled once for AVX2 and once for AVX-512, and called
//! through [`by_isa`]. Every level computes the same bits: the bodies fix the order of additions, and `fma` is one
//! rounding everywhere. Trap: without FMA hardware `mul_add` is a library call, correct and slow; and plain arrays in
//! place of vectors stay in memory where a body keeps several of them.

/// Lanes of a vector.
pub const LANES: usize = 16;

/// What this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// The target's baseline.
    Portable,
    /// AVX2 and FMA. Made by [`Isa::available`] only, which makes it the proof that they are there.
    Avx2,
    /// AVX-512 F and VL, too.
    Avx512,
}

impl Isa {
    /// The best there is.
    pub fn detect() -> Isa {
        Isa::available().last().copied().unwrap_or(Isa::Portable)
    }

    /// All there are, the best last.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut all = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            all.push(Isa::Avx2);
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
                all.push(Isa::Avx512);
            }
        }
        all
    }
}

/// A vector of 16 f32.
pub(crate) trait Lanes: Copy {
    /// Zeros.
    fn zero() -> Self;
    /// From memory.
    fn load(x: &[f32; LANES]) -> Self;
    /// To memory.
    fn store(self, x: &mut [f32; LANES]);
    /// `a * b + c`, one rounding.
    fn fma(a: f32, b: Self, c: Self) -> Self;
    /// `self * b + c`, one rounding.
    fn times_plus(self, b: Self, c: Self) -> Self;
    /// `self + b`.
    fn plus(self, b: Self) -> Self;
    /// The low and the high halves of bytes.
    fn halves(codes: &[u8; LANES]) -> (Self, Self);
    /// Signed bytes.
    fn bytes(codes: &[i8; LANES]) -> Self;
}

/// The definition.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

impl Lanes for Portable {
    #[inline(always)]
    fn zero() -> Self {
        Portable([0.0; LANES])
    }
    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        Portable(*x)
    }
    #[inline(always)]
    fn store(self, x: &mut [f32; LANES]) {
        *x = self.0;
    }
    #[inline(always)]
    fn fma(a: f32, b: Self, c: Self) -> Self {
        Portable(std::array::from_fn(|l| a.mul_add(b.0[l], c.0[l])))
    }
    #[inline(always)]
    fn times_plus(self, b: Self, c: Self) -> Self {
        Portable(std::array::from_fn(|l| self.0[l].mul_add(b.0[l], c.0[l])))
    }
    #[inline(always)]
    fn plus(self, b: Self) -> Self {
        Portable(std::array::from_fn(|l| self.0[l] + b.0[l]))
    }
    #[inline(always)]
    fn halves(codes: &[u8; LANES]) -> (Self, Self) {
        (Portable(codes.map(|c| (c & 15) as f32)), Portable(codes.map(|c| (c >> 4) as f32)))
    }
    #[inline(always)]
    fn bytes(codes: &[i8; LANES]) -> Self {
        Portable(codes.map(f32::from))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    //! The same in AVX2 and AVX-512. Used by [`by_isa`](super::by_isa) only, behind the features.

    use super::{LANES, Lanes};
    use std::arch::x86_64::*;

    /// Two vectors of 8.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256, __m256);

    /// One vector of 16.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    // SAFETY, of every block in the two implementations: the bodies that use these types are instantiated by `by_isa`
    // behind the features only; loads and stores are unaligned and within the 16 elements of the reference.
    impl Lanes for Avx2 {
        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: as above.
            unsafe { Avx2(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }
        #[inline(always)]
        fn load(x: &[f32; LANES]) -> Self {
            // SAFETY: as above.
            unsafe { Avx2(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))) }
        }
        #[inline(always)]
        fn store(self, x: &mut [f32; LANES]) {
            // SAFETY: as above.
            unsafe {
                _mm256_storeu_ps(x.as_mut_ptr(), self.0);
                _mm256_storeu_ps(x.as_mut_ptr().add(8), self.1);
            }
        }
        #[inline(always)]
        fn fma(a: f32, b: Self, c: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let a = _mm256_set1_ps(a);
                Avx2(_mm256_fmadd_ps(a, b.0, c.0), _mm256_fmadd_ps(a, b.1, c.1))
            }
        }
        #[inline(always)]
        fn times_plus(self, b: Self, c: Self) -> Self {
            // SAFETY: as above.
            unsafe { Avx2(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
        }
        #[inline(always)]
        fn plus(self, b: Self) -> Self {
            // SAFETY: as above.
            unsafe { Avx2(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1)) }
        }
        #[inline(always)]
        fn halves(codes: &[u8; LANES]) -> (Self, Self) {
            // SAFETY: as above.
            unsafe {
                let all = _mm_loadu_si128(codes.as_ptr().cast());
                let wide = [_mm256_cvtepu8_epi32(all), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(all))];
                let low = wide.map(|w| _mm256_cvtepi32_ps(_mm256_and_si256(w, _mm256_set1_epi32(15))));
                let high = wide.map(|w| _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(w)));
                (Avx2(low[0], low[1]), Avx2(high[0], high[1]))
            }
        }
        #[inline(always)]
        fn bytes(codes: &[i8; LANES]) -> Self {
            // SAFETY: as above.
            unsafe {
                let all = _mm_loadu_si128(codes.as_ptr().cast());
                let high = _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(all));
                Avx2(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(all)), _mm256_cvtepi32_ps(high))
            }
        }
    }

    impl Lanes for Avx512 {
        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: as above.
            unsafe { Avx512(_mm512_setzero_ps()) }
        }
        #[inline(always)]
        fn load(x: &[f32; LANES]) -> Self {
            // SAFETY: as above.
            unsafe { Avx512(_mm512_loadu_ps(x.as_ptr())) }
        }
        #[inline(always)]
        fn store(self, x: &mut [f32; LANES]) {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(x.as_mut_ptr(), self.0) }
        }
        #[inline(always)]
        fn fma(a: f32, b: Self, c: Self) -> Self {
            // SAFETY: as above.
            unsafe { Avx512(_mm512_fmadd_ps(_mm512_set1_ps(a), b.0, c.0)) }
        }
        #[inline(always)]
        fn times_plus(self, b: Self, c: Self) -> Self {
            // SAFETY: as above.
            unsafe { Avx512(_mm512_fmadd_ps(self.0, b.0, c.0)) }
        }
        #[inline(always)]
        fn plus(self, b: Self) -> Self {
            // SAFETY: as above.
            unsafe { Avx512(_mm512_add_ps(self.0, b.0)) }
        }
        #[inline(always)]
        fn halves(codes: &[u8; LANES]) -> (Self, Self) {
            // SAFETY: as above.
            unsafe {
                let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
                let low = _mm512_and_si512(wide, _mm512_set1_epi32(15));
                (Avx512(_mm512_cvtepi32_ps(low)), Avx512(_mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(wide))))
            }
        }
        #[inline(always)]
        fn bytes(codes: &[i8; LANES]) -> Self {
            // SAFETY: as above.
            unsafe {
                Avx512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(codes.as_ptr().cast()))))
            }
        }
    }
}

/// `fn name[generics](parameters) = body;` defines `name`, which calls `body` compiled for `isa`, with its vectors as
/// the first generic.
macro_rules! by_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident [const $gen:ident: usize] ($($p:ident: $t:ty),* $(,)?) = $body:ident;) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<const $gen: usize>(isa: $crate::simd::Isa, $($p: $t),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2<const $gen: usize>($($p: $t),*) {
                    $body::<$crate::simd::x86::Avx2, $gen>($($p),*)
                }
                #[target_feature(enable = "avx2,fma,avx512f,avx512vl")]
                #[allow(clippy::too_many_arguments)]
                fn avx512<const $gen: usize>($($p: $t),*) {
                    $body::<$crate::simd::x86::Avx512, $gen>($($p),*)
                }
                match isa {
                    // SAFETY: `Isa::available` names a level only where it found the features.
                    $crate::simd::Isa::Avx512 => return unsafe { avx512::<$gen>($($p),*) },
                    // SAFETY: as above.
                    $crate::simd::Isa::Avx2 => return unsafe { avx2::<$gen>($($p),*) },
                    $crate::simd::Isa::Portable => {}
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = isa;
            $body::<$crate::simd::Portable, $gen>($($p),*)
        }
    };
}
pub(crate) use by_isa;
