//! `gpu-bundle`: one archive that tests and times the kernels on a machine with a GPU and without Rust.
//!
//! Release programs, stripped, checked to run with an older glibc; the PTX as committed; traces; `run.sh` and the
//! peers' scripts from benches/gpu/bundle. `bundle.json` says what it was made from. docs/gpu.md tells how to run it.

mod archive;
mod elf;

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::process;
use crate::workspace::Workspace;
use archive::Entry;
use elf::Version;

/// The folder that the archive unpacks to.
const FOLDER: &str = "psa-gpu-bundle";
/// Largest archive: what is sent to a machine in one go.
const LIMIT: u64 = 64 << 20;
/// Newest glibc that a program may need: Ubuntu 22.04's, the oldest Linux of 2022 that is still common.
const GLIBC: Version = Version(2, 35);
const PROGRAMS: [&str; 2] = ["psa", "psa-gpu"];

/// What is asked for.
pub struct Options {
    /// Where the archive goes; by default `psa-gpu-bundle.tar.gz` in the target folder.
    pub out: Option<PathBuf>,
    /// Unpack it and run its self-test.
    pub selftest: bool,
}

/// Runs `gpu-bundle`; prints the archive's path.
pub fn gpu_bundle(workspace: &Workspace, options: &Options) -> Result<()> {
    eprintln!("==> building psa and psa-gpu (release, stripped)");
    let mut build = process::cargo();
    build
        .current_dir(workspace.root())
        .args(["build", "--release", "--locked", "-p", "psa", "-p", "psa-gpu", "--bins"])
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    process::run(&mut build, "fix the errors above; `cargo xtask doctor` shows what is missing")?;

    let mut newest = Version(0, 0);
    for program in PROGRAMS {
        let file = workspace.target().join("release").join(program);
        newest = newest.max(needed_glibc(&file)?);
    }
    eprintln!("==> programs need glibc {newest} or newer (allowed: {GLIBC})");

    let mut entries = files(workspace)?;
    entries.push(Entry::text("bundle.json", &description(workspace, newest)?));
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let packed = archive::pack(FOLDER, &entries)?;
    check_size(packed.len() as u64)?;
    let out = options.out.clone().unwrap_or_else(|| workspace.target().join("psa-gpu-bundle.tar.gz"));
    std::fs::write(&out, &packed).map_err(Error::io("write", &out))?;
    eprintln!("==> {} files, {:.1} MiB", entries.len(), packed.len() as f64 / (1 << 20) as f64);
    if options.selftest {
        selftest(workspace, &packed)?;
    }
    println!("{}", out.display());
    Ok(())
}

/// Everything but `bundle.json`.
fn files(workspace: &Workspace) -> Result<Vec<Entry>> {
    let root = workspace.root();
    let bundle = root.join("benches").join("gpu").join("bundle");
    let mut list: Vec<(String, PathBuf)> = vec![
        ("run.sh".into(), bundle.join("run.sh")),
        ("README.md".into(), bundle.join("README.md")),
        ("LICENSE-APACHE".into(), root.join("LICENSE-APACHE")),
        ("LICENSE-MIT".into(), root.join("LICENSE-MIT")),
        ("ptx/psa_kernels.ptx".into(), workspace.ptx()),
        ("ptx/manifest.json".into(), workspace.manifest()),
    ];
    for name in ["traces.safetensors", "traces.json", "README.md"] {
        list.push((format!("data/{name}"), root.join("tests").join("data").join(name)));
    }
    for program in PROGRAMS {
        list.push((format!("bin/{program}"), workspace.target().join("release").join(program)));
    }
    let peers = bundle.join("peers");
    for entry in std::fs::read_dir(&peers).map_err(Error::io("read", &peers))? {
        let path = entry.map_err(Error::io("read", &peers))?.path();
        if path.extension().is_some_and(|extension| extension == "py")
            && let Some(name) = path.file_name()
        {
            list.push((format!("peers/{}", name.to_string_lossy()), path.clone()));
        }
    }
    list.into_iter().map(|(name, path)| Entry::of_file(name, &path)).collect()
}

/// Programs and scripts are executable, all else is not.
fn executable(name: &str) -> bool {
    name.starts_with("bin/") || name == "run.sh"
}

/// The newest glibc that `file` needs, where that is allowed.
fn needed_glibc(file: &Path) -> Result<Version> {
    let bytes = std::fs::read(file).map_err(Error::io("read", file))?;
    let checked = elf::needed_versions(&bytes).and_then(|needs| allowed_glibc(&needs));
    checked.map_err(|reason| Error::BadProgram { file: file.to_owned(), reason })
}

fn allowed_glibc(needs: &[elf::Need]) -> Result<Version, String> {
    let newest = elf::newest_glibc(needs)
        .ok_or("it names no version of glibc, so that nothing is known of where it runs")?;
    if newest > GLIBC {
        let name = format!("GLIBC_{newest}");
        let needs: Vec<_> = needs.iter().filter(|need| need.version == name).map(|n| n.to_string()).collect();
        return Err(format!(
            "it needs glibc {newest} ({}), and would not start on machines with {GLIBC}",
            needs.join(", ")
        ));
    }
    Ok(newest)
}

fn check_size(bytes: u64) -> Result<()> {
    if bytes > LIMIT {
        return Err(Error::TooLarge { bytes, limit: LIMIT });
    }
    Ok(())
}

/// What the bundle was made from, as JSON.
fn description(workspace: &Workspace, glibc: Version) -> Result<String> {
    let git = |args: &[&str]| {
        let mut all = vec!["-C".to_owned(), workspace.root().display().to_string()];
        all.extend(args.iter().map(|&arg| arg.to_owned()));
        process::answer("git", &all.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let mut commit = git(&["rev-parse", "HEAD"]).unwrap_or_else(|| "unknown".into());
    // Untracked files do not go into a build of tracked crates.
    if git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty()) {
        commit += "-changed";
    }
    let ptx = std::fs::read(workspace.ptx()).map_err(Error::io("read", workspace.ptx()))?;
    let sha256: String = Sha256::digest(&ptx).iter().map(|byte| format!("{byte:02x}")).collect();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let description = serde_json::json!({
        "schema": "psa-gpu-bundle-v1",
        "commit": commit,
        "built": process::answer("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]).unwrap_or_default(),
        "rustc": process::answer(rustc, &["--version"]).unwrap_or_default(),
        "needs_glibc": glibc.to_string(),
        "ptx_sha256": sha256,
    });
    Ok(format!("{description:#}\n"))
}

/// Unpacks the archive in a folder of its own and runs what can be run without a GPU.
fn selftest(workspace: &Workspace, packed: &[u8]) -> Result<()> {
    eprintln!("==> self-test of the archive");
    let folder = workspace.target().join("psa-gpu-selftest");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
    }
    archive::unpack(packed, &folder)?;
    let mut run = Command::new(folder.join(FOLDER).join("run.sh"));
    run.arg("--no-gpu-selftest").arg("--out").arg(folder.join("out"));
    process::run(&mut run, "the logs of its parts lie in target/psa-gpu-selftest/out")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_run_sh_names_is_in_the_list() {
        let workspace = Workspace::locate();
        let run = std::fs::read_to_string(workspace.root().join("benches/gpu/bundle/run.sh")).unwrap();
        // The programs may not be built: their names are enough.
        let mut names: Vec<String> = PROGRAMS.iter().map(|p| format!("bin/{p}")).collect();
        let bundle = workspace.root().join("benches/gpu/bundle");
        for (folder, of) in [("peers", "peers"), ("", ".")] {
            for file in std::fs::read_dir(bundle.join(of)).unwrap() {
                let name = file.unwrap().file_name().to_string_lossy().into_owned();
                names.push(if folder.is_empty() { name } else { format!("{folder}/{name}") });
            }
        }
        names.extend(["data/traces.safetensors", "bundle.json"].map(str::to_owned));
        let mut seen = 0;
        for piece in run.split("$here/").skip(1) {
            let name: String =
                piece.chars().take_while(|c| c.is_ascii_alphanumeric() || "/._-".contains(*c)).collect();
            seen += 1;
            assert!(names.contains(&name), "run.sh uses {name}");
        }
        assert!(seen >= 6, "{seen}");
    }

    #[test]
    fn an_archive_over_the_limit_is_refused_with_both_sizes() {
        assert!(check_size(LIMIT).is_ok());
        let text = check_size(LIMIT + 1).unwrap_err().to_string();
        assert!(text.contains("67108865") && text.contains("67108864"), "{text}");
    }

    #[test]
    fn a_program_that_needs_a_newer_glibc_is_refused_and_the_version_named() {
        let need = |version: &str| elf::Need { library: "libm.so.6".into(), version: version.into() };
        assert_eq!(allowed_glibc(&[need("GLIBC_2.35"), need("GLIBC_2.4")]), Ok(GLIBC));
        let text = allowed_glibc(&[need("GLIBC_2.34"), need("GLIBC_2.38")]).unwrap_err();
        assert!(text.contains("needs glibc 2.38 (GLIBC_2.38 of libm.so.6)"), "{text}");
        assert!(allowed_glibc(&[]).unwrap_err().contains("no version"));
    }

    #[test]
    fn this_very_program_tells_its_glibc() {
        let own = std::env::current_exe().unwrap();
        let needs = elf::needed_versions(&std::fs::read(own).unwrap()).unwrap();
        let newest = elf::newest_glibc(&needs).unwrap();
        assert!(newest >= Version(2, 2), "{newest}");
        assert!(needs.iter().any(|need| need.library.starts_with("libc.so")), "{needs:?}");
    }

    #[test]
    fn programs_and_the_script_are_executable() {
        assert!(executable("bin/psa") && executable("run.sh"));
        assert!(!executable("data/traces.json") && !executable("peers/peers.py"));
    }
}
