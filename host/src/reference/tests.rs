//! Small caches of random data, for the tests of the stages.

use super::append;
use crate::backend::AppendStep;
use crate::estimator::{Estimator, estimator};
use crate::pool::{Pool, TableExtents};
use crate::store::{HeadView, HostStore};
use crate::{Dtype, Mirror, MirrorFormat, Rows, Shape};
use half::{bf16, f16};

/// A splitmix64 generator.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Nearly normal: sum of 12 uniforms.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }
}

/// A tensor of either type.
pub(crate) enum Tensor {
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Tensor {
    pub(crate) fn new(dtype: Dtype, values: impl Iterator<Item = f32>) -> Tensor {
        match dtype {
            Dtype::F16 => Tensor::F16(values.map(f16::from_f32).collect()),
            Dtype::Bf16 => Tensor::Bf16(values.map(bf16::from_f32).collect()),
        }
    }

    /// `n` normal values of the given spread.
    pub(crate) fn random(dtype: Dtype, n: usize, spread: f32, seed: u64) -> Tensor {
        let mut random = Random(seed);
        Tensor::new(dtype, (0..n).map(|_| spread * random.normal()))
    }

    pub(crate) fn rows(&self) -> Rows<'_> {
        match self {
            Tensor::F16(x) => x.into(),
            Tensor::Bf16(x) => x.into(),
        }
    }
}

/// Random values of a query head.
pub(crate) fn random_q(head_dim: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..head_dim).map(|_| 1.5 * random.normal()).collect()
}

/// One sequence, layer and KV head full of random tokens.
pub(crate) struct Filled {
    pub store: HostStore,
    pool: Pool,
    tokens: usize,
    pub estimator: Box<dyn Estimator>,
}

impl Filled {
    pub(crate) fn new(head_dim: usize, dtype: Dtype, mirror: Mirror, tokens: usize, seed: u64) -> Filled {
        let format = MirrorFormat::new(mirror, 64).unwrap();
        let k = Tensor::random(dtype, tokens * head_dim, 1.0, seed);
        Filled::with_keys(head_dim, format, &k, seed + 1)
    }

    /// With these keys, `[tokens, head_dim]`.
    pub(crate) fn with_keys(head_dim: usize, format: MirrorFormat, k: &Tensor, seed: u64) -> Filled {
        let dtype = k.rows().dtype();
        let tokens = k.rows().len() / head_dim;
        let shape = Shape { layers: 1, q_heads: 1, kv_heads: 1, head_dim, dtype };
        let extents = TableExtents::with_group(&shape, 1, tokens, format.blocks());
        let mut pool = Pool::with_extents(tokens.div_ceil(16), tokens, extents);
        let mut store = HostStore::new("test", shape, format, pool.slots(), pool.pages()).unwrap();
        let estimator = estimator(format, &shape);
        let v = Tensor::random(dtype, tokens * head_dim, 1.0, seed);
        pool.add_sequence().unwrap();
        let reservation = pool.reserve(0, &[(0, tokens)]).unwrap();
        let step = AppendStep {
            layer: 0,
            seqs: &[0],
            lens: &[tokens as u32],
            offsets: &[0, tokens as u32],
            k: k.rows(),
            v: v.rows(),
        };
        append::append(&mut store, &*estimator, pool.tables(), &step);
        pool.commit(reservation);
        Filled { store, pool, tokens, estimator }
    }

    pub(crate) fn view(&self) -> HeadView<'_> {
        self.store.view(self.pool.tables(), 0, 0, 0, self.tokens)
    }
}

#[test]
fn dense_attention_of_one_token_is_its_value() {
    let filled = Filled::new(64, Dtype::F16, Mirror::Bits2, 1, 1);
    let view = filled.view();
    let (out, _) = super::truth::dense_f64(&view, &random_q(64, 2), 0.125);
    assert!(out[0].iter().zip(view.value_values(0)).all(|(&o, v)| o == v as f64));
}

#[test]
fn true_masses_sum_to_one() {
    let filled = Filled::new(64, Dtype::Bf16, Mirror::Bits2, 300, 1);
    for row in super::truth::true_masses(&filled.view(), &random_q(64, 2), 0.125) {
        assert_eq!(row.len(), 19);
        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }
}
