//! The shipped PTX against the CPU: the last decode steps of every case, on the emulator.
//!
//! The emulator's checkers (memory, initialisation, synchronisation, launch) are on, and a finding of
//! theirs fails the launch, so a result here is also a clean run. The blocks must be the same in the
//! same order; outputs may differ by what the two arithmetics may ([`rounding`]).

use std::time::{Duration, Instant};

use psa::eval::{Entrant, Replay, ReplayOptions, Step, evaluate};
use psa::traces::{Case, Elements};
use psa::{Budget, Device, Mirror, Policy};
use serde::Serialize;

use crate::cli::{Progress, emulator};
use psa::eval::Field;

/// Decode steps of each case and policy: the last ones.
const QUERIES: usize = 2;
/// No further case is begun after this long.
const TIME: Duration = Duration::from_secs(20);

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Check {
    /// What failed, in the device's words; empty where everything ran.
    pub problem: String,
    /// Cases compared.
    pub cases: usize,
    /// Cases there are.
    pub cases_total: usize,
    /// Decode steps compared, over cases and policies.
    pub steps: usize,
    /// Steps that read the same blocks in the same order on both.
    pub same_selection: usize,
    /// Largest ||o - o_cpu|| / ||o_cpu|| of a query head.
    pub output_difference: f64,
    /// Largest ||o - o_cpu|| as a share of what rounding allows that head.
    pub share_of_bound: f64,
    /// Seconds.
    pub seconds: f64,
}

impl Check {
    /// True where everything ran and agrees. Written so that NaN is bad.
    pub fn good(&self) -> bool {
        self.problem.is_empty()
            && self.steps > 0
            && self.same_selection == self.steps
            && self.share_of_bound <= 1.0
    }
}

/// Runs the comparison.
pub fn run(field: &Field<'_>, progress: &Progress) -> Check {
    // Every kernel of the toolkit but `gather`: every mirror, boxes, all three ways to stop.
    let entrants = [
        (Policy::Dense, Mirror::Nested),
        (Policy::Progressive { mass: 0.95 }, Mirror::Nested),
        (Policy::Progressive { mass: 0.95 }, Mirror::Bits4),
        (Policy::TopK(Budget::Fraction(0.25)), Mirror::Nested),
        (Policy::TopP { mass: 0.95 }, Mirror::Bits2),
        (Policy::Quest(Budget::Fraction(0.25)), Mirror::Box),
    ]
    .map(|(policy, mirror)| Entrant::new(policy, mirror));
    let (cpu, emulator) = (Device::cpu(), emulator(0));
    let mut check = Check { cases_total: field.cases.len(), ..Check::default() };
    let start = Instant::now();
    for cases in field.cases.chunks(rayon::current_num_threads().max(1)) {
        if start.elapsed() > TIME {
            break;
        }
        let names: Vec<_> = cases.iter().map(|(case, _)| case.name.as_str()).collect();
        progress.say(&format!("the shipped PTX on the emulator: {}", names.join(", ")));
        let on = |device: &Device| {
            let device = device.clone();
            let options =
                ReplayOptions { device, queries: Some(QUERIES), keep: true, ..field.options.clone() };
            evaluate(cases, field.scale, &entrants, &options, &|_| ())
        };
        match on(&cpu).and_then(|want| Ok((want, on(&emulator)?))) {
            Ok((want, got)) => {
                for (want, got) in want.iter().zip(&got) {
                    for ((case, _), (want, got)) in cases.iter().zip(want.iter().zip(got)) {
                        check.compare(case, field.scale, want, got);
                    }
                }
            }
            Err(error) => {
                check.problem = error.to_string();
                break;
            }
        }
        check.cases += cases.len();
    }
    check.seconds = start.elapsed().as_secs_f64();
    check
}

impl Check {
    /// Takes up the steps of one case and policy.
    pub fn compare(&mut self, case: &Case, scale: f32, want: &Replay, got: &Replay) {
        for (want, got) in want.steps.iter().zip(&got.steps) {
            self.steps += 1;
            self.same_selection += usize::from(want.selection == got.selection);
            let heads = want.out.chunks_exact(case.head_dim).zip(got.out.chunks_exact(case.head_dim));
            for (g, (a, b)) in heads.enumerate() {
                let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
                let apart = norm(&mut a.iter().zip(b).map(|(a, b)| *a as f64 - *b as f64));
                let size = norm(&mut a.iter().map(|a| *a as f64));
                self.output_difference = larger(self.output_difference, apart / size.max(f64::MIN_POSITIVE));
                self.share_of_bound = larger(self.share_of_bound, apart / rounding(case, scale, want, g));
            }
        }
    }
}

/// The larger one; NaN where one is, which `f64::max` would lose.
fn larger(a: f64, b: f64) -> f64 {
    if a >= b || a.is_nan() { a } else { b }
}

/// How far apart two outputs of query head `g` over the same blocks may be, one computed in f32, one by the
/// kernels, as the norm of the difference.
///
/// With u = 2^-24: a score in log2 is a dot product of D terms; in f32 each is rounded at most D + 4 times, on
/// tensor cores it is off by no more than 2.2 D + 5 roundings (`step_bounds` of the tests derives it): by at
/// most e = (2.2 D + 5) u sum |q k|. A weight 2^(t - m) is off by a factor within 1 +- (ln 2 (e + 54 u) + 2^-22):
/// the exponential is good to 2^-22, weights below 2^-40 vanish in the sum, and the kernels' m lies up to 14
/// from the maximum. Each addition of n weights rounds once, on tensor cores 2.2 times, n being at most the
/// tokens. Numerator and denominator are off by that factor each, in both executions: 4 times the factor. The
/// kernels round weights to 16 bits before they meet the values: 2^-11 in f16, below 2^-14 by 2^-25 of a sum of
/// at least 2^6; 2^-8 in bf16. All of it times the longest value row.
fn rounding(case: &Case, scale: f32, step: &Step, g: usize) -> f64 {
    let (d, n) = (case.head_dim, case.visible(step.query));
    let row = (g * case.queries + step.query) * d;
    let (q, k, v) = (case.q.to_f64(row..row + d), case.k.to_f64(0..n * d), case.v.to_f64(0..n * d));
    let products = k.chunks_exact(d).map(|k| q.iter().zip(k).map(|(q, k)| (q * k).abs()).sum::<f64>());
    let magnitude = products.fold(0.0, f64::max) * scale as f64 * std::f64::consts::LOG2_E;
    let longest = v.chunks_exact(d).map(|v| v.iter().map(|v| v * v).sum::<f64>()).fold(0.0, f64::max).sqrt();
    let u = (-24f64).exp2();
    let e = (2.2 * d as f64 + 5.0) * u * magnitude;
    let weight = std::f64::consts::LN_2 * (e + 54.0 * u) + (-22f64).exp2();
    let rounded_weight = match case.k {
        Elements::F16(_) => (-11f64).exp2() + n as f64 * (-31f64).exp2(),
        Elements::Bf16(_) => (-8f64).exp2(),
    };
    (4.0 * (weight + 2.2 * n as f64 * u) + rounded_weight) * longest
}
