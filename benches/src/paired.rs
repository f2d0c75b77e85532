//! A decode step on the CPU beside others of the same length, in one run: our policies, a plain read of the same
//! bytes, and what the caller adds.
//!
//! Subjects take turns, one step each a round, so that whatever else the machine does meets all of them; a ratio is
//! the median of the rounds' ratios, not the ratio of two medians.
//!
//! Trap: a context that fits the last-level cache is read from there; `bytes` says which case a record is.

use crate::{filled, kv_bytes, layer_8b, queries};
use kernels_gpu::layout::BLOCK;
use psa::{Budget, DecodePlan, Device, Dtype, Mirror, Policy};
use psa_tests::Workload;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// One thing to time.
pub struct Subject {
    /// Name in the record: `psa`, `read`, `torch-..`
    pub name: String,
    /// Policy in the record.
    pub policy: String,
    /// Bytes that one step has to read.
    pub bytes: u64,
    /// One step.
    pub step: Box<dyn FnMut()>,
}

/// Lengths, copies of the sequence and rounds.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens of each context.
    pub tokens: Vec<usize>,
    /// Sequences.
    pub batch: usize,
    /// Rounds that count; two more come first.
    pub rounds: usize,
}

impl Options {
    /// From `[TOKENS]... [--batch N] [--rounds N]`; 4,096, 16,384 and 65,536 tokens without any.
    ///
    /// # Errors
    /// The argument that is not understood, and what would be.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options { tokens: vec![], batch: 1, rounds: 41 };
        let mut arguments = arguments.filter(|a| a != "--json");
        let number = |name: &str, text: Option<String>| {
            let found = text.unwrap_or_else(|| "nothing".into());
            let bad = || format!("{name}: a number from 1 on, found {found}");
            found.parse().ok().filter(|&n| n > 0).ok_or_else(bad)
        };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--batch" => options.batch = number("--batch", arguments.next())?,
                "--rounds" => options.rounds = number("--rounds", arguments.next())?,
                _ => options.tokens.push(number("[TOKENS]... [--batch N] [--rounds N]", Some(argument))?),
            }
        }
        if options.tokens.is_empty() {
            options.tokens = vec![4096, 16_384, 65_536];
        }
        Ok(options)
    }
}

/// Times our policies, a plain read and `others` at every length; prints one JSON record a line.
///
/// # Panics
/// Where the machine has not the memory for the contexts.
pub fn run(options: &Options, others: impl Fn(&Workload) -> Vec<Subject>) {
    for &tokens in &options.tokens {
        let mut workload = layer_8b(tokens);
        let sequence = workload.sequences[0].clone();
        workload.sequences.resize(options.batch, sequence);
        let mut subjects = vec![read(kv_bytes(&workload))];
        subjects.extend(ours(&workload));
        subjects.extend(others(&workload));
        let times = rounds(&mut subjects, options.rounds);
        for record in records(&subjects, &times, tokens, options.batch) {
            println!("{record}");
        }
    }
}

/// A sum over as many bytes, on all threads: what memory gives to a loop that does nothing else.
fn read(bytes: u64) -> Subject {
    let words: Vec<u64> = (0..bytes / 8).collect();
    let part = words.len().div_ceil(8 * rayon::current_num_threads()).max(1);
    let step = move || {
        let sum = |part: &[u64]| part.iter().fold(0u64, |sum, &x| sum.wrapping_add(x));
        black_box(words.par_chunks(part).map(sum).reduce(|| 0, u64::wrapping_add));
    };
    Subject { name: "read".into(), policy: "none".into(), bytes, step: Box::new(step) }
}

fn ours(workload: &Workload) -> Vec<Subject> {
    let policies = [Policy::Dense, Policy::Progressive { mass: 0.95 }, Policy::TopK(Budget::Blocks(1))];
    let subject = |policy: Policy| {
        let (mut cache, ids) = filled(&Device::cpu(), workload, Mirror::Bits2).expect("the workload fits");
        let mut plan = DecodePlan::new(&cache, &ids, policy).expect("the policy runs");
        let q = queries(workload);
        let mut out = vec![0.0; workload.sequences.len() * workload.shape.query_elements()];
        plan.attend(&mut cache, 0, q.all(), &mut out).expect("a step");
        let report = plan.report();
        let block = BLOCK * workload.shape.head_dim * 2 * Dtype::BYTES;
        let bytes = (report.blocks_read() * block + report.metadata_bytes()) as u64;
        let step = move || {
            plan.attend(&mut cache, 0, q.all(), &mut out).expect("a step");
            black_box(&out);
        };
        Subject { name: "psa".into(), policy: policy.to_string(), bytes, step: Box::new(step) }
    };
    policies.into_iter().map(subject).collect()
}

/// Seconds `[round][subject]`.
fn rounds(subjects: &mut [Subject], rounds: usize) -> Vec<Vec<f64>> {
    let mut turn = || -> Vec<f64> {
        let time = |s: &mut Subject| {
            // Threads of the one before may spin for a while, torch's above all.
            std::thread::sleep(Duration::from_millis(2));
            let start = Instant::now();
            (s.step)();
            start.elapsed().as_secs_f64()
        };
        subjects.iter_mut().map(time).collect()
    };
    turn();
    turn();
    (0..rounds).map(|_| turn()).collect()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Records; a ratio is the other's time over ours, so more is faster, and null where the other was not run.
/// `share_of_read_bandwidth` is bytes over time against the plain read's.
fn records(subjects: &[Subject], times: &[Vec<f64>], tokens: usize, batch: usize) -> Vec<Value> {
    let find = |f: &dyn Fn(&Subject) -> bool| subjects.iter().position(f);
    let dense = find(&|s| s.name == "psa" && s.policy == "dense");
    let read = find(&|s| s.name == "read");
    // Torch's best setting at this length.
    let torch = (0..subjects.len())
        .filter(|&i| subjects[i].name.starts_with("torch"))
        .min_by(|&a, &b| median(times.iter().map(|t| t[a])).total_cmp(&median(times.iter().map(|t| t[b]))));
    let ratio = |of: Option<usize>, i: usize| of.map(|o| median(times.iter().map(|t| t[o] / t[i])));
    let fastest = |i: usize| times.iter().map(|t| t[i]).fold(f64::INFINITY, f64::min);
    let round = |x: Option<f64>| x.map(|x| (x * 1000.0).round() / 1000.0);
    let record = |(i, s): (usize, &Subject)| {
        let share = read.and_then(|r| Some(ratio(Some(r), i)? * s.bytes as f64 / subjects[r].bytes as f64));
        json!({
            "name": s.name, "tokens": tokens, "batch": batch, "policy": s.policy,
            "median_ms": round(Some(median(times.iter().map(|t| t[i])) * 1e3)),
            "fastest_ms": round(Some(fastest(i) * 1e3)),
            "bytes": s.bytes,
            "ratio_to_torch_dense": round(ratio(torch, i)),
            "ratio_to_own_dense": round(ratio(dense, i)),
            "share_of_read_bandwidth": round(share),
        })
    };
    subjects.iter().enumerate().map(record).collect()
}
