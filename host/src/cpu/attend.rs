//! attend: exact attention over the planned blocks, in splits, in f32.
//!
//! Split s of S takes the ranks s, s + S, .. as the GPU's does. Within a split, four
//! blocks at a time are scored, weighted and added; the order of additions is fixed by that and by [`tile`], so
//! it depends on the plan alone.
//!
//! Trap: tokens beyond the length are zeros here, never what lies in their slot, which may be NaN.

use super::isa::per_isa;
use super::lanes::Lanes;
use super::{Queries, Step, by_format, tile};
use crate::Dtype;
use crate::element::{Bf16, F16, Format};
use crate::store::HeadView;

use super::vector::{Vector, place};
use kernels_gpu::layout::{BLOCK, MAX_GROUP, splits};
use kernels_gpu::numeric::{NOTHING, exp2, fma};
use rayon::prelude::*;

/// What a stream of blocks has given, for each query head of a group.
#[derive(Clone)]
pub(super) struct Part {
    /// Largest score, log2.
    pub m: [f32; MAX_GROUP],
    /// Sum of `2^(score - m)`.
    pub l: [f32; MAX_GROUP],
    /// Sum of the values so weighted: `[group, head_dim]`, channels by [`place_of`].
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
    let dealt = queries.dealt.as_chunks::<D>().0;
    let mut outputs = [[0.0f32; D]; MAX_GROUP];
    let mut weights = [[[0.0f32; BLOCK]; MAX_GROUP]; CHUNK_BLOCKS];
    let mut padded = [[0u16; D]; BLOCK];
    let blocks = order.len().div_ceil(stride);
    let keys = |i: usize| match order.get(i * stride) {
        Some(&block) => view.block_keys(block as usize).as_chunks::<D>().0,
        None => &[],
    };
    let values = |i: usize| match order.get(i * stride) {
        Some(&block) => view.block_values(block as usize).as_chunks::<D>().0,
        None => &[],
    };

    for first in (0..blocks).step_by(CHUNK_BLOCKS) {
        let chunk = CHUNK_BLOCKS.min(blocks - first);
        for (i, weights) in weights.iter_mut().enumerate().take(chunk) {
            let rows = keys(first + i);
            let (whole, ahead) = (whole(rows, &mut padded), values(first + i));
            tile::scores::<L, F, D>(dealt, whole, ahead, &mut weights[..group]);
            for scores in &mut weights[..group] {
                // As `finite_score`.
                let (low, high) = (L::V::splat(-1e30), L::V::splat(1e30));
                L::V::load(scores).max(low).min(high).store(scores);
                scores[rows.len()..].fill(f32::NEG_INFINITY);
            }
        }
        for g in 0..group {
            let mut tops = L::V::splat(f32::NEG_INFINITY);
            for weights in &weights[..chunk] {
                tops = L::V::load(&weights[g]).max(tops);
            }
            let top = tops.largest::<L>();
            let m = if top > part.m[g] { top } else { part.m[g] };
            let (less, mut sums) = (L::V::splat(-m), L::V::splat(0.0));
            for weights in &mut weights[..chunk] {
                let weight = L::V::load(&weights[g]).add(less).exp2();
                weight.store(&mut weights[g]);
                sums = sums.add(weight);
            }
            let rescale = exp2(part.m[g] - m);
            part.l[g] = fma(part.l[g], rescale, sums.sum::<L>());
            if m > part.m[g] {
                part.m[g] = m;
                for o in outputs[g].as_chunks_mut::<16>().0 {
                    L::V::load(o).mul(L::V::splat(rescale)).store(o);
                }
            }
        }
        for (i, weights) in weights.iter().enumerate().take(chunk) {
            let values = whole(values(first + i), &mut padded);
            let ahead = keys(first + CHUNK_BLOCKS + i);
            tile::add_values::<L, F, D>(&weights[..group], values, ahead, &mut outputs[..group]);
        }
    }
    part.o.copy_from_slice(outputs[..group].as_flattened());
}

/// Where attention has channel `c` of a query or an output.
pub(super) fn place_of(dtype: Dtype, c: usize) -> usize {
    match dtype {
        Dtype::F16 => place::<F16>(c),
        Dtype::Bf16 => place::<Bf16>(c),
    }
}

/// Queries with their channels by [`place_of`].
pub(super) fn deal(dtype: Dtype, scaled: &[f32]) -> [f32; MAX_GROUP * 128] {
    let mut dealt = [0.0; MAX_GROUP * 128];
    for (i, &x) in scaled.iter().enumerate() {
        dealt[place_of(dtype, i)] = x;
    }
    dealt
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
