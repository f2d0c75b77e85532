//! Sequences of unequal length come and go for thousands of steps on a small pool, with preemption: nothing leaks, nobody
//! starves, and nobody is swapped in over and over.
//!
//! 2,000 steps in a run of the tests; the full count: `PSA_LOAD_STEPS=100000 cargo test --release -p psa --test load
//! -- --nocapture`.

mod common;

use std::collections::VecDeque;

use common::Random;
use half::f16;
use psa::{CacheConfig, Capacity, DecodePlan, Device, Dtype, Error, KvCache, Policy, SequenceId, Shape};

const SHAPE: Shape = Shape { layers: 2, q_heads: 2, kv_heads: 1, head_dim: 64, dtype: Dtype::F16 };
/// Tokens that are prefilled at a time.
const PIECE: usize = 64;
/// Steps without a swap in after one out, unless somebody finishes: what was too much a moment ago still is.
const PAUSE: usize = 16;
/// Most sequences that run: each has up to 4 open blocks in both layers on the device, of 60 slots.
const MOST_RUNNING: usize = 7;

#[derive(Clone, Debug)]
struct Request {
    id: SequenceId,
    arrived: usize,
    /// Tokens that are still to be made.
    left: usize,
    swaps: usize,
    waited: usize,
}

/// Continuous batching in its simplest form: first come, first served; the youngest makes room for the others.
struct Engine {
    cache: KvCache,
    random: Random,
    step: usize,
    /// Nobody is swapped in before this step.
    pause: usize,
    /// Oldest first.
    running: Vec<Request>,
    waiting: VecDeque<Request>,
    finished: Vec<Request>,
    noise: Vec<f16>,
}

impl Engine {
    fn rows(&mut self, tokens: usize) -> Vec<f16> {
        let at = self.random.bits() as usize % 4096;
        self.noise[at..at + tokens * SHAPE.head_dim].to_vec()
    }

    /// Swaps the youngest out; false where nobody may go.
    fn make_room(&mut self, keep: Option<SequenceId>) -> bool {
        let Some(at) = self.running.iter().rposition(|r| Some(r.id) != keep) else { return false };
        self.pause = self.step + PAUSE;
        let mut request = self.running.remove(at);
        self.cache.swap_out(request.id).unwrap();
        request.swaps += 1;
        // In the order of arrival.
        let place =
            self.waiting.iter().position(|w| w.arrived > request.arrived).unwrap_or(self.waiting.len());
        self.waiting.insert(place, request);
        true
    }

    /// Does something that may find the pool exhausted, making room until it works; false where it cannot.
    fn with_room(
        &mut self,
        keep: Option<SequenceId>,
        mut work: impl FnMut(&mut Engine) -> Result<(), Error>,
    ) -> bool {
        loop {
            match work(self) {
                Ok(()) => return true,
                Err(Error::PoolExhausted { .. }) if self.make_room(keep) => {}
                Err(Error::PoolExhausted { .. }) => return false,
                Err(error) => panic!("step {}: {error}", self.step),
            }
        }
    }

    fn arrive(&mut self, longest: usize) {
        let prompt = 1 + self.random.bits() as usize % longest;
        let left = 1 + self.random.bits() as usize % 60;
        let Ok(id) = self.cache.add_sequence() else { return };
        // Admission: a place in the host tier for all it may come to hold.
        if self.cache.reserve(id, prompt + left).is_err() {
            self.cache.remove_sequence(id).unwrap();
            return;
        }
        let arrived = self.step;
        for from in (0..prompt).step_by(PIECE) {
            let n = PIECE.min(prompt - from);
            for layer in 0..SHAPE.layers {
                let (k, v) = (self.rows(n), self.rows(n));
                let fits = self.with_room(None, |engine| engine.cache.append(id, layer, &k, &v));
                assert!(fits, "a piece of {n} tokens does not fit an empty device");
            }
        }
        self.running.push(Request { id, arrived, left, swaps: 0, waited: 0 });
    }

    /// Whoever arrived first comes back first.
    fn bring_back(&mut self) {
        while let Some(request) = self.waiting.front().cloned()
            && self.running.len() < MOST_RUNNING
            && (self.step >= self.pause || self.running.is_empty())
        {
            match self.cache.swap_in(request.id) {
                Ok(()) => {}
                Err(Error::PoolExhausted { .. }) => return,
                Err(error) => panic!("{error}"),
            }
            let at = self.waiting.iter().position(|w| w.id == request.id).unwrap();
            let request = self.waiting.remove(at).unwrap();
            let place =
                self.running.iter().position(|r| r.arrived > request.arrived).unwrap_or(self.running.len());
            self.running.insert(place, request);
        }
    }

    fn batch(&self) -> Vec<SequenceId> {
        self.running.iter().map(|r| r.id).collect()
    }

    fn decode(&mut self) {
        for layer in 0..SHAPE.layers {
            let (k, v, q) = (self.rows(64), self.rows(64), self.rows(2 * 64));
            // Whoever is swapped out between two layers catches up when it is back.
            for (i, id) in self.batch().into_iter().enumerate() {
                let row = i * SHAPE.head_dim..(i + 1) * SHAPE.head_dim;
                let (k, v) = (&k[row.clone()], &v[row]);
                if !self.cache.is_swapped_out(id).unwrap() {
                    self.with_room(Some(id), |engine| engine.cache.append(id, layer, k, v));
                }
            }
            self.with_room(None, |engine| {
                let ids = engine.batch();
                let n = ids.len() * SHAPE.query_elements();
                let mut plan = DecodePlan::new(&engine.cache, &ids, Policy::Progressive { mass: 0.8 })?;
                let mut out = vec![0.0; n];
                plan.attend(&mut engine.cache, layer, &q[..n], &mut out)?;
                assert!(out.iter().all(|x| x.is_finite()));
                Ok(())
            });
        }
        for request in &mut self.running {
            request.left -= 1;
        }
        let (done, running) = std::mem::take(&mut self.running).into_iter().partition(|r| r.left == 0);
        self.running = running;
        let done: Vec<Request> = done;
        for request in done {
            self.cache.remove_sequence(request.id).unwrap();
            self.pause = 0;
            self.finished.push(Request { waited: self.step - request.arrived, ..request });
        }
    }
}

#[test]
fn nothing_leaks_and_nobody_starves_under_load() {
    let steps = std::env::var("PSA_LOAD_STEPS").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000);
    let config = CacheConfig {
        capacity: Capacity::Tokens(30 * 16),
        host: Some(Capacity::Tokens(400 * 16)),
        max_sequences: 24,
        max_tokens: Some(400),
        check_finite: false,
        ..CacheConfig::default()
    };
    let cache = KvCache::new(&Device::cpu(), SHAPE, config).unwrap();
    let empty = cache.pool_use();
    let noise = common::Tensor::random(Dtype::F16, 4096 + 64 * 400, 1.0, 5);
    let noise = noise.rows().bits().iter().map(|&x| f16::from_bits(x)).collect();
    let mut engine = Engine {
        cache,
        random: Random(1),
        step: 0,
        pause: 0,
        running: vec![],
        waiting: VecDeque::new(),
        finished: vec![],
        noise,
    };
    let begun = std::time::Instant::now();
    while engine.step < steps || !engine.running.is_empty() || !engine.waiting.is_empty() {
        let busy = !engine.waiting.is_empty() || engine.running.len() >= MOST_RUNNING;
        if engine.step < steps && engine.random.bits().is_multiple_of(2) && !busy {
            engine.arrive(300);
        }
        engine.bring_back();
        engine.decode();
        engine.step += 1;
        assert!(
            engine.step < 2 * steps + 1000,
            "{} wait and {} run for ever",
            engine.waiting.len(),
            engine.running.len()
        );
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(engine.cache.pool_use(), empty, "something leaked");
    let tail = |mut x: Vec<usize>| {
        x.sort_unstable();
        (x[x.len() / 2], x[x.len() * 99 / 100], x[x.len() - 1])
    };
    let swaps = tail(engine.finished.iter().map(|r| r.swaps).collect());
    let waits = tail(engine.finished.iter().map(|r| r.waited).collect());
    println!(
        "{} steps, {} requests, {:.0} steps/s; swaps median, p99, most: {swaps:?}; steps from arrival to end: {waits:?}; {:?}",
        engine.step,
        engine.finished.len(),
        engine.step as f64 / seconds,
        engine.cache.traffic()
    );
    assert!(engine.finished.len() * 20 > steps, "only {} finished", engine.finished.len());
    assert!(swaps.2 > 0, "the pool was never short, so this shows nothing");
    // Whoever is swapped out waits for older ones only, of which there are 6 with at most 60 steps each.
    assert!(waits.2 <= 7 * 60, "{waits:?}");
    // And may come back and be in the way again every 16 steps of those, or when one of the 6 has finished.
    assert!(swaps.2 <= 6 * 60 / PAUSE + 6, "{swaps:?}");
    assert!(swaps.1 <= 6, "a tail of preemptions: {swaps:?}");
}
