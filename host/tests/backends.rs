//! The cpu and the reference say the same of the same traces, by any policy: what they read, what it misses, what a tuned
//! parameter is. Outputs differ by rounding, times by everything.

use std::process::Command;

use serde_json::Value;

const BUNDLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/traces.safetensors");

/// Records of a command without what may differ.
fn records(backend: &str, arguments: &[&str]) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_psa"))
        .args(arguments)
        .args(["--traces", BUNDLED, "--backend", backend, "--json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = std::str::from_utf8(&output.stdout).unwrap().lines();
    lines
        .map(|line| {
            let mut record: Value = serde_json::from_str(line).unwrap();
            let fields = record.as_object_mut().unwrap();
            for name in ["backend", "wall_ms", "output_error", "lse_error"] {
                assert!(fields.remove(name).is_some(), "{name}");
            }
            // Of an exact mass that is f32 on the one and f64 on the other.
            for name in ["missed_bound", "output_bound"] {
                assert!(fields.remove(name).is_some(), "{name}");
            }
            record
        })
        .collect()
}

#[test]
fn eval_says_the_same_of_cpu_and_reference_by_any_policy() {
    for mirror in ["2", "2+2", "4", "8"] {
        let mut arguments = vec!["eval", "--queries", "2", "--mirror", mirror];
        for policy in ["progressive:0.95", "progressive:0.8", "top-p:0.9", "top-k:0.2", "certified:0.1"] {
            arguments.extend(["--policy", policy]);
        }
        if mirror == "2" {
            for policy in ["quest:0.4", "mean:0.3", "cuboid:0.3", "oracle:0.95", "dense"] {
                arguments.extend(["--policy", policy]);
            }
        }
        let (cpu, reference) = (records("cpu", &arguments), records("reference", &arguments));
        assert_eq!(cpu.len(), 9 * (arguments.len() - 5) / 2);
        assert_eq!(cpu, reference, "{mirror}");
    }
}

#[test]
fn match_tunes_the_same_parameters_on_cpu_and_reference() {
    let arguments = [
        "match",
        "--queries",
        "1",
        "--policy",
        "quest,top-k@2+2,progressive@2+2,progressive@2,oracle",
        "--quality",
        "missed_p99=0.1",
    ];
    let (cpu, reference) = (records("cpu", &arguments), records("reference", &arguments));
    assert_eq!(cpu.len(), 6);
    assert_eq!(cpu, reference);
    assert!(cpu[2]["parameters"][0].as_str().unwrap().starts_with("progressive:"), "{}", cpu[2]);
}
