//! What was read and written of every allocation: bytes asked for, and distinct bytes.
//!
//! One bit a byte and direction, made at the first access. Distinct bytes are what any kernel of the same
//! job has to move; the ratio to the bytes asked for says how often they were moved.

use super::lanes::lanes;
use super::mem::Spots;
use super::traffic::sectors;
use super::{Cta, Machine};
use crate::memory::{Bits, Memory};
use crate::report::BufferTraffic;
use crate::types::Space;
use std::collections::HashMap;

/// Reads and writes of one allocation.
#[derive(Default)]
pub(super) struct Seen {
    read: Option<Bits>,
    written: Option<Bits>,
    sums: BufferTraffic,
}

impl Machine<'_> {
    /// Notes an access to global memory. Addresses are still those of the access.
    pub(super) fn note_buffers(&mut self, cta: &Cta, wi: usize, s: &Spots, total: usize, write: bool) {
        if !self.l.options.buffers || s.space != Space::Global || s.ok == 0 {
            return;
        }
        let addr = &cta.warps[wi].addr;
        let mut left = s.ok;
        while left != 0 {
            let id = s.alloc[left.trailing_zeros() as usize];
            let mask = lanes(left).filter(|&i| s.alloc[i] == id).fold(0u32, |m, i| m | 1 << i);
            left &= !mask;
            let size = self.l.mem.allocs[id as usize].data.len();
            let seen = self.buffers.entry(id).or_default();
            let bytes = u64::from(mask.count_ones()) * total as u64;
            let n = sectors(addr, mask, total);
            let bits = if write {
                seen.sums.bytes_written += bytes;
                seen.sums.sectors_written += n;
                &mut seen.written
            } else {
                seen.sums.bytes_read += bytes;
                seen.sums.sectors_read += n;
                &mut seen.read
            };
            let bits = bits.get_or_insert_with(|| Bits::new(size));
            lanes(mask).for_each(|i| bits.set_range(s.offset[i], total));
        }
    }
}

/// Takes in what another thread saw.
pub(super) fn merge(all: &mut HashMap<u32, Seen>, other: HashMap<u32, Seen>) {
    let bits = |mine: &mut Option<Bits>, theirs: Option<Bits>| match (mine, theirs) {
        (Some(mine), Some(theirs)) => mine.union(&theirs),
        (mine @ None, theirs) => *mine = theirs,
        (_, None) => {}
    };
    for (id, o) in other {
        let s = all.entry(id).or_default();
        bits(&mut s.read, o.read);
        bits(&mut s.written, o.written);
        s.sums.bytes_read += o.sums.bytes_read;
        s.sums.bytes_written += o.sums.bytes_written;
        s.sums.sectors_read += o.sums.sectors_read;
        s.sums.sectors_written += o.sums.sectors_written;
    }
}

/// The sums, in the order of the allocations.
pub(super) fn traffic(seen: HashMap<u32, Seen>, mem: &Memory) -> Vec<BufferTraffic> {
    let mut seen: Vec<_> = seen.into_iter().collect();
    seen.sort_unstable_by_key(|(id, _)| *id);
    seen.into_iter()
        .map(|(id, s)| {
            let a = &mem.allocs[id as usize];
            BufferTraffic {
                name: a.name.clone(),
                size: a.size,
                distinct_read: s.read.map_or(0, |b| b.count()),
                distinct_written: s.written.map_or(0, |b| b.count()),
                ..s.sums
            }
        })
        .collect()
}
