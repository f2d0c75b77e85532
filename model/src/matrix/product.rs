//! The inner loops: one panel of 16 outputs times R rows of activations.
//!
//! Codes of a block are added up as they are, `sum_i code_i x_i`, and scaled once: unpacking costs a widening
//! and a conversion for 16 weights, shared by the rows. Two chains a row hide the latency of fma where there is
//! one row.

use super::{BLOCK, Lane};
use crate::simd::{Lanes, by_isa};

by_isa! {
    /// 4-bit codes. sums: of each block of x, `[R][blocks]`.
    pub(super) fn four[const R: usize](
        codes: &[Lane<u8>], scale: &[Lane<f32>], offset: &[Lane<f32>], x: [&[f32]; R], sums: [&[f32]; R],
        out: &mut [Lane<f32>; R],
    ) = four_body;
}

by_isa! {
    /// Bytes.
    pub(super) fn eight[const R: usize](
        codes: &[Lane<i8>], scale: &[Lane<f32>], x: [&[f32]; R], out: &mut [Lane<f32>; R],
    ) = eight_body;
}

by_isa! {
    /// f32.
    pub(super) fn plain[const R: usize](weights: &[Lane<f32>], x: [&[f32]; R], out: &mut [Lane<f32>; R]) = plain_body;
}

#[inline(always)]
fn four_body<L: Lanes, const R: usize>(
    codes: &[Lane<u8>],
    scale: &[Lane<f32>],
    offset: &[Lane<f32>],
    x: [&[f32]; R],
    sums: [&[f32]; R],
    out: &mut [Lane<f32>; R],
) {
    let mut total = [L::zero(); R];
    for (b, codes) in codes.as_chunks::<16>().0.iter().enumerate() {
        let (mut low, mut high) = ([L::zero(); R], [L::zero(); R]);
        let x: [&[f32; BLOCK]; R] = std::array::from_fn(|r| &x[r].as_chunks::<BLOCK>().0[b]);
        for (j, codes) in codes.iter().enumerate() {
            let (w0, w1) = L::halves(codes);
            for r in 0..R {
                low[r] = L::fma(x[r][j], w0, low[r]);
                high[r] = L::fma(x[r][16 + j], w1, high[r]);
            }
        }
        let (scale, offset) = (L::load(&scale[b]), L::load(&offset[b]));
        for r in 0..R {
            total[r] = scale.times_plus(low[r].plus(high[r]), total[r]);
            total[r] = L::fma(sums[r][b], offset, total[r]);
        }
    }
    for r in 0..R {
        total[r].store(&mut out[r]);
    }
}

#[inline(always)]
fn eight_body<L: Lanes, const R: usize>(
    codes: &[Lane<i8>],
    scale: &[Lane<f32>],
    x: [&[f32]; R],
    out: &mut [Lane<f32>; R],
) {
    let mut total = [L::zero(); R];
    for (b, codes) in codes.as_chunks::<BLOCK>().0.iter().enumerate() {
        let (mut even, mut odd) = ([L::zero(); R], [L::zero(); R]);
        let x: [&[f32; BLOCK]; R] = std::array::from_fn(|r| &x[r].as_chunks::<BLOCK>().0[b]);
        for (j, codes) in codes.as_chunks::<2>().0.iter().enumerate() {
            let (w0, w1) = (L::bytes(&codes[0]), L::bytes(&codes[1]));
            for r in 0..R {
                even[r] = L::fma(x[r][2 * j], w0, even[r]);
                odd[r] = L::fma(x[r][2 * j + 1], w1, odd[r]);
            }
        }
        let scale = L::load(&scale[b]);
        for r in 0..R {
            total[r] = scale.times_plus(even[r].plus(odd[r]), total[r]);
        }
    }
    for r in 0..R {
        total[r].store(&mut out[r]);
    }
}

#[inline(always)]
fn plain_body<L: Lanes, const R: usize>(weights: &[Lane<f32>], x: [&[f32]; R], out: &mut [Lane<f32>; R]) {
    let mut total = [L::zero(); R];
    for (i, w) in weights.iter().enumerate() {
        let w = L::load(w);
        for r in 0..R {
            total[r] = L::fma(x[r][i], w, total[r]);
        }
    }
    for r in 0..R {
        total[r].store(&mut out[r]);
    }
}
