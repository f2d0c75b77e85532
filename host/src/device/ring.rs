//! What the last steps read, left in device memory for whoever wants to know later.
//!
//! `merge` writes `read` and `mass` of a step anyway. Here each step gets a place of its own for them in a ring over the
//! last steps, instead of the same place again: no kernel knows, no launch and no copy is added. One copy brings the
//! whole ring to the host, when the host likes; a step whose results stay there ([`Backend::defer_reports`]) copies two
//! buffers less. What the host knew at the launch (layer, sequences, lengths, metadata) stays on the host.
//!
//! A place: `read` u32 `[rows, 2]` and `mass` f32 `[heads]` of the largest batch, each from a multiple of 256 bytes on.
//!
//! Trap: a full ring overwrites the oldest step without asking. [`RecentStep::number`] shows what is missing.
//!
//! [`Backend::defer_reports`]: crate::backend::Backend::defer_reports

use psa_codegen::Region;
use std::collections::VecDeque;

use crate::Shape;
use crate::backend::{DecodeStep, RecentStep};
use crate::driver::{Driver, DriverError};

/// Steps of every layer that are kept: at 32 layers and 16 sequences of 8 KV heads and 32 query heads, 1.5 MB.
const STEPS: usize = 16;
/// Bytes of the ring at most; a cache for thousands of sequences keeps fewer steps, but one in any case.
const MOST: usize = 16 << 20;

/// The ring of one cache.
pub(super) struct Ring {
    memory: Region,
    read_bytes: u64,
    place_bytes: u64,
    places: u64,
    /// Steps so far.
    count: u64,
    /// What the host knows of the last steps, oldest first; at most `places`.
    known: VecDeque<RecentStep>,
}

impl Ring {
    /// A ring for batches of up to `sequences`.
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`].
    pub(super) fn new(driver: &mut dyn Driver, shape: &Shape, sequences: usize) -> Result<Ring, DriverError> {
        let whole = |bytes: usize| bytes.next_multiple_of(256) as u64;
        let read_bytes = whole(8 * sequences * shape.kv_heads);
        let place_bytes = read_bytes + whole(4 * sequences * shape.q_heads);
        let places = (MOST as u64 / place_bytes).clamp(1, (STEPS * shape.layers) as u64);
        let memory = driver.region((places * place_bytes) as usize, "recent steps")?;
        Ok(Ring { memory, read_bytes, place_bytes, places, count: 0, known: VecDeque::new() })
    }

    /// Where the next step's `read` and `mass` go.
    pub(super) fn next(&self, rows: usize, heads: usize) -> (Region, Region) {
        let start = self.count % self.places * self.place_bytes;
        let part = |from: u64, bytes: usize| self.memory.part(from, bytes as u64).unwrap_or(self.memory);
        (part(start, 8 * rows), part(start + self.read_bytes, 4 * heads))
    }

    /// Notes that the step was launched.
    pub(super) fn launched(&mut self, step: &DecodeStep<'_>, metadata: Vec<u32>) {
        if self.known.len() as u64 == self.places {
            self.known.pop_front();
        }
        self.known.push_back(RecentStep {
            number: self.count,
            layer: step.layer,
            ranking: step.ranking,
            seqs: step.seqs.to_vec(),
            lens: step.lens.to_vec(),
            read: vec![],
            mass: vec![],
            metadata,
        });
        self.count += 1;
    }

    /// Forgets the last step, whose end runs once more.
    pub(super) fn take_back(&mut self) {
        if self.known.pop_back().is_some() {
            self.count -= 1;
        }
    }

    /// The last steps, oldest first, by one copy.
    ///
    /// # Errors
    /// The driver's.
    pub(super) fn fetch(
        &self,
        driver: &mut dyn Driver,
        shape: &Shape,
    ) -> Result<Vec<RecentStep>, DriverError> {
        // Places are filled from the first on.
        let used = (self.count.min(self.places) * self.place_bytes) as usize;
        let mut bytes = vec![0u32; used / 4];
        if used > 0 {
            driver.download(self.memory.address(), bytemuck::cast_slice_mut(&mut bytes))?;
        }
        let step = |known: &RecentStep| {
            let start = (known.number % self.places * self.place_bytes / 4) as usize;
            let mass = start + (self.read_bytes / 4) as usize;
            let (rows, heads) = (known.seqs.len() * shape.kv_heads, known.seqs.len() * shape.q_heads);
            RecentStep {
                read: bytes[start..][..2 * rows].to_vec(),
                mass: bytes[mass..][..heads].iter().map(|&bits| f32::from_bits(bits)).collect(),
                ..known.clone()
            }
        };
        Ok(self.known.iter().map(step).collect())
    }

    /// Its memory.
    pub(super) fn memory(&self) -> Region {
        self.memory
    }
}
