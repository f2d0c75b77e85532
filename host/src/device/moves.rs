//! Blocks on the move: copies on write, saves to the host tier, fetches from it.
//!
//! Slots that follow each other on both sides are one copy. Scattered slots that come in go up packed, in one copy, and
//! `gather` spreads them over the arena: a kernel with few CTAs, so that it does not take the device from decoding.
//!
//! Trap: what lies beyond the tokens of a slot was never written, and must not be read.

use kernels_gpu::layout::{BLOCK, key_offset, slot_elements, value_offset};

use super::{Kernels, launches, no_launch};
use crate::Dtype;
use crate::driver::DriverError;
use crate::pool::{HostCopy, SlotCopy};
use crate::tier::{HostTier, runs};

/// More runs than this are packed and spread by `gather`; fewer are copied one by one. A copy call costs a few
/// microseconds, so four cost what a launch and an upload do. Not measured on a GPU.
const MOST_RUNS: usize = 4;

/// CTAs of `gather`: a PCIe link is kept busy by a few, and an H100 has 132 SMs. Not measured on a GPU.
const GATHER_CTAS: u32 = 8;

impl Kernels {
    fn slot_address(&self, slot: u32, offset: usize) -> u64 {
        let element = slot as usize * slot_elements(self.cache.shape.head_dim) + offset;
        self.cache.arena.address() + (element * Dtype::BYTES) as u64
    }

    pub(super) fn copy_tokens(&mut self, copies: &[SlotCopy]) -> Result<(), DriverError> {
        let d = self.cache.shape.head_dim;
        for copy in copies {
            let bytes = copy.tokens as usize * d * Dtype::BYTES;
            for offset in [key_offset(d, 0), value_offset(d, 0)] {
                let (to, from) = (self.slot_address(copy.to, offset), self.slot_address(copy.from, offset));
                self.driver.copy(to, from, bytes)?;
            }
        }
        Ok(())
    }

    pub(super) fn download_slots(
        &mut self,
        copies: &[HostCopy],
        tier: &mut HostTier,
    ) -> Result<(), DriverError> {
        for run in runs(copies) {
            self.parts(run, |kernels, at, offset, elements| {
                let place = &mut tier.run_mut(run[0].home, run.len())[offset..][..elements];
                kernels.driver.download(at, bytemuck::cast_slice_mut(place))
            })?;
        }
        Ok(())
    }

    pub(super) fn upload_slots(&mut self, copies: &[HostCopy], tier: &HostTier) -> Result<(), DriverError> {
        let (whole, parts): (Vec<HostCopy>, Vec<HostCopy>) =
            copies.iter().partition(|copy| copy.tokens as usize == BLOCK);
        if runs(&whole).count() > MOST_RUNS {
            self.spread(&whole, tier)?;
        } else {
            self.upload_runs(&whole, tier)?;
        }
        self.upload_runs(&parts, tier)
    }

    fn upload_runs(&mut self, copies: &[HostCopy], tier: &HostTier) -> Result<(), DriverError> {
        for run in runs(copies) {
            self.parts(run, |kernels, at, offset, elements| {
                let place = &tier.run(run[0].home, run.len())[offset..][..elements];
                kernels.driver.upload(at, bytemuck::cast_slice(place))
            })?;
        }
        Ok(())
    }

    /// Device address, and offset and number of elements in the host tier, of the parts of a run that hold tokens.
    fn parts(
        &mut self,
        run: &[HostCopy],
        mut copy: impl FnMut(&mut Kernels, u64, usize, usize) -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        let (d, first) = (self.cache.shape.head_dim, run[0]);
        if first.tokens as usize == BLOCK {
            return copy(self, self.slot_address(first.slot, 0), 0, run.len() * slot_elements(d));
        }
        for offset in [key_offset(d, 0), value_offset(d, 0)] {
            copy(self, self.slot_address(first.slot, offset), offset, first.tokens as usize * d)?;
        }
        Ok(())
    }

    fn spread(&mut self, copies: &[HostCopy], tier: &HostTier) -> Result<(), DriverError> {
        let slot_bytes = self.cache.shape.slot_bytes();
        let (d, s) = (self.driver.as_mut(), &mut self.scratch);
        let staging = s.staging.reserve(d, copies.len() * slot_bytes, "slots from the host tier")?;
        let pairs = s.pairs.reserve(d, 8 * copies.len(), "pairs of slots")?;
        let packed: Vec<u16> = copies.iter().flat_map(|copy| tier.slot(copy.home)).copied().collect();
        let table: Vec<u32> = copies.iter().enumerate().flat_map(|(i, copy)| [i as u32, copy.slot]).collect();
        d.upload(staging.address(), bytemuck::cast_slice(&packed))?;
        d.upload(pairs.address(), bytemuck::cast_slice(&table))?;
        let ctas = GATHER_CTAS.min(copies.len() as u32);
        let launch = launches::gather(staging, self.cache.arena, pairs, copies.len(), slot_bytes, ctas)
            .map_err(no_launch)?;
        d.launch(&launch)
    }
}
