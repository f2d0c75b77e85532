//! Real traces: the outputs and log-sum-exps stored with them come out of every device, and every device
//! selects the same blocks.
//!
//! tests/data/traces.safetensors, made elsewhere by other code (tests/data/README.md): 8 cases of 4,096
//! tokens, one KV head, 3 query heads, the last 64 positions as queries. The cases are the sequences of one
//! batch; query i sits at position 4032 + i and sees the keys up to its own, so a run appends one token to
//! every sequence a step. With PSA_QUICK set, fewer of the queries.

use half::f16;
use psa::{CacheConfig, Capacity, DecodePlan, Device, Dtype, KvCache, Mirror, Policy, SequenceId, Shape};
use psa_tests::{Arithmetic, Sequence, Tensor, step_bounds};
use safetensors::SafeTensors;
use std::ops::Range;
use std::sync::LazyLock;

const SHAPE: Shape = Shape { layers: 1, q_heads: 3, kv_heads: 1, head_dim: 64, dtype: Dtype::F16 };
const D: usize = SHAPE.head_dim;
const HEADS: usize = SHAPE.q_heads;
const CASES: usize = 8;
const CONTEXT: usize = 4096;
const QUERIES: usize = 64;
const SCALE: f64 = 0.125;
/// What the emulator computes: seconds a query.
const LAST: Range<usize> = QUERIES - 2..QUERIES;

/// One (text, layer, KV head).
struct Case {
    /// `[HEADS, QUERIES, D]`.
    q: Vec<f16>,
    /// `[CONTEXT, D]`.
    k: Vec<f16>,
    /// `[CONTEXT, D]`.
    v: Vec<f16>,
    /// `[HEADS, QUERIES, D]`.
    out: Vec<f32>,
    /// `[HEADS, QUERIES]`.
    lse: Vec<f32>,
}

impl Case {
    /// The query at `query` of all heads: `[HEADS, D]`.
    fn query(&self, query: usize) -> impl Iterator<Item = f16> {
        (0..HEADS).flat_map(move |h| self.q[(h * QUERIES + query) * D..][..D].iter().copied())
    }
}

static TRACES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/traces.safetensors");
    let bytes = std::fs::read(path).expect(path);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |i: usize, name: &str, dtype: safetensors::Dtype, shape: &[usize]| {
        let view = file.tensor(&format!("case{i}.{name}")).unwrap();
        assert_eq!((view.dtype(), view.shape()), (dtype, shape), "case{i}.{name}");
        view.data().to_vec()
    };
    let halves = |i: usize, name: &str, shape: &[usize]| -> Vec<f16> {
        let bytes = tensor(i, name, safetensors::Dtype::F16, shape);
        bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect()
    };
    let floats = |i: usize, name: &str, shape: &[usize]| -> Vec<f32> {
        let bytes = tensor(i, name, safetensors::Dtype::F32, shape);
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    (0..CASES)
        .map(|i| Case {
            q: halves(i, "q", &[HEADS, QUERIES, D]),
            k: halves(i, "k", &[CONTEXT, D]),
            v: halves(i, "v", &[CONTEXT, D]),
            out: floats(i, "out", &[HEADS, QUERIES, D]),
            lse: floats(i, "lse", &[HEADS, QUERIES]),
        })
        .collect()
});

/// What one step gave.
struct Step {
    query: usize,
    /// `[CASES, HEADS, D]`.
    out: Vec<f32>,
    /// `[CASES, HEADS]`.
    lse: Vec<f32>,
    /// Blocks by rank of each case, where asked for.
    selection: Vec<Vec<u32>>,
    /// Top-up chunks of each case.
    topups: Vec<usize>,
}

/// Decodes the given queries of all cases on a device.
fn decode(device: &Device, mirror: Mirror, policy: Policy, queries: Range<usize>) -> Vec<Step> {
    let config = CacheConfig {
        capacity: Capacity::Tokens(CASES * CONTEXT),
        max_sequences: CASES,
        max_tokens: Some(CONTEXT),
        mirror,
        ..CacheConfig::default()
    };
    let mut cache = KvCache::new(device, SHAPE, config).unwrap();
    let before = CONTEXT - QUERIES + queries.start;
    let ids: Vec<SequenceId> = TRACES
        .iter()
        .map(|case| {
            let id = cache.add_sequence().unwrap();
            cache.append(id, 0, &case.k[..before * D], &case.v[..before * D]).unwrap();
            id
        })
        .collect();
    let mut plan = DecodePlan::new(&cache, &ids, policy).unwrap().with_record();
    queries
        .map(|query| {
            let position = CONTEXT - QUERIES + query;
            let rows = |of: fn(&Case) -> &[f16]| -> Vec<f16> {
                TRACES.iter().flat_map(|case| of(case)[position * D..][..D].iter().copied()).collect()
            };
            cache.append_batch(0, &ids, &rows(|c| &c.k), &rows(|c| &c.v)).unwrap();
            let q: Vec<f16> = TRACES.iter().flat_map(|case| case.query(query)).collect();
            let (mut out, mut lse) = (vec![f32::NAN; CASES * HEADS * D], vec![f32::NAN; CASES * HEADS]);
            plan.attend_with_lse(&mut cache, 0, &q, &mut out, &mut lse).unwrap();
            Step {
                query,
                out,
                lse,
                selection: (0..CASES).map(|i| plan.selection(0, i, 0).unwrap().to_vec()).collect(),
                topups: plan.report().heads.iter().map(|h| h.topups).collect(),
            }
        })
        .collect()
}

/// The first value of the steps that is farther from the stored one than allowed, in words. `bound` gives what
/// a step's arithmetic may be off by, for (case, query, head): (output, lse).
fn first_difference(steps: &[Step], bound: impl Fn(usize, usize, usize) -> (f64, f64)) -> Option<String> {
    // Both sides are rounded to f32 at the end, by half a unit in the last place (2^-24) at most.
    let rounding = |stored: f64| stored.abs() * (-23f64).exp2();
    for step in steps {
        for (i, case) in TRACES.iter().enumerate() {
            for h in 0..HEADS {
                let (out_bound, lse_bound) = bound(i, step.query, h);
                let out = (0..D).map(|c| {
                    let want = case.out[(h * QUERIES + step.query) * D + c];
                    (format!("channel {c}"), want, step.out[(i * HEADS + h) * D + c], out_bound)
                });
                let lse = case.lse[h * QUERIES + step.query];
                let lse = ("lse".to_string(), lse, step.lse[i * HEADS + h], lse_bound);
                for (what, want, have, bound) in out.chain([lse]) {
                    let bound = bound + rounding(want as f64);
                    // False for NaN.
                    if !approx::abs_diff_eq!(have as f64, want as f64, epsilon = bound) {
                        let query = step.query;
                        return Some(format!(
                            "case{i}, query {query}, head {h}, {what}: {have}, stored {want}, bound {bound:e}"
                        ));
                    }
                }
            }
        }
    }
    None
}

/// f64 on both sides: sums of 4,096 terms of magnitude below 100, so 1e-12 is a hundred times the error.
fn f64_bound(_: usize, _: usize, _: usize) -> (f64, f64) {
    (1e-12, 1e-12)
}

/// The bound of a step.
fn bound(arithmetic: Arithmetic) -> impl Fn(usize, usize, usize) -> (f64, f64) {
    move |i, query, h| {
        let tokens = CONTEXT - QUERIES + query + 1;
        let case = &TRACES[i];
        let sequence = Sequence {
            tokens,
            k: Tensor::F16(case.k[..tokens * D].to_vec()),
            v: Tensor::F16(case.v[..tokens * D].to_vec()),
            q: Tensor::F16(case.query(query).collect()),
        };
        step_bounds(&SHAPE, &sequence, h, SCALE, arithmetic)
    }
}

/// All queries, or some of them.
fn queries() -> Range<usize> {
    if std::env::var_os("PSA_QUICK").is_some() { QUERIES - 4..QUERIES } else { 0..QUERIES }
}

#[test]
fn the_reference_gives_the_stored_outputs() {
    let mut steps = decode(&Device::reference(), Mirror::Nested, Policy::Dense, queries());
    assert_eq!(first_difference(&steps, f64_bound), None);

    // The twin: two units in the last place are seen, and so is a NaN.
    let good = steps[0].out[5];
    for bad in [f32::from_bits(good.to_bits() + 2), f32::NAN] {
        steps[0].out[5] = bad;
        assert!(first_difference(&steps, f64_bound).is_some_and(|d| d.contains("channel 5")), "{bad}");
    }
    steps[0].out[5] = good;
    steps[1].lse[2] = f32::NAN;
    assert!(first_difference(&steps, f64_bound).is_some_and(|d| d.contains("lse")));
}

#[test]
fn the_cpu_gives_the_stored_outputs() {
    let steps = decode(&Device::cpu(), Mirror::Nested, Policy::Dense, queries());
    // The order of the cpu's additions is its own business: as if all were in a row.
    assert_eq!(first_difference(&steps, bound(Arithmetic::F32)), None);
}

#[test]
fn the_kernels_give_the_stored_outputs() {
    let steps = decode(&Device::emulator(), Mirror::Nested, Policy::Dense, LAST);
    assert_eq!(first_difference(&steps, bound(Arithmetic::Kernels { topups: 0 })), None);
}

#[test]
fn a_sparse_step_is_not_taken_for_the_stored_outputs() {
    // Reading 70 % of the mass is far outside the bound of f32 arithmetic.
    let steps = decode(&Device::cpu(), Mirror::Nested, Policy::TopP { mass: 0.7 }, LAST);
    assert!(first_difference(&steps, bound(Arithmetic::F32)).is_some());
}

#[test]
fn progressive_reads_the_same_blocks_on_every_device() {
    for mirror in [Mirror::Nested, Mirror::Bits2, Mirror::Bits4] {
        let policy = Policy::Progressive { mass: 0.95 };
        let reference = decode(&Device::reference(), mirror, policy, LAST);
        for device in [Device::cpu(), Device::emulator()] {
            let steps = decode(&device, mirror, policy, LAST);
            for (want, have) in reference.iter().zip(&steps) {
                let what = format!("{} with a {mirror}-bit mirror, query {}", device.name(), want.query);
                assert_eq!(want.selection, have.selection, "{what}");
                assert_eq!(want.topups, have.topups, "{what}");
            }
            assert_eq!(reference.len(), steps.len());
        }
        // Something was selected, and not everything.
        let (read, all) = reference.iter().fold((0, 0), |(read, all), step| {
            let blocks = step.selection.iter().map(Vec::len).sum::<usize>();
            (read + blocks, all + CASES * CONTEXT.div_ceil(16))
        });
        assert!(read > 0 && read < all / 2, "{read} of {all} blocks with a {mirror}-bit mirror");
    }
}
