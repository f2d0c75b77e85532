//! The command line: what can be asked for, and what comes back.
//!
//! Exit codes: 0 success, 1 the work was done and the answer is bad, 2 bad input or a missing part.
//! With `--json` stdout holds one JSON object a line and nothing else; progress and errors go to stderr.

mod backend;
mod bench_report;
mod calibration;
mod cpu_report;
mod error;
mod eval;
pub mod figure;
mod info;
mod lengths;
mod matched;
mod model;
mod options;
mod pipeline_bench;
mod pool_study;
mod progress;
mod record;
pub mod table;
mod watch;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use backend::{Backend, emulator};
pub use error::CliError;
pub use progress::Progress;
pub use table::Table;

use crate::demo;

/// How a command ended when nothing was wrong with its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything as it should be.
    Good,
    /// The work was done, and its result is not what was promised.
    Bad,
}

/// Decode attention that reads only as much of the KV cache as it needs.
#[derive(Parser)]
#[command(
    name = "psa",
    version,
    about,
    after_help = "Examples:\n  psa demo\n  psa eval --traces tests/data/traces.safetensors --policy dense --policy \
                  progressive:0.95\n  psa info --json\n\nExit codes: 0 success, 1 the work was done and the answer \
                  is bad, 2 bad input or a missing part."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Dense, top-k, Quest and progressive attention on recorded data at equal quality; table and picture
    Demo(demo::DemoArgs),
    /// Replay every query of a psa-traces-v1 file with any policies; one record a case and policy
    Eval(eval::EvalArgs),
    /// What every policy reads at the same quality: tuned on one half of the cases, compared on the other
    Match(matched::MatchArgs),
    /// What policies read by the length of the context; table and picture
    Lengths(lengths::LengthsArgs),
    /// Make a psa-traces-v1 file from a q/k/v dump, a generator, or a shorter recording
    Record(record::RecordArgs),
    /// Text from a prompt by a language model, with what was read of the KV cache
    #[command(disable_help_flag = true)]
    Generate(model::Forwarded),
    /// Perplexity of a text and divergence from dense attention, by policy
    #[command(disable_help_flag = true)]
    Perplexity(model::Forwarded),
    /// Does a model still find what is hidden in a long text, by policy
    #[command(disable_help_flag = true)]
    Needles(model::Forwarded),
    /// Continuous batching of a model under several policies: throughput, latencies, what is read
    #[command(disable_help_flag = true)]
    ServeBench(model::Forwarded),
    /// Which blocks should stay on the device: residency policies on recorded reads; table and picture
    PoolStudy(pool_study::PoolStudyArgs),
    /// Decode steps with a host tier, serial, pipelined and resident: waits, hidden fetches, modelled time; table and picture
    PipelineBench(pipeline_bench::PipelineBenchArgs),
    /// Draw the timings of a GPU run or of the CPU bench: time by length beside the limit; table and picture
    BenchReport(bench_report::BenchReportArgs),
    /// Devices, kernels and their specialisations, versions, limits
    Info(info::InfoArgs),
}

/// Parses the command line, runs it, prints errors, and returns the exit code.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Generate(args) => return model::run("generate", &args),
        Command::Perplexity(args) => return model::run("perplexity", &args),
        Command::Needles(args) => return model::run("needles", &args),
        Command::ServeBench(args) => return model::run("serve-bench", &args),
        Command::Demo(args) => demo::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Match(args) => matched::run(&args),
        Command::Lengths(args) => lengths::run(&args),
        Command::Record(args) => record::run(&args),
        Command::PoolStudy(args) => pool_study::run(&args),
        Command::PipelineBench(args) => pipeline_bench::run(&args),
        Command::BenchReport(args) => bench_report::run(&args),
        Command::Info(args) => info::run(&args),
    };
    match result {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::from(1),
        // Whoever reads the output has seen enough.
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Checks, before long work, that `file` can be written, leaving an existing one as it is.
pub fn probe(file: &Path) -> Result<(), CliError> {
    let fresh = !file.exists();
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(file);
    opened.map_err(|source| CliError::Picture { file: file.display().to_string(), source })?;
    if fresh {
        let _ = std::fs::remove_file(file);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
