//! One decode step with the host crate: fill a cache, attend by a policy, see what it read and what that cost.
//!
//!     cargo run --release -p psa-examples --bin decode

use half::bf16;
use psa::{CacheConfig, Capacity, DecodePlan, Device, Dtype, KvCache, Policy, Shape};

fn main() -> Result<(), psa::Error> {
    let shape = Shape { layers: 2, q_heads: 8, kv_heads: 2, head_dim: 128, dtype: Dtype::Bf16 };
    let tokens = 4000;
    let config = CacheConfig { capacity: Capacity::Tokens(4096), ..CacheConfig::default() };
    let mut cache = KvCache::new(&Device::cpu(), shape, config)?;
    let seq = cache.add_sequence()?;

    // Numbers in place of a model: keys and values that turn slowly from token to token, and a query that looks
    // for the keys around token 1234.
    let wave = |t: usize, c: usize| ((t as f32) * 0.003 * (1 + c % 7) as f32 + c as f32).sin();
    let row = shape.token_elements();
    let rows = |scale: f32, shift: usize| -> Vec<bf16> {
        (0..tokens * row).map(|i| bf16::from_f32(scale * wave(i / row, i % row + shift))).collect()
    };
    let (k, v) = (rows(1.0, 0), rows(1.0, 3));
    let q: Vec<bf16> =
        (0..shape.query_elements()).map(|c| bf16::from_f32(3.0 * wave(1234, c % shape.head_dim))).collect();
    for layer in 0..shape.layers {
        cache.append(seq, layer, &k, &v)?; // [tokens, kv_heads, head_dim]
    }

    let rows = shape.layers * shape.kv_heads;
    println!(
        "A sequence of {tokens} tokens, {} layers of {} KV heads on the CPU:",
        shape.layers, shape.kv_heads
    );
    println!("{} blocks of 16 tokens for each of the {rows} KV heads.\n", tokens / 16);
    println!("policy             blocks read   least softmax mass read   output differs from dense by");

    let mut exact = vec![];
    for policy in [Policy::Dense, Policy::Progressive { mass: 0.95 }, "top-k:0.1".parse()?] {
        let mut plan = DecodePlan::new(&cache, &[seq], policy)?;
        let mut outputs = vec![];
        for layer in 0..shape.layers {
            // A real step appends the layer's new key and value first.
            let mut out = vec![0.0; shape.query_elements()];
            plan.attend(&mut cache, layer, &q, &mut out)?; // [batch, q_heads, head_dim]
            outputs.extend(out);
        }
        if policy == Policy::Dense {
            exact = outputs.clone();
        }
        let report = plan.report();
        println!(
            "{:16}  {:4} of {:4}   {:22.1} %   {:26.2} %",
            policy.to_string(),
            report.blocks_read(),
            report.blocks_total(),
            100.0 * report.heads.iter().flat_map(|h| &h.mass).fold(1.0f32, |a, &b| a.min(b)),
            100.0 * distance(&outputs, &exact),
        );
    }
    println!(
        "\nprogressive:0.95 read until every query head had 95 % of its softmax mass; top-k:0.1 read a tenth of"
    );
    println!("the blocks, whatever mass that is.");
    Ok(())
}

/// `|a - b| / |b|`.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}
