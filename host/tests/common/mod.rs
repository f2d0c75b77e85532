//! Random tensors and caches for the tests of the public API.
#![allow(dead_code)] // Every test binary uses a part of it.

use half::{bf16, f16};
use psa::{
    CacheConfig, Capacity, DecodePlan, Device, Dtype, KvCache, Mirror, Policy, Report, Rows, SequenceId,
    Shape,
};

/// A splitmix64 generator.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Nearly normal: sum of 12 uniforms.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.bits() >> 40) as f32 / (1u64 << 24) as f32).sum::<f32>() - 6.0
    }
}

/// A tensor of either type.
pub enum Tensor {
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Tensor {
    pub fn new(dtype: Dtype, values: impl Iterator<Item = f32>) -> Tensor {
        match dtype {
            Dtype::F16 => Tensor::F16(values.map(f16::from_f32).collect()),
            Dtype::Bf16 => Tensor::Bf16(values.map(bf16::from_f32).collect()),
        }
    }

    pub fn random(dtype: Dtype, n: usize, spread: f32, seed: u64) -> Tensor {
        let mut random = Random(seed);
        Tensor::new(dtype, (0..n).map(|_| spread * random.normal()))
    }

    pub fn rows(&self) -> Rows<'_> {
        match self {
            Tensor::F16(x) => x.into(),
            Tensor::Bf16(x) => x.into(),
        }
    }

    /// Elements `from .. to`.
    pub fn part(&self, from: usize, to: usize) -> Rows<'_> {
        match self {
            Tensor::F16(x) => x[from..to].into(),
            Tensor::Bf16(x) => x[from..to].into(),
        }
    }
}

/// Sequences of given lengths over one layer, with the tensors they came from.
pub struct Batch {
    pub shape: Shape,
    pub lengths: Vec<usize>,
    pub k: Vec<Tensor>,
    pub v: Vec<Tensor>,
    /// One row `[q_heads, head_dim]` a sequence.
    pub q: Vec<Tensor>,
}

impl Batch {
    pub fn random(shape: Shape, lengths: &[usize], seed: u64) -> Batch {
        // Queries of this spread make the softmax peaked, but not on one block.
        let tensor = |n, spread, salt: u64, i: usize| {
            Tensor::random(shape.dtype, n, spread, seed.wrapping_mul(1000) + salt + i as u64)
        };
        let each = |f: &dyn Fn(usize) -> Tensor| (0..lengths.len()).map(f).collect::<Vec<_>>();
        Batch {
            shape,
            lengths: lengths.to_vec(),
            k: each(&|i| tensor(lengths[i] * shape.token_elements(), 1.0, 100, i)),
            v: each(&|i| tensor(lengths[i] * shape.token_elements(), 1.0, 200, i)),
            q: each(&|i| tensor(shape.query_elements(), 2.0, 300, i)),
        }
    }

    pub fn config(&self, mirror: Mirror) -> CacheConfig {
        CacheConfig {
            capacity: Capacity::Tokens(self.lengths.iter().map(|n| n.next_multiple_of(16)).sum()),
            max_sequences: self.lengths.len(),
            max_tokens: self.lengths.iter().max().copied(),
            mirror,
            ..CacheConfig::default()
        }
    }

    /// A cache with all the tokens, and the sequences.
    pub fn cache(&self, device: &Device, mirror: Mirror) -> (KvCache, Vec<SequenceId>) {
        self.cache_with(device, self.config(mirror))
    }

    /// The same with other settings.
    pub fn cache_with(&self, device: &Device, config: CacheConfig) -> (KvCache, Vec<SequenceId>) {
        let mut cache = KvCache::new(device, self.shape, config).unwrap();
        let sequences: Vec<_> = (0..self.lengths.len())
            .map(|i| {
                let sequence = cache.add_sequence().unwrap();
                cache.append(sequence, 0, self.k[i].rows(), self.v[i].rows()).unwrap();
                sequence
            })
            .collect();
        (cache, sequences)
    }

    /// Queries of the given batch entries, one after the other.
    pub fn queries(&self, entries: &[usize]) -> Tensor {
        let values = |i: usize| {
            let dtype = self.shape.dtype;
            self.q[i].rows().bits().iter().map(move |&x| psa::widen(dtype, x))
        };
        Tensor::new(self.shape.dtype, entries.iter().flat_map(|&i| values(i)))
    }
}

/// A step's results.
pub struct Step {
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
    pub report: Report,
    pub plan: DecodePlan,
}

impl Step {
    pub fn bits(&self) -> Vec<u32> {
        self.out.iter().chain(&self.lse).map(|x| x.to_bits()).collect()
    }
}

/// One step in layer 0 of the given entries.
pub fn step(
    batch: &Batch,
    cache: &mut KvCache,
    sequences: &[SequenceId],
    entries: &[usize],
    policy: Policy,
) -> Step {
    let chosen: Vec<_> = entries.iter().map(|&i| sequences[i]).collect();
    let mut plan = DecodePlan::new(cache, &chosen, policy).unwrap().with_record();
    let mut out = vec![f32::NAN; entries.len() * batch.shape.query_elements()];
    let mut lse = vec![f32::NAN; entries.len() * batch.shape.q_heads];
    plan.attend_with_lse(cache, 0, batch.queries(entries).rows(), &mut out, &mut lse).unwrap();
    Step { out, lse, report: plan.report(), plan }
}
