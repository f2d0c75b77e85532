//! The Llama-shaped decoder: RMS norm, grouped attention with rotary positions, SwiGLU, tied or own output
//! matrix; biases on q, k, v where the file has them (Qwen2).
//!
//! Attention itself is not here: [`Model::project`] gives q, k, v of a layer and [`Model::advance`] takes what
//! attention made of them, so that a cache of any kind can stand between.

use std::path::Path;

use rayon::prelude::*;

use crate::config::Config;
use crate::error::ModelError;
use crate::gguf::Gguf;
use crate::matrix::Matrix;
use crate::rope::Rope;

/// Queries, keys and values of a layer.
#[derive(Debug, Default)]
pub struct Projections {
    /// `[rows, q_heads, head_dim]`, rotated.
    pub q: Vec<f32>,
    /// `[rows, kv_heads, head_dim]`, rotated.
    pub k: Vec<f32>,
    /// `[rows, kv_heads, head_dim]`.
    pub v: Vec<f32>,
}

/// A decoder without its attention. Rows are tokens, of any sequences; a row's numbers do not depend on the others.
pub trait Model: Send + Sync {
    /// Geometry.
    fn config(&self) -> &Config;

    /// Residual stream of the tokens: `[rows, hidden]`.
    ///
    /// # Errors
    /// [`ModelError::UnknownToken`].
    fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>, ModelError>;

    /// What a layer asks attention for. hidden: `[rows, hidden]`; positions: `[rows]`, below the context.
    fn project(&self, layer: usize, hidden: &[f32], positions: &[usize], to: &mut Projections);

    /// The rest of the layer. attention: `[rows, q_heads, head_dim]`; hidden: `[rows, hidden]`, updated.
    fn advance(&self, layer: usize, attention: &[f32], hidden: &mut [f32]);

    /// Logits of the rows: `[rows, vocabulary]`.
    fn logits(&self, hidden: &[f32]) -> Vec<f32>;
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    /// Of q, k, v; empty where there are none.
    biases: [Vec<f32>; 3],
    output: Matrix,
    mlp_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

/// A Llama-shaped model.
#[derive(Debug)]
pub struct Llama {
    config: Config,
    rope: Rope,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// The output matrix, where it is not the embedding.
    output: Option<Matrix>,
}

/// Tensors of a layer that this model computes with.
const KNOWN: [&str; 12] = [
    "attn_norm.weight",
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_q.bias",
    "attn_k.bias",
    "attn_v.bias",
    "attn_output.weight",
    "ffn_norm.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
];

impl Llama {
    /// Loads a file.
    ///
    /// # Errors
    /// [`ModelError::Read`], [`ModelError::Damaged`], [`ModelError::Unsupported`].
    pub fn open(path: &Path) -> Result<Llama, ModelError> {
        Llama::read(&mut Gguf::open(path)?)
    }

    /// Loads an open file.
    ///
    /// # Errors
    /// As [`Llama::open`].
    pub fn read(gguf: &mut Gguf) -> Result<Llama, ModelError> {
        let config = Config::read(gguf)?;
        if let Some(tensor) = gguf.layer_tensors(0).find(|name| !KNOWN.contains(name)) {
            let what = format!("a tensor {tensor:?} in every layer");
            return Err(gguf.unsupported(what, "the tensors of Llama and Qwen2"));
        }
        let Config { layers, hidden, feed_forward, q_heads, kv_heads, head_dim, vocabulary, .. } = config;
        let (queries, keys) = (q_heads * head_dim, kv_heads * head_dim);
        let factors = match gguf.has("rope_freqs.weight") {
            true => gguf.vector("rope_freqs.weight", config.rotated / 2)?,
            false => vec![],
        };
        let embedding = gguf.matrix("token_embd.weight", vocabulary, hidden)?;
        let output = match gguf.has("output.weight") {
            true => Some(gguf.matrix("output.weight", vocabulary, hidden)?),
            false => None,
        };
        let norm = gguf.vector("output_norm.weight", hidden)?;
        let layers = (0..layers)
            .map(|layer| {
                let name = |tensor: &str| format!("blk.{layer}.{tensor}");
                let mut bias = |tensor: &str, len: usize| match gguf.has(&name(tensor)) {
                    true => gguf.vector(&name(tensor), len),
                    false => Ok(vec![]),
                };
                let biases =
                    [bias("attn_q.bias", queries)?, bias("attn_k.bias", keys)?, bias("attn_v.bias", keys)?];
                Ok(Layer {
                    biases,
                    attention_norm: gguf.vector(&name("attn_norm.weight"), hidden)?,
                    q: gguf.matrix(&name("attn_q.weight"), queries, hidden)?,
                    k: gguf.matrix(&name("attn_k.weight"), keys, hidden)?,
                    v: gguf.matrix(&name("attn_v.weight"), keys, hidden)?,
                    output: gguf.matrix(&name("attn_output.weight"), hidden, queries)?,
                    mlp_norm: gguf.vector(&name("ffn_norm.weight"), hidden)?,
                    gate: gguf.matrix(&name("ffn_gate.weight"), feed_forward, hidden)?,
                    up: gguf.matrix(&name("ffn_up.weight"), feed_forward, hidden)?,
                    down: gguf.matrix(&name("ffn_down.weight"), hidden, feed_forward)?,
                })
            })
            .collect::<Result<_, ModelError>>()?;
        Ok(Llama { rope: Rope::new(&config, &factors), config, embedding, layers, norm, output })
    }

    /// Bytes of weights that a decode step reads, for any number of sequences.
    pub fn step_bytes(&self) -> usize {
        let layers = self.layers.iter().flat_map(|l| [&l.q, &l.k, &l.v, &l.output, &l.gate, &l.up, &l.down]);
        layers.chain([self.output.as_ref().unwrap_or(&self.embedding)]).map(Matrix::bytes).sum()
    }

    fn normed(&self, hidden: &[f32], weight: &[f32]) -> Vec<f32> {
        let mut out = hidden.to_vec();
        out.par_chunks_mut(self.config.hidden).with_min_len(8).for_each(|row| {
            let squares: f32 = row.iter().map(|x| x * x).sum();
            let factor = 1.0 / (squares / row.len() as f32 + self.config.epsilon).sqrt();
            row.iter_mut().zip(weight).for_each(|(x, w)| *x *= factor * w);
        });
        out
    }
}

/// `W x` and, where there is one, a bias.
fn linear(matrix: &Matrix, bias: &[f32], x: &[f32], to: &mut Vec<f32>) {
    to.clear();
    to.resize(x.len() / matrix.inputs() * matrix.outputs(), 0.0);
    matrix.multiply(x, to);
    if !bias.is_empty() {
        for row in to.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
    }
}

impl Model for Llama {
    fn config(&self) -> &Config {
        &self.config
    }

    fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>, ModelError> {
        let vocabulary = self.config.vocabulary;
        let mut hidden = vec![0.0; tokens.len() * self.config.hidden];
        for (&token, row) in tokens.iter().zip(hidden.chunks_exact_mut(self.config.hidden)) {
            if token as usize >= vocabulary {
                return Err(ModelError::UnknownToken { token, vocabulary });
            }
            self.embedding.add_row(token as usize, row);
        }
        Ok(hidden)
    }

    fn project(&self, layer: usize, hidden: &[f32], positions: &[usize], to: &mut Projections) {
        let layer = &self.layers[layer];
        let x = self.normed(hidden, &layer.attention_norm);
        linear(&layer.q, &layer.biases[0], &x, &mut to.q);
        linear(&layer.k, &layer.biases[1], &x, &mut to.k);
        linear(&layer.v, &layer.biases[2], &x, &mut to.v);
        for (heads, matrix) in [(&mut to.q, &layer.q), (&mut to.k, &layer.k)] {
            let rows = heads.par_chunks_mut(matrix.outputs()).zip(positions).with_min_len(16);
            rows.for_each(|(heads, &position)| self.rope.rotate(heads, position));
        }
    }

    fn advance(&self, layer: usize, attention: &[f32], hidden: &mut [f32]) {
        let layer = &self.layers[layer];
        let (mut gate, mut up) = (vec![], vec![]);
        linear(&layer.output, &[], attention, &mut up);
        hidden.iter_mut().zip(&up).for_each(|(h, x)| *h += x);
        let x = self.normed(hidden, &layer.mlp_norm);
        linear(&layer.gate, &[], &x, &mut gate);
        linear(&layer.up, &[], &x, &mut up);
        let width = self.config.feed_forward;
        gate.par_chunks_mut(width).zip(up.par_chunks(width)).for_each(|(gate, up)| {
            gate.iter_mut().zip(up).for_each(|(g, u)| *g = *g / (1.0 + (-*g).exp()) * u);
        });
        linear(&layer.down, &[], &gate, &mut up);
        hidden.iter_mut().zip(&up).for_each(|(h, x)| *h += x);
    }

    fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        let x = self.normed(hidden, &self.norm);
        let mut out = vec![];
        linear(self.output.as_ref().unwrap_or(&self.embedding), &[], &x, &mut out);
        out
    }
}
