//! append: new tokens into their slots, and the mirror page of every group that fills.
//!
//! The page is made from the slots, so it does not matter in how many appends a group's tokens came.

use crate::backend::AppendStep;
use crate::estimator::{Estimator, Keys};
use crate::pool::Tables;
use crate::store::{HeadView, HostStore};
use kernels_gpu::layout::BLOCK;

/// Appends a batch.
pub fn append(store: &mut HostStore, estimator: &dyn Estimator, tables: &Tables, step: &AppendStep<'_>) {
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
                let place = position % BLOCK;
                store.write_token(slot, place, &k[source..][..d], &v[source..][..d]);
            }
            for group in store.format.full_groups(before)..store.format.full_groups(tokens) {
                let page = mirror_page(&store.view(tables, seq, step.layer, h, tokens), estimator, group);
                store.page_mut(tables.pages(row)[group]).copy_from_slice(&page);
            }
        }
    }
}

/// The page of a full group.
pub fn mirror_page(view: &HeadView<'_>, estimator: &dyn Estimator, group: usize) -> Vec<u8> {
    let mut page = vec![0; view.format().page_bytes(view.head_dim())];
    let bits = view.group_keys(group);
    estimator.write(Keys { bits: &bits, dtype: view.dtype(), head_dim: view.head_dim() }, &mut page);
    page
}
