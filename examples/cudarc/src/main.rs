//! A decode step from a Rust program with cudarc: append, score, plan, attend, merge over a small paged cache.
//!
//! It depends on no crate of this project: it reads manifest.json and psa_kernels.ptx from the folder that
//! `cargo xtask dist` makes, finds entries by family and values, and passes arguments by name. First dense, compared
//! with plain attention in f64; then progressive:0.95, compared with the same over the blocks that it read.
//!
//!     cargo run --release -p psa-example-cudarc -- DIST

mod plain;

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;
use plain::{Sequence, attention};
use serde_json::Value;

/// Layouts: docs/kernels.md.
const BLOCK: usize = 16;
const GROUP_TOKENS: usize = 64;
const BATCH: usize = 2;
const KV_HEADS: usize = 2;
const GROUP: usize = 4;
const HEAD_DIM: usize = 64;
const HEADS: usize = KV_HEADS * GROUP;
const LENGTHS: [usize; BATCH] = [1000, 300];

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type Buffer = CudaSlice<u8>;

/// An argument of a launch.
enum Arg<'a> {
    Buffer(&'a Buffer),
    U32(u32),
    F32(f32),
}

/// The distribution, loaded.
struct Kernels {
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    manifest: Value,
}

/// An entry: what to call, and what the manifest says of it.
struct Kernel {
    function: CudaFunction,
    entry: Value,
}

impl Kernels {
    fn load(folder: &Path) -> Result<Kernels> {
        // SAFETY: opens a library that may run code of its own, as any driver does.
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            return Err("no CUDA driver: libcuda.so.1 cannot be loaded".into());
        }
        let context = CudaContext::new(0)?;
        let manifest: Value = serde_json::from_str(&fs::read_to_string(folder.join("manifest.json"))?)?;
        let ptx = fs::read_to_string(folder.join("psa_kernels.ptx"))?;
        Ok(Kernels {
            stream: context.default_stream(),
            module: context.load_module(Ptx::from_src(ptx))?,
            manifest,
        })
    }

    /// The entry of a family with these values of its generics.
    fn find(&self, family: &str, values: &[(&str, &str)]) -> Result<Kernel> {
        let has = |kernel: &Value, generic: &str, value: &str| {
            let list = kernel["specialisation"].as_array();
            list.is_some_and(|list| list.iter().any(|s| s["generic"] == generic && s["value"] == value))
        };
        let all = self.manifest["kernels"].as_array().ok_or("the manifest has no kernels")?;
        let entry = all
            .iter()
            .find(|k| k["family"] == family && values.iter().all(|(g, v)| has(k, g, v)))
            .ok_or_else(|| format!("no kernel {family} with {values:?}"))?;
        let name = entry["name"].as_str().ok_or("a kernel without a name")?;
        let function = self.module.load_function(name)?;
        let shared = number(&entry["shared_bytes"]);
        if shared > 48 * 1024 {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, shared as i32)?;
        }
        Ok(Kernel { function, entry: entry.clone() })
    }

    /// Launches with arguments by name, in the order that the manifest has them.
    fn launch(&self, kernel: &Kernel, grid: [usize; 3], arguments: &[(&str, Arg<'_>)]) -> Result<()> {
        let params = kernel.entry["params"].as_array().ok_or("a kernel without parameters")?;
        let mut builder = self.stream.launch_builder(&kernel.function);
        for param in params {
            let (_, value) = arguments
                .iter()
                .find(|(name, _)| param["name"] == *name)
                .ok_or_else(|| format!("{} needs {}", kernel.entry["name"], param["name"]))?;
            let bytes = number(&param["bytes"]);
            match value {
                Arg::Buffer(buffer) if bytes == 8 => builder.arg(*buffer),
                Arg::U32(value) if param["type"] == "u32" => builder.arg(value),
                Arg::F32(value) if param["type"] == "f32" => builder.arg(value),
                _ => {
                    return Err(format!(
                        "{} takes {} as {}",
                        kernel.entry["name"], param["name"], param["type"]
                    )
                    .into());
                }
            };
        }
        let block = |i: usize| number(&kernel.entry["block"][i]);
        let config = LaunchConfig {
            grid_dim: (grid[0] as u32, grid[1] as u32, grid[2] as u32),
            block_dim: (block(0), block(1), block(2)),
            shared_mem_bytes: number(&kernel.entry["shared_bytes"]),
        };
        // SAFETY: the buffers have the sizes of docs/kernels.md, and the arguments the types of the manifest.
        unsafe { builder.launch(config) }?;
        Ok(())
    }

    fn room(&self, bytes: usize) -> Result<Buffer> {
        Ok(self.stream.alloc_zeros(bytes)?)
    }

    fn upload<const N: usize>(&self, values: impl IntoIterator<Item = [u8; N]>) -> Result<Buffer> {
        let bytes: Vec<u8> = values.into_iter().flatten().collect();
        Ok(self.stream.clone_htod(&bytes)?)
    }

    fn download<T, const N: usize>(&self, buffer: &Buffer, from: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let bytes = self.stream.clone_dtoh(buffer)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|chunk| from(*chunk)).collect())
    }
}

fn number(value: &Value) -> u32 {
    value.as_u64().unwrap_or_default() as u32
}

fn main() -> Result<()> {
    let folder =
        std::env::args().nth(1).ok_or("usage: psa-example-cudarc FOLDER, as `cargo xtask dist` makes it")?;
    let cuda = Kernels::load(Path::new(&folder))?;
    let element = [("T", "bf16"), ("D", "64")];
    let with = |more: (&'static str, &'static str)| [element[0], element[1], more];
    let append = cuda.find("append", &with(("P", "2")))?;
    let score = cuda.find("score_nested", &element)?;
    let refine = cuda.find("refine", &element)?;
    let plan = cuda.find("plan", &[("N", "512")])?;
    let plan_identity = cuda.find("plan_identity", &[])?;
    let attend = cuda.find("attend", &element)?;
    let merge = cuda.find("merge", &element)?;

    // The cache: tables that name a slot for each block and a page for each full group of 64 tokens.
    let blocks = |tokens: usize| tokens.div_ceil(BLOCK);
    let longest = LENGTHS.into_iter().max().unwrap_or(0);
    let max_blocks = blocks(longest).next_multiple_of(4);
    let splits = blocks(longest).div_ceil(16).clamp(1, 64);
    let (mut block_table, mut mirror_table) = (Vec::new(), Vec::new());
    let (mut slots, mut pages) = (0u32, 0u32);
    for tokens in LENGTHS {
        for _ in 0..KV_HEADS {
            let row = |used: usize, width: usize, next: &mut u32| -> Vec<u32> {
                let row = (0..width).map(|i| if i < used { *next + i as u32 } else { 0 }).collect();
                *next += used as u32;
                row
            };
            block_table.extend(row(blocks(tokens), max_blocks, &mut slots));
            mirror_table.extend(row(tokens / GROUP_TOKENS, max_blocks / 4, &mut pages));
        }
    }
    let words = |values: &[u32]| cuda.upload(values.iter().map(|v| v.to_le_bytes()));
    let arena = cuda.room(slots as usize * 2 * BLOCK * HEAD_DIM * 2)?;
    let mirror = cuda.room(pages as usize * (4 * HEAD_DIM + GROUP_TOKENS * HEAD_DIM / 2))?;
    let (block_table, mirror_table) = (words(&block_table)?, words(&mirror_table)?);
    let seqs = words(&[0, 1])?;
    let geometry = |mut more: Vec<(&'static str, Arg<'static>)>| {
        more.extend([
            ("layer", Arg::U32(0)),
            ("layers", Arg::U32(1)),
            ("kv_heads", Arg::U32(KV_HEADS as u32)),
            ("group", Arg::U32(GROUP as u32)),
            ("max_blocks", Arg::U32(max_blocks as u32)),
            ("max_splits", Arg::U32(splits as u32)),
            ("scale", Arg::F32(1.0 / 8.0)), // 1 / sqrt(64)
        ]);
        more
    };

    // Append: all tokens but the last, as a prefill; then the last one, as a decode step does.
    let sequences: Vec<Sequence> = LENGTHS.iter().map(|&n| Sequence::random(n, 2503 + n as u64)).collect();
    for part in [0, 1] {
        let range = |n: usize| if part == 0 { 0..n - 1 } else { n - 1..n };
        let row = KV_HEADS * HEAD_DIM;
        let rows = |of: fn(&Sequence) -> &[half::bf16]| {
            let values =
                sequences.iter().flat_map(|s| &of(s)[range(s.tokens).start * row..range(s.tokens).end * row]);
            cuda.upload(values.map(|x| x.to_le_bytes()))
        };
        let mut offsets = vec![0u32];
        offsets.extend(LENGTHS.iter().scan(0, |sum, &n| {
            *sum += range(n).len() as u32;
            Some(*sum)
        }));
        let touched =
            LENGTHS.iter().map(|&n| range(n).end.div_ceil(GROUP_TOKENS) - range(n).start / GROUP_TOKENS);
        let groups = touched.max().unwrap_or(1);
        let (k, v, offsets) = (rows(|s| &s.k)?, rows(|s| &s.v)?, words(&offsets)?);
        let lens = words(&LENGTHS.map(|n| range(n).end as u32))?;
        let mut arguments = geometry(vec![]);
        let buffers = [
            ("k", &k),
            ("v", &v),
            ("offsets", &offsets),
            ("arena", &arena),
            ("mirror", &mirror),
            ("block_table", &block_table),
            ("mirror_table", &mirror_table),
            ("seqs", &seqs),
            ("lens", &lens),
        ];
        arguments.extend(buffers.map(|(name, buffer)| (name, Arg::Buffer(buffer))));
        cuda.launch(&append, [KV_HEADS, BATCH, groups], &arguments)?;
    }

    // The step's buffers: docs/kernels.md.
    let (rows, heads) = (BATCH * KV_HEADS, BATCH * HEADS);
    let lens = words(&LENGTHS.map(|n| n as u32))?;
    let budget = words(&[8192; BATCH])?;
    let q = cuda.upload(sequences.iter().flat_map(|s| &s.q).map(|x| x.to_le_bytes()))?;
    let log_mass = cuda.room(heads * max_blocks * 4)?;
    let (doubt, threshold) = (cuda.room(heads * max_blocks)?, cuda.room(heads * 4)?);
    let looks = cuda.room(rows * 8)?; // zeros before the first step
    let order = cuda.room(rows * max_blocks * 4)?;
    let count = cuda.room(rows * 4)?;
    let (peak, rest) = (cuda.room(heads * 4)?, cuda.room(heads * 8)?);
    let partial = cuda.room(rows * splits * GROUP * HEAD_DIM * 4)?;
    let partial_ml = cuda.room(rows * splits * GROUP * 8)?;
    let (out, lse) = (cuda.room(heads * HEAD_DIM * 4)?, cuda.room(heads * 4)?);
    let (read, mass_read) = (cuda.room(rows * 8)?, cuda.room(heads * 4)?);
    for (name, mass) in [("dense", 0.0f32), ("progressive:0.95", 0.95)] {
        // The prediction, as 16-bit fixed point, rounded up.
        let target = (mass * 65536.0).ceil() as u32;
        let mut arguments = geometry(vec![
            ("mass", Arg::F32(mass)),
            ("target", Arg::U32(target)),
            ("sink", Arg::U32(1)),
            ("recent", Arg::U32(2)),
        ]);
        let buffers = [
            ("q", &q),
            ("arena", &arena),
            ("mirror", &mirror),
            ("block_table", &block_table),
            ("mirror_table", &mirror_table),
            ("seqs", &seqs),
            ("lens", &lens),
            ("log_mass", &log_mass),
            ("doubt", &doubt),
            ("threshold", &threshold),
            ("looks", &looks),
            ("order", &order),
            ("count", &count),
            ("budget", &budget),
            ("peak", &peak),
            ("rest", &rest),
            ("partial", &partial),
            ("partial_ml", &partial_ml),
            ("out", &out),
            ("lse", &lse),
            ("read", &read),
            ("mass_read", &mass_read),
        ];
        arguments.extend(buffers.map(|(name, buffer)| (name, Arg::Buffer(buffer))));
        if mass == 0.0 {
            cuda.launch(&plan_identity, [KV_HEADS, BATCH, 1], &arguments)?;
        } else {
            let quarters = longest.div_ceil(GROUP_TOKENS).div_ceil(4);
            cuda.launch(&score, [quarters, KV_HEADS, BATCH], &arguments)?;
            cuda.launch(&refine, [quarters, KV_HEADS, BATCH], &arguments)?;
            cuda.launch(&plan, [KV_HEADS, BATCH, 1], &arguments)?;
        }
        cuda.launch(&attend, [splits, KV_HEADS, BATCH], &arguments)?;
        cuda.launch(&merge, [KV_HEADS, BATCH, 1], &arguments)?;

        let got = cuda.download(&out, f32::from_le_bytes)?;
        let got_lse = cuda.download(&lse, f32::from_le_bytes)?;
        let ranks = cuda.download(&order, u32::from_le_bytes)?;
        let reads = cuda.download(&read, u32::from_le_bytes)?;
        let (mut worst, mut worst_lse, mut missed) = (0.0f64, 0.0f64, 0.0f64);
        // A NaN stays.
        let raise = |worst: f64, error: f64| if error <= worst { worst } else { error };
        for (b, sequence) in sequences.iter().enumerate() {
            for h in 0..HEADS {
                let row = b * KV_HEADS + h / GROUP;
                let used = &ranks[row * max_blocks..][..reads[2 * row] as usize];
                let (expected, expected_lse, covered) = attention(sequence, h, used);
                worst_lse = raise(worst_lse, (f64::from(got_lse[b * HEADS + h]) - expected_lse).abs());
                missed = missed.max(1.0 - covered);
                for (x, y) in got[(b * HEADS + h) * HEAD_DIM..].iter().zip(&expected) {
                    worst = raise(worst, (f64::from(*x) - y).abs());
                }
            }
        }
        let blocks_read: u32 = reads.iter().step_by(2).sum();
        let all: usize = LENGTHS.iter().map(|&n| KV_HEADS * blocks(n)).sum();
        println!(
            "{name}: {blocks_read} of {all} blocks read, largest error {worst:.1e} (lse {worst_lse:.1e}), largest missed mass {missed:.4}"
        );
        // attend rounds weights to bf16, each by 2^-9 of itself at most, and values are below 6 in magnitude: 6 * 2^-9 =
        // 0.0117; f32 sums of 1000 of them add 1000 * 2^-24 * 6 = 3.6e-4. The softmax's sum is of unrounded weights: a
        // score is a sum of 64 products below 300 in all, off by at most 68 * 2^-24 * 300 / 8 = 1.5e-4, and so is lse; as
        // much again for exp2 and the sum. The rest of the mass is an estimate, so what is missed may exceed 0.05 a
        // little; twice that would be a fault.
        let dense = mass == 0.0;
        let right = worst < 0.0121
            && worst_lse < 3e-4
            && missed < if dense { 1e-12 } else { 0.1 }
            && (dense || (blocks_read as usize) < all);
        if !right {
            return Err("this is not what plain attention says".into());
        }
    }
    println!("as plain attention says");
    Ok(())
}
