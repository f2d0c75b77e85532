//! The loss of a device: sequences are rebuilt on another from the host tier.
//!
//! K and V of a saved block are in the host tier bit for bit; its mirror page is made again from the keys by the same
//! append that made it. What was only on the device is gone: a sequence is cut to what was saved, and named.

use super::*;
use crate::backend::{AppendStep, DecodeResult, DecodeStep};
use crate::pool::{TableChange, Tables};
use half::{bf16, f16};
use kernels_gpu::layout::{key_offset, value_offset};
use std::collections::HashSet;

/// What became of the sequences of a lost device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Sequences that are as they were, bit for bit.
    pub whole: Vec<SequenceId>,
    /// Sequences that have lost tokens at their end.
    pub shortened: Vec<Shortened>,
}

/// A sequence that has lost tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortened {
    /// The sequence.
    pub sequence: SequenceId,
    /// Tokens that it had, in the layer that had most.
    pub before: usize,
    /// Tokens that it has, in every layer: compute the others again, or remove it.
    pub tokens: usize,
}

impl KvCache {
    /// Moves the cache to another device, after [`Error::DeviceLost`] or on purpose. What is not in the host tier is saved
    /// first where the old device still answers; otherwise sequences keep what was saved: always their full groups
    /// but the last few, and all of them after [`KvCache::save`] or [`KvCache::swap_out`].
    ///
    /// Plans stay valid; a shortened sequence loses its reservation.
    ///
    /// # Errors
    /// [`Error::NoHostTier`]; the new device's, after which nothing was changed where it could not be made, and the cache
    /// has no device where it failed later: then call this again.
    pub fn rebuild_on(&mut self, device: &Device) -> Result<Rebuilt, Error> {
        if self.tier.is_none() {
            return Err(Error::NoHostTier { call: "KvCache::rebuild_on" });
        }
        let sizes = (self.pool.slots(), self.pool.blocks());
        let extents = self.pool.tables().extents;
        let spec = spec_of(&self.shape, &self.config, self.mirror_format(), sizes, extents);
        let fresh = device.backend(&spec)?;
        if self.config.unit != BLOCK && !fresh.knows_everything() {
            return Err(Error::Unsupported {
                what: format!("a selection unit of {} tokens", self.config.unit),
                device: fresh.name(),
                supported: "units of 16 tokens",
            });
        }
        let sequences: Vec<SequenceId> = self.pool.live().collect();
        for &sequence in &sequences {
            if self.save(sequence).is_err() {
                break;
            }
        }
        let mut rebuilt = Rebuilt::default();
        for sequence in sequences {
            let index = self.pool.index(sequence)?;
            let (before, tokens) = self.pool.survivors(index);
            match tokens {
                None => rebuilt.whole.push(sequence),
                Some(tokens) => rebuilt.shortened.push(Shortened { sequence, before, tokens }),
            }
        }
        for &Shortened { sequence, tokens, .. } in &rebuilt.shortened {
            // A reservation could stand in the way where others share the blocks.
            self.pool.reserve_for(sequence, 0)?;
            self.pool.truncate(sequence, tokens)?;
        }
        self.value_sums.clear();
        self.pool.forget_device();
        self.backend = fresh;
        let made = self.make_pages();
        self.pool.end_of_use();
        if let Err(error) = &made {
            let detail = format!("the rebuild failed: {error}; call KvCache::rebuild_on again");
            self.pool.forget_device();
            self.backend = Box::new(Nowhere { detail });
        }
        made.map(|()| rebuilt)
    }

    /// Appends all full groups of all sequences again, a group at a time.
    fn make_pages(&mut self) -> Result<(), Error> {
        let Shape { layers, kv_heads, head_dim: d, dtype, .. } = self.shape;
        let (group, blocks) = (self.config.quant_group, self.mirror_format().blocks());
        let mut made = HashSet::new();
        let sequences: Vec<SequenceId> = self.pool.live().collect();
        for sequence in sequences {
            let index = self.pool.index(sequence)?;
            let all = (0..layers)
                .flat_map(|layer| (0..self.pool.tokens(index, layer) / group).map(move |g| (layer, g)));
            for (layer, g) in all.collect::<Vec<_>>() {
                let rows = self.pool.rows(index, layer);
                // Forks share pages: all heads of a group at once.
                if !made.insert(self.pool.tables().pages(rows.start)[g]) {
                    continue;
                }
                let (mut k, mut v) = (vec![0u16; group * kv_heads * d], vec![0u16; group * kv_heads * d]);
                let mut ids = vec![];
                for (head, row) in rows.enumerate() {
                    for block in 0..blocks {
                        let (id, slot) = self.pool.block_of(row, g * blocks + block);
                        match slot {
                            None => ids.push(id),
                            Some(_) => self.pool.hold(row, std::iter::once(g * blocks + block), &mut ids),
                        }
                        let Some(tier) = &self.tier else { continue };
                        let from = tier.slot(id);
                        for token in 0..BLOCK {
                            let at = ((block * BLOCK + token) * kv_heads + head) * d;
                            k[at..][..d].copy_from_slice(&from[key_offset(d, token)..][..d]);
                            v[at..][..d].copy_from_slice(&from[value_offset(d, token)..][..d]);
                        }
                    }
                }
                let copies = self.pool.find_slots(&ids)?;
                self.pool.arrived(&copies);
                self.tell_tables(&[index as u32], layer)?;
                let (seqs, lens) = ([index as u32], [((g + 1) * group) as u32]);
                let offsets = [0, group as u32];
                let (k, v) = (elements(dtype, &k), elements(dtype, &v));
                let step = AppendStep { layer, seqs: &seqs, lens: &lens, offsets: &offsets, k, v };
                self.backend.append(self.pool.tables(), &step)?;
                self.pool.end_of_use();
            }
        }
        Ok(())
    }
}

/// Bit patterns as elements.
fn elements(dtype: crate::Dtype, bits: &[u16]) -> Rows<'_> {
    match dtype {
        crate::Dtype::F16 => Rows::F16(bytemuck::cast_slice::<u16, f16>(bits)),
        crate::Dtype::Bf16 => Rows::Bf16(bytemuck::cast_slice::<u16, bf16>(bits)),
    }
}

/// No device.
struct Nowhere {
    detail: String,
}

impl Nowhere {
    fn lost(&self, call: &str) -> Error {
        Error::DeviceLost { call: call.into(), detail: self.detail.clone() }
    }
}

impl Backend for Nowhere {
    fn name(&self) -> String {
        "no device".into()
    }

    fn tables_changed(&mut self, _: &Tables, _: &[TableChange]) -> Result<(), Error> {
        Err(self.lost("upload tables"))
    }

    fn append(&mut self, _: &Tables, _: &AppendStep<'_>) -> Result<(), Error> {
        Err(self.lost("append"))
    }

    fn decode(&mut self, _: &Tables, _: &DecodeStep<'_>, _: &mut DecodeResult<'_>) -> Result<(), Error> {
        Err(self.lost("decode"))
    }

    fn cannot(&self, what: &str) -> Error {
        self.lost(what)
    }
}
