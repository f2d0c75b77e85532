//! The program as run.sh runs it: exit codes, files, and what it says without a GPU and with a fake one.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn psa_gpu(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_psa-gpu"));
    command.args(arguments).env("PSA_CUBIN_CACHE", "").env_remove("PSA_LIBCUDA");
    command.envs(environment.iter().copied()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("psa-gpu-{name}"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn without_a_gpu_cuda_is_exit_2_and_says_what_is_missing() {
    let none = folder("none").join("libcuda.so.1");
    let output = psa_gpu(&["check", "--smoke"], &[("PSA_LIBCUDA", none.to_str().unwrap())]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(said.contains("--backend cuda:0") && said.contains("libcuda"), "{said}");
    assert!(said.contains("--backend emulator"), "{said}");
    let output = psa_gpu(&["check", "--backend", "tpu"], &[]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn check_and_ledger_leave_a_record_a_line() {
    let folder = folder("records");
    let check = folder.join("check.jsonl");
    let output =
        psa_gpu(&["check", "--smoke", "--backend", "emulator", "--json", check.to_str().unwrap()], &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let lines = std::fs::read_to_string(check).unwrap();
    assert_eq!(lines.lines().count(), kernels_gpu::kernels().len());
    for line in lines.lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(record["part"], "check");
        assert!(record["tried"].as_u64().unwrap() > 0 && record["tried"] == record["passed"], "{line}");
    }
    let output = psa_gpu(&["ledger", "--backend", "emulator"], &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = psa_gpu(&["time", "--backend", "emulator"], &[]);
    assert!(text(&output.stdout).contains("this device does not time"));
}

#[test]
fn a_ledger_that_grew_is_exit_1() {
    let folder = folder("ledger");
    let file = folder.join("ledger.json");
    let committed = psa_gpu::ledger::book::COMMITTED;
    let mut book: serde_json::Value = serde_json::from_str(committed).unwrap();
    book["devices"]["emulator"]["ex2.approx.ftz.f32"]["largest"] = 0.25.into();
    std::fs::write(&file, book.to_string()).unwrap();
    let output = psa_gpu(&["ledger", "--backend", "emulator", "--book", file.to_str().unwrap()], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("ex2.approx.ftz.f32 grew"), "{output:?}");
    let output =
        psa_gpu(&["ledger", "--backend", "emulator", "--bless", "--book", file.to_str().unwrap()], &[]);
    assert!(text(&output.stdout).contains("wrote the page of emulator"));
    let blessed: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(blessed, serde_json::from_str::<serde_json::Value>(committed).unwrap());
}

/// The whole of `time` over the driver that executes nothing: every call is one that a driver accepts, and what
/// the fake's clock says lands in the records. No figure of it means anything.
#[cfg(target_os = "linux")]
#[test]
fn time_runs_to_its_end_on_a_driver_that_executes_nothing() {
    let folder = folder("fake");
    let library = folder.join("libcuda.so.1");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cuda-shim/tests/fake/libcuda.c");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-pthread", "-o"])
        .args([&library, &source])
        .status()
        .unwrap();
    assert!(compiled.success());
    let json = folder.join("time.jsonl");
    // Little memory, so that the copy is small and most shapes are left out.
    let output = psa_gpu(
        &["time", "--quick", "--json", json.to_str().unwrap()],
        &[("PSA_LIBCUDA", library.to_str().unwrap()), ("FAKE_CUDA", "memory=200000000")],
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let lines = std::fs::read_to_string(json).unwrap();
    let records: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |what: &str| records.iter().filter(|r| r["what"] == what).count();
    assert_eq!((of("copy"), of("launch")), (1, 2));
    assert!(of("step") >= 3, "{lines}");
    assert!(records.iter().any(|r| r["part"] == "left"), "what had no room is said");
    let step = records.iter().find(|r| r["what"] == "step" && r["policy"] == "dense").unwrap();
    // The fake replays 0.25 ms a kernel.
    assert_eq!(step["median_us"], 750.0);
}
