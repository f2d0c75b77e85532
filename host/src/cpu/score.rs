//! score: the log2 mass of every block for every query head of a group, with the reference's bits.
//!
//! A page's codes are unpacked once for all heads of the group, into 16-bit integers `[4][64][D / 4]` that
//! meet 16-bit weights: first the lowest two bits of every byte, then the next two. Integer sums do not care
//! about the order of channels, so only the weights have to follow it ([`position`]).

use super::isa::{Isa, per_isa};
use super::lanes::{Codes, Lanes};
use super::{Queries, by_format};
use crate::element::{F16, Format};
use crate::store::HeadView;
use kernels_gpu::layout::{
    BLOCK, BLOCKS_PER_GROUP, MAX_GROUP, MirrorKind, QUANT_GROUP, box_offset, plane_offset, plane_row_bytes,
    step_offset,
};
use kernels_gpu::numeric::{Unit, exp2, finite_score, fma, log2};

/// Scores all blocks; log_mass: `[group, width]`.
pub(super) fn score(isa: Isa, view: &HeadView<'_>, queries: Queries<'_>, width: usize, log_mass: &mut [f32]) {
    by_format!(view, score_row(isa, view, queries, width, log_mass));
}

per_isa! {
    fn score_row[F: Format, const D: usize][F, D](view: &HeadView<'_>, queries: Queries<'_>, width: usize, log_mass: &mut [f32])
        = score_row_body;
}

#[inline(always)]
fn score_row_body<L: Lanes, F: Format, const D: usize>(
    view: &HeadView<'_>,
    queries: Queries<'_>,
    width: usize,
    log_mass: &mut [f32],
) {
    let queries = queries.scaled.as_chunks::<D>().0;
    match view.mirror_kind() {
        MirrorKind::Planes(planes) => {
            let mut permuted = [[0.0f32; D]; MAX_GROUP];
            for (to, from) in permuted.iter_mut().zip(queries) {
                for c in 0..D {
                    to[position::<D>(c)] = from[c];
                }
            }
            for group in 0..view.full_groups() {
                let page = view.page(group);
                match planes {
                    1 => score_page::<L, D, 1>(page, queries, &permuted, group, width, log_mass),
                    _ => score_page::<L, D, 2>(page, queries, &permuted, group, width, log_mass),
                }
            }
        }
        MirrorKind::Box => {
            for group in 0..view.full_groups() {
                score_boxes::<F, D>(view.page(group), queries, group, width, log_mass);
            }
        }
    }
    for block in view.full_groups() * BLOCKS_PER_GROUP..view.blocks() {
        score_open::<L, F, D>(view.block_keys(block), queries, block, width, log_mass);
    }
}

/// Where the weight of channel `c` is in `[4][D / 4]`: by the two bits of its byte, then by byte.
#[inline(always)]
const fn position<const D: usize>(c: usize) -> usize {
    c % 16 / 4 * (D / 4) + c / 16 * 4 + c % 4
}

#[inline(always)]
fn score_page<L: Lanes, const D: usize, const P: usize>(
    page: &[u8],
    queries: &[[f32; D]],
    permuted: &[[f32; D]; MAX_GROUP],
    group: usize,
    width: usize,
    log_mass: &mut [f32],
) {
    // Plane by plane, two bits by two bits: loops over whole planes become vector code.
    let mut codes: Codes<D> = [[[0; D]; BLOCK]; 4];
    let plane = |p: usize| &page[plane_offset(D, p)..][..QUANT_GROUP * plane_row_bytes(D)];
    for (j, codes) in codes.iter_mut().enumerate() {
        let codes = codes.as_flattened_mut();
        if P == 1 {
            for (code, &byte) in codes.iter_mut().zip(plane(0)) {
                *code = ((byte >> (2 * j)) & 3) as i16;
            }
        } else {
            for ((code, &high), &low) in codes.iter_mut().zip(plane(0)).zip(plane(P - 1)) {
                *code = (((high >> (2 * j)) & 3) << 2 | ((low >> (2 * j)) & 3)) as i16;
            }
        }
    }
    let halves = |at: usize| {
        let mut x = [0.0f32; D];
        for (x, b) in x.iter_mut().zip(page[at..][..2 * D].as_chunks::<2>().0) {
            *x = F16::widen(u16::from_le_bytes(*b));
        }
        x
    };
    let (zeros, natural_steps) = (halves(0), halves(step_offset(D)));
    let mut steps = [0.0f32; D];
    for c in 0..D {
        steps[position::<D>(c)] = natural_steps[c];
    }

    for (g, (q, permuted)) in queries.iter().zip(permuted).enumerate() {
        let mut lanes = [0.0f32; 32];
        for c in (0..D).step_by(32) {
            for l in 0..32 {
                lanes[l] = fma(q[c + l], zeros[c + l], lanes[l]);
            }
        }
        let mut sixteen = [0.0f32; 16];
        for l in 0..16 {
            sixteen[l] = lanes[l] + lanes[l + 16];
        }
        let zero = L::sum(sixteen);

        let mut products = [0.0f32; D];
        let mut peaks = [0.0f32; 16];
        for c in (0..D).step_by(16) {
            for l in 0..16 {
                let w = permuted[c + l] * steps[c + l];
                products[c + l] = w;
                peaks[l] = if w.abs() > peaks[l] { w.abs() } else { peaks[l] };
            }
        }
        let unit = Unit::of_peak(L::max(peaks));
        let mut weights = [0i16; D];
        for c in 0..D {
            weights[c] = unit.weight(products[c]) as i16;
        }

        let mut scores = [[0.0f32; BLOCK]; BLOCKS_PER_GROUP];
        for (block, scores) in scores.iter_mut().enumerate() {
            let dots = L::code_dots(&weights, &codes, block);
            for (score, dot) in scores.iter_mut().zip(dots) {
                *score = unit.score(zero, dot);
            }
        }
        let masses = block_masses::<L, _>(&scores);
        log_mass[g * width + group * BLOCKS_PER_GROUP..][..BLOCKS_PER_GROUP].copy_from_slice(&masses);
    }
}

/// log2 of the sum of `2^score`, for some blocks; scores of tokens that are not there are `-inf`.
#[inline(always)]
fn block_masses<L: Lanes, const N: usize>(scores: &[[f32; BLOCK]; N]) -> [f32; N] {
    let (mut tops, mut sums) = ([0.0f32; N], [0.0f32; N]);
    for ((scores, top), sum) in scores.iter().zip(&mut tops).zip(&mut sums) {
        *top = L::max(*scores);
        let mut e = [0.0f32; BLOCK];
        for i in 0..BLOCK {
            e[i] = exp2(scores[i] - *top);
        }
        *sum = L::sum(e);
    }
    let mut masses = [0.0f32; N];
    for i in 0..N {
        masses[i] = tops[i] + log2(sums[i]);
    }
    masses
}

#[inline(always)]
fn score_open<L: Lanes, F: Format, const D: usize>(
    keys: &[u16],
    queries: &[[f32; D]],
    block: usize,
    width: usize,
    log_mass: &mut [f32],
) {
    // Lanes are tokens, so that each adds its channels in ascending order.
    let mut columns = [[0.0f32; BLOCK]; D];
    let keys = keys.as_chunks::<D>().0;
    for (t, key) in keys.iter().enumerate() {
        for c in 0..D {
            columns[c][t] = F::widen(key[c]);
        }
    }
    for (g, q) in queries.iter().enumerate() {
        let mut dots = [0.0f32; BLOCK];
        for c in 0..D {
            for t in 0..BLOCK {
                dots[t] = fma(q[c], columns[c][t], dots[t]);
            }
        }
        let mut scores = [f32::NEG_INFINITY; BLOCK];
        for t in 0..keys.len() {
            scores[t] = finite_score(dots[t]);
        }
        [log_mass[g * width + block]] = block_masses::<L, _>(&[scores]);
    }
}

#[inline(always)]
fn score_boxes<F: Format, const D: usize>(
    page: &[u8],
    queries: &[[f32; D]],
    group: usize,
    width: usize,
    log_mass: &mut [f32],
) {
    // Lanes are the page's blocks.
    let (mut low, mut high) = ([[0.0f32; BLOCKS_PER_GROUP]; D], [[0.0f32; BLOCKS_PER_GROUP]; D]);
    for block in 0..BLOCKS_PER_GROUP {
        let bounds = page[box_offset(D, block)..][..4 * D].as_chunks::<2>().0;
        for c in 0..D {
            low[c][block] = F::widen(u16::from_le_bytes(bounds[c]));
            high[c][block] = F::widen(u16::from_le_bytes(bounds[D + c]));
        }
    }
    for (g, q) in queries.iter().enumerate() {
        let mut bound = [0.0f32; BLOCKS_PER_GROUP];
        for c in 0..D {
            for block in 0..BLOCKS_PER_GROUP {
                let (a, b) = (q[c] * low[c][block], q[c] * high[c][block]);
                bound[block] += if a > b { a } else { b };
            }
        }
        for block in 0..BLOCKS_PER_GROUP {
            log_mass[g * width + group * BLOCKS_PER_GROUP + block] = finite_score(bound[block]) + 4.0;
        }
    }
}
