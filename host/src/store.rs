//! K, V and mirrors in host memory, byte for byte in the layout of [`kernels_gpu::layout`]: what the cpu
//! and reference devices compute on, and what a download of a GPU's arenas would be.
//!
//! Trap: a slot's tokens beyond the length hold what was there before, NaN perhaps. [`HeadView`] knows the
//! length; go through its iterators.

use crate::element::widen;
use crate::pool::{HostCopy, SlotCopy, Tables};
use crate::tier::HostTier;
use crate::{Dtype, Error, MirrorFormat, Shape};
use kernels_gpu::layout::{BLOCK, blocks, key_offset, slot_elements, value_offset};

/// Longest context of the cpu and the reference, in blocks: 2,097,152 tokens. Memory allowing there is one limit, the fixed
/// point of `plan`: block masses below 2^30, times a share of 16 bits, summed over 2^17 blocks, stay below 2^63. (The stop
/// test's exact sum holds 2^22 tokens.) The kernels' limit is [`kernels_gpu::layout::MAX_BLOCKS`].
pub const MAX_BLOCKS: usize = 1 << 17;

/// The arenas.
#[derive(Debug)]
pub struct HostStore {
    /// Geometry.
    pub shape: Shape,
    /// Page format.
    pub format: MirrorFormat,
    /// Slots: 2-byte elements `[slots, 2, 16, head_dim]`.
    pub arena: Vec<u16>,
    /// Pages: `[pages, page_bytes]`.
    pub mirror: Vec<u8>,
}

impl HostStore {
    /// Arenas of `slots` slots and `pages` pages, on the device of that name.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(
        device: &'static str,
        shape: Shape,
        format: MirrorFormat,
        slots: usize,
        pages: usize,
    ) -> Result<HostStore, Error> {
        let page_bytes = format.page_bytes(shape.head_dim);
        let bytes = slots.saturating_mul(shape.slot_bytes()).saturating_add(pages.saturating_mul(page_bytes));
        // `vec!` gets zeroed memory from the system without touching it, but aborts where there is none:
        // ask in a way that may fail.
        if Vec::<u8>::new().try_reserve_exact(bytes).is_err() {
            return Err(Error::OutOfMemory { device, bytes });
        }
        Ok(HostStore {
            shape,
            format,
            arena: vec![0; slots * slot_elements(shape.head_dim)],
            mirror: vec![0; pages * page_bytes],
        })
    }

    /// One (sequence, layer, KV head) of `tokens` tokens.
    pub fn view<'a>(
        &'a self,
        tables: &'a Tables,
        sequence: usize,
        layer: usize,
        kv_head: usize,
        tokens: usize,
    ) -> HeadView<'a> {
        let row = tables.extents.row(sequence, layer, kv_head);
        HeadView {
            store: self,
            slots: &tables.slots(row)[..blocks(tokens)],
            pages: &tables.pages(row)[..self.format.full_groups(tokens)],
            tokens,
        }
    }

    /// Writes one token's key and value (`[head_dim]` bit patterns).
    pub fn write_token(&mut self, slot: u32, token_in_block: usize, key: &[u16], value: &[u16]) {
        let d = self.shape.head_dim;
        let slot = &mut self.arena[slot as usize * slot_elements(d)..][..slot_elements(d)];
        slot[key_offset(d, token_in_block)..][..d].copy_from_slice(key);
        slot[value_offset(d, token_in_block)..][..d].copy_from_slice(value);
    }

    /// Copies a head's keys and values out of its slots: `[tokens, head_dim]` bit patterns each.
    pub fn read_tokens(&self, slots: &[u32], k: &mut [u16], v: &mut [u16]) {
        let d = self.shape.head_dim;
        let parts = k.chunks_mut(BLOCK * d).zip(v.chunks_mut(BLOCK * d));
        for (&slot, (k, v)) in slots.iter().zip(parts) {
            let slot = &self.arena[slot as usize * slot_elements(d)..][..slot_elements(d)];
            k.copy_from_slice(&slot[key_offset(d, 0)..][..k.len()]);
            v.copy_from_slice(&slot[value_offset(d, 0)..][..v.len()]);
        }
    }

    /// Copies tokens from slot to slot.
    pub(crate) fn copy_slots(&mut self, copies: &[SlotCopy]) {
        let d = self.shape.head_dim;
        for copy in copies {
            for offset in [key_offset(d, 0), value_offset(d, 0)] {
                let from = copy.from as usize * slot_elements(d) + offset;
                let to = copy.to as usize * slot_elements(d) + offset;
                self.arena.copy_within(from..from + copy.tokens as usize * d, to);
            }
        }
    }

    /// Copies slots to the host tier.
    pub(crate) fn save(&self, copies: &[HostCopy], tier: &mut HostTier) {
        let elements = slot_elements(self.shape.head_dim);
        for copy in copies {
            tier.slot_mut(copy.home)
                .copy_from_slice(&self.arena[copy.slot as usize * elements..][..elements]);
        }
    }

    /// Copies from the host tier to slots.
    pub(crate) fn load(&mut self, copies: &[HostCopy], tier: &HostTier) {
        let elements = slot_elements(self.shape.head_dim);
        for copy in copies {
            self.arena[copy.slot as usize * elements..][..elements].copy_from_slice(tier.slot(copy.home));
        }
    }

    /// Bytes of page `page`, to be written.
    pub fn page_mut(&mut self, page: u32) -> &mut [u8] {
        let bytes = self.format.page_bytes(self.shape.head_dim);
        &mut self.mirror[page as usize * bytes..][..bytes]
    }
}

/// One (sequence, layer, KV head) of a store.
#[derive(Clone, Copy, Debug)]
pub struct HeadView<'a> {
    store: &'a HostStore,
    /// Slot of every block.
    slots: &'a [u32],
    /// Page of every full group.
    pages: &'a [u32],
    tokens: usize,
}

impl<'a> HeadView<'a> {
    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Blocks.
    pub fn blocks(&self) -> usize {
        self.slots.len()
    }

    /// Groups that have a page.
    pub fn full_groups(&self) -> usize {
        self.pages.len()
    }

    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        self.store.shape.head_dim
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.store.shape.dtype
    }

    /// Page format.
    pub fn format(&self) -> MirrorFormat {
        self.store.format
    }

    /// Tokens of a block: 16, fewer in the last.
    pub fn tokens_of_block(&self, block: usize) -> usize {
        (self.tokens - block * BLOCK).min(BLOCK)
    }

    /// Keys of a block's tokens: bit patterns `[tokens_of_block, head_dim]`.
    pub fn block_keys(&self, block: usize) -> &'a [u16] {
        &self.slot(block)[..self.tokens_of_block(block) * self.head_dim()]
    }

    /// Values of a block's tokens: bit patterns `[tokens_of_block, head_dim]`.
    pub fn block_values(&self, block: usize) -> &'a [u16] {
        let d = self.head_dim();
        &self.slot(block)[value_offset(d, 0)..][..self.tokens_of_block(block) * d]
    }

    /// Key of a token, bit patterns `[head_dim]`.
    pub fn key(&self, token: usize) -> &'a [u16] {
        &self.slot(token / BLOCK)[key_offset(self.head_dim(), token % BLOCK)..][..self.head_dim()]
    }

    /// Key of a token as numbers.
    pub fn key_values(&self, token: usize) -> impl Iterator<Item = f32> + 'a {
        let dtype = self.dtype();
        self.key(token).iter().map(move |&x| widen(dtype, x))
    }

    /// Value of a token as numbers.
    pub fn value_values(&self, token: usize) -> impl Iterator<Item = f32> + 'a {
        let (d, dtype) = (self.head_dim(), self.dtype());
        self.slot(token / BLOCK)[value_offset(d, token % BLOCK)..][..d].iter().map(move |&x| widen(dtype, x))
    }

    /// Keys of a full group: bit patterns `[group, head_dim]`.
    pub fn group_keys(&self, group: usize) -> Vec<u16> {
        let blocks = self.format().blocks();
        (group * blocks..(group + 1) * blocks).flat_map(|block| self.block_keys(block)).copied().collect()
    }

    /// Blocks in full groups: those that a page describes.
    pub fn described_blocks(&self) -> usize {
        self.full_groups() * self.format().blocks()
    }

    /// Page of a full group.
    pub fn page(&self, group: usize) -> &'a [u8] {
        let bytes = self.store.format.page_bytes(self.head_dim());
        &self.store.mirror[self.pages[group] as usize * bytes..][..bytes]
    }

    fn slot(&self, block: usize) -> &'a [u16] {
        let elements = slot_elements(self.head_dim());
        &self.store.arena[self.slots[block] as usize * elements..][..elements]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arenas_beyond_the_memory_are_an_error() {
        let shape = Shape { layers: 1, q_heads: 1, kv_heads: 1, head_dim: 64, dtype: Dtype::F16 };
        let format = MirrorFormat::new(crate::Mirror::Bits2, 64).unwrap();
        let error = HostStore::new("cpu", shape, format, usize::MAX / 4096, 1).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { device: "cpu", .. }));
        assert!(error.to_string().contains("less capacity"));
    }
}
