//! Assembling the PTX for real GPUs with ptxas, and reading what it says of each kernel's resources.
//!
//! Nothing is run: this shows that one PTX serves every generation, and how many registers, spilled bytes
//! and bytes of static shared memory each kernel takes there. A spill is an error: the kernels are sized
//! so that none occurs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::process;
use crate::setup::CUDA_TOOLS;
use crate::workspace::Workspace;

/// Every GPU generation the PTX must assemble for.
pub const TARGETS: [u32; 6] = [80, 86, 89, 90, 100, 120];

/// One kernel's resources on one target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Whether it is a kernel; otherwise a device function that was not inlined.
    pub kernel: bool,
    /// Registers a thread.
    pub registers: u32,
    /// Bytes of stack a thread.
    pub stack: u32,
    /// Bytes of spill stores a thread.
    pub spill_stores: u32,
    /// Bytes of spill loads a thread.
    pub spill_loads: u32,
    /// Bytes of static shared memory a CTA.
    pub shared: u32,
}

/// Function to resources, on one target. Kernels and the device functions that were not inlined.
pub type Report = BTreeMap<String, Usage>;

/// The pinned ptxas.
pub fn find(workspace: &Workspace) -> Result<PathBuf> {
    if CUDA_TOOLS.installed(workspace) {
        return Ok(CUDA_TOOLS.place(workspace).join("bin/ptxas"));
    }
    Err(Error::Missing {
        what: "ptxas is not installed".into(),
        remedy: "`cargo xtask setup --for build-ptx`".into(),
    })
}

/// Assembles `ptx` for all targets, prints the table, and fails on an error or a spill.
pub fn verify(workspace: &Workspace, ptx: &Path) -> Result<()> {
    let ptxas = find(workspace)?;
    let reports = assemble_all(&ptxas, ptx)?;
    print!("{}", table(&reports));
    let spilled = spills(&reports);
    if spilled.is_empty() {
        eprintln!("ptxas: assembled for {}, no spills", targets(&reports));
        return Ok(());
    }
    Err(Error::BadPtx(format!(
        "ptxas spills registers to memory (bytes stored + loaded a thread):\n  {}\n  remedy: lower the kernel's register need or its minimum of CTAs a multiprocessor",
        spilled.join("\n  ")
    )))
}

/// The targets are independent and take seconds each: as many at a time as there are cores.
pub fn each_target<T: Send>(work: impl Fn(u32) -> Result<T> + Sync) -> Result<Vec<(u32, T)>> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut results = Vec::new();
    for batch in TARGETS.chunks(cores) {
        let batch: Vec<Result<T>> = std::thread::scope(|scope| {
            let work = &work;
            let started: Vec<_> = batch.iter().map(|&sm| scope.spawn(move || work(sm))).collect();
            started
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        for result in batch {
            results.push((TARGETS[results.len()], result?));
        }
    }
    Ok(results)
}

fn assemble_all(ptxas: &Path, ptx: &Path) -> Result<Vec<(u32, Report)>> {
    each_target(|sm| assemble(ptxas, ptx, sm, Path::new("/dev/null"), false))
}

/// The version that `ptxas --version` says, as `13.5.37`.
pub fn version(ptxas: &Path) -> Result<String> {
    let said = process::answer(ptxas, &["--version"]).unwrap_or_default();
    let number = said.lines().find_map(|line| line.rsplit_once(", V").map(|(_, number)| number.trim()));
    number.map(str::to_owned).ok_or_else(|| Error::Missing {
        what: format!("{} does not say its version", ptxas.display()),
        remedy: "delete target/psa-tools/cuda and run `cargo xtask setup --for build-ptx`".into(),
    })
}

/// Assembles for one target; with `lines`, the cubin keeps the PTX's line information.
pub fn assemble(ptxas: &Path, ptx: &Path, sm: u32, cubin: &Path, lines: bool) -> Result<Report> {
    let mut command = Command::new(ptxas);
    command.arg(format!("--gpu-name=sm_{sm}")).arg("--verbose").arg("--output-file").arg(cubin).arg(ptx);
    if lines {
        command.arg("--generate-line-info");
    }
    let output = command.output().map_err(|source| process::spawn_error(&command, source))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let first: Vec<&str> = said.lines().filter(|line| !line.contains("info")).take(10).collect();
        return Err(Error::BadPtx(format!(
            "ptxas refuses the PTX for sm_{sm}:\n  {}\n  remedy: the line numbers are those of {}",
            first.join("\n  "),
            ptx.display()
        )));
    }
    for line in said.lines().filter(|line| line.contains("warning")) {
        eprintln!("sm_{sm}: {line}");
    }
    Ok(parse(&said))
}

/// Reads what `ptxas --verbose` prints.
pub fn parse(said: &str) -> Report {
    let mut report = Report::new();
    let mut current = String::new();
    for line in said.lines() {
        let text = line.split_once(':').map_or(line, |(_, rest)| rest).trim();
        if let Some(rest) = text.strip_prefix("Compiling entry function '") {
            current = rest.split('\'').next().unwrap_or(rest).to_owned();
            report.entry(current.clone()).or_default().kernel = true;
        } else if let Some(name) = text.strip_prefix("Function properties for ") {
            current = name.trim().trim_matches('\'').to_owned();
            report.entry(current.clone()).or_default();
        } else if line.contains("bytes stack frame") {
            let usage = report.entry(current.clone()).or_default();
            usage.stack = before(line, " bytes stack frame");
            usage.spill_stores = before(line, " bytes spill stores");
            usage.spill_loads = before(line, " bytes spill loads");
        } else if text.starts_with("Used ") {
            let usage = report.entry(current.clone()).or_default();
            usage.registers = before(text, " registers");
            usage.shared = before(text, " bytes smem");
        }
    }
    report
}

/// The number that stands before `label`; 0 if the label is absent.
fn before(text: &str, label: &str) -> u32 {
    text.find(label)
        .and_then(|at| text[..at].rsplit(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

/// A line a function that spills: the bytes stored and loaded on each target where it does.
fn spills(reports: &[(u32, Report)]) -> Vec<String> {
    let mut found: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (sm, report) in reports {
        for (name, usage) in report {
            if usage.spill_stores + usage.spill_loads > 0 {
                let bytes = format!("sm_{sm} {}+{}", usage.spill_stores, usage.spill_loads);
                found.entry(name).or_default().push(bytes);
            }
        }
    }
    found.into_iter().map(|(name, bytes)| format!("{name}: {}", bytes.join(", "))).collect()
}

fn targets(reports: &[(u32, Report)]) -> String {
    reports.iter().map(|(sm, _)| format!("sm_{sm}")).collect::<Vec<_>>().join(", ")
}

/// A row a kernel: registers on each target, then the largest spill, stack and shared memory of all.
fn table(reports: &[(u32, Report)]) -> String {
    let kernels = |(_, report): &'_ (u32, Report)| -> Vec<String> {
        report.iter().filter(|(_, usage)| usage.kernel).map(|(name, _)| name.clone()).collect()
    };
    let mut names: Vec<String> = reports.iter().flat_map(kernels).collect();
    names.sort_unstable();
    names.dedup();
    let width = names.iter().map(String::len).max().unwrap_or(0).max("kernel".len());
    let mut text = String::new();
    let _ = write!(text, "{:width$}", "kernel");
    for (sm, _) in reports {
        let _ = write!(text, "  {:>6}", format!("sm_{sm}"));
    }
    let _ = writeln!(text, "  {:>6}  {:>6}  {:>7}", "spills", "stack", "shared");
    for name in names {
        let _ = write!(text, "{name:width$}");
        let mut worst = Usage::default();
        for (_, report) in reports {
            match report.get(&name) {
                Some(usage) => {
                    let _ = write!(text, "  {:>6}", usage.registers);
                    worst.spill_stores = worst.spill_stores.max(usage.spill_stores + usage.spill_loads);
                    worst.stack = worst.stack.max(usage.stack);
                    worst.shared = worst.shared.max(usage.shared);
                }
                None => {
                    let _ = write!(text, "  {:>6}", "-");
                }
            }
        }
        let _ = writeln!(text, "  {:>6}  {:>6}  {:>7}", worst.spill_stores, worst.stack, worst.shared);
    }
    text.push_str("(registers a thread on each target; bytes of spills, stack and static shared memory: the most of any)\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
ptxas info    : 0 bytes gmem, 24 bytes cmem[3]
ptxas info    : Compiling entry function 'psa_attend_d128' for 'sm_90'
ptxas info    : Function properties for psa_attend_d128
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 168 registers, used 2 barriers, 16 bytes cumulative stack size, 49152 bytes smem, 600 bytes cmem[0]
ptxas info    : Compile time = 12.345 ms
ptxas info    : Compiling entry function 'psa_append' for 'sm_90'
ptxas info    : Function properties for psa_append
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 0 barriers
";

    #[test]
    fn registers_spills_and_shared_memory_are_read() {
        let report = parse(SAID);
        assert_eq!(report.len(), 2);
        assert_eq!(
            report["psa_attend_d128"],
            Usage {
                kernel: true,
                registers: 168,
                stack: 16,
                spill_stores: 8,
                spill_loads: 12,
                shared: 49152
            }
        );
        assert_eq!(report["psa_append"], Usage { kernel: true, registers: 24, ..Usage::default() });
    }

    #[test]
    fn a_spill_on_one_target_is_found_and_named() {
        let clean = SAID.replace("8 bytes spill stores, 12 bytes", "0 bytes spill stores, 0 bytes");
        assert!(spills(&[(80, parse(&clean))]).is_empty());
        let found = spills(&[(80, parse(&clean)), (90, parse(SAID))]);
        assert_eq!(found, ["psa_attend_d128: sm_90 8+12"]);
    }

    #[test]
    fn a_spill_in_a_device_function_counts_though_the_table_lists_kernels_only() {
        let said = "ptxas info    : Function properties for helper\n    \
                    0 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n";
        let reports = [(80, parse(said))];
        assert_eq!(spills(&reports).len(), 1);
        assert!(!table(&reports).contains("helper"));
    }

    #[test]
    fn the_table_has_a_row_a_kernel_and_a_column_a_target() {
        let text = table(&[(80, parse(SAID)), (90, parse(SAID))]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(
            lines[0].split_whitespace().collect::<Vec<_>>(),
            ["kernel", "sm_80", "sm_90", "spills", "stack", "shared"]
        );
        assert_eq!(
            lines[2].split_whitespace().collect::<Vec<_>>(),
            ["psa_attend_d128", "168", "168", "20", "16", "49152"]
        );
    }
}
