//! `ptx-emu`: runs or lists PTX from the command line.
//!
//! Exit status: 0 ran and clean (or listed), 1 a checker or the launch validation complained, 2 bad
//! input or outside the scope. Diagnostics go to stderr; with `--json` stdout has one JSON object a
//! line and nothing else.

use clap::{Parser, Subcommand};
use ptx_emulator::{Checks, Error, LaunchError, Limits, Module, Options, Profile, parse_checks, read_launch};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A line on stdout.
macro_rules! say {
    ($($text:tt)*) => { put(std::io::stdout(), &(format!($($text)*) + "\n")) };
}

/// A line on stderr.
macro_rules! complain {
    ($($text:tt)*) => { put(std::io::stderr(), &(format!($($text)*) + "\n")) };
}

/// Writes, and says so when it cannot: unlike `println!` no panic, and no word when the reader of a pipe
/// has seen enough (`ptx-emu list FILE | head`).
fn put(mut to: impl Write, text: &str) {
    match to.write_all(text.as_bytes()).and_then(|()| to.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            let _ = writeln!(std::io::stderr(), "ptx-emu: output: {e}");
            std::process::exit(2);
        }
        _ => {}
    }
}

#[derive(Parser)]
#[command(
    name = "ptx-emu",
    version,
    about = "Runs and checks sm_80-class PTX on a CPU",
    after_help = "Examples:\n  ptx-emu run launch.json\n  ptx-emu run launch.json --json --seed 7 --check mem,sync\n  ptx-emu list kernels.ptx\n\nExit status: 0 clean, 1 a checker or the launch validation complained, 2 bad input or outside the scope."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the kernel a LAUNCH.json describes
    #[command(
        after_help = "LAUNCH.json:\n  {\"ptx\": \"kernel.ptx\", \"kernel\": \"name\", \"grid\": [x,y,z], \"block\": [x,y,z], \"shared_bytes\": N,\n   \"args\": [ARG, ...], \"check\": [\"mem\",\"init\",\"race\",\"sync\"]}\nARG is one of\n  {\"in\": \"a.bin\"}  {\"in\": \"a.bin\", \"out\": \"b.bin\"}  {\"bytes\": N, \"out\": \"b.bin\"}\n  {\"u32\": v} {\"i32\": v} {\"u64\": v} {\"i64\": v} {\"f32\": v} {\"f64\": v}\nPaths are relative to the file.\n\n--json prints kernel, completed, findings, counters, wall_ns, output, and with a profile also profile, profile_by_source, hints, buffers.\n\nExamples:\n  ptx-emu run launch.json --seed 3 --check mem,init\n  ptx-emu run launch.json --profile --top 5 --profile-html profile.html\n  ptx-emu run launch.json --limit memory_bytes=1000000\n\nExit status: 0 clean, 1 a checker or the launch validation complained, 2 bad input or outside the scope."
    )]
    Run {
        /// The launch file
        launch: PathBuf,
        /// One JSON object with findings, counters and wall time on stdout
        #[arg(long)]
        json: bool,
        /// Seed of the schedule; 0 is round robin
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Checkers, separated by commas: mem, init, race, sync, all, none
        #[arg(long)]
        check: Option<String>,
        /// Warp instructions after which the run is ended
        #[arg(long)]
        max_steps: Option<u64>,
        /// Hints, hot lines, and a listing of the PTX with its source lines: lane instructions, idle
        /// lanes, sectors against the fewest possible, bank conflicts and bytes of each
        #[arg(long)]
        profile: bool,
        /// The profile as one HTML file
        #[arg(long, value_name = "FILE")]
        profile_html: Option<PathBuf>,
        /// The hottest lines as a picture
        #[arg(long, value_name = "FILE")]
        profile_svg: Option<PathBuf>,
        /// Hints and hot lines to show
        #[arg(long, default_value_t = 10, value_name = "N")]
        top: usize,
        /// Host threads that run CTAs (default: one a core, 8 at most); the report does not depend on it
        #[arg(long, value_parser = clap::value_parser!(u16).range(..=256))]
        threads: Option<u16>,
        /// Compute capability whose limits hold
        #[arg(long, default_value_t = 80)]
        sm: u32,
        /// Another upper limit on what text and run may ask for, once for each; a wrong name lists them
        #[arg(long, value_name = "NAME=N")]
        limit: Vec<String>,
    },
    /// Remarks on PTX text: generic accesses, local memory, leftover LLVM intrinsics and markers
    #[command(
        after_help = "Exit status: 0 nothing to remark, 1 remarks, 2 bad input.\n\nExample:\n  ptx-emu lint kernels.ptx"
    )]
    Lint {
        /// The PTX file
        file: PathBuf,
        /// One JSON object a remark on stdout
        #[arg(long)]
        json: bool,
    },
    /// Lists the kernels of a PTX file and what of them is outside the scope
    #[command(after_help = "Example:\n  ptx-emu list kernels.ptx --json")]
    List {
        /// The PTX file
        file: PathBuf,
        /// One JSON object a kernel on stdout
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run {
            launch,
            json,
            seed,
            check,
            max_steps,
            profile,
            profile_html,
            profile_svg,
            top,
            threads,
            sm,
            limit,
        } => {
            let checks: Option<Checks> = match check.as_deref().map(|c| parse_checks(c.split(','))) {
                Some(Ok(c)) => Some(c),
                Some(Err(e)) => return fail(&e),
                None => None,
            };
            let limits = match limits(&limit) {
                Ok(l) => l,
                Err(e) => return fail(&e),
            };
            let views = Views { text: profile, html: profile_html, svg: profile_svg, top };
            let profile = views.wanted();
            let mut options = Options { seed, sm, profile, buffers: profile, limits, ..Options::default() };
            if let Some(m) = max_steps {
                options.max_steps = m;
            }
            if let Some(t) = threads {
                options.threads = usize::from(t);
            }
            run(&launch, checks, options, json, &views)
        }
        Command::List { file, json } => list(&file, json),
        Command::Lint { file, json } => lint(&file, json),
    }
}

fn fail(message: &str) -> ExitCode {
    complain!("ptx-emu: {message}");
    ExitCode::from(2)
}

/// What is made of the counters by line.
struct Views {
    text: bool,
    html: Option<PathBuf>,
    svg: Option<PathBuf>,
    top: usize,
}

impl Views {
    fn wanted(&self) -> bool {
        self.text || self.html.is_some() || self.svg.is_some()
    }
}

/// The default limits, with those of `--limit NAME=N`.
fn limits(given: &[String]) -> Result<Limits, String> {
    let mut limits = Limits::default();
    for text in given {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| format!("--limit {text}: NAME=N is expected, e.g. memory_bytes=1000000"))?;
        let value = value.parse().map_err(|_| format!("--limit {text}: `{value}` is no number"))?;
        limits.set(name, value).map_err(|e| format!("--limit {text}: {e}"))?;
    }
    Ok(limits)
}

fn run(launch: &Path, checks: Option<Checks>, options: Options, json: bool, views: &Views) -> ExitCode {
    let at = |e: &dyn std::fmt::Display| format!("{}: {e}", launch.display());
    let (file, mut disk) = match read_launch(launch) {
        Ok(f) => f,
        Err(e @ LaunchError::Io { .. }) => return fail(&e.to_string()),
        Err(e) => return fail(&at(&e)),
    };
    let limits = options.limits.clone();
    let report = match file.run(&mut disk, checks, options) {
        Ok(r) => r,
        // The kernel went astray with the checker off that would have said more.
        Err(LaunchError::Emulator { source: e @ Error::IllegalAddress { .. }, .. }) => {
            complain!("ptx-emu: {e}");
            if json {
                say!(
                    "{}",
                    json!({"kernel": file.kernel, "completed": false, "findings": [], "error": e.to_string()})
                );
            }
            return ExitCode::from(1);
        }
        Err(e) => return fail(&at(&e)),
    };
    for f in &report.findings {
        complain!("ptx-emu: {f}");
    }
    if !report.output.is_empty() {
        put(std::io::stderr(), &report.output);
    }
    let ptx =
        if views.wanted() { file.ptx_text(&mut disk, &limits).unwrap_or_default() } else { String::new() };
    let profile =
        Profile::new(&ptx, &report).with_sources(disk.0.join(&file.ptx).parent().unwrap_or(Path::new("")));
    if json {
        let mut record = json!(report);
        if views.wanted() {
            record["hints"] = json!(profile.hints());
            record["profile_by_source"] = json!(profile.by_source());
        }
        say!("{record}");
    } else {
        let c = &report.counters;
        let seconds = report.wall_ns as f64 * 1e-9;
        say!(
            "{}: {}; {} lane instructions in {:.3} s ({:.0} M/s); global {} B read, {} B written; {} bank conflicts; {} barriers",
            report.kernel,
            if report.is_clean() { "clean" } else { "NOT clean" },
            c.lane_instructions,
            seconds,
            c.lane_instructions as f64 / seconds.max(1e-9) * 1e-6,
            c.global_bytes_read,
            c.global_bytes_written,
            c.bank_conflicts,
            c.barriers
        );
        if views.text {
            put(std::io::stdout(), &profile.text(views.top));
        }
    }
    if let Some(path) = &views.html
        && let Err(e) = std::fs::write(path, profile.html(views.top))
    {
        return fail(&format!("{}: {e}", path.display()));
    }
    if let Some(path) = &views.svg
        && let Err(e) = std::fs::write(path, profile.svg(views.top))
    {
        return fail(&format!("{}: {e}", path.display()));
    }
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn module(file: &Path) -> Result<Module, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    Module::parse(&text).map_err(|e| format!("{}: {e}", file.display()))
}

fn lint(file: &Path, json: bool) -> ExitCode {
    let remarks = match module(file) {
        Ok(m) => m.lint(),
        Err(e) => return fail(&e),
    };
    for r in &remarks {
        if json {
            say!("{}", json!(r));
        } else {
            say!("{r}");
        }
    }
    if remarks.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn list(file: &Path, json: bool) -> ExitCode {
    let module = match module(file) {
        Ok(m) => m,
        Err(e) => return fail(&e),
    };
    let mut outside = false;
    for k in module.kernels() {
        let (shared, ops, problem) = match (module.static_shared_bytes(&k.name), module.opcodes(&k.name)) {
            (Ok(s), Ok(o)) => (s, o, None),
            (Err(e), _) | (_, Err(e)) => (0, Vec::new(), Some(e.to_string())),
        };
        outside |= problem.is_some();
        let params: Vec<String> = k.params.iter().map(|p| format!("{} {}", p.ty.name(), p.name)).collect();
        if json {
            let record = json!({
                "kernel": k.name, "line": k.line, "params": k.params.iter().map(|p| json!({
                    "name": p.name, "type": p.ty.name(), "size": p.size, "align": p.align, "offset": p.offset
                })).collect::<Vec<_>>(),
                "reqntid": k.reqntid, "maxntid": k.maxntid, "minnctapersm": k.minnctapersm, "maxnreg": k.maxnreg,
                "registers": k.registers, "static_shared_bytes": shared,
                "instructions": ops.iter().map(|(n, c)| (n.clone(), json!(c))).collect::<serde_json::Map<_, _>>(),
                "outside": problem,
            });
            say!("{record}");
            continue;
        }
        say!("{}({})", k.name, params.join(", "));
        say!("  line {}, {} virtual registers, {shared} bytes of static shared memory", k.line, k.registers);
        if let Some(r) = k.reqntid {
            say!("  .reqntid {r:?}");
        }
        if let Some(r) = k.maxntid {
            say!("  .maxntid {r:?}");
        }
        let used: Vec<String> = ops.iter().map(|(n, c)| format!("{n} {c}")).collect();
        say!("  uses: {}", used.join(", "));
        if let Some(p) = problem {
            say!("  OUTSIDE THE SCOPE: {p}");
        }
    }
    if outside { ExitCode::from(2) } else { ExitCode::SUCCESS }
}
