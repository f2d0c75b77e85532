//! Memory of a pipeline and the launches over it.
//!
//! A *row* is one (sequence, KV head); the batch has R of them. The kernels see a batch of R sequences with one KV head
//! and one layer, and each layer its own part of the tables: `[layers, R, NB]`. All addresses of row r are those of the
//! usual form (`b * kv_heads + h = r`), so the bits are the same, and a launch over some rows is a launch over parts of
//! the buffers.

use kernels_gpu::layout::{BLOCK, MirrorKind, splits};
use psa_codegen::{DeviceLimits, Launch, LaunchError, Region};
use std::ops::Range;

use crate::Shape;
use crate::device::launches::{self, BatchAddresses, CacheAddresses, SecondLook, Step, StepAddresses};
use crate::device::plans::PlanScratch;
use crate::driver::{Driver, DriverError};

/// Everything on the device.
pub(super) struct Memory {
    /// Of a row: one layer, one KV head.
    pub(super) shape: Shape,
    pub(super) layers: usize,
    pub(super) rows: usize,
    pub(super) kind: MirrorKind,
    pub(super) max_blocks: usize,
    pub(super) slots: usize,
    pub(super) limits: DeviceLimits,
    pub(super) arena: Region,
    pub(super) mirror: Region,
    pub(super) block_table: Region,
    pub(super) mirror_table: Region,
    /// lens `[R]`, then budget `[R]`.
    pub(super) step: Region,
    /// What merge may read at most: `[R]`.
    pub(super) limit: Region,
    /// 0, 1, .., R.
    pub(super) numbers: Region,
    /// `[layers, R * G, D]`, elements.
    pub(super) q: Region,
    /// `[layers, R, D]`, elements.
    pub(super) k: Region,
    pub(super) v: Region,
    pub(super) log_mass: Region,
    /// One layer after the other uses it: they are queued on one stream.
    pub(super) second_look: SecondLook,
    pub(super) order: Region,
    pub(super) count: Region,
    pub(super) peak: Region,
    pub(super) rest: Region,
    pub(super) plan_scratch: PlanScratch,
    pub(super) partial: Region,
    pub(super) partial_ml: Region,
    /// `[layers, R * G, D]`, f32.
    pub(super) out: Region,
    /// `[layers, R * G]`, f32.
    pub(super) lse: Region,
    /// `[layers, R, 2]`, u32.
    pub(super) read: Region,
    /// `[layers, R * G]`, f32.
    pub(super) mass: Region,
}

/// Part `index` of a region of equal parts.
pub(super) fn nth(region: Region, index: usize, bytes: usize) -> Region {
    part(region, index * bytes, bytes)
}

fn part(region: Region, offset: usize, bytes: usize) -> Region {
    // Offsets come from the sizes that the region was allocated with; an empty region is refused by the contract.
    region.part(offset as u64, bytes as u64).unwrap_or(Region::EMPTY)
}

impl Memory {
    pub(super) fn new(
        driver: &mut dyn Driver,
        model: Shape,
        sequences: usize,
        kind: MirrorKind,
        max_blocks: usize,
        slots: usize,
    ) -> Result<Memory, DriverError> {
        let (layers, rows, group) = (model.layers, sequences * model.kv_heads, model.group());
        let shape = Shape { layers: 1, kv_heads: 1, q_heads: group, ..model };
        let (d, heads) = (model.head_dim, rows * group);
        let pages = layers * rows * max_blocks / 4;
        let limits = driver.limits();
        let [keys, run_peak, run_mass] = PlanScratch::bytes(rows, group, max_blocks, BLOCK * max_blocks);
        let mut scratch = |bytes: usize, what: &str| match bytes {
            0 => Ok(Region::EMPTY),
            bytes => driver.region(bytes, what),
        };
        let plan_scratch = PlanScratch {
            keys: scratch(keys, "keys")?,
            run_peak: scratch(run_peak, "run_peak")?,
            run_mass: scratch(run_mass, "run_mass")?,
        };
        let second_look = match kind {
            MirrorKind::Nested => SecondLook {
                doubt: scratch(heads * max_blocks, "doubt")?,
                threshold: scratch(4 * heads, "threshold")?,
                looks: scratch(8 * rows, "looks")?,
            },
            _ => SecondLook::NONE,
        };
        if kind == MirrorKind::Nested {
            // The counters of a row are 0 before its first step, and again after each.
            driver.upload(second_look.looks.address(), &vec![0; 8 * rows])?;
        }
        let mut region = |bytes: usize, what: &str| driver.region(bytes, what);
        Ok(Memory {
            shape,
            layers,
            rows,
            kind,
            max_blocks,
            slots,
            limits,
            arena: region(slots * model.slot_bytes(), "arena")?,
            mirror: region(pages * kind.page_bytes(d), "mirror")?,
            block_table: region(4 * layers * rows * max_blocks, "block table")?
                .with_largest(slots as u64 - 1),
            mirror_table: region(4 * pages, "mirror table")?.with_largest(pages as u64 - 1),
            step: region(8 * rows, "lengths and budgets")?,
            limit: region(4 * rows, "limits")?,
            numbers: region(4 * (rows + 1), "numbers")?,
            q: region(2 * layers * heads * d, "q")?,
            k: region(2 * layers * rows * d, "k")?,
            v: region(2 * layers * rows * d, "v")?,
            log_mass: region(4 * heads * max_blocks, "log_mass")?,
            second_look,
            order: region(4 * rows * max_blocks, "order")?,
            count: region(4 * rows, "count")?,
            peak: region(4 * heads, "peak")?,
            rest: region(8 * heads, "rest")?,
            plan_scratch,
            partial: region(4 * heads * splits(max_blocks) * d, "partial")?,
            partial_ml: region(8 * heads * splits(max_blocks), "partial_ml")?,
            out: region(4 * layers * heads * d, "out")?,
            lse: region(4 * layers * heads, "lse")?,
            read: region(8 * layers * rows, "read")?,
            mass: region(4 * layers * heads, "mass")?,
        })
    }

    /// Every allocation.
    pub(super) fn regions(&self) -> [Region; 27] {
        [
            self.arena,
            self.mirror,
            self.block_table,
            self.mirror_table,
            self.step,
            self.limit,
            self.numbers,
            self.q,
            self.k,
            self.v,
            self.log_mass,
            self.order,
            self.count,
            self.peak,
            self.rest,
            self.partial,
            self.partial_ml,
            self.out,
            self.lse,
            self.read,
            self.mass,
            self.plan_scratch.keys,
            self.plan_scratch.run_peak,
            self.plan_scratch.run_mass,
            self.second_look.doubt,
            self.second_look.threshold,
            self.second_look.looks,
        ]
    }

    /// Bytes of a row of the block table.
    pub(super) fn table_row(&self) -> usize {
        4 * self.max_blocks
    }

    /// Bytes of a slot.
    pub(super) fn slot_bytes(&self) -> usize {
        self.shape.slot_bytes()
    }

    fn cache(&self, layer: usize) -> CacheAddresses {
        CacheAddresses {
            shape: self.shape,
            mirror_kind: self.kind,
            max_blocks: self.max_blocks,
            arena: self.arena,
            mirror: self.mirror,
            block_table: nth(self.block_table, layer, self.rows * self.table_row()),
            mirror_table: nth(self.mirror_table, layer, self.rows * self.max_blocks),
            limits: self.limits,
        }
    }

    fn batch(&self, rows: &Range<usize>, max_tokens: usize) -> BatchAddresses {
        BatchAddresses {
            batch: rows.len(),
            max_tokens,
            seqs: part(self.numbers, 4 * rows.start, 4 * rows.len())
                .with_largest(rows.end.saturating_sub(1) as u64),
            lens: part(self.step, 4 * rows.start, 4 * rows.len()),
        }
    }

    /// Appends one token to every row.
    pub(super) fn append(&self, layer: usize, max_tokens: usize) -> Result<Launch, LaunchError> {
        let bytes = 2 * self.rows * self.shape.head_dim;
        let rows = self.numbers.with_largest(self.rows as u64);
        launches::append(
            &self.cache(layer),
            &self.batch(&(0..self.rows), max_tokens),
            0,
            [nth(self.k, layer, bytes), nth(self.v, layer, bytes), rows],
            1,
        )
    }

    /// The launches of a decode step over some rows; merge reads at most `budget`.
    pub(super) fn decode(
        &self,
        layer: usize,
        rows: Range<usize>,
        max_tokens: usize,
        scale: f32,
        step: Step,
        budget: Region,
    ) -> Result<Vec<Launch>, LaunchError> {
        let (group, d, n) = (self.shape.q_heads, self.shape.head_dim, self.rows);
        let (first, count) = (rows.start, rows.len());
        let max_splits = splits(self.max_blocks);
        // The rows' part of a buffer with so many bytes a row.
        let of = |region: Region, bytes: usize| part(region, first * bytes, count * bytes);
        let layered = |region: Region, bytes: usize| of(nth(region, layer, n * bytes), bytes);
        let addresses = StepAddresses {
            q: layered(self.q, 2 * group * d),
            budget: of(budget, 4),
            log_mass: of(self.log_mass, 4 * group * self.max_blocks),
            order: of(self.order, 4 * self.max_blocks),
            count: of(self.count, 4),
            peak: of(self.peak, 4 * group),
            rest: of(self.rest, 8 * group),
            second_look: SecondLook {
                doubt: of(self.second_look.doubt, group * self.max_blocks),
                threshold: of(self.second_look.threshold, 4 * group),
                looks: of(self.second_look.looks, 8),
            },
            // Only `plan` uses it, which runs over all rows.
            plan_scratch: self.plan_scratch,
            partial: of(self.partial, 4 * group * max_splits * d),
            partial_ml: of(self.partial_ml, 8 * group * max_splits),
            out: layered(self.out, 4 * group * d),
            lse: layered(self.lse, 4 * group),
            read: layered(self.read, 8),
            mass: layered(self.mass, 4 * group),
            max_splits,
        };
        launches::decode(&self.cache(layer), &self.batch(&rows, max_tokens), &addresses, 0, scale, step)
    }

    /// lens and budget as two regions.
    pub(super) fn budget(&self) -> Region {
        part(self.step, 4 * self.rows, 4 * self.rows)
    }
}
