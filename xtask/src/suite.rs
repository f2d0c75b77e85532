//! `test`: every check of the project in stages, with one summary line at the end.
//!
//! Stages: the crates that build with cargo alone; the PyTorch oracle; the installed model; the committed PTX against its sources
//! and against ptxas; the ratchet; the GPU bundle. A stage that breaks without a failed test (a compile error,
//! stale PTX) counts as one failure, so that the summary never reads as a success. Later stages run all the
//! same.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::device::DeviceCompiler;
use crate::error::{Error, Result};
use crate::ptx::{self, Options};
use crate::setup::{CUDA_TOOLS, LIBTORCH, MODEL, Purpose};
use crate::summary::Summary;
use crate::workspace::Workspace;
use crate::{gpu_bundle, process, ratchet, setup};

/// The crate that needs libtorch; it is no default member.
const TORCH_PACKAGE: &str = "psa-torch-oracle";
/// The tests that need the model.
const MODEL_TESTS: [&str; 6] = ["-p", "psa-model", "--features", "installed-model", "--test", "smollm2"];

/// Runs `test`; prints the summary as the last line of stdout.
pub fn test(workspace: &Workspace, quick: bool) -> Result<()> {
    let mut suite = Suite::new(Box::new(std::io::stdout()));
    if !quick {
        suite.heading("setting up what the tests need");
        // What cannot be installed is a failure, but no reason to leave out what needs nothing.
        if let Err(error) = setup::setup(workspace, Purpose::Test) {
            suite.broken(&error.to_string());
        }
    }

    suite.heading("all crates");
    suite.cargo_test(workspace.root(), &[], quick)?;

    if quick {
        suite.heading("PyTorch oracle: left out (--quick)");
    } else if LIBTORCH.installed(workspace) {
        suite
            .heading(&format!("PyTorch oracle (libtorch in {})", workspace.show(&LIBTORCH.place(workspace))));
        suite.cargo_test(workspace.root(), &["-p", TORCH_PACKAGE], quick)?;
    } else {
        suite.heading("PyTorch oracle: not run, libtorch could not be installed (see above)");
    }

    if quick {
        suite.heading("installed model: left out (--quick)");
    } else if MODEL.installed(workspace) {
        suite.heading(&format!("{} against an independent model in f64", MODEL.title));
        suite.cargo_test(workspace.root(), &MODEL_TESTS, quick)?;
    } else {
        suite.heading("installed model: not run, it could not be installed (see above)");
    }

    if DeviceCompiler::find().is_some() && CUDA_TOOLS.installed(workspace) {
        suite.heading("committed PTX: same as the sources give, assembled for every target");
        if let Err(error) = ptx::build_ptx(workspace, Options { check: true, verify: true }) {
            suite.broken(&error.to_string());
        }
    } else {
        suite.heading(
            "committed PTX: not checked, the device compiler or ptxas is missing (`cargo xtask setup --for build-ptx`)",
        );
    }

    if CUDA_TOOLS.installed(workspace) {
        suite.heading("ratchet: what every kernel costs, against the pinned table");
        if let Err(error) = ratchet::ratchet(workspace, &ratchet::Options::default()) {
            suite.broken(&error.to_string());
        }
    } else {
        suite.heading("ratchet: not run, ptxas is missing (`cargo xtask setup --for build-ptx`)");
    }

    if quick {
        suite.heading("GPU bundle: left out (--quick)");
    } else {
        suite.heading("GPU bundle: packed, unpacked, self-tested on the emulator");
        let options = gpu_bundle::Options { out: None, selftest: true };
        if let Err(error) = gpu_bundle::gpu_bundle(workspace, &options) {
            suite.broken(&error.to_string());
        }
    }
    suite.heading("done");
    println!("{}", suite.summary);
    match suite.summary.failed {
        0 => Ok(()),
        failed => Err(Error::TestsFailed { failed }),
    }
}

struct Suite {
    /// Where headings and the runners' output go; not stdout in our own tests, whose made-up result lines an
    /// outer `cargo xtask test` would count.
    out: Box<dyn Write>,
    started: Instant,
    summary: Summary,
    stage: u32,
}

impl Suite {
    fn new(out: Box<dyn Write>) -> Suite {
        Suite { out, started: Instant::now(), summary: Summary::default(), stage: 0 }
    }

    fn heading(&mut self, text: &str) {
        self.stage += 1;
        let _ = writeln!(
            self.out,
            "==> [{:>4.0} s] {}. {text}",
            self.started.elapsed().as_secs_f64(),
            self.stage
        );
    }

    fn broken(&mut self, why: &str) {
        let _ = writeln!(self.out, "FAILED: {why}");
        self.summary.failed += 1;
    }

    fn cargo_test(&mut self, root: &Path, packages: &[&str], quick: bool) -> Result<()> {
        let mut command = process::cargo();
        command.current_dir(root).args(["test", "--locked", "--no-fail-fast"]).args(packages);
        if quick {
            command.env("PSA_QUICK", "1");
        }
        self.counted(&mut command)
    }

    fn counted(&mut self, command: &mut Command) -> Result<()> {
        let before = self.summary;
        let summary = &mut self.summary;
        let status = process::stream(command, &mut *self.out, |line| summary.see(line))?;
        if !status.success() && self.summary.failed == before.failed {
            self.broken(&format!("`{}` ended with {status} and no failed test", process::show(command)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str) -> Summary {
        let mut suite = Suite::new(Box::new(std::io::sink()));
        suite.counted(Command::new("sh").args(["-c", script])).expect("sh runs");
        suite.summary
    }

    #[test]
    fn a_stage_that_breaks_without_a_failed_test_counts_as_one_failure() {
        assert_eq!(run("exit 101").failed, 1);
        assert_eq!(run("echo 'test result: ok. 4 passed; 0 failed; 0 ignored'; exit 101").failed, 1);
    }

    #[test]
    fn a_failed_test_counts_once() {
        assert_eq!(run("echo 'test result: FAILED. 4 passed; 2 failed; 0 ignored'; exit 101").failed, 2);
    }

    #[test]
    fn output_that_is_not_utf8_does_not_hide_later_results() {
        let summary = run(r"printf 'x\377\n'; echo 'test result: ok. 4 passed; 0 failed; 0 ignored'");
        assert_eq!(summary, Summary { passed: 4, failed: 0, skipped: 0 });
    }
}
