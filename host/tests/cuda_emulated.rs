//! The CUDA driver's way through a decode step, on a `libcuda.so.1` that computes: the emulator behind the driver
//! API. What `--backend cuda` prints must be what `--backend emulator` prints, digit for digit: the same PTX, the
//! same launches.
//!
//! Trap: the library is loaded by the program that is run, never linked here.

#![cfg(target_os = "linux")]

use std::process::Command;

const BUNDLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/traces.safetensors");

fn eval(backend: &str) -> Vec<serde_json::Value> {
    let library = std::env::current_exe().unwrap().with_file_name("libemulated_cuda.so");
    let output = Command::new(env!("CARGO_BIN_EXE_psa"))
        .args(["eval", "--json", "--traces", BUNDLED, "--case", "case7", "--queries", "2"])
        .args([
            "--policy",
            "dense",
            "--policy",
            "progressive:0.95",
            "--policy",
            "quest:0.4",
            "--backend",
            backend,
        ])
        .env("PSA_LIBCUDA", library)
        .env("PSA_CUBIN_CACHE", "")
        .env_remove("PTX_EMULATOR_CUDA")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let records = text.lines().map(|line| {
        let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
        let fields = record.as_object_mut().unwrap();
        let ran_on = fields.remove("backend").unwrap();
        assert!(ran_on.as_str().unwrap().starts_with(backend), "{ran_on}");
        fields.remove("wall_ms");
        record
    });
    records.collect()
}

#[test]
fn the_cuda_backend_computes_what_the_emulator_does() {
    let (emulator, cuda) = (eval("emulator"), eval("cuda"));
    assert!(emulator.len() >= 3, "{emulator:?}");
    assert_eq!(emulator, cuda);
}
