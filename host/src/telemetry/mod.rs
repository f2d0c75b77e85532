//! What a running program reads: records of the last steps, counters since the start, and audits of a sample.
//!
//! [`Telemetry`] observes a [`DecodePlan`] after it attended: one [`Record`] for each (step, layer, sequence, KV head)
//! in a ring of fixed capacity (the oldest makes room and is counted as dropped), and [`Counters`] for each layer and
//! KV head that never forget. [`Audit`] recomputes dense attention for a seeded sample and says what was truly missed.
//! [`write_json_lines`] and [`prometheus`] export both.
//!
//! What is observed are results that the step brings to the host anyway, with its output: nothing waits for it, and a
//! full ring allocates nothing. Where even that is too much they stay in device memory
//! ([`KvCache::defer_reports`](crate::KvCache::defer_reports)), and [`Telemetry::observe_recent`] takes down what the
//! device remembers, once every some steps.
//!
//! Trap: a plan tells the *last* step of a layer. Observe each layer once a step, or steps are missed or counted twice.

mod audit;
mod export;

use crate::backend::{Ranking, RecentStep};
use crate::{DecodePlan, Error, HeadRead, Path, SequenceId, Shape};
use serde::Serialize;
use std::collections::VecDeque;

pub use audit::{Audit, AuditRecord};
pub use export::{Labels, prometheus, write_json_lines};

/// What one step read for one (layer, sequence, KV head).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record<'a> {
    /// Step, as the caller counts them.
    pub step: u64,
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
    /// Chunks read after the plan.
    pub topups: usize,
    /// Bytes of K and V read: whole blocks, the last one too.
    pub kv_bytes: usize,
    /// Mirror bytes read.
    pub metadata_bytes: usize,
    /// What became of the plan.
    pub path: Path,
    /// True where `mass` is a certainty.
    pub certified: bool,
    /// Share of the softmax mass believed read, by query head of the group.
    pub mass: &'a [f32],
}

/// Sums over steps, of one layer and KV head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Counters {
    /// (Step, sequence) pairs.
    pub steps: u64,
    /// Blocks read.
    pub blocks_read: u64,
    /// Blocks there were.
    pub blocks_total: u64,
    /// Chunks read after the plan.
    pub topups: u64,
    /// Bytes of K and V read.
    pub kv_bytes: u64,
    /// Mirror bytes read.
    pub metadata_bytes: u64,
    /// Steps by what became of the plan, in the order of [`Path::ALL`].
    pub paths: [u64; Path::ALL.len()],
    /// Query heads: the terms of `believed_missed`.
    pub heads: u64,
    /// Sum of the share of the softmax mass believed missed, over query heads; by `certified` of its bound.
    pub believed_missed: f64,
}

impl Counters {
    fn add(&mut self, head: &HeadRead<'_>, kv_bytes: usize) {
        self.steps += 1;
        self.blocks_read += head.blocks_read as u64;
        self.blocks_total += head.blocks_total as u64;
        self.topups += head.topups as u64;
        self.kv_bytes += kv_bytes as u64;
        self.metadata_bytes += head.metadata_bytes as u64;
        self.paths[head.path as usize] += 1;
        self.heads += head.mass.len() as u64;
        self.believed_missed += (0..head.mass.len()).map(|g| head.missed(g) as f64).sum::<f64>();
    }

    /// The sum of two.
    pub fn plus(mut self, other: &Counters) -> Counters {
        self.steps += other.steps;
        self.blocks_read += other.blocks_read;
        self.blocks_total += other.blocks_total;
        self.topups += other.topups;
        self.kv_bytes += other.kv_bytes;
        self.metadata_bytes += other.metadata_bytes;
        self.paths.iter_mut().zip(other.paths).for_each(|(sum, n)| *sum += n);
        self.heads += other.heads;
        self.believed_missed += other.believed_missed;
        self
    }
}

/// Sums over audits, of one layer and KV head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct AuditCounters {
    /// (Step, sequence) pairs audited.
    pub audits: u64,
    /// Query heads: the terms of the sums.
    pub heads: u64,
    /// Sum of the share of the softmax mass believed missed.
    pub believed_missed: f64,
    /// Sum of the share truly missed.
    pub true_missed: f64,
    /// Largest share truly missed.
    pub true_missed_max: f64,
    /// Sum of ||o - o_dense|| / ||o_dense||.
    pub output_error: f64,
    /// Its maximum.
    pub output_error_max: f64,
    /// Query heads that missed more than was believed; under `certified` each is a bug.
    pub underestimated: u64,
}

/// A record without its masses.
#[derive(Clone, Copy, Debug)]
struct Entry {
    step: u64,
    sequence: SequenceId,
    entry: u32,
    layer: u32,
    kv_head: u32,
    tokens: u32,
    blocks_read: u32,
    topups: u32,
    metadata_bytes: u32,
    path: Path,
    certified: bool,
}

/// Records, counters and audits of the plans of one geometry.
#[derive(Clone, Debug)]
pub struct Telemetry {
    shape: Shape,
    capacity: usize,
    /// At most `capacity`; the oldest is at `oldest` once it is full.
    ring: Vec<Entry>,
    /// `[ring, group]`.
    mass: Vec<f32>,
    oldest: usize,
    dropped: u64,
    /// `[layers, kv_heads]`.
    counters: Vec<Counters>,
    audits: VecDeque<AuditRecord>,
    dropped_audits: u64,
    /// `[layers, kv_heads]`.
    audit_counters: Vec<AuditCounters>,
    /// Steps of a device's memory that were taken down, or were lost.
    recent: u64,
}

impl Telemetry {
    /// Nothing yet. Keeps the last `capacity` records and as many audits; a record takes about 60 bytes and 4 more
    /// for each query head of the group. With capacity 0 there are counters only.
    pub fn new(shape: Shape, capacity: usize) -> Telemetry {
        let rows = shape.layers * shape.kv_heads;
        Telemetry {
            shape,
            capacity,
            ring: Vec::new(),
            mass: Vec::new(),
            oldest: 0,
            dropped: 0,
            counters: vec![Counters::default(); rows],
            audits: VecDeque::new(),
            dropped_audits: 0,
            audit_counters: vec![AuditCounters::default(); rows],
            recent: 0,
        }
    }

    /// Takes down the last step of one layer of a plan; nothing where the plan has not attended to it.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`]; [`Error::Config`] where the plan is of another geometry.
    pub fn observe(&mut self, step: u64, plan: &DecodePlan, layer: usize) -> Result<(), Error> {
        self.check(plan)?;
        if layer >= self.shape.layers {
            return Err(Error::UnknownLayer { layer, layers: self.shape.layers });
        }
        for head in plan.heads(layer) {
            let kv_bytes = head.blocks_read * self.shape.slot_bytes();
            self.counters[layer * self.shape.kv_heads + head.kv_head].add(&head, kv_bytes);
            self.keep(step, &head);
        }
        Ok(())
    }

    /// Takes down the steps of a plan that the device remembers ([`KvCache::recent_steps`]) and that were not taken down
    /// before, in place of [`Telemetry::observe`]: a record's step is the [`RecentStep::number`]. Says how many steps of
    /// the cache were forgotten in between; call it at least once every 16 steps, and there are none. Steps of sequences
    /// that are not the plan's are left out.
    ///
    /// # Errors
    /// [`Error::Config`] where the plan is of another geometry.
    ///
    /// [`KvCache::recent_steps`]: crate::KvCache::recent_steps
    pub fn observe_recent(&mut self, plan: &DecodePlan, steps: &[RecentStep]) -> Result<u64, Error> {
        self.check(plan)?;
        let Shape { layers, kv_heads, .. } = self.shape;
        let (group, mut forgotten) = (self.shape.group(), 0);
        for step in steps.iter().filter(|step| step.layer < layers) {
            if step.number < self.recent {
                continue;
            }
            forgotten += step.number - self.recent;
            self.recent = step.number + 1;
            let dense = step.ranking == Ranking::Identity && plan.policy().reads_everything();
            for (place, (&row, &tokens)) in step.seqs.iter().zip(&step.lens).enumerate() {
                let Some(entry) = plan.rows().iter().position(|&own| own == row) else { continue };
                for kv_head in 0..kv_heads {
                    let at = place * kv_heads + kv_head;
                    let (blocks_read, topups) = (step.read[2 * at] as usize, step.read[2 * at + 1] as usize);
                    let blocks_total = kernels_gpu::layout::blocks(tokens as usize);
                    let head = HeadRead {
                        sequence: plan.sequences()[entry],
                        entry,
                        layer: step.layer,
                        kv_head,
                        tokens: tokens as usize,
                        blocks_read,
                        blocks_total,
                        topups,
                        metadata_bytes: step.metadata[at] as usize,
                        mass: &step.mass[at * group..][..group],
                        certified: step.ranking == Ranking::Bound,
                        path: Path::of(dense, topups, blocks_read, blocks_total),
                    };
                    let kv_bytes = blocks_read * self.shape.slot_bytes();
                    self.counters[step.layer * kv_heads + kv_head].add(&head, kv_bytes);
                    self.keep(step.number, &head);
                }
            }
        }
        Ok(forgotten)
    }

    fn check(&self, plan: &DecodePlan) -> Result<(), Error> {
        if plan.shape() == self.shape {
            return Ok(());
        }
        Err(Error::Config {
            what: format!("telemetry of {:?} observes a plan of {:?}", self.shape, plan.shape()),
            remedy: "make it with Telemetry::new(plan.shape(), ..)".into(),
        })
    }

    fn keep(&mut self, step: u64, head: &HeadRead<'_>) {
        if self.capacity == 0 {
            self.dropped += 1;
            return;
        }
        // No narrowing loses anything: the kernels count in 32 bits.
        let entry = Entry {
            step,
            sequence: head.sequence,
            entry: head.entry as u32,
            layer: head.layer as u32,
            kv_head: head.kv_head as u32,
            tokens: head.tokens as u32,
            blocks_read: head.blocks_read as u32,
            topups: head.topups as u32,
            metadata_bytes: head.metadata_bytes as u32,
            path: head.path,
            certified: head.certified,
        };
        if self.ring.len() < self.capacity {
            self.ring.push(entry);
            self.mass.extend_from_slice(head.mass);
        } else {
            let group = self.shape.group();
            self.ring[self.oldest] = entry;
            self.mass[self.oldest * group..][..group].copy_from_slice(head.mass);
            self.oldest = (self.oldest + 1) % self.capacity;
            self.dropped += 1;
        }
    }

    /// Takes down audits of plans of this geometry; those of layers or heads beyond it are ignored.
    pub fn add_audits(&mut self, audits: impl IntoIterator<Item = AuditRecord>) {
        for audit in audits {
            let place = audit.layer * self.shape.kv_heads + audit.kv_head;
            let Some(sum) = self.audit_counters.get_mut(place) else { continue };
            sum.audits += 1;
            sum.heads += audit.true_missed.len() as u64;
            sum.believed_missed += audit.believed_missed.iter().sum::<f64>();
            sum.true_missed += audit.true_missed.iter().sum::<f64>();
            sum.output_error += audit.output_error.iter().sum::<f64>();
            sum.underestimated += audit.underestimated() as u64;
            let largest = |values: &[f64], so_far: f64| values.iter().copied().fold(so_far, f64::max);
            sum.true_missed_max = largest(&audit.true_missed, sum.true_missed_max);
            sum.output_error_max = largest(&audit.output_error, sum.output_error_max);
            if self.audits.len() == self.capacity {
                self.audits.pop_front();
                self.dropped_audits += 1;
            }
            if self.capacity > 0 {
                self.audits.push_back(audit);
            }
        }
    }

    /// Geometry.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The records that are kept, oldest first.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let group = self.shape.group();
        let order = (self.oldest..self.ring.len()).chain(0..self.oldest);
        order.map(move |i| {
            let e = self.ring[i];
            Record {
                step: e.step,
                sequence: e.sequence,
                entry: e.entry as usize,
                layer: e.layer as usize,
                kv_head: e.kv_head as usize,
                tokens: e.tokens as usize,
                blocks_read: e.blocks_read as usize,
                blocks_total: kernels_gpu::layout::blocks(e.tokens as usize),
                topups: e.topups as usize,
                kv_bytes: e.blocks_read as usize * self.shape.slot_bytes(),
                metadata_bytes: e.metadata_bytes as usize,
                path: e.path,
                certified: e.certified,
                mass: &self.mass[i * group..][..group],
            }
        })
    }

    /// Records that made room for later ones. The counters have them.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Sums since the start, of one layer and KV head; zeros for one that is not there.
    pub fn counters(&self, layer: usize, kv_head: usize) -> Counters {
        self.place(layer, kv_head).map(|place| self.counters[place]).unwrap_or_default()
    }

    /// Sums since the start, over everything.
    pub fn total(&self) -> Counters {
        self.counters.iter().fold(Counters::default(), Counters::plus)
    }

    /// The audits that are kept, oldest first.
    pub fn audits(&self) -> std::collections::vec_deque::Iter<'_, AuditRecord> {
        self.audits.iter()
    }

    /// Audits that made room for later ones. The counters have them.
    pub fn dropped_audits(&self) -> u64 {
        self.dropped_audits
    }

    /// Sums over audits since the start, of one layer and KV head; zeros for one that is not there.
    pub fn audit_counters(&self, layer: usize, kv_head: usize) -> AuditCounters {
        self.place(layer, kv_head).map(|place| self.audit_counters[place]).unwrap_or_default()
    }

    fn place(&self, layer: usize, kv_head: usize) -> Option<usize> {
        let inside = layer < self.shape.layers && kv_head < self.shape.kv_heads;
        inside.then_some(layer * self.shape.kv_heads + kv_head)
    }

    /// Layers and KV heads that did something, with their sums.
    fn active(&self) -> impl Iterator<Item = (usize, usize, &Counters, &AuditCounters)> {
        let kv_heads = self.shape.kv_heads;
        let sums = self.counters.iter().zip(&self.audit_counters).enumerate();
        sums.filter(|(_, (reads, audits))| reads.steps > 0 || audits.audits > 0)
            .map(move |(place, (reads, audits))| (place / kv_heads, place % kv_heads, reads, audits))
    }
}
