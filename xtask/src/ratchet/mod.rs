//! `ratchet`: what every kernel costs, against the pinned table kernels-gpu/ptx/ratchet.json. May only
//! improve.
//!
//! From the committed PTX: registers, spills, stack and shared memory by ptxas; machine instructions of
//! the whole kernel and of its main loop (see [`crate::sass`]), by class, for each target. From a small
//! fixed launch of each entry on the emulator: warp instructions, bytes, sectors, bank conflicts, barriers.
//!
//! Trap: static counts are no times. A loop that the compiler unrolled has more instructions and may be
//! faster: then the growth is accepted with its reason (`--bless --allow-worse`), which stays in the file.

mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use psa_codegen::Manifest;

use crate::error::{Error, Result};
use crate::ptxas::{self, TARGETS};
use crate::workspace::Workspace;
use crate::{process, sass};
use table::{Accepted, Comparison, Kernels, MadeWith, Numbers, Pins, SCHEMA};

/// Rows of a table on the screen.
const SHOWN: usize = 40;

/// The flags of `ratchet`.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Pin what is measured now.
    pub bless: bool,
    /// Why numbers may have got worse.
    pub allow_worse: Option<String>,
}

/// Runs `ratchet`.
pub fn ratchet(workspace: &Workspace, options: &Options) -> Result<()> {
    let reason = options.allow_worse.as_deref().map(str::trim);
    if reason.is_some_and(str::is_empty) {
        return Err(Error::Input {
            what: "--allow-worse has an empty reason".into(),
            remedy:
                "say what was gained, as in --allow-worse \"a third stage: 12 registers for 9 % less time\""
                    .into(),
        });
    }
    let path = workspace.root().join("kernels-gpu/ptx/ratchet.json");
    let shown = workspace.show(&path);
    let (made_with, kernels) = measure(workspace)?;
    let pinned = match read(&path)? {
        Some(pins) => pins,
        None if options.bless => Pins {
            schema: SCHEMA,
            generated: "by `cargo xtask ratchet --bless`, do not edit".into(),
            made_with: made_with.clone(),
            accepted: Vec::new(),
            kernels: Kernels::new(),
        },
        None => {
            return Err(Error::Missing {
                what: format!("{shown} does not exist"),
                remedy: "`git checkout` it, or pin the numbers of now: `cargo xtask ratchet --bless`".into(),
            });
        }
    };
    let other_tools = other_tools(&pinned.made_with, &made_with);
    let comparison = table::compare(&pinned.kernels, &kernels);
    print!("{}", describe(&comparison));
    if let Some(difference) = &other_tools {
        println!("{difference}");
    }
    if !options.bless {
        return judge(&comparison, other_tools.is_some(), &made_with, kernels.len(), &shown);
    }
    if comparison.is_empty() && other_tools.is_none() {
        println!("{shown} is as it should be: nothing to bless");
        return Ok(());
    }
    let mut accepted = pinned.accepted;
    if !comparison.worse.is_empty() {
        let Some(reason) = reason else {
            return Err(Error::Worse(format!(
                "{} numbers got worse (above), nothing was pinned\n  remedy: make the kernels better, or pin \
                 with a reason that stays in the file: `cargo xtask ratchet --bless --allow-worse \"REASON\"`",
                comparison.worse.len()
            )));
        };
        let worse = comparison.worse.iter().map(table::Change::line).collect();
        accepted.push(Accepted { reason: reason.to_owned(), worse });
    }
    let pins = Pins { schema: SCHEMA, generated: pinned.generated, made_with, accepted, kernels };
    fs::write(&path, table::to_text(&pins)).map_err(Error::io("write", &path))?;
    println!("pinned {} kernels in {shown}", pins.kernels.len());
    Ok(())
}

/// What the comparison means without `--bless`.
fn judge(
    comparison: &Comparison,
    other_tools: bool,
    made_with: &MadeWith,
    kernels: usize,
    shown: &str,
) -> Result<()> {
    let bless = "`cargo xtask ratchet --bless`";
    if other_tools {
        return Err(Error::Worse(format!(
            "{shown} is of other tools: a new compiler is pinned on purpose, in a commit of its own\n  remedy: \
             {bless} shows the differences and pins those of {}, ptxas {}; or install the pinned ones",
            made_with.compiler, made_with.ptxas
        )));
    }
    if !comparison.worse.is_empty() {
        return Err(Error::Worse(format!(
            "{} numbers got worse\n  remedy: `cargo xtask inspect KERNEL` shows the instructions; to keep it all \
             the same, with a reason that stays in the file: `cargo xtask ratchet --bless --allow-worse \"REASON\"`",
            comparison.worse.len()
        )));
    }
    if !comparison.added.is_empty() || !comparison.removed.is_empty() {
        return Err(Error::Worse(format!(
            "{shown} is not of these kernels: {} are not pinned, {} pinned ones are gone\n  remedy: {bless}",
            comparison.added.len(),
            comparison.removed.len()
        )));
    }
    if !comparison.better.is_empty() || comparison.moved > 0 {
        println!("nothing got worse; {bless} to keep what got better");
    } else {
        println!("ratchet: {kernels} kernels on {} targets and the emulator, as pinned", TARGETS.len());
    }
    Ok(())
}

fn describe(comparison: &Comparison) -> String {
    let mut text = String::new();
    let mut part = |title: &str, body: &str| text.push_str(&format!("{title}:\n{body}"));
    if !comparison.worse.is_empty() {
        part("worse", &table::show(&comparison.worse, SHOWN));
    }
    if !comparison.better.is_empty() {
        part("better", &table::show(&comparison.better, SHOWN));
    }
    if comparison.moved > 0 {
        let body = format!("  {} counts of classes that only their sums hold\n", comparison.moved);
        part("moved", &body);
    }
    let list = |names: &[String]| {
        let mut shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        if names.len() > SHOWN {
            shown.push_str(&format!(" and {} more", names.len() - SHOWN));
        }
        format!("  {shown}\n")
    };
    if !comparison.added.is_empty() {
        part("not pinned yet", &list(&comparison.added));
    }
    if !comparison.removed.is_empty() {
        part("pinned and gone", &list(&comparison.removed));
    }
    text
}

fn other_tools(pinned: &MadeWith, now: &MadeWith) -> Option<String> {
    let differ = |what: &str, pinned: &str, now: &str| {
        (pinned != now).then(|| format!("other {what}: pinned with {pinned}, now {now}"))
    };
    let lines: Vec<String> =
        [differ("compiler", &pinned.compiler, &now.compiler), differ("ptxas", &pinned.ptxas, &now.ptxas)]
            .into_iter()
            .flatten()
            .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

fn read(path: &Path) -> Result<Option<Pins>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::io("read", path))?,
    };
    let bad = |why: String| Error::Input {
        what: format!("{} cannot be read: {why}", path.display()),
        remedy: "after a merge conflict take either side and run `cargo xtask ratchet --bless`".into(),
    };
    let pins: Pins = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    if pins.schema != SCHEMA {
        return Err(bad(format!("it has schema {}, this version reads {SCHEMA}", pins.schema)));
    }
    Ok(Some(pins))
}

/// All numbers of the committed PTX.
fn measure(workspace: &Workspace) -> Result<(MadeWith, Kernels)> {
    let ptxas = ptxas::find(workspace)?;
    let manifest_path = workspace.manifest();
    let text = fs::read_to_string(&manifest_path).map_err(Error::io("read", &manifest_path))?;
    let manifest = Manifest::from_json(&text).map_err(|error| Error::Stale(error.to_string()))?;
    let mut kernels = Kernels::new();
    eprintln!("==> one small launch of each entry on the emulator");
    for (kernel, counters) in emulated(workspace)? {
        kernels.entry(kernel).or_default().insert("emulator".into(), counters);
    }
    eprintln!("==> assembling for {} targets, disassembling", TARGETS.len());
    let folder = workspace.target().join("psa-ratchet");
    fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    for (sm, columns) in ptxas::each_target(|sm| {
        let cubin = folder.join(format!("sm_{sm}.cubin"));
        let usage = ptxas::assemble(&ptxas, &workspace.ptx(), sm, &cubin, false)?;
        let functions = sass::disassemble(workspace, &cubin, false)?;
        Ok(columns(&usage, &functions, &manifest))
    })? {
        for (kernel, numbers) in columns {
            kernels.entry(kernel).or_default().insert(format!("sm_{sm}"), numbers);
        }
    }
    Ok((MadeWith { compiler: manifest.compiler, ptxas: ptxas::version(&ptxas)? }, kernels))
}

/// The numbers of one target.
fn columns(
    usage: &ptxas::Report,
    functions: &[sass::Function],
    manifest: &Manifest,
) -> BTreeMap<String, Numbers> {
    let mut out = BTreeMap::new();
    for (kernel, usage) in usage.iter().filter(|(_, usage)| usage.kernel) {
        let mut numbers = Numbers::new();
        let mut put = |name: &str, value: u64| numbers.insert(name.to_owned(), value);
        put("registers", usage.registers.into());
        put("spills", u64::from(usage.spill_stores) + u64::from(usage.spill_loads));
        put("stack", usage.stack.into());
        put("static_shared", usage.shared.into());
        let dynamic = manifest.kernels.iter().find(|k| &k.name == kernel).map_or(0, |k| k.shared_bytes);
        put("dynamic_shared", dynamic.into());
        if let Some(function) = functions.iter().find(|function| &function.name == kernel) {
            for (part, mix) in [("whole", function.mix()), ("loop", function.loop_mix())] {
                put(part, mix.values().sum());
                for (class, count) in mix {
                    put(&format!("{part}.{class}"), count);
                }
            }
        }
        out.insert(kernel.clone(), numbers);
    }
    out
}

/// What the emulator counts in a small launch of each entry.
fn emulated(workspace: &Workspace) -> Result<BTreeMap<String, Numbers>> {
    const COUNTED: [&str; 9] = [
        "warp_instructions",
        "global_bytes_read",
        "global_bytes_written",
        "global_sectors_read",
        "global_sectors_written",
        "shared_accesses",
        "bank_conflicts",
        "barriers",
        "atomics",
    ];
    let mut command: Command = process::cargo();
    command
        .current_dir(workspace.root())
        .args(["run", "--quiet", "--locked", "-p", "psa-tests", "--bin", "kernel-counters"])
        .stderr(std::process::Stdio::inherit());
    let output = command.output().map_err(|source| process::spawn_error(&command, source))?;
    process::check(&command, output.status, "see the message above")?;
    let all: BTreeMap<String, Numbers> = serde_json::from_slice(&output.stdout)
        .map_err(|error| Error::BadPtx(format!("`kernel-counters` printed no table: {error}")))?;
    Ok(all
        .into_iter()
        .map(|(kernel, numbers)| {
            (kernel, numbers.into_iter().filter(|(name, _)| COUNTED.contains(&name.as_str())).collect())
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_with(compiler: &str) -> MadeWith {
        MadeWith { compiler: compiler.into(), ptxas: "13.5.37".into() }
    }

    fn numbers(registers: u64) -> Kernels {
        let numbers = Numbers::from([("registers".to_owned(), registers)]);
        Kernels::from([("k".to_owned(), BTreeMap::from([("sm_80".to_owned(), numbers)]))])
    }

    fn verdict(old: u64, new: u64, other_tools: bool) -> Result<()> {
        let comparison = table::compare(&numbers(old), &numbers(new));
        judge(&comparison, other_tools, &made_with("rustc 1"), 1, "ratchet.json")
    }

    #[test]
    fn worse_fails_and_better_and_equal_do_not() {
        assert!(verdict(40, 40, false).is_ok() && verdict(40, 39, false).is_ok());
        let error = verdict(40, 41, false).expect_err("worse");
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("--allow-worse"), "{error}");
    }

    #[test]
    fn other_tools_are_never_a_success() {
        let now = made_with("rustc 2");
        let said = other_tools(&made_with("rustc 1"), &now).expect("different");
        assert!(said.contains("rustc 1") && said.contains("rustc 2"), "{said}");
        assert_eq!(other_tools(&now, &now), None);
        assert!(verdict(40, 39, true).is_err());
    }

    #[test]
    fn a_kernel_that_is_not_pinned_is_not_passed_over() {
        let comparison = table::compare(&Kernels::new(), &numbers(1));
        assert!(judge(&comparison, false, &made_with("rustc 1"), 1, "ratchet.json").is_err());
        assert!(describe(&comparison).contains("not pinned yet:\n  k\n"));
    }

    #[test]
    fn every_number_of_a_kernel_has_its_column() {
        let usage = ptxas::parse(
            "ptxas info    : Compiling entry function 'k' for 'sm_90'\n\
             ptxas info    : Function properties for k\n    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
             ptxas info    : Used 24 registers, used 0 barriers, 64 bytes smem\n",
        );
        let code = "\t.section\t.text.k,\"ax\"\n.a:\n/*0000*/ LDG.E R1, [R2] ;\n/*0010*/ @P0 BRA `(.a) ;\n/*0020*/ EXIT ;\n";
        let manifest = Manifest::new(".version 7.8\n.target sm_80\n", &[], "0", "c", BTreeMap::new())
            .expect("a manifest");
        let columns = columns(&usage, &sass::parse(code), &manifest);
        let expected = [
            ("dynamic_shared", 0),
            ("loop", 2),
            ("loop.control", 1),
            ("loop.global_load", 1),
            ("registers", 24),
            ("spills", 16),
            ("stack", 8),
            ("static_shared", 64),
            ("whole", 3),
            ("whole.control", 2),
            ("whole.global_load", 1),
        ];
        assert_eq!(columns["k"], expected.map(|(name, value)| (name.to_owned(), value)).into());
    }
}
