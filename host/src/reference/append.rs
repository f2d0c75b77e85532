//! append: new tokens into their slots, and the mirror page of every group that fills.
//!
//! The page is made from the slots, so it does not matter in how many appends a group's tokens came.

use crate::backend::AppendStep;
use crate::element::widen;
use crate::pool::Tables;
use crate::store::{HeadView, HostStore};
use half::f16;
use kernels_gpu::layout::{
    BLOCK, BLOCKS_PER_GROUP, MirrorKind, QUANT_GROUP, box_offset, code_shift, full_groups, plane_offset,
    plane_row_bytes, step_offset,
};
use kernels_gpu::numeric::{quantise, quantiser_range};

/// Appends a batch.
pub fn append(store: &mut HostStore, tables: &Tables, step: &AppendStep<'_>) {
    let (kv_heads, d) = (store.shape.kv_heads, store.shape.head_dim);
    let (k, v) = (step.k.bits(), step.v.bits());
    for (b, (&seq, &tokens)) in step.seqs.iter().zip(step.lens).enumerate() {
        let (seq, tokens) = (seq as usize, tokens as usize);
        let new = step.offsets[b] as usize..step.offsets[b + 1] as usize;
        let before = tokens - new.len();
        for h in 0..kv_heads {
            let row = tables.extents.row(seq, step.layer, h);
            for (position, token) in (before..tokens).zip(new.clone()) {
                let slot = tables.slots(row)[position / BLOCK];
                let source = (token * kv_heads + h) * d;
                store.write_token(slot, position % BLOCK, &k[source..][..d], &v[source..][..d]);
            }
            for group in full_groups(before)..full_groups(tokens) {
                let page = mirror_page(&store.view(tables, seq, step.layer, h, tokens), group);
                store.page_mut(tables.pages(row)[group]).copy_from_slice(&page);
            }
        }
    }
}

/// The page of a full group.
pub fn mirror_page(view: &HeadView<'_>, group: usize) -> Vec<u8> {
    match view.mirror_kind() {
        MirrorKind::Planes(planes) => planes_page(view, group, planes as usize),
        MirrorKind::Box => box_page(view, group),
    }
}

fn planes_page(view: &HeadView<'_>, group: usize, planes: usize) -> Vec<u8> {
    let d = view.head_dim();
    let levels = 1u32 << (2 * planes);
    let keys: Vec<Vec<f32>> =
        (0..QUANT_GROUP).map(|t| view.key_values(group * QUANT_GROUP + t).collect()).collect();
    let mut page = vec![0u8; MirrorKind::Planes(planes as u32).page_bytes(d)];
    for c in 0..d {
        let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
        for key in &keys {
            min = if key[c] < min { key[c] } else { min };
            max = if key[c] > max { key[c] } else { max };
        }
        let (zero, step) = quantiser_range(min, max, levels);
        let (zero, step) = (f16::from_f32(zero), f16::from_f32(step));
        page[2 * c..][..2].copy_from_slice(&zero.to_le_bytes());
        page[step_offset(d) + 2 * c..][..2].copy_from_slice(&step.to_le_bytes());
        for (t, key) in keys.iter().enumerate() {
            let code = quantise(key[c], zero.to_f32(), step.to_f32(), levels);
            for p in 0..planes {
                let two_bits = (code >> (2 * (planes - 1 - p))) & 3;
                let word = plane_offset(d, p) + t * plane_row_bytes(d) + c / 16 * 4;
                let bits = (two_bits << code_shift(c)).to_le_bytes();
                page[word..][..4].iter_mut().zip(bits).for_each(|(to, from)| *to |= from);
            }
        }
    }
    page
}

fn box_page(view: &HeadView<'_>, group: usize) -> Vec<u8> {
    let (d, dtype) = (view.head_dim(), view.dtype());
    let mut page = vec![0u8; MirrorKind::Box.page_bytes(d)];
    for block in 0..BLOCKS_PER_GROUP {
        let first = group * QUANT_GROUP + block * BLOCK;
        for c in 0..d {
            let (mut min, mut max) = (view.key(first)[c], view.key(first)[c]);
            for t in 1..BLOCK {
                let x = view.key(first + t)[c];
                min = if widen(dtype, x) < widen(dtype, min) { x } else { min };
                max = if widen(dtype, x) > widen(dtype, max) { x } else { max };
            }
            let at = box_offset(d, block) + 2 * c;
            page[at..][..2].copy_from_slice(&min.to_le_bytes());
            page[at + 2 * d..][..2].copy_from_slice(&max.to_le_bytes());
        }
    }
    page
}
