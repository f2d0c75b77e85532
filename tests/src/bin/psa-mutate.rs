//! `cargo xtask mutate`: mutants of the shipped kernels against the emulator's checkers.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Parser;
use psa_tests::mutate::operators::Class;
use psa_tests::mutate::report::{self, change, document, scores, stale, table, unreported};
use psa_tests::mutate::{Campaign, Outcome, explained};
use psa_tests::scenes::Extent;
use serde_json::json;

#[derive(Parser)]
#[command(
    name = "cargo xtask mutate",
    bin_name = "cargo xtask mutate",
    about = "Change the shipped PTX in one place at a time and see whether the emulator's checkers report it",
    after_help = "Examples:\n  cargo xtask mutate                                every class, one instance of each kernel\n  \
        cargo xtask mutate --quick                        synchronisation only\n  \
        cargo xtask mutate --kernel plan --class bounds\n  \
        cargo xtask mutate --quick --check mem,init,sync  what is lost without the race checker\n\n\
        Exit codes: 0 the bar is met and every survivor explained; 1 it is not; 2 bad input."
)]
struct Cli {
    /// Synchronisation mutants only
    #[arg(long, conflicts_with = "class")]
    quick: bool,
    /// Every instance of every kernel, not one of each
    #[arg(long)]
    all: bool,
    /// Only kernels whose name contains this
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,
    /// Only mutants of this class
    #[arg(long, value_name = "CLASS", value_parser = class)]
    class: Option<Class>,
    /// Checkers that run: mem, init, race, sync, all, none
    #[arg(long, value_name = "LIST", default_value = "all")]
    check: String,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// One JSON object a mutant and a class, one a line
    #[arg(long)]
    json: bool,
    /// Write docs/mutation.md
    #[arg(long, conflicts_with_all = ["quick", "all", "kernel", "class", "check"])]
    write: bool,
}

fn class(text: &str) -> Result<Class, String> {
    Class::ALL
        .into_iter()
        .find(|c| c.name() == text)
        .ok_or_else(|| format!("`{text}` is no class; there are {}", Class::ALL.map(Class::name).join(", ")))
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
    let explanations = explained::parse(explained::TEXT).map_err(|e| e.to_string())?;
    let classes = match cli.class {
        Some(class) => vec![class],
        None if cli.quick => vec![Class::Synchronisation],
        None => Class::ALL.to_vec(),
    };
    let campaign = Campaign {
        extent: if cli.all { Extent::Every } else { Extent::Representative },
        kernel: cli.kernel.clone(),
        classes,
        checks: ptx_emulator::parse_checks(cli.check.split(','))?,
        threads: cli.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
    };
    eprintln!("mutate: recording the clean launches");
    let started = Instant::now();
    let last = Mutex::new(Instant::now());
    let verdicts = campaign
        .run(kernels_gpu::PTX, &|done, all| {
            let Ok(mut last) = last.lock() else { return };
            if last.elapsed() < Duration::from_secs(2) && done < all {
                return;
            }
            *last = Instant::now();
            let end = if std::io::stderr().is_terminal() && done < all { '\r' } else { '\n' };
            eprint!("mutate: {done} of {all} mutants, {:.0} s{end}", started.elapsed().as_secs_f64());
        })
        .map_err(|e| e.to_string())?;
    let scores = scores(&verdicts, &explanations);
    let mut kernels: Vec<String> = verdicts.iter().map(|v| v.kernel.clone()).collect();
    kernels.dedup();
    // A closed pipe is no reason to fail.
    let mut out = std::io::stdout().lock();
    if cli.json {
        for v in &verdicts {
            let (outcome, checker) = match &v.outcome {
                Outcome::Reported(c) => ("reported", Some(c.name())),
                Outcome::Wrong => ("wrong", None),
                Outcome::Survived => ("survived", None),
                Outcome::Refused(_) => ("refused", None),
            };
            let line = json!({
                "id": v.mutant.id, "kernel": v.kernel, "class": v.mutant.class.name(), "kind": v.mutant.kind,
                "line": v.line, "before": v.mutant.before, "after": v.mutant.after, "outcome": outcome,
                "checker": checker, "executed": v.executed, "reason": explained::reason(&explanations, &v.mutant.id),
            });
            let _ = writeln!(out, "{line}");
        }
        for s in &scores {
            let mut line = json!(s);
            line["reported_percent"] = json!(s.reported_percent());
            let _ = writeln!(out, "{line}");
        }
    } else {
        let _ = writeln!(
            out,
            "{} mutants of {} kernels: {}\n",
            verdicts.len(),
            kernels.len(),
            kernels.join(", ")
        );
        let _ = writeln!(out, "{}", table(&scores, false));
        for v in verdicts.iter() {
            if let Outcome::Refused(why) = &v.outcome {
                let _ = writeln!(out, "not loaded, PTX line {}: {}: {why}", v.line, change(v));
            }
        }
        let named: Vec<_> = unreported(&verdicts).collect();
        if !named.is_empty() {
            let _ = writeln!(out, "Not reported:");
        }
        for v in named {
            let fate = match (&v.outcome, v.executed) {
                (Outcome::Wrong, _) => "wrong bytes",
                (_, true) => "survived",
                (_, false) => "survived, executed by no scene",
            };
            let why = explained::reason(&explanations, &v.mutant.id).unwrap_or("NOT EXPLAINED");
            let _ =
                writeln!(out, "  {}\n    {fate}, PTX line {}: {}\n    {why}", v.mutant.id, v.line, change(v));
        }
    }
    // Of a part of the mutants it cannot be said whom else an explanation is for.
    if campaign.kernel.is_none() && !cli.quick && cli.class.is_none() {
        for id in stale(&verdicts, &explanations) {
            eprintln!(
                "mutate: no mutant is called {id} any more; delete it from tests/src/mutate/explained.txt"
            );
        }
    }
    if cli.write {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/mutation.md");
        std::fs::write(path, document(&verdicts, &explanations, &kernels))
            .map_err(|e| format!("cannot write docs/mutation.md: {e}"))?;
    }
    let failures = report::failures(&scores);
    for failure in &failures {
        eprintln!("failed: {failure}");
    }
    Ok(ExitCode::from(u8::from(!failures.is_empty())))
}
