//! append: new tokens into their slots, and the mirror page of every group that fills.
//!
//! Copies run in one thread, they are bound by memory; pages are made in parallel and copied into place.

use super::by_format;
use super::isa::{Isa, per_isa};
use super::lanes::Lanes;
use crate::Mirror;
use crate::backend::AppendStep;
use crate::element::Format;
use crate::estimator::planes::range;
use crate::estimator::{Estimator, Keys};
use crate::pool::Tables;
use crate::store::{HeadView, HostStore};
use half::f16;
use kernels_gpu::layout::{BLOCK, box_offset, plane_row_bytes, step_offset};
use kernels_gpu::numeric::quantise;
use rayon::prelude::*;

/// Appends a batch.
pub(super) fn append(
    isa: Isa,
    store: &mut HostStore,
    estimator: &dyn Estimator,
    tables: &Tables,
    step: &AppendStep<'_>,
) {
    let (kv_heads, d) = (store.shape.kv_heads, store.shape.head_dim);
    let (k, v) = (step.k.bits(), step.v.bits());
    let mut filled = vec![];
    for (b, (&seq, &tokens)) in step.seqs.iter().zip(step.lens).enumerate() {
        let tokens = tokens as usize;
        let new = step.offsets[b] as usize..step.offsets[b + 1] as usize;
        let before = tokens - new.len();
        for h in 0..kv_heads {
            let row = tables.extents.row(seq as usize, step.layer, h);
            for (position, token) in (before..tokens).zip(new.clone()) {
                let slot = tables.slots(row)[position / BLOCK];
                let source = (token * kv_heads + h) * d;
                store.write_token(slot, position % BLOCK, &k[source..][..d], &v[source..][..d]);
            }
            let format = store.format;
            let full = format.full_groups(before)..format.full_groups(tokens);
            filled.extend(full.map(|group| (b, h, row, group)));
        }
    }
    let finished = &*store;
    let pages: Vec<(u32, Vec<u8>)> = filled
        .into_par_iter()
        .map(|(b, h, row, group)| {
            let view = finished.view(tables, step.seqs[b] as usize, step.layer, h, step.lens[b] as usize);
            let mut page = vec![0; view.format().page_bytes(d)];
            match (view.format().mirror, view.format().mirror.bits()) {
                (_, Some(bits)) => {
                    by_format!(view, write_planes(isa, &view, group, bits as usize, &mut page));
                }
                (Mirror::Box, _) => by_format!(view, write_boxes(isa, &view, group, &mut page)),
                _ => {
                    let bits = view.group_keys(group);
                    estimator.write(Keys { bits: &bits, dtype: view.dtype(), head_dim: d }, &mut page);
                }
            }
            (tables.pages(row)[group], page)
        })
        .collect();
    for (page, bytes) in pages {
        store.page_mut(page).copy_from_slice(&bytes);
    }
}

per_isa! {
    fn write_planes[F: Format, const D: usize][F, D](view: &HeadView<'_>, group: usize, bits: usize, page: &mut [u8])
        = write_planes_body;
}

#[inline(always)]
fn write_planes_body<L: Lanes, F: Format, const D: usize>(
    view: &HeadView<'_>,
    group: usize,
    bits: usize,
    page: &mut [u8],
) {
    let (levels, planes) = (1u32 << bits, bits.div_ceil(2));
    let (tokens, blocks) = (view.format().group, view.format().blocks());
    let mut keys = vec![[0.0f32; D]; tokens];
    for block in 0..blocks {
        let bits = view.block_keys(group * blocks + block);
        for (key, bits) in keys[block * BLOCK..].iter_mut().zip(bits.as_chunks::<D>().0) {
            for c in 0..D {
                key[c] = F::widen(bits[c]);
            }
        }
    }
    let (mut min, mut max) = ([f32::INFINITY; D], [f32::NEG_INFINITY; D]);
    for key in &keys {
        for c in 0..D {
            min[c] = if key[c] < min[c] { key[c] } else { min[c] };
            max[c] = if key[c] > max[c] { key[c] } else { max[c] };
        }
    }
    let (mut zeros, mut steps) = ([0.0f32; D], [0.0f32; D]);
    for c in 0..D {
        let (zero, step) = range(min[c], max[c], bits);
        let (zero, step) = (f16::from_f32(zero), f16::from_f32(step));
        page[2 * c..][..2].copy_from_slice(&zero.to_le_bytes());
        page[step_offset(D) + 2 * c..][..2].copy_from_slice(&step.to_le_bytes());
        (zeros[c], steps[c]) = (zero.to_f32(), step.to_f32());
    }
    for (t, key) in keys.iter().enumerate() {
        let mut codes = [0u32; D];
        for c in 0..D {
            codes[c] = quantise(key[c], zeros[c], steps[c], levels);
        }
        if bits == 1 {
            // Byte i of word w holds channels 32 w + 4 j + i, j = 0..8, lowest first.
            let row = &mut page[4 * D + t * D / 8..][..D / 8];
            for (at, byte) in row.iter_mut().enumerate() {
                let (w, i) = (at / 4, at % 4);
                *byte = (0..8).fold(0, |byte, j| byte | (codes[32 * w + 4 * j + i] as u8) << j);
            }
            continue;
        }
        for p in 0..planes {
            let shift = 2 * (planes - 1 - p);
            let row = &mut page[4 * D + (p * tokens + t) * plane_row_bytes(D)..][..plane_row_bytes(D)];
            // Byte i of word w holds channels 16 w + 4 j + i, j = 0..4, lowest first.
            for (at, byte) in row.iter_mut().enumerate() {
                let (w, i) = (at / 4, at % 4);
                *byte = (0..4)
                    .fold(0, |byte, j| byte | ((codes[16 * w + 4 * j + i] >> shift & 3) as u8) << (2 * j));
            }
        }
    }
}

per_isa! {
    fn write_boxes[F: Format, const D: usize][F, D](view: &HeadView<'_>, group: usize, page: &mut [u8])
        = write_boxes_body;
}

#[inline(always)]
fn write_boxes_body<L: Lanes, F: Format, const D: usize>(view: &HeadView<'_>, group: usize, page: &mut [u8]) {
    let blocks = view.format().blocks();
    for block in 0..blocks {
        let keys = view.block_keys(group * blocks + block).as_chunks::<D>().0;
        let (mut min, mut max) = (keys[0], keys[0]);
        for key in &keys[1..] {
            for c in 0..D {
                min[c] = if F::widen(key[c]) < F::widen(min[c]) { key[c] } else { min[c] };
                max[c] = if F::widen(key[c]) > F::widen(max[c]) { key[c] } else { max[c] };
            }
        }
        let bounds = page[box_offset(D, block)..][..4 * D].as_chunks_mut::<2>().0;
        for c in 0..D {
            bounds[c] = min[c].to_le_bytes();
            bounds[D + c] = max[c].to_le_bytes();
        }
    }
}
