//! `bench`: the Criterion benches and the paired runs of the CPU backend.
//!
//! Built in the release profile. The paired runs need no GPU and no download; with `--torch` they are those of the
//! crate that links libtorch, which is set up first.

use std::process::Stdio;

use crate::error::Result;
use crate::setup::{self, Purpose};
use crate::workspace::Workspace;
use crate::{kernels, process};

/// What `bench` was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Run everything once, for a few seconds, to see that it runs.
    pub quick: bool,
    /// Beside torch's attention.
    pub torch: bool,
    /// Only the records of the paired runs, on stdout.
    pub json: bool,
}

/// Runs `bench`.
pub fn bench(workspace: &Workspace, options: Options) -> Result<()> {
    if options.torch {
        setup::setup(workspace, Purpose::Torch)?;
    }
    if !options.json {
        let mut criterion = process::cargo();
        criterion.current_dir(workspace.root()).args(["bench", "--locked", "-p", "psa-benches", "--"]);
        // Criterion's own: each bench once.
        criterion.args(options.quick.then_some("--test"));
        process::run(&mut criterion, "fix the errors above; a bench that fails names itself")?;
    }
    let target = match options.torch {
        true => ["psa-torch-oracle", "--example", "cpu-paired"],
        false => ["psa-benches", "--bin", "cpu-paired"],
    };
    // One round says nothing about speed, and everything about whether it runs.
    let lengths: &[&str] = if options.quick { &["1024", "--rounds", "1"] } else { &[] };
    let mut paired = process::cargo();
    paired.current_dir(workspace.root()).args(["run", "--quiet", "--release", "--locked", "-p"]).args(target);
    paired.arg("--").args(lengths).stdout(Stdio::inherit());
    kernels::answer(&mut paired)
}
