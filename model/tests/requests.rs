//! Requests in a batch do not touch one another: same tokens alone and together, on any backend; a poisoned, refused
//! or cancelled one leaves the others as they were.

mod common;

use common::{CONTEXT, Folder, Variant, prompt};
use psa::driver::EmulatedOptions;
use psa::{CacheConfig, Capacity, DecodePlan, Device, Error, KvCache, Mirror, Policy};
use psa_model::{Decoder, Llama, Model, ModelError, Sampler};

const POLICY: Policy = Policy::Progressive { mass: 0.6 };

fn cache(model: &Llama, device: &Device, tokens: usize) -> KvCache {
    let config = CacheConfig {
        capacity: Capacity::Tokens(tokens),
        max_sequences: 4,
        max_tokens: Some(CONTEXT),
        // A mirror that every backend knows.
        mirror: Mirror::Bits2,
        ..CacheConfig::default()
    };
    KvCache::new(device, model.config().shape(), config).unwrap()
}

/// Tokens that each prompt is answered with, decoded together, and blocks read of those there were.
fn generate(
    model: &Llama,
    device: &Device,
    prompts: &[&[u32]],
    numbers: &[u64],
    steps: usize,
) -> (Vec<Vec<u32>>, f64) {
    let sampler = Sampler { temperature: 0.8, top_p: 0.9, seed: 42 };
    let decoder = Decoder::new(model);
    let mut cache = cache(model, device, 4 * CONTEXT);
    let (mut sequences, mut logits) = (vec![], vec![]);
    for prompt in prompts {
        let sequence = cache.add_sequence().unwrap();
        logits.push(decoder.prefill(&mut cache, sequence, prompt, &mut |_| true).unwrap());
        sequences.push(sequence);
    }
    let mut plan = DecodePlan::new(&cache, &sequences, POLICY).unwrap();
    let mut answers = vec![vec![]; prompts.len()];
    let (mut read, mut total) = (0, 0);
    for step in 0..steps {
        let tokens: Vec<u32> =
            logits.iter().zip(numbers).map(|(logits, &number)| sampler.draw(logits, number, step)).collect();
        answers.iter_mut().zip(&tokens).for_each(|(answer, token)| answer.push(*token));
        logits =
            decoder.step(&mut cache, &mut plan, &tokens).unwrap().into_iter().map(Result::unwrap).collect();
        read += plan.report().blocks_read();
        total += plan.report().blocks_total();
    }
    (answers, read as f64 / total as f64)
}

#[test]
fn generation_is_the_same_in_any_batch() {
    let folder = Folder::new("batch");
    let model = Llama::open(&folder.model(&Variant::default())).unwrap();
    let prompts: Vec<Vec<u32>> = [300, 17, 211].iter().map(|&n| prompt(n, n as u64)).collect();
    let all: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let (together, share) = generate(&model, &Device::cpu(), &all, &[0, 1, 2], 24);
    assert!(share < 0.9, "the policy leaves something out: {share}");
    for (i, prompt) in all.iter().enumerate() {
        let (alone, _) = generate(&model, &Device::cpu(), &[prompt], &[i as u64], 24);
        assert_eq!(alone[0], together[i], "request {i}");
    }
    let (reversed, _) = generate(&model, &Device::cpu(), &[all[2], all[0]], &[2, 0], 24);
    assert_eq!(reversed, [together[2].clone(), together[0].clone()]);
}

#[test]
fn generation_is_the_same_on_cpu_reference_and_the_emulated_ptx() {
    let folder = Folder::new("backends");
    let model = Llama::open(&folder.model(&Variant::default())).unwrap();
    let prompts = [prompt(150, 1), prompt(90, 2)];
    let all: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let cpu = generate(&model, &Device::cpu(), &all, &[0, 1], 6);
    let emulator = Device::emulator_with(EmulatedOptions { seed: 5, checks: true });
    for device in [Device::reference(), emulator] {
        let other = generate(&model, &device, &all, &[0, 1], 6);
        // The same blocks too: selection has the same bits everywhere.
        assert_eq!(other, cpu, "{}", device.name());
    }
}

#[test]
fn a_poisoned_sequence_fails_alone() {
    let folder = Folder::new("poison");
    let poisoned = 9;
    // f32, so that the NaN stays one number: a block of codes would spread it.
    let plain = candle_core::quantized::GgmlDType::F32;
    let variant = Variant { poison: Some(poisoned), embedding: plain, tied: false, ..Variant::default() };
    let model = Llama::open(&folder.model(&variant)).unwrap();
    let decoder = Decoder::new(&model);
    let clean: Vec<u32> = prompt(200, 1).into_iter().filter(|&token| token != poisoned as u32).collect();
    let run = |second: u32| {
        let mut cache = cache(&model, &Device::cpu(), 4 * CONTEXT);
        let sequences = [cache.add_sequence().unwrap(), cache.add_sequence().unwrap()];
        for sequence in sequences {
            decoder.prefill(&mut cache, sequence, &clean, &mut |_| true).unwrap();
        }
        let mut plan = DecodePlan::new(&cache, &sequences, POLICY).unwrap();
        let mut rows = decoder.step(&mut cache, &mut plan, &[clean[0], second]).unwrap();
        let (bad, good) = (rows.pop().unwrap(), rows.pop().unwrap().unwrap());
        // The survivor goes on.
        cache.remove_sequence(sequences[1]).unwrap();
        let mut plan = DecodePlan::new(&cache, &sequences[..1], POLICY).unwrap();
        let next = decoder.step(&mut cache, &mut plan, &[clean[1]]).unwrap().remove(0).unwrap();
        (good, next, bad)
    };
    let (good, next, bad) = run(poisoned as u32);
    let error = bad.unwrap_err();
    assert!(matches!(error, ModelError::Poisoned { entry: 1, layer: 0 }), "{error}");
    let (expected, expected_next, fine) = run(clean[5]);
    assert!(fine.is_ok());
    assert_eq!((good, next), (expected, expected_next));
    // In a prompt it is an error of that prompt.
    let mut cache = cache(&model, &Device::cpu(), CONTEXT);
    let sequence = cache.add_sequence().unwrap();
    let error = decoder.prefill(&mut cache, sequence, &[3, poisoned as u32], &mut |_| true).unwrap_err();
    assert!(matches!(error, ModelError::Poisoned { .. }), "{error}");
}

#[test]
fn a_request_that_does_not_fit_is_refused_before_anything_is_written() {
    let folder = Folder::new("full");
    let model = Llama::open(&folder.model(&Variant::default())).unwrap();
    let decoder = Decoder::new(&model);
    let mut cache = cache(&model, &Device::cpu(), 320);
    let first = cache.add_sequence().unwrap();
    decoder.prefill(&mut cache, first, &prompt(160, 1), &mut |_| true).unwrap();
    let second = cache.add_sequence().unwrap();
    let before = cache.pool_use();
    let error = decoder.prefill(&mut cache, second, &prompt(200, 2), &mut |_| true).unwrap_err();
    assert!(
        matches!(error, ModelError::Psa(Error::PoolExhausted { needed, free, .. }) if needed > free),
        "{error}"
    );
    assert_eq!((cache.pool_use(), cache.len(second).unwrap()), (before, 0));
    // What fits is taken, and when the pool is full a step of both is refused for both, in every layer.
    decoder.prefill(&mut cache, second, &prompt(160, 2), &mut |_| true).unwrap();
    let mut plan = DecodePlan::new(&cache, &[first, second], POLICY).unwrap();
    let error = decoder.step(&mut cache, &mut plan, &[3, 4]).unwrap_err();
    assert!(error.to_string().contains("exhausted"), "{error}");
    assert_eq!((cache.len(first).unwrap(), cache.layer_len(first, 0).unwrap()), (160, 160));
    // After a preemption the other goes on.
    cache.remove_sequence(second).unwrap();
    let mut plan = DecodePlan::new(&cache, &[first], POLICY).unwrap();
    assert!(decoder.step(&mut cache, &mut plan, &[3]).unwrap()[0].is_ok());
}

#[test]
fn empty_long_and_unknown_prompts_are_refused_with_the_values() {
    let folder = Folder::new("bad");
    let model = Llama::open(&folder.model(&Variant::default())).unwrap();
    let decoder = Decoder::new(&model);
    let mut cache = cache(&model, &Device::cpu(), 4 * CONTEXT);
    let sequence = cache.add_sequence().unwrap();
    let refused: [(Vec<u32>, &[&str]); 3] = [
        (vec![], &["empty", "at least one token"]),
        (prompt(CONTEXT + 1, 1), &["1025", "1024", "shorten"]),
        (vec![2, 9_999], &["9999", "vocabulary of 101"]),
    ];
    for (tokens, expected) in refused {
        let error = decoder.prefill(&mut cache, sequence, &tokens, &mut |_| true).unwrap_err().to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
        assert_eq!(cache.len(sequence).unwrap(), 0);
    }
    // The last token of the context fits, one more does not.
    decoder.prefill(&mut cache, sequence, &prompt(CONTEXT, 1), &mut |_| true).unwrap();
    let mut plan = DecodePlan::new(&cache, &[sequence], POLICY).unwrap();
    let error = decoder.step(&mut cache, &mut plan, &[3]).unwrap_err();
    assert!(matches!(error, ModelError::TooLong { tokens: 1025, context: 1024 }), "{error}");
}

#[test]
fn a_cancelled_prompt_can_be_resumed_or_dropped() {
    let folder = Folder::new("cancel");
    let model = Llama::open(&folder.model(&Variant::default())).unwrap();
    let decoder = Decoder::new(&model);
    let tokens = prompt(400, 3);
    let mut cache = cache(&model, &Device::cpu(), 4 * CONTEXT);
    let free = cache.pool_use();
    let sequence = cache.add_sequence().unwrap();
    let error = decoder.prefill(&mut cache, sequence, &tokens, &mut |_| false).unwrap_err();
    assert!(matches!(error, ModelError::Interrupted));
    let done = cache.len(sequence).unwrap();
    assert_eq!(done, psa_model::CHUNK);
    let resumed = decoder.prefill(&mut cache, sequence, &tokens[done..], &mut |_| true).unwrap();
    cache.remove_sequence(sequence).unwrap();
    assert_eq!(cache.pool_use(), free);
    let sequence = cache.add_sequence().unwrap();
    assert_eq!(decoder.prefill(&mut cache, sequence, &tokens, &mut |_| true).unwrap(), resumed);
}
