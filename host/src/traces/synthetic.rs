//! Generators: cases with a known difficulty, which no recorded text promises to contain.
//!
//! Queries and keys are normal with the shared direction that real keys have; each [`Kind`] changes what
//! its name says. The same kind, geometry and seed give the same file.
//!
//! Where sparse attention must give up gracefully: `flat`, `equal` and `duplicates` have no small set of
//! blocks with most of the mass. Where its metadata is under stress: `huge`, `ties`.

use half::{bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use super::answer::{Parts, answer};
use super::{Elements, TraceError, Traces};
use crate::Dtype;
use kernels_gpu::layout::BLOCK;

/// What a generator makes hard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Flat background, and one token that holds about half of every query's mass, at a random place.
    Needle,
    /// Heavy tail: the mass of a block falls about as a power of its rank.
    Heavy,
    /// No key stands out: logits with a standard deviation of .05.
    Flat,
    /// The direction that queries look for turns slowly along the context and along the queries.
    Drift,
    /// Keys from an alphabet of 8, whole blocks equal: many blocks tie exactly.
    Ties,
    /// Every block is a copy of one of four.
    Duplicates,
    /// All keys the same: every quantisation step is zero.
    Equal,
    /// One key a thousand times as long as the rest, which stretches its group's quantisation steps.
    Huge,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 8] = [
        Kind::Needle,
        Kind::Heavy,
        Kind::Flat,
        Kind::Drift,
        Kind::Ties,
        Kind::Duplicates,
        Kind::Equal,
        Kind::Huge,
    ];

    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Needle => "needle",
            Kind::Heavy => "heavy",
            Kind::Flat => "flat",
            Kind::Drift => "drift",
            Kind::Ties => "ties",
            Kind::Duplicates => "duplicates",
            Kind::Equal => "equal",
            Kind::Huge => "huge",
        }
    }
}

/// Sizes of the cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cases.
    pub cases: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Queries of each head, the last tokens.
    pub queries: usize,
    /// Query heads of the KV head.
    pub group: usize,
    /// Elements of a row.
    pub head_dim: usize,
    /// Element type.
    pub dtype: Dtype,
}

/// Cases of `kind`. The softmax scale is 1/sqrt(head_dim).
///
/// # Errors
/// [`TraceError::Unsupported`] for a geometry that a traces file cannot hold.
pub fn synthetic(kind: Kind, geometry: Geometry, seed: u64) -> Result<Traces, TraceError> {
    let origin = format!("synthetic {}, seed {seed}", kind.name());
    super::read::check_geometry(
        &origin,
        "each case",
        geometry.group,
        geometry.queries,
        geometry.tokens,
        geometry.head_dim,
    )?;
    let scale = (1.0 / (geometry.head_dim as f64).sqrt()) as f32;
    let cases = (0..geometry.cases).map(|index| {
        // Cases are independent of each other's sizes: each has a stream of its own.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index as u64);
        let [q, k, v] = rows(kind, geometry, &mut rng).map(|x| elements(&x, geometry.dtype));
        let parts = Parts {
            name: format!("case{index}"),
            label: format!("{} {index}", kind.name()),
            head_dim: geometry.head_dim,
            group: geometry.group,
            q,
            k,
            v,
        };
        answer(parts, scale)
    });
    Ok(Traces { scale, cases: cases.collect(), origin })
}

/// Rounds to the element type.
pub(super) fn elements(values: &[f64], dtype: Dtype) -> Elements {
    match dtype {
        Dtype::F16 => Elements::F16(values.iter().map(|x| f16::from_f64(*x)).collect()),
        Dtype::Bf16 => Elements::Bf16(values.iter().map(|x| bf16::from_f64(*x)).collect()),
    }
}

fn normal(rng: &mut ChaCha8Rng, n: usize, size: f64) -> Vec<f64> {
    (0..n).map(|_| rng.sample::<f64, _>(StandardNormal) * size).collect()
}

fn unit(mut x: Vec<f64>) -> Vec<f64> {
    let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
    x.iter_mut().for_each(|x| *x /= norm);
    x
}

/// q `[group, queries, d]`, k and v `[tokens, d]`. Logits are scale q.k with |q| near sqrt(d): a key of
/// length s along a query's direction has the logit s.
fn rows(kind: Kind, geometry: Geometry, rng: &mut ChaCha8Rng) -> [Vec<f64>; 3] {
    let Geometry { tokens, queries, group, head_dim: d, .. } = geometry;
    let root = (d as f64).sqrt();
    let direction = unit(normal(rng, d, 1.0));
    let other = unit(normal(rng, d, 1.0));
    // Half of a query is what all queries share, half its own.
    let mut q = normal(rng, group * queries * d, 0.5);
    for (i, row) in q.chunks_exact_mut(d).enumerate() {
        let turn = if kind == Kind::Drift { (i % queries) as f64 / queries as f64 * 0.5 } else { 0.0 };
        for (c, x) in row.iter_mut().enumerate() {
            *x += root * ((1.0 - turn) * direction[c] + turn * other[c]);
        }
    }
    let mut k = normal(rng, tokens * d, 1.0);
    let along = |row: &mut [f64], amount: f64| {
        row.iter_mut().zip(&direction).for_each(|(x, u)| *x += amount * u);
    };
    match kind {
        Kind::Needle => {
            k.iter_mut().for_each(|x| *x *= 0.2);
            // Before the first query, so that every query sees it.
            let place = rng.random_range(0..(tokens - queries).max(1));
            along(&mut k[place * d..][..d], (tokens as f64).ln());
        }
        Kind::Heavy => {
            // The logit of the r-th of the blocks falls as -1.2 ln r: mass as r^-1.2.
            let blocks = tokens.div_ceil(BLOCK) as f64;
            for block in k.chunks_mut(BLOCK * d) {
                let rank: f64 = rng.random_range(1.0 / blocks..1.0) * blocks;
                for row in block.chunks_exact_mut(d) {
                    row.iter_mut().for_each(|x| *x *= 0.3);
                    along(row, 1.2 * (blocks / rank).ln());
                }
            }
        }
        Kind::Flat => k.iter_mut().for_each(|x| *x *= 0.05),
        Kind::Drift => {
            for (t, row) in k.chunks_exact_mut(d).enumerate() {
                let turn = t as f64 / tokens as f64;
                let lift = rng.random_range(0.0..6.0);
                for (c, x) in row.iter_mut().enumerate() {
                    *x = *x * 0.5 + lift * ((1.0 - turn) * other[c] + turn * direction[c]);
                }
            }
        }
        Kind::Ties => {
            let alphabet: Vec<Vec<f64>> = (0..8).map(|_| normal(rng, d, 1.0)).collect();
            for block in k.chunks_mut(BLOCK * d) {
                let letter = &alphabet[rng.random_range(0..8)];
                block.chunks_exact_mut(d).for_each(|row| row.copy_from_slice(letter));
            }
        }
        Kind::Duplicates => {
            let blocks: Vec<Vec<f64>> = (0..4).map(|_| normal(rng, BLOCK * d, 1.0)).collect();
            for (b, block) in k.chunks_mut(BLOCK * d).enumerate() {
                block.copy_from_slice(&blocks[b % 4][..block.len()]);
            }
        }
        Kind::Equal => {
            let key = normal(rng, d, 1.0);
            k.chunks_exact_mut(d).for_each(|row| row.copy_from_slice(&key));
        }
        Kind::Huge => {
            let place = rng.random_range(0..tokens);
            // Away from the queries, so that it has no mass itself and only spoils its neighbours' steps.
            let row = &mut k[place * d..][..d];
            row.iter_mut().zip(&direction).for_each(|(x, u)| *x = *x * 1000.0 - 1000.0 * u);
        }
    }
    [q, k, normal(rng, tokens * d, 1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Truth;

    const SMALL: Geometry =
        Geometry { cases: 2, tokens: 800, queries: 3, group: 2, head_dim: 64, dtype: Dtype::F16 };

    /// Masses of the blocks that query 0 of head 0 sees.
    fn masses(traces: &Traces, case: usize) -> Vec<f64> {
        let case = &traces.cases[case];
        let truth = Truth::of(case, traces.scale, None).unwrap();
        let blocks = case.visible(0).div_ceil(BLOCK);
        let without = |b: usize| (0..blocks as u32).filter(|x| *x != b as u32).collect::<Vec<_>>();
        (0..blocks).map(|b| truth.missed(0, 0, &without(b))).collect()
    }

    #[test]
    fn every_kind_is_what_its_name_says() {
        for kind in Kind::ALL {
            let traces = synthetic(kind, SMALL, 7).unwrap();
            assert_eq!(traces, synthetic(kind, SMALL, 7).unwrap(), "same seed, same file");
            assert_ne!(traces, synthetic(kind, SMALL, 8).unwrap());
            let mut masses = masses(&traces, 0);
            let case = &traces.cases[0];
            let key = |t: usize| case.k.to_f64(t * 64..(t + 1) * 64);
            masses.sort_by(|a, b| b.total_cmp(a));
            // 50 blocks: 1/50 each where nothing stands out.
            match kind {
                Kind::Needle => assert!(masses[0] > 0.2 && masses[1] < 0.1, "{masses:?}"),
                Kind::Heavy => assert!(masses[0] > 3.0 * masses[4] && masses[4] > 3.0 * masses[40]),
                Kind::Flat => assert!(masses[0] < 0.03 && masses[49] > 0.005, "{masses:?}"),
                Kind::Drift => assert!(masses[0] > 0.025, "{masses:?}"),
                Kind::Ties => assert!((0..15).all(|t| key(t) == key(t + 1))),
                Kind::Duplicates => assert!((0..64).all(|t| key(t) == key(t + 64))),
                Kind::Equal => assert!((0..799).all(|t| key(t) == key(t + 1))),
                Kind::Huge => {
                    let long = |t: &usize| key(*t).iter().any(|x| x.abs() > 500.0);
                    assert_eq!((0..800).filter(long).count(), 1);
                }
            }
        }
    }

    #[test]
    fn a_geometry_that_no_file_can_hold_is_refused() {
        for (bad, what) in [
            (Geometry { head_dim: 80, ..SMALL }, "80"),
            (Geometry { group: 99, ..SMALL }, "99"),
            (Geometry { queries: 900, ..SMALL }, "900"),
            (Geometry { queries: 0, ..SMALL }, "at least one"),
        ] {
            let error = synthetic(Kind::Flat, bad, 0).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
