//! `psa-gpu check | ledger | time | step | collect`: see the library.
//!
//! Exit codes: 0 good, 1 the work was done and the answer is bad, 2 bad input or a missing part. Tables go to
//! stdout, progress to stderr.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use psa::traces::Traces;
use psa_gpu::check::{self, Extent};
use psa_gpu::ledger::{self, book::Book};
use psa_gpu::record::{self, Record};
use psa_gpu::target::{Backend, Target};
use psa_gpu::time::inputs::Template;
use psa_gpu::time::rig::{Arm, Rig, Setting};
use psa_gpu::{Error, collect, time};

#[derive(Parser)]
#[command(
    name = "psa-gpu",
    version,
    about = "Tests and times the shipped kernels on the device at hand",
    after_help = "Examples:\n  psa-gpu check --quick                       every kernel against the reference\n  \
                  psa-gpu time --traces traces.safetensors --json time.jsonl\n  psa-gpu ledger --backend emulator\n\n\
                  Exit codes: 0 good, 1 done and the answer is bad, 2 bad input or a missing part."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare every kernel with the reference: selection, bits, bounds, replays, batches
    Check {
        #[command(flatten)]
        common: Common,
        /// Fewer shapes, 10 replays instead of 100
        #[arg(long)]
        quick: bool,
        /// Every kernel once, as small as can be: for sanitizers
        #[arg(long, conflicts_with = "quick")]
        smoke: bool,
        /// First of the 10 seeds of random shapes
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
        /// A psa-traces-v1 file; without one, recorded queries are left out
        #[arg(long, value_name = "FILE")]
        traces: Option<PathBuf>,
    },
    /// Compare every approximate instruction with exact results, the emulator and the committed ledger
    Ledger {
        #[command(flatten)]
        common: Common,
        /// The ledger [default: the one that this program was built with]
        #[arg(long, value_name = "FILE")]
        book: Option<PathBuf>,
        /// Write what was measured into the ledger (`--book`, else benches/ledger/ledger.json)
        #[arg(long)]
        bless: bool,
    },
    /// Time a copy, the stages by shape and whole steps, dense and sparse
    Time {
        #[command(flatten)]
        common: Common,
        /// Fewer shapes and rounds
        #[arg(long)]
        quick: bool,
        /// Begin no new shape after this many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 240)]
        budget: u64,
        /// A psa-traces-v1 file with 8 heads of 64 dims and 4096 tokens; without one, keys are made up
        #[arg(long, value_name = "FILE")]
        traces: Option<PathBuf>,
    },
    /// Run dense, top-k and progressive steps once each, for a profiler
    Step {
        #[command(flatten)]
        common: Common,
        /// Sequences
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
        batch: u16,
        /// Tokens of each, a multiple of 64
        #[arg(long, default_value_t = 16_384, value_parser = parse_tokens)]
        tokens: usize,
        /// Query heads of a KV head
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=8))]
        group: u8,
        /// A psa-traces-v1 file; without one, keys are made up
        #[arg(long, value_name = "FILE")]
        traces: Option<PathBuf>,
    },
    /// Make one results file of the parts of a run
    Collect {
        /// Folder with parts.tsv, environment.tsv and *.jsonl
        folder: PathBuf,
        /// Where to write it
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

#[derive(Args)]
struct Common {
    /// cuda, cuda:INDEX or emulator
    #[arg(long, default_value = "cuda")]
    backend: Backend,
    /// Write records to this file, one JSON object a line
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Common {
    fn write(&self, records: &[Record]) -> Result<(), Error> {
        self.json.as_deref().map_or(Ok(()), |file| record::write(file, records))
    }
}

fn parse_tokens(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if (64..=1_048_576).contains(&n) && n % 64 == 0 => Ok(n),
        _ => Err("use a multiple of 64, from 64 to 1048576".into()),
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn say(text: &str) {
    eprintln!("  {text}");
}

fn load(file: Option<&Path>) -> Result<Option<Traces>, Error> {
    Ok(file.map(Traces::load).transpose()?)
}

fn template(file: Option<&Path>) -> Result<Template, Error> {
    match (load(file)?, file) {
        (Some(traces), Some(file)) => Template::recorded(&traces, &file.display().to_string()),
        _ => Ok(Template::made_up(1)),
    }
}

fn run(command: Command) -> Result<bool, Error> {
    match command {
        Command::Check { common, quick, smoke, seed, traces } => {
            let traces = load(traces.as_deref())?;
            let extent = match (smoke, quick) {
                (true, _) => Extent::Smoke,
                (_, true) => Extent::Quick,
                _ => Extent::Full,
            };
            let target = Target::open(common.backend)?;
            println!("device: {}", target.name());
            let options = check::Options { extent, seed, traces: traces.as_ref(), progress: &say };
            let outcome = check::run(&target, &options);
            common.write(&outcome.records())?;
            print!("{}", outcome.text());
            Ok(outcome.good())
        }
        Command::Ledger { common, book, bless } => {
            let file = book.clone().unwrap_or_else(|| "benches/ledger/ledger.json".into());
            let mut pages = match (&book, bless) {
                (None, false) => Book::committed()?,
                _ => {
                    let text = std::fs::read_to_string(&file).map_err(Error::io("read", &file))?;
                    Book::parse(&text, &file.display().to_string())?
                }
            };
            let outcome = ledger::run(common.backend, &pages)?;
            println!("device: {}", outcome.kind);
            common.write(&outcome.records())?;
            print!("{}", outcome.text());
            if bless {
                pages.bless(&outcome.kind, &outcome.records);
                pages.save(&file)?;
                println!("wrote the page of {} to {}", outcome.kind, file.display());
            }
            Ok(outcome.good())
        }
        Command::Time { common, quick, budget, traces } => {
            let template = template(traces.as_deref())?;
            let mut driver = common.backend.driver(kernels_gpu::PTX)?;
            println!("device: {}\ninputs: {}", driver.name(), template.origin);
            let options = time::Options { quick, budget: Duration::from_secs(budget) };
            let settings = time::settings(quick);
            let outcome = time::run(driver.as_mut(), &template, &settings, &options, &say)?;
            if !outcome.timed {
                println!("this device does not time");
                return Ok(true);
            }
            common.write(&outcome.records)?;
            print!("{}", time::text(&outcome.records));
            for arm in &outcome.not_sparse {
                println!("FAILED: {arm} read every block: it is not sparse");
            }
            Ok(outcome.not_sparse.is_empty())
        }
        Command::Step { common, batch, tokens, group, traces } => {
            let template = template(traces.as_deref())?;
            let mut driver = common.backend.driver(kernels_gpu::PTX)?;
            println!("device: {}\ninputs: {}", driver.name(), template.origin);
            let setting = Setting { batch: batch.into(), tokens, group: group.into() };
            let mut rig = Rig::new(driver.as_mut(), setting, &template)?;
            for arm in Arm::ALL {
                for launch in rig.step(arm)? {
                    driver.launch(&launch)?;
                }
                let reads = rig.reads(driver.as_mut(), arm)?;
                println!("{}: {} of {} blocks read", arm.name(), reads.blocks_read, reads.blocks_total);
            }
            rig.release(driver.as_mut())?;
            Ok(true)
        }
        Command::Collect { folder, out } => {
            let results = collect::gather(&folder)?;
            results.save(&out)?;
            print!("{}", results.text());
            Ok(results.good())
        }
    }
}
