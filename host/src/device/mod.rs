//! The backend that runs the kernels: device memory, the launches of [`launches`], results.
//!
//! One instance serves one cache. Arena, mirror and tables are allocated with the cache; scratch grows
//! to the largest batch seen and then stays, so that a decode step allocates nothing. The host uploads
//! queries and the batch's description, queues the launches, and reads results: nothing between append
//! and merge waits for it.

pub mod launches;
pub mod plans;
mod ring;

mod moves;

use kernels_gpu::append::groups_touched;
use kernels_gpu::layout::{BLOCK, MirrorKind, full_groups, key_offset, slot_elements, splits, value_offset};

use psa_codegen::{LaunchError, Region};

use crate::backend::{
    AppendStep, Backend, BackendSpec, DecodeResult, DecodeStep, Ranking, RecentStep, Selection,
};
use crate::driver::{Driver, DriverError, Emulated, EmulatedOptions};
use crate::mirror::MirrorFormat;
use crate::pool::{HostCopy, SlotCopy, TableChange, Tables};
use crate::tier::HostTier;
use crate::{Device, Dtype, Error};
use launches::{BatchAddresses, CacheAddresses, SecondLook, Step, StepAddresses};
use plans::PlanScratch;
use ring::Ring;

impl Device {
    /// The shipped PTX on the CPU, executed by the emulator with its checkers on. For checking, not for
    /// speed.
    pub fn emulator() -> Device {
        Device::emulator_with(EmulatedOptions::default())
    }

    /// The emulator with options.
    pub fn emulator_with(options: EmulatedOptions) -> Device {
        Device::with_driver("emulator", move || {
            Emulated::new(options).map(|driver| Box::new(driver) as Box<dyn Driver>)
        })
    }

    /// A device behind a driver; `make` is called for each cache.
    pub fn with_driver<F>(name: &str, make: F) -> Device
    where
        F: Fn() -> Result<Box<dyn Driver>, DriverError> + Send + Sync + 'static,
    {
        let device = name.to_owned();
        Device::from_factory(name, move |spec| {
            let driver = make().map_err(failed(&device, "open"))?;
            Ok(Box::new(Kernels::new(driver, spec)?))
        })
    }
}

/// Error of a call on a device.
pub(crate) fn failed<'a>(device: &'a str, call: &'a str) -> impl Fn(DriverError) -> Error + 'a {
    move |error| match error {
        DriverError::Lost { .. } => Error::DeviceLost { call: call.into(), detail: error.to_string() },
        _ => Error::Backend { device: device.into(), call: call.into(), detail: error.to_string() },
    }
}

/// Device memory that grows on demand and keeps its address otherwise.
#[derive(Clone, Copy, Debug, Default)]
struct Buffer(Region);

impl Buffer {
    /// Room for `bytes` bytes: what the launches of the step at hand may use of it.
    fn reserve(&mut self, driver: &mut dyn Driver, bytes: usize, what: &str) -> Result<Region, DriverError> {
        if bytes as u64 > self.0.bytes() {
            let grown = driver.region(bytes, what)?;
            if self.0.bytes() > 0 {
                driver.free(self.0.address())?;
            }
            self.0 = grown;
        }
        Ok(self.0.part(0, bytes as u64).unwrap_or(self.0))
    }
}

/// Scratch and results of a step.
#[derive(Debug, Default)]
struct Scratch {
    seqs: Buffer,
    lens: Buffer,
    offsets: Buffer,
    k: Buffer,
    v: Buffer,
    q: Buffer,
    budget: Buffer,
    log_mass: Buffer,
    doubt: Buffer,
    threshold: Buffer,
    looks: Buffer,
    /// The counters may not be 0: fresh memory, a step in progress or one that failed.
    looks_used: bool,
    order: Buffer,
    count: Buffer,
    peak: Buffer,
    rest: Buffer,
    keys: Buffer,
    run_peak: Buffer,
    run_mass: Buffer,
    partial: Buffer,
    partial_ml: Buffer,
    out: Buffer,
    lse: Buffer,
    /// Slots from the host tier, packed, before `gather` spreads them.
    staging: Buffer,
    pairs: Buffer,
}

/// The kernels on a device, for one cache.
struct Kernels {
    driver: Box<dyn Driver>,
    name: String,
    format: MirrorFormat,
    cache: CacheAddresses,
    scratch: Scratch,
    /// `read` and `mass` of the last steps.
    ring: Ring,
    /// They stay there.
    deferred: bool,
}

impl Kernels {
    fn new(mut driver: Box<dyn Driver>, spec: &BackendSpec) -> Result<Self, Error> {
        let name = driver.name();
        let Some(kind) = spec.format.kernel() else {
            return Err(Error::Unsupported {
                what: format!("a mirror of {}", spec.format),
                device: name,
                supported: "mirrors of 2+2, 2, 4 and box in groups of 64",
            });
        };
        let extents = &spec.extents;
        let limits = driver.limits();
        let mut alloc =
            |bytes: usize, what: &str| driver.region(bytes.max(1), what).map_err(failed(&name, "allocate"));
        // A table of nothing holds no valid entry.
        let entries = |table: Region, count: usize| match count {
            0 => table,
            n => table.with_largest(n as u64 - 1),
        };
        let cache = CacheAddresses {
            shape: spec.shape,
            mirror_kind: kind,
            max_blocks: extents.max_blocks,
            arena: alloc(spec.slots * spec.shape.slot_bytes(), "arena")?,
            mirror: alloc(spec.pages * kind.page_bytes(spec.shape.head_dim), "mirror")?,
            block_table: entries(alloc(4 * extents.rows() * extents.max_blocks, "block_table")?, spec.slots),
            mirror_table: entries(
                alloc(4 * extents.rows() * extents.max_groups(), "mirror_table")?,
                spec.pages,
            ),
            limits,
        };
        if let Some(hole) = spec.hole {
            let at = cache.arena.address() + (hole as usize * spec.shape.slot_bytes()) as u64;
            driver.upload(at, &vec![0; spec.shape.slot_bytes()]).map_err(failed(&name, "clear"))?;
        }
        let ring =
            Ring::new(driver.as_mut(), &spec.shape, extents.sequences).map_err(failed(&name, "allocate"))?;
        Ok(Kernels {
            driver,
            name,
            format: spec.format,
            cache,
            scratch: Scratch::default(),
            ring,
            deferred: false,
        })
    }

    /// Memory for a batch's description.
    fn batch_addresses(&mut self, seqs: &[u32], lens: &[u32]) -> Result<BatchAddresses, DriverError> {
        let (d, s) = (self.driver.as_mut(), &mut self.scratch);
        let largest = u64::from(seqs.iter().copied().max().unwrap_or(0));
        Ok(BatchAddresses {
            batch: seqs.len(),
            max_tokens: lens.iter().copied().max().unwrap_or(0) as usize,
            seqs: s.seqs.reserve(d, 4 * seqs.len(), "seqs")?.with_largest(largest),
            lens: s.lens.reserve(d, 4 * lens.len(), "lens")?,
        })
    }

    fn append_step(&mut self, step: &AppendStep<'_>) -> Result<(), DriverError> {
        let batch = self.batch_addresses(step.seqs, step.lens)?;
        let d = self.driver.as_mut();
        d.upload(batch.seqs.address(), bytemuck::cast_slice(step.seqs))?;
        d.upload(batch.lens.address(), bytemuck::cast_slice(step.lens))?;
        let (k, v) = (step.k.bits(), step.v.bits());
        let addresses = [
            self.scratch.k.reserve(d, 2 * k.len(), "k")?,
            self.scratch.v.reserve(d, 2 * v.len(), "v")?,
            self.scratch
                .offsets
                .reserve(d, 4 * step.offsets.len(), "offsets")?
                .with_largest(u64::from(step.offsets.last().copied().unwrap_or(0))),
        ];
        d.upload(addresses[0].address(), bytemuck::cast_slice(k))?;
        d.upload(addresses[1].address(), bytemuck::cast_slice(v))?;
        d.upload(addresses[2].address(), bytemuck::cast_slice(step.offsets))?;
        let groups = step
            .lens
            .iter()
            .zip(step.offsets.windows(2))
            .map(|(&len, w)| groups_touched((len - (w[1] - w[0])) as usize, (w[1] - w[0]) as usize))
            .max()
            .unwrap_or(0);
        if groups == 0 {
            return Ok(());
        }
        let launch =
            launches::append(&self.cache, &batch, step.layer, addresses, groups).map_err(no_launch)?;
        d.launch(&launch)
    }

    /// The step's memory, with the queries and budgets in it.
    fn prepare(&mut self, step: &DecodeStep<'_>) -> Result<(BatchAddresses, StepAddresses), DriverError> {
        let (batch, a) = self.addresses(step)?;
        let d = self.driver.as_mut();
        d.upload(batch.seqs.address(), bytemuck::cast_slice(step.seqs))?;
        d.upload(batch.lens.address(), bytemuck::cast_slice(step.lens))?;
        d.upload(a.q.address(), bytemuck::cast_slice(step.q.bits()))?;
        d.upload(a.budget.address(), bytemuck::cast_slice(step.budget))?;
        Ok((batch, a))
    }

    /// The step's memory as it is.
    fn addresses(&mut self, step: &DecodeStep<'_>) -> Result<(BatchAddresses, StepAddresses), DriverError> {
        let batch = self.batch_addresses(step.seqs, step.lens)?;
        let shape = self.cache.shape;
        let (rows, heads) = (batch.batch * shape.kv_heads, batch.batch * shape.q_heads);
        let max_splits = splits(self.cache.max_blocks);
        let nested = self.cache.mirror_kind == MirrorKind::Nested;
        let (d, s) = (self.driver.as_mut(), &mut self.scratch);
        let mut second_look = SecondLook::NONE;
        if nested && step.ranking != Ranking::Identity {
            let before = s.looks.0.bytes();
            second_look = SecondLook {
                doubt: s.doubt.reserve(d, heads * self.cache.max_blocks, "doubt")?,
                threshold: s.threshold.reserve(d, 4 * heads, "threshold")?,
                looks: s.looks.reserve(d, 8 * rows, "looks")?,
            };
            s.looks_used |= s.looks.0.bytes() != before;
        }
        let [keys, run_peak, run_mass] =
            PlanScratch::bytes(rows, shape.group(), self.cache.max_blocks, batch.max_tokens);
        let plan_scratch = PlanScratch {
            keys: s.keys.reserve(d, keys, "keys")?,
            run_peak: s.run_peak.reserve(d, run_peak, "run_peak")?,
            run_mass: s.run_mass.reserve(d, run_mass, "run_mass")?,
        };
        let (read, mass) = self.ring.next(rows, heads);
        let a = StepAddresses {
            plan_scratch,
            second_look,
            q: s.q.reserve(d, 2 * heads * shape.head_dim, "q")?,
            budget: s.budget.reserve(d, 4 * batch.batch, "budget")?,
            log_mass: s.log_mass.reserve(d, 4 * heads * self.cache.max_blocks, "log_mass")?,
            order: s.order.reserve(d, 4 * rows * self.cache.max_blocks, "order")?,
            count: s.count.reserve(d, 4 * rows, "count")?,
            peak: s.peak.reserve(d, 4 * heads, "peak")?,
            rest: s.rest.reserve(d, 8 * heads, "rest")?,
            partial: s.partial.reserve(d, 4 * heads * max_splits * shape.head_dim, "partial")?,
            partial_ml: s.partial_ml.reserve(d, 8 * heads * max_splits, "partial_ml")?,
            out: s.out.reserve(d, 4 * heads * shape.head_dim, "out")?,
            lse: s.lse.reserve(d, 4 * heads, "lse")?,
            read,
            mass,
            max_splits,
        };
        Ok((batch, a))
    }

    /// Queues the stages of the step: those that plan where `planning`, and the last `ending` of attend and merge.
    fn queue(
        &mut self,
        step: &DecodeStep<'_>,
        (batch, a): (&BatchAddresses, &StepAddresses),
        planning: bool,
        ending: usize,
    ) -> Result<(), DriverError> {
        let launches = launches::decode(&self.cache, batch, a, step.layer, step.scale, stages(step))
            .map_err(no_launch)?;
        let looks = self.scratch.looks.0;
        if planning && a.second_look.looks.bytes() > 0 {
            // A step that ended has left the counters at 0 for this one.
            if self.scratch.looks_used {
                self.driver.upload(looks.address(), &vec![0; looks.bytes() as usize])?;
            }
            self.scratch.looks_used = true;
        }
        // attend and merge are one launch each; plan may be several.
        let (plan, rest) = launches.split_at(launches.len() - 2);
        let planned = if planning { plan } else { &[] };
        planned.iter().chain(&rest[2 - ending..]).try_for_each(|launch| self.driver.launch(launch))
    }

    fn decode_step(
        &mut self,
        step: &DecodeStep<'_>,
        result: &mut DecodeResult<'_>,
    ) -> Result<(), DriverError> {
        let (batch, a) = self.prepare(step)?;
        self.queue(step, (&batch, &a), true, 2)?;
        self.results(step, &a, result)
    }

    fn select_step(
        &mut self,
        step: &DecodeStep<'_>,
        selection: &mut Selection<'_>,
    ) -> Result<(), DriverError> {
        let (batch, a) = self.prepare(step)?;
        self.queue(step, (&batch, &a), true, 0)?;
        self.driver.download(a.count.address(), bytemuck::cast_slice_mut(selection.count))?;
        self.driver.download(a.order.address(), bytemuck::cast_slice_mut(selection.order))?;
        self.scratch.looks_used = false;
        Ok(())
    }

    fn finish_step(
        &mut self,
        step: &DecodeStep<'_>,
        again: bool,
        result: &mut DecodeResult<'_>,
    ) -> Result<(), DriverError> {
        if again {
            self.ring.take_back();
        }
        let (batch, a) = self.addresses(step)?;
        self.queue(step, (&batch, &a), false, if again { 1 } else { 2 })?;
        self.results(step, &a, result)
    }

    fn results(
        &mut self,
        step: &DecodeStep<'_>,
        a: &StepAddresses,
        result: &mut DecodeResult<'_>,
    ) -> Result<(), DriverError> {
        let (shape, what, d) = (self.cache.shape, stages(step), self.driver.as_mut());
        d.download(a.out.address(), bytemuck::cast_slice_mut(result.out))?;
        d.download(a.lse.address(), bytemuck::cast_slice_mut(result.lse))?;
        if !self.deferred {
            d.download(a.read.address(), bytemuck::cast_slice_mut(result.read))?;
            d.download(a.mass.address(), bytemuck::cast_slice_mut(result.mass))?;
        }
        let mut looks = vec![0u32; 2 * result.metadata.len()];
        if a.second_look.looks.bytes() > 0 {
            d.download(a.second_look.looks.address(), bytemuck::cast_slice_mut(&mut looks))?;
            self.scratch.looks_used = false;
        }
        for (row, metadata) in result.metadata.iter_mut().enumerate() {
            let pages = full_groups(step.lens[row / shape.kv_heads] as usize);
            let fine = looks[2 * row + 1] as usize * self.format.fine_bytes(shape.head_dim);
            let coarse = pages * self.format.first_bytes(shape.head_dim);
            *metadata = if what == Step::Identity { 0 } else { (coarse + fine) as u32 };
        }
        self.ring.launched(step, result.metadata.to_vec());
        if let Some(record) = &mut result.record {
            d.download(a.order.address(), bytemuck::cast_slice_mut(record.order))?;
            if what != Step::Identity {
                d.download(a.log_mass.address(), bytemuck::cast_slice_mut(record.log_mass))?;
            }
        }
        Ok(())
    }

    /// The error of a step that the kernels do not have.
    fn check(&self, step: &DecodeStep<'_>) -> Result<(), Error> {
        let same = step.target.windows(2).all(|w| w[0] == w[1]) && step.mass.windows(2).all(|w| w[0] == w[1]);
        let simple = same && step.unit == 1 && step.floor.iter().all(|&floor| floor == 0);
        let known = match step.ranking {
            // Everything is read: no floor, unit or mass matters.
            Ranking::Identity => true,
            Ranking::Mirror => simple,
            Ranking::Bound | Ranking::TrueMass(_) => false,
        };
        if known {
            return Ok(());
        }
        Err(Error::Unsupported {
            what: format!(
                "a step by {:?} in units of {} blocks, at least {:?} blocks, masses {:?}",
                step.ranking, step.unit, step.floor, step.mass
            ),
            device: self.name.clone(),
            supported: "plans by the mirror, single blocks, without a floor, one mass for all KV heads",
        })
    }
}

/// What the step does, as the kernels take it.
fn stages(step: &DecodeStep<'_>) -> Step {
    match step.ranking {
        Ranking::Identity => Step::Identity,
        _ => Step::Ranked {
            target: step.target[0],
            mass: step.mass[0],
            sink: step.sink as usize,
            recent: step.recent as usize,
        },
    }
}

/// Shape and memory were made to fit, so this is a kernel that was not compiled or a contract that this module breaks.
pub(crate) fn no_launch(e: LaunchError) -> DriverError {
    match e {
        LaunchError::Contract(e) => DriverError::Contract(e),
        e => DriverError::Launch { launch: "a kernel".into(), detail: e.to_string() },
    }
}

impl Backend for Kernels {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn tables_changed(&mut self, tables: &Tables, changes: &[TableChange]) -> Result<(), Error> {
        for change in changes {
            let (slots, pages) = (tables.slots(change.row), tables.pages(change.row));
            let at = |table: u64, width: usize, first: usize| table + 4 * (change.row * width + first) as u64;
            let block = at(self.cache.block_table.address(), slots.len(), change.blocks.start);
            let page = at(self.cache.mirror_table.address(), pages.len(), change.groups.start);
            let changed = [(block, &slots[change.blocks.clone()]), (page, &pages[change.groups.clone()])];
            for (at, entries) in changed.into_iter().filter(|(_, entries)| !entries.is_empty()) {
                self.driver
                    .upload(at, bytemuck::cast_slice(entries))
                    .map_err(failed(&self.name, "upload tables"))?;
            }
        }
        Ok(())
    }

    fn append(&mut self, _: &Tables, step: &AppendStep<'_>) -> Result<(), Error> {
        self.append_step(step).map_err(|e| failed(&self.name, "append")(e))
    }

    fn decode(
        &mut self,
        _: &Tables,
        step: &DecodeStep<'_>,
        result: &mut DecodeResult<'_>,
    ) -> Result<(), Error> {
        self.check(step)?;
        self.decode_step(step, result).map_err(|e| failed(&self.name, "decode")(e))
    }

    fn select(
        &mut self,
        _: &Tables,
        step: &DecodeStep<'_>,
        selection: &mut Selection<'_>,
    ) -> Result<(), Error> {
        self.check(step)?;
        self.select_step(step, selection).map_err(|e| failed(&self.name, "select")(e))
    }

    fn finish(
        &mut self,
        _: &Tables,
        step: &DecodeStep<'_>,
        again: bool,
        result: &mut DecodeResult<'_>,
    ) -> Result<(), Error> {
        self.finish_step(step, again, result).map_err(|e| failed(&self.name, "attend")(e))
    }

    fn copy_slots(&mut self, copies: &[SlotCopy]) -> Result<(), Error> {
        self.copy_tokens(copies).map_err(|e| failed(&self.name, "copy on write")(e))
    }

    fn save(&mut self, copies: &[HostCopy], tier: &mut HostTier) -> Result<(), Error> {
        self.download_slots(copies, tier).map_err(|e| failed(&self.name, "save to the host tier")(e))
    }

    fn load(&mut self, copies: &[HostCopy], tier: &HostTier) -> Result<(), Error> {
        self.upload_slots(copies, tier).map_err(|e| failed(&self.name, "fetch from the host tier")(e))
    }

    fn defer_reports(&mut self, defer: bool) -> bool {
        self.deferred = defer;
        true
    }

    fn defers_reports(&self) -> bool {
        self.deferred
    }

    fn recent_steps(&mut self) -> Result<Vec<RecentStep>, Error> {
        let steps = self.ring.fetch(self.driver.as_mut(), &self.cache.shape);
        steps.map_err(failed(&self.name, "fetch recent steps"))
    }

    fn read_tokens(&mut self, slots: &[u32], k: &mut [u16], v: &mut [u16]) -> Result<(), Error> {
        let (d, arena) = (self.cache.shape.head_dim, self.cache.arena.address());
        let parts = k.chunks_mut(BLOCK * d).zip(v.chunks_mut(BLOCK * d));
        for (&slot, (k, v)) in slots.iter().zip(parts) {
            // Not whole slots: what lies beyond the last token was never written.
            for (offset, part) in [(key_offset(d, 0), k), (value_offset(d, 0), v)] {
                let element = slot as usize * slot_elements(d) + offset;
                self.driver
                    .download(arena + (element * Dtype::BYTES) as u64, bytemuck::cast_slice_mut(part))
                    .map_err(failed(&self.name, "read K and V back"))?;
            }
        }
        Ok(())
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        let s = &self.scratch;
        let scratch = [
            s.seqs,
            s.lens,
            s.offsets,
            s.k,
            s.v,
            s.q,
            s.budget,
            s.log_mass,
            s.doubt,
            s.threshold,
            s.looks,
            s.order,
            s.count,
            s.peak,
            s.rest,
            s.keys,
            s.run_peak,
            s.run_mass,
            s.partial,
            s.partial_ml,
            s.out,
            s.lse,
            s.staging,
            s.pairs,
        ];
        let cache = [
            self.cache.arena,
            self.cache.mirror,
            self.cache.block_table,
            self.cache.mirror_table,
            self.ring.memory(),
        ];
        let used = scratch.iter().filter(|b| b.0.bytes() > 0).map(|b| b.0);
        for region in used.chain(cache) {
            // Nothing useful can be done about a device that does not take its memory back.
            let _ = self.driver.free(region.address());
        }
    }
}
