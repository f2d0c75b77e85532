//! A small made-up model as a GGUF file, in variants, and a folder for it.

#![allow(dead_code)] // Every test program uses a part.

pub mod reference;

use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub const LAYERS: usize = 2;
pub const HIDDEN: usize = 128;
pub const FEED_FORWARD: usize = 96;
pub const Q_HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = 64;
pub const CONTEXT: usize = 1024;

/// What the variants differ in.
#[derive(Clone)]
pub struct Variant {
    pub architecture: &'static str,
    pub weights: GgmlDType,
    pub embedding: GgmlDType,
    pub tied: bool,
    pub biases: bool,
    pub rotated: usize,
    pub linear_scaling: Option<f32>,
    pub frequency_factors: bool,
    /// Values that replace or add to the header's.
    pub header: Vec<(&'static str, Value)>,
    /// A tensor to leave out.
    pub without: Option<&'static str>,
    /// A token whose embedding is not a number.
    pub poison: Option<usize>,
}

impl Default for Variant {
    fn default() -> Self {
        Variant {
            architecture: "llama",
            weights: GgmlDType::Q4_1,
            embedding: GgmlDType::Q8_0,
            tied: true,
            biases: false,
            rotated: HEAD_DIM,
            linear_scaling: None,
            frequency_factors: false,
            header: vec![],
            without: None,
            poison: None,
        }
    }
}

/// The vocabulary: two special tokens, every byte of printable ASCII as byte-level BPE writes it, and merges.
pub fn vocabulary() -> (Vec<String>, Vec<String>) {
    let mut tokens: Vec<String> =
        ["<|im_start|>", "<|im_end|>", "\u{120}", "\u{10a}"].map(String::from).into();
    tokens.extend((b'!'..=b'~').map(|byte| (byte as char).to_string()));
    tokens.extend(["th", "the", "\u{120}the"].map(String::from));
    (tokens, ["t h", "th e", "\u{120} the"].map(String::from).into())
}

/// A folder that goes with the test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("psa-model-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    /// Writes a variant of the model.
    pub fn model(&self, variant: &Variant) -> PathBuf {
        let path = self.0.join("model.gguf");
        write(variant, &path);
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn write(variant: &Variant, path: &Path) {
    let (tokens, merges) = vocabulary();
    let a = variant.architecture;
    let types: Vec<Value> = (0..tokens.len()).map(|i| Value::I32(if i < 2 { 3 } else { 1 })).collect();
    let texts = |texts: &[String]| Value::Array(texts.iter().cloned().map(Value::String).collect());
    let mut header: Vec<(String, Value)> = vec![
        ("general.architecture".into(), Value::String(a.into())),
        ("general.name".into(), Value::String("tiny".into())),
        (format!("{a}.block_count"), Value::U32(LAYERS as u32)),
        (format!("{a}.context_length"), Value::U32(CONTEXT as u32)),
        (format!("{a}.embedding_length"), Value::U32(HIDDEN as u32)),
        (format!("{a}.feed_forward_length"), Value::U32(FEED_FORWARD as u32)),
        (format!("{a}.attention.head_count"), Value::U32(Q_HEADS as u32)),
        (format!("{a}.attention.head_count_kv"), Value::U32(KV_HEADS as u32)),
        (format!("{a}.attention.key_length"), Value::U32(HEAD_DIM as u32)),
        (format!("{a}.attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
        (format!("{a}.rope.freq_base"), Value::F32(1000.0)),
        (format!("{a}.rope.dimension_count"), Value::U32(variant.rotated as u32)),
        ("tokenizer.ggml.model".into(), Value::String("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Value::String("smollm".into())),
        ("tokenizer.ggml.tokens".into(), texts(&tokens)),
        ("tokenizer.ggml.merges".into(), texts(&merges)),
        ("tokenizer.ggml.token_type".into(), Value::Array(types)),
        ("tokenizer.ggml.eos_token_id".into(), Value::U32(1)),
    ];
    if let Some(factor) = variant.linear_scaling {
        header.push((format!("{a}.rope.scaling.type"), Value::String("linear".into())));
        header.push((format!("{a}.rope.scaling.factor"), Value::F32(factor)));
    }
    for (key, value) in &variant.header {
        header.retain(|(existing, _)| existing != key);
        header.push(((*key).to_owned(), value.clone()));
    }

    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut tensors: Vec<(String, QTensor)> = vec![];
    let mut add = |name: String, shape: &[usize], spread: f32, around: f32, dtype: GgmlDType| {
        let n = shape.iter().product();
        // A sum of four uniform numbers is near enough to normal.
        let mut values: Vec<f32> = (0..n)
            .map(|_| around + spread * (0..4).map(|_| random.random_range(-1.0f32..1.0)).sum::<f32>() * 0.866)
            .collect();
        if let (Some(token), "token_embd.weight") = (variant.poison, name.as_str()) {
            values[token * HIDDEN] = f32::NAN;
        }
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        if variant.without != Some(name.as_str()) {
            tensors.push((name, QTensor::quantize(&tensor, dtype).unwrap()));
        }
    };
    let (w, plain) = (variant.weights, GgmlDType::F32);
    let (queries, keys) = (Q_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    // Spreads that keep the stream near unit variance, with scores that favour some keys.
    let narrow = (HIDDEN as f32).powf(-0.5);
    add("token_embd.weight".into(), &[tokens.len(), HIDDEN], 1.0, 0.0, variant.embedding);
    add("output_norm.weight".into(), &[HIDDEN], 0.1, 1.0, plain);
    if !variant.tied {
        add("output.weight".into(), &[tokens.len(), HIDDEN], narrow, 0.0, GgmlDType::F16);
    }
    if variant.frequency_factors {
        add("rope_freqs.weight".into(), &[variant.rotated / 2], 0.2, 2.0, plain);
    }
    for layer in 0..LAYERS {
        let name = |tensor: &str| format!("blk.{layer}.{tensor}");
        add(name("attn_norm.weight"), &[HIDDEN], 0.1, 1.0, plain);
        add(name("attn_q.weight"), &[queries, HIDDEN], 1.6 * narrow, 0.0, w);
        add(name("attn_k.weight"), &[keys, HIDDEN], 1.6 * narrow, 0.0, w);
        add(name("attn_v.weight"), &[keys, HIDDEN], narrow, 0.0, w);
        if variant.biases {
            add(name("attn_q.bias"), &[queries], 0.5, 0.0, plain);
            add(name("attn_k.bias"), &[keys], 0.5, 0.0, plain);
            add(name("attn_v.bias"), &[keys], 0.5, 0.0, plain);
        }
        add(name("attn_output.weight"), &[HIDDEN, queries], (queries as f32).powf(-0.5), 0.0, w);
        add(name("ffn_norm.weight"), &[HIDDEN], 0.1, 1.0, plain);
        add(name("ffn_gate.weight"), &[FEED_FORWARD, HIDDEN], narrow, 0.0, w);
        add(name("ffn_up.weight"), &[FEED_FORWARD, HIDDEN], narrow, 0.0, w);
        add(name("ffn_down.weight"), &[HIDDEN, FEED_FORWARD], (FEED_FORWARD as f32).powf(-0.5), 0.0, w);
    }
    let header: Vec<(&str, &Value)> = header.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &header, &tensors).unwrap();
}

/// Tokens of the vocabulary, drawn evenly; the specials left out.
pub fn prompt(length: usize, seed: u64) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let vocabulary = vocabulary().0.len() as u32;
    (0..length).map(|_| random.random_range(2..vocabulary)).collect()
}
