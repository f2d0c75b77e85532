//! Is there a cheaper first level? Ways to read less metadata than a mirror of 2 bits, at what quality.
//!
//! A model in f32 of the decode step, not the toolkit's own stages: estimators that are not built yet can be compared
//! here before anybody writes a kernel. Bytes are those that a step has to read; the rule is `progressive:0.95` (p0,
//! chunks of 8), the same for all. Contexts longer than the traces are made of them: earlier copies of the context,
//! 0.9 of each key's deviation from the mean and noise of the same spread for the rest. That keeps the statistics of
//! scores, and repeats every needle; it is no recording.
//!
//! `cargo run --release -p psa --example first_level -- [TRACES] [TOKENS] [QUERIES] [rules|channels]`, by default the bundled
//! ones, 4096, 64. With `rules`: what p0 and the size of a top-up cost, instead. With `channels`: half of the channels
//! against 2+2 at several masses, so that they can be compared at the same missed mass.

use std::error::Error;
use std::path::Path;

use psa::eval::quantile;
use psa::traces::{Case, Traces};

const P: f64 = 0.95;
const BLOCK: usize = 16;

/// A case, its keys extended.
struct Context {
    keys: Vec<f32>,
    d: usize,
    group: usize,
    queries: Vec<Vec<f32>>,
    /// Tokens that each query sees.
    visible: Vec<usize>,
}

/// One estimate: log2 masses `[group][blocks in full groups]`, and bytes read for it.
struct Estimate {
    masses: Vec<Vec<f32>>,
    bytes: f64,
}

/// Keys quantised to `bits` in groups: codes, and zero and step of each group and channel.
struct Codes {
    bits: u32,
    group: usize,
    codes: Vec<u8>,
    zero: Vec<f32>,
    step: Vec<f32>,
}

fn f16(x: f32) -> f32 {
    half::f16::from_f32(x).to_f32()
}

impl Codes {
    /// `middle`: the codes are the middles of equal parts of the range; otherwise the first and the last are its ends.
    fn new(context: &Context, bits: u32, group: usize, middle: bool) -> Codes {
        let (d, levels) = (context.d, 1u32 << bits);
        let groups = context.keys.len() / d / group;
        let mut made = Codes { bits, group, codes: vec![0; groups * group * d], zero: vec![], step: vec![] };
        for g in 0..groups {
            for c in 0..d {
                let at = |t: usize| context.keys[(g * group + t) * d + c];
                let min = (0..group).map(at).fold(f32::INFINITY, f32::min);
                let max = (0..group).map(at).fold(f32::NEG_INFINITY, f32::max);
                let range = max - min;
                let (zero, step) = if middle {
                    (f16(min + range / (2 * levels) as f32), f16(range / levels as f32))
                } else {
                    (f16(min), f16(range / (levels - 1) as f32))
                };
                for t in 0..group {
                    let code = if step > 0.0 { ((at(t) - zero) / step).round() } else { 0.0 };
                    made.codes[(g * group + t) * d + c] = code.clamp(0.0, (levels - 1) as f32) as u8;
                }
                made.zero.push(zero);
                made.step.push(step);
            }
        }
        made
    }

    /// The keys as the `kept` most significant bits tell them: the middle of what is left open.
    fn keys(&self, d: usize, kept: u32) -> Vec<f32> {
        let left = self.bits - kept;
        let open = ((1u32 << left) - 1) as f32 / 2.0;
        let value = |(i, &code): (usize, &u8)| {
            let at = i / d / self.group * d + i % d;
            self.zero[at] + self.step[at] * ((code >> left << left) as f32 + open)
        };
        self.codes.iter().enumerate().map(value).collect()
    }

    /// Standard deviation of a score by `kept` bits, log2, of each group.
    fn spread(&self, d: usize, q: &[f32], kept: u32, groups: usize) -> Vec<f32> {
        let width = (1u32 << (self.bits - kept)) as f32;
        let of = |g: usize| {
            let sum: f32 = (0..d).map(|c| (q[c] * self.step[g * d + c] * width).powi(2)).sum();
            (sum / 12.0).sqrt()
        };
        (0..groups).map(of).collect()
    }
}

/// log2 masses of the first `blocks` blocks.
fn masses(keys: &[f32], d: usize, q: &[f32], blocks: usize) -> Vec<f32> {
    let dot = |k: &[f32]| {
        let mut lanes = [0.0f32; 16];
        for (k, q) in k.chunks_exact(16).zip(q.chunks_exact(16)) {
            for l in 0..16 {
                lanes[l] += k[l] * q[l];
            }
        }
        lanes.iter().sum::<f32>()
    };
    let of = |block: &[f32]| {
        let scores: Vec<f32> = block.chunks_exact(d).map(dot).collect();
        let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        top + scores.iter().map(|s| (s - top).exp2()).sum::<f32>().log2()
    };
    keys[..(blocks * BLOCK * d).min(keys.len())].chunks(BLOCK * d).map(of).collect()
}

/// log2 of a head's total.
fn total(row: &[f32]) -> f32 {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    top + row.iter().map(|m| (m - top).exp2()).sum::<f32>().log2()
}

/// Blocks (or groups) whose share of some head's total (by head), raised by `doubt` (log2, by head and block), exceeds
/// `share` of the mean share.
fn candidates(
    masses: &[Vec<f32>],
    totals: &[f32],
    doubt: impl Fn(usize, usize) -> f32,
    share: f32,
) -> Vec<bool> {
    let mut any = vec![false; masses[0].len()];
    for (g, (row, total)) in masses.iter().zip(totals).enumerate() {
        for (b, any) in any.iter_mut().enumerate() {
            *any |= row[b] + doubt(g, b) > total + (share / row.len() as f32).log2();
        }
    }
    any
}

/// A way to estimate; it may remember earlier steps of its context.
type Estimator<'a> = Box<dyn FnMut(&[Vec<f32>], usize) -> Estimate + 'a>;

/// What a run gave.
#[derive(Default)]
struct Totals {
    read: f64,
    seen: f64,
    bytes: f64,
    kv: f64,
    topped: f64,
    steps: f64,
    missed: Vec<f64>,
}

/// How a step stops: the estimated mass that is planned for, and blocks of a top-up.
#[derive(Clone, Copy)]
struct Rule {
    p: f64,
    p0: f64,
    chunk: usize,
}

/// Runs one context; `group` tokens have a page.
fn run(
    context: &Context,
    group: usize,
    Rule { p, p0, chunk }: Rule,
    mut estimate: Estimator<'_>,
    totals: &mut Totals,
) {
    let (d, heads) = (context.d, context.group);
    for (query, &n) in context.queries.iter().zip(&context.visible) {
        let q: Vec<Vec<f32>> = query.chunks(d).map(<[f32]>::to_vec).collect();
        let blocks = n.div_ceil(BLOCK);
        let described = n / group * group / BLOCK;
        let truth: Vec<Vec<f32>> = q.iter().map(|q| masses(&context.keys[..n * d], d, q, blocks)).collect();
        let told = estimate(&q, described);
        let mut rank = vec![0.0f64; blocks];
        let (mut believed, mut exact) = (vec![], vec![]);
        for (truth, told) in truth.iter().zip(&told.masses) {
            let row: Vec<f32> = truth.iter().enumerate().map(|(b, m)| *told.get(b).unwrap_or(m)).collect();
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let scale = |x: &f32| ((x - top) as f64).exp2();
            let row: Vec<f64> = row.iter().map(scale).collect();
            let total: f64 = row.iter().sum();
            rank.iter_mut().zip(&row).for_each(|(r, m)| *r += m / total);
            exact.push(truth.iter().map(scale).collect::<Vec<f64>>());
            believed.push(row);
        }
        let forced = |b: usize| b < 1 || b + 2 >= blocks || b >= described;
        let mut order: Vec<usize> = (0..blocks).collect();
        order.sort_by(|&a, &b| forced(b).cmp(&forced(a)).then(rank[b].total_cmp(&rank[a])).then(a.cmp(&b)));
        let sum = |rows: &[Vec<f64>], g: usize, from: usize, to: usize| -> f64 {
            order[from..to].iter().map(|&b| rows[g][b]).sum()
        };
        let mut count = (0..blocks).filter(|&b| forced(b)).count();
        for g in 0..heads {
            let (total, mut seen, mut prefix) = (sum(&believed, g, 0, blocks), 0.0, 0);
            while prefix < blocks && seen < p0 * total {
                seen += believed[g][order[prefix]];
                prefix += 1;
            }
            count = count.max(prefix);
        }
        let planned = count;
        let enough = |count: usize| {
            (0..heads).all(|g| sum(&exact, g, 0, count) * (1.0 - p) >= p * sum(&believed, g, count, blocks))
        };
        while count < blocks && !enough(count) {
            count = (count + chunk).min(blocks);
        }
        totals.read += count as f64;
        totals.seen += blocks as f64;
        totals.bytes += told.bytes;
        totals.kv += (n * 4 * d) as f64;
        totals.topped += f64::from(u8::from(count > planned));
        totals.steps += 1.0;
        for g in 0..heads {
            totals.missed.push(sum(&exact, g, count, blocks) / sum(&exact, g, 0, blocks));
        }
    }
}

/// Metadata of one mirror, all of it read.
fn mirror<'a>(context: &'a Context, bits: u32, group: usize, middle: bool) -> Estimator<'a> {
    let d = context.d;
    let keys = Codes::new(context, bits, group, middle).keys(d, bits);
    Box::new(move |q, blocks| Estimate {
        masses: q.iter().map(|q| masses(&keys, d, q, blocks)).collect(),
        bytes: (blocks * BLOCK * d * bits as usize / 8 + blocks * BLOCK / group * 4 * d) as f64,
    })
}

/// Planes of `planes` bits each; plane i + 1 is read of blocks whose estimate by the first i + 1, raised by `looks[i].0`
/// standard deviations, exceeds `looks[i].1` of the mean share by the estimates so far, or (`stale`) by those of the
/// step before: then one pass over the pages is enough, because the threshold is known beforehand.
fn nested<'a>(
    context: &'a Context,
    planes: &[u32],
    group: usize,
    middle: bool,
    looks: &[(f32, f32)],
    stale: bool,
) -> Estimator<'a> {
    let (d, all): (usize, u32) = (context.d, planes.iter().sum());
    let codes = Codes::new(context, all, group, middle);
    let kept: Vec<u32> = (0..planes.len()).map(|i| planes[..=i].iter().sum()).collect();
    let keys: Vec<Vec<f32>> = kept.iter().map(|&kept| codes.keys(d, kept)).collect();
    let (planes, looks) = (planes.to_vec(), looks.to_vec());
    let mut last: Option<Vec<f32>> = None;
    Box::new(move |q, blocks| {
        let groups = blocks * BLOCK / group;
        let mut rows: Vec<Vec<f32>> = q.iter().map(|q| masses(&keys[0], d, q, blocks)).collect();
        let mut bytes = (blocks * BLOCK * d * planes[0] as usize / 8 + groups * 4 * d) as f64;
        let mut open = vec![true; blocks];
        for (i, &(doubt, share)) in looks.iter().enumerate() {
            let spreads: Vec<Vec<f32>> = q.iter().map(|q| codes.spread(d, q, kept[i], groups)).collect();
            let totals: Vec<f32> = match &last {
                Some(last) => last.clone(),
                None => rows.iter().map(|row| total(row)).collect(),
            };
            let again = candidates(&rows, &totals, |g, b| doubt * spreads[g][b * BLOCK / group], share);
            open.iter_mut().zip(again).for_each(|(open, again)| *open &= again);
            for (g, q) in q.iter().enumerate() {
                for (b, row) in
                    masses(&keys[i + 1], d, q, blocks).into_iter().enumerate().filter(|(b, _)| open[*b])
                {
                    rows[g][b] = row;
                }
            }
            bytes += (open.iter().filter(|&&x| x).count() * BLOCK * d * planes[i + 1] as usize / 8) as f64;
        }
        last = stale.then(|| rows.iter().map(|row| total(row)).collect());
        Estimate { masses: rows, bytes }
    })
}

/// Of `bits`, only the share `part` of the channels whose weight (query times step, over heads and groups) is largest; the
/// others count as their group's mean, which is read besides.
fn channels<'a>(context: &'a Context, bits: u32, group: usize, part: f64) -> Estimator<'a> {
    let d = context.d;
    let codes = Codes::new(context, bits, group, false);
    let keys = codes.keys(d, bits);
    let groups = codes.zero.len() / d;
    let mut means = vec![0.0f32; groups * d];
    for (i, key) in context.keys[..groups * group * d].iter().enumerate() {
        means[i / d / group * d + i % d] += key / group as f32;
    }
    Box::new(move |q, blocks| {
        let groups = blocks * BLOCK / group;
        let weight = |c: usize| -> f32 {
            let steps: f32 = (0..groups).map(|g| codes.step[g * d + c]).sum();
            q.iter().map(|q| q[c].abs()).fold(0.0, f32::max) * steps
        };
        let mut by_weight: Vec<usize> = (0..d).collect();
        by_weight.sort_by(|&a, &b| weight(b).total_cmp(&weight(a)));
        let mut kept = vec![false; d];
        by_weight[..(d as f64 * part) as usize].iter().for_each(|&c| kept[c] = true);
        let mixed: Vec<f32> = (0..blocks * BLOCK * d)
            .map(|i| if kept[i % d] { keys[i] } else { means[i / d / group * d + i % d] })
            .collect();
        let bytes = blocks as f64 * (BLOCK * d) as f64 * part * bits as f64 / 8.0 + (groups * 6 * d) as f64;
        Estimate { masses: q.iter().map(|q| masses(&mixed, d, q, blocks)).collect(), bytes }
    })
}

/// Product quantisation: 256 centroids for each 8 channels, so a bit an element, by k-means over the context; the
/// codebook is read once a step.
fn product<'a>(context: &'a Context, sub: usize, group: usize) -> Estimator<'a> {
    let d = context.d;
    let n = context.keys.len() / d / group * group;
    let mut keys = vec![0.0f32; n * d];
    for s in (0..d).step_by(sub) {
        let row = |t: usize| &context.keys[t * d + s..][..sub];
        let mut centroids: Vec<Vec<f32>> = (0..256).map(|i| row(i * n / 256).to_vec()).collect();
        let nearest = |centroids: &[Vec<f32>], x: &[f32]| {
            let distance = |c: &Vec<f32>| c.iter().zip(x).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
            (0..256).min_by(|&a, &b| distance(&centroids[a]).total_cmp(&distance(&centroids[b]))).unwrap_or(0)
        };
        for _ in 0..6 {
            let (mut sums, mut counts) = (vec![vec![0.0f32; sub]; 256], vec![0.0f32; 256]);
            // Every fourth key teaches.
            for t in (0..n).step_by(4) {
                let i = nearest(&centroids, row(t));
                counts[i] += 1.0;
                sums[i].iter_mut().zip(row(t)).for_each(|(sum, x)| *sum += x);
            }
            for i in (0..256).filter(|&i| counts[i] > 0.0) {
                centroids[i] = sums[i].iter().map(|sum| sum / counts[i]).collect();
            }
        }
        for t in 0..n {
            keys[t * d + s..][..sub].copy_from_slice(&centroids[nearest(&centroids, row(t))]);
        }
    }
    Box::new(move |q, blocks| Estimate {
        masses: q.iter().map(|q| masses(&keys, d, q, blocks)).collect(),
        bytes: (blocks * BLOCK * d / sub + 256 * d * 2) as f64,
    })
}

/// Groups whose normal model (mean and variance of each channel), raised by `doubt` standard deviations, stays below
/// `share` of the mean are not read at all; the others as `inner` has them.
fn skipping<'a>(
    context: &'a Context,
    group: usize,
    doubt: f32,
    share: f32,
    mut inner: Estimator<'a>,
) -> Estimator<'a> {
    let d = context.d;
    let groups = context.keys.len() / d / group;
    let (mut mean, mut square) = (vec![0.0f32; groups * d], vec![0.0f32; groups * d]);
    for (i, key) in context.keys[..groups * group * d].iter().enumerate() {
        let at = i / d / group * d + i % d;
        mean[at] += key / group as f32;
        square[at] += key * key / group as f32;
    }
    let blocks_of = group / BLOCK;
    Box::new(move |q, blocks| {
        let groups = blocks / blocks_of;
        let told = inner(q, blocks);
        let mut guess = vec![];
        let mut spreads = vec![];
        for q in q {
            let dot = |g: usize| (0..d).map(|c| q[c] * mean[g * d + c]).sum::<f32>();
            let variance = |g: usize| {
                (0..d)
                    .map(|c| q[c] * q[c] * (square[g * d + c] - mean[g * d + c].powi(2)).max(0.0))
                    .sum::<f32>()
            };
            let spread: Vec<f32> = (0..groups).map(|g| variance(g).sqrt()).collect();
            guess.push(
                (0..groups).map(|g| dot(g) + 0.35 * variance(g) + (group as f32).log2()).collect::<Vec<_>>(),
            );
            spreads.push(spread);
        }
        let totals: Vec<f32> = guess.iter().map(|row| total(row)).collect();
        let read = candidates(&guess, &totals, |g, b| doubt * spreads[g][b], share);
        let part = read.iter().filter(|&&x| x).count() as f64 / read.len().max(1) as f64;
        let fill = |(g, row): (usize, &Vec<f32>)| -> Vec<f32> {
            let per_block = (blocks_of as f32).log2();
            row.iter()
                .enumerate()
                .map(
                    |(b, &mass)| if read[b / blocks_of] { mass } else { guess[g][b / blocks_of] - per_block },
                )
                .collect()
        };
        Estimate {
            masses: told.masses.iter().enumerate().map(fill).collect(),
            bytes: told.bytes * part + (groups * 4 * d) as f64,
        }
    })
}

/// Blocks whose share was below `share` of the mean when they were last scored are scored again only every `every` steps; until then
/// they keep their old masses.
fn remembering<'a>(every: usize, share: f32, mut inner: Estimator<'a>) -> Estimator<'a> {
    let (mut step, mut old): (usize, Vec<Vec<f32>>) = (0, vec![]);
    Box::new(move |q, blocks| {
        let mut told = inner(q, blocks);
        if !old.is_empty() && old[0].len() == blocks {
            let totals: Vec<f32> = old.iter().map(|row| total(row)).collect();
            let kept = candidates(&old, &totals, |_, _| 0.0, share);
            let again = |b: usize| kept[b] || b % every == step % every;
            let part = (0..blocks).filter(|&b| again(b)).count() as f64 / blocks as f64;
            for (new, old) in told.masses.iter_mut().zip(&old) {
                (0..blocks).filter(|&b| !again(b)).for_each(|b| new[b] = old[b]);
            }
            told.bytes *= part;
        }
        old.clone_from(&told.masses);
        step += 1;
        told
    })
}

fn extend(case: &Case, scale: f32, tokens: usize, queries: usize) -> Context {
    let d = case.head_dim;
    let own: Vec<f32> = case.k.to_f64(0..case.context * d).into_iter().map(|x| x as f32).collect();
    let queries = queries.min(case.queries);
    let first = case.queries - queries;
    let n = own.len() / d;
    let mut mean = vec![0.0f32; d];
    own.iter().enumerate().for_each(|(i, k)| mean[i % d] += k / n as f32);
    let spread: Vec<f32> = (0..d)
        .map(|c| {
            (own.iter().skip(c).step_by(d).map(|k| (k - mean[c]).powi(2)).sum::<f32>() / n as f32).sqrt()
        })
        .collect();
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ case.context as u64;
    let mut normal = move || {
        // 8 uniforms of 8 bits: the sum has variance 8 / 12.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let sum: f32 = state.to_le_bytes().iter().map(|&b| (b as f32 + 0.5) / 256.0).sum();
        (sum - 4.0) / (8.0f32 / 12.0).sqrt()
    };
    let added = tokens.saturating_sub(n) / BLOCK * BLOCK;
    // The first block stays first; then come the copies; then the rest of the recording.
    let mut keys = own[..BLOCK * d].to_vec();
    for i in 0..added * d {
        let source = BLOCK * d + i % ((n - 2 * BLOCK) / BLOCK * BLOCK * d);
        let c = source % d;
        keys.push(mean[c] + 0.9 * (own[source] - mean[c]) + (1.0f32 - 0.81).sqrt() * spread[c] * normal());
    }
    keys.extend(&own[BLOCK * d..]);
    let log2 = scale * std::f32::consts::LOG2_E;
    let query =
        |i: usize| case.query(i).to_f64(0..case.group * d).into_iter().map(|x| x as f32 * log2).collect();
    Context {
        keys,
        d,
        group: case.group,
        queries: (first..case.queries).map(query).collect(),
        visible: (first..case.queries).map(|i| case.visible(i) + added).collect(),
    }
}

/// Makes an estimator of a context.
type Make = Box<dyn for<'a> Fn(&'a Context) -> Estimator<'a>>;

/// What the stop costs: a block at a time, and two launches at some p0 and chunks.
fn rules() -> Vec<(String, usize, Rule, Make)> {
    let mut rows: Vec<(String, usize, Rule, Make)> = vec![];
    for (p0, chunk) in
        [(0.0, 1), (0.90, 8), (0.93, 8), (0.95, 8), (0.96, 8), (0.97, 8), (0.95, 4), (0.95, 16)]
    {
        let makes: [(&str, Make); 3] = [
            ("2 bits", Box::new(|c| mirror(c, 2, 64, false))),
            ("4 bits", Box::new(|c| mirror(c, 4, 64, false))),
            ("2 + 2", Box::new(|c| nested(c, &[2, 2], 64, false, &[(1.0, 0.5)], false))),
        ];
        for (name, make) in makes {
            let rule =
                if p0 == 0.0 { "a block at a time".to_string() } else { format!("p0 {p0}, chunk {chunk}") };
            rows.push((format!("{name}: {rule}"), 64, Rule { p: P, p0, chunk }, make));
        }
    }
    rows
}

/// Half of the channels and 2+2, at several masses.
fn half_of_the_channels() -> Vec<(String, usize, Rule, Make)> {
    let mut rows: Vec<(String, usize, Rule, Make)> = vec![];
    for p in [0.94, 0.95, 0.955, 0.96, 0.965, 0.97] {
        let makes: [(&str, Make); 3] = [
            ("2 + 2", Box::new(|c| nested(c, &[2, 2], 64, false, &[(1.0, 0.5)], false))),
            ("4 bits of half of the channels", Box::new(|c| channels(c, 4, 64, 0.5))),
            ("4 bits of 5/8 of the channels", Box::new(|c| channels(c, 4, 64, 0.625))),
        ];
        for (name, make) in makes {
            rows.push((format!("{name}, mass {p}"), 64, Rule { p, p0: p, chunk: 8 }, make));
        }
    }
    rows
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let bundled = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/traces.safetensors");
    let file = arguments.first().map_or(bundled, String::as_str);
    let number = |i: usize, default: usize| arguments.get(i).map_or(Ok(default), |text| text.parse());
    let (tokens, queries) = (number(1, 4096)?, number(2, 64)?);
    let traces = Traces::load(Path::new(file))?;
    let contexts: Vec<Context> =
        traces.cases.iter().map(|case| extend(case, traces.scale, tokens, queries)).collect();
    println!(
        "{} contexts of {} tokens or more, {queries} steps each",
        contexts.len(),
        contexts[0].visible[0]
    );
    println!(
        "| first level | KV read | metadata | total | missed p99 | max | topped up |\n|---|---|---|---|---|---|---|"
    );

    let mut rows: Vec<(String, usize, Rule, Make)> = vec![];
    let mut row = |name: String, group: usize, p0: f64, make: Make| {
        rows.push((name, group, Rule { p: P, p0, chunk: 8 }, make));
    };
    row(
        "true masses".into(),
        64,
        P,
        Box::new(|c| {
            Box::new(move |q, blocks| Estimate {
                masses: q.iter().map(|q| masses(&c.keys, c.d, q, blocks)).collect(),
                bytes: 0.0,
            })
        }),
    );
    for (bits, group, p0) in [(2, 64, 0.96), (2, 128, 0.96), (4, 64, P), (4, 128, P)] {
        row(
            format!("{bits} bits, groups of {group}"),
            group,
            p0,
            Box::new(move |c| mirror(c, bits, group, false)),
        );
    }
    row("2 bits, middles".into(), 64, 0.96, Box::new(|c| mirror(c, 2, 64, true)));
    for (group, doubt, share) in [
        (64, 2.0, 0.125),
        (64, 2.0, 0.5),
        (64, 1.0, 0.25),
        (64, 1.0, 0.5),
        (64, 1.0, 1.0),
        (64, 0.0, 0.5),
        (128, 1.0, 0.5),
    ] {
        let name = format!("2 + 2, groups of {group}, {doubt} sigma, {share}");
        row(name, group, P, Box::new(move |c| nested(c, &[2, 2], group, false, &[(doubt, share)], false)));
    }
    for share in [0.5, 0.25] {
        let name = format!("2 + 2, 1 sigma, {share} of the step before's total");
        row(name, 64, P, Box::new(move |c| nested(c, &[2, 2], 64, false, &[(1.0, share)], true)));
    }
    for (a, b) in [((1.0, 0.125), (1.0, 0.5)), ((1.0, 0.5), (1.0, 0.5)), ((1.0, 0.5), (1.0, 1.0))] {
        let name = format!("1 + 1 + 2, 1 sigma, {}, {}", a.1, b.1);
        row(name, 64, P, Box::new(move |c| nested(c, &[1, 1, 2], 64, true, &[a, b], false)));
    }
    for (bits, part) in [(4, 0.5), (2, 0.5), (4, 0.25)] {
        row(
            format!("{bits} bits of {part} of the channels"),
            64,
            P,
            Box::new(move |c| channels(c, bits, 64, part)),
        );
    }
    row("product quantisation, 8 channels a byte".into(), 64, P, Box::new(|c| product(c, 8, 64)));
    row("product quantisation, 4 channels a byte".into(), 64, P, Box::new(|c| product(c, 4, 64)));
    for (doubt, share) in [(2.0, 0.01), (1.0, 0.1)] {
        let name = format!("groups skipped by mean + variance, {doubt} sigma, {share}; then 2 + 2");
        row(
            name,
            64,
            P,
            Box::new(move |c| {
                skipping(c, 64, doubt, share, nested(c, &[2, 2], 64, false, &[(1.0, 0.5)], false))
            }),
        );
    }
    for (every, share) in [(2, 0.05), (4, 0.05), (8, 0.05)] {
        let name = format!("2 + 2, blocks below {share} scored every {every} steps");
        row(
            name,
            64,
            P,
            Box::new(move |c| remembering(every, share, nested(c, &[2, 2], 64, false, &[(1.0, 0.5)], false))),
        );
    }
    match arguments.get(3).map(String::as_str) {
        Some("rules") => rows = rules(),
        Some("channels") => rows = half_of_the_channels(),
        Some(other) => return Err(format!("{other:?}: use rules or channels").into()),
        None => {}
    }
    for (name, group, rule, make) in &rows {
        let mut totals = Totals::default();
        for context in &contexts {
            run(context, *group, *rule, make(context), &mut totals);
        }
        let (kv, metadata) = (totals.read / totals.seen, totals.bytes / totals.kv);
        println!(
            "| {name} | {kv:.3} | {metadata:.3} | {:.3} | {:.3} | {:.3} | {:.2} |",
            kv + metadata,
            quantile(&totals.missed, 0.99),
            quantile(&totals.missed, 1.0),
            totals.topped / totals.steps
        );
    }
    Ok(())
}
