//! `psa-gpu check`: every kernel of the PTX against the reference.
//!
//! Estimates, plans and the blocks read are compared bit for bit; outputs and log-sum-exps with the bound of
//! the kernels' arithmetic over instructions as inexact as the PTX ISA allows (`psa_tests::step_bounds`). Then the same
//! step again and again, and in other batches: the same bits. A case counts for every kernel it launched, and
//! a kernel that no case launched is a failure.

mod cases;
mod compare;
mod direct;

use std::collections::{BTreeMap, BTreeSet};

use crate::record::{CheckRecord, Record, table};
use crate::target::Target;
use psa::traces::Traces;

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// Every kernel once, as small as can be: for tools that slow everything down.
    Smoke,
    /// Every kernel in every role; 10 replays.
    Quick,
    /// All; 100 replays.
    Full,
}

impl Extent {
    fn replays(self) -> usize {
        match self {
            Extent::Smoke => 2,
            Extent::Quick => 10,
            Extent::Full => 100,
        }
    }
}

/// What is checked.
pub struct Options<'a> {
    /// How much.
    pub extent: Extent,
    /// First of the seeds of random shapes.
    pub seed: u64,
    /// Recorded queries, where at hand.
    pub traces: Option<&'a Traces>,
    /// Is told about each case.
    pub progress: &'a dyn Fn(&str),
}

/// What the check found.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// One a kernel, in the order of the PTX's list.
    pub kernels: Vec<CheckRecord>,
    /// Cases.
    pub cases: u32,
    /// Cases that failed, with the reason.
    pub failures: Vec<String>,
    /// Kernels that no case launched.
    pub untouched: Vec<String>,
}

impl Outcome {
    /// True where nothing failed and nothing was left untouched.
    pub fn good(&self) -> bool {
        self.failures.is_empty() && self.untouched.is_empty() && self.cases > 0
    }

    /// The records of all kernels.
    pub fn records(&self) -> Vec<Record> {
        self.kernels.iter().cloned().map(Record::Check).collect()
    }

    /// A table and the failures.
    pub fn text(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .kernels
            .iter()
            .map(|k| {
                vec![
                    k.kernel.clone(),
                    k.tried.to_string(),
                    k.passed.to_string(),
                    match k.worst_error_over_bound {
                        0.0 => "bits".to_owned(),
                        x => format!("{x:.4}"),
                    },
                ]
            })
            .collect();
        let mut text = table(&["kernel", "cases", "passed", "worst error / bound"], &rows);
        for failure in self.failures.iter().take(20) {
            text.push_str(&format!("FAILED: {failure}\n"));
        }
        if self.failures.len() > 20 {
            text.push_str(&format!("FAILED: {} more\n", self.failures.len() - 20));
        }
        for kernel in &self.untouched {
            text.push_str(&format!("FAILED: no case launched {kernel}\n"));
        }
        let bad = self.failures.len();
        text.push_str(&format!(
            "{} cases, {bad} failed; {} of {} kernels exercised\n",
            self.cases,
            self.kernels.len() - self.untouched.len(),
            self.kernels.len()
        ));
        text
    }
}

/// Runs all cases on `target`. A failed case is an entry of the outcome; the next one runs all the same.
pub fn run(target: &Target, options: &Options<'_>) -> Outcome {
    let mut tally = Tally::new(target);
    for case in cases::all(options) {
        (options.progress)(&case.name);
        tally.case(&case.name, || case.run(&target.device(), options.extent.replays()));
    }
    for case in direct::all(options) {
        (options.progress)(&case.name);
        tally.case(&case.name, || case.run(&mut target.clone()));
    }
    tally.finish()
}

/// What a case that was right found: its largest error over its bound.
type Verdict = Result<f64, String>;

struct Tally<'a> {
    target: &'a Target,
    by_kernel: BTreeMap<&'static str, CheckRecord>,
    outcome: Outcome,
}

impl<'a> Tally<'a> {
    fn new(target: &'a Target) -> Tally<'a> {
        target.take_seen();
        Tally { target, by_kernel: BTreeMap::new(), outcome: Outcome::default() }
    }

    fn case(&mut self, name: &str, run: impl FnOnce() -> Verdict) {
        let verdict = run();
        self.outcome.cases += 1;
        let seen: BTreeSet<_> = self.target.take_seen();
        if let Err(reason) = &verdict {
            self.outcome.failures.push(format!("{name}: {reason}"));
        }
        for kernel in seen {
            let record = self.by_kernel.entry(kernel).or_default();
            record.tried += 1;
            match &verdict {
                Ok(worst) => {
                    record.passed += 1;
                    record.worst_error_over_bound = record.worst_error_over_bound.max(*worst);
                }
                Err(reason) if record.failures.len() < 3 => record.failures.push(format!("{name}: {reason}")),
                Err(_) => {}
            }
        }
    }

    fn finish(mut self) -> Outcome {
        for kernel in kernels_gpu::kernels() {
            let mut record = self.by_kernel.remove(kernel.name).unwrap_or_default();
            record.device = self.target.name().to_owned();
            record.kernel = kernel.name.to_owned();
            if record.tried == 0 {
                self.outcome.untouched.push(kernel.name.to_owned());
            }
            self.outcome.kernels.push(record);
        }
        self.outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Backend;

    #[test]
    fn a_kernel_that_no_case_launched_is_a_failure() {
        let target = Target::open(Backend::Emulator).unwrap();
        let mut tally = Tally::new(&target);
        tally.case("nothing", || Ok(0.0));
        let outcome = tally.finish();
        assert!(!outcome.good());
        assert_eq!(outcome.untouched.len(), kernels_gpu::kernels().len());
        assert!(outcome.text().contains("no case launched attend_bf16_d128"), "{}", outcome.text());
    }

    #[test]
    fn a_failed_case_counts_against_the_kernels_that_it_launched() {
        let target = Target::open(Backend::Emulator).unwrap();
        let mut tally = Tally::new(&target);
        let shape = psa::Shape { layers: 1, q_heads: 1, kv_heads: 1, head_dim: 64, dtype: psa::Dtype::F16 };
        tally.case("bad", || {
            let workload = psa_tests::Workload::random(shape, &[20], 1);
            psa_tests::run(&target.device(), &workload, psa::Mirror::Bits2, psa::Policy::Dense).unwrap();
            Err("wrong".into())
        });
        let outcome = tally.finish();
        let merge = outcome.kernels.iter().find(|k| k.kernel == "merge_f16_d64").unwrap();
        assert_eq!((merge.tried, merge.passed, merge.failures.len()), (1, 0, 1));
        assert!(outcome.text().contains("FAILED: bad: wrong"));
    }
}
