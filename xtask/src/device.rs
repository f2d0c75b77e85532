//! The device compiler: finding it and turning a device crate into PTX text.
//!
//! Stock rustc prints PTX itself when asked for assembly; no linker, CUDA toolkit or extra back end takes
//! part. One module per build (`lto = "fat"`, one codegen unit), because a `global_asm!` of a dependency is
//! lost otherwise. The target CPU is the oldest supported GPU: one PTX serves all newer ones.
//!
//! Traps: cargo does not track the `.s` file, so an up-to-date build would leave an old one in place: the
//! kernel crate is rebuilt each time. Up to 1.96 the MIR pass JumpThreading may copy a barrier into both
//! arms of a branch (rust-lang/rust#137086), so it is switched off.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::device_crates::DeviceCrate;
use crate::error::{Error, Result};
use crate::process;
use crate::version::{CompilerVersion, OLDEST_DEVICE_COMPILER};
use crate::workspace::Workspace;

/// The target triple.
pub const TARGET: &str = "nvptx64-nvidia-cuda";
/// Flags of the device build; part of what the PTX depends on.
pub const RUSTFLAGS: &str = "-Ctarget-cpu=sm_80 -Ctarget-feature=+ptx78 -Zmir-enable-passes=-JumpThreading";

/// A compiler that can build the kernels.
#[derive(Debug, Clone)]
pub struct DeviceCompiler {
    /// Release and identity.
    pub version: CompilerVersion,
    /// The compiler, for messages.
    pub place: String,
    toolchain: Option<String>,
}

impl DeviceCompiler {
    /// Debian's compiler if it is new enough and has core's sources, else a rustup nightly that is.
    pub fn find() -> Option<DeviceCompiler> {
        DeviceCompiler::system().or_else(DeviceCompiler::nightly)
    }

    fn system() -> Option<DeviceCompiler> {
        let rustc = Path::new("/usr/bin/rustc");
        // On some systems this is rustup's proxy, whose answer depends on the folder and the user.
        if fs::canonicalize(rustc).ok()?.file_name()?.to_string_lossy().contains("rustup") {
            return None;
        }
        let version = usable(rustc)?;
        Some(DeviceCompiler { version, place: rustc.display().to_string(), toolchain: None })
    }

    fn nightly() -> Option<DeviceCompiler> {
        let list = process::answer("rustup", &["toolchain", "list"])?;
        let names = list.lines().filter_map(|line| line.split_whitespace().next());
        let mut nightlies: Vec<&str> = names.filter(|name| name.starts_with("nightly")).collect();
        // The pinned one first: any other prints its own text.
        nightlies.sort_by_key(|name| !name.starts_with(crate::setup::NIGHTLY));
        nightlies.into_iter().find_map(|name| {
            let rustc = process::answer("rustup", &["which", "--toolchain", name, "rustc"])?;
            let version = usable(Path::new(&rustc))?;
            Some(DeviceCompiler { version, place: rustc, toolchain: Some(name.to_owned()) })
        })
    }

    fn cargo(&self) -> Command {
        let mut command = match &self.toolchain {
            None => process::cargo(),
            Some(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, "cargo"]);
                command
            }
        };
        process::forget_outer_cargo(&mut command);
        if self.toolchain.is_none() {
            // A stable compiler: the flag admits the unstable features the recipe uses.
            command.env("RUSTC", &self.place).env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    /// Builds a device crate and returns the compiler's PTX text, unfinished.
    pub fn build(&self, workspace: &Workspace, krate: &DeviceCrate) -> Result<String> {
        self.build_in(workspace, krate, workspace.device_target(), false)
    }

    /// As [`DeviceCompiler::build`], with a `.loc` before every change of source line.
    pub fn build_with_lines(&self, workspace: &Workspace, krate: &DeviceCrate) -> Result<String> {
        self.build_in(workspace, krate, workspace.target().join("psa-device-lines"), true)
    }

    fn build_in(
        &self,
        workspace: &Workspace,
        krate: &DeviceCrate,
        target_dir: PathBuf,
        lines: bool,
    ) -> Result<String> {
        let profile_dir = target_dir.join(TARGET).join("device");
        forget_last_build(&profile_dir, krate)?;
        let mut command = self.cargo();
        if lines {
            // Lines and nothing else: more would add `, debug` to the target, which switches optimisation off.
            command.env("CARGO_PROFILE_DEVICE_DEBUG", "line-directives-only");
        }
        command
            .current_dir(workspace.root())
            .env("CARGO_TARGET_DIR", &target_dir)
            .env("CARGO_TARGET_NVPTX64_NVIDIA_CUDA_RUSTFLAGS", RUSTFLAGS)
            .args(["rustc", "--locked", "-p", krate.package, "--lib", "--crate-type", "cdylib"])
            .args(["--profile", "device", "-Zbuild-std=core", "--target", TARGET])
            .args(["--", "--emit=asm", "-Clinker=/bin/true"]);
        process::run(&mut command, "fix the errors above; `cargo xtask doctor` shows the compiler in use")?;
        let built = assembly_files(&profile_dir.join("deps"), krate.library)?;
        match built.as_slice() {
            [one] => fs::read_to_string(one).map_err(Error::io("read", one)),
            others => Err(Error::BadPtx(format!(
                "the device build left {} assembly files in {}, one was expected\n  remedy: delete that folder and build again",
                others.len(),
                workspace.show(&profile_dir),
            ))),
        }
    }
}

/// The error when there is no device compiler.
pub fn missing() -> Error {
    Error::Missing {
        what: format!(
            "no device compiler (rustc {OLDEST_DEVICE_COMPILER} or newer with the sources of core)"
        ),
        remedy: format!(
            "`cargo xtask setup --for build-ptx`; by hand: Debian packages rustc-web and rust-web-src, or \
             `rustup toolchain install {} --component rust-src`. Only changes to the kernels need it: the \
             committed PTX works without",
            crate::setup::NIGHTLY
        ),
    }
}

fn usable(rustc: &Path) -> Option<CompilerVersion> {
    let version = CompilerVersion::parse(&process::answer(rustc, &["-vV"])?)?;
    if version.release < OLDEST_DEVICE_COMPILER {
        return None;
    }
    let sysroot = process::answer(rustc, &["--print", "sysroot"])?;
    let sources = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/src/lib.rs");
    sources.is_file().then_some(version)
}

fn assembly_files(deps: &Path, library: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if !deps.is_dir() {
        return Ok(found);
    }
    for entry in fs::read_dir(deps).map_err(Error::io("list", deps))? {
        let path = entry.map_err(Error::io("list", deps))?.path();
        let ours = path.file_stem().is_some_and(|stem| stem.to_string_lossy().starts_with(library));
        if ours && path.extension().is_some_and(|extension| extension == "s") {
            found.push(path);
        }
    }
    Ok(found)
}

/// Removes the last `.s` and cargo's record of the kernel crate, so that exactly this crate is built anew.
fn forget_last_build(profile_dir: &Path, krate: &DeviceCrate) -> Result<()> {
    for path in assembly_files(&profile_dir.join("deps"), krate.library)? {
        fs::remove_file(&path).map_err(Error::io("remove", &path))?;
    }
    let records = profile_dir.join(".fingerprint");
    if !records.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(&records).map_err(Error::io("list", &records))? {
        let path = entry.map_err(Error::io("list", &records))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(krate.package)) {
            fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}
