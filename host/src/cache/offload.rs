//! Steps over a cache that is only partly on the device: saves behind, fetches before.
//!
//! score and plan need the mirror and the open groups, which are always there. The plan then says what attend reads:
//! that is fetched. merge may read on, down the ranking, and finds zeros where a block is not on the device. It still
//! says truly which chunk it wanted first beyond what was there, since all before that was right; so that chunk is
//! fetched and merge runs again, until everything it read was there. The result has the bits of a cache that is wholly on
//! the device.
//!
//! A layer of a batch that does not fit the slots is done in halves, as a sequence gets the same bits in any batch.
//!
//! Trap: what a step needs is *held*, or a fetch for one row could evict what another is about to read.

use super::*;
use crate::backend::{DecodeRecord, DecodeResult, DecodeStep, Ranking, Selection};
use kernels_gpu::layout::TOPUP_CHUNK;

/// Blocks that wait before they are saved together: 64 slots of 8 KiB are half a MiB, some 10 us of a PCIe 5 link, beside
/// which the cost of a call does not count. A smaller pool saves earlier, when it runs out of slots.
const SAVE_BATCH: usize = 64;

impl KvCache {
    /// score, plan, attend, merge for checked arguments, wherever the blocks are.
    pub(crate) fn decode(
        &mut self,
        step: &DecodeStep<'_>,
        result: &mut DecodeResult<'_>,
    ) -> Result<(), Error> {
        if self.tier.is_none() {
            self.tell_tables(step.seqs, step.layer)?;
            return self.backend.decode(self.pool.tables(), step, result);
        }
        let first_row = step.seqs.first().copied();
        if step.layer < self.last_layer || (step.layer == self.last_layer && first_row == self.first_row) {
            self.pool.end_step();
            self.first_row = first_row;
        }
        self.last_layer = step.layer;
        self.decode_in_parts(step, result)
    }

    fn decode_in_parts(&mut self, step: &DecodeStep<'_>, result: &mut DecodeResult<'_>) -> Result<(), Error> {
        let done = self.decode_at_once(step, result);
        self.pool.end_of_use();
        match done {
            Err(Error::PoolExhausted { .. }) if step.seqs.len() > 1 => {
                let half = step.seqs.len() / 2;
                for entries in [0..half, half..step.seqs.len()] {
                    let (step, mut result) =
                        part(&self.shape, self.pool.tables().extents, step, result, entries);
                    self.decode_in_parts(&step, &mut result)?;
                }
                Ok(())
            }
            done => done,
        }
    }

    fn decode_at_once(&mut self, step: &DecodeStep<'_>, result: &mut DecodeResult<'_>) -> Result<(), Error> {
        self.hold_open_groups(step.seqs, step.layer)?;
        let rows: Vec<usize> =
            step.seqs.iter().flat_map(|&s| self.pool.rows(s as usize, step.layer)).collect();
        let existing: Vec<usize> =
            step.lens.iter().flat_map(|&n| [blocks(n as usize)].repeat(self.shape.kv_heads)).collect();
        let everything = matches!(step.ranking, Ranking::Identity | Ranking::TrueMass(_));
        if everything {
            let all = rows.iter().zip(&existing).map(|(&row, &n)| (row, 0..n));
            self.hold_and_fetch(all)?;
            self.tell_tables(step.seqs, step.layer)?;
            self.backend.decode(self.pool.tables(), step, result)?;
            for (&row, &n) in rows.iter().zip(&existing) {
                let read: Vec<u32> = (0..n as u32).collect();
                self.note_read(row, &read);
            }
            return Ok(());
        }
        let width = self.pool.tables().extents.max_blocks;
        let (mut order, mut count) = (vec![0; rows.len() * width], vec![0; rows.len()]);
        self.tell_tables(step.seqs, step.layer)?;
        let mut selection = Selection { order: &mut order, count: &mut count };
        self.backend.select(self.pool.tables(), step, &mut selection)?;
        let ranks = |row: usize, ranks: std::ops::Range<usize>| {
            order[row * width..][ranks].iter().map(|&block| block as usize)
        };
        let planned = rows.iter().enumerate().map(|(i, &row)| (row, ranks(i, 0..count[i] as usize)));
        self.hold_and_fetch(planned)?;

        // Chunks that are fetched beyond the first one missed: doubled with every turn, so that there are few.
        let (mut again, mut ahead) = (false, 1);
        loop {
            self.tell_tables(step.seqs, step.layer)?;
            self.backend.finish(self.pool.tables(), step, again, result)?;
            let mut wanted = vec![];
            for (i, &row) in rows.iter().enumerate() {
                let read = result.read[2 * i] as usize;
                let first = ranks(i, 0..read).position(|block| self.pool.block_of(row, block).1.is_none());
                if let Some(first) = first {
                    wanted.push((row, ranks(i, 0..read.min(first + TOPUP_CHUNK * ahead))));
                }
            }
            if wanted.is_empty() {
                break;
            }
            self.traffic.repeats += 1;
            self.hold_and_fetch(wanted.into_iter())?;
            (again, ahead) = (true, 2 * ahead);
        }
        for (i, &row) in rows.iter().enumerate() {
            self.note_read(row, &order[i * width..][..result.read[2 * i] as usize]);
        }
        Ok(())
    }

    fn note_read(&mut self, row: usize, read: &[u32]) {
        self.traffic.reads += read.len() as u64;
        self.pool.was_read(row, read);
    }

    /// Holds these blocks of these rows on the device, and fetches those that are not there.
    fn hold_and_fetch<B: Iterator<Item = usize>>(
        &mut self,
        wanted: impl Iterator<Item = (usize, B)>,
    ) -> Result<(), Error> {
        let mut missing = vec![];
        for (row, blocks) in wanted {
            self.pool.hold(row, blocks, &mut missing);
        }
        self.fetch(&missing)
    }

    /// Holds the open groups of a layer on the device: appends write them, and score reads them.
    pub(super) fn hold_open_groups(&mut self, seqs: &[u32], layer: usize) -> Result<(), Error> {
        if self.tier.is_none() {
            return Ok(());
        }
        let mut missing = vec![];
        for &sequence in seqs {
            self.pool.hold_open(sequence as usize, layer, &mut missing);
        }
        self.fetch(&missing)
    }

    /// Brings blocks to the device, and holds them there.
    pub(super) fn fetch(&mut self, missing: &[u32]) -> Result<(), Error> {
        if missing.is_empty() {
            return Ok(());
        }
        let copies = match self.pool.find_slots(missing) {
            Err(Error::PoolExhausted { .. }) if self.pool.waiting() > 0 => {
                self.save_complete()?;
                self.pool.find_slots(missing)?
            }
            copies => copies?,
        };
        let Some(tier) = &self.tier else { return Ok(()) };
        if let Err(error) = self.backend.load(&copies, tier) {
            self.pool.give_slots_back(&copies);
            return Err(error);
        }
        self.traffic.fetched += copies.len() as u64;
        self.pool.arrived(&copies);
        Ok(())
    }

    /// Saves what is complete, once enough waits. A failure is not the append's, which is done: the blocks wait on, and
    /// a device that is lost says so in the next call.
    pub(super) fn save_in_batches(&mut self) {
        if self.pool.waiting() >= SAVE_BATCH {
            let _ = self.save_complete();
        }
    }

    /// Saves all blocks that wait for it.
    pub(super) fn save_complete(&mut self) -> Result<(), Error> {
        let copies = self.pool.take_queue();
        let Some(tier) = &mut self.tier else { return Ok(()) };
        if copies.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.backend.save(&copies, tier) {
            self.pool.not_saved(&copies);
            return Err(error);
        }
        self.traffic.saved += copies.len() as u64;
        self.pool.saved(&copies);
        Ok(())
    }
}

/// The same step for some entries of the batch.
fn part<'a>(
    shape: &Shape,
    extents: TableExtents,
    step: &DecodeStep<'a>,
    result: &'a mut DecodeResult<'_>,
    entries: std::ops::Range<usize>,
) -> (DecodeStep<'a>, DecodeResult<'a>) {
    let of = |width: usize| entries.start * width..entries.end * width;
    let (heads, elements) = (of(shape.q_heads), of(shape.q_heads * shape.head_dim));
    let kv_heads = of(shape.kv_heads);
    let step = DecodeStep {
        seqs: &step.seqs[entries.clone()],
        lens: &step.lens[entries.clone()],
        q: step.q.part(elements.clone()),
        budget: &step.budget[entries.clone()],
        floor: &step.floor[entries.clone()],
        ..*step
    };
    let result = DecodeResult {
        out: &mut result.out[elements],
        lse: &mut result.lse[heads.clone()],
        read: &mut result.read[of(2 * shape.kv_heads)],
        mass: &mut result.mass[heads],
        metadata: &mut result.metadata[kv_heads],
        record: result.record.as_mut().map(|record| DecodeRecord {
            order: &mut record.order[of(shape.kv_heads * extents.max_blocks)],
            log_mass: &mut record.log_mass[of(shape.q_heads * extents.max_blocks)],
        }),
    };
    (step, result)
}
