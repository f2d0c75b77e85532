//! score: the log2 mass of every block for every query head of a group, with the reference's bits.
//!
//! A page's codes are unpacked once for all heads of the group, into 16-bit integers that meet 16-bit
//! weights. The unpacked order is the order in which shifts and masks of whole rows give the channels
//! ([`position`]); integer sums do not care, so only the weights have to follow it.

use super::isa::{Isa, per_isa, tree_max, tree_sum};
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
fn score_row_body<F: Format, const D: usize>(
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
                    1 => score_page::<D, 1>(page, queries, &permuted, group, width, log_mass),
                    _ => score_page::<D, 2>(page, queries, &permuted, group, width, log_mass),
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
        score_open::<F, D>(view.block_keys(block), queries, block, width, log_mass);
    }
}

/// Where channel `c` is among the unpacked codes of a row: those at the same two bits of their bytes
/// together, in the order of the bytes.
#[inline(always)]
const fn position<const D: usize>(c: usize) -> usize {
    c % 16 / 4 * (D / 4) + c / 16 * 4 + c % 4
}

#[inline(always)]
fn score_page<const D: usize, const P: usize>(
    page: &[u8],
    queries: &[[f32; D]],
    permuted: &[[f32; D]; MAX_GROUP],
    group: usize,
    width: usize,
    log_mass: &mut [f32],
) {
    let mut codes = [[0i16; D]; QUANT_GROUP];
    for (t, codes) in codes.iter_mut().enumerate() {
        let bytes = |p: usize| &page[plane_offset(D, p) + t * plane_row_bytes(D)..][..D / 4];
        let (high, low) = (bytes(0), bytes(P - 1));
        for j in 0..4 {
            for i in 0..D / 4 {
                let code = (high[i] >> (2 * j)) & 3;
                let code = if P == 2 { code << 2 | ((low[i] >> (2 * j)) & 3) } else { code };
                codes[j * (D / 4) + i] = code as i16;
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
        for l in 0..16 {
            lanes[l] += lanes[l + 16];
        }
        let mut half = [0.0f32; 16];
        half.copy_from_slice(&lanes[..16]);
        let zero = tree_sum(half);

        let mut products = [0.0f32; D];
        let mut peaks = [0.0f32; 16];
        for c in (0..D).step_by(16) {
            for l in 0..16 {
                let w = permuted[c + l] * steps[c + l];
                products[c + l] = w;
                peaks[l] = if w.abs() > peaks[l] { w.abs() } else { peaks[l] };
            }
        }
        let unit = Unit::of_peak(tree_max(peaks));
        let mut weights = [0i16; D];
        for c in 0..D {
            weights[c] = unit.weight(products[c]) as i16;
        }

        let mut scores = [0.0f32; QUANT_GROUP];
        for (score, codes) in scores.iter_mut().zip(&codes) {
            let mut dot = 0i32;
            for c in 0..D {
                dot += weights[c] as i32 * codes[c] as i32;
            }
            *score = unit.score(zero, dot);
        }
        for (block, scores) in scores.as_chunks::<BLOCK>().0.iter().enumerate() {
            log_mass[g * width + group * BLOCKS_PER_GROUP + block] = block_mass(*scores);
        }
    }
}

/// log2 of the sum of `2^score`; scores of tokens that are not there are `-inf`.
#[inline(always)]
fn block_mass(scores: [f32; BLOCK]) -> f32 {
    let m = tree_max(scores);
    let mut e = [0.0f32; BLOCK];
    for i in 0..BLOCK {
        e[i] = exp2(scores[i] - m);
    }
    m + log2(tree_sum(e))
}

#[inline(always)]
fn score_open<F: Format, const D: usize>(
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
        log_mass[g * width + block] = block_mass(scores);
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
