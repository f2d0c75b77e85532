//! A decode step over all layers that the host does not hold up.
//!
//! *Resident* (every block has a slot): append, score, plan, attend and merge of all layers are queued, or replayed as
//! one graph, without a wait of the host, without an allocation, and without a look at a result.
//! *With a host tier* ([`PipelineConfig::device_slots`]): full blocks are saved once to pinned memory; what the plan
//! wants and the device lacks is fetched in chunks on a second stream, rows that are complete are attended to while the
//! next chunk travels, and merge's top-ups are further iterations. The host looks at flags; it waits for no stream.
//! docs/pipeline.md draws it and says why the bits are those of the resident step under every schedule.
//!
//! Layout: a *row* is one (sequence, KV head), R of them; see [`memory`].

mod fetch;
mod memory;
mod offload;
mod residents;

use kernels_gpu::layout::{BLOCK, BLOCKS_PER_GROUP, MAX_BLOCKS, QUANT_GROUP, blocks};
use psa_codegen::{Launch, LaunchError, Region};

use crate::device::launches::Step;
use crate::driver::{Driver, DriverError, GraphId, StreamCounters, StreamId, Streams};
use crate::{Error, Forced, Mirror, MirrorFormat, Policy, Rows, Shape};
use memory::Memory;
use offload::Tier;

const MAIN: StreamId = StreamId::MAIN;
/// Steps that may be queued before the host has seen the first of them done.
const STEPS_AHEAD: usize = 4;

/// How blocks that are not on the device get there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Chunks on a stream of their own, flags instead of waits, fetching ahead.
    Pipelined,
    /// One thing after the other, the host waiting for each: what is compared with.
    Serial,
}

/// What a pipeline is to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PipelineConfig {
    /// Sequences of the batch; the same ones in every step.
    pub sequences: usize,
    /// Longest context, in tokens.
    pub max_tokens: usize,
    /// Slots on the device, for all layers; none: one for every block.
    pub device_slots: Option<usize>,
    /// What blocks are ranked by.
    pub mirror: Mirror,
    /// Blocks that are always read.
    pub forced: Forced,
    /// With a host tier: how blocks are fetched.
    pub scheme: Scheme,
    /// Blocks after which a chunk of fetches is closed.
    pub chunk: usize,
    /// Ranks below the stop of each row that are fetched ahead, for top-ups and for the next step; 0 for none. While most
    /// turn out wrong, only some layers guess. Pipelined only.
    pub ahead: usize,
    /// Neighbouring blocks from which on the copy engine takes them; shorter runs go through `gather`.
    pub copy_run: usize,
    /// CTAs of `gather`.
    pub gather_ctas: u32,
}

impl Default for PipelineConfig {
    fn default() -> Self {
        PipelineConfig {
            sequences: 1,
            max_tokens: 8192,
            device_slots: None,
            mirror: Mirror::Nested,
            forced: Forced::default(),
            scheme: Scheme::Pipelined,
            // 64 blocks of 8 KiB take 10 us on PCIe 5, four times what queueing a chunk costs the host.
            chunk: 64,
            // psa pipeline-bench --ahead 4 and 8: nine guesses in ten were wrong, and steps no faster.
            ahead: 0,
            // A copy costs 1.5 us besides its bytes (modelled), a block of 8 KiB takes 0.15 us of link.
            copy_run: 8,
            gather_ctas: 8,
        }
    }
}

/// What a pipeline did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PipelineStats {
    /// Steps.
    pub steps: u64,
    /// Blocks that plans and top-ups read.
    pub blocks_read: u64,
    /// Of these, blocks that had to be fetched when they were wanted.
    pub misses: u64,
    /// Blocks fetched ahead.
    pub ahead: u64,
    /// Blocks fetched ahead and then read.
    pub ahead_used: u64,
    /// Further iterations of merge.
    pub iterations: u64,
    /// Blocks fetched by the copy engine.
    pub by_copy: u64,
    /// Blocks fetched by `gather`.
    pub by_gather: u64,
    /// Blocks saved to the host tier.
    pub saved: u64,
}

/// Results of a step: `[layers, batch, q_heads, ..]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepResults {
    /// Outputs `[layers, batch, q_heads, head_dim]`.
    pub out: Vec<f32>,
    /// Natural logarithms of the sums of exponentials `[layers, batch, q_heads]`.
    pub lse: Vec<f32>,
    /// Blocks read, top-up chunks: `[layers, batch, kv_heads, 2]`.
    pub read: Vec<u32>,
    /// Mass believed read `[layers, batch, q_heads]`.
    pub mass: Vec<f32>,
}

/// A batch of sequences, its K and V, and the launches of its decode steps on one device.
pub struct DecodePipeline {
    driver: Box<dyn Driver>,
    device: String,
    model: Shape,
    config: PipelineConfig,
    policy: Policy,
    scale: f32,
    memory: Memory,
    /// Tokens of each sequence.
    lens: Vec<u32>,
    /// Lengths and budgets of the step, as uploaded: `[2, R]`.
    words: Vec<u32>,
    /// Tokens for which `launches` are made.
    planned_tokens: usize,
    /// Of each layer: append, then score, plan, attend, merge (the identity plan needs no score).
    launches: Vec<Vec<Launch>>,
    graph: Option<GraphId>,
    /// `[STEPS_AHEAD, 2, R]`, pinned.
    staging: Region,
    /// q, k and v of steps `[STEPS_AHEAD, ..]`, pinned.
    inputs: Region,
    /// What `results` reads, pinned.
    outputs: Region,
    /// Words that the device writes for the host to look at: end of step, then the tier's.
    flags: Region,
    /// Layers of the step that are queued; none between steps.
    at_layer: Option<usize>,
    step_number: u32,
    tier: Option<Tier>,
    stats: PipelineStats,
}

/// The streams of a driver.
fn streams(driver: &mut dyn Driver) -> Result<&mut dyn Streams, DriverError> {
    let name = driver.name();
    driver.streams().ok_or(DriverError::Handle { what: "streams".into(), detail: format!("{name} has none") })
}

fn no_launch(e: LaunchError) -> DriverError {
    crate::device::no_launch(e)
}

impl DecodePipeline {
    /// Allocates everything that steps will need.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Config`], [`Error::Policy`], [`Error::Unsupported`], the device's.
    pub fn new(
        mut driver: Box<dyn Driver>,
        model: Shape,
        policy: Policy,
        config: PipelineConfig,
    ) -> Result<DecodePipeline, Error> {
        model.validate()?;
        policy.validate()?;
        policy.check_mirror(config.mirror)?;
        let device = driver.name();
        let refuse = |what: String, remedy: &str| Err(Error::Config { what, remedy: remedy.into() });
        if policy.needs_everything() {
            return Err(Error::UnsupportedPolicy { policy, device });
        }
        let Some(kind) = MirrorFormat::new(config.mirror, QUANT_GROUP)?.kernel() else {
            return Err(Error::Unsupported {
                what: format!("a mirror of {:?}", config.mirror),
                device,
                supported: "mirrors of 2+2, 2, 4 and box",
            });
        };
        if config.sequences == 0 {
            return refuse("a pipeline of 0 sequences".into(), "use at least 1");
        }
        if config.max_tokens == 0 || config.max_tokens > MAX_BLOCKS * BLOCK {
            return refuse(
                format!("max_tokens = {}", config.max_tokens),
                &format!("use 1 to {}", MAX_BLOCKS * BLOCK),
            );
        }
        if config.chunk == 0 || config.copy_run == 0 || config.gather_ctas == 0 {
            return refuse(
                format!(
                    "chunk = {}, copy_run = {}, gather_ctas = {}",
                    config.chunk, config.copy_run, config.gather_ctas
                ),
                "use at least 1 of each",
            );
        }
        let max_blocks = blocks(config.max_tokens).next_multiple_of(BLOCKS_PER_GROUP);
        let rows = config.sequences * model.kv_heads;
        let every = model.layers.saturating_mul(rows).saturating_mul(max_blocks);
        if every > u32::MAX as usize / 4 {
            return refuse(format!("{every} blocks"), "use fewer sequences or tokens: at most 2^30 blocks");
        }
        let slots = config.device_slots.unwrap_or(every).min(every);
        // Every row of every layer keeps its open group; a layer needs something to attend with.
        let least = model.layers * rows * BLOCKS_PER_GROUP + rows;
        if config.device_slots.is_some() && slots < least.min(every) {
            return refuse(
                format!("{slots} slots on the device"),
                &format!("the open groups alone take {least}: give it that many at least"),
            );
        }
        let failed = |e| crate::device::failed(&device, "open a pipeline")(e);
        let memory =
            Memory::new(driver.as_mut(), model, config.sequences, kind, max_blocks, slots).map_err(failed)?;
        let heads = rows * model.group();
        let made = (|| {
            let s = streams(driver.as_mut())?;
            let d = model.head_dim;
            let staging = s.pinned(STEPS_AHEAD * 8 * rows, "lengths of steps")?;
            let inputs = s.pinned(STEPS_AHEAD * 2 * model.layers * d * (heads + 2 * rows), "inputs")?;
            let outputs = s.pinned(4 * model.layers * (heads * (d + 2) + 2 * rows), "outputs")?;
            let flags = s.pinned(64, "flags")?;
            let numbers: Vec<u32> = (0..=rows as u32).collect();
            driver.upload(memory.numbers.address(), bytemuck::cast_slice(&numbers))?;
            // Without a host tier a block's slot is its number; a page always is.
            let identity: Vec<u32> = (0..every as u32).collect();
            let pages = &identity[..every / BLOCKS_PER_GROUP];
            driver.upload(memory.mirror_table.address(), bytemuck::cast_slice(pages))?;
            let tier = match config.device_slots.filter(|_| slots < every) {
                None => {
                    driver.upload(memory.block_table.address(), bytemuck::cast_slice(&identity))?;
                    None
                }
                Some(_) => {
                    driver.upload(memory.block_table.address(), &vec![0; 4 * every])?;
                    Some(Tier::new(driver.as_mut(), &memory, &config)?)
                }
            };
            Ok((staging, inputs, outputs, flags, tier))
        })();
        let (staging, inputs, outputs, flags, tier) = made.map_err(failed)?;
        Ok(DecodePipeline {
            driver,
            device,
            model,
            config,
            policy,
            scale: 1.0 / (model.head_dim as f32).sqrt(),
            memory,
            lens: vec![0; config.sequences],
            words: vec![0; 2 * rows],
            planned_tokens: 0,
            launches: vec![],
            graph: None,
            staging,
            inputs,
            outputs,
            flags,
            at_layer: None,
            step_number: 0,
            tier,
            stats: PipelineStats::default(),
        })
    }

    /// The device.
    pub fn driver_mut(&mut self) -> &mut dyn Driver {
        self.driver.as_mut()
    }

    /// What was asked of the device.
    pub fn counters(&mut self) -> StreamCounters {
        self.driver.streams().map(|s| s.stream_counters()).unwrap_or_default()
    }

    /// What the pipeline did.
    pub fn stats(&self) -> PipelineStats {
        self.stats
    }

    /// Tokens of each sequence.
    pub fn lens(&self) -> &[u32] {
        &self.lens
    }

    /// Where the device's own work puts q of a layer, `[batch, q_heads, head_dim]`, and k and v, `[batch, kv_heads,
    /// head_dim]`: on the main stream, before [`DecodePipeline::layer`].
    pub fn inputs(&self, layer: usize) -> Option<[Region; 3]> {
        let (m, d) = (&self.memory, self.model.head_dim);
        let (row, heads) = (2 * m.rows * d, 2 * m.rows * m.shape.q_heads * d);
        let of = |r, bytes| memory::nth(r, layer, bytes);
        (layer < m.layers).then(|| [of(m.q, heads), of(m.k, row), of(m.v, row)])
    }

    /// Where a layer's output lies behind [`DecodePipeline::layer`] on the main stream: f32 `[batch, q_heads, head_dim]`.
    pub fn output(&self, layer: usize) -> Option<Region> {
        let bytes = 4 * self.memory.rows * self.memory.shape.q_heads * self.model.head_dim;
        (layer < self.memory.layers).then(|| memory::nth(self.memory.out, layer, bytes))
    }

    fn identity(&self) -> bool {
        self.policy.reads_everything()
    }

    fn what(&self) -> Step {
        match self.identity() {
            true => Step::Identity,
            false => Step::Ranked {
                target: self.policy.target(self.config.mirror),
                mass: self.policy.tested_mass(),
                sink: self.config.forced.sink as usize,
                recent: self.config.forced.recent as usize,
            },
        }
    }

    /// Launches for contexts of up to `tokens` tokens, made again only when they have grown by half.
    fn prepare(&mut self, tokens: usize) -> Result<(), DriverError> {
        if tokens <= self.planned_tokens {
            return Ok(());
        }
        let planned = (tokens + tokens / 2).next_multiple_of(4 * QUANT_GROUP).min(self.config.max_tokens);
        let what = self.what();
        self.launches = (0..self.memory.layers)
            .map(|layer| {
                let mut all = vec![self.memory.append(layer, planned)?];
                let rows = 0..self.memory.rows;
                let budget = self.memory.budget();
                all.extend(self.memory.decode(layer, rows, planned, self.scale, what, budget)?);
                Ok(all)
            })
            .collect::<Result<_, LaunchError>>()
            .map_err(no_launch)?;
        self.planned_tokens = planned;
        self.graph = None;
        Ok(())
    }

    fn checked<T>(&self, call: &'static str, result: Result<T, DriverError>) -> Result<T, Error> {
        result.map_err(|e| crate::device::failed(&self.device, call)(e))
    }

    /// Makes a graph of a resident step; steps then replay it, until the context has grown out of it.
    ///
    /// # Errors
    /// [`Error::Config`] with a host tier or before there are tokens, the device's.
    pub fn capture(&mut self) -> Result<(), Error> {
        let longest = self.lens.iter().copied().max().unwrap_or(0) as usize;
        if self.tier.is_some() || longest == 0 {
            return Err(Error::Config {
                what: "a graph of a step that the host takes part in, or of nothing".into(),
                remedy: "capture a pipeline without device_slots, after its prompt".into(),
            });
        }
        let captured = self.prepare(longest + 1).and_then(|()| {
            let launches: Vec<Launch> = self.launches.iter().flatten().cloned().collect();
            streams(self.driver.as_mut())?.capture(&launches)
        });
        self.graph = Some(self.checked("capture", captured)?);
        Ok(())
    }

    /// A prompt, or a part of one, of a sequence: k, v `[layers, tokens, kv_heads, head_dim]`. Waits.
    ///
    /// # Errors
    /// Any mismatch, [`Error::ContextTooLong`], [`Error::PoolExhausted`], the device's.
    pub fn prefill(&mut self, sequence: usize, k: Rows<'_>, v: Rows<'_>) -> Result<(), Error> {
        let Shape { layers, kv_heads, head_dim, dtype, .. } = self.model;
        let token = kv_heads * head_dim;
        let tokens = k.len() / (layers * token);
        for (name, rows) in [("k", k), ("v", v)] {
            let layout = || format!("[layers = {layers}, tokens = {tokens}, {kv_heads}, {head_dim}]");
            rows.check(name, dtype, layers * tokens * token, layout, true)?;
        }
        let Some(&before) = self.lens.get(sequence) else {
            return Err(Error::Config {
                what: format!("sequence {sequence}"),
                remedy: format!("the pipeline has {} (0 to {})", self.lens.len(), self.lens.len() - 1),
            });
        };
        let limit = self.config.max_tokens;
        if before as usize + tokens > limit {
            return Err(Error::ContextTooLong { tokens: before as usize + tokens, limit });
        }
        let mut at = 0;
        while at < tokens {
            // To the end of a group, so that what fills can be saved and may then leave.
            let now = (tokens - at).min(QUANT_GROUP - self.lens[sequence] as usize % QUANT_GROUP);
            for layer in 0..layers {
                let range = (layer * tokens + at) * token..(layer * tokens + at + now) * token;
                self.prefill_piece(sequence, layer, now, &k.bits()[range.clone()], &v.bits()[range])?;
            }
            self.lens[sequence] += now as u32;
            at += now;
        }
        Ok(())
    }

    /// Queues a step: one token for every sequence. q `[layers, batch, q_heads, head_dim]`, k and v `[layers, batch,
    /// kv_heads, head_dim]`, as if all were known beforehand; a model uses [`DecodePipeline::begin_step`],
    /// [`DecodePipeline::layer`] and [`DecodePipeline::end_step`].
    ///
    /// # Errors
    /// Any mismatch, [`Error::ContextTooLong`], [`Error::PoolExhausted`], the device's.
    pub fn step(&mut self, q: Rows<'_>, k: Rows<'_>, v: Rows<'_>) -> Result<(), Error> {
        let Shape { layers, head_dim, dtype, .. } = self.model;
        let (rows, heads) = (self.memory.rows, self.memory.rows * self.memory.shape.q_heads);
        let sizes = [("q", q, heads), ("k", k, rows), ("v", v, rows)];
        for (name, tensor, rows) in sizes {
            let layout = || format!("[layers = {layers}, {rows}, head_dim = {head_dim}]");
            tensor.check(name, dtype, layers * rows * head_dim, layout, true)?;
        }
        self.begin_step()?;
        let targets = [self.memory.q, self.memory.k, self.memory.v];
        let queued = (|| {
            let s = streams(self.driver.as_mut())?;
            let size = self.inputs.bytes() / STEPS_AHEAD as u64;
            let mut from = self.inputs.address() + u64::from(self.step_number) % STEPS_AHEAD as u64 * size;
            for ((_, tensor, _), to) in sizes.iter().zip(targets) {
                let bytes: &[u8] = bytemuck::cast_slice(tensor.bits());
                s.write_pinned(from, bytes)?;
                s.copy_on(MAIN, to.address(), from, bytes.len())?;
                from += bytes.len() as u64;
            }
            Ok(())
        })();
        self.checked("upload inputs", queued)?;
        if self.graph.is_none() {
            (0..layers).try_for_each(|layer| self.layer(layer))?;
        }
        self.end_step()
    }

    /// Begins a step: every sequence is one token longer.
    ///
    /// # Errors
    /// [`Error::ContextTooLong`], [`Error::PoolExhausted`]; [`Error::Config`] within a step; the device's.
    pub fn begin_step(&mut self) -> Result<(), Error> {
        if self.at_layer.is_some() {
            return Err(Error::Config {
                what: "a step within a step".into(),
                remedy: "call end_step first".into(),
            });
        }
        let limit = self.config.max_tokens;
        let longest = self.lens.iter().copied().max().unwrap_or(0) as usize + 1;
        if longest > limit {
            return Err(Error::ContextTooLong { tokens: longest, limit });
        }
        let prepared = self.prepare(longest).and_then(|()| self.await_step(STEPS_AHEAD as u32));
        self.checked("begin a step", prepared)?;
        if self.tier.is_some() {
            self.take_open_blocks()?;
        }
        self.lens.iter_mut().for_each(|len| *len += 1);
        let rows = self.memory.rows;
        for row in 0..rows {
            let len = self.lens[row / self.model.kv_heads];
            self.words[row] = len;
            self.words[rows + row] = self.policy.budget(blocks(len as usize));
        }
        let place = self.staging.address() + (self.step_number as usize % STEPS_AHEAD * 8 * rows) as u64;
        let to = self.memory.step.address();
        let queued = (|| {
            let s = streams(self.driver.as_mut())?;
            s.write_pinned(place, bytemuck::cast_slice(&self.words))?;
            s.copy_on(MAIN, to, place, 8 * rows)
        })();
        self.checked("begin a step", queued)?;
        self.at_layer = Some(0);
        Ok(())
    }

    /// Looks, without waiting for a stream, until no more than `ahead - 1` steps are under way.
    fn await_step(&mut self, ahead: u32) -> Result<(), DriverError> {
        let flag = self.flags.address();
        while self.step_number >= ahead
            && streams(self.driver.as_mut())?.peek(flag)? <= self.step_number - ahead
        {
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// Queues a layer: append, then attention. Layers in order.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`], [`Error::Config`] out of order or outside a step, [`Error::PoolExhausted`], the device's.
    pub fn layer(&mut self, layer: usize) -> Result<(), Error> {
        if layer >= self.memory.layers {
            return Err(Error::UnknownLayer { layer, layers: self.memory.layers });
        }
        if self.at_layer != Some(layer) {
            return Err(Error::Config {
                what: format!("layer {layer} where the step is at {:?}", self.at_layer),
                remedy: "call begin_step, then every layer in order".into(),
            });
        }
        if self.tier.is_some() {
            self.offloaded_layer(layer)?;
        } else {
            let s = streams(self.driver.as_mut());
            let queued =
                s.and_then(|s| self.launches[layer].iter().try_for_each(|launch| s.launch_on(MAIN, launch)));
            self.checked("decode", queued)?;
        }
        self.at_layer = Some(layer + 1);
        Ok(())
    }

    /// Ends a step: its end is marked for the host to see. Waits for nothing.
    ///
    /// # Errors
    /// [`Error::Config`] where layers are missing, the device's.
    pub fn end_step(&mut self) -> Result<(), Error> {
        let replay = self.graph.filter(|_| self.at_layer == Some(0));
        if replay.is_none() && self.at_layer != Some(self.memory.layers) {
            return Err(Error::Config {
                what: format!("the end of a step at layer {:?} of {}", self.at_layer, self.memory.layers),
                remedy: "queue every layer".into(),
            });
        }
        self.step_number += 1;
        self.stats.steps += 1;
        let (flag, number) = (self.flags.address(), self.step_number);
        let queued = (|| {
            let s = streams(self.driver.as_mut())?;
            if let Some(graph) = replay {
                s.replay(graph, MAIN)?;
            }
            s.signal(MAIN, flag, number)
        })();
        self.at_layer = None;
        self.release_full_groups();
        self.checked("end a step", queued)
    }

    /// Waits for the step and returns what it computed.
    ///
    /// # Errors
    /// The device's; on the emulated driver hazards.
    pub fn results(&mut self) -> Result<StepResults, Error> {
        let m = &self.memory;
        let heads = m.layers * m.rows * m.shape.q_heads;
        let sources = [
            (m.out, heads * m.shape.head_dim),
            (m.lse, heads),
            (m.read, 2 * m.layers * m.rows),
            (m.mass, heads),
        ];
        let mut results = StepResults {
            out: vec![0.0; sources[0].1],
            lse: vec![0.0; heads],
            read: vec![0; sources[2].1],
            mass: vec![0.0; heads],
        };
        let base = self.outputs.address();
        let read = (|| {
            let s = streams(self.driver.as_mut())?;
            let mut at = base;
            for (from, words) in sources {
                s.copy_on(MAIN, at, from.address(), 4 * words)?;
                at += 4 * words as u64;
            }
            s.synchronize(MAIN)?;
            let StepResults { out, lse, read, mass } = &mut results;
            let targets: [&mut [u8]; 4] = [
                bytemuck::cast_slice_mut(out),
                bytemuck::cast_slice_mut(lse),
                bytemuck::cast_slice_mut(read),
                bytemuck::cast_slice_mut(mass),
            ];
            let mut at = base;
            for target in targets {
                s.read_pinned(at, target)?;
                at += target.len() as u64;
            }
            Ok(())
        })();
        self.checked("read results", read)?;
        Ok(results)
    }
}

impl Drop for DecodePipeline {
    fn drop(&mut self) {
        let own = [self.staging, self.inputs, self.outputs, self.flags];
        let tier = self.tier.as_ref().map(Tier::regions);
        let regions = self.memory.regions().into_iter().chain(own).chain(tier.into_iter().flatten());
        for region in regions.filter(|region| region.bytes() > 0) {
            // Nothing useful can be done about a device that does not take its memory back.
            let _ = self.driver.free(region.address());
        }
    }
}
