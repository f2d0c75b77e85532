//! The model computes what its file says: logits against an independent model in f64, for every variant.

mod common;

use candle_core::quantized::GgmlDType;
use common::reference::Reference;
use common::{Folder, Variant, prompt};
use psa::{CacheConfig, Capacity, DecodePlan, Device, KvCache, Policy};
use psa_model::{Decoder, Llama, Model};

fn cache(model: &Llama) -> KvCache {
    let config = CacheConfig { capacity: Capacity::Tokens(1024), max_sequences: 2, ..CacheConfig::default() };
    KvCache::new(&Device::cpu(), model.config().shape(), config).unwrap()
}

/// Largest difference, as a share of the largest logit.
fn distance(ours: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(ours.len(), exact.len());
    let size = exact.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    ours.iter().zip(exact).fold(0.0, |m, (a, b)| (*a as f64 - b).abs().max(m)) / size
}

fn variants() -> Vec<(&'static str, Variant)> {
    let base = Variant::default;
    let qwen = || Variant { architecture: "qwen2", biases: true, ..base() };
    vec![
        ("llama, tied, Q4_1 and Q8_0", base()),
        ("own output matrix, Q4_0", Variant { tied: false, weights: GgmlDType::Q4_0, ..base() }),
        ("Q8_0", Variant { weights: GgmlDType::Q8_0, embedding: GgmlDType::F16, ..base() }),
        ("Q5_0", Variant { weights: GgmlDType::Q5_0, ..base() }),
        ("linear scaling", Variant { linear_scaling: Some(4.0), ..base() }),
        ("Llama 3's frequency factors", Variant { frequency_factors: true, ..base() }),
        ("a part of the channels rotated", Variant { rotated: 32, ..base() }),
        ("qwen2, biases, halves", qwen()),
        ("qwen2, a part rotated", Variant { rotated: 48, ..qwen() }),
    ]
}

/// q, k and v are rounded to f16 on their way into the cache, 2^-11 of each at most; scores reach about 10, so a
/// weight can be off by 10 * 2 * 2^-11 = 1 %, at random over keys and channels; two layers pass it on. Rounding of
/// f32 is far below. A head, pair or position taken for another is off by a tenth and more: see below.
const BOUND: f64 = 0.01;

#[test]
fn logits_are_those_of_an_independent_f64_model_for_every_variant() {
    for (name, variant) in variants() {
        let folder = Folder::new("logits");
        let path = folder.model(&variant);
        let tokens = prompt(100, 3);
        let exact = Reference::open(&path, &variant).logits(&tokens);
        let model = Llama::open(&path).unwrap();
        let decoder = Decoder::new(&model);
        let mut cache = cache(&model);
        let sequence = cache.add_sequence().unwrap();
        let first = decoder.prefill(&mut cache, sequence, &tokens[..70], &mut |_| true).unwrap();
        assert!(distance(&first, &exact[69]) < BOUND, "{name}: prefill {}", distance(&first, &exact[69]));
        let mut plan = DecodePlan::new(&cache, &[sequence], Policy::Dense).unwrap();
        for i in 70..100 {
            let logits = decoder.step(&mut cache, &mut plan, &tokens[i..=i]).unwrap().remove(0).unwrap();
            assert!(
                distance(&logits, &exact[i]) < BOUND,
                "{name}, step {i}: {}",
                distance(&logits, &exact[i])
            );
        }
    }
}

#[test]
fn the_bound_would_notice_other_pairs_scales_and_biases() {
    let folder = Folder::new("bound");
    let base = Variant::default();
    let path = folder.model(&base);
    let tokens = prompt(60, 3);
    let model = Llama::open(&path).unwrap();
    let mut cache = cache(&model);
    let sequence = cache.add_sequence().unwrap();
    let ours = Decoder::new(&model).prefill(&mut cache, sequence, &tokens, &mut |_| true).unwrap();
    for other in [
        Variant { architecture: "qwen2", ..base.clone() },
        Variant { linear_scaling: Some(1.5), ..base.clone() },
        Variant { rotated: 32, ..base.clone() },
    ] {
        let exact = Reference::open(&path, &other).logits(&tokens);
        assert!(distance(&ours, &exact[59]) > 5.0 * BOUND, "{}", distance(&ours, &exact[59]));
    }
}

#[test]
fn a_prompt_in_parts_has_the_bits_of_the_prompt_at_once() {
    let folder = Folder::new("parts");
    let model = Llama::open(&folder.model(&Variant::default())).unwrap();
    let decoder = Decoder::new(&model);
    let tokens = prompt(400, 5);
    let mut cache = cache(&model);
    let whole = cache.add_sequence().unwrap();
    let at_once = decoder.prefill(&mut cache, whole, &tokens, &mut |_| true).unwrap();
    let parts = cache.add_sequence().unwrap();
    let mut last = vec![];
    for part in [&tokens[..1], &tokens[1..130], &tokens[130..399], &tokens[399..]] {
        last = decoder.prefill(&mut cache, parts, part, &mut |_| true).unwrap();
    }
    assert_eq!(at_once, last);
}

#[test]
fn a_restored_snapshot_goes_on_with_the_same_bits() {
    let folder = Folder::new("snapshot");
    let model = Llama::open(&folder.model(&Variant::default())).unwrap();
    let decoder = Decoder::new(&model);
    let tokens = prompt(301, 6);
    let mut first = cache(&model);
    let sequence = first.add_sequence().unwrap();
    decoder.prefill(&mut first, sequence, &tokens[..300], &mut |_| true).unwrap();
    let snapshot = decoder.snapshot(&mut first, sequence).unwrap();
    let mut second = cache(&model);
    let restored = decoder.restore(&mut second, &snapshot).unwrap();
    let policy = Policy::Progressive { mass: 0.8 };
    let step = |cache: &mut KvCache, sequence| {
        let mut plan = DecodePlan::new(cache, &[sequence], policy).unwrap();
        let logits = decoder.step(cache, &mut plan, &tokens[300..]).unwrap().remove(0).unwrap();
        (logits, plan.report().blocks_read())
    };
    assert_eq!(step(&mut first, sequence), step(&mut second, restored));
}
