//! attend: exact attention over the planned blocks, in splits, in f32.
//!
//! Split s of S takes the ranks s, s + S, .. as the GPU's does. Within a split, four
//! blocks at a time are scored, weighted and added; the order of additions is fixed by that and by [`tile`], so
//! it depends on the plan alone.
//!
//! Trap: tokens beyond the length are zeros here, never what lies in their slot, which may be NaN.

use super::isa::per_isa;
use super::lanes::Lanes;
use super::vector::place;
use super::{Queries, Step, by_format, tile};
use crate::element::Format;
use crate::store::HeadView;

use kernels_gpu::layout::{BLOCK, MAX_GROUP, splits};
use kernels_gpu::numeric::{NOTHING, exp2, finite_score, fma};
use rayon::prelude::*;

/// What a stream of blocks has given, for each query head of a group.
#[derive(Clone)]
pub(super) struct Part {
    /// Largest score, log2.
    pub m: [f32; MAX_GROUP],
    /// Sum of `2^(score - m)`.
    pub l: [f32; MAX_GROUP],
    /// Sum of the values so weighted: `[group, head_dim]`.
    pub o: Vec<f32>,
}

impl Part {
    /// Nothing read.
    pub(super) fn new(queries: Queries<'_>) -> Part {
        Part { m: [NOTHING; MAX_GROUP], l: [0.0; MAX_GROUP], o: vec![0.0; queries.scaled.len()] }
    }
}

/// Attends to the blocks of a plan; one part for each split that has any. `spread`: on several threads.
pub(super) fn attend(step: Step<'_>, order: &[u32], spread: bool) -> Vec<Part> {
    let splits = splits(step.view.blocks());
    let used = splits.min(order.len());
    let part = |s: usize| attend_blocks(step, &order[s..], splits);
    if spread && used > 1 {
        (0..used).into_par_iter().map(part).collect()
    } else {
        (0..used).map(part).collect()
    }
}

/// Attends to every `stride`-th block of `order`.
pub(super) fn attend_blocks(step: Step<'_>, order: &[u32], stride: usize) -> Part {
    let Step { view, queries, isa } = step;
    let mut part = Part::new(queries);
    by_format!(view, add_blocks(isa, &view, queries, order, stride, &mut part));
    part
}

per_isa! {
    fn add_blocks[F: Format, const D: usize][F, D](
        view: &HeadView<'_>, queries: Queries<'_>, order: &[u32], stride: usize, part: &mut Part,
    ) = add_blocks_body;
}

/// Blocks whose scores are weighted against one maximum: fewer rescales, and while keys are multiplied their
/// values are on their way.
const CHUNK_BLOCKS: usize = 4;

#[inline(always)]
fn add_blocks_body<L: Lanes, F: Format, const D: usize>(
    view: &HeadView<'_>,
    queries: Queries<'_>,
    order: &[u32],
    stride: usize,
    part: &mut Part,
) {
    let group = queries.group;
    // Rows dealt to lanes as their elements are.
    let mut dealt = [[0.0f32; D]; MAX_GROUP];
    for (to, from) in dealt.iter_mut().zip(queries.scaled.as_chunks::<D>().0) {
        for c in 0..D {
            to[place::<F>(c)] = from[c];
        }
    }
    let mut outputs = [[0.0f32; D]; MAX_GROUP];
    let mut weights = [[[0.0f32; BLOCK]; MAX_GROUP]; CHUNK_BLOCKS];
    let mut padded = [[0u16; D]; BLOCK];
    let blocks = order.len().div_ceil(stride);
    let block = |i: usize| order.get(i * stride).map(|&block| block as usize);
    let keys = |i: usize| block(i).map_or(&[][..], |block| view.block_keys(block).as_chunks::<D>().0);
    let values = |i: usize| block(i).map_or(&[][..], |block| view.block_values(block).as_chunks::<D>().0);

    for first in (0..blocks).step_by(CHUNK_BLOCKS) {
        let chunk = CHUNK_BLOCKS.min(blocks - first);
        for (i, weights) in weights.iter_mut().enumerate().take(chunk) {
            let rows = keys(first + i);
            tile::scores::<L, F, D>(
                &dealt[..group],
                whole(rows, &mut padded),
                values(first + i),
                |g, mut scores| {
                    for score in &mut scores {
                        *score = finite_score(*score);
                    }
                    for score in &mut scores[rows.len()..] {
                        *score = f32::NEG_INFINITY;
                    }
                    weights[g] = scores;
                },
            );
        }
        for g in 0..group {
            let mut tops = [f32::NEG_INFINITY; BLOCK];
            for weights in &weights[..chunk] {
                for t in 0..BLOCK {
                    tops[t] = if weights[g][t] > tops[t] { weights[g][t] } else { tops[t] };
                }
            }
            let top = L::max(tops);
            let m = if top > part.m[g] { top } else { part.m[g] };
            let mut sums = [0.0f32; BLOCK];
            for weights in &mut weights[..chunk] {
                for t in 0..BLOCK {
                    weights[g][t] = exp2(weights[g][t] - m);
                    sums[t] += weights[g][t];
                }
            }
            let rescale = exp2(part.m[g] - m);
            part.l[g] = fma(part.l[g], rescale, L::sum(sums));
            if m > part.m[g] {
                part.m[g] = m;
                for o in &mut outputs[g] {
                    *o *= rescale;
                }
            }
        }
        for (i, weights) in weights.iter().enumerate().take(chunk) {
            let values = whole(values(first + i), &mut padded);
            let ahead = keys(first + CHUNK_BLOCKS + i);
            tile::add_values::<L, F, D>(&weights[..group], values, ahead, &mut outputs[..group]);
        }
    }
    for (to, from) in part.o.as_chunks_mut::<D>().0.iter_mut().zip(&outputs) {
        for c in 0..D {
            to[c] = from[place::<F>(c)];
        }
    }
}

/// A block's rows; zeros for tokens that are not there.
#[inline(always)]
fn whole<'a, const D: usize>(
    rows: &'a [[u16; D]],
    padded: &'a mut [[u16; D]; BLOCK],
) -> &'a [[u16; D]; BLOCK] {
    if let Ok(rows) = rows.try_into() {
        return rows;
    }
    padded[..rows.len()].copy_from_slice(rows);
    padded[rows.len()..].fill([0; D]);
    padded
}
