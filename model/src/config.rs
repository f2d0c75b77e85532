//! What a Llama-shaped model is made of, read from a GGUF header and checked.

use crate::error::ModelError;
use crate::gguf::Gguf;
use psa::{Dtype, Shape};

/// Architectures by their GGUF name, and how they turn queries and keys.
const ARCHITECTURES: [(&str, Pairs); 2] = [("llama", Pairs::Neighbours), ("qwen2", Pairs::Halves)];

/// Which channels a rotation pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// 2i and 2i + 1: "llama" files, whose q and k weights are permuted for it.
    Neighbours,
    /// i and i + half: GPT-NeoX style.
    Halves,
}

/// Geometry and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What the file calls itself.
    pub name: String,
    /// Its architecture, as `llama`.
    pub architecture: String,
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the MLP.
    pub feed_forward: usize,
    /// Query heads.
    pub q_heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Longest context that it was trained for, in tokens.
    pub context: usize,
    /// Epsilon of the RMS norms.
    pub epsilon: f32,
    /// Channels that a rotation pairs.
    pub pairs: Pairs,
    /// Channels of a head that are rotated.
    pub rotated: usize,
    /// Base of the rotations' frequencies.
    pub rope_base: f32,
    /// Factor of the positions (linear scaling), 1 without.
    pub position_scale: f32,
}

impl Config {
    /// Reads and checks a header.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`], [`ModelError::Damaged`].
    pub fn read(gguf: &Gguf) -> Result<Config, ModelError> {
        let architecture = gguf.text("general.architecture").unwrap_or("none").to_owned();
        let Some(&(_, pairs)) = ARCHITECTURES.iter().find(|(name, _)| *name == architecture) else {
            return Err(gguf.unsupported(
                format!("architecture {architecture:?}"),
                "llama (also Mistral and SmolLM) and qwen2",
            ));
        };
        let key = |name: &str| format!("{architecture}.{name}");
        let whole = |name: &str| gguf.whole_or_missing(&key(name));
        let optional = |name: &str| gguf.whole(&key(name));
        if let Some(experts) = optional("expert_count").filter(|&n| n > 0) {
            return Err(
                gguf.unsupported(format!("a mixture of {experts} experts"), "dense feed-forward layers")
            );
        }
        if let Some(window) = optional("attention.sliding_window").filter(|&n| n > 0) {
            return Err(gguf.unsupported(
                format!("a sliding window of {window} tokens"),
                "attention to the whole context",
            ));
        }
        let (layers, hidden, q_heads) =
            (whole("block_count")?, whole("embedding_length")?, whole("attention.head_count")?);
        let kv_heads = optional("attention.head_count_kv").unwrap_or(q_heads);
        let head_dim = optional("attention.key_length").unwrap_or(hidden / q_heads);
        if let Some(values) = optional("attention.value_length").filter(|&n| n != head_dim) {
            return Err(gguf.unsupported(
                format!("keys of {head_dim} and values of {values} elements"),
                "one head_dim for both",
            ));
        }
        let vocabulary = match (optional("vocab_size"), gguf.texts("tokenizer.ggml.tokens")) {
            (_, Some(tokens)) => tokens.len(),
            (Some(n), None) => n,
            (None, None) => {
                return Err(gguf.unsupported(
                    "a file without a vocabulary".into(),
                    "files that say vocab_size or hold their tokens",
                ));
            }
        };
        let position_scale = Config::position_scale(gguf, &key)?;
        let config = Config {
            name: gguf.text("general.name").unwrap_or(&architecture).to_owned(),
            layers,
            hidden,
            feed_forward: whole("feed_forward_length")?,
            q_heads,
            kv_heads,
            head_dim,
            vocabulary,
            context: whole("context_length")?,
            epsilon: gguf.number(&key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-5),
            pairs,
            rotated: optional("rope.dimension_count").unwrap_or(head_dim),
            rope_base: gguf.number(&key("rope.freq_base")).unwrap_or(10_000.0),
            position_scale,
            architecture,
        };
        if config.rotated > head_dim || !config.rotated.is_multiple_of(2) {
            return Err(gguf.unsupported(
                format!("rotation of {} of {head_dim} channels", config.rotated),
                "an even number, at most head_dim",
            ));
        }
        config.shape().validate()?;
        Ok(config)
    }

    /// Factor of the positions; other scalings than linear are refused, as they change every number.
    fn position_scale(gguf: &Gguf, key: &dyn Fn(&str) -> String) -> Result<f32, ModelError> {
        let factor = gguf.number(&key("rope.scaling.factor")).unwrap_or(1.0);
        match gguf.text(&key("rope.scaling.type")) {
            None | Some("none") => Ok(1.0),
            Some("linear") if factor > 0.0 && factor.is_finite() => Ok(1.0 / factor),
            Some(other) => Err(gguf.unsupported(
                format!("RoPE scaling {other:?} by {factor}"),
                "none, linear, and Llama 3's, which is a tensor of its own",
            )),
        }
    }

    /// Geometry of a cache for it. Keys and values are f16: three more bits than bf16, and no key of such a
    /// model comes near 65,504.
    pub fn shape(&self) -> Shape {
        let Config { layers, q_heads, kv_heads, head_dim, .. } = *self;
        Shape { layers, q_heads, kv_heads, head_dim, dtype: Dtype::F16 }
    }
}
