//! Schedules: the same bits and no finding under every seed, the same report under the same seed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ptx_emulator::{Module, Report};

use crate::scenes::Scene;

/// A scene that did not come out the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The kernel.
    pub kernel: String,
    /// The step the launch is from.
    pub step: String,
    /// The seed.
    pub seed: u64,
    /// What differs.
    pub what: String,
}

/// Runs every scene under the seeds `1 ..= seeds`, on `threads` threads. Every tenth seed runs twice, for the
/// report. `progress` gets the number of seeds done, `differs` every difference when it is found.
pub fn compare(
    module: &Module,
    scenes: &[Scene],
    seeds: u64,
    threads: usize,
    progress: &(dyn Fn(u64) + Sync),
    differs: &(dyn Fn(&Difference) + Sync),
) -> Vec<Difference> {
    let (next, done) = (AtomicU64::new(1), AtomicU64::new(0));
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > seeds {
                        return;
                    }
                    for scene in scenes {
                        let Some(what) = under(module, scene, seed) else { continue };
                        let difference = Difference {
                            kernel: scene.kernel().to_owned(),
                            step: scene.step.clone(),
                            seed,
                            what,
                        };
                        differs(&difference);
                        if let Ok(mut found) = found.lock() {
                            found.push(difference);
                        }
                    }
                    progress(1 + done.fetch_add(1, Ordering::Relaxed));
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort_by(|a, b| (a.seed, &a.kernel, &a.step).cmp(&(b.seed, &b.kernel, &b.step)));
    found
}

fn under(module: &Module, scene: &Scene, seed: u64) -> Option<String> {
    let run = || scene.replay(module, |o| o.seed = seed);
    let replay = run();
    let report = match replay.report {
        Ok(report) => report,
        Err(e) => return Some(e.to_string()),
    };
    if let Some(finding) = report.findings.first() {
        return Some(finding.to_string());
    }
    if !report.completed {
        return Some("the run was cut short".into());
    }
    if !replay.same_bytes {
        return Some("memory after the launch differs from the run in round robin".into());
    }
    if seed.is_multiple_of(10) {
        match run().report {
            Ok(again) if told(&again) == told(&report) => {}
            _ => return Some("a second run under the same seed reports something else".into()),
        }
    }
    None
}

/// A report without the time it took.
fn told(report: &Report) -> String {
    format!("{:?} {:?} {:?}", report.findings, report.counters, report.output)
}
