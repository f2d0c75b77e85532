//! The cache against a simple model: random operations, every byte read back equal, nothing leaks.
//!
//! 20,000 operations in a run of the tests; the full count: `PSA_POOL_OPERATIONS=1000000 cargo test --release -p psa
//! --test pool_model`.

mod common;

use common::Random;
use half::f16;
use psa::{
    CacheConfig, Capacity, DecodePlan, Device, Dtype, Error, Eviction, KvCache, Mirror, Policy, SequenceId,
    Shape,
};

const SHAPE: Shape = Shape { layers: 2, q_heads: 2, kv_heads: 1, head_dim: 64, dtype: Dtype::F16 };
const CONFIG: CacheConfig = CacheConfig {
    capacity: Capacity::Tokens(20 * 16),
    host: Some(Capacity::Tokens(44 * 16)),
    eviction: Eviction::Frequency,
    max_sequences: 8,
    max_tokens: Some(300),
    mirror: Mirror::Bits2,
    quant_group: 64,
    unit: 16,
    forced: psa::Forced { sink: 1, recent: 2 },
    check_finite: true,
};

/// What a sequence must hold: a stamp for each token of each layer, from which K and V follow.
#[derive(Clone, Debug)]
struct Model {
    id: SequenceId,
    layers: [Vec<u32>; 2],
    /// Token ids of what was published; the stamps of both layers follow from them alone.
    swapped: bool,
}

/// K or V of one token: finite f16, different for nearly every (stamp, channel).
fn token(stamp: u32, value: bool, out: &mut Vec<f16>) {
    let mut random = Random(u64::from(stamp) * 2 + u64::from(value));
    for _ in 0..SHAPE.head_dim / 4 {
        let bits = random.bits();
        // Below 2 in size.
        out.extend((0..4).map(|i| f16::from_bits((bits >> (16 * i)) as u16 & 0xbfff)));
    }
}

fn rows(stamps: &[u32], value: bool) -> Vec<f16> {
    let mut out = Vec::with_capacity(stamps.len() * SHAPE.head_dim);
    stamps.iter().for_each(|&stamp| token(stamp, value, &mut out));
    out
}

fn check_layer(cache: &mut KvCache, model: &Model, layer: usize) {
    let stamps = &model.layers[layer];
    assert_eq!(cache.layer_len(model.id, layer), Ok(stamps.len()));
    let (k, v) = cache.keys_and_values(model.id, layer, 0, usize::MAX).unwrap();
    let bits = |x: Vec<f16>| x.into_iter().map(f16::to_bits).collect::<Vec<_>>();
    assert!(k == bits(rows(stamps, false)), "K of {} in layer {layer}", model.id);
    assert!(v == bits(rows(stamps, true)), "V of {} in layer {layer}", model.id);
}

/// Attends in the cache and in one that holds the same tokens all on the device, and compares bits.
fn check_attention(device: &Device, cache: &mut KvCache, model: &Model, layer: usize, seed: u64) {
    let policy = [Policy::Progressive { mass: 0.9 }, Policy::Dense][seed as usize % 2];
    let q = common::Tensor::random(SHAPE.dtype, SHAPE.query_elements(), 2.0, seed);
    let config = CacheConfig { capacity: Capacity::Tokens(320), host: None, max_sequences: 1, ..CONFIG };
    let mut plain = KvCache::new(device, SHAPE, config).unwrap();
    let alone = plain.add_sequence().unwrap();
    let stamps = &model.layers[layer];
    plain.append(alone, layer, &rows(stamps, false), &rows(stamps, true)).unwrap();
    let attend = |cache: &mut KvCache, id| {
        let mut plan = DecodePlan::new(cache, &[id], policy).unwrap();
        let mut out = vec![0.0; SHAPE.query_elements()];
        plan.attend(cache, layer, q.rows(), &mut out)
            .map(|()| out.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
    };
    match attend(cache, model.id) {
        Ok(bits) => assert_eq!(bits, attend(&mut plain, alone).unwrap(), "attention of {}", model.id),
        // The open groups of others fill the device.
        Err(Error::PoolExhausted { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

/// Runs `operations` random ones; with `host` with the host tier.
fn run(device: &Device, operations: usize, host: bool, every: usize, seed: u64) {
    let config = if host { CONFIG } else { CacheConfig { host: None, ..CONFIG } };
    let mut cache = KvCache::new(device, SHAPE, config).unwrap();
    let empty = cache.pool_use();
    let mut random = Random(seed);
    let mut models: Vec<Model> = vec![];
    let mut stamp = 0u32;
    let (mut done, mut refused) = (0, 0);
    for operation in 0..operations {
        let choice = random.bits() % 64;
        let pick = random.bits() as usize % models.len().max(1);
        let amount = random.bits() as usize;
        let result = match (choice, models.get(pick).cloned()) {
            (0..=4, _) | (_, None) => cache.add_sequence().map(|id| {
                models.push(Model { id, layers: [vec![], vec![]], swapped: false });
            }),
            (5..=6, Some(model)) => cache.remove_sequence(model.id).map(|()| drop(models.swap_remove(pick))),
            (7..=30, Some(model)) => {
                let layer = amount % 2;
                let behind = model.layers[1 - layer].len().saturating_sub(model.layers[layer].len());
                let n = if behind > 0 && !amount.is_multiple_of(3) { behind } else { 1 + amount / 8 % 40 };
                let from = model.layers[layer].len();
                // A layer catches up with the stamps of the other where that has them.
                let new: Vec<u32> = (from..from + n)
                    .map(|t| {
                        let other = model.layers[1 - layer].get(t).map(|s| s ^ 1 << 31);
                        other.unwrap_or_else(|| {
                            stamp += 1;
                            stamp | (layer as u32) << 31
                        })
                    })
                    .collect();
                let done = cache.append(model.id, layer, &rows(&new, false), &rows(&new, true));
                done.map(|()| models[pick].layers[layer].extend(new))
            }
            (31..=38, Some(_)) => {
                let layer = amount % 2;
                let batch: Vec<usize> =
                    (0..models.len()).filter(|&i| !models[i].swapped && amount >> (8 + i) & 1 == 1).collect();
                let ids: Vec<SequenceId> = batch.iter().map(|&i| models[i].id).collect();
                let new: Vec<u32> = batch
                    .iter()
                    .map(|_| {
                        stamp += 1;
                        stamp | (layer as u32) << 31
                    })
                    .collect();
                let done = cache.append_batch(layer, &ids, &rows(&new, false), &rows(&new, true));
                done.map(|()| batch.iter().zip(&new).for_each(|(&i, &s)| models[i].layers[layer].push(s)))
            }
            (39..=44, Some(model)) => {
                let length = model.layers.iter().map(Vec::len).min().unwrap_or(0);
                let tokens = if amount.is_multiple_of(2) { length } else { amount / 2 % (length + 2) };
                cache.fork_at(model.id, tokens).map(|id| {
                    let layers = model.layers.map(|stamps| stamps[..tokens].to_vec());
                    models.push(Model { id, layers, swapped: false });
                })
            }
            (45..=49, Some(model)) => {
                let longest = model.layers.iter().map(Vec::len).max().unwrap_or(0);
                let tokens = longest.saturating_sub(amount % 40);
                cache.truncate(model.id, tokens).map(|()| {
                    models[pick].layers.iter_mut().for_each(|stamps| stamps.truncate(tokens));
                })
            }
            (50..=51, Some(model)) => cache.reserve(model.id, amount % 3 * 60),
            (52..=54, Some(model)) if host => cache.swap_out(model.id).map(|()| models[pick].swapped = true),
            (55..=59, Some(model)) if host => cache.swap_in(model.id).map(|()| models[pick].swapped = false),
            (60, Some(model)) if host => cache.save(model.id),
            (61..=62, Some(model)) => {
                // The ids of a layer's tokens stand for those of both.
                let n = model.layers.iter().map(Vec::len).min().unwrap_or(0);
                let same = (0..n).take_while(|&t| model.layers[0][t] ^ 1 << 31 == model.layers[1][t]).count();
                cache.publish_prefix(model.id, &model.layers[0][..same])
            }
            (_, Some(model)) => cache.add_sequence_with_prefix(&model.layers[0]).map(|(id, shared)| {
                let first = model.layers[0][..shared].to_vec();
                let second = first.iter().map(|s| s ^ 1 << 31).collect();
                models.push(Model { id, layers: [first, second], swapped: false });
            }),
        };
        match result {
            Ok(()) => done += 1,
            Err(Error::PoolExhausted { needed, free, .. }) => {
                assert!(needed > free, "refused for want of {needed} of {free}");
                refused += 1;
                if amount.is_multiple_of(3) {
                    cache.remove_sequence(models[pick].id).unwrap();
                    models.swap_remove(pick);
                }
            }
            Err(Error::TooManySequences { .. }) => {
                assert_eq!(models.len(), 8);
                let id = models.swap_remove(pick).id;
                cache.remove_sequence(id).unwrap();
            }
            Err(Error::SwappedOut { .. } | Error::ContextTooLong { .. } | Error::BeyondEnd { .. }) => {
                refused += 1
            }
            Err(error) => panic!("operation {operation}: {error}"),
        }
        let all = operation % 512 == 511;
        for (i, model) in models.iter().enumerate() {
            if all || i == random.bits() as usize % models.len() {
                (0..2).for_each(|layer| check_layer(&mut cache, model, layer));
                assert_eq!(cache.is_swapped_out(model.id), Ok(model.swapped));
            }
        }
        if operation % every == every - 1
            && let Some(model) = models.get(pick)
            && !model.swapped
        {
            check_attention(device, &mut cache, model, amount % 2, random.bits());
        }
    }
    assert!(done > operations / 2, "only {done} of {operations} were possible, {refused} refused");
    for model in models {
        cache.remove_sequence(model.id).unwrap();
    }
    assert_eq!(cache.pool_use(), empty, "something leaked");
    if host {
        assert!(cache.traffic().fetched > 0 && cache.traffic().copied > 0, "{:?}", cache.traffic());
    }
}

fn operations(default: usize) -> usize {
    std::env::var("PSA_POOL_OPERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

#[test]
fn random_operations_leave_every_byte_where_the_model_has_it() {
    run(&Device::cpu(), operations(20_000), true, 16, 1);
}

#[test]
fn random_operations_without_a_host_tier_leave_every_byte_where_the_model_has_it() {
    run(&Device::cpu(), operations(10_000), false, 16, 2);
}

#[test]
fn random_operations_on_the_emulated_kernels_leave_every_byte_where_the_model_has_it() {
    run(&Device::emulator(), 300, true, 40, 3);
}
