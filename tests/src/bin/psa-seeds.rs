//! `cargo xtask seeds`: the shipped kernels under many schedules of the emulator.

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Parser;
use psa_tests::scenes::{self, Extent};
use psa_tests::seeds;
use ptx_emulator::Module;

#[derive(Parser)]
#[command(
    name = "cargo xtask seeds",
    bin_name = "cargo xtask seeds",
    about = "Run every kernel's recorded launches under many schedules: same bytes of memory, no finding",
    after_help = "Examples:\n  cargo xtask seeds                       1000 schedules, one instance of each kernel\n  \
        cargo xtask seeds --seeds 10 --all      every instance\n\n\
        Exit codes: 0 the same under every seed; 1 something differs; 2 bad input."
)]
struct Cli {
    /// Seeds 1 to N
    #[arg(long, value_name = "N", default_value_t = 1000)]
    seeds: u64,
    /// Every instance of every kernel, not one of each
    #[arg(long)]
    all: bool,
    /// Only kernels whose name contains this
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(text) => {
            eprintln!("error: {text}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode, String> {
    let extent = if cli.all { Extent::Every } else { Extent::Representative };
    eprintln!("seeds: recording the launches in round robin");
    let module = Module::parse(kernels_gpu::PTX).map_err(|e| e.to_string())?;
    let mut scenes = scenes::record(&module, extent).map_err(|e| e.to_string())?;
    if let Some(asked) = &cli.kernel {
        let names: std::collections::BTreeSet<_> = scenes.iter().map(|s| s.kernel()).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        scenes.retain(|s| s.kernel().contains(asked.as_str()));
        if scenes.is_empty() {
            return Err(format!("no kernel matches `{asked}`; there are {names}"));
        }
    }
    let threads = cli.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let started = Instant::now();
    let last = Mutex::new(Instant::now());
    let progress = |done| {
        let Ok(mut last) = last.lock() else { return };
        if last.elapsed() >= Duration::from_secs(5) || done == cli.seeds {
            *last = Instant::now();
            eprintln!("seeds: {done} of {}, {:.0} s", cli.seeds, started.elapsed().as_secs_f64());
        }
    };
    let found = seeds::compare(&module, &scenes, cli.seeds, threads, &progress, &|d| {
        println!("{} under seed {} ({}): {}", d.kernel, d.seed, d.step, d.what);
    });
    let kernels: std::collections::BTreeSet<_> = scenes.iter().map(|s| s.kernel()).collect();
    println!(
        "{} launches of {} kernels under {} seeds: {} differ",
        scenes.len(),
        kernels.len(),
        cli.seeds,
        found.len()
    );
    Ok(ExitCode::from(u8::from(!found.is_empty())))
}
