//! Mutation of our own kernels: are the emulator's checkers able to see the mistakes they are for?
//!
//! Each mutant is one small change of a kernel's committed PTX ([`operators`]). It runs on the recorded scenes of
//! that kernel with all checkers on; a finding ends it at once. What no checker reports is compared with the
//! clean run, byte by byte of all memory. Who survives is explained in `explained.txt`, or the run fails.
//!
//! Trap: wrong bytes alone do not count for synchronisation mutants. Those bytes are one schedule's accident;
//! the report is the promise.

pub mod explained;
pub mod operators;
pub mod report;
pub mod statement;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ptx_emulator::{Checks, Class as Checker, Error as PtxError, Module};

use crate::scenes::{self, Extent, Scene, SceneError};
use operators::{Class, Mutant, mutants};

/// Share of the synchronisation mutants that checkers must report, in percent: the bar that this project
/// promises for its emulator.
pub const REPORTED_AT_LEAST: f64 = 95.0;

/// Schedules under which a synchronisation mutant has its chance to be reported. Round robin alone would keep
/// some of them in step by luck.
const SEEDS: [u64; 4] = [0, 1, 2, 3];

/// What to mutate, and how.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// Which kernels.
    pub extent: Extent,
    /// Only kernels whose name contains this.
    pub kernel: Option<String>,
    /// Only these classes.
    pub classes: Vec<Class>,
    /// Checkers that run.
    pub checks: Checks,
    /// Threads.
    pub threads: usize,
}

/// What became of a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A checker reported it.
    Reported(Checker),
    /// No report; memory differs from the clean run, or the run was cut short.
    Wrong,
    /// Neither.
    Survived,
    /// The module did not load.
    Refused(String),
}

/// A mutant and its fate.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The kernel.
    pub kernel: String,
    /// The change.
    pub mutant: Mutant,
    /// Line in the committed PTX.
    pub line: usize,
    /// What became of it.
    pub outcome: Outcome,
    /// The unchanged instruction is executed in some scene.
    pub executed: bool,
}

/// Why a campaign could not run.
#[derive(Debug, thiserror::Error)]
pub enum CampaignError {
    /// No scenes.
    #[error(transparent)]
    Scenes(#[from] SceneError),
    /// No kernel of that name among those recorded.
    #[error("no kernel matches `{asked}`; there are {there}{}", if *.every { "" } else { " (--all adds the other instances)" })]
    NoKernel {
        /// The name asked for.
        asked: String,
        /// The names there are.
        there: String,
        /// All instances were recorded.
        every: bool,
    },
}

struct Subject {
    /// The module with this kernel alone.
    module: String,
    /// Where its entry lies in `module`.
    entry: std::ops::Range<usize>,
    /// Line of the entry in the committed PTX, from 1.
    line: usize,
    scenes: Vec<Scene>,
    /// Lines of the committed PTX that some scene executes.
    executed: BTreeSet<usize>,
}

impl Campaign {
    /// Runs it on `ptx`; `progress(done, all)` is called now and then, from any thread.
    ///
    /// # Errors
    /// [`CampaignError`].
    pub fn run(
        &self,
        ptx: &str,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Vec<Verdict>, CampaignError> {
        let module = Module::parse(ptx).map_err(SceneError::Module)?;
        let mut by_kernel: BTreeMap<String, Vec<Scene>> = BTreeMap::new();
        for scene in scenes::record(&module, self.extent)? {
            by_kernel.entry(scene.kernel().to_owned()).or_default().push(scene);
        }
        let names: Vec<String> = by_kernel.keys().cloned().collect();
        if let Some(asked) = &self.kernel {
            by_kernel.retain(|name, _| name.contains(asked.as_str()));
            if by_kernel.is_empty() {
                return Err(CampaignError::NoKernel {
                    asked: asked.clone(),
                    there: names.join(", "),
                    every: self.extent == Extent::Every,
                });
            }
        }
        let mut subjects = Vec::new();
        let mut work = Vec::new();
        for (name, scenes) in by_kernel {
            // Both exist: the kernel was just launched.
            let (Some(at), Some(module)) = (statement::entry(ptx, &name), statement::alone(ptx, &name))
            else {
                continue;
            };
            let Some(entry) = statement::entry(&module, &name) else { continue };
            let line = 1 + ptx[..at.start].matches('\n').count();
            let found = mutants(&name, &module[entry.clone()]);
            let chosen = found.into_iter().filter(|m| self.classes.contains(&m.class));
            work.extend(chosen.map(|m| (subjects.len(), name.clone(), m)));
            let lines = scenes.iter().flat_map(|s| &s.report.profile).map(|l| l.line as usize).collect();
            subjects.push(Subject { module, entry, line, scenes, executed: lines });
        }
        let outcomes: Vec<Mutex<Option<Outcome>>> = work.iter().map(|_| Mutex::new(None)).collect();
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some((subject, _, mutant)) = work.get(i) else { return };
                        let outcome = self.judge(&subjects[*subject], mutant);
                        if let Ok(mut place) = outcomes[i].lock() {
                            *place = Some(outcome);
                        }
                        progress(1 + done.fetch_add(1, Ordering::Relaxed), work.len());
                    }
                });
            }
        });
        Ok(work
            .into_iter()
            .zip(outcomes)
            .map(|((subject, kernel, mutant), outcome)| Verdict {
                kernel,
                line: subjects[subject].line + mutant.line - 1,
                executed: subjects[subject].executed.contains(&(subjects[subject].line + mutant.line - 1)),
                mutant,
                outcome: outcome
                    .into_inner()
                    .ok()
                    .flatten()
                    .unwrap_or_else(|| Outcome::Refused("the emulator panicked".into())),
            })
            .collect())
    }

    fn judge(&self, subject: &Subject, mutant: &Mutant) -> Outcome {
        let mut text = subject.module.clone();
        text.replace_range(subject.entry.clone(), &mutant.apply(&subject.module[subject.entry.clone()]));
        let module = match Module::parse(&text) {
            Ok(module) => module,
            Err(e) => return Outcome::Refused(e.to_string()),
        };
        let synchronisation = mutant.class == Class::Synchronisation;
        let seeds = if synchronisation { &SEEDS[..] } else { &SEEDS[..1] };
        let mut wrong = false;
        for &seed in seeds {
            for scene in &subject.scenes {
                let replay = scene.replay(&module, |o| {
                    o.seed = seed;
                    o.checks = self.checks;
                    o.counters = false;
                    o.stop_at_finding = true;
                    // Twice the clean run's, and room for a short run's loop to go round once more.
                    o.max_steps = 2 * scene.report.counters.warp_instructions + 10_000;
                });
                match replay.report {
                    Err(
                        e @ (PtxError::Parse { .. }
                        | PtxError::Unsupported { .. }
                        | PtxError::Unresolved { .. }),
                    ) => {
                        return Outcome::Refused(e.to_string());
                    }
                    Err(_) => wrong = true,
                    Ok(report) => match report.findings.first() {
                        Some(finding) => return Outcome::Reported(finding.class),
                        None => wrong |= !report.completed || !replay.same_bytes,
                    },
                }
                if wrong && !synchronisation {
                    return Outcome::Wrong;
                }
            }
        }
        if wrong { Outcome::Wrong } else { Outcome::Survived }
    }
}
