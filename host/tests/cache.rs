//! Nothing silent: bad input is a typed error with the values in it, and changes nothing.

mod common;

use common::{Batch, Tensor, step};
use half::{bf16, f16};
use psa::backend::{AppendStep, Backend, DecodeResult, DecodeStep};
use psa::cpu::Cpu;
use psa::pool::{TableChange, Tables};
use psa::{Budget, CacheConfig, Capacity, DecodePlan, Device, Dtype, Error, KvCache, Mirror, Policy, Shape};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const SHAPE: Shape = Shape { layers: 2, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };
const TOKEN: usize = 2 * 64;

fn cache(tokens: usize) -> KvCache {
    let config = CacheConfig { capacity: Capacity::Tokens(tokens), ..CacheConfig::default() };
    KvCache::new(&Device::cpu(), SHAPE, config).unwrap()
}

#[test]
fn an_append_that_does_not_fit_changes_nothing() {
    let shape = Shape { layers: 1, ..SHAPE };
    let batch = Batch::random(shape, &[100, 50], 1); // 7 and 4 blocks of 2 heads: a full pool
    let config = CacheConfig { max_tokens: Some(1000), ..batch.config(Mirror::Bits2) };
    let mut cache = KvCache::new(&Device::cpu(), shape, config).unwrap();
    let sequences = [0, 1].map(|i| {
        let sequence = cache.add_sequence().unwrap();
        cache.append(sequence, 0, batch.k[i].rows(), batch.v[i].rows()).unwrap();
        sequence
    });
    let before = step(&batch, &mut cache, &sequences, &[0, 1], Policy::Dense).bits();
    let pool = cache.pool_use();
    assert_eq!(pool.free_slots, 0);

    let more = Tensor::random(Dtype::F16, 12 * TOKEN, 1.0, 9);
    // The open block takes 12 tokens; then one more token needs a block of each head.
    cache.append(sequences[0], 0, more.rows(), more.rows()).unwrap();
    let one = more.part(0, TOKEN);
    let error = cache.append(sequences[0], 0, one, one).unwrap_err();
    assert_eq!(error, Error::PoolExhausted { needed: 2, free: 0, evictable: 8 });
    // A batch gets its tokens as a whole or not at all: the second sequence has room.
    let two = more.part(0, 2 * TOKEN);
    let error = cache.append_batch(0, &sequences, two, two).unwrap_err();
    assert_eq!(error, Error::PoolExhausted { needed: 2, free: 0, evictable: 0 });
    assert_eq!(cache.layer_len(sequences[0], 0), Ok(112));
    assert_eq!(cache.layer_len(sequences[1], 0), Ok(50));
    assert_eq!(cache.pool_use(), pool);
    // The other sequence still reads what it read.
    let after = step(&batch, &mut cache, &sequences, &[1], Policy::Dense).out;
    let row = shape.query_elements();
    assert!(after.iter().map(|x| x.to_bits()).eq(before[row..2 * row].iter().copied()));
}

/// A cpu whose appends fail while the counter is above zero; they write first.
struct Failing(Cpu, Arc<AtomicUsize>);

impl Backend for Failing {
    fn name(&self) -> String {
        "failing".into()
    }
    fn tables_changed(&mut self, tables: &Tables, changes: &[TableChange]) -> Result<(), Error> {
        self.0.tables_changed(tables, changes)
    }
    fn append(&mut self, tables: &Tables, step: &AppendStep<'_>) -> Result<(), Error> {
        self.0.append(tables, step)?;
        match self.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)) {
            Ok(_) => {
                Err(Error::Backend { device: self.name(), call: "append".into(), detail: "injected".into() })
            }
            Err(_) => Ok(()),
        }
    }
    fn decode(
        &mut self,
        tables: &Tables,
        step: &DecodeStep<'_>,
        result: &mut DecodeResult<'_>,
    ) -> Result<(), Error> {
        self.0.decode(tables, step, result)
    }
}

#[test]
fn after_a_failed_device_call_the_cache_is_unchanged_and_a_retry_gives_the_same_bits() {
    let shape = Shape { layers: 1, ..SHAPE };
    let batch = Batch::random(shape, &[200], 3);
    let policy = Policy::Progressive { mass: 0.8 };
    let (mut good, sequences) = batch.cache(&Device::cpu(), Mirror::Bits2);
    let expected = step(&batch, &mut good, &sequences, &[0], policy).bits();

    let failures = Arc::new(AtomicUsize::new(0));
    let counter = failures.clone();
    let device =
        Device::from_factory("failing", move |spec| Ok(Box::new(Failing(Cpu::new(spec)?, counter.clone()))));
    let mut cache = KvCache::new(&device, shape, batch.config(Mirror::Bits2)).unwrap();
    let sequence = cache.add_sequence().unwrap();
    let mut from = 0;
    for to in [60, 70, 200] {
        let (k, v) = (batch.k[0].part(from * TOKEN, to * TOKEN), batch.v[0].part(from * TOKEN, to * TOKEN));
        let pool = cache.pool_use();
        failures.store(2, Ordering::SeqCst);
        for _ in 0..2 {
            assert!(matches!(cache.append(sequence, 0, k, v), Err(Error::Backend { .. })));
            assert_eq!((cache.pool_use(), cache.len(sequence)), (pool, Ok(from)));
        }
        cache.append(sequence, 0, k, v).unwrap();
        from = to;
    }
    assert_eq!(step(&batch, &mut cache, &[sequence], &[0], policy).bits(), expected);
}

#[test]
fn values_that_are_not_finite_are_refused_with_their_index() {
    let mut cache = cache(64);
    let sequence = cache.add_sequence().unwrap();
    let good = vec![f16::ONE; 3 * TOKEN];
    let mut bad = good.clone();
    bad[130] = f16::NAN;
    assert_eq!(cache.append(sequence, 0, &bad, &good), Err(Error::NonFinite { tensor: "k", index: 130 }));
    bad[7] = f16::NEG_INFINITY;
    assert_eq!(cache.append(sequence, 0, &good, &bad), Err(Error::NonFinite { tensor: "v", index: 7 }));
    assert_eq!(cache.layer_len(sequence, 0), Ok(0));
    assert_eq!(cache.pool_use().free_slots, cache.pool_use().slots);

    let mut plan = DecodePlan::new(&cache, &[sequence], Policy::Dense).unwrap();
    let mut q = vec![f16::ONE; 4 * 64];
    q[200] = f16::INFINITY;
    let mut out = vec![0.0; 4 * 64];
    assert_eq!(plan.attend(&mut cache, 0, &q, &mut out), Err(Error::NonFinite { tensor: "q", index: 200 }));
    assert!(plan.report().heads.is_empty());
}

#[test]
fn without_the_check_non_finite_values_stay_in_their_own_sequence() {
    for mirror in [Mirror::Bits2, Mirror::Box] {
        let config = CacheConfig { check_finite: false, mirror, ..CacheConfig::default() };
        let shape = Shape { layers: 1, ..SHAPE };
        let policy = if mirror == Mirror::Box {
            Policy::Quest(Budget::Blocks(4))
        } else {
            Policy::Progressive { mass: 0.9 }
        };
        for bad in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
            for device in [Device::cpu(), Device::reference()] {
                let mut cache = KvCache::new(&device, shape, config).unwrap();
                let (a, b) = (cache.add_sequence().unwrap(), cache.add_sequence().unwrap());
                cache.append(a, 0, &vec![bad; 200 * TOKEN], &vec![bad; 200 * TOKEN]).unwrap();
                cache.append(b, 0, &vec![f16::ONE; 200 * TOKEN], &vec![f16::ONE; 200 * TOKEN]).unwrap();
                let mut plan = DecodePlan::new(&cache, &[a, b], policy).unwrap();
                let mut q = vec![f16::ONE; 2 * 4 * 64];
                q[..256].fill(bad);
                let mut out = vec![0.0; 2 * 4 * 64];
                plan.attend(&mut cache, 0, &q, &mut out).unwrap();
                assert!(out[256..].iter().all(|x| (x - 1.0).abs() < 1e-5), "{bad} on {}", device.name());

                // Slots that held it are reused; what lies beyond the new length is not read.
                cache.remove_sequence(a).unwrap();
                let c = cache.add_sequence().unwrap();
                cache.append(c, 0, &vec![f16::ONE; 3 * TOKEN], &vec![f16::ONE; 3 * TOKEN]).unwrap();
                let mut plan = DecodePlan::new(&cache, &[c], policy).unwrap();
                plan.attend(&mut cache, 0, &q[256..], &mut out[..256]).unwrap();
                assert!(out[..256].iter().all(|x| (x - 1.0).abs() < 1e-5), "{bad} on {}", device.name());
            }
        }
    }
}

#[test]
fn layers_grow_one_after_the_other_within_a_step() {
    let mut cache = cache(256);
    let sequence = cache.add_sequence().unwrap();
    let mut plan = DecodePlan::new(&cache, &[sequence], Policy::Dense).unwrap();
    let q = vec![f16::ONE; 4 * 64];
    let mut out = vec![0.0; 4 * 64];
    for token in 1..=20 {
        for layer in 0..2 {
            let v = vec![f16::from_f32(layer as f32 + 1.0); TOKEN];
            cache.append(sequence, layer, &vec![f16::ONE; TOKEN], &v).unwrap();
            assert_eq!(cache.len(sequence), Ok(token - 1 + layer));
            plan.attend(&mut cache, layer, &q, &mut out).unwrap();
            assert!(out.iter().all(|x| (x - (layer as f32 + 1.0)).abs() < 1e-5));
        }
    }
    let report = plan.report();
    assert_eq!(report.heads.len(), 4);
    let places: Vec<_> = report.heads.iter().map(|h| (h.layer, h.entry, h.kv_head, h.blocks_total)).collect();
    assert_eq!(places, [(0, 0, 0, 2), (0, 0, 1, 2), (1, 0, 0, 2), (1, 0, 1, 2)]);
}

#[test]
fn an_empty_sequence_gives_zeros_and_minus_infinity() {
    for device in [Device::cpu(), Device::reference()] {
        let mut cache = KvCache::new(&device, SHAPE, CacheConfig::default()).unwrap();
        let sequence = cache.add_sequence().unwrap();
        for policy in [Policy::Dense, Policy::Progressive { mass: 0.9 }, Policy::Oracle { mass: 0.9 }] {
            let mut plan = DecodePlan::new(&cache, &[sequence], policy).unwrap();
            let (mut out, mut lse) = (vec![1.0; 256], vec![1.0; 4]);
            plan.attend_with_lse(&mut cache, 0, &vec![f16::ONE; 256], &mut out, &mut lse).unwrap();
            assert!(out.iter().all(|&x| x == 0.0) && lse.iter().all(|&x| x == f32::NEG_INFINITY));
        }
    }
}

#[test]
fn mismatches_are_refused_with_the_values() {
    let mut cache = cache(64);
    let sequence = cache.add_sequence().unwrap();
    let good = vec![f16::ONE; TOKEN];
    let text = |r: Result<(), Error>| r.unwrap_err().to_string();

    let other = vec![bf16::ONE; TOKEN];
    assert!(text(cache.append(sequence, 0, &other, &good)).contains("k is bf16, but the cache holds f16"));
    let short = text(cache.append(sequence, 0, &good[1..], &good[..]));
    assert!(
        short.contains("k has 127 elements, expected 0 = [tokens = 0, kv_heads = 2, head_dim = 64]"),
        "{short}"
    );
    assert!(
        text(cache.append(sequence, 0, &good, &vec![f16::ONE; 2 * TOKEN]))
            .contains("v has 256 elements, expected 128")
    );
    assert!(
        text(cache.append(sequence, 2, &good, &good)).contains("layer 2 does not exist, the cache has 2")
    );
    assert!(text(cache.append_batch(0, &[sequence, sequence], &good, &good)).contains("more than once"));
    assert!(
        text(cache.append(sequence, 0, &vec![f16::ONE; 65 * TOKEN], &vec![f16::ONE; 65 * TOKEN]))
            .contains("65 tokens")
    );

    let mut plan = DecodePlan::new(&cache, &[sequence], Policy::Dense).unwrap();
    let (q, mut out) = (vec![f16::ONE; 256], vec![0.0; 256]);
    assert!(text(plan.attend(&mut cache, 0, &q[1..], &mut out)).contains("q has 255 elements, expected 256"));
    assert!(text(plan.attend(&mut cache, 0, &q, &mut out[1..])).contains("out has 255 elements"));
    assert!(text(plan.attend(&mut cache, 9, &q, &mut out)).contains("layer 9"));
    let mut stranger = KvCache::new(&Device::cpu(), SHAPE, CacheConfig::default()).unwrap();
    assert_eq!(plan.attend(&mut stranger, 0, &q, &mut out), Err(Error::ForeignPlan));
    cache.remove_sequence(sequence).unwrap();
    assert!(text(plan.attend(&mut cache, 0, &q, &mut out)).contains("was removed"));
    assert!(DecodePlan::new(&cache, &[sequence], Policy::Dense).is_err());
    assert!(cache.remove_sequence(sequence).is_err());
}

#[test]
fn policies_that_a_cache_cannot_run_are_refused_when_the_plan_is_made() {
    let mut cache = cache(64);
    let sequence = cache.add_sequence().unwrap();
    let error = DecodePlan::new(&cache, &[sequence], Policy::Quest(Budget::Blocks(1))).unwrap_err();
    assert!(error.to_string().contains("create the cache with the box mirror"), "{error}");
    let error = DecodePlan::new(&cache, &[sequence], Policy::Progressive { mass: f32::NAN }).unwrap_err();
    assert!(matches!(error, Error::Policy { .. }));

    let device = Device::from_factory("failing", |spec| {
        Ok(Box::new(Failing(Cpu::new(spec)?, Arc::new(AtomicUsize::new(0)))))
    });
    let config = CacheConfig { mirror: Mirror::Box, ..CacheConfig::default() };
    let mut cache = KvCache::new(&device, SHAPE, config).unwrap();
    let sequence = cache.add_sequence().unwrap();
    let error = DecodePlan::new(&cache, &[sequence], Policy::Oracle { mass: 0.9 }).unwrap_err();
    assert!(error.to_string().contains("use the cpu or reference device"), "{error}");
    let error = DecodePlan::new(&cache, &[sequence], Policy::Progressive { mass: 0.9 }).unwrap_err();
    assert!(error.to_string().contains("2 or 4 bits"), "{error}");
}

#[test]
fn configurations_that_make_no_sense_are_refused() {
    let new =
        |shape, config| KvCache::new(&Device::cpu(), shape, config).map(|_| ()).unwrap_err().to_string();
    let config = CacheConfig::default();
    assert!(new(Shape { head_dim: 80, ..SHAPE }, config).contains("head_dim = 80"));
    assert!(new(SHAPE, CacheConfig { capacity: Capacity::Tokens(0), ..config }).contains("more capacity"));
    assert!(new(SHAPE, CacheConfig { capacity: Capacity::Bytes(1000), ..config }).contains("more capacity"));
    assert!(new(SHAPE, CacheConfig { capacity: Capacity::Tokens(usize::MAX), ..config }).contains("2^31"));
    assert!(new(SHAPE, CacheConfig { max_sequences: 0, ..config }).contains("max_sequences = 0"));
    assert!(new(SHAPE, CacheConfig { max_tokens: Some(3_000_000), ..config }).contains("2097152"));
}

#[test]
fn a_capacity_in_bytes_is_kept() {
    let bytes = 10 << 20;
    let config = CacheConfig { capacity: Capacity::Bytes(bytes), ..CacheConfig::default() };
    let pool = KvCache::new(&Device::cpu(), SHAPE, config).unwrap().pool_use();
    // A page of 2 bits: zero and step, then 64 rows of a quarter byte a channel.
    let used = pool.slots * SHAPE.slot_bytes() + pool.pages * 64 * 20;
    assert!(used <= bytes && used > bytes - 5 * SHAPE.slot_bytes(), "{used}");
    assert_eq!(pool.pages, pool.slots / 4);
}
