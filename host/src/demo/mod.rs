//! `psa demo`: the main job on recorded data of a real model, in under a minute.
//!
//! 1. every policy over all cases on the CPU, the static ones tuned to the quality that progressive
//!    attention has ([`contest`]);
//! 2. the shipped PTX on the emulator over a few decode steps, compared with the CPU ([`check`]);
//! 3. a table, a picture ([`Figure`]) and a verdict.
//!
//! The traces are part of the binary, so that it runs from any folder.

mod check;
mod contest;
mod report;

use std::path::PathBuf;

use clap::Args;
use psa::eval::{Field, ReplayOptions, Truth};
use psa::traces::{TraceError, Traces};
use psa::{BlockLimits, Device, Forced};

use crate::cli::figure::Figure;
use crate::cli::{CliError, Progress, Verdict, probe};

/// The bundled traces: 9 MB, twice the size of the rest of the binary, but a demo without files.
const TRACES: &[u8] = include_bytes!("../../../tests/data/traces.safetensors");
const TRACES_JSON: &[u8] = include_bytes!("../../../tests/data/traces.json");

/// The bundled traces.
pub fn bundled() -> Result<Traces, TraceError> {
    Traces::parse("bundled traces", TRACES, TRACES_JSON)
}

/// Options of `psa demo`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  psa demo\n  psa demo --out pictures/demo.svg --json\n  psa demo --traces my.safetensors\n\n\
    Exit code 1 where dense attention does not give the recorded outputs, or the PTX on the emulator\n\
    disagrees with the CPU."
)]
pub struct DemoArgs {
    /// A psa-traces-v1 file instead of the bundled one
    #[arg(long, value_name = "FILE")]
    traces: Option<PathBuf>,
    /// Where the picture goes
    #[arg(long, value_name = "FILE", default_value = "psa-demo.svg")]
    out: PathBuf,
    /// JSON objects, one a line, instead of text
    #[arg(long)]
    json: bool,
    /// Progress on stderr even where it is no terminal
    #[arg(long)]
    progress: bool,
    /// Leave out the PTX on the emulator
    #[arg(long)]
    no_emulator: bool,
}

/// Runs the command.
pub fn run(args: &DemoArgs) -> Result<Verdict, CliError> {
    let progress = Progress::new(args.progress);
    let traces = match &args.traces {
        Some(file) => Traces::load(file)?,
        None => bundled()?,
    };
    // Where the picture cannot be written is better known now than in half a minute.
    probe(&args.out)?;

    progress.say("exact masses of every block, in f64");
    let truths = traces.cases.iter().map(|case| Truth::of(case, traces.scale, None));
    let truths = truths.collect::<Result<Vec<_>, _>>()?;
    let pairs: Vec<_> = traces.cases.iter().zip(&truths).collect();
    let field = Field {
        cases: pairs,
        scale: traces.scale,
        options: ReplayOptions {
            device: Device::cpu(),
            forced: Forced::default(),
            limits: BlockLimits::default(),
            tail: 0.0,
            queries: None,
            keep: false,
        },
    };
    let contest = contest::run(&field, &progress)?;
    let check = (!args.no_emulator).then(|| check::run(&field, &progress));

    std::fs::write(&args.out, figure(&traces, &contest).draw())
        .map_err(|source| CliError::Picture { file: args.out.display().to_string(), source })?;
    let summary = report::Summary { traces: &traces, contest: &contest, check: check.as_ref() };
    summary.print(&args.out, args.json)
}

fn figure<'a>(traces: &'a Traces, contest: &'a contest::Contest) -> Figure<'a> {
    let mark = &contest.mark;
    let missed = mark.missed_mass.p99;
    Figure {
        traces,
        steps: mark.queries,
        curves: &contest.curves,
        quality: "missed softmax mass, p99 (share of 1)",
        reference: (missed, format!("{} on 2+2 bits: {missed:.3}", mark.policy)),
        by_case: &contest.by_case,
        bars: [format!("{}, 2+2 bits", mark.policy), "oracle:0.95".to_owned()],
    }
}

#[cfg(test)]
mod tests;
