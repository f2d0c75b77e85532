//! A layer of a step whose blocks are partly in the host tier only.
//!
//! Three streams: *compute* (the main one), *fetch* (tier to slots), *back* (plans, results and full blocks to the host).
//!
//! ```text
//! compute  append score refine plan | attend of complete rows | attend chunk 0 | attend chunk 1 | merge | merge again ..
//! back                       order, count, flag                                                    read, mass, flag
//! fetch                            chunk 0 | chunk 1 | .. | ahead
//! host                             looks, decides, queues                                          looks, queues
//! ```
//!
//! A split's partial comes from one launch that reads all its blocks in order, and merge begins anew from the partials
//! each time with a higher limit, so chunks change no bit. A limit lies whole top-up chunks above the count.
//!
//! Trap: a slot's new owner is chosen only once the host has seen the flag of this layer's plan: everything earlier that
//! could still read the slot is then done. What this layer reads is stamped and stays.

use kernels_gpu::layout::{BLOCK, BLOCKS_PER_GROUP, QUANT_GROUP, TOPUP_CHUNK, blocks};
use psa_codegen::{Launch, Region};
use std::ops::Range;

use super::fetch::{Fetch, Fetcher};
use super::memory::{Memory, nth};
use super::residents::{Hold, Residents};
use super::{DecodePipeline, MAIN, PipelineConfig, Scheme, no_launch, streams};
use crate::Error;
use crate::device::launches::{self, BatchAddresses, CacheAddresses};
use crate::driver::{Driver, DriverError, EventId, StreamId};

/// The masses within which merge's own test is by other arithmetic; above them, the host cannot be mistaken.
const CLEAR: f32 = 1.0 / 256.0;

/// Guesses after which their worth is judged.
const ENOUGH_GUESSES: f32 = 16.0;
/// Share of guesses that must be right for all to be made. A wrong one costs its time of link, a right one saves a fetch and
/// the wait for it; measured shares are below .15, where guessing lost (psa pipeline-bench).
const RIGHT: f32 = 0.25;
/// Otherwise every so many layers guess.
const PROBE: u32 = 8;

/// What the host keeps for a tier.
pub(super) struct Tier {
    fetcher: Fetcher,
    residents: Residents,
    /// Slots of blocks as kernels see them: `[layers, R, NB]`.
    table: Vec<u32>,
    back: StreamId,
    planned: EventId,
    appended: EventId,
    merged: EventId,
    fetched: [EventId; 2],
    /// Of each layer: the last fetch ahead.
    ahead: Vec<EventId>,
    /// Guesses that came due, and of these the used ones; both decay.
    guesses: f32,
    used: f32,
    /// Turns of `look_ahead`.
    looks: u32,
    /// Blocks of each layer whose fetch ahead no kernel has waited for.
    in_flight: Vec<Vec<u32>>,
    /// `[2, R, NB]` and `[layers, R, NB]`, pinned: on their way to the block table.
    rows_staging: Region,
    table_staging: Region,
    /// Number of the step that last used `table_staging`.
    table_step: u32,
    /// `[2, R]`, pinned.
    limit_staging: Region,
    /// count `[R]`, order `[R, NB]`, read `[R, 2]`, mass `[R * G]`, pinned.
    report: Region,
    /// Word that the device counts reports in.
    flag: u64,
    flags: Region,
    tickets: u32,
    count: Vec<u32>,
    order: Vec<u32>,
    read: Vec<u32>,
    mass: Vec<f32>,
    limit: Vec<u32>,
    /// k and v of a group, then lens, seqs, offsets.
    prompt: Region,
}

impl Tier {
    pub(super) fn new(
        driver: &mut dyn Driver,
        memory: &Memory,
        config: &PipelineConfig,
    ) -> Result<Tier, DriverError> {
        let (rows, group) = (memory.rows, memory.shape.q_heads);
        let every = memory.layers * rows * memory.max_blocks;
        let kv_heads = rows / config.sequences;
        let prompt = driver.region(4 * QUANT_GROUP * kv_heads * memory.shape.head_dim + 16, "prompt")?;
        let s = streams(driver)?;
        let flags = s.pinned(64, "flags of the host tier")?;
        let (fetch, back) = (s.stream("fetch")?, s.stream("back")?);
        Ok(Tier {
            fetcher: Fetcher::new(s, memory, fetch, flags.address() + 4)?,
            residents: Residents::new(every, memory.slots),
            table: vec![0; every],
            back,
            planned: s.event()?,
            appended: s.event()?,
            merged: s.event()?,
            fetched: [s.event()?, s.event()?],
            ahead: (0..memory.layers).map(|_| s.event()).collect::<Result<_, _>>()?,
            guesses: 0.0,
            used: 0.0,
            looks: 0,
            in_flight: vec![vec![]; memory.layers],
            rows_staging: s.pinned(2 * rows * memory.table_row(), "rows of the block table")?,
            table_staging: s.pinned(4 * every, "block table on its way")?,
            table_step: 0,
            limit_staging: s.pinned(8 * rows, "limits on their way")?,
            report: s.pinned(rows * (4 + memory.table_row() + 8 + 4 * group), "report")?,
            flag: flags.address(),
            flags,
            tickets: 0,
            count: vec![0; rows],
            order: vec![0; rows * memory.max_blocks],
            read: vec![0; 2 * rows],
            mass: vec![0.0; rows * group],
            limit: vec![0; rows],
            prompt,
        })
    }

    pub(super) fn regions(&self) -> [Region; 8] {
        [
            self.fetcher.tier,
            self.fetcher.pairs,
            self.rows_staging,
            self.table_staging,
            self.limit_staging,
            self.report,
            self.flags,
            self.prompt,
        ]
    }
}

/// Rows that are attended to together, and what they lack.
struct Chunk {
    rows: Range<usize>,
    wanted: Vec<Fetch>,
}

impl DecodePipeline {
    fn first_block(&self, layer: usize, row: usize) -> usize {
        (layer * self.memory.rows + row) * self.memory.max_blocks
    }

    fn tier(&mut self) -> Result<&mut Tier, Error> {
        // Only layers with a tier come here.
        self.tier
            .as_mut()
            .ok_or(Error::Config { what: "a host tier".into(), remedy: "this pipeline has none".into() })
    }

    /// Gives blocks slots and remembers them, or changes nothing and says what is lacking. The open group's are written by
    /// kernels, the others by the fetch stream.
    fn take(&mut self, wanted: &[u32], hold: Hold) -> Result<Vec<Fetch>, Error> {
        let most = if hold == Hold::Open { Hold::Nobody } else { Hold::Ahead };
        let tier = self.tier()?;
        let mut taken = Vec::with_capacity(wanted.len());
        for &block in wanted {
            let Some(slot) = tier.residents.take(block as usize, hold, most) else {
                taken.iter().for_each(|&(block, _)| tier.residents.drop_block(block as usize));
                let free = tier.residents.available(most);
                return Err(Error::PoolExhausted { needed: wanted.len(), free, evictable: 0 });
            };
            tier.table[block as usize] = slot;
            taken.push((block, slot));
        }
        Ok(taken)
    }

    /// Slots for the blocks that the step's tokens open.
    pub(super) fn take_open_blocks(&mut self) -> Result<(), Error> {
        self.tier()?.residents.begin_layer();
        let kv_heads = self.model.kv_heads;
        let mut wanted = vec![];
        for layer in 0..self.memory.layers {
            for row in 0..self.memory.rows {
                let block = self.first_block(layer, row) + self.lens[row / kv_heads] as usize / BLOCK;
                if self.tier()?.residents.slot(block).is_none() {
                    wanted.push(block as u32);
                }
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        if self.take(&wanted, Hold::Open).is_err() {
            // Guesses under way hold slots until a kernel has waited for them.
            let arrived = (0..self.memory.layers).try_for_each(|layer| self.await_ahead(layer, 0));
            self.checked("wait for blocks fetched ahead", arrived)?;
            self.take(&wanted, Hold::Open)?;
        }
        // The staging's last use is long ago; look all the same.
        let (used, flag) = (self.tier()?.table_step, self.flags.address());
        let (number, to) = (self.step_number + 1, self.memory.block_table.address());
        let queued = (|| {
            let (Some(tier), s) = (&mut self.tier, streams(self.driver.as_mut())?) else { return Ok(()) };
            while s.peek(flag)? < used {
                std::hint::spin_loop();
            }
            tier.table_step = number;
            let from = tier.table_staging.address();
            s.write_pinned(from, bytemuck::cast_slice(&tier.table))?;
            s.copy_on(MAIN, to, from, 4 * tier.table.len())
        })();
        self.checked("open blocks", queued)
    }

    /// A layer; after an error the step is undone: tokens are as before, and it can be begun again.
    pub(super) fn offloaded_layer(&mut self, layer: usize) -> Result<(), Error> {
        let result = self.try_offloaded_layer(layer);
        if result.is_err() {
            self.lens.iter_mut().for_each(|len| *len -= 1);
            self.at_layer = None;
            // What is under way still uses the staging of this step.
            let _ = streams(self.driver.as_mut()).and_then(|s| s.synchronize(MAIN));
        }
        result
    }

    fn try_offloaded_layer(&mut self, layer: usize) -> Result<(), Error> {
        self.tier()?.residents.begin_layer();
        let queued = self.queue_plan(layer);
        self.checked("plan", queued)?;
        let read = self.read_plan();
        self.checked("read the plan", read)?;
        let arrived = self.await_ahead(layer, 0);
        self.checked("wait for blocks fetched ahead", arrived)?;
        let chunks = self.chunks(layer)?;
        let limited = self.set_limits(layer)?;
        let attended = self.attend(layer, chunks);
        self.checked("attend", attended)?;
        if !limited {
            let merged = self.launches[layer].last().map(|launch| {
                let serial = self.config.scheme == Scheme::Serial;
                let s = streams(self.driver.as_mut())?;
                s.launch_on(MAIN, launch)?;
                if serial { s.synchronize(MAIN) } else { Ok(()) }
            });
            self.checked("merge", merged.unwrap_or(Ok(())))?;
            return self.look_ahead(layer);
        }
        self.look_ahead(layer)?;
        self.merge_while_short(layer)
    }

    /// append, score, plan; full blocks and the plan on their way to the host.
    fn queue_plan(&mut self, layer: usize) -> Result<(), DriverError> {
        let launches = &self.launches[layer];
        let before_attend = launches.len() - 2;
        let full: Vec<usize> = (0..self.memory.rows)
            .filter(|row| (self.lens[row / self.model.kv_heads] as usize).is_multiple_of(BLOCK))
            .collect();
        let (m, Some(tier)) = (&self.memory, &mut self.tier) else { return Ok(()) };
        let s = streams(self.driver.as_mut())?;
        s.launch_on(MAIN, &launches[0])?;
        if !full.is_empty() {
            s.record(tier.appended, MAIN)?;
        }
        for launch in &launches[1..before_attend] {
            s.launch_on(MAIN, launch)?;
        }
        s.record(tier.planned, MAIN)?;
        if !full.is_empty() {
            s.wait_event(tier.back, tier.appended, "appended")?;
            let bytes = m.slot_bytes();
            for row in full {
                let block = (layer * m.rows + row) * m.max_blocks
                    + self.lens[row / self.model.kv_heads] as usize / BLOCK
                    - 1;
                let from = m.arena.address() + (tier.table[block] as usize * bytes) as u64;
                s.copy_on(tier.back, tier.fetcher.tier.address() + (block * bytes) as u64, from, bytes)?;
                self.stats.saved += 1;
            }
        }
        s.wait_event(tier.back, tier.planned, "planned")?;
        let (report, rows) = (tier.report.address(), m.rows);
        s.copy_on(tier.back, report, m.count.address(), 4 * rows)?;
        s.copy_on(tier.back, report + 4 * rows as u64, m.order.address(), rows * m.table_row())?;
        tier.tickets += 1;
        s.signal(tier.back, tier.flag, tier.tickets)
    }

    /// The host sees the last report: by looking, or, serially, by waiting.
    fn await_report(&mut self) -> Result<(), DriverError> {
        let serial = self.config.scheme == Scheme::Serial;
        let (Some(tier), s) = (&self.tier, streams(self.driver.as_mut())?) else { return Ok(()) };
        if serial {
            return s.synchronize(tier.back);
        }
        while s.peek(tier.flag)? != tier.tickets {
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn read_plan(&mut self) -> Result<(), DriverError> {
        self.await_report()?;
        let (Some(tier), s) = (&mut self.tier, streams(self.driver.as_mut())?) else { return Ok(()) };
        let report = tier.report.address();
        s.read_pinned(report, bytemuck::cast_slice_mut(&mut tier.count))?;
        s.read_pinned(report + 4 * self.memory.rows as u64, bytemuck::cast_slice_mut(&mut tier.order))?;
        // A device that broke its promises must not take the host along.
        for row in 0..self.memory.rows {
            let total = blocks(self.lens[row / self.model.kv_heads] as usize);
            let order = &tier.order[row * self.memory.max_blocks..][..total];
            let (count, largest) =
                (tier.count[row] as usize, order.iter().copied().max().unwrap_or(0) as usize);
            if count > total || largest >= total.max(1) {
                return Err(DriverError::Handle {
                    what: format!("the plan of row {row}"),
                    detail: format!("it reads {count} of {total} blocks, the last of them {largest}"),
                });
            }
        }
        Ok(())
    }

    /// Kernels from here on come behind what was fetched ahead for the layer. They will read `further` ranks below the count.
    fn await_ahead(&mut self, layer: usize, further: usize) -> Result<(), DriverError> {
        let Some(tier) = &mut self.tier else { return Ok(()) };
        if tier.in_flight[layer].is_empty() {
            return Ok(());
        }
        streams(self.driver.as_mut())?.wait_event(MAIN, tier.ahead[layer], "fetched ahead")?;
        let mut used = 0;
        let (keep, due) = (0.9, tier.in_flight[layer].len() as f32);
        for block in std::mem::take(&mut tier.in_flight[layer]) {
            tier.residents.hold(block as usize, Hold::Nobody);
            let row = block as usize / self.memory.max_blocks % self.memory.rows;
            let reach = (tier.count[row] as usize + further).min(self.memory.max_blocks);
            let order = &tier.order[row * self.memory.max_blocks..][..reach];
            used += u64::from(order.contains(&(block % self.memory.max_blocks as u32)));
        }
        (tier.guesses, tier.used) = (keep * tier.guesses + due, keep * tier.used + used as f32);
        self.stats.ahead_used += used;
        Ok(())
    }

    /// Which rows go together: those that lack nothing first, then as many as a chunk holds.
    fn chunks(&mut self, layer: usize) -> Result<Vec<Chunk>, Error> {
        let (rows, width, most) = (self.memory.rows, self.memory.max_blocks, self.config.chunk);
        let first = self.first_block(layer, 0);
        let mut missing: Vec<Vec<u32>> = Vec::with_capacity(rows);
        let mut wanted = 0;
        let tier = self.tier()?;
        for row in 0..rows {
            let order = &tier.order[row * width..][..tier.count[row] as usize];
            let id = |&block: &u32| (first + row * width) as u32 + block;
            wanted += order.len() as u64;
            missing.push(order.iter().map(id).filter(|&id| !tier.residents.read(id as usize)).collect());
        }
        let misses: Vec<u32> = missing.iter().flatten().copied().collect();
        self.stats.blocks_read += wanted;
        let mut taken = self.take(&misses, Hold::Nobody)?.into_iter();
        self.stats.misses += misses.len() as u64;
        let mut chunks: Vec<Chunk> = vec![];
        for (row, missing) in missing.iter().enumerate() {
            let of_row = taken.by_ref().take(missing.len());
            match chunks.last_mut() {
                Some(chunk) if chunk.wanted.len() < most && chunk.wanted.is_empty() == missing.is_empty() => {
                    chunk.rows.end = row + 1;
                    chunk.wanted.extend(of_row);
                }
                _ => chunks.push(Chunk { rows: row..row + 1, wanted: of_row.collect() }),
            }
        }
        chunks.sort_by_key(|chunk| !chunk.wanted.is_empty());
        Ok(chunks)
    }

    /// How far merge may read without a further fetch, whole top-up chunks above the count: false where that is as far as
    /// it could want.
    fn set_limits(&mut self, layer: usize) -> Result<bool, Error> {
        if self.identity() || self.policy.tested_mass() == 0.0 {
            return Ok(false);
        }
        let (rows, width, kv_heads) = (self.memory.rows, self.memory.max_blocks, self.model.kv_heads);
        let lens = self.lens.clone();
        let first = self.first_block(layer, 0);
        let tier = self.tier()?;
        let mut limited = false;
        for row in 0..rows {
            let (count, total) = (tier.count[row], blocks(lens[row / kv_heads] as usize) as u32);
            let order = &tier.order[row * width..][..total as usize];
            let mut reach = count;
            while reach < total && tier.residents.read(first + row * width + order[reach as usize] as usize) {
                reach += 1;
            }
            tier.limit[row] = match reach == total {
                true => u32::MAX,
                false => count + (reach - count) / TOPUP_CHUNK as u32 * TOPUP_CHUNK as u32,
            };
            limited |= reach < total;
        }
        Ok(limited)
    }

    /// The rows' table entries on their way to the device.
    fn send_rows(&mut self, layer: usize, rows: Range<usize>, staging: usize) -> Result<(), DriverError> {
        let m = &self.memory;
        let (Some(tier), s) = (&self.tier, streams(self.driver.as_mut())?) else { return Ok(()) };
        let first = (layer * m.rows + rows.start) * m.max_blocks;
        let entries = &tier.table[first..first + rows.len() * m.max_blocks];
        let from = tier.rows_staging.address() + ((staging * m.rows + rows.start) * m.table_row()) as u64;
        s.write_pinned(from, bytemuck::cast_slice(entries))?;
        s.copy_on(MAIN, m.block_table.address() + 4 * first as u64, from, 4 * entries.len())
    }

    fn queue_fetch(&mut self, wanted: &mut [Fetch], event: EventId) -> Result<(), DriverError> {
        let serial = self.config.scheme == Scheme::Serial;
        let (Some(tier), s) = (&mut self.tier, streams(self.driver.as_mut())?) else { return Ok(()) };
        tier.fetcher.fetch(s, &self.memory, &self.config, wanted, &mut self.stats)?;
        s.record(event, tier.fetcher.stream)?;
        if serial { s.synchronize(tier.fetcher.stream) } else { Ok(()) }
    }

    fn attend(&mut self, layer: usize, mut chunks: Vec<Chunk>) -> Result<(), DriverError> {
        let Some(events) = self.tier.as_ref().map(|tier| tier.fetched) else { return Ok(()) };
        let serial = self.config.scheme == Scheme::Serial;
        let mut sent = 0;
        for index in 0..chunks.len() {
            // Serially one chunk at a time; otherwise the next one travels already.
            let until = if serial { index + 1 } else { index + 2 }.min(chunks.len());
            while sent < until {
                let chunk = &mut chunks[sent];
                if !chunk.wanted.is_empty() {
                    let mut wanted = std::mem::take(&mut chunk.wanted);
                    self.queue_fetch(&mut wanted, events[sent % 2])?;
                    chunk.wanted = wanted;
                }
                sent += 1;
            }
            let Chunk { rows, wanted } = &chunks[index];
            if !wanted.is_empty() {
                streams(self.driver.as_mut())?.wait_event(MAIN, events[index % 2], "fetched")?;
            }
            self.send_rows(layer, rows.clone(), 0)?;
            let launch = self.stage(layer, rows.clone(), 2)?;
            let s = streams(self.driver.as_mut())?;
            s.launch_on(MAIN, &launch)?;
            if serial {
                s.synchronize(MAIN)?;
            }
        }
        Ok(())
    }

    /// The stage that comes `from_end` before the end of a step over some rows; merge under the limits.
    fn stage(&self, layer: usize, rows: Range<usize>, from_end: usize) -> Result<Launch, DriverError> {
        let (tokens, limit) = (self.planned_tokens, self.memory.limit);
        let mut all =
            self.memory.decode(layer, rows, tokens, self.scale, self.what(), limit).map_err(no_launch)?;
        Ok(all.swap_remove(all.len() - from_end))
    }

    /// Fetches the ranks just below each row's stop: the next iteration may want them, and the next step.
    fn look_ahead(&mut self, layer: usize) -> Result<(), Error> {
        let (ahead, kv_heads) = (self.config.ahead as u32, self.model.kv_heads);
        if self.config.scheme == Scheme::Serial || ahead == 0 || self.identity() {
            return Ok(());
        }
        let (rows, width) = (self.memory.rows, self.memory.max_blocks);
        let (first, lens) = (self.first_block(layer, 0), self.lens.clone());
        let tier = self.tier()?;
        // Guesses that mostly miss hold up the fetches behind them: then only a few are made, to see whether that changes.
        tier.looks += 1;
        if tier.guesses > ENOUGH_GUESSES
            && tier.used < RIGHT * tier.guesses
            && !tier.looks.is_multiple_of(PROBE)
        {
            return Ok(());
        }
        let mut wanted: Vec<Fetch> = vec![];
        'rows: for row in 0..rows {
            let total = blocks(lens[row / kv_heads] as usize) as u32;
            let from = tier.count[row].min(total);
            for rank in from..(from + ahead).min(total) {
                let block = first + row * width + tier.order[row * width + rank as usize] as usize;
                if tier.residents.slot(block).is_some() {
                    continue;
                }
                // Room is made for what was asked for; for a guess only where there is some.
                let Some(slot) = tier.residents.take_for_guess(block) else { break 'rows };
                tier.table[block] = slot;
                tier.in_flight[layer].push(block as u32);
                wanted.push((block as u32, slot));
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        self.stats.ahead += wanted.len() as u64;
        let event = self.tier()?.ahead[layer];
        let queued = self.queue_fetch(&mut wanted, event);
        self.checked("fetch ahead", queued)
    }

    /// merge within the limits; then, while it says that a row fell short there, the next chunk and merge again.
    fn merge_while_short(&mut self, layer: usize) -> Result<(), Error> {
        let (rows, width, kv_heads) = (self.memory.rows, self.memory.max_blocks, self.model.kv_heads);
        let first = self.first_block(layer, 0);
        let launch = self.stage(layer, 0..rows, 1);
        let launch = self.checked("merge", launch)?;
        for iteration in 0.. {
            let merged = self.queue_merge(layer, &launch, iteration % 2);
            self.checked("merge", merged)?;
            let short = self.short_rows()?;
            let (Some(&from), Some(&to)) = (short.first(), short.last()) else { return Ok(()) };
            self.stats.iterations += 1;
            let arrived = self.await_ahead(layer, TOPUP_CHUNK);
            self.checked("wait for blocks fetched ahead", arrived)?;
            let lens = self.lens.clone();
            let tier = self.tier()?;
            let mut missing = vec![];
            let mut read = 0;
            for row in short {
                let total = blocks(lens[row / kv_heads] as usize) as u32;
                let limit = tier.limit[row];
                let next = (limit + TOPUP_CHUNK as u32).min(total);
                for rank in limit..next {
                    let block = first + row * width + tier.order[row * width + rank as usize] as usize;
                    if !tier.residents.read(block) {
                        missing.push(block as u32);
                    }
                }
                read += u64::from(next - limit);
                tier.limit[row] = if next == total { u32::MAX } else { next };
            }
            let mut wanted = self.take(&missing, Hold::Nobody)?;
            self.stats.blocks_read += read;
            self.stats.misses += missing.len() as u64;
            let event = self.tier()?.fetched[0];
            let queued = (|| {
                if !wanted.is_empty() {
                    self.queue_fetch(&mut wanted, event)?;
                    streams(self.driver.as_mut())?.wait_event(MAIN, event, "fetched")?;
                }
                self.send_rows(layer, from..to + 1, 1 - iteration % 2)
            })();
            self.checked("fetch", queued)?;
        }
        Ok(())
    }

    fn queue_merge(&mut self, layer: usize, launch: &Launch, staging: usize) -> Result<(), DriverError> {
        let m = &self.memory;
        let (rows, heads) = (m.rows, m.rows * m.shape.q_heads);
        let (Some(tier), s) = (&mut self.tier, streams(self.driver.as_mut())?) else { return Ok(()) };
        let from = tier.limit_staging.address() + (4 * rows * staging) as u64;
        s.write_pinned(from, bytemuck::cast_slice(&tier.limit))?;
        s.copy_on(MAIN, m.limit.address(), from, 4 * rows)?;
        s.launch_on(MAIN, launch)?;
        s.record(tier.merged, MAIN)?;
        s.wait_event(tier.back, tier.merged, "merged")?;
        let at = tier.report.address() + (rows * (4 + m.table_row())) as u64;
        s.copy_on(tier.back, at, nth(m.read, layer, 8 * rows).address(), 8 * rows)?;
        s.copy_on(tier.back, at + 8 * rows as u64, nth(m.mass, layer, 4 * heads).address(), 4 * heads)?;
        tier.tickets += 1;
        s.signal(tier.back, tier.flag, tier.tickets)?;
        self.await_report()?;
        let (Some(tier), s) = (&mut self.tier, streams(self.driver.as_mut())?) else { return Ok(()) };
        s.read_pinned(at, bytemuck::cast_slice_mut(&mut tier.read))?;
        s.read_pinned(at + 8 * rows as u64, bytemuck::cast_slice_mut(&mut tier.mass))
    }

    /// Rows that stopped at their limit and may want more.
    fn short_rows(&mut self) -> Result<Vec<usize>, Error> {
        let (rows, group, mass) = (self.memory.rows, self.memory.shape.q_heads, self.policy.tested_mass());
        // z >= t rest, with t = mass / (1 - mass), is z / (z + rest) >= mass. Where z is larger by CLEAR, four times what
        // merge leaves to its exact test, it has enough for certain; above .999 single precision cannot tell.
        let enough = mass + mass * (1.0 - mass) * CLEAR;
        let tier = self.tier()?;
        let short = |&row: &usize| {
            let heads = &tier.mass[row * group..][..group];
            tier.read[2 * row] == tier.limit[row] && !(mass < 0.999 && heads.iter().all(|&m| m >= enough))
        };
        Ok((0..rows).filter(short).collect())
    }

    /// Groups that are full may leave the device from now on.
    pub(super) fn release_full_groups(&mut self) {
        let (layers, rows, kv_heads) = (self.memory.layers, self.memory.rows, self.model.kv_heads);
        for row in 0..rows {
            let len = self.lens[row / kv_heads] as usize;
            if !len.is_multiple_of(QUANT_GROUP) {
                continue;
            }
            for layer in 0..layers {
                let end = self.first_block(layer, row) + len / BLOCK;
                if let Some(tier) = &mut self.tier {
                    (end - BLOCKS_PER_GROUP..end).for_each(|block| tier.residents.hold(block, Hold::Nobody));
                }
            }
        }
    }

    /// Up to a group of a prompt in one layer.
    pub(super) fn prefill_piece(
        &mut self,
        sequence: usize,
        layer: usize,
        tokens: usize,
        k: &[u16],
        v: &[u16],
    ) -> Result<(), Error> {
        let before = self.lens[sequence] as usize;
        let after = before + tokens;
        let kv_heads = self.model.kv_heads;
        let rows = sequence * kv_heads..(sequence + 1) * kv_heads;
        if let Some(tier) = &mut self.tier {
            tier.residents.begin_layer();
            let new: Vec<u32> = rows
                .clone()
                .flat_map(|row| {
                    let first = (layer * self.memory.rows + row) * self.memory.max_blocks;
                    (first + blocks(before)..first + blocks(after)).map(|block| block as u32)
                })
                .collect();
            self.take(&new, Hold::Open)?;
        }
        let done = self.prefill_on_device(rows.clone(), layer, before, after, k, v);
        self.checked("prefill", done)?;
        if after.is_multiple_of(QUANT_GROUP)
            && let Some(tier) = &mut self.tier
        {
            for row in rows {
                let end = (layer * self.memory.rows + row) * self.memory.max_blocks + after / BLOCK;
                (end - BLOCKS_PER_GROUP..end).for_each(|block| tier.residents.hold(block, Hold::Nobody));
            }
        }
        Ok(())
    }

    fn prefill_on_device(
        &mut self,
        rows: Range<usize>,
        layer: usize,
        before: usize,
        after: usize,
        k: &[u16],
        v: &[u16],
    ) -> Result<(), DriverError> {
        let (m, d) = (&self.memory, self.driver.as_mut());
        let kv_heads = self.model.kv_heads;
        let bytes = 2 * k.len();
        let prompt = match &self.tier {
            Some(tier) => tier.prompt,
            None => d.region(2 * bytes + 16, "prompt")?,
        };
        let part =
            |offset: usize, bytes: usize| prompt.part(offset as u64, bytes as u64).unwrap_or(Region::EMPTY);
        let (to_k, to_v, words) = (part(0, bytes), part(bytes, bytes), 2 * bytes);
        d.upload(to_k.address(), bytemuck::cast_slice(k))?;
        d.upload(to_v.address(), bytemuck::cast_slice(v))?;
        let sequence = rows.start / kv_heads;
        let numbers = [after as u32, sequence as u32, 0, (after - before) as u32];
        d.upload(part(words, 16).address(), bytemuck::cast_slice(&numbers))?;
        let first = (layer * m.rows + rows.start) * m.max_blocks;
        if let Some(tier) = &self.tier {
            let entries = &tier.table[first..first + rows.len() * m.max_blocks];
            d.upload(m.block_table.address() + 4 * first as u64, bytemuck::cast_slice(entries))?;
        }
        let cache = CacheAddresses {
            shape: crate::Shape { layers: 1, ..self.model },
            mirror_kind: m.kind,
            max_blocks: m.max_blocks,
            arena: m.arena,
            mirror: m.mirror,
            block_table: nth(m.block_table, layer, m.rows * m.table_row()),
            mirror_table: nth(m.mirror_table, layer, m.rows * m.max_blocks),
            limits: m.limits,
        };
        let batch = BatchAddresses {
            batch: 1,
            max_tokens: after,
            seqs: part(words + 4, 4).with_largest(sequence as u64),
            lens: part(words, 4),
        };
        let offsets = part(words + 8, 8).with_largest(numbers[3].into());
        d.launch(&launches::append(&cache, &batch, 0, [to_k, to_v, offsets], 1).map_err(no_launch)?)?;
        let s = streams(d)?;
        if let Some(tier) = &self.tier {
            let slot = m.slot_bytes();
            for row in rows {
                let first = (layer * m.rows + row) * m.max_blocks;
                for block in first + before / BLOCK..first + after / BLOCK {
                    let from = m.arena.address() + (tier.table[block] as usize * slot) as u64;
                    s.copy_on(MAIN, tier.fetcher.tier.address() + (block * slot) as u64, from, slot)?;
                    self.stats.saved += 1;
                }
            }
        }
        s.synchronize(MAIN)?;
        if self.tier.is_none() {
            d.free(prompt.address())?;
        }
        Ok(())
    }
}
