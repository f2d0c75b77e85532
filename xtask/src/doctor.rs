//! `doctor`: what is here, what is missing, what for, and how to get it.
//!
//! Looks only; installs nothing and starts no build. A GPU is optional everywhere, so its absence is
//! reported and never an error.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::device::DeviceCompiler;
use crate::error::{Error, Result};
use crate::process;
use crate::setup::{self, CUDA_TOOLS, LIBTORCH, MODEL};
use crate::version::Version;
use crate::workspace::Workspace;

/// The oldest host compiler: `rust-version` of the workspace.
const OLDEST_HOST_COMPILER: &str = env!("CARGO_PKG_RUST_VERSION");

/// One line of the table, and one JSON object.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// The name.
    pub part: &'static str,
    /// The commands that use it.
    pub needed_for: &'static str,
    /// Whether the default commands (building, `demo`) fail without it.
    pub required: bool,
    /// Whether it is there and new enough.
    pub ok: bool,
    /// Its version, if it is there.
    pub version: Option<String>,
    /// Where it was found.
    pub place: Option<String>,
    /// What to do if it is not ok.
    pub remedy: Option<String>,
}

impl Part {
    fn new(part: &'static str, needed_for: &'static str) -> Part {
        Part { part, needed_for, required: false, ok: false, version: None, place: None, remedy: None }
    }

    fn required(mut self) -> Part {
        self.required = true;
        self
    }

    fn found(mut self, version: Option<String>, place: String) -> Part {
        self.ok = true;
        self.version = version;
        self.place = Some(place);
        self
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Part {
        self.ok = false;
        self.remedy = Some(remedy.into());
        self
    }
}

/// Runs `doctor`.
pub fn doctor(workspace: &Workspace, json: bool) -> Result<()> {
    let parts = examine(workspace);
    if json {
        for part in &parts {
            // A struct of strings and flags always serialises.
            if let Ok(line) = serde_json::to_string(part) {
                println!("{line}");
            }
        }
    } else {
        print!("{}", table(&parts));
    }
    verdict(&parts)
}

fn verdict(parts: &[Part]) -> Result<()> {
    let missing: Vec<&str> =
        parts.iter().filter(|part| part.required && !part.ok).map(|part| part.part).collect();
    if missing.is_empty() { Ok(()) } else { Err(Error::Unhealthy(missing.join(", "))) }
}

fn examine(workspace: &Workspace) -> Vec<Part> {
    vec![
        host_tool("cargo", "everything", &["-V"]).required(),
        host_tool("rustc", "everything", &["-V"]).required(),
        committed_ptx(workspace).required(),
        component("rustfmt", &["fmt", "--version"], "fmt"),
        component("clippy", &["clippy", "--version"], "clippy"),
        device_compiler(),
        cuda_tool(workspace, "ptxas"),
        cuda_tool(workspace, "nvdisasm"),
        libtorch(workspace),
        model(workspace),
        cpp_compiler(),
        pip(),
        cuda_driver(),
        gpu(),
    ]
}

fn host_tool(name: &'static str, needed_for: &'static str, args: &[&str]) -> Part {
    let part = Part::new(name, needed_for);
    let program = match name {
        "cargo" => process::cargo().get_program().to_owned(),
        _ => std::env::var_os("RUSTC").unwrap_or_else(|| name.into()),
    };
    let remedy =
        format!("install Rust {OLDEST_HOST_COMPILER} or newer: https://rustup.rs, or `rustup update stable`");
    let Some(answer) = process::answer(&program, args) else { return part.remedy(remedy) };
    let version = second_word(&answer);
    let place = match Path::new(&program).is_absolute() {
        true => PathBuf::from(&program),
        false => process::on_path(name).unwrap_or_else(|| PathBuf::from(&program)),
    };
    let new_enough = match (Version::parse(&version), Version::parse(OLDEST_HOST_COMPILER)) {
        (Some(found), Some(oldest)) => found >= oldest,
        _ => false,
    };
    let part = part.found(Some(version), place.display().to_string());
    if new_enough { part } else { part.remedy(remedy) }
}

fn component(name: &'static str, args: &[&str], command: &str) -> Part {
    let part = Part::new(name, "checks before a commit");
    match process::answer(process::cargo().get_program(), args) {
        Some(answer) => part.found(Some(second_word(&answer)), format!("cargo {command}")),
        None => part.remedy(format!("`rustup component add {name}`")),
    }
}

fn committed_ptx(workspace: &Workspace) -> Part {
    let part = Part::new("committed PTX", "psa on the emulator and on GPUs");
    let remedy = "restore kernels-gpu/ptx from git, or `cargo xtask build-ptx`";
    let path = workspace.ptx();
    let Ok(text) = std::fs::read_to_string(&path) else { return part.remedy(remedy) };
    let directive = |name: &str| {
        text.lines().find_map(|line| line.trim().strip_prefix(name)).map(|rest| rest.trim().to_owned())
    };
    let kernels = text.lines().filter(|line| line.contains(".visible .entry")).count();
    let (Some(isa), Some(target)) = (directive(".version"), directive(".target")) else {
        return part.remedy(remedy);
    };
    let part = part.found(Some(format!("ISA {isa}, {target}, {kernels} kernels")), workspace.show(&path));
    if kernels == 0 || !workspace.manifest().is_file() { part.remedy(remedy) } else { part }
}

fn device_compiler() -> Part {
    let part = Part::new("device compiler", "build-ptx, test");
    match DeviceCompiler::find() {
        Some(compiler) => part.found(Some(compiler.version.identity), compiler.place),
        None => part.remedy("`cargo xtask setup --for build-ptx`"),
    }
}

fn cuda_tool(workspace: &Workspace, name: &'static str) -> Part {
    let needed_for = if name == "ptxas" {
        "build-ptx --verify, ratchet, inspect, dist, test"
    } else {
        "ratchet, inspect, test"
    };
    let part = Part::new(name, needed_for);
    if !CUDA_TOOLS.installed(workspace) {
        return part.remedy("`cargo xtask setup --for build-ptx`");
    }
    let path = CUDA_TOOLS.place(workspace).join("bin").join(name);
    let version = process::answer(&path, &["--version"]).and_then(|answer| {
        answer.lines().find_map(|line| line.rsplit_once(", V").map(|(_, version)| version.to_owned()))
    });
    match version {
        Some(version) => part.found(Some(version), workspace.show(&path)),
        None => part.remedy(
            "it does not run: remove target/psa-tools/cuda, then `cargo xtask setup --for build-ptx`",
        ),
    }
}

fn libtorch(workspace: &Workspace) -> Part {
    let part = Part::new("libtorch", "test (PyTorch oracle)");
    // The variable outranks .cargo/config.toml, whose value cargo exports to us as well.
    let ours = LIBTORCH.place(workspace).join("torch");
    let chosen = std::env::var_os("LIBTORCH").map(PathBuf::from).unwrap_or_else(|| ours.clone());
    if chosen == ours && !LIBTORCH.installed(workspace) {
        return part.remedy("`cargo xtask setup --for torch`");
    }
    match std::fs::read_to_string(chosen.join("build-version")) {
        Ok(version) => part.found(Some(version.trim().to_owned()), workspace.show(&chosen)),
        Err(_) => part.remedy(format!("LIBTORCH is {}, which holds no libtorch: unset it", chosen.display())),
    }
}

fn model(workspace: &Workspace) -> Part {
    let part = Part::new(MODEL.title, "psa generate, perplexity, needles; test");
    if !MODEL.installed(workspace) {
        return part.remedy("`cargo xtask setup --for model`, or name a GGUF file with --model");
    }
    part.found(Some("Q4_1".to_owned()), workspace.show(&MODEL.place(workspace)))
}

fn cpp_compiler() -> Part {
    let part = Part::new("C++ compiler", "test (PyTorch oracle)");
    match setup::cpp_compiler() {
        Some(path) => part.found(process::answer(&path, &["-dumpfullversion"]), path.display().to_string()),
        None => part.remedy("`cargo xtask setup --for torch` (Debian: g++)"),
    }
}

fn pip() -> Part {
    let part = Part::new("pip", "setup");
    match process::answer("python3", &["-m", "pip", "--version"]) {
        Some(answer) => {
            let place = answer
                .split(" from ")
                .nth(1)
                .and_then(|rest| rest.split(" (").next())
                .unwrap_or("python3 -m pip");
            part.found(Some(second_word(&answer)), place.to_owned())
        }
        None => part.remedy("`cargo xtask setup` installs it where there is apt (Debian: python3-pip)"),
    }
}

fn cuda_driver() -> Part {
    let part = Part::new("CUDA driver", "the cuda back end (optional)");
    let mut folders: Vec<PathBuf> = std::env::var_os("LD_LIBRARY_PATH")
        .map(|paths| std::env::split_paths(&paths).collect())
        .unwrap_or_default();
    folders.extend(
        [
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib64",
            "/usr/lib",
            "/usr/local/nvidia/lib64",
            "/usr/lib/wsl/lib",
        ]
        .map(PathBuf::from),
    );
    let in_folder = folders.into_iter().map(|folder| folder.join("libcuda.so.1")).find(|path| path.exists());
    let in_cache = || {
        let listed =
            process::answer("ldconfig", &["-p"]).or_else(|| process::answer("/sbin/ldconfig", &["-p"]))?;
        let line = listed.lines().find(|line| line.trim_start().starts_with("libcuda.so.1 "))?;
        line.rsplit_once("=> ").map(|(_, path)| PathBuf::from(path))
    };
    match in_folder.or_else(in_cache) {
        Some(path) => {
            let version = process::answer(
                "nvidia-smi",
                &["--query-gpu=driver_version", "--format=csv,noheader", "--id=0"],
            );
            part.found(version, path.display().to_string())
        }
        None => part.remedy("none needed: CPU and emulator do everything; for a GPU install NVIDIA's driver"),
    }
}

fn gpu() -> Part {
    let part = Part::new("GPU", "the cuda back end (optional)");
    let query = ["--query-gpu=name,compute_cap", "--format=csv,noheader"];
    match process::answer("nvidia-smi", &query).filter(|answer| !answer.is_empty()) {
        Some(answer) => part.found(None, answer.lines().collect::<Vec<_>>().join("; ")),
        None => part.remedy("none needed: CPU and emulator do everything"),
    }
}

fn second_word(answer: &str) -> String {
    answer.split_whitespace().nth(1).unwrap_or(answer).to_owned()
}

fn table(parts: &[Part]) -> String {
    let mut rows = vec![["", "part", "needed for", "found", "remedy"].map(str::to_owned)];
    for part in parts {
        let found = match (&part.version, &part.place) {
            (Some(version), Some(place)) => format!("{version}  ({place})"),
            (None, Some(place)) => place.clone(),
            _ => "-".to_owned(),
        };
        let mark = match (part.ok, part.required) {
            (true, _) => "ok",
            (false, true) => "MISSING",
            (false, false) => "absent",
        };
        rows.push([
            mark.to_owned(),
            part.part.to_owned(),
            part.needed_for.to_owned(),
            found,
            part.remedy.clone().unwrap_or_default(),
        ]);
    }
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let line: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_gpu_is_no_failure_and_a_missing_compiler_is() {
        let present = Part::new("cargo", "everything").required().found(None, "/bin/cargo".into());
        let gpu = Part::new("GPU", "optional").remedy("none needed");
        assert!(verdict(&[present.clone(), gpu.clone()]).is_ok());
        let rustc = Part::new("rustc", "everything").required().remedy("install Rust");
        let error = verdict(&[present, rustc, gpu]).expect_err("rustc is required");
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("rustc") && !error.to_string().contains("GPU"), "{error}");
    }

    #[test]
    fn every_part_that_is_not_ok_has_a_remedy() {
        for part in examine(&Workspace::locate()) {
            assert_eq!(part.ok, part.remedy.is_none(), "{part:?}");
            assert_eq!(part.ok, part.place.is_some() && part.ok, "{part:?}");
        }
    }

    #[test]
    fn the_json_of_a_part_is_one_line_with_fixed_fields() {
        let part = Part::new("ptxas", "test").found(Some("13.5.37".into()), "bin/ptxas".into());
        let text = serde_json::to_string(&part).expect("json");
        let expected = r#"{"part":"ptxas","needed_for":"test","required":false,"ok":true,"version":"13.5.37","place":"bin/ptxas","remedy":null}"#;
        assert_eq!(text, expected);
    }
}
