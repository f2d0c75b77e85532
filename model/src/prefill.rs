//! Dense causal attention of a whole chunk of a prompt, over K and V as the cache holds them.
//!
//! A decode step has one query row a sequence; a prompt has thousands, so keys are read once for many rows. Tiles
//! of 8 tokens of a query head run over the keys 64 at a time with a running maximum. The parts begin at multiples of 64
//! tokens of the sequence, so a row's numbers do not depend on where its chunk began.

use half::f16;
use half::slice::HalfFloatSliceExt;
use kernels_gpu::numeric::exp2;
use rayon::prelude::*;

use crate::simd::{Isa, LANES, Lanes, by_isa};

/// Keys that one step of the running maximum takes.
const PART: usize = 64;
/// Tokens of a tile.
const TILE: usize = 8;
/// Below every score: its weight is exactly 0.
const NOTHING: f32 = -1e30;

/// K and V of one KV head in f32.
pub struct Keys {
    head_dim: usize,
    tokens: usize,
    /// `[tokens / 16][head_dim]` of 16 keys a lane; zeros beyond the last token.
    keys: Vec<[f32; LANES]>,
    /// `[tokens rounded up to 64, head_dim]`.
    values: Vec<f32>,
}

impl Keys {
    /// k, v: f16 bit patterns `[tokens, head_dim]`.
    pub fn new(k: &[u16], v: &[u16], head_dim: usize) -> Keys {
        let tokens = k.len() / head_dim;
        let padded = tokens.next_multiple_of(PART);
        let widen = |bits: &[u16]| {
            let halves: Vec<f16> = bits.iter().map(|&x| f16::from_bits(x)).collect();
            let mut values = vec![0.0; padded * head_dim];
            halves.convert_to_f32_slice(&mut values[..bits.len()]);
            values
        };
        let rows = widen(k);
        let mut keys = vec![[0.0; LANES]; padded / LANES * head_dim];
        keys.par_chunks_mut(head_dim).zip(rows.par_chunks(LANES * head_dim)).with_min_len(16).for_each(
            |(to, from)| {
                for (lane, row) in from.chunks_exact(head_dim).enumerate() {
                    to.iter_mut().zip(row).for_each(|(to, x)| to[lane] = *x);
                }
            },
        );
        Keys { head_dim, tokens, keys, values: widen(v) }
    }
}

/// Attends with every query head of one KV head's group.
///
/// q: `[rows, q_heads, head_dim]`, of which heads `first..first + group` are used; row r stands at position
/// `start + r` and sees that many keys and its own. out: as q; only those heads are written.
pub fn attend(
    keys: &Keys,
    q: &[f32],
    out: &mut [f32],
    q_heads: usize,
    first: usize,
    group: usize,
    start: usize,
) {
    let d = keys.head_dim;
    let scale = std::f32::consts::LOG2_E / (d as f32).sqrt();
    let isa = Isa::detect();
    let stride = q_heads * d;
    out.par_chunks_mut(TILE * stride).zip(q.par_chunks(TILE * stride)).enumerate().for_each(
        |(tile, (out, q))| {
            let rows = q.len() / stride;
            let mut queries = vec![0.0; TILE * d];
            let mut results = vec![0.0; TILE * d];
            for head in first..first + group {
                for (row, to) in queries.chunks_exact_mut(d).take(rows).enumerate() {
                    let from = &q[row * stride + head * d..][..d];
                    to.iter_mut().zip(from).for_each(|(to, x)| *to = x * scale);
                }
                results.fill(0.0);
                let position = start + tile * TILE;
                match d {
                    64 => tile_by_isa::<64>(isa, keys, &queries, position, rows, &mut results),
                    _ => tile_by_isa::<128>(isa, keys, &queries, position, rows, &mut results),
                }
                for (row, from) in results.chunks_exact(d).take(rows).enumerate() {
                    out[row * stride + head * d..][..d].copy_from_slice(from);
                }
            }
        },
    );
}

by_isa! {
    /// `rows` queries from `position` on: `[TILE, D]`, scaled for powers of 2.
    fn tile_by_isa[const D: usize](
        keys: &Keys, queries: &[f32], position: usize, rows: usize, out: &mut [f32],
    ) = tile_body;
}

#[inline(always)]
fn tile_body<L: Lanes, const D: usize>(
    keys: &Keys,
    queries: &[f32],
    position: usize,
    rows: usize,
    out: &mut [f32],
) {
    let q = queries.as_chunks::<D>().0;
    let out = out.as_chunks_mut::<D>().0;
    let panels = keys.keys.as_chunks::<D>().0;
    let values = keys.values.as_chunks::<D>().0;
    let (mut top, mut sum) = ([NOTHING; TILE], [0.0f32; TILE]);
    let last = (position + rows).min(keys.tokens);
    for part in 0..last.div_ceil(PART) {
        let mut scores = [[0.0f32; PART]; TILE];
        for (panel, keys) in panels[part * PART / LANES..][..PART / LANES].iter().enumerate() {
            let mut dots = [L::zero(); TILE];
            for c in 0..D {
                let keys = L::load(&keys[c]);
                for r in 0..TILE {
                    dots[r] = L::fma(q[r][c], keys, dots[r]);
                }
            }
            for r in 0..TILE {
                dots[r].store(&mut scores[r].as_chunks_mut::<LANES>().0[panel]);
            }
        }
        for r in 0..rows {
            let visible = (position + r + 1).saturating_sub(part * PART).min(PART);
            let scores = &mut scores[r];
            scores[visible..].fill(NOTHING);
            let mut lanes = [NOTHING; LANES];
            for part in scores.as_chunks::<LANES>().0 {
                for l in 0..LANES {
                    lanes[l] = if part[l] > lanes[l] { part[l] } else { lanes[l] };
                }
            }
            let m = lanes.iter().fold(top[r], |m, &x| if x > m { x } else { m });
            let rescale = exp2(top[r] - m);
            let mut lanes = [0.0f32; LANES];
            for part in scores.as_chunks_mut::<LANES>().0 {
                for l in 0..LANES {
                    part[l] = exp2(part[l] - m);
                    lanes[l] += part[l];
                }
            }
            top[r] = m;
            sum[r] = sum[r].mul_add(rescale, lanes.iter().sum());
            let values = &values[part * PART..][..PART];
            for (c, o) in out[r].as_chunks_mut::<{ 4 * LANES }>().0.iter_mut().enumerate() {
                let o = o.as_chunks_mut::<LANES>().0;
                let mut sums: [L; 4] = std::array::from_fn(|i| L::fma(rescale, L::load(&o[i]), L::zero()));
                for (weight, v) in scores.iter().zip(values) {
                    let v = v.as_chunks::<LANES>().0;
                    for i in 0..4 {
                        sums[i] = L::fma(*weight, L::load(&v[4 * c + i]), sums[i]);
                    }
                }
                for i in 0..4 {
                    sums[i].store(&mut o[i]);
                }
            }
        }
    }
    for r in 0..rows {
        let factor = 1.0 / sum[r];
        out[r].iter_mut().for_each(|x| *x *= factor);
    }
}
