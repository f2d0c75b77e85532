//! A cache that is only partly on the device gives the bits of one that is wholly there, and survives faults and the
//! loss of the device.

mod common;

use common::{Random, Tensor};
use psa::driver::{Call, Driver, Emulated, EmulatedOptions, Faults, Faulty};
use psa::{
    CacheConfig, Capacity, DecodePlan, Device, Dtype, Error, Eviction, KvCache, Mirror, Policy, SequenceId,
    Shape,
};

const LAYERS: usize = 2;

fn shape() -> Shape {
    Shape { layers: LAYERS, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: Dtype::Bf16 }
}

fn config(tokens: usize, host: Option<usize>) -> CacheConfig {
    CacheConfig {
        capacity: Capacity::Tokens(tokens),
        host: host.map(Capacity::Tokens),
        max_sequences: 6,
        max_tokens: Some(640),
        // The poorer estimate: only where merge tops up is anything missing after the plan.
        mirror: Mirror::Bits2,
        ..CacheConfig::default()
    }
}

/// A cache, and a record of what was put in and came out.
struct Run {
    cache: KvCache,
    random: Random,
    bits: Vec<u32>,
}

impl Run {
    fn new(device: &Device, config: CacheConfig) -> Run {
        Run { cache: KvCache::new(device, shape(), config).unwrap(), random: Random(7), bits: vec![] }
    }

    fn tensor(&mut self, n: usize, spread: f32) -> Tensor {
        Tensor::random(shape().dtype, n, spread, self.random.bits())
    }

    fn prompt(&mut self, tokens: usize) -> SequenceId {
        let id = self.cache.add_sequence().unwrap();
        for layer in 0..LAYERS {
            let k = self.tensor(tokens * shape().token_elements(), 1.0);
            let v = self.tensor(tokens * shape().token_elements(), 1.0);
            self.cache.append(id, layer, k.rows(), v.rows()).unwrap();
        }
        id
    }

    /// One decode step of all layers.
    fn step(&mut self, ids: &[SequenceId], policy: Policy) {
        let mut plan = DecodePlan::new(&self.cache, ids, policy).unwrap();
        for layer in 0..LAYERS {
            let k = self.tensor(ids.len() * shape().token_elements(), 1.0);
            let v = self.tensor(ids.len() * shape().token_elements(), 1.0);
            let q = self.tensor(ids.len() * shape().query_elements(), 1.5);
            self.cache.append_batch(layer, ids, k.rows(), v.rows()).unwrap();
            let mut out = vec![f32::NAN; ids.len() * shape().query_elements()];
            plan.attend(&mut self.cache, layer, q.rows(), &mut out).unwrap();
            self.bits.extend(out.iter().map(|x| x.to_bits()));
        }
        self.bits.extend(plan.report().heads.iter().map(|h| h.blocks_read as u32));
    }
}

const POLICIES: [Policy; 4] = [
    Policy::Progressive { mass: 0.9 },
    Policy::Progressive { mass: 0.97 },
    Policy::TopP { mass: 0.6 },
    Policy::Dense,
];

/// Prompts, steps, a fork, a truncation, and in a cache with a host tier swaps.
fn scenario(device: &Device, config: CacheConfig, swaps: bool, steps: usize) -> Run {
    let mut run = Run::new(device, config);
    let (a, b) = (run.prompt(300), run.prompt(170));
    let mut ids = vec![a, b];
    for step in 0..steps {
        run.step(&ids, POLICIES[step % POLICIES.len()]);
        match step {
            1 => ids.push(run.cache.fork(a).unwrap()),
            2 if swaps => {
                run.cache.swap_out(b).unwrap();
                let error =
                    run.cache.append_batch(0, &[b], run.random_free(), run.random_free()).unwrap_err();
                assert!(matches!(error, Error::SwappedOut { .. }) && error.to_string().contains("swap_in"));
                run.cache.swap_in(b).unwrap();
            }
            3 => run.cache.truncate(a, 290).unwrap(),
            _ => {}
        }
    }
    run
}

impl Run {
    fn random_free(&self) -> psa::Rows<'static> {
        const ZEROS: &[half::bf16] = &[half::bf16::ZERO; 128];
        ZEROS.into()
    }
}

#[test]
fn a_small_resident_part_gives_the_bits_of_everything_resident_on_the_cpu() {
    for eviction in [Eviction::Frequency, Eviction::Lru, Eviction::Clock] {
        let whole = scenario(&Device::cpu(), config(2000, None), false, 12);
        // 26 blocks in each layer and head, of 48 that the first two sequences alone come to have.
        let small = CacheConfig { eviction, ..config(416, Some(2000)) };
        let part = scenario(&Device::cpu(), small, true, 12);
        assert!(part.cache.traffic().fetched > 100, "{eviction:?}: {:?}", part.cache.traffic());
        assert!(part.cache.traffic().repeats > 0, "{eviction:?}: {:?}", part.cache.traffic());
        assert_eq!(part.bits, whole.bits, "{eviction:?}");
    }
}

#[test]
fn a_small_resident_part_gives_the_bits_of_everything_resident_on_the_reference() {
    let whole = scenario(&Device::reference(), config(2000, None), false, 5);
    let part = scenario(&Device::reference(), config(416, Some(2000)), true, 5);
    assert!(part.cache.traffic().fetched > 0);
    assert_eq!(part.bits, whole.bits);
}

#[test]
fn a_small_resident_part_gives_the_bits_of_everything_resident_on_the_emulator() {
    let whole = scenario(&Device::emulator(), config(2000, None), false, 6);
    let part = scenario(&Device::emulator(), config(416, Some(2000)), true, 6);
    assert!(part.cache.traffic().fetched > 50, "{:?}", part.cache.traffic());
    assert!(part.cache.traffic().repeats > 0, "{:?}", part.cache.traffic());
    assert_eq!(part.bits, whole.bits);
}

#[test]
fn every_ranking_works_off_the_device() {
    let (certified, oracle) = (Policy::Certified { missed: 0.2 }, Policy::Oracle { mass: 0.9 });
    for policy in [certified, oracle, Policy::TopK(psa::Budget::Blocks(5))] {
        let bits = |config| {
            let config = CacheConfig { mirror: Mirror::Bits8, ..config };
            let mut run = Run::new(&Device::cpu(), config);
            let ids = [run.prompt(300), run.prompt(170)];
            (0..3).for_each(|_| run.step(&ids, policy));
            run.bits
        };
        assert_eq!(bits(config(352, Some(2000))), bits(config(2000, None)), "{policy}");
    }
}

#[test]
fn a_step_that_needs_more_than_the_device_holds_says_so() {
    let mut run = Run::new(&Device::cpu(), config(320, Some(2000)));
    let id = run.prompt(600);
    let mut plan = DecodePlan::new(&run.cache, &[id], Policy::Dense).unwrap();
    let q = run.tensor(shape().query_elements(), 1.0);
    let mut out = vec![0.0; shape().query_elements()];
    // 38 blocks of 2 heads, and 40 slots for each layer in both of the layers: one fits, if the other makes room.
    plan.attend(&mut run.cache, 0, q.rows(), &mut out).unwrap();
    let mut run = Run::new(&Device::cpu(), config(128, Some(2000)));
    let id = run.cache.add_sequence().unwrap();
    for layer in 0..LAYERS {
        let k = run.tensor(600 * shape().token_elements(), 1.0);
        let error = run.cache.append(id, layer, k.rows(), k.rows()).unwrap_err();
        assert!(matches!(error, Error::PoolExhausted { needed: 76, .. }), "{error}");
        // In pieces that fit, the earlier ones leave as later ones come.
        for from in (0..600).step_by(64) {
            let piece = k.part(from * 128, (from + 64).min(600) * 128);
            run.cache.append(id, layer, piece, piece).unwrap();
        }
    }
    let mut plan = DecodePlan::new(&run.cache, &[id], Policy::Dense).unwrap();
    let error = plan.attend(&mut run.cache, 0, q.rows(), &mut out).unwrap_err();
    assert!(matches!(error, Error::PoolExhausted { needed, free, .. } if needed > free), "{error}");
    let no_tier = run_without_tier().unwrap_err();
    assert!(matches!(no_tier, Error::NoHostTier { .. }) && no_tier.to_string().contains("CacheConfig::host"));
}

fn run_without_tier() -> Result<(), Error> {
    let mut run = Run::new(&Device::cpu(), config(320, None));
    let id = run.prompt(20);
    run.cache.swap_out(id)
}

#[test]
fn a_prefix_is_shared_by_content_and_then_diverges() {
    let mut run = Run::new(&Device::cpu(), config(1000, None));
    let a = run.prompt(200);
    let tokens: Vec<u32> = (0..200).collect();
    run.cache.publish_prefix(a, &tokens).unwrap();
    let before = run.cache.pool_use().free_slots;
    let (b, shared) = run.cache.add_sequence_with_prefix(&tokens).unwrap();
    assert_eq!((shared, run.cache.len(b)), (192, Ok(192)));
    assert_eq!(run.cache.pool_use().free_slots, before, "a shared prefix takes no memory");
    let of = |run: &mut Run, id, n| run.cache.keys_and_values(id, 1, 1, n).unwrap();
    assert_eq!(of(&mut run, a, 192), of(&mut run, b, 192));
    run.step(&[a, b], Policy::Dense);
    assert_eq!(of(&mut run, a, 192), of(&mut run, b, 192));
    assert_eq!((run.cache.len(a), run.cache.len(b)), (Ok(201), Ok(193)));
}

/// An emulator that fails on demand. Without checkers, which other tests of the same calls have, as there are hundreds of
/// runs.
fn faulty(faults: &Faults) -> Device {
    let faults = faults.clone();
    Device::with_driver("emulator", move || {
        let driver = Emulated::new(EmulatedOptions { checks: false, ..EmulatedOptions::default() })?;
        Ok(Box::new(Faulty::new(Box::new(driver), faults.clone())) as Box<dyn Driver>)
    })
}

/// K and V of a head, as bits.
type Head = (Vec<u16>, Vec<u16>);

/// K and V of everything.
fn contents(cache: &mut KvCache, ids: &[SequenceId]) -> Vec<Head> {
    let mut all = vec![];
    for &id in ids {
        for (layer, head) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            all.push(cache.keys_and_values(id, layer, head, usize::MAX).unwrap());
        }
    }
    all
}

type Operation = fn(&mut KvCache, &mut Vec<SequenceId>, &Inputs, &mut Vec<u32>) -> Result<(), Error>;

struct Inputs {
    token: Tensor,
    q: Tensor,
}

/// A step with fetches, a fork that copies on write, and a preemption, call by call.
const OPERATIONS: [Operation; 9] = [
    |cache, ids, inputs, _| cache.append_batch(0, &ids[..2], inputs.token.rows(), inputs.token.rows()),
    |cache, ids, inputs, bits| attend(cache, &ids[..2], 0, inputs, bits),
    |cache, ids, inputs, _| cache.append_batch(1, &ids[..2], inputs.token.rows(), inputs.token.rows()),
    |cache, ids, inputs, bits| attend(cache, &ids[..2], 1, inputs, bits),
    |cache, ids, _, _| cache.fork(ids[1]).map(|fork| ids.push(fork)),
    |cache, ids, _, _| cache.swap_out(ids[0]),
    |cache, ids, inputs, _| cache.append_batch(0, &ids[1..3], inputs.token.rows(), inputs.token.rows()),
    |cache, ids, _, _| cache.swap_in(ids[0]),
    |cache, ids, inputs, bits| attend(cache, &ids[..2], 0, inputs, bits),
];

fn attend(
    cache: &mut KvCache,
    ids: &[SequenceId],
    layer: usize,
    inputs: &Inputs,
    bits: &mut Vec<u32>,
) -> Result<(), Error> {
    let mut plan = DecodePlan::new(cache, ids, Policy::Progressive { mass: 0.95 })?;
    let mut out = vec![f32::NAN; ids.len() * shape().query_elements()];
    plan.attend(cache, layer, inputs.q.rows(), &mut out)?;
    bits.extend(out.iter().map(|x| x.to_bits()));
    Ok(())
}

/// The cache before the operations, on a device that may fail.
fn prepared(device: &Device) -> (Run, Vec<SequenceId>, Inputs) {
    let mut run = Run::new(device, config(224, Some(1000)));
    let ids = vec![run.prompt(190), run.prompt(150)];
    let token = run.tensor(2 * shape().token_elements(), 1.0);
    let q = run.tensor(2 * shape().query_elements(), 1.5);
    (run, ids, Inputs { token, q })
}

/// What the operations give where nothing fails, and how many calls of each kind they make.
fn without_faults() -> (Vec<u32>, Vec<Head>, [u64; 4]) {
    let faults = Faults::new();
    let (mut run, mut ids, inputs) = prepared(&faulty(&faults));
    let before = Call::ALL.map(|call| faults.calls(call));
    let mut bits = vec![];
    for operation in OPERATIONS {
        operation(&mut run.cache, &mut ids, &inputs, &mut bits).unwrap();
    }
    let calls = Call::ALL.map(|call| faults.calls(call) - before[call as usize]);
    assert!(run.cache.traffic().fetched > 0 && run.cache.traffic().copied > 0, "{:?}", run.cache.traffic());
    (bits, contents(&mut run.cache, &ids), calls)
}

#[test]
fn after_any_single_fault_the_cache_is_as_before_and_a_retry_gives_the_same_bits() {
    let (bits, held, calls) = without_faults();
    // Nothing here overlaps, so there are no events yet.
    assert!(calls[..3].iter().all(|&n| n > 0) && calls[3] == 0, "{calls:?}");
    for (call, n) in Call::ALL.into_iter().flat_map(|call| (0..calls[call as usize]).map(move |n| (call, n)))
    {
        let faults = Faults::new();
        let (mut run, mut ids, inputs) = prepared(&faulty(&faults));
        faults.arm(call, n, false);
        let (mut got, mut failed) = (vec![], 0);
        for (i, operation) in OPERATIONS.into_iter().enumerate() {
            let lens = |cache: &KvCache| {
                [0, 1].map(|l| ids.iter().map(|&id| cache.layer_len(id, l)).collect::<Vec<_>>())
            };
            let before = lens(&run.cache);
            let mut known = ids.clone();
            if let Err(error) = operation(&mut run.cache, &mut known, &inputs, &mut got) {
                assert!(error.to_string().contains("on purpose"), "{call:?} {n}, operation {i}: {error}");
                assert_eq!(lens(&run.cache), before, "{call:?} {n}, operation {i}");
                failed += 1;
                operation(&mut run.cache, &mut known, &inputs, &mut got).unwrap();
            }
            ids = known;
        }
        assert!(!faults.disarm(), "{call:?} {n} never struck");
        // A save behind an append that fails is tried again later and is nobody's error.
        assert!(failed <= 1, "{call:?} {n}: {failed} failures");
        assert!(got == bits, "{call:?} {n}: other bits");
        assert!(contents(&mut run.cache, &ids) == held, "{call:?} {n}: other contents");
        ids.iter().for_each(|&id| run.cache.remove_sequence(id).unwrap());
        let left = run.cache.pool_use();
        let all = (left.slots, left.pages, left.blocks);
        assert_eq!((left.free_slots, left.free_pages, left.free_blocks), all, "{call:?} {n} leaks");
    }
}

#[test]
fn after_the_loss_of_the_device_saved_sequences_are_rebuilt_bit_for_bit_and_others_are_named() {
    let (bits, held, calls) = without_faults();
    for (call, n) in Call::ALL.into_iter().flat_map(|call| (0..calls[call as usize]).map(move |n| (call, n)))
    {
        // Every seventh place; all are the same code.
        if n % 7 != 0 {
            continue;
        }
        let faults = Faults::new();
        let (mut run, mut ids, inputs) = prepared(&faulty(&faults));
        ids.iter().for_each(|&id| run.cache.save(id).unwrap());
        faults.arm(call, n, true);
        let mut got = vec![];
        let mut lost = None;
        for (i, operation) in OPERATIONS.into_iter().enumerate() {
            if let Err(error) = operation(&mut run.cache, &mut ids, &inputs, &mut got) {
                assert!(matches!(error, Error::DeviceLost { .. }), "{call:?} {n}: {error}");
                lost = Some(i);
                break;
            }
        }
        // A loss in a save behind the last append shows in the next call only.
        let lost = lost.unwrap_or(OPERATIONS.len());
        let lens: Vec<usize> = ids.iter().map(|&id| run.cache.layer_len(id, 0).unwrap()).collect();
        let rebuilt = run.cache.rebuild_on(&Device::emulator()).unwrap();
        assert_eq!(rebuilt.whole.len() + rebuilt.shortened.len(), ids.len());
        for s in &rebuilt.shortened {
            let i = ids.iter().position(|&id| id == s.sequence).unwrap();
            assert!(s.tokens < s.before && s.before >= lens[i] && run.cache.len(s.sequence) == Ok(s.tokens));
        }
        if lost == 0 {
            assert!(rebuilt.shortened.is_empty(), "{call:?} {n}: everything had been saved: {rebuilt:?}");
            for operation in OPERATIONS {
                operation(&mut run.cache, &mut ids, &inputs, &mut got).unwrap();
            }
            assert!(got == bits && contents(&mut run.cache, &ids) == held, "{call:?} {n}: other bits");
        }
        // What is there is what was there.
        for (i, &id) in ids.iter().enumerate() {
            for (j, (k, v)) in contents(&mut run.cache, &[id]).iter().enumerate() {
                let (all_k, all_v) = &held[4 * i + j];
                assert!(
                    all_k.starts_with(k) && all_v.starts_with(v),
                    "{call:?} {n}: sequence {i} has other tokens"
                );
            }
        }
        // And it goes on: a step on what is left gives the bits of a cache that never lost it.
        let mut fresh = Run::new(&Device::cpu(), config(1000, None));
        let id = ids[0];
        let tokens = run.cache.len(id).unwrap();
        assert!(tokens >= 128, "{tokens} tokens are left");
        let copy = fresh.cache.add_sequence().unwrap();
        for layer in 0..LAYERS {
            let heads: Vec<_> =
                (0..2).map(|h| run.cache.keys_and_values(id, layer, h, tokens).unwrap()).collect();
            let rows = |part: fn(&Head) -> &Vec<u16>| -> Vec<half::bf16> {
                (0..tokens)
                    .flat_map(|t| heads.iter().flat_map(move |head| part(head)[t * 64..][..64].to_vec()))
                    .map(half::bf16::from_bits)
                    .collect()
            };
            fresh.cache.append(copy, layer, &rows(|h| &h.0), &rows(|h| &h.1)).unwrap();
        }
        run.cache.swap_in(id).unwrap();
        let reads = |cache: &mut KvCache, id| {
            let mut plan = DecodePlan::new(cache, &[id], Policy::TopP { mass: 0.6 }).unwrap().with_record();
            let mut out = vec![0.0; shape().query_elements()];
            plan.attend(cache, 1, inputs.q.part(0, shape().query_elements()), &mut out).unwrap();
            (0..2).map(|h| plan.selection(1, 0, h).unwrap().to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(reads(&mut run.cache, id), reads(&mut fresh.cache, copy), "pages are not what they were");
    }
}

#[test]
fn a_cache_moves_to_another_device_whole() {
    let mut run = Run::new(&Device::cpu(), config(224, Some(1000)));
    let ids = [run.prompt(190), run.prompt(75)];
    let held = contents(&mut run.cache, &ids);
    let rebuilt = run.cache.rebuild_on(&Device::emulator()).unwrap();
    assert_eq!((rebuilt.whole, rebuilt.shortened), (ids.to_vec(), vec![]));
    assert_eq!(contents(&mut run.cache, &ids), held);
    run.step(&ids, Policy::Progressive { mass: 0.9 });
    let mut on_cpu = Run::new(&Device::cpu(), config(1000, None));
    assert!(matches!(on_cpu.cache.rebuild_on(&Device::cpu()), Err(Error::NoHostTier { .. })));
}
