//! `inspect`: one kernel on one GPU: resources, what limits its occupancy, instruction mix, main loop, and
//! its code under the Rust lines that it came from.
//!
//! The figures are of the committed PTX. The lines come from a second build (see [`lines`]); where the two
//! differ, the listing says so.

mod lines;
mod listing;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;

use psa_codegen::Manifest;
use psa_codegen::manifest::Kernel;

use crate::error::{Error, Result};
use crate::ptxas::{self, TARGETS, Usage};
use crate::sass::{self, Function};
use crate::workspace::Workspace;

/// What to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Machine instructions under their Rust lines.
    Sass,
    /// PTX under its Rust lines.
    Ptx,
    /// Rust lines with their counts of instructions.
    Source,
}

/// Runs `inspect`.
pub fn inspect(workspace: &Workspace, name: &str, sm: u32, view: View) -> Result<()> {
    if !TARGETS.contains(&sm) {
        let known = TARGETS.map(|sm| sm.to_string()).join(", ");
        return Err(Error::Input {
            what: format!("--sm {sm} is not one of the targets"),
            remedy: format!("one of {known}"),
        });
    }
    let path = workspace.manifest();
    let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let manifest = Manifest::from_json(&text).map_err(|error| Error::Stale(error.to_string()))?;
    let kernel = manifest.kernels.iter().find(|kernel| kernel.name == name).ok_or_else(|| {
        let names: Vec<&str> = manifest.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
        Error::Input { what: format!("there is no kernel `{name}`"), remedy: near(name, &names) }
    })?;
    let ptxas = ptxas::find(workspace)?;
    let path = workspace.ptx();
    let shipped = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let shipped = lines::cut(&shipped, name)
        .ok_or_else(|| Error::Stale(format!("{} has no entry `{name}`", workspace.show(&path))))?;
    let (cut, remark) = match lines::with_lines(workspace)?.and_then(|text| lines::cut(&text, name)) {
        None => (
            shipped,
            "no lines: there is no device compiler (`cargo xtask setup --for build-ptx`)".to_owned(),
        ),
        Some(cut) if lines::code(&cut.kernel) == lines::code(&shipped.kernel) => {
            (cut, "lines from a build with line information, whose code is that of the committed PTX".to_owned())
        }
        Some(cut) => (
            cut,
            "CAUTION: this is a build of the sources as they are, and its code is not that of the committed PTX \
             (`cargo xtask build-ptx --check` says why)"
                .to_owned(),
        ),
    };

    let folder = workspace.target().join("psa-inspect");
    fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    let (ptx, cubin) = (folder.join("kernel.ptx"), folder.join(format!("kernel.sm_{sm}.cubin")));
    fs::write(&ptx, &cut.module).map_err(Error::io("write", &ptx))?;
    let usage = ptxas::assemble(&ptxas, &ptx, sm, &cubin, true)?;
    let functions = sass::disassemble(workspace, &cubin, true)?;
    let (Some(usage), Some(function)) = (usage.get(name), functions.iter().find(|f| f.name == name)) else {
        return Err(Error::BadPtx(format!("ptxas made no kernel `{name}` of it")));
    };
    let root = workspace.root();
    let mut sources = listing::Sources::default();
    let code = match view {
        View::Sass => listing::sass(function, root, &mut sources),
        View::Ptx => listing::ptx(&cut.kernel, &cut.files, root, &mut sources),
        View::Source => listing::source(function, &cut.kernel, &cut.files, root, &mut sources),
    };
    let summary = summary(kernel, sm, &ptxas::version(&ptxas)?, usage, function);
    // A closed output (`| head`) is no failure.
    let _ = write!(std::io::stdout(), "{summary}{remark}\n\n{code}");
    Ok(())
}

fn summary(kernel: &Kernel, sm: u32, ptxas: &str, usage: &Usage, function: &Function) -> String {
    let mut text = format!("{} on sm_{sm}, ptxas {ptxas}\n", kernel.name);
    let values: Vec<String> =
        kernel.specialisation.iter().map(|s| format!("{} = {}", s.generic, s.value)).collect();
    let [x, y, z] = kernel.block;
    let _ = writeln!(
        text,
        "family {}{}, block {x} x {y} x {z}, {} parameters",
        kernel.family,
        if values.is_empty() { String::new() } else { format!(" ({})", values.join(", ")) },
        kernel.params.len()
    );
    let _ = writeln!(
        text,
        "{} registers, {} + {} bytes spilled and reloaded, {} bytes stack, shared {} bytes static + {} dynamic",
        usage.registers,
        usage.spill_stores,
        usage.spill_loads,
        usage.stack,
        usage.shared,
        kernel.shared_bytes
    );
    let limits = blocks_per_sm(sm, usage.registers, x * y * z, usage.shared + kernel.shared_bytes);
    let _ = writeln!(
        text,
        "blocks a multiprocessor: {} by registers, {} by shared memory, {} by threads",
        limits[0], limits[1], limits[2]
    );
    let (whole, inner) = (function.mix(), function.loop_mix());
    let (all, in_loop) = (whole.values().sum::<u64>(), inner.values().sum::<u64>());
    let _ = writeln!(text, "\n{:<14} {:>7} {:>9}", "instructions", "kernel", "main loop");
    let mut rows: Vec<_> = whole.iter().collect();
    rows.sort_by_key(|(class, count)| (std::cmp::Reverse(**count), **class));
    for (class, count) in [(&"all", &all)].into_iter().chain(rows) {
        let in_loop = if *class == "all" { in_loop } else { inner.get(class).copied().unwrap_or(0) };
        let _ = writeln!(text, "{class:<14} {count:>7} {in_loop:>9}");
    }
    text.push('\n');
    text
}

/// Blocks that a multiprocessor holds by its registers, shared memory and threads (CUDA C++ Programming
/// Guide, "Technical Specifications per Compute Capability": 64 Ki registers given in units of 256 a warp;
/// 1 KiB of shared memory a block is the system's).
fn blocks_per_sm(sm: u32, registers: u32, threads: u32, shared: u32) -> [u32; 3] {
    let (shared_kib, most_threads, most_blocks) = match sm {
        80 => (164, 2048, 32),
        86 => (100, 1536, 16),
        89 => (100, 1536, 24),
        120 => (100, 1536, 24),
        _ => (228, 2048, 32),
    };
    let warps = threads.div_ceil(32);
    let a_warp = (registers * 32).next_multiple_of(256).max(256);
    [65536 / (a_warp * warps), shared_kib * 1024 / (shared + 1024), most_threads / (warps * 32)]
        .map(|blocks| blocks.min(most_blocks))
}

/// The names that someone may have meant, as a remedy.
fn near(name: &str, names: &[&str]) -> String {
    let mut ranked: Vec<(usize, &str)> = names.iter().map(|other| (distance(name, other), *other)).collect();
    ranked.sort_unstable();
    let starts: Vec<&str> = names.iter().copied().filter(|other| other.contains(name)).collect();
    let close = ranked.iter().filter(|(distance, _)| *distance <= 4).map(|(_, other)| *other);
    let mut seen = BTreeSet::new();
    let shown: Vec<&str> = close.chain(starts).filter(|name| seen.insert(*name)).take(8).collect();
    if shown.is_empty() || name.is_empty() {
        return format!("one of {}", names.join(", "));
    }
    format!("did you mean {}?", shown.join(", "))
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_kernel_gets_near_names() {
        let names = ["attend_bf16_d64_g4", "attend_f16_d64_g4", "plan_n512", "gather"];
        assert_eq!(near("atend_bf16_d64_g4", &names), "did you mean attend_bf16_d64_g4, attend_f16_d64_g4?");
        assert_eq!(near("plan", &names), "did you mean plan_n512?");
        assert!(near("xyzzyxyzzyxyzzy", &names).starts_with("one of attend_bf16_d64_g4, "));
    }

    #[test]
    fn distances_are_edits() {
        assert_eq!([distance("", "ab"), distance("ab", "ab"), distance("kitten", "sitting")], [2, 0, 3]);
    }

    #[test]
    fn occupancy_is_what_the_programming_guide_gives() {
        // 128 registers x 128 threads are 16 Ki of 64 Ki registers.
        assert_eq!(blocks_per_sm(90, 128, 128, 64 * 1024), [4, 3, 16]);
        // 100 KiB of shared memory there, 99 for one block.
        assert_eq!(blocks_per_sm(86, 40, 128, 99 * 1024), [12, 1, 12]);
        assert_eq!(blocks_per_sm(80, 16, 32, 0), [32, 32, 32]);
    }
}
