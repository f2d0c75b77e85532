//! attend: exact attention over the planned blocks, in splits, in f32.
//!
//! Split s of S takes the ranks s, s + S, .. as the GPU's does. A block is widened to f32 once for all
//! query heads of the group; heads and channels are arrays of lanes, so the order of additions is fixed.
//!
//! Trap: tokens beyond the length are zeros here, never what lies in their slot, which may be NaN.

use super::isa::per_isa;
use super::lanes::Lanes;
use super::{Queries, Step, by_format};
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

#[inline(always)]
fn add_blocks_body<L: Lanes, F: Format, const D: usize>(
    view: &HeadView<'_>,
    queries: Queries<'_>,
    order: &[u32],
    stride: usize,
    part: &mut Part,
) {
    let mut rows = [[0.0f32; D]; BLOCK];
    let mut weights = [[0.0f32; BLOCK]; MAX_GROUP];
    let queries = queries.scaled.as_chunks::<D>().0;
    let outputs = part.o.as_chunks_mut::<D>().0;
    let mut blocks = order.iter().step_by(stride).map(|&block| block as usize).peekable();
    while let Some(block) = blocks.next() {
        let visible = view.tokens_of_block(block);
        // Slots lie anywhere, and hardware prefetchers stop at the end of a page of 4 KiB.
        if let Some(&next) = blocks.peek() {
            L::prefetch(view.block_keys(next));
        }
        widen_rows::<F, D>(view.block_keys(block), &mut rows);
        for (g, q) in queries.iter().enumerate() {
            let mut scores = L::dots(q, &rows);
            for score in &mut scores {
                *score = finite_score(*score);
            }
            for score in &mut scores[visible..] {
                *score = f32::NEG_INFINITY;
            }
            let top = L::max(scores);
            let m = if top > part.m[g] { top } else { part.m[g] };
            let rescale = exp2(part.m[g] - m);
            for t in 0..BLOCK {
                weights[g][t] = exp2(scores[t] - m);
            }
            part.m[g] = m;
            part.l[g] = fma(part.l[g], rescale, L::sum(weights[g]));
            for o in &mut outputs[g] {
                *o *= rescale;
            }
        }

        if let Some(&next) = blocks.peek() {
            L::prefetch(view.block_values(next));
        }
        widen_rows::<F, D>(view.block_values(block), &mut rows);
        for (o, weights) in outputs.iter_mut().zip(&weights) {
            for c in (0..D).step_by(32) {
                let mut sum = [0.0f32; 32];
                sum.copy_from_slice(&o[c..c + 32]);
                for t in 0..BLOCK {
                    for l in 0..32 {
                        sum[l] = fma(weights[t], rows[t][c + l], sum[l]);
                    }
                }
                o[c..c + 32].copy_from_slice(&sum);
            }
        }
    }
}

/// A block's keys or values as f32; zeros for tokens that are not there.
#[inline(always)]
fn widen_rows<F: Format, const D: usize>(bits: &[u16], rows: &mut [[f32; D]; BLOCK]) {
    let bits = bits.as_chunks::<D>().0;
    for (row, bits) in rows.iter_mut().zip(bits) {
        for c in 0..D {
            row[c] = F::widen(bits[c]);
        }
    }
    for row in &mut rows[bits.len()..] {
        *row = [0.0; D];
    }
}
