//! The certificate is never below the truth, whatever the keys.
//!
//! Contexts of adversarial keys (extreme scales, subnormals, equal keys, a huge key, values at rounding boundaries,
//! large offsets, ties), queries along a key or against it. A case is one query head of one step: what it can have
//! missed, as certified, against what it has missed in f64. `PSA_CERTIFICATE_CASES=1000000` runs a million.

mod common;

use common::{Random, Tensor};
use psa::{CacheConfig, Capacity, DecodePlan, Device, Dtype, Forced, KvCache, Mirror, Policy, Shape};

const MIRRORS: [Mirror; 7] = [
    Mirror::Bits1,
    Mirror::Bits2,
    Mirror::Bits4,
    Mirror::Bits8,
    Mirror::Nested,
    Mirror::Nested8,
    Mirror::Box,
];

fn cases() -> u64 {
    std::env::var("PSA_CERTIFICATE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000)
}

fn pick<T: Copy>(random: &mut Random, from: &[T]) -> T {
    from[(random.bits() % from.len() as u64) as usize]
}

/// Keys `[tokens, d]` of one of the kinds above.
fn keys(random: &mut Random, dtype: Dtype, tokens: usize, d: usize) -> Vec<f32> {
    let top = if dtype == Dtype::F16 { 65504.0 } else { 3.3e38f32 };
    let kind = random.bits() % 12;
    let scale = pick(random, &[1e-7, 1e-3, 0.1, 1.0, 1.0, 1.0, 10.0, 1000.0]);
    let offsets: Vec<f32> = (0..d).map(|_| 20.0 * scale * random.normal()).collect();
    let channels: Vec<f32> = (0..d).map(|_| (4.0 * random.normal()).exp2()).collect();
    let first: Vec<f32> = (0..d).map(|_| scale * random.normal()).collect();
    let special = random.bits() as usize % tokens;
    let mut values = Vec::with_capacity(tokens * d);
    for t in 0..tokens {
        for c in 0..d {
            let x = scale * random.normal();
            let value = match kind {
                0 => first[c],
                1 => x + offsets[c],
                2 => x * channels[c],
                3 => scale * pick(random, &[-1.0, 0.0, 0.5, 1.0]),
                4 if t == special => 0.9 * top * (random.normal()).signum(),
                5 => first[c] * (1.0 + (random.bits() % 2) as f32 / 1024.0),
                6 => f32::from_bits(random.bits() as u32 & 0xbfff_ffff) % top,
                7 => (random.bits() % 16) as f32 * scale,
                8 if t == special => 20.0 * x,
                9 => x * (t as f32 / tokens as f32),
                10 if t % 16 == special % 16 => first[c] * 4.0,
                _ => x,
            };
            values.push(if value.is_finite() { value.clamp(-top, top) } else { 0.0 });
        }
    }
    values
}

fn rounded(dtype: Dtype, values: &[f32]) -> Vec<f64> {
    let tensor = Tensor::new(dtype, values.iter().copied());
    tensor.rows().bits().iter().map(|&x| psa::widen(dtype, x) as f64).collect()
}

/// Share of the exact mass outside of `read`, for each query head.
fn missed(keys: &[f64], queries: &[f64], scale: f64, d: usize, read: &[u32]) -> Vec<f64> {
    let of_head = |q: &[f64]| {
        let scores: Vec<f64> =
            keys.chunks(d).map(|k| scale * k.iter().zip(q).map(|(k, q)| k * q).sum::<f64>()).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (mut unread, mut all) = (0.0, 0.0);
        for (t, score) in scores.iter().enumerate() {
            let mass = (score - top).exp();
            all += mass;
            unread += if read.contains(&((t / 16) as u32)) { 0.0 } else { mass };
        }
        unread / all
    };
    queries.chunks(d).map(of_head).collect()
}

#[test]
fn no_head_has_missed_more_than_certified_whatever_the_keys() {
    let mut random = Random(7);
    let (mut done, mut closed, mut context) = (0u64, 0u64, 0u64);
    while done < cases() {
        context += 1;
        let dtype = pick(&mut random, &[Dtype::F16, Dtype::Bf16]);
        let d = pick(&mut random, &[64, 64, 128]);
        let group = pick(&mut random, &[1, 2, 4]);
        let tokens = 1 + random.bits() as usize % 400;
        let shape = Shape { layers: 1, q_heads: group, kv_heads: 1, head_dim: d, dtype };
        let config = CacheConfig {
            capacity: Capacity::Tokens(tokens.next_multiple_of(16)),
            max_sequences: 1,
            mirror: pick(&mut random, &MIRRORS),
            quant_group: pick(&mut random, &[32, 64, 128]),
            unit: pick(&mut random, &[16, 16, 32]),
            forced: Forced { sink: (random.bits() % 2) as u32, recent: (random.bits() % 2) as u32 },
            ..CacheConfig::default()
        };
        let k = keys(&mut random, dtype, tokens, d);
        let v: Vec<f32> = (0..tokens * d).map(|_| random.normal()).collect();
        let (kt, vt) = (Tensor::new(dtype, k.iter().copied()), Tensor::new(dtype, v.iter().copied()));
        // The reference is slow: now and then, to see that it reads and certifies the same.
        let devices = if context.is_multiple_of(16) {
            vec![Device::cpu(), Device::reference()]
        } else {
            vec![Device::cpu()]
        };
        let mut caches: Vec<_> = devices
            .iter()
            .map(|device| {
                let mut cache = KvCache::new(device, shape, config).unwrap();
                let sequence = cache.add_sequence().unwrap();
                cache.append(sequence, 0, kt.rows(), vt.rows()).unwrap();
                (cache, sequence)
            })
            .collect();
        let exact = rounded(dtype, &k);
        for _ in 0..8 {
            let spread = pick(&mut random, &[1e-3, 0.3, 1.0, 1.0, 3.0, 30.0]);
            let along = random.bits() as usize % tokens;
            let q: Vec<f32> = (0..group * d)
                .map(|i| match context % 3 {
                    0 => k[along * d + i % d].clamp(-1e4, 1e4),
                    1 if !i.is_multiple_of(8) => 0.0,
                    _ => spread * random.normal(),
                })
                .collect();
            let qt = Tensor::new(dtype, q.iter().copied());
            let q = rounded(dtype, &q);
            for missed_at_most in [0.01f32, 0.05, 0.3] {
                let policy = Policy::Certified { missed: missed_at_most };
                let mut selections = vec![];
                for (cache, sequence) in &mut caches {
                    let mut plan = DecodePlan::new(cache, &[*sequence], policy).unwrap().with_record();
                    let mut out = vec![0.0; group * d];
                    plan.attend(cache, 0, qt.rows(), &mut out).unwrap();
                    let report = plan.report();
                    let head = &report.heads[0];
                    let read = plan.selection(0, 0, 0).unwrap();
                    let truth = missed(&exact, &q, (1.0 / (d as f32).sqrt()) as f64, d, read);
                    let bounds = head.missed_bound.as_ref().unwrap();
                    for (truth, &bound) in truth.iter().zip(bounds) {
                        // The truth is a sum in f64: a few u = 2^-53 for each of its tokens, of scores up to
                        // 1e6, and so 1e-9 of itself.
                        assert!(
                            *truth <= bound as f64 * (1.0 + 1e-9),
                            "{}, context {context} of {tokens} tokens, {config:?}, {dtype}, {policy}: missed {truth}, \
                             certified {bound}, {} of {} blocks",
                            cache.device_name(),
                            head.blocks_read,
                            head.blocks_total
                        );
                        assert!(bound <= missed_at_most, "certified {bound} of {missed_at_most}");
                    }
                    done += group as u64;
                    closed += if head.blocks_read < head.blocks_total { group as u64 } else { 0 };
                    selections.push(read.to_vec());
                }
                assert!(selections.windows(2).all(|w| w[0] == w[1]), "cpu and reference: {selections:?}");
            }
        }
    }
    assert!(closed > done / 20, "{closed} of {done} bounds closed: too few to mean much");
}

#[test]
fn certified_needs_finite_keys_and_a_mirror_that_bounds() {
    let shape = Shape { layers: 1, q_heads: 1, kv_heads: 1, head_dim: 64, dtype: Dtype::F16 };
    let policy = Policy::Certified { missed: 0.05 };
    let error = |config: CacheConfig, device: &Device| {
        let mut cache = KvCache::new(device, shape, config).unwrap();
        let sequence = cache.add_sequence().unwrap();
        DecodePlan::new(&cache, &[sequence], policy).unwrap_err().to_string()
    };
    let unchecked = CacheConfig { check_finite: false, ..CacheConfig::default() };
    assert!(error(unchecked, &Device::cpu()).contains("check_finite = true"));
    let mean = CacheConfig { mirror: Mirror::Mean, ..CacheConfig::default() };
    assert!(error(mean, &Device::cpu()).contains("bounds scores"));
    assert!(error(CacheConfig::default(), &Device::emulator()).contains("does not run on emulator"));
}

/// What `certified` says of the output holds against dense attention in f64, and is not far from it.
#[test]
fn no_output_is_farther_off_than_bounded() {
    let shape = Shape { layers: 1, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };
    let lengths = [700, 1, 90, 2000];
    let batch = common::Batch::random(shape, &lengths, 3);
    for (mirror, missed) in [(Mirror::Bits8, 0.05), (Mirror::Nested8, 0.3), (Mirror::Bits4, 0.2)] {
        for device in [Device::cpu(), Device::reference()] {
            let (mut cache, ids) = batch.cache(&device, mirror);
            let mut plan = DecodePlan::new(&cache, &ids, Policy::Certified { missed }).unwrap();
            let mut dense = DecodePlan::new(&cache, &ids, Policy::Dense).unwrap();
            let q = batch.queries(&[0, 1, 2, 3]);
            let (mut out, mut whole) = (vec![0.0f32; 16 * 64], vec![0.0f32; 16 * 64]);
            let unready = plan.output_bounds(&mut cache, 0, &out).unwrap_err().to_string();
            assert!(unready.contains("call attend first"), "{unready}");
            plan.attend(&mut cache, 0, q.rows(), &mut out).unwrap();
            dense.attend(&mut cache, 0, q.rows(), &mut whole).unwrap();
            let bounds = plan.output_bounds(&mut cache, 0, &out).unwrap();
            assert_eq!(
                bounds,
                plan.output_bounds(&mut cache, 0, &out).unwrap(),
                "a second look sees the same"
            );
            let mut closed = 0;
            for (row, &bound) in bounds.iter().enumerate() {
                let pairs = out[row * 64..][..64].iter().zip(&whole[row * 64..][..64]);
                let off = pairs.map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
                // f32 attention twice: sums of 2,000 weights, values below 5; 2,000 * 2^-24 * 5 in each of 64 channels,
                // and scores a few 1e-6 off.
                assert!(off <= bound + 2e-2, "{mirror} {row}: {off} {bound}");
                closed += (bound > 0.0) as usize;
                let head = &plan.report().heads[row / 2];
                assert_eq!(bound == 0.0, head.blocks_read == head.blocks_total, "{row}");
                // The share missed of at most the whole range of normal values, +-4 in 64 channels.
                assert!(bound <= missed * 8.0 * 8.0 * 1.3, "{mirror} {row}: {bound}");
            }
            assert!(closed >= 4, "{mirror}: {closed}");
            let short = plan.output_bounds(&mut cache, 0, &out[1..]).unwrap_err().to_string();
            assert!(short.contains("out has 1023 elements, expected 1024"), "{short}");
            let none = dense.output_bounds(&mut cache, 0, &whole).unwrap_err().to_string();
            assert!(none.contains("dense") && none.contains("certified:E"), "{none}");
        }
    }
}
