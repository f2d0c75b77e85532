//! run.sh and the peers' scripts, laid out as in the bundle: the self-test passes without a GPU, a broken part is
//! said and costs only itself, bad arguments are refused. (`cargo xtask gpu-bundle --selftest` tries the archive.)

#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The bundle's files, with this build's program and without `psa`.
fn stage(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bundle-{name}"));
    let _ = std::fs::remove_dir_all(&folder);
    let copy = |from: &Path, to: &str| {
        let to = folder.join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    };
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("bundle");
    copy(&bundle.join("run.sh"), "run.sh");
    for file in std::fs::read_dir(bundle.join("peers")).unwrap().map(|e| e.unwrap()) {
        if file.path().extension().is_some_and(|e| e == "py") {
            copy(&file.path(), &format!("peers/{}", file.file_name().to_str().unwrap()));
        }
    }
    copy(Path::new(env!("CARGO_BIN_EXE_psa-gpu")), "bin/psa-gpu");
    for file in ["psa_kernels.ptx", "manifest.json"] {
        copy(&root().join("kernels-gpu/ptx").join(file), &format!("ptx/{file}"));
    }
    for file in ["traces.safetensors", "traces.json"] {
        copy(&root().join("tests/data").join(file), &format!("data/{file}"));
    }
    std::fs::write(folder.join("bundle.json"), "{\"commit\": \"0123abcd\"}").unwrap();
    folder
}

fn run(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new("bash");
    command.arg(folder.join("run.sh")).args(arguments).current_dir(folder);
    command.env_remove("PSA_LIBCUDA").envs(environment.iter().copied()).output().unwrap()
}

fn results(folder: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(folder.join("out/results.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn status<'a>(results: &'a serde_json::Value, part: &str) -> &'a str {
    let parts = results["parts"].as_array().unwrap();
    let found =
        parts.iter().find(|p| p["name"] == part).unwrap_or_else(|| panic!("no part {part}: {parts:?}"));
    found["status"].as_str().unwrap()
}

#[test]
fn the_selftest_passes_without_a_gpu() {
    let folder = stage("selftest");
    let output = run(&folder, &["--no-gpu-selftest", "--quick", "--out", "out"], &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let results = results(&folder);
    assert_eq!(results["environment"]["commit"], "0123abcd");
    assert_eq!(results["environment"]["device"], "emulator (self-test without a GPU)");
    for part in ["check", "ledger", "step", "time", "script"] {
        assert_eq!(status(&results, part), "passed", "{said}");
    }
    // Python may be missing; where it is there, its parts must pass.
    for part in ["scripts", "peers"] {
        assert!(["passed", "skipped"].contains(&status(&results, part)), "{said}");
    }
    let kernels = results["records"].as_array().unwrap().iter().filter(|r| r["part"] == "check").count();
    assert_eq!(kernels, kernels_gpu::kernels().len());
    assert!(said.contains(&format!("{kernels} of {kernels} kernels")), "{said}");
}

#[test]
fn a_driver_that_executes_nothing_fails_the_check_and_leaves_the_other_parts() {
    let folder = stage("fake");
    let library = folder.join("libcuda.so.1");
    let source = root().join("cuda-shim/tests/fake/libcuda.c");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-pthread", "-o"])
        .args([&library, &source])
        .status()
        .unwrap();
    assert!(compiled.success());
    let environment = [("PSA_LIBCUDA", library.to_str().unwrap()), ("FAKE_CUDA", "memory=200000000")];
    let output = run(&folder, &["--quick", "--out", "out"], &environment);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let results = results(&folder);
    assert_eq!(status(&results, "check"), "failed", "{said}");
    assert_eq!(status(&results, "ledger"), "failed", "{said}");
    assert_eq!(status(&results, "time"), "passed", "{said}");
    assert!(said.contains("FAILED: "), "the reason stands in the summary: {said}");
}

#[test]
fn a_part_that_is_killed_is_said_to_be_and_costs_only_itself() {
    let folder = stage("killed");
    let program = folder.join("bin/psa-gpu");
    let real = folder.join("bin/real");
    std::fs::rename(&program, &real).unwrap();
    let script = format!("#!/bin/sh\n[ \"$1\" = check ] && kill -9 $$\nexec {} \"$@\"\n", real.display());
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = run(&folder, &["--no-gpu-selftest", "--quick", "--out", "out"], &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let results = results(&folder);
    assert_eq!(status(&results, "check"), "failed", "{said}");
    assert!(said.contains("killed from outside"), "{said}");
    for part in ["ledger", "step", "time"] {
        assert_eq!(status(&results, part), "passed", "{said}");
    }
}

#[test]
fn bad_arguments_are_refused_before_anything_runs() {
    let folder = stage("arguments");
    for arguments in [&["--fast"][..], &["--out"], &["--backend"]] {
        let output = run(&folder, arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("error:"), "{arguments:?}");
    }
    let output = run(&folder, &["--help"], &[]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("--no-gpu-selftest"));
}
