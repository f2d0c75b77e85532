//! One decode step: a policy for a batch of sequences, attention in any number of layers, and a report
//! of what was read.
//!
//! A [`DecodePlan`] borrows nothing, so that a step can append to a layer and then attend in it; it may
//! serve any number of steps of the same batch. Lengths are read when a layer is attended to.

use crate::backend::{DecodeRecord, DecodeResult, DecodeStep, Ranking};
use crate::certificate::round_up;
use crate::ranges::ValueRange;
use crate::short::{decode_apart, reads_whole};
use crate::tail;
use crate::{Error, KvCache, Policy, Rows, SequenceId, Shape};
use kernels_gpu::layout::{BLOCK, blocks};

/// What became of the plan of one (sequence, layer, KV head).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// The policy reads everything; nothing was scored.
    Dense,
    /// A short context, of which nothing is scored ([`crate::short`]), or blocks were scored and the plan was to read
    /// them all: the bits of dense attention.
    Identity,
    /// The planned blocks were read.
    Planned,
    /// The planned blocks were read, and more, because the exact mass fell short.
    ToppedUp,
    /// The planned blocks were read, and then all others: the exact mass, or the bound, never sufficed before.
    Everything,
}

/// What was read for one (sequence, layer, KV head), borrowed from the plan; [`HeadReport`] is its copy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadRead<'a> {
    /// The sequence.
    pub sequence: SequenceId,
    /// Its place in the batch.
    pub entry: usize,
    /// Layer.
    pub layer: usize,
    /// KV head.
    pub kv_head: usize,
    /// Tokens there were.
    pub tokens: usize,
    /// Blocks read.
    pub blocks_read: usize,
    /// Blocks there were.
    pub blocks_total: usize,
    /// Chunks of up to 8 blocks that were read after the plan.
    pub topups: usize,
    /// Mirror bytes read to make the plan, and those of the mean V where the tail is compensated.
    pub metadata_bytes: usize,
    /// Share of the softmax mass believed (by `certified`: certainly) read, for each query head of the group.
    pub mass: &'a [f32],
    /// True where `mass` is a certainty.
    pub certified: bool,
    /// What became of the plan.
    pub path: Path,
}

impl HeadRead<'_> {
    /// Share of the softmax mass believed missed by a query head of the group; where `certified`, not below what was.
    pub fn missed(&self, head: usize) -> f32 {
        round_up(1.0 - self.mass[head] as f64)
    }
}

impl From<HeadRead<'_>> for HeadReport {
    fn from(head: HeadRead<'_>) -> HeadReport {
        let HeadRead { sequence, entry, layer, kv_head, blocks_read, blocks_total, .. } = head;
        HeadReport {
            sequence,
            entry,
            layer,
            kv_head,
            blocks_read,
            blocks_total,
            topups: head.topups,
            metadata_bytes: head.metadata_bytes,
            mass: head.mass.to_vec(),
            missed_bound: head.certified.then(|| (0..head.mass.len()).map(|g| head.missed(g)).collect()),
            path: head.path,
        }
    }
}

/// Fewest and most blocks to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLimits {
    /// So many at least, where there are as many.
    pub min: u32,
    /// So many at most, but for forced blocks.
    pub max: u32,
}

impl Default for BlockLimits {
    fn default() -> Self {
        BlockLimits { min: 0, max: u32::MAX }
    }
}

/// What was read for one (sequence, layer, KV head).
#[derive(Clone, Debug, PartialEq)]
pub struct HeadReport {
    /// The sequence.
    pub sequence: SequenceId,
    /// Its place in the batch.
    pub entry: usize,
    /// Layer.
    pub layer: usize,
    /// KV head.
    pub kv_head: usize,
    /// Blocks read.
    pub blocks_read: usize,
    /// Blocks there are.
    pub blocks_total: usize,
    /// Chunks of up to 8 blocks that were read after the plan.
    pub topups: usize,
    /// Mirror bytes read to make the plan, and those of the mean V where the tail is compensated; the exactly scored open
    /// group not counted.
    pub metadata_bytes: usize,
    /// Share of the softmax mass believed read, for each query head of the group; by `certified` the share
    /// certainly read.
    pub mass: Vec<f32>,
    /// By `certified`: the largest share of the mass that each query head can have missed. It bounds the output
    /// as well: no channel is off by more than this times the range of V in it.
    pub missed_bound: Option<Vec<f32>>,
    /// What became of the plan.
    pub path: Path,
}

/// What was read, in the layers attended to: ordered by layer, batch entry, KV head.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// One record each.
    pub heads: Vec<HeadReport>,
}

impl Report {
    /// Blocks read in all.
    pub fn blocks_read(&self) -> usize {
        self.heads.iter().map(|h| h.blocks_read).sum()
    }

    /// Blocks there are in all.
    pub fn blocks_total(&self) -> usize {
        self.heads.iter().map(|h| h.blocks_total).sum()
    }

    /// Mirror bytes read in all.
    pub fn metadata_bytes(&self) -> usize {
        self.heads.iter().map(|h| h.metadata_bytes).sum()
    }
}

/// The last step of one layer.
#[derive(Debug, Default)]
struct LayerState {
    done: bool,
    /// Nothing was ranked.
    identity: bool,
    /// Batch entries of which nothing was ranked, because they are short.
    whole: Vec<bool>,
    lens: Vec<u32>,
    read: Vec<u32>,
    mass: Vec<f32>,
    metadata: Vec<u32>,
    order: Vec<u32>,
    log_mass: Vec<f32>,
}

/// A policy for a batch of sequences of a cache.
#[derive(Debug)]
pub struct DecodePlan {
    cache: u32,
    shape: Shape,
    max_blocks: usize,
    policy: Policy,
    /// Policy of each layer and KV head: `[layers, KH]`, all of one kind.
    by_head: Vec<Policy>,
    sequences: Vec<SequenceId>,
    seqs: Vec<u32>,
    /// Fewest and most blocks of each sequence.
    limits: Vec<BlockLimits>,
    budget: Vec<u32>,
    floor: Vec<u32>,
    lse: Vec<f32>,
    scale: f32,
    record: bool,
    /// Weight of the mean V of what is not read; 0 for none.
    tail: f32,
    layers: Vec<LayerState>,
}

impl Path {
    /// Every path.
    pub const ALL: [Path; 5] = [Path::Dense, Path::Identity, Path::Planned, Path::ToppedUp, Path::Everything];

    /// What became of a plan, by what was read. `dense`: nothing was to be ranked.
    pub(crate) fn of(dense: bool, topups: usize, blocks_read: usize, blocks_total: usize) -> Path {
        match () {
            () if dense => Path::Dense,
            () if topups > 0 && blocks_read == blocks_total => Path::Everything,
            () if topups > 0 => Path::ToppedUp,
            () if blocks_read == blocks_total => Path::Identity,
            () => Path::Planned,
        }
    }

    /// Its name in records: `dense`, `identity`, `planned`, `topped_up`, `everything`.
    pub fn name(self) -> &'static str {
        match self {
            Path::Dense => "dense",
            Path::Identity => "identity",
            Path::Planned => "planned",
            Path::ToppedUp => "topped_up",
            Path::Everything => "everything",
        }
    }
}

impl DecodePlan {
    /// A plan for the sequences (all different), at the scale `1 / sqrt(head_dim)`.
    ///
    /// # Errors
    /// [`Error::Policy`], [`Error::MirrorMismatch`], [`Error::UnsupportedPolicy`], [`Error::UnknownSequence`],
    /// [`Error::DuplicateSequence`].
    pub fn new(cache: &KvCache, sequences: &[SequenceId], policy: Policy) -> Result<DecodePlan, Error> {
        policy.validate()?;
        policy.check_mirror(cache.config().mirror)?;
        if policy.needs_everything() && !cache.backend.knows_everything() {
            return Err(Error::UnsupportedPolicy { policy, device: cache.device_name() });
        }
        if matches!(policy, Policy::Certified { .. }) && !cache.config().check_finite {
            return Err(Error::Policy {
                text: policy.to_string(),
                reason:
                    "a NaN or an infinity in a key has no bound; create the cache with check_finite = true"
                        .into(),
            });
        }
        let shape = cache.shape();
        Ok(DecodePlan {
            cache: cache.pool().id(),
            shape,
            max_blocks: cache.pool().tables().extents.max_blocks,
            policy,
            by_head: vec![policy; shape.layers * shape.kv_heads],
            limits: vec![BlockLimits::default(); sequences.len()],
            sequences: sequences.to_vec(),
            seqs: cache.pool().indices(sequences)?,
            budget: vec![0; sequences.len()],
            floor: vec![0; sequences.len()],
            lse: vec![0.0; sequences.len() * shape.q_heads],
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            record: false,
            tail: 0.0,
            layers: (0..shape.layers).map(|_| LayerState::default()).collect(),
        })
    }

    /// The same with another factor of the scores.
    ///
    /// # Errors
    /// [`Error::Config`] where it is not finite.
    pub fn with_scale(mut self, scale: f32) -> Result<DecodePlan, Error> {
        if !scale.is_finite() {
            return Err(Error::Config {
                what: format!("scale = {scale}"),
                remedy: "use a finite number".into(),
            });
        }
        self.scale = scale;
        Ok(self)
    }

    /// The same, keeping what the steps were decided on: [`DecodePlan::selection`] and
    /// [`DecodePlan::log_mass`]. Costs a copy of the ranking.
    pub fn with_record(mut self) -> DecodePlan {
        self.record = true;
        self
    }

    /// The same with tail compensation: what is not read counts as its believed mass times `weight`, at the mean of V over
    /// the sequence's full groups of 64 tokens ([`crate::tail`]). [`TAIL_WEIGHT`](crate::tail::TAIL_WEIGHT) is the weight
    /// that was measured to help, 0 switches it off. The lse stays that of what was read. A NaN or an infinity in any value
    /// (only with `check_finite = false`) reaches every compensated output.
    ///
    /// # Errors
    /// [`Error::Config`] for a weight outside 0 to 1; [`Error::Policy`] for policies other than top-k, top-p and
    /// progressive: the others read everything, estimate no mass, or promise a bound that this would void.
    pub fn with_tail(mut self, weight: f32) -> Result<DecodePlan, Error> {
        if !(0.0..=1.0).contains(&weight) {
            return Err(Error::Config {
                what: format!("a tail weight of {weight}"),
                remedy: format!("use 0 to 1; {} helps", crate::tail::TAIL_WEIGHT),
            });
        }
        if weight > 0.0 && !self.policy.estimates_rest() {
            return Err(Error::Policy {
                text: self.policy.to_string(),
                reason: "tail compensation needs an estimate of the mass not read: use top-k, top-p or progressive"
                    .into(),
            });
        }
        self.tail = weight;
        Ok(self)
    }

    /// Fewest and most blocks to read of each sequence, in every layer and KV head: `[batch]`. Forced blocks are
    /// read whatever the cap, and `dense` reads everything.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::Config`] where a floor is above its cap. Floors run on the cpu and reference
    /// devices: others say so when the plan attends.
    pub fn set_block_limits(&mut self, limits: &[BlockLimits]) -> Result<(), Error> {
        if limits.len() != self.sequences.len() {
            let layout = format!("[batch = {}]", self.sequences.len());
            return Err(Error::Length {
                tensor: "limits",
                expected: self.sequences.len(),
                got: limits.len(),
                layout,
            });
        }
        for BlockLimits { min, max } in limits {
            if min > max {
                return Err(Error::Config {
                    what: format!("at least {min} and at most {max} blocks"),
                    remedy: "use a floor that is not above the cap".into(),
                });
            }
        }
        self.limits.copy_from_slice(limits);
        Ok(())
    }

    /// Another policy for all KV heads of one layer. It must be of the plan's kind: with another mass, say.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`]; [`Error::Policy`] where it is of another kind, a budget, or out of range.
    pub fn set_layer_policy(&mut self, layer: usize, policy: Policy) -> Result<(), Error> {
        (0..self.shape.kv_heads).try_for_each(|kv_head| self.set_head_policy(layer, kv_head, policy))
    }

    /// Another policy for one KV head of one layer, as [`DecodePlan::set_layer_policy`]. KV heads of a layer that
    /// differ run on the cpu and reference devices: others say so when the plan attends.
    ///
    /// # Errors
    /// As [`DecodePlan::set_layer_policy`], and [`Error::Config`] for a KV head that is not there.
    pub fn set_head_policy(&mut self, layer: usize, kv_head: usize, policy: Policy) -> Result<(), Error> {
        policy.validate()?;
        let Shape { layers, kv_heads, .. } = self.shape;
        if layer >= layers {
            return Err(Error::UnknownLayer { layer, layers });
        }
        if kv_head >= kv_heads {
            return Err(Error::Config {
                what: format!("KV head {kv_head}"),
                remedy: format!("the cache has {kv_heads} (0 to {})", kv_heads - 1),
            });
        }
        let same = std::mem::discriminant(&policy) == std::mem::discriminant(&self.policy);
        let by_mass =
            matches!(policy, Policy::Progressive { .. } | Policy::TopP { .. } | Policy::Certified { .. });
        if !same || !by_mass {
            return Err(Error::Policy {
                text: policy.to_string(),
                reason: format!(
                    "a layer or head may have its own mass under top-p, progressive or certified; the plan is {}",
                    self.policy
                ),
            });
        }
        self.by_head[layer * kv_heads + kv_head] = policy;
        Ok(())
    }

    /// The policy.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Geometry of the cache.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Factor of the scores.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The batch.
    pub fn sequences(&self) -> &[SequenceId] {
        &self.sequences
    }

    /// Attends in one layer: `softmax(scale q k^T) v` over what the policy reads of the tokens appended to
    /// it so far. A sequence without tokens gets zeros.
    ///
    /// q: `[batch, q_heads, head_dim]` of the cache's element type; out: f32 of the same shape.
    ///
    /// # Errors
    /// Any mismatch, [`Error::NonFinite`], [`Error::UnknownSequence`] where one was removed since,
    /// [`Error::ForeignPlan`], the device's.
    pub fn attend<'a>(
        &mut self,
        cache: &mut KvCache,
        layer: usize,
        q: impl Into<Rows<'a>>,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let mut lse = std::mem::take(&mut self.lse);
        let result = self.attend_with_lse(cache, layer, q, out, &mut lse);
        self.lse = lse;
        result
    }

    /// As [`DecodePlan::attend`], and the natural logarithm of the sum of exponentials of the scores read:
    /// lse: `[batch, q_heads]`, `-inf` where nothing was read.
    ///
    /// # Errors
    /// As [`DecodePlan::attend`].
    pub fn attend_with_lse<'a>(
        &mut self,
        cache: &mut KvCache,
        layer: usize,
        q: impl Into<Rows<'a>>,
        out: &mut [f32],
        lse: &mut [f32],
    ) -> Result<(), Error> {
        let q = q.into();
        let Shape { q_heads, kv_heads, head_dim, dtype, .. } = self.shape;
        let batch = self.seqs.len();
        if cache.pool().id() != self.cache {
            return Err(Error::ForeignPlan);
        }
        cache.check_layer(layer)?;
        for &sequence in &self.sequences {
            cache.check_resident(sequence, cache.pool().index(sequence)?)?;
        }
        let layout = || format!("[batch = {batch}, q_heads = {q_heads}, head_dim = {head_dim}]");
        let elements = batch * q_heads * head_dim;
        q.check("q", dtype, elements, layout, cache.config().check_finite)?;
        let length = |tensor, expected, got: usize, layout: String| {
            if got == expected { Ok(()) } else { Err(Error::Length { tensor, expected, got, layout }) }
        };
        length("out", elements, out.len(), layout())?;
        length("lse", batch * q_heads, lse.len(), format!("[batch = {batch}, q_heads = {q_heads}]"))?;

        let state = &mut self.layers[layer];
        state.done = false;
        state.lens.clear();
        state.lens.extend(self.seqs.iter().map(|&s| cache.pool().tokens(s as usize, layer) as u32));
        for (budget, &tokens) in self.budget.iter_mut().zip(&state.lens) {
            *budget = self.policy.budget(blocks(tokens as usize));
        }
        for ((budget, floor), limits) in self.budget.iter_mut().zip(&mut self.floor).zip(&self.limits) {
            *budget = (*budget).min(limits.max);
            *floor = limits.min;
        }
        state.read.resize(batch * kv_heads * 2, 0);
        state.mass.resize(batch * q_heads, 0.0);
        state.metadata.resize(batch * kv_heads, 0);
        if self.record {
            state.order.resize(batch * kv_heads * self.max_blocks, 0);
            state.log_mass.resize(batch * q_heads * self.max_blocks, 0.0);
        }
        let config = cache.config();
        let policies = &self.by_head[layer * kv_heads..][..kv_heads];
        let capped = self.limits.iter().any(|limits| limits.max < u32::MAX);
        let ranking = match self.policy {
            // A cap makes even "everything" a choice, but dense attention has nothing to choose by.
            Policy::Dense => Ranking::Identity,
            _ if !capped && policies.iter().all(|policy| policy.reads_everything()) => Ranking::Identity,
            Policy::Oracle { mass } => Ranking::TrueMass(mass),
            Policy::Certified { .. } => Ranking::Bound,
            _ => Ranking::Mirror,
        };
        let identity = ranking == Ranking::Identity;
        let by_mass = matches!(
            self.policy,
            Policy::Progressive { .. } | Policy::TopP { .. } | Policy::Certified { .. }
        );
        let (format, unit) = (cache.mirror_format(), config.unit / BLOCK);
        state.whole.clear();
        state.whole.extend(state.lens.iter().zip(&self.budget).map(|(&tokens, &budget)| {
            let tokens = tokens as usize;
            let uncapped = by_mass && budget as usize >= blocks(tokens);
            !identity && reads_whole(tokens, format, config.forced, unit, uncapped)
        }));
        let all_whole = !identity && state.whole.iter().all(|&whole| whole);
        let ranking = if all_whole { Ranking::Identity } else { ranking };
        let apart = !all_whole && state.whole.contains(&true);
        for (floor, &whole) in self.floor.iter_mut().zip(&state.whole) {
            *floor = if whole { u32::MAX } else { *floor };
        }
        let identity = identity || all_whole;
        let target: Vec<u32> =
            policies.iter().map(|p| if identity { 0 } else { p.target(config.mirror) }).collect();
        let mass: Vec<f32> = policies.iter().map(|p| if identity { 0.0 } else { p.tested_mass() }).collect();
        let step = DecodeStep {
            layer,
            seqs: &self.seqs,
            lens: &state.lens,
            q,
            scale: self.scale,
            ranking,
            budget: &self.budget,
            floor: &self.floor,
            unit,
            target: &target,
            mass: &mass,
            sink: config.forced.sink,
            recent: config.forced.recent,
        };
        if self.tail > 0.0 && cache.backend.defers_reports() {
            return Err(Error::Unsupported {
                what: "tail compensation while reports stay on the device".into(),
                device: cache.device_name(),
                supported: "tail compensation with reports of each step: KvCache::defer_reports(false)",
            });
        }
        let mut result = DecodeResult {
            out: &mut *out,
            lse,
            read: &mut state.read,
            mass: &mut state.mass,
            metadata: &mut state.metadata,
            record: self
                .record
                .then_some(DecodeRecord { order: &mut state.order, log_mass: &mut state.log_mass }),
        };
        if apart && !cache.backend.knows_everything() {
            decode_apart(cache, &step, &state.whole, &mut result)?;
        } else {
            cache.decode(&step, &mut result)?;
        }
        if self.tail > 0.0 {
            let LayerState { mass, metadata, .. } = state;
            let row = head_dim * self.shape.group();
            let rows = out.chunks_mut(row).zip(mass.chunks(self.shape.group())).zip(metadata);
            for (row, ((out, mass), metadata)) in rows.enumerate() {
                let (sequence, kv_head) = (self.sequences[row / kv_heads], row % kv_heads);
                if mass.iter().any(|&mass| mass < 1.0) {
                    *metadata += tail::compensate(cache, (sequence, layer, kv_head), self.tail, mass, out)?;
                }
            }
        }
        // Where the results stay on the device, the plan has none.
        state.done = !cache.backend.defers_reports();
        state.identity = identity && !all_whole;
        Ok(())
    }

    /// What was read in each layer's last step.
    pub fn report(&self) -> Report {
        Report { heads: (0..self.layers.len()).flat_map(|layer| self.heads(layer)).map(Into::into).collect() }
    }

    /// What was read in one layer's last step, by batch entry and KV head, without an allocation; nothing where there
    /// is no such layer or it was not attended to.
    pub fn heads(&self, layer: usize) -> impl Iterator<Item = HeadRead<'_>> {
        let kv_heads = self.shape.kv_heads;
        let state = self.layers.get(layer).filter(|state| state.done);
        state.into_iter().flat_map(move |state| {
            (0..self.sequences.len() * kv_heads).map(move |row| self.head(layer, state, row))
        })
    }

    fn head<'a>(&'a self, layer: usize, state: &'a LayerState, row: usize) -> HeadRead<'a> {
        let (entry, kv_head) = (row / self.shape.kv_heads, row % self.shape.kv_heads);
        let tokens = state.lens[entry] as usize;
        let (blocks_read, topups) = (state.read[2 * row] as usize, state.read[2 * row + 1] as usize);
        let blocks_total = blocks(tokens);
        HeadRead {
            sequence: self.sequences[entry],
            entry,
            layer,
            kv_head,
            tokens,
            blocks_read,
            blocks_total,
            topups,
            metadata_bytes: state.metadata[row] as usize,
            mass: &state.mass[row * self.shape.group()..][..self.shape.group()],
            certified: matches!(self.policy, Policy::Certified { .. }),
            path: Path::of(state.identity, topups, blocks_read, blocks_total),
        }
    }

    /// By how much each output of the layer's last step can be off, because mass was missed: bounds of
    /// `||o - o_dense||`, `[batch, q_heads]`. `out`: what the step gave, `[batch, q_heads, head_dim]`.
    ///
    /// It follows from [`HeadRead::missed`] and the range of V, channel by channel (`ranges.rs`), and says nothing of the
    /// rounding of attention itself. Reads V of every token: for audits, not for every step.
    ///
    /// # Errors
    /// [`Error::Policy`] where the plan certifies nothing; [`Error::Config`] where the layer was not attended to;
    /// [`Error::Length`], [`Error::ForeignPlan`], [`Error::UnknownSequence`], [`Error::UnknownLayer`], the device's.
    pub fn output_bounds(&self, cache: &mut KvCache, layer: usize, out: &[f32]) -> Result<Vec<f32>, Error> {
        let Shape { q_heads, head_dim, .. } = self.shape;
        let batch = self.sequences.len();
        if cache.pool().id() != self.cache {
            return Err(Error::ForeignPlan);
        }
        cache.check_layer(layer)?;
        if !matches!(self.policy, Policy::Certified { .. }) {
            return Err(Error::Policy {
                text: self.policy.to_string(),
                reason: "it bounds nothing; the output has bounds under certified:E".into(),
            });
        }
        if !self.layers[layer].done {
            return Err(Error::Config {
                what: format!("bounds of layer {layer}, which was not attended to"),
                remedy: "call attend first".into(),
            });
        }
        if out.len() != batch * q_heads * head_dim {
            return Err(Error::Length {
                tensor: "out",
                expected: batch * q_heads * head_dim,
                got: out.len(),
                layout: format!("[batch = {batch}, q_heads = {q_heads}, head_dim = {head_dim}]"),
            });
        }
        let mut bounds = Vec::with_capacity(batch * q_heads);
        for head in self.heads(layer) {
            let (_, values) = cache.keys_and_values(head.sequence, layer, head.kv_head, head.tokens)?;
            let range = ValueRange::of(self.shape.dtype, head_dim, &values);
            let outputs = out[bounds.len() * head_dim..].chunks(head_dim);
            bounds.extend(
                outputs.take(head.mass.len()).enumerate().map(|(g, out)| range.error(head.missed(g), out)),
            );
        }
        Ok(bounds)
    }

    /// Rows of the batch in the tables, as [`RecentStep`](crate::backend::RecentStep) names them.
    pub(crate) fn rows(&self) -> &[u32] {
        &self.seqs
    }

    /// Blocks read in the layer's last step, in the order of their ranks; none where the plan keeps no
    /// record ([`DecodePlan::with_record`]) or the layer was not attended to.
    pub fn selection(&self, layer: usize, entry: usize, kv_head: usize) -> Option<&[u32]> {
        let state = self.recorded(layer)?;
        if entry >= self.seqs.len() || kv_head >= self.shape.kv_heads {
            return None;
        }
        let row = entry * self.shape.kv_heads + kv_head;
        Some(&state.order[row * self.max_blocks..][..state.read[2 * row] as usize])
    }

    /// log2 masses of all blocks by which the layer's last step ranked them, for one query head; none
    /// where there is no record, for plans that read everything by definition, and for short contexts.
    pub fn log_mass(&self, layer: usize, entry: usize, q_head: usize) -> Option<&[f32]> {
        let state = self.recorded(layer)?;
        if entry >= self.seqs.len() || q_head >= self.shape.q_heads || state.identity || state.whole[entry] {
            return None;
        }
        let row = entry * self.shape.q_heads + q_head;
        Some(&state.log_mass[row * self.max_blocks..][..blocks(state.lens[entry] as usize)])
    }

    fn recorded(&self, layer: usize) -> Option<&LayerState> {
        self.layers.get(layer).filter(|state| state.done && self.record)
    }
}
