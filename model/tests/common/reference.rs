//! The same model as plain loops in f64, from candle's own reading and dequantising of the file: shares no code with
//! the crate.

use std::collections::HashMap;
use std::path::Path;

use candle_core::Device;
use candle_core::quantized::gguf_file::Content;

use super::*;

pub struct Reference {
    tensors: HashMap<String, (Vec<usize>, Vec<f64>)>,
    variant: Variant,
}

impl Reference {
    pub fn open(path: &Path, variant: &Variant) -> Reference {
        let mut file = std::fs::File::open(path).unwrap();
        let content = Content::read(&mut file).unwrap();
        let mut tensors = HashMap::new();
        for name in content.tensor_infos.keys() {
            let tensor =
                content.tensor(&mut file, name, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap();
            let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let values = values.into_iter().map(f64::from).collect();
            tensors.insert(name.clone(), (tensor.dims().to_vec(), values));
        }
        Reference { tensors, variant: variant.clone() }
    }

    fn vector(&self, name: &str) -> &[f64] {
        &self.tensors[name].1
    }

    fn apply(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (shape, w) = &self.tensors[name];
        assert_eq!(shape[1], x.len());
        w.chunks(shape[1]).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    }

    fn with_bias(&self, layer: usize, which: &str, x: &[f64]) -> Vec<f64> {
        let mut y = self.apply(&format!("blk.{layer}.attn_{which}.weight"), x);
        if let Some((_, bias)) = self.tensors.get(&format!("blk.{layer}.attn_{which}.bias")) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
        y
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x.iter().zip(self.vector(name)).map(|(x, w)| x / (mean + 1e-5).sqrt() * w).collect()
    }

    /// Rotations as complex numbers, pair by pair.
    fn rotate(&self, x: &mut [f64], position: usize) {
        let n = self.variant.rotated;
        for head in x.chunks_mut(HEAD_DIM) {
            for i in 0..n / 2 {
                let mut frequency = 1000f64.powf(-((2 * i) as f64) / n as f64);
                if let Some((_, factors)) = self.tensors.get("rope_freqs.weight") {
                    frequency /= factors[i];
                }
                let angle = position as f64 / self.variant.linear_scaling.unwrap_or(1.0) as f64 * frequency;
                let (re, im) =
                    if self.variant.architecture == "llama" { (2 * i, 2 * i + 1) } else { (i, n / 2 + i) };
                let (a, b) = (head[re], head[im]);
                (head[re], head[im]) = (a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos());
            }
        }
    }

    /// Logits after every token.
    pub fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let embedding = self.vector("token_embd.weight");
        let mut stream: Vec<Vec<f64>> =
            tokens.iter().map(|&t| embedding[t as usize * HIDDEN..][..HIDDEN].to_vec()).collect();
        for layer in 0..LAYERS {
            let name = |tensor: &str| format!("blk.{layer}.{tensor}");
            let (mut keys, mut values): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (vec![], vec![]);
            for (position, x) in stream.iter_mut().enumerate() {
                let y = self.norm(&name("attn_norm.weight"), x);
                let (mut q, mut k) = (self.with_bias(layer, "q", &y), self.with_bias(layer, "k", &y));
                self.rotate(&mut q, position);
                self.rotate(&mut k, position);
                keys.push(k);
                values.push(self.with_bias(layer, "v", &y));
                let mut attention = vec![0.0; Q_HEADS * HEAD_DIM];
                for h in 0..Q_HEADS {
                    let kv = h / (Q_HEADS / KV_HEADS) * HEAD_DIM;
                    let q = &q[h * HEAD_DIM..][..HEAD_DIM];
                    let scores: Vec<f64> = keys
                        .iter()
                        .map(|k| {
                            q.iter().zip(&k[kv..]).map(|(q, k)| q * k).sum::<f64>() / (HEAD_DIM as f64).sqrt()
                        })
                        .collect();
                    let top = scores.iter().copied().fold(f64::MIN, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for (weight, v) in weights.iter().zip(&values) {
                        for c in 0..HEAD_DIM {
                            attention[h * HEAD_DIM + c] += weight / total * v[kv + c];
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
