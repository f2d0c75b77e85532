//! The program with every kind of CUDA driver: it starts, and says what is wrong and what to do.

#![cfg(target_os = "linux")]

#[path = "../../cuda-shim/tests/fake/mod.rs"]
mod fake;

use std::path::Path;
use std::process::{Command, Output};

use fake::Fake;

const BUNDLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/traces.safetensors");

fn psa(library: &Path, settings: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_psa"))
        .args(arguments)
        .env("PSA_LIBCUDA", library)
        .env("PSA_CUBIN_CACHE", "")
        .env("FAKE_CUDA", settings)
        .env_remove("CUDA_VISIBLE_DEVICES")
        .output()
        .unwrap()
}

/// The devices of `psa info` that are GPUs: name, usable, detail.
fn gpus(library: &Path, settings: &str) -> Vec<(String, bool, String)> {
    let output = psa(library, settings, &["info", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let devices = info["devices"].as_array().unwrap();
    devices
        .iter()
        .map(|device| {
            let text = |key: &str| device[key].as_str().unwrap().to_owned();
            (text("name"), device["available"].as_bool().unwrap(), text("detail"))
        })
        .filter(|(name, ..)| name.starts_with("cuda"))
        .collect()
}

/// That `info` lists no GPU and gives a reason with `words`, and that `--backend cuda` fails with the same.
fn assert_explained(library: &Path, settings: &str, words: &[&str]) {
    let gpus = gpus(library, settings);
    assert_eq!(gpus.len(), 1, "{gpus:?}");
    assert_eq!((gpus[0].0.as_str(), gpus[0].1), ("cuda", false));
    let output = psa(library, settings, &["eval", "--traces", BUNDLED, "--backend", "cuda"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.stdout.is_empty());
    for word in words {
        assert!(gpus[0].2.contains(word), "{word:?} is not in {:?}", gpus[0].2);
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
    assert!(
        error.contains("--backend cuda: no GPU: ") && error.contains("use cpu, or emulator"),
        "{error:?}"
    );
}

#[test]
fn info_lists_every_gpu() {
    let fake = Fake::build("list", &[]);
    let found = gpus(&fake.library(), "devices=2 memory=85899345920");
    let names: Vec<_> = found.iter().map(|(name, usable, _)| (name.as_str(), *usable)).collect();
    assert_eq!(names, [("cuda:0", true), ("cuda:1", true)]);
    assert!(
        found[0].2.contains("Fake GPU 0, compute capability 8.0, 108 multiprocessors, 80.0 GiB"),
        "{found:?}"
    );
    assert!(found[0].2.ends_with("driver with CUDA 12.4"), "{found:?}");
}

#[test]
fn no_library_and_wrong_libraries_are_explained() {
    let install = "install the NVIDIA driver";
    assert_explained(&Fake::empty("none").library(), "", &["there is no CUDA driver library", install]);
    let text = Fake::wrong("text", &b"no library at all\n".repeat(10));
    assert_explained(
        &text.library(),
        "",
        &["is not a usable CUDA driver", "invalid ELF header", "PSA_LIBCUDA"],
    );
    let other = Fake::build("other", &["-DWITHOUT_DRIVER"]);
    assert_explained(&other.library(), "", &["is not a usable CUDA driver", "no function cuInit"]);
}

#[test]
fn a_driver_that_fails_is_explained_in_its_own_words() {
    let fake = Fake::build("fails", &[]);
    let library = fake.library();
    assert_explained(
        &library,
        "version=11040",
        &["too old: it has CUDA 11.4, the PTX needs 11.8", "update the driver"],
    );
    assert_explained(
        &library,
        "fail=cuInit:100",
        &["finds no GPU: cuInit: CUDA_ERROR_NO_DEVICE (100), no CUDA-capable device is detected"],
    );
    // A code of cust_raw that cust does not know, and one that nobody knows.
    assert_explained(&library, "fail=cuInit:803", &["CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"]);
    assert_explained(
        &library,
        "fail=cuInit:4242",
        &["CUDA_ERROR_OF_TOMORROW (4242), something that this binary has never heard of"],
    );
    assert_explained(&library, "fail=cuInit:4243", &["cuInit: CUDA error 4243 (4243)"]);
    assert_explained(
        &library,
        "fail=cuDeviceGetName:801",
        &["cuDeviceGetName: CUDA_ERROR_NOT_SUPPORTED (801)"],
    );
}

#[test]
fn a_wrong_index_and_a_full_gpu_are_explained() {
    let fake = Fake::build("open", &[]);
    let eval = |settings, gpu| {
        let arguments = ["eval", "--traces", BUNDLED, "--backend", "cuda", "--gpu", gpu];
        let output = psa(&fake.library(), settings, &arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let error = eval("devices=2", "7");
    assert!(error.contains("there is no GPU 7: this machine has 2, numbered from 0"), "{error}");
    let error = eval("fail=cuDevicePrimaryCtxRetain:2", "0");
    assert!(error.contains("GPU 0 has no memory left to work with: "), "{error}");
    assert!(error.contains("CUDA_ERROR_OUT_OF_MEMORY (2), out of memory; stop what uses it"), "{error}");
    let error = eval("fail=cuLinkAddData_v2:218", "0");
    assert!(error.contains("CUDA_ERROR_INVALID_PTX (218)"), "{error}");
    assert!(error.contains("ptxas psa_kernels.ptx, line 7; error : the fake does not like it"), "{error}");
}
