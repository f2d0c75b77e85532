//! A cache and its twin of the same history, which sees none of the bad calls.
//!
//! After every bad call both take the same token and decode; bits, selections, reports, lengths and pools must
//! be equal. The bad calls come in the middle of a life: sequences of unequal lengths, in slots that were
//! used before.

use half::f16;
use psa::{
    CacheConfig, Capacity, DecodePlan, Device, Dtype, Error, KvCache, Policy, Report, SequenceId, Shape,
};
use psa_tests::Rng;

pub const SHAPE: Shape = Shape { layers: 2, q_heads: 6, kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };
pub const TOKEN: usize = SHAPE.token_elements();
pub const QUERY: usize = SHAPE.query_elements();
pub const POLICY: Policy = Policy::Progressive { mass: 0.9 };

pub fn devices() -> [Device; 3] {
    [Device::cpu(), Device::reference(), Device::emulator()]
}

pub fn random(n: usize, seed: u64) -> Vec<f16> {
    let mut rng = Rng(seed);
    (0..n).map(|_| f16::from_f32(rng.normal())).collect()
}

/// A cache in the middle of its life.
pub struct Life {
    pub cache: KvCache,
    /// 130 and 40 tokens in both layers; the longest context is 160.
    pub sequences: [SequenceId; 2],
    pub removed: SequenceId,
    pub plan: DecodePlan,
    steps: u64,
}

/// What a step gave and what the cache is like afterwards.
#[derive(Debug, PartialEq)]
pub struct Moment {
    pub bits: Vec<u32>,
    pub selections: Vec<Vec<u32>>,
    pub read: Vec<(usize, usize, Vec<u32>)>,
}

impl Life {
    pub fn new(device: &Device) -> Life {
        let config = CacheConfig {
            // 56 slots: 9 and 3 blocks in 2 layers of 2 KV heads are in use from the start, 8 are free.
            capacity: Capacity::Tokens(14 * 16),
            max_sequences: 2,
            max_tokens: Some(160),
            ..CacheConfig::default()
        };
        let mut cache = KvCache::new(device, SHAPE, config).unwrap();
        // The place of a removed sequence: tables and slots that were used before.
        let removed = cache.add_sequence().unwrap();
        for layer in 0..SHAPE.layers {
            cache.append(removed, layer, &random(90 * TOKEN, 1), &random(90 * TOKEN, 2)).unwrap();
        }
        cache.remove_sequence(removed).unwrap();
        let sequences = [cache.add_sequence().unwrap(), cache.add_sequence().unwrap()];
        for (&id, tokens) in sequences.iter().zip([130, 40]) {
            for layer in 0..SHAPE.layers {
                let seed = (10 * tokens + layer) as u64;
                let (k, v) = (random(tokens * TOKEN, seed), random(tokens * TOKEN, seed + 5));
                cache.append(id, layer, &k, &v).unwrap();
            }
        }
        let plan = DecodePlan::new(&cache, &sequences, POLICY).unwrap().with_record();
        Life { cache, sequences, removed, plan, steps: 0 }
    }

    /// What can be seen of the cache without computing.
    pub fn state(&self) -> String {
        let lengths: Vec<_> = self
            .sequences
            .iter()
            .flat_map(|&id| (0..SHAPE.layers).map(move |layer| self.cache.layer_len(id, layer)))
            .collect();
        format!("{:?} {lengths:?}", self.cache.pool_use())
    }

    /// A valid step: a token for both sequences in one of the layers, and attention there.
    pub fn step(&mut self) -> Moment {
        let layer = (self.steps % 2) as usize;
        let seed = 1000 + 3 * self.steps;
        self.steps += 1;
        let (k, v, q) = (random(2 * TOKEN, seed), random(2 * TOKEN, seed + 1), random(2 * QUERY, seed + 2));
        self.cache.append_batch(layer, &self.sequences, &k, &v).unwrap();
        let (mut out, mut lse) = (vec![f32::NAN; 2 * QUERY], vec![f32::NAN; 2 * SHAPE.q_heads]);
        self.plan.attend_with_lse(&mut self.cache, layer, &q, &mut out, &mut lse).unwrap();
        assert!(out.iter().chain(&lse).all(|x| x.is_finite()));
        Moment {
            bits: out.iter().chain(&lse).map(|x| x.to_bits()).collect(),
            selections: (0..2)
                .flat_map(|b| (0..SHAPE.kv_heads).map(move |h| (b, h)))
                .map(|(b, h)| self.plan.selection(layer, b, h).unwrap().to_vec())
                .collect(),
            read: reads(&self.plan.report()),
        }
    }
}

fn reads(report: &Report) -> Vec<(usize, usize, Vec<u32>)> {
    let bits = |mass: &[f32]| mass.iter().map(|x| x.to_bits()).collect();
    report.heads.iter().map(|h| (h.blocks_read, h.topups, bits(&h.mass))).collect()
}

/// A cache and its twin, which sees none of the bad calls.
pub struct Twins {
    pub device: Device,
    tried: Life,
    untouched: Life,
}

impl Twins {
    pub fn new(device: &Device) -> Twins {
        Twins { device: device.clone(), tried: Life::new(device), untouched: Life::new(device) }
    }

    /// Makes a bad call, wants all of `expected` in the error's text, and compares the twins: at once, and
    /// after a valid step.
    pub fn refuses<T>(
        &mut self,
        what: &str,
        expected: &[&str],
        call: impl FnOnce(&mut Life) -> Result<T, Error>,
    ) {
        let what = format!("{}: {what}", self.device.name());
        let before = self.tried.state();
        let text = match call(&mut self.tried) {
            Ok(_) => panic!("{what}: accepted"),
            Err(error) => error.to_string(),
        };
        for part in expected {
            assert!(text.contains(part), "{what}: {part:?} is missing in: {text}");
        }
        assert_eq!(self.tried.state(), before, "{what}");
        assert_eq!(self.tried.step(), self.untouched.step(), "{what}: the next step");
        assert_eq!(self.tried.state(), self.untouched.state(), "{what}: after the next step");
    }
}

/// A test on every device, each with twins.
pub fn everywhere(test: impl Fn(&mut Twins)) {
    for device in devices() {
        test(&mut Twins::new(&device));
    }
}
