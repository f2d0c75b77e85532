//! 16 lanes at each vector width: what the compiler does not make of arrays by itself.
//!
//! A sum over lanes is pairwise at distance 8, 4, 2, 1, in every implementation; `Portable` is the
//! definition.

use super::vector::Vector;
use kernels_gpu::layout::{BLOCK, MAX_GROUP};

/// Codes of a mirror page, unpacked: 16-bit integers `[4][64][D / 4]`, see `score`.
pub(crate) type Codes<const D: usize> = [[[i16; D]; BLOCK]; 4];

/// Weights as two signed bytes, `w = 256 high + low`: exact, as `|w| <= 2^14` leaves `|high| <= 64`. In the order
/// of [`packed_dots`](Lanes::packed_dots): `[D / 16 words][4 places][4 bytes]`, which is that of the channels.
#[derive(Clone, Copy)]
pub(crate) struct Split<const D: usize> {
    pub high: [i8; D],
    pub low: [i8; D],
}

impl<const D: usize> Split<D> {
    /// Of weights in the order of the channels.
    #[inline(always)]
    pub(crate) fn of(weights: &[i16; D]) -> Split<D> {
        let mut split = Split { high: [0; D], low: [0; D] };
        for ((&weight, high), low) in weights.iter().zip(&mut split.high).zip(&mut split.low) {
            *low = weight as i8;
            *high = ((weight - *low as i16) >> 8) as i8;
        }
        split
    }
}

/// Tokens that are scored at a time.
pub(crate) const CHUNK: usize = 64;

/// Dot products `[head][block][token]` of 64 tokens.
pub(crate) type ChunkDots = [[[i32; BLOCK]; CHUNK / BLOCK]; MAX_GROUP];

/// Operations on 16 lanes.
pub(crate) trait Lanes: Copy {
    /// The lanes as one value.
    type V: Vector;

    /// Whether there are registers for tiles of 16 vectors and more.
    const WIDE: bool = false;

    /// Integer dot products of weights `[4][D / 4]` with the codes of a page's block.
    fn code_dots<const D: usize>(weights: &[i16; D], codes: &Codes<D>, block: usize) -> [i32; BLOCK];

    /// Whether [`packed_dots`](Lanes::packed_dots) is there and faster than unpacking the codes.
    const PACKED: bool = false;

    /// Integer dot products of the heads' weights with 64 tokens of a 2-bit plane as the page has it, rows of
    /// `D / 4` bytes: `[head][block][token]`.
    #[inline(always)]
    fn packed_dots<const D: usize>(_weights: &[Split<D>], _plane: &[u8]) -> ChunkDots {
        unreachable!("only where PACKED says so")
    }

    /// Asks for memory that will be read soon. Changes nothing.
    #[inline(always)]
    fn prefetch<T>(_data: &[T]) {}

    /// Sums over the lanes of 16 vectors.
    #[inline(always)]
    fn sums(x: &[[f32; 16]; 16]) -> [f32; 16] {
        let mut sums = [0.0; 16];
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = Self::sum(*x);
        }
        sums
    }

    /// Largest lanes of 16 vectors, none of which is NaN.
    #[inline(always)]
    fn maxima(x: &[[f32; 16]; 16]) -> [f32; 16] {
        let mut maxima = [0.0; 16];
        for (max, x) in maxima.iter_mut().zip(x) {
            *max = Self::max(*x);
        }
        maxima
    }

    /// Sum of the lanes.
    fn sum(x: [f32; 16]) -> f32;

    /// Largest of the lanes, none of which is NaN.
    fn max(x: [f32; 16]) -> f32;
}

/// Arrays, on any target.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Lanes for Portable {
    type V = [f32; 16];

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
pub(crate) mod x86 {
    use super::{BLOCK, CHUNK, ChunkDots, Codes, Lanes, MAX_GROUP, Split};
    use std::arch::x86_64::*;

    /// AVX2, F16C and FMA. Its functions may run only where these are: inside the copies that `per_isa` makes
    /// for them.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;

    /// AVX-512 F and DQ besides, likewise.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512;

    impl Lanes for Avx2 {
        type V = [__m256; 2];

        #[inline(always)]
        fn prefetch<T>(data: &[T]) {
            for line in (0..size_of_val(data)).step_by(64) {
                // SAFETY: every x86-64 has the instruction, and the address is inside the slice.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(data.as_ptr().byte_add(line).cast()) };
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
        fn sums(x: &[[f32; 16]; 16]) -> [f32; 16] {
            // SAFETY: the type's promise.
            unsafe { store_f32(fold(halve(x, |a, b| _mm256_add_ps(a, b)), |a, b| _mm256_add_ps(a, b))) }
        }

        #[inline(always)]
        fn maxima(x: &[[f32; 16]; 16]) -> [f32; 16] {
            // SAFETY: the type's promise.
            unsafe { store_f32(fold(halve(x, |a, b| _mm256_max_ps(a, b)), |a, b| _mm256_max_ps(a, b))) }
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
        type V = __m512;

        const WIDE: bool = true;
        const PACKED: bool = true;

        #[inline(always)]
        fn prefetch<T>(data: &[T]) {
            Avx2::prefetch(data);
        }

        #[inline(always)]
        fn code_dots<const D: usize>(weights: &[i16; D], codes: &Codes<D>, block: usize) -> [i32; BLOCK] {
            Avx2::code_dots(weights, codes, block)
        }

        #[inline(always)]
        fn packed_dots<const D: usize>(weights: &[Split<D>], plane: &[u8]) -> ChunkDots {
            let mut dots = [[[0; BLOCK]; CHUNK / BLOCK]; MAX_GROUP];
            let row = D / 4;
            assert!(plane.len() >= CHUNK * row && weights.len() <= MAX_GROUP);
            // Lanes are tokens: a word of a row is 16 channels, 4 in each place of its bytes.
            let mut words = [[0u32; BLOCK]; 8];
            for block in 0..CHUNK / BLOCK {
                let tokens = &plane[block * BLOCK * row..][..BLOCK * row];
                // SAFETY: the type's promise; 16 rows are in the slice.
                unsafe { transpose::<D>(tokens, &mut words) };
                for (weights, dots) in weights.chunks(4).zip(dots.chunks_mut(4)) {
                    let [a, b, c, d] = [0, 1, 2, 3].map(|g| &weights[g.min(weights.len() - 1)]);
                    // SAFETY: the type's promise.
                    let sums = unsafe { four_dots::<D>([a, b, c, d], &words) };
                    for (dots, sum) in dots.iter_mut().zip(sums).take(weights.len()) {
                        dots[block] = sum;
                    }
                }
            }
            dots
        }

        #[inline(always)]
        fn sums(x: &[[f32; 16]; 16]) -> [f32; 16] {
            Avx2::sums(x)
        }

        #[inline(always)]
        fn maxima(x: &[[f32; 16]; 16]) -> [f32; 16] {
            Avx2::maxima(x)
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

    /// Words of 16 rows of `D / 4` bytes, by word: `[D / 16][16 rows]`.
    ///
    /// # Safety
    /// AVX2; `rows` holds 16 rows.
    #[inline(always)]
    unsafe fn transpose<const D: usize>(rows: &[u8], words: &mut [[u32; BLOCK]; 8]) {
        // SAFETY: the caller's promise; D is 64 or 128, a row 4 or 8 words, so all loads are inside the rows.
        unsafe {
            let row = D / 4;
            for half in 0..row / 16 {
                for quad in 0..4 {
                    let load =
                        |t: usize| _mm_loadu_ps(rows.as_ptr().add((quad * 4 + t) * row + half * 16).cast());
                    let (mut a, mut b, mut c, mut d) = (load(0), load(1), load(2), load(3));
                    _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
                    for (w, x) in [a, b, c, d].into_iter().enumerate() {
                        _mm_storeu_ps(words[half * 4 + w].as_mut_ptr().add(quad * 4).cast(), x);
                    }
                }
            }
        }
    }

    /// Dot products of 16 tokens with the weights of 4 heads. Sums of at most `D * 3 * 128` in each half.
    ///
    /// # Safety
    /// AVX-512 F and VNNI.
    #[inline(always)]
    unsafe fn four_dots<const D: usize>(
        weights: [&Split<D>; 4],
        words: &[[u32; BLOCK]; 8],
    ) -> [[i32; BLOCK]; 4] {
        // SAFETY: the caller's promise; loads and stores are of whole arrays, and of 4 bytes inside the weights.
        unsafe {
            let (mut high, mut low) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_si512(); 4]);
            let places = _mm512_set1_epi8(3);
            for (w, word) in words.iter().enumerate().take(D / 16) {
                let word = _mm512_loadu_si512(word.as_ptr().cast());
                let codes = [
                    _mm512_and_si512(word, places),
                    _mm512_and_si512(_mm512_srli_epi32::<2>(word), places),
                    _mm512_and_si512(_mm512_srli_epi32::<4>(word), places),
                    _mm512_and_si512(_mm512_srli_epi32::<6>(word), places),
                ];
                for (j, codes) in codes.into_iter().enumerate() {
                    for g in 0..4 {
                        let four = |bytes: &[i8; D]| {
                            _mm512_set1_epi32(
                                bytes.as_ptr().add(16 * w + 4 * j).cast::<i32>().read_unaligned(),
                            )
                        };
                        high[g] = _mm512_dpbusd_epi32(high[g], codes, four(&weights[g].high));
                        low[g] = _mm512_dpbusd_epi32(low[g], codes, four(&weights[g].low));
                    }
                }
            }
            let mut dots = [[0i32; BLOCK]; 4];
            for g in 0..4 {
                let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(high[g]), low[g]);
                _mm512_storeu_si512(dots[g].as_mut_ptr().cast(), sum);
            }
            dots
        }
    }

    /// Lanes at distance 8 of 16 vectors.
    ///
    /// # Safety
    /// AVX.
    #[inline(always)]
    unsafe fn halve(x: &[[f32; 16]; BLOCK], add: impl Fn(__m256, __m256) -> __m256) -> [__m256; BLOCK] {
        // SAFETY: the caller's promise; the loads are inside the arrays.
        unsafe {
            let mut halves = [_mm256_setzero_ps(); BLOCK];
            for (half, x) in halves.iter_mut().zip(x) {
                *half = add(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8)));
            }
            halves
        }
    }

    /// Sums over 8 lanes, at distance 4, 2, 1, of 16 vectors, in the vectors' order.
    ///
    /// # Safety
    /// AVX.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn fold(
        x: [__m256; BLOCK],
        add: impl Fn(__m256, __m256) -> __m256,
    ) -> [__m256; 2] {
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
    pub(in crate::cpu) unsafe fn store_f32([low, high]: [__m256; 2]) -> [f32; BLOCK] {
        let mut x = [0.0f32; BLOCK];
        // SAFETY: the caller's promise; the stores are inside the array.
        unsafe {
            _mm256_storeu_ps(x.as_mut_ptr(), low);
            _mm256_storeu_ps(x.as_mut_ptr().add(8), high);
        }
        x
    }
}
