//! The contract of `ptx-emu`: LAUNCH.json, outputs, exit statuses.

mod common;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn dir(name: &str) -> PathBuf {
    let d = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&d).unwrap();
    std::fs::write(d.join("sum.ptx"), include_str!("data/rust_sum.ptx")).unwrap();
    let x: Vec<u8> = (0..128).flat_map(|i| (i as f32).to_le_bytes()).collect();
    std::fs::write(d.join("x.bin"), x).unwrap();
    d
}

fn run(d: &Path, json: &str, extra: &[&str]) -> Output {
    std::fs::write(d.join("launch.json"), json).unwrap();
    Command::new(env!("CARGO_BIN_EXE_ptx-emu"))
        .arg("run")
        .arg(d.join("launch.json"))
        .args(extra)
        .output()
        .unwrap()
}

fn launch(n: u32, block: u32) -> String {
    format!(
        r#"{{"ptx": "sum.ptx", "kernel": "sum", "grid": [1,1,1], "block": [{block},1,1], "shared_bytes": 16,
            "args": [{{"in": "x.bin"}}, {{"bytes": 4, "out": "o.bin"}}, {{"u32": {n}}}], "check": ["mem","init","race","sync"]}}"#
    )
}

#[test]
fn a_clean_run_exits_0_and_writes_its_outputs() {
    let d = dir("clean");
    let o = run(&d, &launch(128, 128), &["--json", "--seed", "3"]);
    assert_eq!(o.status.code(), Some(0), "{}", String::from_utf8_lossy(&o.stderr));
    let out = std::fs::read(d.join("o.bin")).unwrap();
    assert_eq!(f32::from_le_bytes(out.try_into().unwrap()), 8128.0);
    let v: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap();
    assert_eq!(v["findings"].as_array().unwrap().len(), 0);
    assert!(v["counters"]["lane_instructions"].as_u64().unwrap() > 0 && v["wall_ns"].as_u64().unwrap() > 0);
    assert!(o.stderr.is_empty());
}

#[test]
fn findings_exit_1_with_a_diagnostic_and_the_report() {
    let d = dir("faulty");
    let o = run(&d, &launch(1000, 160), &["--json"]);
    assert_eq!(o.status.code(), Some(1));
    let v: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap();
    let f = v["findings"].as_array().unwrap();
    assert!(f.iter().any(|f| f["class"] == "mem" && f["allocation"]["name"] == "arg0"), "{v}");
    assert!(String::from_utf8_lossy(&o.stderr).contains("out of bounds"));
    // The launch validation counts as well.
    let o = run(&d, &launch(128, 2000), &[]);
    assert_eq!(o.status.code(), Some(1));
}

#[test]
fn bad_input_exits_2_with_a_reason() {
    let d = dir("bad");
    for (json, word) in [
        ("{".to_string(), "launch.json"),
        (launch(1, 128).replace("sum.ptx", "none.ptx"), "none.ptx"),
        (launch(1, 128).replace("\"sum\"", "\"other\""), "it has: sum"),
        (launch(1, 128).replace("\"u32\": 1", "\"u33\": 1"), "u33"),
        (launch(1, 128).replace("{\"u32\": 1}", "{\"u32\": 1, \"f32\": 2}"), "args[2]"),
        (launch(1, 128).replace("\"race\"", "\"rice\""), "rice"),
        (launch(1, 128).replace("x.bin", "y.bin"), "y.bin"),
    ] {
        let o = run(&d, &json, &[]);
        let err = String::from_utf8_lossy(&o.stderr).into_owned();
        assert_eq!(o.status.code(), Some(2), "{json}: {err}");
        assert!(err.contains(word), "{json}: {err}");
    }
    std::fs::write(
        d.join("sum.ptx"),
        common::kernel("", "wgmma.fence.sync.aligned;").replace(" k(", " sum("),
    )
    .unwrap();
    assert_eq!(run(&d, &launch(1, 128), &[]).status.code(), Some(2));
    let o = Command::new(env!("CARGO_BIN_EXE_ptx-emu")).arg("list").arg(d.join("sum.ptx")).output().unwrap();
    assert_eq!(o.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&o.stdout).contains("OUTSIDE THE SCOPE"));
}

#[test]
fn checks_can_be_chosen_and_steps_limited() {
    let d = dir("checks");
    let o = run(&d, &launch(128, 128), &["--check", "none", "--max-steps", "50"]);
    assert_eq!(o.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&o.stderr).contains("steps"));
    assert_eq!(run(&d, &launch(128, 128), &["--check", "mem,sync"]).status.code(), Some(0));
    assert_eq!(run(&d, &launch(128, 128), &["--check", "mem,nothing"]).status.code(), Some(2));
}

#[test]
fn list_describes_kernels() {
    let d = dir("list");
    let o = Command::new(env!("CARGO_BIN_EXE_ptx-emu"))
        .args(["list", "--json"])
        .arg(d.join("sum.ptx"))
        .output()
        .unwrap();
    assert_eq!(o.status.code(), Some(0));
    let v: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap();
    assert_eq!((v["kernel"].as_str(), v["instructions"]["shfl"].as_u64()), (Some("sum"), Some(5)));
    assert_eq!(v["params"][2]["size"], 4);
}

#[test]
fn the_launch_files_of_the_examples_do_what_the_readme_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let emu = |name: &str, args: &[&str]| {
        let file = root.join("examples/launch").join(name);
        Command::new(env!("CARGO_BIN_EXE_ptx-emu")).arg("run").arg(file).args(args).output().unwrap()
    };
    assert_eq!(emu("scale.json", &[]).status.code(), Some(0));
    let faulty = emu("scale_faulty.json", &[]);
    assert_eq!(faulty.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&faulty.stderr).contains("offset 4096 of `arg1` (4096 bytes)"));
    // The source lies beside the PTX, the picture of the README is that of this kernel.
    let svg = Path::new(env!("CARGO_TARGET_TMPDIR")).join("profile.svg");
    let o = emu("transpose.json", &["--profile", "--top", "6", "--profile-svg", svg.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&o.stdout).into_owned();
    assert!(
        text.contains("bank conflict: 32.0 passes") && text.contains("FAULT: a column lies in one bank"),
        "{text}"
    );
    let (got, kept) = (std::fs::read_to_string(svg).unwrap(), root.join("profile.svg"));
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(&kept, &got).unwrap();
    }
    assert_eq!(
        got,
        std::fs::read_to_string(kept).unwrap(),
        "UPDATE_README=1 writes emulator/profile.svg anew"
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_panic() {
    let d = dir("pipe");
    let many: String = (0..2000)
        .fold(common::HEADER.to_string(), |t, i| t + &format!(".visible .entry k{i}() {{ ret; }}\n"));
    std::fs::write(d.join("many.ptx"), many).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ptx-emu"))
        .arg("list")
        .arg(d.join("many.ptx"))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let o = child.wait_with_output().unwrap();
    assert_eq!((o.status.code(), String::from_utf8_lossy(&o.stderr).as_ref()), (Some(0), ""));
}
