//! A filled cache of one layer, outside the toolkit's own cache: gigabytes of it, made on the device.
//!
//! One sequence of 4,096 tokens is appended by the kernel; its slots and mirror pages are then copied by
//! `gather` to every sequence of the batch, into slots in random order, as in a pool that has been in use.
//! Every block has memory of its own, so that no cache holds what a real step would have to read.

use std::fmt;

use kernels_gpu::layout::{
    BLOCK, BLOCKS_PER_GROUP, MAX_SPLITS, MirrorKind, QUANT_GROUP, blocks, plane_offset, plane_row_bytes,
    splits,
};
use kernels_gpu::numeric::fixed_target;
use psa::device::launches::{self, BatchAddresses, CacheAddresses, SecondLook, Step, StepAddresses};
use psa::device::plans::PlanScratch;
use psa::driver::Driver;
use psa::{Dtype, Mirror, Shape};
use psa_codegen::{Launch, Region};
use psa_tests::Rng;

use super::inputs::{TOKENS, Template};
use crate::Error;
use crate::target::{download, upload};

/// KV heads of the layer.
pub const KV_HEADS: usize = 8;
/// Elements of a head.
pub const HEAD_DIM: usize = 128;
const MIRROR: Mirror = Mirror::Nested;
/// Its pages.
const KIND: MirrorKind = MirrorKind::Nested;
const SINK: usize = 1;
const RECENT: usize = 2;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each, a multiple of 64.
    pub tokens: usize,
    /// Query heads of a KV head.
    pub group: usize,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch {}, {} tokens, group {}", self.batch, self.tokens, self.group)
    }
}

/// Ways to attend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// Everything.
    Dense,
    /// A tenth of the blocks, by the mirror.
    TopK,
    /// 95 % of the mass.
    Progressive,
}

impl Arm {
    /// All of them.
    pub const ALL: [Arm; 3] = [Arm::Dense, Arm::TopK, Arm::Progressive];

    /// As a policy on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Arm::Dense => "dense",
            Arm::TopK => "top-k:0.1",
            Arm::Progressive => "progressive:0.95",
        }
    }
}

/// What a step read, and the bytes that follow from it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reads {
    /// Blocks read, of all rows; top-ups included.
    pub blocks_read: u64,
    /// Blocks planned, of all rows.
    pub blocks_planned: u64,
    /// Blocks that there are, of all rows.
    pub blocks_total: u64,
    slot_bytes: u64,
    mirror_bytes: u64,
    /// Bytes of the fine plane.
    fine_bytes: u64,
    query_bytes: u64,
    out_bytes: u64,
    log_mass_bytes: u64,
    partial_bytes: u64,
    ranked: bool,
}

impl Reads {
    /// Keys and values read, the mirror where it ranks, queries, outputs.
    pub fn step_bytes(&self) -> u64 {
        let mirror = if self.ranked { self.mirror_bytes + self.fine_bytes } else { 0 };
        self.blocks_read * self.slot_bytes + mirror + self.query_bytes + self.out_bytes
    }

    /// score_nested: coarse planes, queries, estimates written. refine: both planes of some blocks; queries. plan:
    /// estimates read, order written. attend: planned keys and
    /// values, their order, queries. merge: partial results read, outputs written; top-ups.
    pub fn stage_bytes(&self, stage: &str) -> u64 {
        match stage {
            "score_nested" => self.mirror_bytes + self.query_bytes + self.log_mass_bytes,
            "refine" => 2 * self.fine_bytes + self.query_bytes + self.log_mass_bytes,
            "plan" => self.log_mass_bytes + 4 * self.blocks_total,
            "attend" => self.blocks_planned * (self.slot_bytes + 4) + self.query_bytes,
            "merge" => {
                let topped_up = self.blocks_read.saturating_sub(self.blocks_planned);
                self.partial_bytes + self.out_bytes + topped_up * self.slot_bytes
            }
            _ => 0,
        }
    }
}

/// A filled cache, with scratch and results.
pub struct Rig {
    /// Its shape.
    pub setting: Setting,
    /// The device's name.
    pub device: String,
    cache: CacheAddresses,
    batch: BatchAddresses,
    step: StepAddresses,
    whole: Region,
    tenth: Region,
    held: Vec<Region>,
}

/// Memory that is given back together.
struct Holder<'a> {
    driver: &'a mut dyn Driver,
    held: Vec<Region>,
}

impl Holder<'_> {
    fn alloc(&mut self, bytes: usize, what: &str) -> Result<Region, Error> {
        let region = self.driver.region(bytes, what)?;
        self.held.push(region);
        Ok(region)
    }

    fn put<T: bytemuck::NoUninit>(&mut self, data: &[T], what: &str) -> Result<Region, Error> {
        let region = upload(self.driver, data, what)?;
        self.held.push(region);
        Ok(region)
    }

    fn release(&mut self) -> Result<(), Error> {
        for region in self.held.drain(..) {
            self.driver.free(region.address())?;
        }
        Ok(())
    }
}

fn shape(group: usize) -> Shape {
    Shape { layers: 1, q_heads: KV_HEADS * group, kv_heads: KV_HEADS, head_dim: HEAD_DIM, dtype: Dtype::Bf16 }
}

/// 0 .. n in random order.
fn shuffled(n: usize, rng: &mut Rng) -> Vec<u32> {
    let mut list: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        list.swap(i, rng.below(i + 1));
    }
    list
}

impl Rig {
    /// Fills a cache.
    ///
    /// # Errors
    /// The device's; a lack of memory as [`psa::driver::DriverError::OutOfMemory`], with nothing held.
    pub fn new(driver: &mut dyn Driver, setting: Setting, template: &Template) -> Result<Rig, Error> {
        let mut holder = Holder { driver, held: Vec::new() };
        match Rig::fill(&mut holder, setting, template) {
            Ok(mut rig) => {
                rig.held = std::mem::take(&mut holder.held);
                Ok(rig)
            }
            Err(e) => {
                holder.release()?;
                Err(e)
            }
        }
    }

    /// Gives the memory back.
    ///
    /// # Errors
    /// The device's.
    pub fn release(&mut self, driver: &mut dyn Driver) -> Result<(), Error> {
        Holder { driver, held: std::mem::take(&mut self.held) }.release()
    }

    fn fill(m: &mut Holder<'_>, setting: Setting, template: &Template) -> Result<Rig, Error> {
        let shape = shape(setting.group);
        let kind = KIND;
        let (rows, nb) = (setting.batch * KV_HEADS, blocks(setting.tokens));
        let max_blocks = nb.next_multiple_of(BLOCKS_PER_GROUP);
        let ng = max_blocks / BLOCKS_PER_GROUP;
        let (slots, pages) = (rows * max_blocks, rows * ng);
        let mut rng = Rng(1);
        let block_table = shuffled(slots, &mut rng);
        let mirror_table = shuffled(pages, &mut rng);
        let cache = CacheAddresses {
            shape,
            mirror_kind: kind,
            max_blocks,
            arena: m.alloc(slots * shape.slot_bytes(), "arena")?,
            mirror: m.alloc(pages * kind.page_bytes(HEAD_DIM), "mirror")?,
            block_table: m.put(&block_table, "block_table")?,
            mirror_table: m.put(&mirror_table, "mirror_table")?,
            limits: m.driver.limits(),
        };
        copy_template(m, &cache, template, &block_table, &mirror_table)?;

        let (b, qh) = (setting.batch, shape.q_heads * setting.batch);
        let max_splits = splits(max_blocks).min(MAX_SPLITS);
        let batch = BatchAddresses {
            batch: b,
            max_tokens: setting.tokens,
            seqs: m.put(&(0..b as u32).collect::<Vec<_>>(), "seqs")?,
            lens: m.put(&vec![setting.tokens as u32; b], "lens")?,
        };
        let whole = m.put(&vec![nb as u32; b], "budget")?;
        let tenth = m.put(&vec![nb.div_ceil(10) as u32; b], "budget")?;
        let [keys, run_peak, run_mass] = PlanScratch::bytes(rows, setting.group, max_blocks, setting.tokens);
        // No plan of a short row needs it.
        let mut scratch = |bytes: usize, what| match bytes {
            0 => Ok(Region::EMPTY),
            bytes => m.alloc(bytes, what),
        };
        let plan_scratch = PlanScratch {
            keys: scratch(keys, "keys")?,
            run_peak: scratch(run_peak, "run_peak")?,
            run_mass: scratch(run_mass, "run_mass")?,
        };
        let step = StepAddresses {
            plan_scratch,
            q: m.put(&template.queries(b, setting.group), "q")?,
            budget: whole,
            log_mass: m.alloc(4 * qh * max_blocks, "log_mass")?,
            order: m.alloc(4 * rows * max_blocks, "order")?,
            count: m.alloc(4 * rows, "count")?,
            peak: m.alloc(4 * qh, "peak")?,
            rest: m.alloc(8 * qh, "rest")?,
            partial: m.alloc(4 * rows * max_splits * setting.group * HEAD_DIM, "partial")?,
            partial_ml: m.alloc(8 * rows * max_splits * setting.group, "partial_ml")?,
            out: m.alloc(4 * qh * HEAD_DIM, "out")?,
            lse: m.alloc(4 * qh, "lse")?,
            read: m.alloc(8 * rows, "read")?,
            mass: m.alloc(4 * qh, "mass")?,
            second_look: SecondLook {
                doubt: m.alloc(qh * max_blocks, "doubt")?,
                threshold: m.alloc(4 * qh, "threshold")?,
                looks: m.put(&vec![0u32; 2 * rows], "looks")?,
            },
            max_splits,
        };
        let device = m.driver.name();
        Ok(Rig { setting, device, cache, batch, step, whole, tenth, held: Vec::new() })
    }

    /// The launches of a step.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn step(&self, arm: Arm) -> Result<Vec<Launch>, Error> {
        let ranked = |target, mass| Step::Ranked { target, mass, sink: SINK, recent: RECENT };
        let (step, budget) = match arm {
            Arm::Dense => (Step::Identity, self.whole),
            Arm::TopK => (ranked(0, 0.0), self.tenth),
            Arm::Progressive => (ranked(fixed_target(MIRROR.predicted_mass(0.95)), 0.95), self.whole),
        };
        let addresses = StepAddresses { budget, ..self.step };
        let scale = 1.0 / (HEAD_DIM as f32).sqrt();
        Ok(launches::decode(&self.cache, &self.batch, &addresses, 0, scale, step)?)
    }

    /// What the step that ran last read.
    ///
    /// # Errors
    /// The device's.
    pub fn reads(&self, driver: &mut dyn Driver, arm: Arm) -> Result<Reads, Error> {
        let Setting { batch, tokens, group } = self.setting;
        let (rows, nb) = (batch * KV_HEADS, blocks(tokens));
        let heads = rows * group;
        // Each row's coarse planes, and both planes of the blocks that were looked at again.
        let looks: Vec<u32> = download(driver, self.step.second_look.looks, 2 * rows)?;
        let looked = looks.iter().skip(1).step_by(2).map(|&x| u64::from(x)).sum::<u64>();
        let plane = (BLOCK * plane_row_bytes(HEAD_DIM)) as u64;
        let read: Vec<u32> = download(driver, self.step.read, 2 * rows)?;
        let count: Vec<u32> = download(driver, self.step.count, rows)?;
        Ok(Reads {
            blocks_read: read.iter().step_by(2).map(|&x| u64::from(x)).sum(),
            blocks_planned: count.iter().map(|&x| u64::from(x)).sum(),
            blocks_total: (rows * nb) as u64,
            slot_bytes: self.cache.shape.slot_bytes() as u64,
            mirror_bytes: (rows * (tokens / QUANT_GROUP) * plane_offset(HEAD_DIM, 1)) as u64,
            fine_bytes: looked * plane,
            query_bytes: (2 * heads * HEAD_DIM) as u64,
            out_bytes: (4 * heads * HEAD_DIM + 4 * heads) as u64,
            log_mass_bytes: (4 * heads * nb) as u64,
            partial_bytes: (4 * rows * splits(nb) * group * (HEAD_DIM + 2)) as u64,
            ranked: arm != Arm::Dense,
        })
    }

    /// The outputs of the step that ran last, `[batch, q_heads, head_dim]`.
    ///
    /// # Errors
    /// The device's.
    pub fn out(&self, driver: &mut dyn Driver) -> Result<Vec<f32>, Error> {
        let count = self.setting.batch * KV_HEADS * self.setting.group * HEAD_DIM;
        Ok(download(driver, self.step.out, count)?)
    }
}

/// Appends the template to a cache of its own, and copies its slots and pages to every row of `cache`.
fn copy_template(
    m: &mut Holder<'_>,
    cache: &CacheAddresses,
    template: &Template,
    block_table: &[u32],
    mirror_table: &[u32],
) -> Result<(), Error> {
    // No more of it than is needed: on the emulator the tests copy a little.
    let max_blocks = cache.max_blocks;
    let tokens = (max_blocks * BLOCK).min(TOKENS);
    let (nb, ng) = (tokens / BLOCK, tokens / QUANT_GROUP);
    let mut own = Holder { driver: &mut *m.driver, held: Vec::new() };
    let source = CacheAddresses {
        max_blocks: nb,
        arena: own.alloc(KV_HEADS * nb * cache.shape.slot_bytes(), "template arena")?,
        mirror: own.alloc(KV_HEADS * ng * cache.mirror_kind.page_bytes(HEAD_DIM), "template mirror")?,
        block_table: own.put(&(0..(KV_HEADS * nb) as u32).collect::<Vec<_>>(), "template block_table")?,
        mirror_table: own.put(&(0..(KV_HEADS * ng) as u32).collect::<Vec<_>>(), "template mirror_table")?,
        ..*cache
    };
    let batch = BatchAddresses {
        batch: 1,
        max_tokens: tokens,
        seqs: own.put(&[0u32], "seqs")?,
        lens: own.put(&[tokens as u32], "lens")?,
    };
    let elements = tokens * KV_HEADS * HEAD_DIM;
    let k = own.put(&template.k[..elements], "k")?;
    let v = own.put(&template.v[..elements], "v")?;
    let offsets = own.put(&[0u32, tokens as u32], "offsets")?;
    let append = launches::append(&source, &batch, 0, [k, v, offsets], ng)?;
    own.driver.launch(&append)?;

    let pairs = |table: &[u32], width: usize, unique: usize| -> Vec<u32> {
        let row_of = |i: usize| (i / width) % KV_HEADS;
        let from = |i: usize| (row_of(i) * unique + i % width % unique) as u32;
        table.iter().enumerate().flat_map(|(i, &to)| [from(i), to]).collect()
    };
    let lists = [
        (source.arena, cache.arena, pairs(block_table, max_blocks, nb), cache.shape.slot_bytes()),
        (
            source.mirror,
            cache.mirror,
            pairs(mirror_table, max_blocks / BLOCKS_PER_GROUP, ng),
            cache.mirror_kind.page_bytes(HEAD_DIM),
        ),
    ];
    debug_assert!(matches!(cache.mirror_kind, MirrorKind::Nested));
    for (from, to, pairs, bytes) in lists {
        let list = own.put(&pairs, "pairs")?;
        let ctas = (pairs.len() / 2).min(4096) as u32;
        own.driver.launch(&launches::gather(from, to, list, pairs.len() / 2, bytes, ctas)?)?;
    }
    // The launches are asynchronous: wait before their inputs go.
    let _: Vec<u8> = download(own.driver, source.arena, 1)?;
    own.release()
}
