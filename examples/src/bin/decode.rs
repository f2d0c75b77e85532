//! One decode step with the host crate: fill a cache, attend by a policy, see what it read.
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

    // Numbers in place of a model: keys that turn slowly, a query that looks along one of them.
    let wave = |t: usize, c: usize| ((t as f32) * 0.003 * (1 + c % 7) as f32 + c as f32).sin();
    let row = shape.token_elements();
    let k: Vec<bf16> = (0..tokens * row).map(|i| bf16::from_f32(wave(i / row, i % row))).collect();
    let v: Vec<bf16> = (0..tokens * row).map(|i| bf16::from_f32(wave(i % row, i / row))).collect();
    let q: Vec<bf16> =
        (0..shape.query_elements()).map(|c| bf16::from_f32(3.0 * wave(1234, c % 128))).collect();

    let mut out = vec![0.0; shape.query_elements()];
    for policy in [Policy::Dense, Policy::Progressive { mass: 0.95 }, "top-k:0.1".parse()?] {
        let mut plan = DecodePlan::new(&cache, &[seq], policy)?;
        for layer in 0..shape.layers {
            if cache.layer_len(seq, layer)? == 0 {
                cache.append(seq, layer, &k, &v)?;
            }
            plan.attend(&mut cache, layer, &q, &mut out)?;
        }
        let report = plan.report();
        println!(
            "{policy:18} {:4} of {} blocks, mass believed read {:.3}, out[0] = {:+.5}",
            report.blocks_read(),
            report.blocks_total(),
            report.heads.iter().flat_map(|h| &h.mass).fold(1.0f32, |a, &b| a.min(b)),
            out[0]
        );
    }
    Ok(())
}
