//! Measures the emulator and keeps the trend: `emulator.jsonl`, one run a line, and `emulator.md` made of it.
//!
//!     cargo run --release -p psa-benches --bin emulator-trend             measures, prints
//!     cargo run --release -p psa-benches --bin emulator-trend -- --append measures, prints, keeps
//!     cargo run --release -p psa-benches --bin emulator-trend -- --table  writes the table anew
//!
//! The variants of a case take turns, round by round, and medians are kept, so that a busy machine slows
//! all alike. Speeds are by the process's CPU time, which is what a variant costs when it is alone on its
//! cores; the gain of two threads is by the clock, and by CPU time as what they would gain on two free
//! cores: 2 / (CPU time with two threads / CPU time with one).

use psa_benches::emulated::{Case, How, cases};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

const ROUNDS: usize = 9;
const COMMAND: &str = "cargo run --release -p psa-benches --bin emulator-trend -- --append";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => measure().map(|record| print!("{}", table(&[record]))),
        ["--append"] => append(),
        ["--table"] => records().and_then(|r| keep_table(&r)),
        _ => Err("usage: emulator-trend [--append | --table]".to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("emulator-trend: {e}");
            ExitCode::from(2)
        }
    }
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn append() -> Result<(), String> {
    let record = measure()?;
    let mut all = records()?;
    all.push(record);
    let lines: String = all.iter().map(|r| format!("{r}\n")).collect();
    std::fs::write(file("emulator.jsonl"), lines).map_err(|e| format!("emulator.jsonl: {e}"))?;
    print!("{}", table(&all[all.len() - 1..]));
    keep_table(&all)
}

fn records() -> Result<Vec<Value>, String> {
    let text = std::fs::read_to_string(file("emulator.jsonl")).unwrap_or_default();
    let line = |(i, l)| serde_json::from_str(l).map_err(|e| format!("emulator.jsonl, line {}: {e}", i + 1));
    text.lines().enumerate().map(line).collect()
}

/// What a command prints, in one line.
fn says(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    out.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string()).unwrap_or_default()
}

fn measure() -> Result<Value, String> {
    let changed = if says("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty() {
        ""
    } else {
        "-changed"
    };
    let commit = says("git", &["rev-parse", "--short", "HEAD"]) + changed;
    let load = || {
        let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        text.split(' ').next().and_then(|l| l.parse::<f64>().ok())
    };
    let (before, cores) = (load(), std::thread::available_parallelism().map_or(1, usize::from));
    let mut figures = serde_json::Map::new();
    for mut case in cases() {
        eprintln!("{}: {}", case.name, case.launches().join(", "));
        figures.insert(case.name.to_string(), figure(&mut case)?);
    }
    let date = says("date", &["-u", "+%F"]);
    Ok(
        json!({ "date": date, "commit": commit, "command": COMMAND, "cores": cores, "load": [before, load()], "cases": figures }),
    )
}

/// CPU time of the process so far, in seconds: user and system, of all threads.
fn cpu() -> Result<f64, String> {
    // In ticks of 10 ms: too coarse for one launch, so launches are repeated.
    let text = std::fs::read_to_string("/proc/self/stat").map_err(|e| format!("/proc/self/stat: {e}"))?;
    let after = text.rsplit(')').next().unwrap_or_default();
    let field = |i: usize| after.split_whitespace().nth(i).and_then(|v| v.parse::<f64>().ok());
    match (field(11), field(12)) {
        (Some(user), Some(system)) => Ok((user + system) / 100.0),
        _ => Err("/proc/self/stat has no CPU times".to_string()),
    }
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

fn figure(case: &mut Case) -> Result<Value, String> {
    const VARIANTS: [How; 4] = [
        How { checks: false, threads: 1 },
        How { checks: false, threads: 2 },
        How { checks: true, threads: 1 },
        How { checks: true, threads: 2 },
    ];
    let executed = case.run(VARIANTS[0]);
    // A quarter of a second a turn: 25 ticks.
    let repeats = VARIANTS.map(|how| {
        let start = Instant::now();
        case.run(how);
        (0.25 / start.elapsed().as_secs_f64()).ceil().clamp(1.0, 1000.0)
    });
    let (mut wall, mut busy) = (vec![Vec::new(); 4], vec![Vec::new(); 4]);
    let mut plain = Vec::new();
    for _ in 0..ROUNDS {
        for (i, how) in VARIANTS.into_iter().enumerate() {
            let (start, before) = (Instant::now(), cpu()?);
            for _ in 0..repeats[i] as usize {
                case.run(how);
            }
            wall[i].push(start.elapsed().as_secs_f64() / repeats[i]);
            busy[i].push((cpu()? - before) / repeats[i]);
        }
        let start = Instant::now();
        (case.plain)();
        plain.push(start.elapsed().as_secs_f64());
    }
    let gain = |a: usize, b: usize| median(wall[a].iter().zip(&wall[b]).map(|(a, b)| a / b).collect());
    let spread =
        |a: usize, b: usize| median(busy[a].iter().zip(&busy[b]).map(|(a, b)| 2.0 * a / b).collect());
    let speed = |i: usize| executed as f64 / median(busy[i].clone()) / 1e6;
    let round = |v: f64| (v * 100.0).round() / 100.0;
    Ok(json!({
        "lane_instructions": executed,
        "checks_off": speed(0).round(),
        "checks_on": speed(2).round(),
        "on_over_off": round(speed(2) / speed(0)),
        "two_threads_off": round(gain(0, 1)),
        "two_threads_off_cpu": round(spread(0, 1)),
        "two_threads_on": round(gain(2, 3)),
        "two_threads_on_cpu": round(spread(2, 3)),
        "wall_ms_on": round(median(wall[2].clone()) * 1e3),
        "over_plain": (median(wall[0].clone()) / median(plain).max(1e-9)).round(),
    }))
}

fn keep_table(all: &[Value]) -> Result<(), String> {
    let head = "# Speed of the emulator\n\nMade by `cargo run --release -p psa-benches --bin emulator-trend -- --append` from emulator.jsonl; newest \
         last. M/s: million lane-instructions a second of CPU time, one thread. Two threads: gain by the clock, and in brackets \
         what the CPU time says of two free cores. Load: of the machine, before and after. Plain: times as long as a plain \
         Rust loop of the same arithmetic (checks off, one thread); the sparse step has none.\n\n";
    std::fs::write(file("emulator.md"), format!("{head}{}", table(all)))
        .map_err(|e| format!("emulator.md: {e}"))
}

fn table(all: &[Value]) -> String {
    let mut out = "| date | commit | load | case | off, M/s | on, M/s | on/off | 2 threads, off | 2 threads, on | on, ms | plain |\n|---|---|---|---|---|---|---|---|---|---|---|\n".to_string();
    for r in all {
        let Some(cases) = r["cases"].as_object() else { continue };
        for (name, c) in cases {
            let plain = if name == "sparse step" { "".to_string() } else { c["over_plain"].to_string() };
            out += &format!(
                "| {} | {} | {} to {} of {} | {name} | {} | {} | {} | {} ({}) | {} ({}) | {} | {plain} |\n",
                r["date"].as_str().unwrap_or_default(),
                r["commit"].as_str().unwrap_or_default(),
                r["load"][0],
                r["load"][1],
                r["cores"],
                c["checks_off"],
                c["checks_on"],
                c["on_over_off"],
                c["two_threads_off"],
                c["two_threads_off_cpu"],
                c["two_threads_on"],
                c["two_threads_on_cpu"],
                c["wall_ms_on"],
            );
        }
    }
    out
}
