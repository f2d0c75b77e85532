//! `build-ptx --backend rust-cuda`: the kernels through rust-cuda's own back end, where there is one.
//!
//! rust-cuda compiles with one nightly, LLVM 7 and the CUDA toolkit's libNVVM, and its crates are used from a
//! checkout: that checkout says which nightly. A small project beside the build folder calls its
//! `cuda_builder` on kernels-gpu; the PTX goes to target/psa-rust-cuda and is never committed.
//!
//! Trap: what is there is looked at before anything is built, and all that is missing is said at once.
//! docs/rust-cuda.md has the differences of the two back ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::process;
use crate::workspace::Workspace;

/// Names the checkout of rust-cuda.
const CHECKOUT: &str = "PSA_RUST_CUDA";

/// What a machine has of it.
#[derive(Debug, Default)]
struct Parts {
    /// The checkout, if it is one.
    checkout: Option<PathBuf>,
    /// The nightly that its rust-toolchain.toml names.
    channel: Option<String>,
    /// Whether rustup has that nightly with rustc-dev and rust-src.
    toolchain: bool,
    /// What `llvm-config --version` says.
    llvm: Option<String>,
    /// The folder of libnvvm.so.
    nvvm: Option<PathBuf>,
}

impl Parts {
    fn find() -> Parts {
        let checkout = std::env::var_os(CHECKOUT)
            .map(PathBuf::from)
            .filter(|dir| dir.join("crates/cuda_builder/Cargo.toml").is_file());
        let channel = checkout.as_ref().and_then(|dir| {
            let text = fs::read_to_string(dir.join("rust-toolchain.toml"))
                .or_else(|_| fs::read_to_string(dir.join("rust-toolchain")));
            channel(&text.ok()?)
        });
        let toolchain = channel.as_deref().is_some_and(toolchain_is_complete);
        let llvm_config = std::env::var_os("LLVM_CONFIG").unwrap_or_else(|| "llvm-config".into());
        let llvm = process::answer(llvm_config, &["--version"]);
        let roots = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"].iter().filter_map(std::env::var_os);
        let nvvm = roots
            .map(PathBuf::from)
            .chain(["/usr/local/cuda".into()])
            .map(|root| root.join("nvvm/lib64"))
            .find(|folder| folder.join("libnvvm.so").exists());
        Parts { checkout, channel, toolchain, llvm, nvvm }
    }

    /// What is missing, a line a part, each with where to get it.
    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.checkout.is_none() {
            missing.push(format!(
                "a checkout of rust-cuda: `git clone https://github.com/Rust-GPU/rust-cuda`, and {CHECKOUT}=its folder"
            ));
        } else if self.channel.is_none() {
            missing.push(
                "rust-toolchain.toml in that checkout: it says which nightly its back end needs".into(),
            );
        } else if !self.toolchain {
            let channel = self.channel.as_deref().unwrap_or_default();
            missing.push(format!(
                "its nightly with the compiler's own crates: `rustup toolchain install {channel} --component rust-src \
                 --component rustc-dev --component llvm-tools`"
            ));
        }
        match self.llvm.as_deref() {
            Some(version) if version.starts_with("7.") => {}
            found => missing.push(format!(
                "LLVM 7, whose bitcode libNVVM reads ({}): build it, or use rust-cuda's container; LLVM_CONFIG=its \
                 llvm-config",
                found.map_or("no llvm-config found".to_owned(), |version| format!("found LLVM {version}"))
            )),
        }
        if self.nvvm.is_none() {
            missing.push(
                "libNVVM of a CUDA toolkit, 12.0 or newer: install the toolkit, CUDA_HOME=its folder".into(),
            );
        }
        missing
    }
}

/// `channel = "nightly-2025-01-01"` of a toolchain file.
fn channel(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("channel"))?;
    let value = line.trim_start().strip_prefix('=')?.trim().trim_matches('"');
    (!value.is_empty()).then(|| value.to_owned())
}

fn toolchain_is_complete(channel: &str) -> bool {
    let Some(sysroot) = process::answer("rustup", &["run", channel, "rustc", "--print", "sysroot"]) else {
        return false;
    };
    let rustlib = Path::new(&sysroot).join("lib/rustlib");
    let core = rustlib.join("src/rust/library/core/src/lib.rs").is_file();
    // rustc-dev brings the compiler's crates as libraries of the host.
    let crates = fs::read_dir(rustlib.join(format!("{}-unknown-linux-gnu/lib", std::env::consts::ARCH)));
    let dev = crates.into_iter().flatten().flatten().any(|file| {
        let name = file.file_name();
        let name = name.to_string_lossy();
        name.starts_with("librustc_driver") || name.starts_with("librustc_middle")
    });
    core && dev
}

/// Builds kernels-gpu with rust-cuda's back end.
pub fn build(workspace: &Workspace) -> Result<()> {
    let parts = Parts::find();
    let missing = parts.missing();
    let (Some(checkout), Some(channel), Some(nvvm)) = (&parts.checkout, &parts.channel, &parts.nvvm) else {
        return Err(incomplete(&missing));
    };
    if !missing.is_empty() {
        return Err(incomplete(&missing));
    }
    let folder = workspace.target().join("psa-rust-cuda");
    let ptx = folder.join("psa_kernels.ptx");
    for (name, text) in project(checkout, &workspace.root().join("kernels-gpu"), &ptx) {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(&folder);
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        fs::write(&path, text).map_err(Error::io("write", &path))?;
    }
    let mut command = Command::new("rustup");
    command.args(["run", channel, "cargo", "build", "--release"]).current_dir(&folder);
    process::forget_outer_cargo(&mut command);
    command.env("LD_LIBRARY_PATH", nvvm);
    process::run(&mut command, "docs/rust-cuda.md lists what its back end does not take yet")?;
    println!(
        "wrote {}: by rust-cuda's back end, not compared with the committed text, which stock rustc makes",
        workspace.show(&ptx)
    );
    Ok(())
}

fn incomplete(missing: &[String]) -> Error {
    Error::Missing {
        what: format!(
            "rust-cuda's back end cannot run here, {} parts are missing:\n  - {}",
            missing.len(),
            missing.join("\n  - ")
        ),
        remedy:
            "install them, or run in rust-cuda's container; `cargo xtask build-ptx` without --backend needs \
                 none of it. docs/rust-cuda.md"
                .into(),
    }
}

/// The project whose build script calls `cuda_builder`: file names and texts.
fn project(checkout: &Path, kernels: &Path, ptx: &Path) -> [(&'static str, String); 3] {
    let builder = checkout.join("crates/cuda_builder");
    [
        (
            "Cargo.toml",
            format!(
                "[package]\nname = \"psa-rust-cuda\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
                 [build-dependencies]\ncuda_builder = {{ path = {builder:?}, features = [\"rustc_codegen_nvvm\"] }}\n"
            ),
        ),
        (
            "build.rs",
            format!(
                "use cuda_builder::{{CudaBuilder, NvvmArch}};\n\nfn main() {{\n    \
                 CudaBuilder::new({kernels:?})\n        .arch(NvvmArch::Compute80)\n        \
                 // Selection is defined bit for bit: no contraction.\n        .fma_contraction(false)\n        \
                 .copy_to({ptx:?})\n        .build()\n        .unwrap();\n}}\n"
            ),
        ),
        ("src/main.rs", "fn main() {}\n".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_missing_is_said_at_once_with_its_remedy() {
        let error = incomplete(&Parts::default().missing());
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        for part in
            ["3 parts", CHECKOUT, "git clone", "LLVM 7", "no llvm-config found", "libNVVM", "CUDA_HOME"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn another_llvm_and_an_incomplete_nightly_are_named() {
        let parts = Parts {
            checkout: Some("/c".into()),
            channel: Some("nightly-2025-01-01".into()),
            llvm: Some("14.0.6".into()),
            nvvm: Some("/n".into()),
            toolchain: false,
        };
        let missing = parts.missing();
        assert_eq!(missing.len(), 2);
        assert!(
            missing[0].contains("rustup toolchain install nightly-2025-01-01")
                && missing[0].contains("rustc-dev")
        );
        assert!(missing[1].contains("found LLVM 14.0.6"));
        let complete = Parts { toolchain: true, llvm: Some("7.0.1".into()), ..parts };
        assert!(complete.missing().is_empty());
    }

    #[test]
    fn the_channel_of_a_toolchain_file_is_read() {
        let text = "[toolchain]\nchannel = \"nightly-2025-01-01\"\ncomponents = [\"rustc-dev\"]\n";
        assert_eq!(channel(text).as_deref(), Some("nightly-2025-01-01"));
        assert_eq!(channel("[toolchain]\n"), None);
    }

    #[test]
    fn the_project_calls_cuda_builder_for_the_kernels() {
        let [manifest, script, _] =
            project(Path::new("/c"), Path::new("/w/kernels-gpu"), Path::new("/t/k.ptx"));
        assert!(
            manifest.1.contains("path = \"/c/crates/cuda_builder\"") && manifest.1.contains("[workspace]")
        );
        for part in ["CudaBuilder::new(\"/w/kernels-gpu\")", "Compute80", ".copy_to(\"/t/k.ptx\")"] {
            assert!(script.1.contains(part), "{part}: {}", script.1);
        }
    }
}
