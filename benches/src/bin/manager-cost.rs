//! What the cache's own bookkeeping costs in a decode step: the same calls on a backend that computes nothing and on the
//! CPU, in turns, so that what else the machine does strikes both.
//!
//!     cargo run --release -p psa-benches --bin manager-cost
//!
//! Batch 64, one layer of Llama-3-8B's shape (8 KV heads of 4 query heads, 128 dims, bf16), 1,024 tokens each,
//! `progressive:0.95`. A step is an append and an attend of the layer. The idle backend says that it reads as many
//! blocks as the CPU did. It is the whole host side: checks of the arguments, tables, reservations, and with a host tier
//! residency; a GPU's launches are not in it.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use half::bf16;
use psa::backend::{AppendStep, Backend, DecodeResult, DecodeStep, Selection};
use psa::pool::{HostCopy, SlotCopy, TableChange, Tables};
use psa::tier::HostTier;
use psa::{
    CacheConfig, Capacity, DecodePlan, Device, Dtype, Error, KvCache, Policy, Rows, SequenceId, Shape,
};
use psa_benches::layer_8b;

const SHAPE: Shape = Shape { layers: 1, q_heads: 32, kv_heads: 8, head_dim: 128, dtype: Dtype::Bf16 };
const BATCH: usize = 64;
const TOKENS: usize = 1024;
const ROUNDS: usize = 9;

/// Blocks read by (entry, KV head), as the CPU read them.
type Reads = Arc<Mutex<Vec<u32>>>;

/// Computes nothing.
struct Idle(Reads);

impl Idle {
    fn read(&self, row: usize) -> u32 {
        self.0.lock().map_or(1, |reads| reads.get(row).copied().unwrap_or(1))
    }
}

impl Backend for Idle {
    fn name(&self) -> String {
        "idle".into()
    }

    fn tables_changed(&mut self, _: &Tables, _: &[TableChange]) -> Result<(), Error> {
        Ok(())
    }

    fn append(&mut self, _: &Tables, _: &AppendStep<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn decode(
        &mut self,
        _: &Tables,
        step: &DecodeStep<'_>,
        result: &mut DecodeResult<'_>,
    ) -> Result<(), Error> {
        for row in 0..step.seqs.len() * SHAPE.kv_heads {
            result.read[2 * row] = self.read(row);
        }
        Ok(())
    }

    fn copy_slots(&mut self, _: &[SlotCopy]) -> Result<(), Error> {
        Ok(())
    }

    fn save(&mut self, _: &[HostCopy], _: &mut HostTier) -> Result<(), Error> {
        Ok(())
    }

    fn load(&mut self, _: &[HostCopy], _: &HostTier) -> Result<(), Error> {
        Ok(())
    }

    fn select(
        &mut self,
        tables: &Tables,
        step: &DecodeStep<'_>,
        selection: &mut Selection<'_>,
    ) -> Result<(), Error> {
        let width = tables.extents.max_blocks;
        for (row, order) in selection.order.chunks_exact_mut(width).enumerate() {
            let blocks = step.lens[row / SHAPE.kv_heads].div_ceil(16);
            selection.count[row] = self.read(row).min(blocks);
            // The same ones in every step but for a few, scattered.
            for (rank, block) in order.iter_mut().take(blocks as usize).enumerate() {
                *block = (rank as u32 * 7 + step.lens[0] % 3) % blocks;
            }
        }
        Ok(())
    }
}

/// A cache that holds the batch, its sequences and a plan.
struct Side {
    cache: KvCache,
    ids: Vec<SequenceId>,
    plan: DecodePlan,
}

impl Side {
    fn new(device: &Device, host: bool, prompt: &[bf16]) -> Result<Side, Error> {
        let capacity = Capacity::Tokens(BATCH * (TOKENS + 64));
        let config = CacheConfig {
            capacity,
            host: host.then_some(capacity),
            max_sequences: BATCH,
            max_tokens: Some(TOKENS + 64),
            ..CacheConfig::default()
        };
        let mut cache = KvCache::new(device, SHAPE, config)?;
        let mut ids = vec![];
        for _ in 0..BATCH {
            let id = cache.add_sequence()?;
            cache.append(id, 0, prompt, prompt)?;
            ids.push(id);
        }
        let plan = DecodePlan::new(&cache, &ids, Policy::Progressive { mass: 0.95 })?;
        Ok(Side { cache, ids, plan })
    }

    /// Microseconds of a step.
    fn step(&mut self, token: &[bf16], q: &[bf16], out: &mut [f32]) -> Result<f64, Error> {
        let begun = Instant::now();
        self.cache.append_batch(0, &self.ids, token, token)?;
        self.plan.attend(&mut self.cache, 0, q, out)?;
        Ok(begun.elapsed().as_secs_f64() * 1e6)
    }
}

/// `times` times the elements.
fn repeated(x: Rows<'_>, times: usize) -> Vec<bf16> {
    let x: Vec<bf16> = x.bits().iter().map(|&x| bf16::from_bits(x)).collect();
    x.repeat(times)
}

fn main() -> Result<(), Error> {
    let reads = Reads::default();
    // Real keys and queries, the same for all sequences.
    let one = &layer_8b(TOKENS).sequences[0];
    let prompt = repeated(one.k.all(), 1);
    let token = prompt[..SHAPE.token_elements()].repeat(BATCH);
    let q = repeated(one.q.all(), BATCH);
    let mut out = vec![0.0; BATCH * SHAPE.query_elements()];
    let of_reads = reads.clone();
    let idle = Device::from_factory("idle", move |_| Ok(Box::new(Idle(of_reads.clone()))));
    let mut cpu = Side::new(&Device::cpu(), false, &prompt)?;
    let mut sides = [Side::new(&idle, false, &prompt)?, Side::new(&idle, true, &prompt)?];
    let mut ratios = [vec![], vec![]];
    let mut times = [vec![], vec![], vec![]];
    for round in 0..ROUNDS + 1 {
        let whole = cpu.step(&token, &q, &mut out)?;
        if let Ok(mut reads) = reads.lock() {
            *reads = cpu.plan.heads(0).map(|head| head.blocks_read as u32).collect();
        }
        let own = [sides[0].step(&token, &q, &mut out)?, sides[1].step(&token, &q, &mut out)?];
        // The first round is cold.
        if round > 0 {
            times[0].push(whole);
            for (i, own) in own.into_iter().enumerate() {
                times[i + 1].push(own);
                ratios[i].push(own / whole);
            }
        }
    }
    let median = |x: &mut Vec<f64>| {
        x.sort_by(f64::total_cmp);
        x[x.len() / 2]
    };
    let [whole, plain, tier] = times.each_mut().map(median);
    let [plain_share, tier_share] = ratios.each_mut().map(median);
    println!("a step of one layer, batch {BATCH}, {TOKENS} tokens each, on the CPU: {whole:.0} us");
    println!("the manager's share, all on the device:     {plain:.0} us, {:.2} %", 100.0 * plain_share);
    println!("the manager's share, with a host tier:      {tier:.0} us, {:.2} %", 100.0 * tier_share);
    Ok(())
}
