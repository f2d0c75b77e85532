//! The estimators: what is kept of the keys of a quantisation group, and what it says about the mass of its
//! blocks.
//!
//! One trait, [`Estimator`], one file a family: [`planes`] (low-bit keys, nested or not), [`boxes`] (Quest),
//! [`summary`] (mean, cuboid mean, mean and variance), [`representatives`]. The reference computes with these
//! and nothing else; the cpu has fast copies of planes and boxes and falls back to these.
//!
//! Everything here is defined bit by bit: f32 operations in the order written, integers where sums could be
//! reordered. [`Bound`] is the part that promises instead of estimating.

pub mod boxes;
pub mod planes;
pub mod representatives;
pub mod summary;

use crate::element::widen;
use crate::mirror::{Mirror, MirrorFormat};
use crate::{Dtype, Shape};
use half::{bf16, f16};
use kernels_gpu::layout::BLOCK;
use kernels_gpu::numeric::{exp2, log2};

/// The keys of one group as a page is made from them.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a> {
    /// Bit patterns `[tokens, head_dim]`.
    pub bits: &'a [u16],
    /// Their type.
    pub dtype: Dtype,
    /// Elements of a key.
    pub head_dim: usize,
}

impl Keys<'_> {
    /// Element `c` of token `t`.
    pub fn at(&self, t: usize, c: usize) -> f32 {
        widen(self.dtype, self.bits[t * self.head_dim + c])
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.bits.len() / self.head_dim
    }
}

/// What is certain about the masses of a page's blocks for one query head: log2, never negative, infinite where
/// nothing is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// A block's true log2 mass is at most its estimate and this.
    pub slack: f32,
    /// The same for the second look.
    pub fine_slack: f32,
    /// By so much a score computed in f32 from the keys themselves may be off, in any order of additions.
    pub rounding: f32,
}

impl Bound {
    /// Nothing is certain.
    pub const NONE: Bound =
        Bound { slack: f32::INFINITY, fine_slack: f32::INFINITY, rounding: f32::INFINITY };
}

/// What a page says. Queries are in the log2 domain, `(q * scale) * log2 e`, one head: `[head_dim]`.
pub trait Estimator: Send + Sync {
    /// Writes the page of a full group.
    fn write(&self, keys: Keys<'_>, page: &mut [u8]);

    /// log2 masses of the page's blocks.
    fn masses(&self, page: &[u8], query: &[f32], out: &mut [f32]);

    /// Standard deviation of the error of a score, log2; 0 where there is no second look.
    fn spread(&self, _page: &[u8], _query: &[f32]) -> f32 {
        0.0
    }

    /// The second look at one block: its log2 mass by all that the page holds of it. None where [`masses`] has
    /// told everything.
    ///
    /// [`masses`]: Estimator::masses
    fn fine_mass(&self, _page: &[u8], _query: &[f32], _block: usize) -> Option<f32> {
        None
    }

    /// How far the truth may lie above the estimate.
    fn bound(&self, _page: &[u8], _query: &[f32]) -> Bound {
        Bound::NONE
    }
}

/// The estimator of a page format.
pub fn estimator(format: MirrorFormat, shape: &Shape) -> Box<dyn Estimator> {
    let (head_dim, group, dtype) = (shape.head_dim, format.group, shape.dtype);
    match format.mirror {
        Mirror::Bits1 => Box::new(planes::Planes::new(1, group, head_dim)),
        Mirror::Bits2 => Box::new(planes::Planes::new(2, group, head_dim)),
        Mirror::Bits4 => Box::new(planes::Planes::new(4, group, head_dim)),
        Mirror::Bits8 => Box::new(planes::Planes::new(8, group, head_dim)),
        Mirror::Nested | Mirror::Nested8 => {
            let fine = format.mirror.fine_bits() as usize;
            Box::new(planes::Nested { planes: planes::Planes::new(2 * fine, group, head_dim), fine })
        }
        Mirror::Box => Box::new(boxes::Boxes { head_dim, dtype }),
        Mirror::Mean => Box::new(summary::Mean { head_dim, dtype }),
        Mirror::Cuboid => Box::new(summary::Cuboid { head_dim, dtype }),
        Mirror::MeanVariance => Box::new(summary::MeanVariance { head_dim, dtype }),
        Mirror::Representatives => Box::new(representatives::Representatives { head_dim, dtype }),
    }
}

/// log2 of the sum over a block's tokens (1 to 16) of `2^score`.
pub fn block_mass(scores: &[f32]) -> f32 {
    let m = scores.iter().fold(f32::NEG_INFINITY, |m, &t| if t > m { t } else { m });
    let mut e = [0.0f32; BLOCK];
    for (e, &t) in e.iter_mut().zip(scores) {
        *e = exp2(t - m);
    }
    for distance in [8, 4, 2, 1] {
        for i in 0..distance {
            e[i] += e[i + distance];
        }
    }
    m + log2(e[0])
}

/// Sum of 32 lanes, pairwise at distance 16, 8, 4, 2, 1.
#[inline(always)]
pub fn tree_sum(mut lanes: [f32; 32]) -> f32 {
    let mut distance = 16;
    while distance > 0 {
        for l in 0..distance {
            lanes[l] += lanes[l + distance];
        }
        distance /= 2;
    }
    lanes[0]
}

/// Share of the sum of magnitudes `A = sum_c |q_c| |k_c|` by which f32 arithmetic may be off, in a score from
/// the keys or from a page: 2^-16 = 256 u, u = 2^-24 the rounding of one operation. The scaled query takes 3
/// roundings (two products, and log2 e itself), a dot product in any order at most 128 for 128 channels, the
/// rest of a score and the maximum and logarithm of a block's mass fewer than 20: twice what is needed.
pub const ROUNDING: f32 = 1.0 / 65536.0;
/// What exp2, log2 and a sum of 16 add to the log2 mass of a block: below 4e-6 in all (their errors are 2e-7 and
/// 3e-7 relative, [`kernels_gpu::numeric`]); and 2^-113 * 255 * 128, weights too small for a unit.
pub const FUNCTIONS: f32 = 2e-5;
/// Sums of magnitudes above this are not scores any more: `finite_score` clamps at 1e30.
pub const SANE: f32 = 1e25;

/// A block's true mass is at most 16 tokens at this; below it everything may be missing.
pub(crate) fn upper(log_mass: f32, slack: f32) -> f32 {
    let bound = log_mass + slack;
    // NaN included.
    if bound < 1e30 { bound } else { 1e30 }
}

/// An element as bytes of the cache's type, nearest; the largest finite one instead of an infinity.
fn narrow(dtype: Dtype, x: f32) -> [u8; 2] {
    match dtype {
        Dtype::F16 => {
            let top = f16::MAX.to_f32();
            f16::from_f32(x.clamp(-top, top)).to_le_bytes()
        }
        Dtype::Bf16 => {
            let top = bf16::MAX.to_f32();
            bf16::from_f32(x.clamp(-top, top)).to_le_bytes()
        }
    }
}

/// Element `i` of a row of the cache's type.
fn element(dtype: Dtype, bytes: &[u8], i: usize) -> f32 {
    widen(dtype, u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]))
}

#[cfg(test)]
mod tests;
