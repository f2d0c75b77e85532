//! The program as others run it: exit codes, what stands on stdout and on stderr.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use psa::traces::{self, Traces};

const BUNDLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/traces.safetensors");

fn psa(arguments: &[&str]) -> Output {
    // The same answers on a machine with a GPU; tests/cuda.rs has a driver.
    Command::new(env!("CARGO_BIN_EXE_psa"))
        .args(arguments)
        .env("PSA_LIBCUDA", "/there/is/no/libcuda.so.1")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn json_lines(output: &Output) -> Vec<serde_json::Value> {
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A folder of this test's own, removed when it ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("psa-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    /// One bundled case, changed.
    fn traces(&self, change: impl FnOnce(&mut Traces)) -> String {
        let mut traces = Traces::load(Path::new(BUNDLED)).unwrap();
        traces.cases.truncate(1);
        change(&mut traces);
        let file = self.0.join("changed.safetensors");
        traces::write(&traces, &file).unwrap();
        file.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn help_of_every_command_has_examples() {
    for arguments in [
        &["--help"][..],
        &["demo", "--help"],
        &["eval", "--help"],
        &["info", "--help"],
        &["pool-study", "--help"],
        &["pipeline-bench", "--help"],
        &["lengths", "--help"],
        &["match", "--help"],
        &["record", "--help"],
        &["bench-report", "--help"],
    ] {
        let output = psa(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(text(&output.stdout).contains("Examples:\n  psa "), "{arguments:?}");
    }
}

#[cfg(unix)]
#[test]
fn the_model_s_commands_are_passed_to_the_program_beside() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new("beside");
    let program = folder.0.join("psa");
    std::fs::copy(env!("CARGO_BIN_EXE_psa"), &program).unwrap();
    for name in ["generate", "perplexity", "needles", "serve-bench"] {
        let output = Command::new(&program).args([name, "--help"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let error = text(&output.stderr);
        assert!(error.contains("psa-model") && error.contains("cargo build"), "{error}");
    }
    let model = folder.0.join("psa-model");
    std::fs::write(&model, "#!/bin/sh\necho \"$@\"\nexit 130\n").unwrap();
    std::fs::set_permissions(&model, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output =
        Command::new(&program).args(["generate", "--prompt", "a b", "-n", "3", "--help"]).output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(text(&output.stdout), "generate --prompt a b -n 3 --help\n");
}

#[test]
fn eval_prints_a_record_a_case_and_policy_and_then_one_over_all() {
    let output = psa(&[
        "eval",
        "--traces",
        BUNDLED,
        "--policy",
        "dense",
        "--policy",
        "quest:0.5",
        "--queries",
        "1",
        "--json",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(output.stderr.is_empty(), "no progress without a terminal: {}", text(&output.stderr));
    let records = json_lines(&output);
    let names: Vec<String> = records.iter().map(|r| format!("{} {}", r["policy"], r["case"])).collect();
    assert_eq!(records.len(), 2 * (8 + 1));
    assert_eq!((names[0].as_str(), names[8].as_str()), ("\"dense\" \"case0\"", "\"dense\" \"all\""));
    assert_eq!((names[9].as_str(), names[17].as_str()), ("\"quest:0.5\" \"case0\"", "\"quest:0.5\" \"all\""));
    assert_eq!(records[8]["queries"], 8);
    assert_eq!(records[8]["kv_fraction"], 1.0);
    assert_eq!(records[8]["missed_mass"], serde_json::json!({"mean": 0.0, "p99": 0.0, "max": 0.0}));
    assert_eq!(records[8]["certified_fraction"], serde_json::Value::Null);
    assert_eq!(records[17]["kv_fraction"], 0.5);
    assert!(records[17]["missed_mass"]["max"].as_f64().unwrap() > 0.0);
}

#[test]
fn eval_is_a_table_with_units_without_json_and_tells_its_progress_on_request() {
    let output = psa(&["eval", "--traces", BUNDLED, "--case", "case5", "--queries", "2", "--progress"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    for word in ["KV read %", "time ms", "dense", "progressive:0.95", "oracle:0.95", "case5", "all"] {
        assert!(table.contains(word), "{word:?} not in\n{table}");
    }
    assert!(text(&output.stderr).contains("case5 done, 1 of 1"), "{}", text(&output.stderr));
}

/// The blocks read do not depend on who computes, and the emulator's schedule changes nothing.
#[test]
fn all_backends_read_the_same_blocks() {
    let blocks = |backend: &str, seed: &str| {
        let output = psa(&[
            "eval",
            "--traces",
            BUNDLED,
            "--case",
            "case5",
            "--queries",
            "1",
            "--policy",
            "progressive:0.9",
            "--mirror",
            "4",
            "--backend",
            backend,
            "--seed",
            seed,
            "--json",
        ]);
        assert_eq!(output.status.code(), Some(0), "{backend}: {}", text(&output.stderr));
        let record = json_lines(&output).remove(0);
        assert_eq!(record["backend"], backend);
        (record["blocks_read"].clone(), record["missed_mass"].clone())
    };
    let want = blocks("cpu", "0");
    assert_eq!(blocks("reference", "0"), want);
    assert_eq!(blocks("emulator", "0"), want);
    assert_eq!(blocks("emulator", "7"), want);
}

#[test]
fn bad_input_ends_with_2_and_says_what_to_do() {
    let table: &[(&[&str], &[&str])] = &[
        (&["eval"], &["--traces"]),
        (&["eval", "--traces", "nowhere.safetensors"], &["nowhere.safetensors", "psa-traces-v1"]),
        (
            &["eval", "--traces", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")],
            &["Cargo.json", "beside"],
        ),
        (&["eval", "--traces", BUNDLED, "--case", "case9"], &["\"case9\"", "case0, case1"]),
        (&["eval", "--traces", BUNDLED, "--policy", "certified:1"], &["certified:1", "below 1"]),
        (
            &["eval", "--traces", BUNDLED, "--policy", "certified:0.1", "--mirror", "mean", "--queries", "1"],
            &["certified:0.1", "mean mirror", "bounds scores"],
        ),
        (&["eval", "--traces", BUNDLED, "--policy", "top-k"], &["top-k:0.1 or top-k:64"]),
        (&["eval", "--traces", BUNDLED, "--mirror", "3"], &["\"3\"", "1, 2, 4, 8"]),
        (&["eval", "--traces", BUNDLED, "--mirror", "box"], &["progressive:0.95", "2 or 4 bits"]),
        (&["eval", "--traces", BUNDLED, "--unit", "48"], &["16, 32 or 64"]),
        (&["eval", "--traces", BUNDLED, "--quant-group", "48"], &["32, 64, 128 or 256"]),
        (&["eval", "--traces", BUNDLED, "--recent", "200000"], &["0 to 131072"]),
        (&["eval", "--traces", BUNDLED, "--queries", "0"], &["at least one query"]),
        (
            &["eval", "--traces", BUNDLED, "--backend", "cuda"],
            &["there is no CUDA driver library", "install the NVIDIA driver", "emulator"],
        ),
        (&["eval", "--traces", BUNDLED, "--backend", "tpu"], &["cpu, emulator, cuda, reference"]),
        (
            &[
                "eval",
                "--traces",
                BUNDLED,
                "--backend",
                "emulator",
                "--policy",
                "oracle:0.9",
                "--queries",
                "1",
            ],
            &["oracle:0.9 does not run on emulator", "use the cpu"],
        ),
        (
            &["eval", "--traces", BUNDLED, "--backend", "emulator", "--quant-group", "32", "--queries", "1"],
            &["2 in groups of 32 does not run on emulator", "groups of 64", "cpu and reference"],
        ),
        (
            &["eval", "--traces", BUNDLED, "--backend", "emulator", "--unit", "32", "--queries", "1"],
            &["unit of 32 tokens does not run on emulator", "units of 16"],
        ),
        (&["demo", "--out", "/no/such/folder/x.svg"], &["/no/such/folder/x.svg", "--out"]),
        (&["demo", "--traces", "nowhere.safetensors"], &["nowhere.safetensors"]),
        (&["fly", "--prompt", "x"], &["unrecognized subcommand", "fly"]),
        (&[], &["Usage", "demo", "eval", "info"]),
    ];
    for (arguments, words) in table {
        let output = psa(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments:?} prints to stdout");
        for word in *words {
            assert!(stderr.contains(word), "{arguments:?}: {word:?} not in: {stderr}");
        }
    }
}

#[test]
fn traces_that_contradict_themselves_are_refused_or_called_bad() {
    let folder = Folder::new("contradict");
    let file = folder.traces(|traces| traces.scale = 0.25);
    let output = psa(&["eval", "--traces", &file]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("scale 0.25"), "{}", text(&output.stderr));

    // Queries and keys agree with lse, but the outputs are of other values: the work is done, the answer bad.
    let file = folder.traces(|traces| traces.cases[0].out.reverse());
    let output = psa(&["eval", "--traces", &file, "--policy", "dense", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(json_lines(&output).len(), 2);
    assert!(text(&output.stderr).contains("dense attention on case0"), "{}", text(&output.stderr));
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_psa"))
        .args(["eval", "--traces", BUNDLED, "--queries", "1", "--json", "--policy", "dense"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

#[test]
fn demo_writes_its_picture_where_it_runs_and_checks_the_ptx() {
    let folder = Folder::new("demo");
    let file = folder.traces(|_| ());
    let demo = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_psa"));
        command.current_dir(&folder.0).args(["demo", "--traces", &file]).args(more).output().unwrap()
    };
    let output = demo(&[]);
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    let said = text(&output.stdout);
    let claims = [
        "12 of 12 decode steps read the CPU's blocks",
        "OK: dense attention",
        "Picture: psa-demo.svg",
        "total %",
    ];
    for claim in claims {
        assert!(said.contains(claim), "{claim:?} not in\n{said}");
    }
    let picture = std::fs::read_to_string(folder.0.join("psa-demo.svg")).unwrap();
    assert!(picture.starts_with("<?xml") && picture.trim_end().ends_with("</svg>"));

    let output = demo(&["--json", "--no-emulator", "--out", "other.svg"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let records = json_lines(&output);
    let verdict = records.last().unwrap();
    assert_eq!(verdict["dense_reproduces_recorded_outputs"], true);
    assert_eq!(verdict["emulator"], serde_json::Value::Null);
    assert_eq!(verdict["picture"], "other.svg");
    assert!(folder.0.join("other.svg").exists());
    let tuned = records.iter().filter(|record| record["tuned_to"] == "missed_mass.p99").count();
    assert_eq!((records.len(), tuned), (7 + 3 + 1, 3));
}

#[test]
fn info_names_devices_kernels_and_limits() {
    let output = psa(&["info", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let info = json_lines(&output).remove(0);
    let names: Vec<_> = info["devices"].as_array().unwrap().iter().map(|d| d["name"].clone()).collect();
    assert_eq!(names, ["cpu", "reference", "emulator", "cuda"]);
    let kernels = info["kernels"].as_array().unwrap();
    assert_eq!(kernels.len(), kernels_gpu::kernels().len());
    assert!(kernels.iter().all(|k| k["threads"].as_u64() > Some(0) && k["params"].is_array()));
    assert_eq!(info["ptx"]["target"], "sm_80");
    assert_eq!(info["limits"]["max_context_tokens"], 1_048_576);
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));

    let output = psa(&["info"]);
    for word in ["cpu", "there is no CUDA driver library", "attend", "1048576 tokens"] {
        assert!(text(&output.stdout).contains(word), "{word}");
    }
}

#[test]
fn bench_report_draws_made_up_timings_and_says_that_they_are_made_up() {
    let folder = Folder::new("bench-report");
    let step = |policy: &str, tokens: u64, us: f64| {
        serde_json::json!({"part": "time", "device": "no device", "by": "psa", "what": "step", "policy": policy,
            "batch": 1, "tokens": tokens, "group": 4, "median_us": us, "copy_share": 0.5, "made_up": true})
    };
    let records = [step("dense", 4096, 40.0), step("top-k:0.1", 4096, 20.0), step("dense", 8192, 80.0)];
    let results = folder.0.join("results.json");
    let whole = serde_json::json!({"schema": "psa-gpu-results-v1", "records": records});
    std::fs::write(&results, whole.to_string()).unwrap();
    let picture = folder.0.join("report.svg");
    let (file, out) = (results.to_str().unwrap(), picture.to_str().unwrap());
    let output = psa(&["bench-report", file, "--out", out]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert!(said.contains("MADE-UP") && said.contains("2.00") && said.contains(out), "{said}");
    assert!(std::fs::read_to_string(&picture).unwrap().contains("MADE-UP"));

    // What cannot be drawn is named, with what would do.
    let empty = folder.0.join("empty.json");
    std::fs::write(&empty, "{\"records\": []}").unwrap();
    let missing = folder.0.join("missing.json");
    for (file, reason) in [(empty, "no timing of a step"), (missing, "No such file")] {
        let output = psa(&["bench-report", file.to_str().unwrap(), "--out", out]);
        assert_eq!(output.status.code(), Some(2));
        let said = text(&output.stderr);
        assert!(said.contains(reason) && said.contains("psa-gpu time --json"), "{said}");
    }
}

#[test]
fn telemetry_of_eval_adds_up_to_its_records_and_audits_to_its_missed_mass() {
    let folder = Folder::new("telemetry");
    let file = |name: &str| folder.0.join(name).display().to_string();
    let run = |more: &[&str]| {
        let mut arguments = vec!["eval", "--traces", BUNDLED, "--case", "case2", "--queries", "6", "--json"];
        arguments.extend(["--policy", "progressive:0.9", "--policy", "certified:0.1", "--mirror", "4"]);
        arguments.extend(more);
        let output = psa(&arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        json_lines(&output)
    };
    let (lines, picture) = (file("steps.jsonl"), file("audit.svg"));
    let records = run(&["--telemetry", &lines, "--audit", "1", "--calibration", &picture]);
    let lines: Vec<serde_json::Value> = std::fs::read_to_string(lines)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for record in records.iter().filter(|record| record["case"] == "case2") {
        let of = |kind: &str| {
            let mine = lines.iter().filter(|line| line["policy"] == record["policy"] && line["kind"] == kind);
            mine.cloned().collect::<Vec<_>>()
        };
        assert_eq!((of("read").len(), of("audit").len(), of("totals").len()), (6, 6, 1));
        let sum = |field: &str| of("read").iter().map(|line| line[field].as_u64().unwrap()).sum::<u64>();
        for field in ["blocks_read", "blocks_total"] {
            assert_eq!(record[field].as_u64(), Some(sum(field)));
            assert_eq!(of("totals")[0][field].as_u64(), Some(sum(field)));
        }
        for field in ["mean", "p99", "max"] {
            let (audit, truth) = (&record["audit"]["missed_mass"][field], &record["missed_mass"][field]);
            // Two f64 sums of 4,096 terms.
            assert!((audit.as_f64().unwrap() - truth.as_f64().unwrap()).abs() < 1e-11, "{audit} {truth}");
        }
    }
    assert!(std::fs::read_to_string(&picture).unwrap().contains("believed = true"));

    // The sample depends on the seed; the counters do not; the name may say nothing if an option does.
    let counters = |seed: &str, name: &str| {
        let path = file(name);
        let more = ["--telemetry", path.as_str(), "--telemetry-format", "prometheus", "--audit", "0.5"];
        let records = run(&[&more[..], &["--seed", seed]].concat());
        let text = std::fs::read_to_string(&path).unwrap();
        let read: Vec<String> = text
            .lines()
            .filter(|line| line.starts_with("psa_blocks_read_total{"))
            .map(str::to_owned)
            .collect();
        (records[0]["audit"]["heads"].as_u64(), records[0]["audit"].to_string(), read)
    };
    let (one, again, other) = (counters("1", "a"), counters("1", "b.txt"), counters("2", "c"));
    assert_eq!(one, again);
    assert_eq!((one.2.len(), &one.2), (2, &other.2));
    assert_ne!(one.1, other.1);
}

#[test]
fn files_that_cannot_be_written_are_named_before_the_run() {
    let folder = Folder::new("unwritable");
    let missing = folder.0.join("no/such/folder/x.jsonl").display().to_string();
    let nameless = folder.0.join("steps").display().to_string();
    for (arguments, words) in [
        (&["--telemetry", missing.as_str()][..], [missing.as_str(), "--telemetry"]),
        (&["--audit", "1", "--calibration", missing.as_str()], [missing.as_str(), "--calibration"]),
        (&["--telemetry", nameless.as_str()], [nameless.as_str(), "--telemetry-format"]),
        (&["--audit", "1.5"], ["1.5", "0 to 1"]),
        (&["--audit", "NaN"], ["NaN", "0 to 1"]),
        (&["--calibration", nameless.as_str()], ["--audit", "--calibration"]),
    ] {
        // No traces: whoever gets as far as reading them fails with their name.
        let mut all = vec!["eval", "--traces", "/there/are/no/traces.safetensors"];
        all.extend(arguments);
        let output = psa(&all);
        let error = text(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{error}");
        assert!(words.iter().all(|word| error.contains(word)) && !error.contains("there/are/no"), "{error}");
    }
    assert!(!folder.0.join("steps").exists());
}

#[test]
fn pool_study_prints_a_record_a_policy_and_capacity_and_draws_a_picture() {
    let folder = Folder::new("pool-study");
    let file = folder.0.join("p.svg").display().to_string();
    let small =
        ["pool-study", "--traces", BUNDLED, "--case", "case0", "--capacity", "0.5", "--sequences", "1"];
    let output = psa(&[&small[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let records = json_lines(&output);
    for policy in
        ["lru-equal-shares", "lru-demand-shares", "lru", "clock", "frequency", "score-weighted", "belady"]
    {
        let record = records.iter().find(|record| record["policy"] == policy).unwrap();
        assert_eq!(record["capacity"], 0.5);
        assert!(record["miss_rate"].as_f64().is_some_and(|rate| (0.0..1.0).contains(&rate)), "{record}");
        assert!(record["mb_per_token"].is_f64(), "{record}");
    }
    let output = psa(&[&small[..], &["--out", &file]].concat());
    assert!(text(&output.stdout).contains("picture: "), "{}", text(&output.stderr));
    assert!(std::fs::read_to_string(&file).unwrap().ends_with("</svg>\n"));
    for wrong in [["--capacity", "0"], ["--capacity", "1.5"], ["--decay", "nan"], ["--warm-up", "400"]] {
        let output = psa(&[&["pool-study", "--json"][..], &wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{wrong:?}");
    }
}

#[test]
fn pipeline_bench_prints_a_record_a_scheme_and_its_picture_and_trace() {
    let folder = Folder::new("pipeline-bench");
    let small = ["pipeline-bench", "--steps", "2", "--tokens", "320", "--capacity", "0.75"];
    let output = psa(&[&small[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let records = json_lines(&output);
    let schemes: Vec<&str> = records.iter().map(|r| r["scheme"].as_str().unwrap()).collect();
    assert_eq!(schemes, ["resident", "serial", "pipelined"]);
    for record in &records {
        for field in ["miss_rate", "launches_per_layer", "hidden_fraction", "modelled_us", "fetch_us"] {
            assert!(record[field].is_number(), "{field} in {record}");
        }
        assert_eq!((&record["model"], &record["same_bits"]), (&"h100".into(), &true.into()));
        assert_eq!(record["allocations_per_step"], 0.0);
    }
    let syncs = |i: usize| records[i]["host_syncs_per_step"].as_f64().unwrap();
    assert_eq!((syncs(0), syncs(2)), (0.0, 0.0));
    assert!(syncs(1) > 2.0, "the naive scheme waits: {}", syncs(1));
    let us = |i: usize| records[i]["modelled_us"].as_f64().unwrap();
    assert!(us(0) < us(2) && us(2) < us(1), "{records:?}");

    let [svg, trace] = ["a.svg", "a.json"].map(|name| folder.0.join(name).display().to_string());
    let output = psa(&[&small[..], &["--out", &svg, "--trace", &trace]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("nothing is timed"), "{}", text(&output.stdout));
    assert!(std::fs::read_to_string(svg).unwrap().contains("nothing here was timed"));
    let trace: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(trace).unwrap()).unwrap();
    assert!(trace["traceEvents"].as_array().unwrap().len() > 20);

    for (wrong, word) in [
        (["--steps", "40"], "queries"),
        (["--tokens", "60"], "--tokens"),
        (["--traces", "no.safetensors"], "no.safetensors"),
        (["--device", "abacus"], "gh200"),
    ] {
        let output = psa(&[&["pipeline-bench"][..], &wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(text(&output.stderr).contains(word), "{wrong:?}: {}", text(&output.stderr));
    }
    let output = psa(&["pipeline-bench", "--steps", "2", "--tokens", "320", "--capacity", "0.01"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("open groups"), "{}", text(&output.stderr));
}
