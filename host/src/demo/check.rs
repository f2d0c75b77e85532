//! The shipped PTX against the CPU: the last decode step of every case, on the emulator.
//!
//! The emulator's checkers (memory, initialisation, synchronisation, launch) are on, and a finding of
//! theirs fails the launch, so a result here is also a clean run.

use std::time::{Duration, Instant};

use psa::eval::{Entrant, Replay, ReplayOptions, Step, evaluate};
use psa::{Device, Mirror, Policy};
use serde::Serialize;

use super::contest::Field;
use crate::cli::{CliError, Progress, emulator};

/// No further case is begun after this long.
const TIME: Duration = Duration::from_secs(20);

/// What was found.
#[derive(Serialize)]
pub struct Check {
    /// False where there is no emulator; then everything else is zero.
    pub ran: bool,
    /// Why it did not run or stopped; empty otherwise.
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
    /// What it may be.
    pub output_bound: f64,
    /// Seconds.
    pub seconds: f64,
}

impl Check {
    /// True where everything that ran agrees.
    pub fn good(&self) -> bool {
        self.problem.is_empty()
            && self.same_selection == self.steps
            && self.output_difference <= self.output_bound
    }
}

/// Largest relative difference between two f32 executions of attention over the same blocks. Both round
/// every product and sum: scores of magnitude s are off by about 64 rounding units of s, s below 100 here
/// (the traces' largest is 60 in log2), which makes 64 * 100 * 2^-24 = 4e-4 in the weights if all roundings
/// conspire, twice that for two executions.
const OUTPUT_BOUND: f64 = 8e-4;

/// Runs the comparison.
pub fn run(field: &Field<'_>, progress: &Progress) -> Result<Check, CliError> {
    let mut check = Check {
        ran: false,
        problem: String::new(),
        cases: 0,
        cases_total: field.cases.len(),
        steps: 0,
        same_selection: 0,
        output_difference: 0.0,
        output_bound: OUTPUT_BOUND,
        seconds: 0.0,
    };
    let emulated = match emulator(0) {
        Ok(device) => device,
        Err(error) => {
            check.problem = error.to_string();
            return Ok(check);
        }
    };
    check.ran = true;
    let entrants = [
        Entrant::new(Policy::Dense, Mirror::Bits2),
        Entrant::new(Policy::Progressive { mass: 0.95 }, Mirror::Bits2),
    ];
    let options =
        |device: Device| ReplayOptions { device, queries: Some(1), keep: true, ..field.options.clone() };
    let start = Instant::now();
    for cases in field.cases.chunks(rayon::current_num_threads().max(1)) {
        if start.elapsed() > TIME {
            break;
        }
        let names: Vec<_> = cases.iter().map(|(case, _)| case.name.as_str()).collect();
        progress.say(&format!("the shipped PTX on the emulator: {}", names.join(", ")));
        let on = |device| evaluate(cases, field.scale, &entrants, &options(device), &|_| ());
        let want = on(Device::cpu())?;
        let got = match on(emulated.clone()) {
            Ok(got) => got,
            Err(error) => {
                check.problem = error.to_string();
                break;
            }
        };
        for (want, got) in want.iter().flatten().zip(got.iter().flatten()) {
            check.compare(want, got);
        }
        check.cases += cases.len();
    }
    check.seconds = start.elapsed().as_secs_f64();
    Ok(check)
}

impl Check {
    fn compare(&mut self, want: &Replay, got: &Replay) {
        for (want, got) in want.steps.iter().zip(&got.steps) {
            self.steps += 1;
            self.same_selection += usize::from(want.selection == got.selection);
            self.output_difference = self.output_difference.max(difference(want, got));
        }
    }
}

/// Largest ||a - b|| / ||a|| over query heads.
fn difference(want: &Step, got: &Step) -> f64 {
    let d = want.out.len() / want.missed.len().max(1);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let heads = want.out.chunks_exact(d.max(1)).zip(got.out.chunks_exact(d.max(1)));
    heads
        .map(|(a, b)| {
            let apart = norm(&mut a.iter().zip(b).map(|(a, b)| *a as f64 - *b as f64));
            apart / norm(&mut a.iter().map(|a| *a as f64)).max(f64::MIN_POSITIVE)
        })
        // Not `f64::max`, which would lose a NaN.
        .fold(0.0, |most, x| if x <= most { most } else { x })
}
