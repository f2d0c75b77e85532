//! Low-bit keys: 1, 2, 4 or 8 bits an element, with a zero and a step (f16) for each channel of the group.
//!
//! Page: zero f16 `[head_dim]`, step f16 `[head_dim]`, then the codes. 2, 4 and 8 bits are planes of 2 bits, most
//! significant first, each `[group, head_dim / 16]` u32 words ([`kernels_gpu::layout::code_shift`]); 1 bit is a plane
//! `[group, head_dim / 32]` of words ([`bit_shift`]). [`Nested`] is the page of 4 or 8 bits, of which the first
//! half of the planes gives a coarse score: what it leaves open of a code counts as its middle, 1.5 or 7.5 steps.
//!
//! Trap: 1 bit has its two values in the middle of the halves of the range, the others have their first and last
//! at its ends. Ends cost the 2-bit estimate accuracy, but err towards reading; see docs/algorithm.md.

use super::{Bound, Estimator, FUNCTIONS, Keys, ROUNDING, SANE, block_mass, tree_sum};
use half::f16;
use kernels_gpu::layout::{BLOCK, code_shift, plane_row_bytes, step_offset};
use kernels_gpu::numeric::{Unit, fma, quantise, quantiser_range};

/// Keys of so many bits.
#[derive(Clone, Copy, Debug)]
pub struct Planes {
    bits: usize,
    group: usize,
    head_dim: usize,
}

/// Bit position of channel `c` in the u32 word `c / 32` of its row: neighbours lie one byte apart, so that
/// `(word >> j) & 0x0101_0101` holds channels `4 j .. 4 j + 4` as bytes.
#[inline(always)]
pub const fn bit_shift(c: usize) -> u32 {
    (8 * (c % 4) + (c % 32) / 4) as u32
}

/// Zero and step of a channel, before they are rounded to f16.
#[inline(always)]
pub fn range(min: f32, max: f32, bits: usize) -> (f32, f32) {
    if bits == 1 {
        // Two values a half of the range apart: a quantiser of 3 levels has that step, and its zero is
        // moved up by half a step.
        let (_, step) = quantiser_range(min, max, 3);
        let (zero, _) = quantiser_range(fma(0.5, step, min), max, 3);
        (zero, step)
    } else {
        quantiser_range(min, max, 1 << bits)
    }
}

/// The unit and the integer weights of a query against a page's steps.
struct Weights {
    unit: Unit,
    weights: Vec<i32>,
    /// Sum of query times zero.
    zero: f32,
}

impl Planes {
    /// Pages of `group` tokens.
    pub fn new(bits: usize, group: usize, head_dim: usize) -> Planes {
        Planes { bits, group, head_dim }
    }

    /// Bytes of one token in one plane.
    fn row_bytes(&self) -> usize {
        if self.bits == 1 { self.head_dim / 8 } else { plane_row_bytes(self.head_dim) }
    }

    /// Word of token `t` that holds channel `c`, in plane `p`; and the channel's place in it.
    fn place(&self, p: usize, t: usize, c: usize) -> (usize, u32) {
        let row = 4 * self.head_dim + (p * self.group + t) * self.row_bytes();
        if self.bits == 1 { (row + c / 32 * 4, bit_shift(c)) } else { (row + c / 16 * 4, code_shift(c)) }
    }

    /// The code of token `t`, channel `c`, by the first `planes` planes.
    fn code(&self, page: &[u8], planes: usize, t: usize, c: usize) -> i32 {
        let word = |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        if self.bits == 1 {
            let (at, shift) = self.place(0, t, c);
            return (word(at) >> shift & 1) as i32;
        }
        (0..planes).fold(0, |code, p| {
            let (at, shift) = self.place(p, t, c);
            code << 2 | (word(at) >> shift & 3) as i32
        })
    }

    fn weights(&self, page: &[u8], query: &[f32]) -> Weights {
        let d = self.head_dim;
        let (zeros, steps) = (halves(page, d), halves(&page[step_offset(d)..], d));
        let w: Vec<f32> = query.iter().zip(&steps).map(|(q, step)| q * step).collect();
        let peak = w.iter().fold(0.0f32, |peak, w| if w.abs() > peak { w.abs() } else { peak });
        let unit = Unit::of_peak(peak);
        let mut lanes = [0.0f32; 32];
        for c in 0..d {
            lanes[c % 32] = fma(query[c], zeros[c], lanes[c % 32]);
        }
        // Weights are 16 bits; where a query was not finite they hold anything.
        let weights = w.iter().map(|&w| unit.weight(w) as i16 as i32).collect();
        Weights { unit, weights, zero: tree_sum(lanes) }
    }

    /// Mass of a block by all planes.
    fn block(&self, page: &[u8], w: &Weights, block: usize) -> f32 {
        let planes = self.bits.div_ceil(2);
        let scores = (block * BLOCK..(block + 1) * BLOCK).map(|t| {
            let products =
                w.weights.iter().enumerate().map(|(c, weight)| weight * self.code(page, planes, t, c));
            w.unit.score(w.zero, products.sum())
        });
        block_mass(&scores.collect::<Vec<_>>())
    }
}

impl Estimator for Planes {
    fn write(&self, keys: Keys<'_>, page: &mut [u8]) {
        let (d, levels) = (self.head_dim, 1u32 << self.bits);
        let planes = self.bits.div_ceil(2);
        page.fill(0);
        for c in 0..d {
            let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
            for t in 0..self.group {
                let x = keys.at(t, c);
                min = if x < min { x } else { min };
                max = if x > max { x } else { max };
            }
            let (zero, step) = range(min, max, self.bits);
            let (zero, step) = (f16::from_f32(zero), f16::from_f32(step));
            page[2 * c..][..2].copy_from_slice(&zero.to_le_bytes());
            page[step_offset(d) + 2 * c..][..2].copy_from_slice(&step.to_le_bytes());
            for t in 0..self.group {
                let code = quantise(keys.at(t, c), zero.to_f32(), step.to_f32(), levels);
                for p in 0..planes {
                    let (at, shift) = self.place(p, t, c);
                    let bits = ((code >> (2 * (planes - 1 - p))) & 3) << shift;
                    page[at..][..4].iter_mut().zip(bits.to_le_bytes()).for_each(|(to, from)| *to |= from);
                }
            }
        }
    }

    fn masses(&self, page: &[u8], query: &[f32], out: &mut [f32]) {
        let w = self.weights(page, query);
        for (block, out) in out.iter_mut().enumerate() {
            *out = self.block(page, &w, block);
        }
    }

    fn bound(&self, page: &[u8], query: &[f32]) -> Bound {
        let d = self.head_dim;
        bound(&halves(page, d), &halves(&page[step_offset(d)..], d), query, self.bits)
    }
}

/// A page read in two looks.
#[derive(Clone, Copy, Debug)]
pub struct Nested {
    /// The page.
    pub planes: Planes,
    /// Bits that the second look adds.
    pub fine: usize,
}

impl Estimator for Nested {
    fn write(&self, keys: Keys<'_>, page: &mut [u8]) {
        self.planes.write(keys, page);
    }

    fn masses(&self, page: &[u8], query: &[f32], out: &mut [f32]) {
        let w = self.planes.weights(page, query);
        let (all, coarse): (i32, usize) = (w.weights.iter().sum(), (self.planes.bits - self.fine) / 2);
        for (block, out) in out.iter_mut().enumerate() {
            let scores = (block * BLOCK..(block + 1) * BLOCK).map(|t| {
                let products = w
                    .weights
                    .iter()
                    .enumerate()
                    .map(|(c, weight)| weight * self.planes.code(page, coarse, t, c));
                coarse_score(w.unit, w.zero, products.sum(), all, self.fine)
            });
            *out = block_mass(&scores.collect::<Vec<_>>());
        }
    }

    fn spread(&self, page: &[u8], query: &[f32]) -> f32 {
        let d = self.planes.head_dim;
        spread(&halves(&page[step_offset(d)..], d), query, self.fine)
    }

    fn fine_mass(&self, page: &[u8], query: &[f32], block: usize) -> Option<f32> {
        Some(self.planes.block(page, &self.planes.weights(page, query), block))
    }

    fn bound(&self, page: &[u8], query: &[f32]) -> Bound {
        let d = self.planes.head_dim;
        nested_bound(
            &halves(page, d),
            &halves(&page[step_offset(d)..], d),
            query,
            self.planes.bits,
            self.fine,
        )
    }
}

/// The score of a key of which all but the last `fine` bits are known: `dot` = sum of weight times coarse code, `all` =
/// sum of the weights. In half units, so that the middle of what is open, `(2^fine - 1) / 2`, is an integer; at most
/// 2^5 * 15 * 2^14 * 128 < 2^30 of them.
#[inline(always)]
pub fn coarse_score(unit: Unit, zero: f32, dot: i32, all: i32, fine: usize) -> f32 {
    let halves = dot.wrapping_mul(2 << fine).wrapping_add(all.wrapping_mul((1 << fine) - 1));
    unit.coarse_score(zero, halves)
}

/// Standard deviation of a coarse score ([`kernels_gpu::numeric::spread`]).
#[inline(always)]
pub fn spread(steps: &[f32], query: &[f32], fine: usize) -> f32 {
    let mut lanes = [0.0f32; 32];
    for (steps, query) in steps.chunks_exact(32).zip(query.chunks_exact(32)) {
        for l in 0..32 {
            let w = query[l] * steps[l];
            lanes[l] = fma(w, w, lanes[l]);
        }
    }
    kernels_gpu::numeric::spread(tree_sum(lanes), fine as u32)
}

/// What the zeros and steps of a page allow.
///
/// A channel's error: half a step, and 2^-10 of one for the arithmetic of `quantise`; where a code was clamped, what
/// rounding zero (2^-11 of it) and step (2^-11, times the largest code) to f16 has moved the ends of the range by;
/// 2^-24 each where that rounding was to a subnormal. The weights: half a unit for each code. Then f32 arithmetic.
/// Saturated zeros and steps say nothing about the keys.
#[inline(always)]
pub fn bound(zeros: &[f32], steps: &[f32], query: &[f32], bits: usize) -> Bound {
    let slack = slack(zeros, steps, query, ((1 << bits) - 1) as f32, 0.0);
    Bound { slack: slack.0, fine_slack: slack.0, rounding: slack.1 }
}

/// As [`bound`], with and without the last `fine` bits: without them a code is up to `(2^fine - 1) / 2` off.
#[inline(always)]
pub fn nested_bound(zeros: &[f32], steps: &[f32], query: &[f32], bits: usize, fine: usize) -> Bound {
    let top = ((1 << bits) - 1) as f32;
    let coarse = slack(zeros, steps, query, top, 0.5 * ((1 << fine) - 1) as f32);
    let fine = slack(zeros, steps, query, top, 0.0);
    Bound { slack: coarse.0, fine_slack: fine.0, rounding: fine.1 }
}

/// Slack and rounding; `open`: steps by which a code may be off because it is not all known.
#[inline(always)]
fn slack(zeros: &[f32], steps: &[f32], query: &[f32], top: f32, open: f32) -> (f32, f32) {
    const F16_TOP: f32 = 65504.0;
    let per_step = 0.5 + open + 1.0 / 1024.0 + top / 2048.0;
    let subnormal = (top + 1.0) / 16_777_216.0;
    let (mut errors, mut sizes, mut peaks) = ([0.0f32; 32], [0.0f32; 32], [0.0f32; 32]);
    let mut saturated = [false; 32];
    for ((zeros, steps), query) in
        zeros.chunks_exact(32).zip(steps.chunks_exact(32)).zip(query.chunks_exact(32))
    {
        for l in 0..32 {
            let (zero, step, q) = (zeros[l].abs(), steps[l], query[l].abs());
            let error = step * per_step + zero * (1.0 / 2048.0) + subnormal;
            errors[l] += q * error;
            sizes[l] += q * (zero + step * top + error);
            let w = q * step;
            peaks[l] = if w > peaks[l] { w } else { peaks[l] };
            // True for NaN.
            saturated[l] |= !(zero < F16_TOP && (0.0..F16_TOP).contains(&step));
        }
    }
    let peak = peaks.iter().fold(0.0f32, |peak, &w| if w > peak { w } else { peak });
    let size = tree_sum(sizes);
    // False for NaN.
    let sane = size < SANE;
    if !sane || saturated.contains(&true) {
        return (f32::INFINITY, f32::INFINITY);
    }
    let weights = 0.5 * Unit::of_peak(peak).unit * zeros.len() as f32 * top;
    let rounding = ROUNDING * size;
    // The sums above are positive terms: 1e-3 more than covers their own rounding.
    (1.001 * (tree_sum(errors) + weights) + rounding + FUNCTIONS, rounding)
}

/// Zeros or steps of a page.
pub fn halves(bytes: &[u8], d: usize) -> Vec<f32> {
    bytes[..2 * d].chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}
