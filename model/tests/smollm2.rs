//! SmolLM2-135M-Instruct: logits on a fixed text against an independent model in f64, and generation with a fixed seed
//! that depends neither on the batch nor on the backend. Needs the file of `cargo xtask setup --for model`.

mod common;

use std::path::PathBuf;

use common::Variant;
use common::reference::Reference;
use psa::{CacheConfig, Capacity, DecodePlan, Device, KvCache, Mirror, Policy};
use psa_model::{Decoder, Gguf, Llama, Model, Sampler, Tokens, log_softmax};

const TEXT: &str = "The KV cache of a long context is what limits the serving of language models. In each step of \
    decoding every key and value of all earlier tokens is read once, although most of them hardly matter: the softmax \
    gives nearly all of its mass to a few. Which few depends on the token, on the layer and on the head. A method that \
    reads the same number for all reads too much for the easy ones and too little for the hard ones. The numbers of \
    the first experiment were 17, 42 and 1234567; those of the second were never published.";

fn path() -> PathBuf {
    let workspace =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../target/psa-tools/model/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("PSA_MODEL").map_or_else(|| workspace.into(), PathBuf::from);
    assert!(path.is_file(), "{} is missing: cargo xtask setup --for model", path.display());
    path
}

fn load() -> (Llama, Tokens) {
    let mut gguf = Gguf::open(&path()).unwrap();
    (Llama::read(&mut gguf).unwrap(), Tokens::read(&gguf).unwrap())
}

fn cache(model: &Llama, device: &Device) -> KvCache {
    let config = CacheConfig {
        capacity: Capacity::Tokens(4 * 256),
        max_sequences: 4,
        mirror: Mirror::Bits2,
        ..CacheConfig::default()
    };
    KvCache::new(device, model.config().shape(), config).unwrap()
}

#[test]
fn logits_are_those_of_an_independent_f64_model_on_a_fixed_text() {
    let (model, tokens) = load();
    let tokens = tokens.encode(TEXT).unwrap();
    assert!(tokens.len() > 100, "{}", tokens.len());
    let exact = Reference::open(&path(), &Variant::default()).logits(&tokens);
    let decoder = Decoder::new(&model);
    let mut cache = cache(&model, &Device::cpu());
    let sequence = cache.add_sequence().unwrap();
    let prompt = tokens.len() - 16;
    let mut ours = decoder.prefill(&mut cache, sequence, &tokens[..prompt], &mut |_| true).unwrap();
    let mut plan = DecodePlan::new(&cache, &[sequence], Policy::Dense).unwrap();
    let (mut largest, mut divergence) = (0.0f64, 0.0f64);
    for next in prompt..tokens.len() {
        let exact = &exact[next - 1];
        let as_f32: Vec<f32> = exact.iter().map(|&x| x as f32).collect();
        let (p, q) = (log_softmax(&as_f32), log_softmax(&ours));
        largest = ours.iter().zip(exact).fold(largest, |m, (a, b)| m.max((*a as f64 - b).abs()));
        divergence = divergence.max(p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum());
        ours = decoder.step(&mut cache, &mut plan, &tokens[next..=next]).unwrap().remove(0).unwrap();
    }
    println!("largest difference of a logit {largest:.4}, KL at most {divergence:.2e} nats");
    // What differs is the rounding of q, k, v to f16 (2^-11 of each) in 30 layers: independent errors, whose sum moves the
    // hidden state by about sqrt(30 * 3) * 2^-12 = .2 % and logits of up to 25 by .05. A wrong pair of channels, a bias or
    // a norm moves them by whole units. KL is half the variance of the differences: .05^2 / 2.
    assert!(largest < 0.05, "{largest}");
    assert!(divergence < 1.3e-3, "{divergence}");
}

/// Tokens that each prompt is answered with, decoded together.
fn generate(
    model: &Llama,
    device: &Device,
    prompts: &[Vec<u32>],
    numbers: &[u64],
    steps: usize,
) -> Vec<Vec<u32>> {
    let sampler = Sampler { temperature: 0.7, top_p: 0.95, seed: 7 };
    let decoder = Decoder::new(model);
    let mut cache = cache(model, device);
    let (mut sequences, mut logits) = (vec![], vec![]);
    for prompt in prompts {
        let sequence = cache.add_sequence().unwrap();
        logits.push(decoder.prefill(&mut cache, sequence, prompt, &mut |_| true).unwrap());
        sequences.push(sequence);
    }
    let mut plan = DecodePlan::new(&cache, &sequences, Policy::Progressive { mass: 0.9 }).unwrap();
    let mut answers = vec![vec![]; prompts.len()];
    for step in 0..steps {
        let tokens: Vec<u32> =
            logits.iter().zip(numbers).map(|(row, &number)| sampler.draw(row, number, step)).collect();
        answers.iter_mut().zip(&tokens).for_each(|(answer, token)| answer.push(*token));
        logits =
            decoder.step(&mut cache, &mut plan, &tokens).unwrap().into_iter().map(Result::unwrap).collect();
    }
    answers
}

#[test]
fn generation_is_the_same_in_any_batch_and_on_the_emulated_ptx() {
    let (model, tokens) = load();
    let prompts: Vec<Vec<u32>> = [TEXT, &TEXT[77..], "The capital of France is"]
        .iter()
        .map(|text| tokens.encode(text).unwrap())
        .collect();
    let together = generate(&model, &Device::cpu(), &prompts, &[0, 1, 2], 12);
    for (i, prompt) in prompts.iter().enumerate() {
        let alone = generate(&model, &Device::cpu(), std::slice::from_ref(prompt), &[i as u64], 12);
        assert_eq!(alone[0], together[i], "prompt {i}");
    }
    let emulated = generate(&model, &Device::emulator(), &prompts[..1], &[0], 3);
    assert_eq!(emulated[0], together[0][..3]);
}
