//! The pipeline's promises: the host is in no step's way, and a host tier changes no bit under any schedule.
//!
//! `PSA_SCHEDULES=10000 cargo test --release -p psa --test pipeline schedules` runs that many schedules.

mod common;

use common::Tensor;
use psa::driver::{Emulated, EmulatedOptions, Order, StreamOptions};
use psa::pipeline::{DecodePipeline, PipelineConfig, PipelineStats, Scheme, StepResults};
use psa::{
    Budget, CacheConfig, Capacity, DecodePlan, Device, Dtype, Error, KvCache, Mirror, Policy, Rows, Shape,
};

const SHAPE: Shape = Shape { layers: 2, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };
const PROGRESSIVE: Policy = Policy::Progressive { mass: 0.9 };

/// Prompts and steps of a batch.
struct Story {
    prompts: Vec<usize>,
    /// `[layers, tokens, kv_heads, head_dim]` of each sequence.
    k: Vec<Tensor>,
    v: Vec<Tensor>,
    /// q, k, v of each step: `[layers, batch, heads, head_dim]`.
    steps: Vec<[Tensor; 3]>,
}

impl Story {
    fn new(prompts: &[usize], steps: usize, seed: u64) -> Story {
        let Shape { layers, q_heads, kv_heads, head_dim, dtype } = SHAPE;
        let batch = prompts.len();
        let tensor = |n, spread, salt: u64| Tensor::random(dtype, n, spread, seed * 1000 + salt);
        let prompt = |i: usize, salt| tensor(layers * prompts[i] * kv_heads * head_dim, 1.0, salt + i as u64);
        let step = |i: u64| {
            let (q, kv) = (layers * batch * q_heads * head_dim, layers * batch * kv_heads * head_dim);
            [tensor(q, 2.0, 300 + 3 * i), tensor(kv, 1.0, 301 + 3 * i), tensor(kv, 1.0, 302 + 3 * i)]
        };
        Story {
            prompts: prompts.to_vec(),
            k: (0..batch).map(|i| prompt(i, 100)).collect(),
            v: (0..batch).map(|i| prompt(i, 200)).collect(),
            steps: (0..steps as u64).map(step).collect(),
        }
    }

    fn config(&self) -> PipelineConfig {
        let longest = self.prompts.iter().max().unwrap() + self.steps.len();
        PipelineConfig { sequences: self.prompts.len(), max_tokens: longest, ..PipelineConfig::default() }
    }

    fn prefilled(&self, options: StreamOptions, policy: Policy, config: PipelineConfig) -> DecodePipeline {
        let driver = Emulated::new(EmulatedOptions::default()).unwrap().with_streams(options);
        let mut pipeline = DecodePipeline::new(Box::new(driver), SHAPE, policy, config).unwrap();
        for (i, (k, v)) in self.k.iter().zip(&self.v).enumerate() {
            pipeline.prefill(i, k.rows(), v.rows()).unwrap();
        }
        pipeline
    }

    fn try_run(
        &self,
        options: StreamOptions,
        policy: Policy,
        config: PipelineConfig,
    ) -> Result<(Vec<StepResults>, PipelineStats), Error> {
        let mut pipeline = self.prefilled(options, policy, config);
        let step = |[q, k, v]: &[Tensor; 3]| {
            pipeline.step(q.rows(), k.rows(), v.rows())?;
            pipeline.results()
        };
        let results = self.steps.iter().map(step).collect::<Result<_, _>>()?;
        Ok((results, pipeline.stats()))
    }

    fn run(&self, order: Order, policy: Policy, config: PipelineConfig) -> (Vec<StepResults>, PipelineStats) {
        self.try_run(StreamOptions { order, ..StreamOptions::default() }, policy, config).unwrap()
    }

    /// The same by a cache and a plan, layer after layer.
    fn by_cache(&self, policy: Policy) -> Vec<StepResults> {
        let Shape { layers, q_heads, kv_heads, head_dim, .. } = SHAPE;
        let config = CacheConfig {
            capacity: Capacity::Tokens(self.prompts.iter().map(|n| n + 64).sum()),
            max_sequences: self.prompts.len(),
            max_tokens: Some(self.config().max_tokens),
            mirror: Mirror::Nested,
            ..CacheConfig::default()
        };
        let mut cache = KvCache::new(&Device::emulator(), SHAPE, config).unwrap();
        let batch = self.prompts.len();
        let sequences: Vec<_> = (0..batch).map(|_| cache.add_sequence().unwrap()).collect();
        let token = kv_heads * head_dim;
        for (i, &sequence) in sequences.iter().enumerate() {
            let n = self.prompts[i] * token;
            for layer in 0..layers {
                let part = |t: &Tensor| -> Vec<u16> { t.part(layer * n, (layer + 1) * n).bits().to_vec() };
                let (k, v) = (part(&self.k[i]), part(&self.v[i]));
                let rows =
                    |x: &[u16]| -> Vec<half::f16> { x.iter().map(|&b| half::f16::from_bits(b)).collect() };
                cache.append(sequence, layer, &rows(&k), &rows(&v)).unwrap();
            }
        }
        let mut plan = DecodePlan::new(&cache, &sequences, policy).unwrap();
        let (q_size, kv_size) = (batch * q_heads * head_dim, batch * token);
        let step = |[q, k, v]: &[Tensor; 3]| {
            let mut results = StepResults::default();
            for layer in 0..layers {
                let of = |t: &'static str, n: usize| (t, layer * n, (layer + 1) * n);
                let (_, a, b) = of("kv", kv_size);
                cache.append_batch(layer, &sequences, k.part(a, b), v.part(a, b)).unwrap();
                let (mut out, mut lse) = (vec![0.0; q_size], vec![0.0; batch * q_heads]);
                let (_, a, b) = of("q", q_size);
                plan.attend_with_lse(&mut cache, layer, q.part(a, b), &mut out, &mut lse).unwrap();
                results.out.extend(out);
                results.lse.extend(lse);
                for head in plan.heads(layer) {
                    results.read.extend([head.blocks_read as u32, head.topups as u32]);
                    results.mass.extend(head.mass);
                }
            }
            results
        };
        self.steps.iter().map(step).collect()
    }
}

fn same(a: &[StepResults], b: &[StepResults]) -> bool {
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            bits(&a.out) == bits(&b.out)
                && bits(&a.lse) == bits(&b.lse)
                && a.read == b.read
                && bits(&a.mass) == bits(&b.mass)
        })
}

/// A small device: the open groups, and some more than a layer's demand.
fn small(config: PipelineConfig, share: f64) -> PipelineConfig {
    let every = SHAPE.layers * SHAPE.kv_heads * config.sequences * config.max_tokens.div_ceil(64) * 4;
    PipelineConfig {
        device_slots: Some((every as f64 * share) as usize),
        chunk: 4,
        copy_run: 2,
        ahead: 4,
        ..config
    }
}

#[test]
fn a_resident_step_is_that_of_the_cache_bit_for_bit() {
    // At least 128 tokens each: a plan by mass reads shorter contexts whole, the pipeline ranks them.
    let story = Story::new(&[200, 140], 4, 1);
    for policy in [PROGRESSIVE, Policy::TopK(Budget::Fraction(0.3)), Policy::Dense] {
        let (results, _) = story.run(Order::Timed, policy, story.config());
        let mut expected = story.by_cache(policy);
        // A plan that reads a whole row by definition believes 1; one that ranks it first believes what it computed.
        expected.iter_mut().zip(&results).for_each(|(cache, own)| cache.mass.clone_from(&own.mass));
        assert!(same(&results, &expected), "{policy}");
    }
}

#[test]
fn a_resident_step_neither_waits_nor_allocates_and_is_a_graph() {
    let story = Story::new(&[130], 6, 2);
    let mut pipeline = story.prefilled(StreamOptions::default(), PROGRESSIVE, story.config());
    let mut expected = story.run(Order::Timed, PROGRESSIVE, story.config()).0;
    let [q, k, v] = &story.steps[0];
    pipeline.step(q.rows(), k.rows(), v.rows()).unwrap();
    pipeline.results().unwrap();
    for (i, [q, k, v]) in story.steps.iter().enumerate().skip(1) {
        if i == 3 {
            pipeline.capture().unwrap();
        }
        let before = pipeline.counters();
        pipeline.step(q.rows(), k.rows(), v.rows()).unwrap();
        let did = pipeline.counters() - before;
        assert_eq!((did.host_syncs, did.allocations), (0, 0), "step {i}");
        // append, and five of the decode step: two looks at the nested mirror, plan, attend, merge.
        assert_eq!(did.launches as usize, SHAPE.layers * (1 + 5), "step {i}");
        let results = pipeline.results().unwrap();
        assert!(same(&[results], &[expected.remove(1)]), "step {i}");
    }
}

#[test]
fn steps_can_be_queued_one_behind_the_other() {
    // More than the host may be ahead: it looks at a flag, and still waits for no stream.
    let story = Story::new(&[70], 7, 3);
    for order in [Order::Timed, Order::Seeded(5)] {
        let expected = story.run(order, PROGRESSIVE, story.config()).0;
        let options = StreamOptions { order, ..StreamOptions::default() };
        let mut pipeline = story.prefilled(options, PROGRESSIVE, story.config());
        let before = pipeline.counters().host_syncs;
        for [q, k, v] in &story.steps {
            pipeline.step(q.rows(), k.rows(), v.rows()).unwrap();
        }
        assert_eq!(pipeline.counters().host_syncs, before);
        let last = pipeline.results().unwrap();
        assert!(same(&[last], &expected[6..]));
    }
}

#[test]
fn a_host_tier_changes_no_bit() {
    let story = Story::new(&[400, 250], 8, 4);
    for policy in [PROGRESSIVE, Policy::Progressive { mass: 0.6 }, Policy::TopK(Budget::Fraction(0.3))] {
        let expected = story.run(Order::Timed, policy, story.config()).0;
        for scheme in [Scheme::Pipelined, Scheme::Serial] {
            let config = PipelineConfig { scheme, ..small(story.config(), 0.5) };
            let (results, stats) = story.run(Order::Timed, policy, config);
            assert!(same(&results, &expected), "{policy} {scheme:?} {stats:?}");
            // Otherwise nothing was tested.
            assert!(stats.misses > 20 && stats.saved > 0, "{policy} {scheme:?} {stats:?}");
            assert!(stats.by_copy > 0 && stats.by_gather > 0, "{policy} {scheme:?} {stats:?}");
            if scheme == Scheme::Pipelined {
                assert!(stats.ahead_used > 0, "{policy} {stats:?}");
            }
        }
    }
    let (_, stats) = story.run(Order::Timed, PROGRESSIVE, small(story.config(), 0.5));
    assert!(stats.iterations > 0, "merge went on after a fetch: {stats:?}");
}

fn schedules() -> u64 {
    std::env::var("PSA_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(24)
}

#[test]
fn all_schedules_give_the_bits_of_the_resident_step() {
    let story = Story::new(&[190], 2, 5);
    let expected = story.run(Order::Timed, PROGRESSIVE, story.config()).0;
    for seed in 0..schedules() {
        let config = PipelineConfig {
            chunk: 1 + seed as usize % 5,
            ahead: seed as usize % 4 * 3,
            ..small(story.config(), 0.8)
        };
        let (results, stats) = story.run(Order::Seeded(seed), PROGRESSIVE, config);
        assert!(same(&results, &expected), "seed {seed}: {stats:?}");
    }
}

#[test]
fn every_wait_is_needed_and_its_loss_is_reported() {
    // 394 + 6 tokens: a block fills and is saved.
    let story = Story::new(&[394], 8, 6);
    // 2 bits: the poorer estimate makes merge go on more often, into blocks that were fetched ahead.
    let config = PipelineConfig { copy_run: 1, mirror: Mirror::Bits2, ..small(story.config(), 0.6) };
    for wait in ["planned", "appended", "fetched", "fetched ahead", "merged"] {
        for order in [Order::Timed, Order::Seeded(1), Order::Seeded(2)] {
            let options = StreamOptions { order, leave_out: Some(wait), ..StreamOptions::default() };
            let text = match story.try_run(options, PROGRESSIVE, config) {
                Ok((_, stats)) => panic!("nothing noticed that {wait:?} is missing: {stats:?}"),
                Err(error) => error.to_string(),
            };
            // Under a schedule that reads too early, the emulator may see memory that was never written first.
            assert!(text.contains("hazard") || order != Order::Timed, "{wait}: {text}");
        }
    }
    // All of them there: no report.
    story.run(Order::Seeded(1), PROGRESSIVE, config);
}

#[test]
fn a_device_too_small_for_a_layer_says_so_and_the_step_can_be_tried_again() {
    let story = Story::new(&[400], 1, 7);
    let least = SHAPE.layers * SHAPE.kv_heads * 4 + SHAPE.kv_heads;
    let refused = |slots| {
        let driver = Box::new(Emulated::new(EmulatedOptions::default()).unwrap());
        let config = PipelineConfig { device_slots: Some(slots), ..story.config() };
        DecodePipeline::new(driver, SHAPE, PROGRESSIVE, config).err()
    };
    let text = refused(least - 1).unwrap().to_string();
    assert!(text.contains(&least.to_string()), "{text}");
    assert!(refused(least).is_none());

    let config = PipelineConfig { device_slots: Some(30), ..story.config() };
    let mut pipeline = story.prefilled(StreamOptions::default(), Policy::Dense, config);
    let [q, k, v] = &story.steps[0];
    for _ in 0..2 {
        let error = pipeline.step(q.rows(), k.rows(), v.rows()).unwrap_err();
        assert!(matches!(error, Error::PoolExhausted { needed, .. } if needed > 30), "{error}");
        assert_eq!(pipeline.lens(), [400]);
    }
}

#[test]
fn wrong_use_is_an_error_with_the_values() {
    let story = Story::new(&[100], 1, 8);
    let mut pipeline = story.prefilled(StreamOptions::default(), PROGRESSIVE, story.config());
    let [q, k, v] = &story.steps[0];
    assert!(matches!(pipeline.layer(9), Err(Error::UnknownLayer { layer: 9, layers: 2 })));
    assert!(pipeline.layer(0).unwrap_err().to_string().contains("begin_step"));
    assert!(pipeline.step(k.rows(), k.rows(), v.rows()).is_err(), "q of k's length");
    let inputs = [pipeline.inputs(0).unwrap(), pipeline.inputs(1).unwrap()];
    for region in inputs.into_iter().flatten() {
        pipeline.driver_mut().upload(region.address(), &vec![0; region.bytes() as usize]).unwrap();
    }
    assert!(pipeline.inputs(2).is_none());
    pipeline.begin_step().unwrap();
    assert!(pipeline.begin_step().is_err() && pipeline.layer(1).is_err() && pipeline.end_step().is_err());
    pipeline.layer(0).unwrap();
    pipeline.layer(1).unwrap();
    pipeline.end_step().unwrap();
    // 101 tokens are all that there is room for.
    let error = pipeline.step(q.rows(), k.rows(), v.rows()).unwrap_err();
    assert!(matches!(error, Error::ContextTooLong { tokens: 102, limit: 101 }), "{error}");
    let rows: Rows<'_> = k.rows();
    assert!(pipeline.prefill(3, rows, v.rows()).unwrap_err().to_string().contains("sequence 3"));
    let driver = || Box::new(Emulated::new(EmulatedOptions::default()).unwrap());
    for config in [
        PipelineConfig { sequences: 0, ..story.config() },
        PipelineConfig { max_tokens: 0, ..story.config() },
        PipelineConfig { chunk: 0, ..story.config() },
        PipelineConfig { mirror: Mirror::Bits8, ..story.config() },
    ] {
        assert!(DecodePipeline::new(driver(), SHAPE, PROGRESSIVE, config).is_err(), "{config:?}");
    }
}
