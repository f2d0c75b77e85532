//! The same model as plain loops in f64, from candle's own reading and dequantising of the file: shares no code with
//! the crate.

use std::collections::HashMap;
use std::path::Path;

use candle_core::Device;
use candle_core::quantized::gguf_file::Content;

use super::Variant;

pub struct Reference {
    tensors: HashMap<String, (Vec<usize>, Vec<f32>)>,
    layers: usize,
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rotated: usize,
    base: f64,
    /// Positions are divided by it.
    scaling: f64,
    neighbours: bool,
}

impl Reference {
    pub fn open(path: &Path, variant: &Variant) -> Reference {
        let mut file = std::fs::File::open(path).unwrap();
        let content = Content::read(&mut file).unwrap();
        let a = content.metadata["general.architecture"].to_string().unwrap().clone();
        let number =
            |key: &str| content.metadata.get(&format!("{a}.{key}")).map(|v| v.to_u32().unwrap() as usize);
        let q_heads = number("attention.head_count").unwrap();
        let head_dim = number("attention.key_length");
        let base = content.metadata[&format!("{a}.rope.freq_base")].to_f32().unwrap();
        let mut tensors = HashMap::new();
        for name in content.tensor_infos.keys() {
            let tensor =
                content.tensor(&mut file, name, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap();
            let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            tensors.insert(name.clone(), (tensor.dims().to_vec(), values));
        }
        Reference {
            tensors,
            layers: number("block_count").unwrap(),
            q_heads,
            kv_heads: number("attention.head_count_kv").unwrap(),
            head_dim: head_dim.unwrap_or(number("embedding_length").unwrap() / q_heads),
            rotated: variant.rotated,
            base: base as f64,
            scaling: variant.linear_scaling.unwrap_or(1.0) as f64,
            neighbours: variant.architecture == "llama",
        }
    }

    fn vector(&self, name: &str) -> &[f32] {
        &self.tensors[name].1
    }

    fn apply(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (shape, w) = &self.tensors[name];
        assert_eq!(shape[1], x.len());
        w.chunks(shape[1]).map(|row| row.iter().zip(x).map(|(w, x)| *w as f64 * x).sum()).collect()
    }

    fn with_bias(&self, layer: usize, which: &str, x: &[f64]) -> Vec<f64> {
        let mut y = self.apply(&format!("blk.{layer}.attn_{which}.weight"), x);
        if let Some((_, bias)) = self.tensors.get(&format!("blk.{layer}.attn_{which}.bias")) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += *b as f64);
        }
        y
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x.iter().zip(self.vector(name)).map(|(x, w)| x / (mean + 1e-5).sqrt() * *w as f64).collect()
    }

    /// Rotations as complex numbers, pair by pair.
    fn rotate(&self, x: &mut [f64], position: usize) {
        let n = self.rotated;
        for head in x.chunks_mut(self.head_dim) {
            for i in 0..n / 2 {
                let mut frequency = self.base.powf(-((2 * i) as f64) / n as f64);
                if let Some((_, factors)) = self.tensors.get("rope_freqs.weight") {
                    frequency /= factors[i] as f64;
                }
                let angle = position as f64 / self.scaling * frequency;
                let (re, im) = if self.neighbours { (2 * i, 2 * i + 1) } else { (i, n / 2 + i) };
                let (a, b) = (head[re], head[im]);
                (head[re], head[im]) = (a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos());
            }
        }
    }

    /// Logits after every token.
    pub fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let (shape, embedding) = &self.tensors["token_embd.weight"];
        let row = |token: u32| {
            embedding[token as usize * shape[1]..][..shape[1]].iter().map(|&x| x as f64).collect()
        };
        let mut stream: Vec<Vec<f64>> = tokens.iter().map(|&token| row(token)).collect();
        let d = self.head_dim;
        for layer in 0..self.layers {
            let name = |tensor: &str| format!("blk.{layer}.{tensor}");
            let (mut keys, mut values): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (vec![], vec![]);
            for (position, x) in stream.iter_mut().enumerate() {
                let y = self.norm(&name("attn_norm.weight"), x);
                let (mut q, mut k) = (self.with_bias(layer, "q", &y), self.with_bias(layer, "k", &y));
                self.rotate(&mut q, position);
                self.rotate(&mut k, position);
                keys.push(k);
                values.push(self.with_bias(layer, "v", &y));
                let mut attention = vec![0.0; self.q_heads * d];
                for h in 0..self.q_heads {
                    let kv = h / (self.q_heads / self.kv_heads) * d;
                    let q = &q[h * d..][..d];
                    let scores: Vec<f64> = keys
                        .iter()
                        .map(|k| q.iter().zip(&k[kv..]).map(|(q, k)| q * k).sum::<f64>() / (d as f64).sqrt())
                        .collect();
                    let top = scores.iter().copied().fold(f64::MIN, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for (weight, v) in weights.iter().zip(&values) {
                        for c in 0..d {
                            attention[h * d + c] += weight / total * v[kv + c];
                        }
                    }
                }
                let out = self.apply(&name("attn_output.weight"), &attention);
                x.iter_mut().zip(out).for_each(|(x, y)| *x += y);
                let y = self.norm(&name("ffn_norm.weight"), x);
                let (gate, up) =
                    (self.apply(&name("ffn_gate.weight"), &y), self.apply(&name("ffn_up.weight"), &y));
                let inner: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                let out = self.apply(&name("ffn_down.weight"), &inner);
                x.iter_mut().zip(out).for_each(|(x, y)| *x += y);
            }
        }
        let output =
            if self.tensors.contains_key("output.weight") { "output.weight" } else { "token_embd.weight" };
        stream.iter().map(|x| self.apply(output, &self.norm("output_norm.weight", x))).collect()
    }
}
