//! What the cross-crate tests share: reproducible workloads, one step on any device, and the error
//! bound of a step.
//!
//! A workload is a batch of sequences with keys that cluster, so that softmax masses are as uneven as
//! in a real model and policies have something to select.

pub mod mutate;
pub mod plans;
pub mod scenes;
pub mod seeds;

use half::{bf16, f16};
use psa::{
    CacheConfig, Capacity, DecodePlan, Device, Dtype, Forced, HeadReport, KvCache, Mirror, Policy, Rows,
    Shape,
};

/// splitmix64: small, and the same on every machine.
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next_u64() % n as u64) as usize
    }

    /// Roughly normal: the sum of 12 uniforms.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next_u64() >> 40) as f32 / (1u32 << 24) as f32).sum::<f32>() - 6.0
    }
}

/// Elements of either type.
#[derive(Clone, Debug, PartialEq)]
pub enum Tensor {
    /// f16.
    F16(Vec<f16>),
    /// bf16.
    Bf16(Vec<bf16>),
}

impl Tensor {
    /// Rounds to the element type.
    pub fn new(dtype: Dtype, values: &[f32]) -> Tensor {
        match dtype {
            Dtype::F16 => Tensor::F16(values.iter().map(|&x| f16::from_f32(x)).collect()),
            Dtype::Bf16 => Tensor::Bf16(values.iter().map(|&x| bf16::from_f32(x)).collect()),
        }
    }

    /// The values as f64; exact.
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Tensor::F16(x) => x.iter().map(|x| x.to_f64()).collect(),
            Tensor::Bf16(x) => x.iter().map(|x| x.to_f64()).collect(),
        }
    }

    /// Elements `from .. to`.
    pub fn rows(&self, from: usize, to: usize) -> Rows<'_> {
        match self {
            Tensor::F16(x) => Rows::F16(&x[from..to]),
            Tensor::Bf16(x) => Rows::Bf16(&x[from..to]),
        }
    }

    /// All elements.
    pub fn all(&self) -> Rows<'_> {
        match self {
            Tensor::F16(x) => Rows::F16(x),
            Tensor::Bf16(x) => Rows::Bf16(x),
        }
    }
}

/// One sequence: keys and values `[tokens, kv_heads, head_dim]`, a query `[q_heads, head_dim]`.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Tokens.
    pub tokens: usize,
    /// Keys.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
    /// Query.
    pub q: Tensor,
}

impl Sequence {
    /// A sequence of `tokens` tokens for one layer of `shape`.
    pub fn random(shape: &Shape, tokens: usize, rng: &mut Rng) -> Sequence {
        let (kh, g, d) = (shape.kv_heads, shape.group(), shape.head_dim);
        // Four directions a KV head: keys lie near one of them, queries look along one.
        let axes: Vec<f32> = (0..kh * 4 * d).map(|_| rng.normal()).collect();
        let axis = |h: usize, i: usize| &axes[(h * 4 + i) * d..][..d];
        let mut k = Vec::with_capacity(tokens * kh * d);
        for t in 0..tokens {
            for h in 0..kh {
                // Neighbours mostly share a direction, as the tokens of a passage do.
                let i = if rng.below(4) == 0 { rng.below(4) } else { (t / 48) % 4 };
                k.extend(axis(h, i).iter().map(|a| 0.7 * a + 0.7 * rng.normal()));
            }
        }
        let v: Vec<f32> = (0..tokens * kh * d).map(|_| rng.normal()).collect();
        let mut q = Vec::with_capacity(kh * g * d);
        for h in 0..kh {
            for _ in 0..g {
                let i = rng.below(4);
                q.extend(axis(h, i).iter().map(|a| 0.8 * a + 0.6 * rng.normal()));
            }
        }
        Sequence {
            tokens,
            k: Tensor::new(shape.dtype, &k),
            v: Tensor::new(shape.dtype, &v),
            q: Tensor::new(shape.dtype, &q),
        }
    }
}

/// A batch of sequences of one shape, one layer.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Geometry; `layers` is 1.
    pub shape: Shape,
    /// The batch.
    pub sequences: Vec<Sequence>,
}

impl Workload {
    /// Sequences of the given lengths.
    pub fn random(shape: Shape, lengths: &[usize], seed: u64) -> Workload {
        let sequences = lengths
            .iter()
            .enumerate()
            .map(|(i, &n)| Sequence::random(&shape, n, &mut Rng(seed.wrapping_mul(1_000_003) + i as u64)))
            .collect();
        Workload { shape, sequences }
    }

    /// The same with all queries multiplied by `factor`: larger scores, a sharper softmax.
    pub fn sharpened(mut self, factor: f32) -> Workload {
        for s in &mut self.sequences {
            let q: Vec<f32> = s.q.to_f64().iter().map(|&x| x as f32 * factor).collect();
            s.q = Tensor::new(self.shape.dtype, &q);
        }
        self
    }

    /// The sequences at these indices, in this order.
    pub fn pick(&self, indices: &[usize]) -> Workload {
        Workload {
            shape: self.shape,
            sequences: indices.iter().map(|&i| self.sequences[i].clone()).collect(),
        }
    }
}

/// What a step gave for each sequence.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Output `[q_heads, head_dim]` of each sequence.
    pub out: Vec<Vec<f32>>,
    /// `[q_heads]` of each sequence.
    pub lse: Vec<Vec<f32>>,
    /// Blocks read, in the order of their ranks: `[sequence][kv_head]`.
    pub selection: Vec<Vec<Vec<u32>>>,
    /// Estimated log2 masses, where there are some: `[sequence][q_head]`.
    pub log_mass: Vec<Vec<Option<Vec<f32>>>>,
    /// The report's records: `[sequence][kv_head]`.
    pub heads: Vec<Vec<HeadReport>>,
}

impl Outcome {
    /// Output and lse of sequence `i` as bits.
    pub fn bits(&self, i: usize) -> Vec<u32> {
        self.out[i].iter().chain(&self.lse[i]).map(|x| x.to_bits()).collect()
    }

    /// The blocks that sequence `i` read, sorted, per KV head.
    pub fn sets(&self, i: usize) -> Vec<Vec<u32>> {
        self.selection[i]
            .iter()
            .map(|s| {
                let mut s = s.clone();
                s.sort_unstable();
                s
            })
            .collect()
    }
}

/// Appends the workload to a fresh cache and decodes one step of all its sequences in one batch. The
/// tokens come in two pieces, so that groups fill across appends.
///
/// # Errors
/// The crate's.
pub fn run(
    device: &Device,
    workload: &Workload,
    mirror: Mirror,
    policy: Policy,
) -> Result<Outcome, psa::Error> {
    run_forced(device, workload, mirror, policy, Forced::default())
}

/// As [`run`], with other forced blocks.
///
/// # Errors
/// The crate's.
pub fn run_forced(
    device: &Device,
    workload: &Workload,
    mirror: Mirror,
    policy: Policy,
    forced: Forced,
) -> Result<Outcome, psa::Error> {
    let shape = workload.shape;
    let batch = workload.sequences.len();
    let tokens: usize = workload.sequences.iter().map(|s| s.tokens.next_multiple_of(16)).sum();
    let config = CacheConfig {
        capacity: Capacity::Tokens(tokens.max(16)),
        max_sequences: batch,
        mirror,
        forced,
        ..CacheConfig::default()
    };
    let mut cache = KvCache::new(device, shape, config)?;
    let mut ids = Vec::with_capacity(batch);
    let row = shape.token_elements();
    for s in &workload.sequences {
        let id = cache.add_sequence()?;
        let first = s.tokens - s.tokens.min(37);
        for (from, to) in [(0, first), (first, s.tokens)] {
            if from < to {
                cache.append(id, 0, s.k.rows(from * row, to * row), s.v.rows(from * row, to * row))?;
            }
        }
        ids.push(id);
    }
    let q = stack(shape.dtype, workload.sequences.iter().map(|s| &s.q));
    let mut out = vec![0.0; batch * shape.query_elements()];
    let mut lse = vec![0.0; batch * shape.q_heads];
    let mut plan = DecodePlan::new(&cache, &ids, policy)?.with_record();
    plan.attend_with_lse(&mut cache, 0, q.all(), &mut out, &mut lse)?;
    let report = plan.report();
    Ok(Outcome {
        out: out.chunks(shape.query_elements()).map(<[f32]>::to_vec).collect(),
        lse: lse.chunks(shape.q_heads).map(<[f32]>::to_vec).collect(),
        selection: (0..batch)
            .map(|b| {
                (0..shape.kv_heads).map(|h| plan.selection(0, b, h).unwrap_or_default().to_vec()).collect()
            })
            .collect(),
        log_mass: (0..batch)
            .map(|b| (0..shape.q_heads).map(|h| plan.log_mass(0, b, h).map(<[f32]>::to_vec)).collect())
            .collect(),
        heads: report.heads.chunks(shape.kv_heads).map(<[HeadReport]>::to_vec).collect(),
    })
}

fn stack<'a>(dtype: Dtype, parts: impl Iterator<Item = &'a Tensor>) -> Tensor {
    match dtype {
        Dtype::F16 => Tensor::F16(
            parts.flat_map(|t| if let Tensor::F16(x) = t { x.as_slice() } else { &[] }).copied().collect(),
        ),
        Dtype::Bf16 => Tensor::Bf16(
            parts.flat_map(|t| if let Tensor::Bf16(x) = t { x.as_slice() } else { &[] }).copied().collect(),
        ),
    }
}

/// Whose arithmetic a bound is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arithmetic {
    /// f32 throughout, all additions in a row: the CPU backend, whose order is its own business.
    F32,
    /// The kernels: products on tensor cores, weights rounded to the cache's type for the second one.
    Kernels {
        /// Chunks that merge read after the plan.
        topups: usize,
    },
}

/// How many additions in a row a step's kernels make for one channel: 16 a block that a warp reads, then
/// the warps, the splits, and the same again for every top-up.
fn kernel_depth(tokens: usize, topups: usize) -> usize {
    let blocks = kernels_gpu::layout::blocks(tokens);
    let splits = kernels_gpu::layout::splits(blocks);
    16 * blocks.div_ceil(splits).div_ceil(4) + 4 + splits + 40 * topups
}

/// Bounds of what a step may differ from the same step in exact arithmetic: (output, absolute, of any element;
/// lse, absolute), for query head `head`.
///
/// With u = 2^-24. **Scores.** In f32 a dot product of D terms, each rounded at most D + 4 times (the fma chain,
/// the sum of two halves, the scaling of q), so it is off by at most e = (D + 4) u sum|q k| (log2 domain). On
/// tensor cores products of 16-bit numbers are exact; an `mma` adds 16 of them and the accumulator in an order
/// and with a rounding that the ISA leaves open. We allow that each of the 17 terms is cut at 2^-23 of the largest
/// one: 34 u sum|q k| an `mma`, D / 16 of them, then the sum of two chains, the scaling and its factor:
/// e = (2.2 D + 5) u sum|q k|.
///
/// **Weights.** 2^(t - m) is off by a factor within 1 +- ln2 (e + u |t - m|), as the difference is rounded
/// once, and by the error of `ex2`; it is rescaled where warps, splits and top-ups are merged: three times. The
/// kernels' m lies up to 14 from the maximum. For the product with V they round each weight to the cache's type:
/// u16 = 2^-8 (bf16: 8 bits of mantissa), 2^-11 (f16) of the weighted values; f16 weights below 2^-14 by 2^-25,
/// absolute, where the sum is at least 2^6 (`kernels_gpu::softmax`). The sum itself is of unrounded weights, so
/// neither lse nor the mass of the stop rule sees this.
///
/// **Sums.** Each of `depth` additions rounds once (on tensor cores 2.2 u, as above), and each rescaling in the
/// loop (at most one every 16 additions) is an `ex2` too. Numerator and denominator of the output are off by
/// weights and sums each.
///
/// The approximate instructions count with the largest error that the PTX ISA documents for them (9.1,
/// "Floating Point Instructions"), so that the bound holds on a GPU and not only where they are correctly
/// rounded: `ex2.approx.ftz.f32` 2 ulp from the correctly rounded result, hence 2.5 ulp; `rcp.approx.ftz.f32`
/// 1 ulp; `lg2.approx.ftz.f32` 2^-22, absolute in (0.5, 2) and relative elsewhere. Flushed to zero are weights
/// below 2^-126, which together are less than u of the sum.
pub fn step_bounds(
    shape: &Shape,
    s: &Sequence,
    head: usize,
    scale: f64,
    arithmetic: Arithmetic,
) -> (f64, f64) {
    let (d, kh) = (shape.head_dim, shape.kv_heads);
    let kv_head = head / shape.group();
    let (q, k, v) = (s.q.to_f64(), s.k.to_f64(), s.v.to_f64());
    let q = &q[head * d..][..d];
    let (mut magnitude, mut top, mut bottom, mut value) = (0.0f64, f64::NEG_INFINITY, f64::INFINITY, 0.0f64);
    for t in 0..s.tokens {
        let row = (t * kh + kv_head) * d;
        let products = (0..d).map(|c| q[c] * k[row + c]);
        let (score, size) = products.fold((0.0, 0.0), |(a, b), x: f64| (a + x, b + x.abs()));
        let log2 = std::f64::consts::LOG2_E * scale;
        magnitude = magnitude.max(size * log2.abs());
        top = top.max(score * log2);
        bottom = bottom.min(score * log2);
        value = (0..d).map(|c| v[row + c].abs()).fold(value, f64::max);
    }
    let u = (-24f64).exp2();
    let n = s.tokens as f64;
    // 2.5 ulp, relative: an ulp is at most 2^-23 of the number.
    let ex2 = 2.5 * (-23f64).exp2();
    let (dot, addition, distance, rounded_weight, depth) = match arithmetic {
        Arithmetic::F32 => (d as f64 + 4.0, 1.0, 0.0, 0.0, s.tokens),
        Arithmetic::Kernels { topups } => {
            let rounded = match shape.dtype {
                Dtype::Bf16 => (-8f64).exp2(),
                Dtype::F16 => (-11f64).exp2() + n * (-25f64 - 6.0).exp2(),
            };
            (2.2 * d as f64 + 5.0, 2.2, 14.0, rounded, kernel_depth(s.tokens, topups))
        }
    };
    let score = dot * u * magnitude;
    // Weights below 2^-40 are together less than 2^-40 n of the sum.
    let spread = (top - bottom).clamp(0.0, 40.0) + distance;
    let weight = std::f64::consts::LN_2 * (score + u * spread) + 4.0 * ex2;
    let sums = depth as f64 * (addition * u + ex2 / 16.0) + n * (-40f64).exp2();
    let factor = weight + sums;
    // out = o * (1 / l): the reciprocal and one rounding. lse = (m + log2 l) ln 2: the logarithm is at most
    // log2 n + 14, 2^-22 is 4 u; then a sum, a product and a rounded constant.
    let reciprocal = (-22f64).exp2() + u;
    let logarithm = n.log2().abs() + distance;
    (
        (2.0 * factor + reciprocal + rounded_weight) * value,
        factor + score + 6.0 * u * (top.abs() + logarithm + 1.0),
    )
}
