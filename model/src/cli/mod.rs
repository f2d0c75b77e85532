//! The command line of the model: what can be asked for, and what comes back.
//!
//! Exit codes: 0 success, 2 bad input or a missing part, 130 interrupted by Ctrl-C (what was done is printed
//! and kept). With `--json` stdout holds one JSON object a line and nothing else.

mod error;
mod generate;
mod interrupt;
mod needles;
mod options;
mod perplexity;
mod report;
mod results;
mod serve_bench;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use error::CliError;
pub use options::ModelArgs;

/// How a command ended when nothing was wrong with its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything as it should be.
    Good,
    /// Ctrl-C.
    Interrupted,
}

/// A language model on a sparse KV cache.
#[derive(Parser)]
#[command(
    name = "psa",
    bin_name = "psa",
    version,
    about,
    after_help = "Exit codes: 0 success, 2 bad input or a missing part, 130 Ctrl-C."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Text from a prompt, with what was read of the KV cache
    Generate(generate::GenerateArgs),
    /// Perplexity of a text and divergence from dense attention, by policy
    Perplexity(perplexity::PerplexityArgs),
    /// Does the model still find what is hidden in a long text, by policy
    Needles(needles::NeedlesArgs),
    /// Continuous batching under several policies: throughput, latencies, what is read
    ServeBench(serve_bench::ServeBenchArgs),
}

/// Parses the command line, runs it, prints errors, and returns the exit code.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Generate(args) => generate::run(&args),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Needles(args) => needles::run(&args),
        Command::ServeBench(args) => serve_bench::run(&args),
    };
    match result {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Interrupted) => ExitCode::from(130),
        // Whoever reads the output has seen enough.
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
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
