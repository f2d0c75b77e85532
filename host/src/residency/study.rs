//! Replays recorded reads through the policies at several capacities, and counts what would be fetched.
//!
//! The pool is empty at first; the steps of the warm-up are replayed but not counted. Several sequences are equal
//! pieces of the recording, one after the other in time, decoded side by side as one batch: step by step, layer by layer,
//! sequence by sequence, they share the pool. A block that a step writes enters without a fetch.
//!
//! Prefetch: when a row's turn comes, what it read in the last step is fetched ahead of the reads. Those fetches
//! count in `mb_per_token`, and save misses, which would have been waited for.

use std::ops::Range;

use rayon::prelude::*;
use serde::Serialize;

use super::{
    AccessError, Accesses, Belady, Clock, Entry, Frequency, Lru, Residency, demand_shares, equal_shares,
};

/// The policies of the study.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyName {
    /// LRU in an equal share for each layer.
    LruEqualShares,
    /// LRU in shares by the layers' mean demand over the whole recording, which a cache would have to know.
    LruDemandShares,
    /// LRU over one pool.
    Lru,
    /// CLOCK over one pool.
    Clock,
    /// Frequency with decay over one pool.
    Frequency,
    /// Weight with decay over one pool; for recordings with weights.
    ScoreWeighted,
    /// The offline optimum over one pool.
    Belady,
}

impl PolicyName {
    /// All, in the order of the table.
    pub const ALL: [PolicyName; 7] = [
        PolicyName::LruEqualShares,
        PolicyName::LruDemandShares,
        PolicyName::Lru,
        PolicyName::Clock,
        PolicyName::Frequency,
        PolicyName::ScoreWeighted,
        PolicyName::Belady,
    ];

    /// As it stands in records.
    pub fn name(self) -> &'static str {
        match self {
            PolicyName::LruEqualShares => "lru-equal-shares",
            PolicyName::LruDemandShares => "lru-demand-shares",
            PolicyName::Lru => "lru",
            PolicyName::Clock => "clock",
            PolicyName::Frequency => "frequency",
            PolicyName::ScoreWeighted => "score-weighted",
            PolicyName::Belady => "belady",
        }
    }
}

/// What to replay.
#[derive(Clone, Debug)]
pub struct StudyOptions {
    /// Slots as shares of all blocks, each above 0 and at most 1.
    pub capacities: Vec<f64>,
    /// Sequences that share the pool.
    pub sequences: usize,
    /// Steps that are not counted.
    pub warm_up: usize,
    /// Of frequency and score-weighted.
    pub decay: f64,
}

/// One policy at one capacity.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StudyRecord {
    /// Name; with `+prefetch` where the last step's reads are fetched ahead.
    pub policy: String,
    /// Slots as a share of all blocks.
    pub capacity: f64,
    /// Reads of blocks that were not on the device, as a share of reads.
    pub miss_rate: f64,
    /// Fetched, prefetches included, 10^6 bytes a token of one sequence.
    pub mb_per_token: f64,
    /// Sequences.
    pub sequences: usize,
    /// Slots.
    pub slots: usize,
    /// Blocks read, in the counted steps.
    pub reads: usize,
    /// Of them not on the device.
    pub misses: usize,
    /// Fetched ahead.
    pub prefetched: usize,
    /// Of them not read in the step they were fetched for.
    pub prefetch_wasted: usize,
    /// Fetches by fetches of Belady at the same capacity; null where Belady fetches nothing.
    pub ratio_to_belady: Option<f64>,
}

/// What one row of one sequence does in one step.
struct Turn {
    writes: Range<u32>,
    reads: Range<usize>,
}

/// All steps as the pool sees them.
struct Schedule {
    blocks: usize,
    /// Blocks that exist at the end: what capacities are shares of.
    existing: usize,
    layer_of: Vec<u16>,
    reads: Vec<u32>,
    weights: Vec<f32>,
    /// `steps[s][i]` is turn `i` of step `s`; the same `i` is the same row.
    steps: Vec<Vec<Turn>>,
}

impl Schedule {
    fn new(accesses: &Accesses, sequences: usize) -> Schedule {
        let each = accesses.steps / sequences;
        let rows = accesses.rows.len();
        let last = |sequence: usize| sequence * each + each - 1;
        let existing =
            (0..sequences).map(|s| (0..rows).map(|r| accesses.visible(r, last(s))).sum::<usize>()).sum();
        let layers = (0..sequences).flat_map(|_| &accesses.rows).map(|row| row.layer as u16);
        let mut new = Schedule {
            blocks: sequences * rows * accesses.blocks,
            existing,
            layer_of: layers.flat_map(|layer| std::iter::repeat_n(layer, accesses.blocks)).collect(),
            reads: Vec::new(),
            weights: Vec::new(),
            steps: Vec::new(),
        };
        for step in 0..each {
            let mut turns = Vec::with_capacity(sequences * rows);
            for layer in accesses.rows.chunk_by(|a, b| a.layer == b.layer).scan(0, |at, layer| {
                *at += layer.len();
                Some(*at - layer.len()..*at)
            }) {
                for (sequence, row) in (0..sequences).flat_map(|s| layer.clone().map(move |row| (s, row))) {
                    let base = ((sequence * rows + row) * accesses.blocks) as u32;
                    let recorded = sequence * each + step;
                    let visible = accesses.visible(row, recorded) as u32;
                    let before = if step == 0 { visible } else { accesses.visible(row, recorded - 1) as u32 };
                    let start = new.reads.len();
                    for &(block, weight) in accesses.reads(row, recorded) {
                        new.reads.push(base + block);
                        new.weights.push(weight);
                    }
                    turns.push(Turn { writes: base + before..base + visible, reads: start..new.reads.len() });
                }
            }
            new.steps.push(turns);
        }
        new
    }

    fn pool(&self, name: PolicyName, slots: usize, decay: f64) -> Box<dyn Residency> {
        let layers = self.layer_of.last().map_or(0, |&layer| layer as usize + 1);
        match name {
            PolicyName::LruEqualShares => {
                Box::new(Lru::with_shares(self.layer_of.clone(), equal_shares(slots, layers)))
            }
            PolicyName::LruDemandShares => {
                let (mut demand, mut limit) = (vec![0.0; layers], vec![0; layers]);
                self.reads.iter().for_each(|&block| demand[self.layer_of[block as usize] as usize] += 1.0);
                self.layer_of.iter().for_each(|&layer| limit[layer as usize] += 1);
                Box::new(Lru::with_shares(self.layer_of.clone(), demand_shares(slots, &demand, &limit)))
            }
            PolicyName::Lru => Box::new(Lru::unified(self.blocks, slots)),
            PolicyName::Clock => Box::new(Clock::new(self.blocks, slots)),
            PolicyName::Frequency => Box::new(Frequency::new(self.blocks, slots, decay)),
            PolicyName::ScoreWeighted => Box::new(Frequency::by_weight(self.blocks, slots, decay)),
            PolicyName::Belady => Box::new(Belady::new(self.blocks, slots, &self.reads)),
        }
    }

    /// Counts: reads, misses, prefetched, wasted.
    fn replay(&self, pool: &mut dyn Residency, warm_up: usize, prefetch: bool) -> [usize; 4] {
        let mut counts = [0; 4];
        let mut ahead = vec![false; if prefetch { self.blocks } else { 0 }];
        for (s, turns) in self.steps.iter().enumerate() {
            let mut now = [0; 4];
            for (i, turn) in turns.iter().enumerate() {
                for block in turn.writes.clone() {
                    pool.bring(block);
                }
                let last = if prefetch && s > 0 { self.steps[s - 1][i].reads.clone() } else { 0..0 };
                for &block in &self.reads[last.clone()] {
                    ahead[block as usize] = matches!(pool.bring(block), Entry::Miss { .. });
                    now[2] += usize::from(ahead[block as usize]);
                }
                for at in turn.reads.clone() {
                    let miss = matches!(pool.read(self.reads[at], self.weights[at]), Entry::Miss { .. });
                    now[1] += usize::from(miss);
                    if prefetch {
                        ahead[self.reads[at] as usize] = false;
                    }
                }
                now[0] += turn.reads.len();
                for &block in &self.reads[last] {
                    now[3] += usize::from(std::mem::take(&mut ahead[block as usize]));
                }
            }
            pool.end_step();
            if s >= warm_up {
                counts.iter_mut().zip(now).for_each(|(sum, n)| *sum += n);
            }
        }
        counts
    }
}

/// Replays `accesses` by every policy at every capacity, by policy, then capacity. Score-weighted only where weights
/// were recorded; lru and frequency also with prefetch.
///
/// # Errors
/// [`AccessError::TooShort`].
pub fn study(accesses: &Accesses, options: &StudyOptions) -> Result<Vec<StudyRecord>, AccessError> {
    let sequences = options.sequences.max(1);
    let each = accesses.steps / sequences;
    if each <= options.warm_up {
        let StudyOptions { warm_up, .. } = *options;
        return Err(AccessError::TooShort { sequences, steps: accesses.steps, each, warm_up });
    }
    let schedule = Schedule::new(accesses, sequences);
    let mut runs = Vec::new();
    for name in PolicyName::ALL {
        if name == PolicyName::ScoreWeighted && !accesses.weighted {
            continue;
        }
        runs.push((name, false));
        if matches!(name, PolicyName::Lru | PolicyName::Frequency) {
            runs.push((name, true));
        }
    }
    let runs: Vec<_> = runs
        .iter()
        .flat_map(|&run| options.capacities.iter().map(move |&capacity| (run, capacity)))
        .collect();
    let tokens = (each - options.warm_up) * sequences;
    let mut records: Vec<StudyRecord> = runs
        .par_iter()
        .map(|&((name, prefetch), capacity)| {
            let slots = (capacity * schedule.existing as f64) as usize;
            let mut pool = schedule.pool(name, slots, options.decay);
            let [reads, misses, prefetched, prefetch_wasted] =
                schedule.replay(pool.as_mut(), options.warm_up, prefetch);
            StudyRecord {
                policy: format!("{}{}", name.name(), if prefetch { "+prefetch" } else { "" }),
                capacity,
                miss_rate: misses as f64 / reads.max(1) as f64,
                mb_per_token: ((misses + prefetched) * accesses.block_bytes) as f64 / 1e6 / tokens as f64,
                sequences,
                slots,
                reads,
                misses,
                prefetched,
                prefetch_wasted,
                ratio_to_belady: None,
            }
        })
        .collect();
    let best: Vec<(f64, usize)> =
        records.iter().filter(|r| r.policy == "belady").map(|r| (r.capacity, r.misses)).collect();
    for record in &mut records {
        let belady = best.iter().find(|(capacity, _)| *capacity == record.capacity).map_or(0, |b| b.1);
        record.ratio_to_belady =
            (belady > 0).then(|| (record.misses + record.prefetched) as f64 / belady as f64);
    }
    Ok(records)
}
