//! The host tier: a place in host memory for every block, in the layout of a slot.
//!
//! Layout: elements of 2 bytes `[blocks, 2, 16, head_dim]`, K before V. A block's place is its number, so a block that
//! was saved once leaves the device without a copy. The memory belongs to the cache, not to the device: it outlives a
//! lost context.
//!
//! Trap: what lies beyond the tokens of a place is stale.

use crate::pool::HostCopy;
use crate::{Error, Shape};
use kernels_gpu::layout::{BLOCK, key_offset, slot_elements, value_offset};

/// Host memory for blocks.
pub struct HostTier {
    head_dim: usize,
    elements: Vec<u16>,
}

impl HostTier {
    /// Room for `blocks` blocks.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn new(shape: &Shape, blocks: usize) -> Result<HostTier, Error> {
        let bytes = blocks.saturating_mul(shape.slot_bytes());
        // `vec!` gets zeroed memory without touching it, but aborts where there is none: ask in a way that may fail.
        if Vec::<u8>::new().try_reserve_exact(bytes).is_err() {
            return Err(Error::OutOfMemory { device: "the host tier", bytes });
        }
        Ok(HostTier { head_dim: shape.head_dim, elements: vec![0; blocks * slot_elements(shape.head_dim)] })
    }

    /// A block's place.
    pub fn slot(&self, home: u32) -> &[u16] {
        let elements = slot_elements(self.head_dim);
        &self.elements[home as usize * elements..][..elements]
    }

    /// A block's place, to be written.
    pub fn slot_mut(&mut self, home: u32) -> &mut [u16] {
        let elements = slot_elements(self.head_dim);
        &mut self.elements[home as usize * elements..][..elements]
    }

    /// The places of `count` blocks in a row.
    pub fn run(&self, home: u32, count: usize) -> &[u16] {
        let elements = slot_elements(self.head_dim);
        &self.elements[home as usize * elements..][..count * elements]
    }

    /// The places of `count` blocks in a row, to be written.
    pub fn run_mut(&mut self, home: u32, count: usize) -> &mut [u16] {
        let elements = slot_elements(self.head_dim);
        &mut self.elements[home as usize * elements..][..count * elements]
    }

    /// Copies K and V of a block's first tokens out: `[tokens, head_dim]` each.
    pub(crate) fn read_tokens(&self, home: u32, k: &mut [u16], v: &mut [u16]) {
        let slot = self.slot(home);
        k.copy_from_slice(&slot[key_offset(self.head_dim, 0)..][..k.len()]);
        v.copy_from_slice(&slot[value_offset(self.head_dim, 0)..][..v.len()]);
    }
}

/// Splits copies into runs of whole blocks that follow each other on both sides, and single blocks that are not full.
pub fn runs(copies: &[HostCopy]) -> impl Iterator<Item = &[HostCopy]> {
    copies.chunk_by(|a, b| {
        a.tokens as usize == BLOCK
            && b.tokens as usize == BLOCK
            && a.slot + 1 == b.slot
            && a.home + 1 == b.home
    })
}
