//! Tail compensation: does the mean V of what was not read, weighted by its estimated mass, pay for its bytes?
//!
//! The steps are the toolkit's own (`progressive:M` on 2+2 bits, the cpu device, at several M); what is added to their
//! output is a model in f64. With `Z` the exact mass read, `R_b` the estimated mass of an unread block and `mu_b` a mean
//! of V: `o = (Z o_read + sum_b R_b mu_b) / (Z + sum_b R_b)`. Variants differ in what `mu_b` is the mean of, and in
//! the bytes that it costs, f16 for each channel:
//!
//! * one: of all unread tokens of the sequence. A running sum of V (f32) less what was read: 4 bytes a channel a step;
//! * groups: of the unread tokens of the 64-token group: the group's mean, less what was read of the group anyway;
//! * groups whole: of the group, read or not;
//! * blocks: of the block itself;
//! * groups, half: the groups that hold the larger half of the unread mass, one mean for the others;
//! * all: of all tokens in full groups of 64, read or not, one running sum that no read takes part in;
//! * one, groups, all, at half weight: `R_b / 2` instead of `R_b`.
//!
//! Each variant is compared with reading more blocks instead: bytes at which it reaches the output error that plain
//! `progressive:0.95` has.
//!
//! `cargo run --release -p psa --example tail -- [TRACES] [TOKENS] [QUERIES]`, by default the bundled ones, as recorded,
//! 64. More tokens than recorded are made up (`psa::traces::extend`).

use std::error::Error;
use std::path::Path;

use half::f16;
use psa::eval::quantile;
use psa::traces::{Case, Traces, extend};
use psa::{CacheConfig, Capacity, DecodePlan, Device, Dtype, KvCache, Mirror, Policy, Shape};

const BLOCK: usize = 16;
const GROUP: usize = 64;
const MASSES: [f32; 9] = [0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99];
const VARIANTS: [&str; 10] = [
    "none",
    "one",
    "groups",
    "groups whole",
    "blocks",
    "groups, half",
    "one, half weight",
    "groups, half weight",
    "all",
    "all, half weight",
];

/// Sums over steps of one (mass, variant).
#[derive(Clone, Default)]
struct Totals {
    bytes: f64,
    seen: f64,
    errors: Vec<f64>,
}

/// Sums of V over tokens, by block: `[blocks][d]`, and tokens of each.
struct Values {
    d: usize,
    sums: Vec<f64>,
    tokens: Vec<f64>,
}

impl Values {
    fn of(case: &Case, visible: usize) -> Values {
        let d = case.head_dim;
        let v = case.v.to_f64(0..visible * d);
        let blocks = visible.div_ceil(BLOCK);
        let (mut sums, mut tokens) = (vec![0.0; blocks * d], vec![0.0; blocks]);
        for (t, row) in v.chunks_exact(d).enumerate() {
            tokens[t / BLOCK] += 1.0;
            sums[t / BLOCK * d..][..d].iter_mut().zip(row).for_each(|(sum, v)| *sum += v);
        }
        Values { d, sums, tokens }
    }

    /// Sum and number over the blocks that `of` picks.
    fn sum(&self, of: impl Iterator<Item = usize>) -> (Vec<f64>, f64) {
        let (mut sum, mut tokens) = (vec![0.0; self.d], 0.0);
        for b in of {
            tokens += self.tokens[b];
            sum.iter_mut().zip(&self.sums[b * self.d..][..self.d]).for_each(|(sum, v)| *sum += v);
        }
        (sum, tokens)
    }
}

/// As it would be stored.
fn stored(mean: &[f64]) -> Vec<f64> {
    mean.iter().map(|&x| f16::from_f64(x).to_f64()).collect()
}

fn scaled(sum: &[f64], by: f64) -> Vec<f64> {
    sum.iter().map(|x| x * by).collect()
}

/// Mean V for every unread block, and the bytes read for them; `weights`: estimated masses, any head's largest.
fn means(variant: &str, values: &Values, unread: &[bool], weights: &[f64]) -> (Vec<Option<Vec<f64>>>, f64) {
    let (d, blocks) = (values.d, unread.len());
    let per_group = GROUP / BLOCK;
    let groups = blocks.div_ceil(per_group);
    let of_group = |g: usize| g * per_group..((g + 1) * per_group).min(blocks);
    let mut means: Vec<Option<Vec<f64>>> = vec![None; blocks];
    let mut bytes = 0.0;
    let one = || {
        let (sum, tokens) = values.sum((0..blocks).filter(|&b| unread[b]));
        scaled(&sum, 1.0 / tokens.max(1.0))
    };
    let rest_of = |g: usize| {
        let (all, n) = values.sum(of_group(g));
        let mean = scaled(&stored(&scaled(&all, 1.0 / n)), n);
        let (read, of_read) = values.sum(of_group(g).filter(|&b| !unread[b]));
        let left: Vec<f64> = mean.iter().zip(&read).map(|(all, read)| all - read).collect();
        scaled(&left, 1.0 / (n - of_read).max(1.0))
    };
    let open = |g: usize| of_group(g).any(|b| unread[b]);
    match variant {
        "none" => {}
        "one" | "one, half weight" => {
            let mean = one();
            bytes += 4.0 * d as f64;
            (0..blocks).filter(|&b| unread[b]).for_each(|b| means[b] = Some(mean.clone()));
        }
        "all" | "all, half weight" => {
            let (sum, tokens) = values.sum(0..values.tokens.iter().sum::<f64>() as usize / GROUP * per_group);
            let mean = scaled(&sum, 1.0 / tokens.max(1.0));
            bytes += 4.0 * d as f64;
            (0..blocks).filter(|&b| unread[b]).for_each(|b| means[b] = Some(mean.clone()));
        }
        "groups" | "groups whole" | "groups, half weight" => {
            for g in (0..groups).filter(|&g| open(g)) {
                bytes += 2.0 * d as f64;
                let (all, n) = values.sum(of_group(g));
                let mean =
                    if variant == "groups whole" { stored(&scaled(&all, 1.0 / n)) } else { rest_of(g) };
                of_group(g).filter(|&b| unread[b]).for_each(|b| means[b] = Some(mean.clone()));
            }
        }
        "blocks" => {
            for b in (0..blocks).filter(|&b| unread[b]) {
                bytes += 2.0 * d as f64;
                let (sum, n) = values.sum(std::iter::once(b));
                means[b] = Some(stored(&scaled(&sum, 1.0 / n)));
            }
        }
        _ => {
            let weight = |g: usize| of_group(g).filter(|&b| unread[b]).map(|b| weights[b]).sum::<f64>();
            let mut order: Vec<usize> = (0..groups).filter(|&g| open(g)).collect();
            order.sort_by(|&a, &b| weight(b).total_cmp(&weight(a)));
            let total: f64 = order.iter().map(|&g| weight(g)).sum();
            let (mean, mut seen) = (one(), 0.0);
            bytes += 4.0 * d as f64;
            for g in order {
                let mean = if seen < 0.5 * total {
                    bytes += 2.0 * d as f64;
                    rest_of(g)
                } else {
                    mean.clone()
                };
                seen += weight(g);
                of_group(g).filter(|&b| unread[b]).for_each(|b| means[b] = Some(mean.clone()));
            }
        }
    }
    (means, bytes)
}

fn run(case: &Case, scale: f32, queries: usize, totals: &mut [Vec<Totals>]) -> Result<(), Box<dyn Error>> {
    let (d, group) = (case.head_dim, case.group);
    let dtype = match case.q {
        psa::traces::Elements::F16(_) => Dtype::F16,
        psa::traces::Elements::Bf16(_) => Dtype::Bf16,
    };
    let shape = Shape { layers: 1, q_heads: group, kv_heads: 1, head_dim: d, dtype };
    let config = CacheConfig {
        capacity: Capacity::Tokens(case.context),
        max_sequences: 1,
        mirror: Mirror::Nested,
        ..CacheConfig::default()
    };
    let mut cache = KvCache::new(&Device::cpu(), shape, config)?;
    let sequence = cache.add_sequence()?;
    let mut plans = Vec::new();
    for mass in MASSES {
        let plan = DecodePlan::new(&cache, &[sequence], Policy::Progressive { mass })?;
        plans.push(plan.with_scale(scale)?.with_record());
    }
    let mut tokens = 0;
    for i in case.queries - queries.min(case.queries)..case.queries {
        let visible = case.visible(i);
        let rows = tokens * d..visible * d;
        cache.append(sequence, 0, case.k.rows(rows.clone()), case.v.rows(rows))?;
        tokens = visible;
        let values = Values::of(case, visible);
        let query = case.query(i);
        for (plan, totals) in plans.iter_mut().zip(totals.iter_mut()) {
            let (mut out, mut lse) = (vec![0.0f32; group * d], vec![0.0f32; group]);
            plan.attend_with_lse(&mut cache, 0, query.rows(0..query.len()), &mut out, &mut lse)?;
            let report = plan.report();
            let mut unread = vec![true; visible.div_ceil(BLOCK)];
            plan.selection(0, 0, 0).unwrap_or_default().iter().for_each(|&b| unread[b as usize] = false);
            // Estimated masses of each head, relative to the exact mass read.
            let weights: Vec<Vec<f64>> = (0..group)
                .map(|g| {
                    let read = lse[g] as f64 * std::f64::consts::LOG2_E;
                    let masses = plan.log_mass(0, 0, g).unwrap_or_default();
                    masses.iter().map(|&m| (m as f64 - read).exp2()).collect()
                })
                .collect();
            let most: Vec<f64> =
                (0..unread.len()).map(|b| weights.iter().map(|w| w[b]).fold(0.0, f64::max)).collect();
            let own =
                report.blocks_read() as f64 * shape.slot_bytes() as f64 + report.metadata_bytes() as f64;
            for (variant, totals) in VARIANTS.iter().zip(totals.iter_mut()) {
                let (means, bytes) = means(variant, &values, &unread, &most);
                totals.bytes += own + bytes;
                totals.seen += (visible * shape.slot_bytes() / BLOCK) as f64;
                for (g, weights) in weights.iter().enumerate() {
                    let mut sum: Vec<f64> = out[g * d..][..d].iter().map(|&x| x as f64).collect();
                    let mut mass = 1.0;
                    for (mean, weight) in means.iter().zip(weights) {
                        let Some(mean) = mean else { continue };
                        let weight = if variant.ends_with("half weight") { weight / 2.0 } else { *weight };
                        mass += weight;
                        sum.iter_mut().zip(mean).for_each(|(sum, v)| *sum += weight * v);
                    }
                    let dense = &case.out[(g * case.queries + i) * d..][..d];
                    let off: f64 = sum.iter().zip(dense).map(|(o, &x)| (o / mass - x as f64).powi(2)).sum();
                    let size: f64 = dense.iter().map(|&x| (x as f64).powi(2)).sum();
                    totals.errors.push((off / size).sqrt());
                }
            }
        }
    }
    Ok(())
}

/// Bytes at which the curve (bytes, error), errors falling, reaches `error`; between two points by the logarithm.
fn bytes_at(curve: &[(f64, f64)], error: f64) -> Option<f64> {
    curve.windows(2).find(|w| w[0].1 >= error && w[1].1 <= error).map(|w| {
        let share = (w[0].1 / error).ln() / (w[0].1 / w[1].1).ln().max(1e-12);
        w[0].0 + share * (w[1].0 - w[0].0)
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let bundled = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/traces.safetensors");
    let file = arguments.first().map_or(bundled, String::as_str);
    let number = |i: usize| arguments.get(i).map(|text| text.parse::<usize>()).transpose();
    let (tokens, queries) = (number(1)?, number(2)?.unwrap_or(64));
    let mut traces = Traces::load(Path::new(file))?;
    let recorded = traces.cases.iter().map(|case| case.context).min().unwrap_or(0);
    if let Some(tokens) = tokens.filter(|&tokens| tokens > recorded) {
        let last = |case: &Case| case.part(case.queries - queries.min(case.queries)..case.queries);
        traces.cases = traces.cases.iter().map(last).collect();
        traces = extend(&traces, tokens, 0)?;
    }
    println!("{}: {} case(s), {queries} steps each\n", traces.origin, traces.cases.len());
    let mut totals = vec![vec![Totals::default(); VARIANTS.len()]; MASSES.len()];
    for case in &traces.cases {
        eprintln!("{}", case.name);
        run(case, traces.scale, queries, &mut totals)?;
    }

    println!("| mass | tail | bytes | output error, mean | p99 |\n|---|---|---|---|---|");
    let mean = |t: &Totals| t.errors.iter().sum::<f64>() / t.errors.len() as f64;
    let p99 = |t: &Totals| quantile(&t.errors, 0.99);
    for (mass, row) in MASSES.iter().zip(&totals) {
        for (variant, t) in VARIANTS.iter().zip(row) {
            println!("| {mass} | {variant} | {:.3} | {:.4} | {:.4} |", t.bytes / t.seen, mean(t), p99(t));
        }
    }
    println!(
        "\nBytes at the output error of plain progressive:0.95:\n\n| tail | at its mean | at its p99 |\n|---|---|---|"
    );
    let at = MASSES.iter().position(|&mass| mass == 0.95).unwrap_or(0);
    for (v, variant) in VARIANTS.iter().enumerate() {
        let curve = |of: &dyn Fn(&Totals) -> f64| -> Vec<(f64, f64)> {
            totals.iter().map(|row| (row[v].bytes / row[v].seen, of(&row[v]))).collect()
        };
        let figure = |of: &dyn Fn(&Totals) -> f64| {
            let wanted = of(&totals[at][0]);
            bytes_at(&curve(of), wanted).map_or("-".to_owned(), |bytes| format!("{bytes:.3}"))
        };
        println!("| {variant} | {} | {} |", figure(&mean), figure(&p99));
    }
    Ok(())
}
