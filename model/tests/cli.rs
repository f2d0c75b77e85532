//! The commands as others run them, on a small made-up model: records, exit codes, what survives a kill.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Folder, Variant};
use serde_json::Value;

struct Program {
    folder: Folder,
    model: PathBuf,
}

impl Program {
    fn new(name: &str) -> Program {
        let folder = Folder::new(name);
        let model = folder.model(&Variant::default());
        Program { folder, model }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_psa-model"));
        command.args(arguments).arg("--model").arg(&self.model).current_dir(&self.folder.0);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn text(&self, words: usize) -> String {
        let text: String =
            (0..words).map(|i| format!("the {} ", ["thin", "other", "42", "x"][i * i % 7 % 4])).collect();
        std::fs::write(self.folder.0.join("text.txt"), &text).unwrap();
        text
    }
}

fn records(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn refused(output: &Output, parts: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(output.stdout.is_empty());
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
}

#[test]
fn help_of_every_command_has_examples() {
    for command in ["generate", "perplexity", "needles", "serve-bench"] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_psa-model")).args([command, "--help"]).output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("Examples:\n  psa "), "{command}");
    }
}

#[test]
fn generate_gives_the_same_text_for_the_same_seed_and_says_what_was_read() {
    let program = Program::new("cli-generate");
    program.text(60);
    let arguments = [
        "generate",
        "--prompt-file",
        "text.txt",
        "-n",
        "20",
        "--temperature",
        "30",
        "--ignore-end",
        "--json",
        "--seed",
    ];
    let with = |seed: &str| records(&program.run(&[&arguments[..], &[seed]].concat())).remove(0);
    let (a, b, other) = (with("5"), with("5"), with("6"));
    assert_eq!((&a["text"], &a["tokens"]), (&b["text"], &b["tokens"]));
    assert_ne!(a["tokens"], other["tokens"]);
    assert_eq!(a["new_tokens"], 20);
    for field in
        ["prompt_tokens", "prefill_ms", "decode_ms", "tokens_per_s", "kv_fraction", "metadata_fraction"]
    {
        assert!(a[field].as_f64().is_some(), "{field}: {a}");
    }
    assert_eq!(a["interrupted"], false);
}

#[test]
fn the_streamed_text_is_the_text_of_the_record() {
    let program = Program::new("cli-stream");
    let arguments = ["generate", "--prompt", "the thing", "-n", "12", "--ignore-end", "--policy", "dense"];
    let streamed = program.run(&arguments);
    let record = records(&program.run(&[&arguments[..], &["--json"]].concat())).remove(0);
    assert_eq!(
        std::str::from_utf8(&streamed.stdout).unwrap(),
        format!("{}\n", record["text"].as_str().unwrap())
    );
}

#[test]
fn bad_requests_end_with_2_and_the_remedy() {
    let program = Program::new("cli-bad");
    program.text(10);
    let generate = |more: &[&str]| program.run(&[&["generate"], more].concat());
    refused(&generate(&["--prompt", ""]), &["empty"]);
    refused(&generate(&["--prompt", "x", "-n", "1100"]), &["1024", "shorten"]);
    refused(&generate(&["--prompt", "x", "--chat"]), &["ChatML"]);
    refused(&generate(&["--prompt-file", "missing.txt"]), &["missing.txt"]);
    refused(&generate(&["--prompt", "x", "--policy", "best:3"]), &["best:3"]);
    refused(&generate(&["--prompt", "x", "--report", "no/such/folder/r.html"]), &["r.html", "--report"]);
    refused(&generate(&["--prompt", "x", "--mirror", "box"]), &["box"]);
    let perplexity = |more: &[&str]| {
        program.run(&[&["perplexity", "--text", "text.txt", "--policy", "dense"], more].concat())
    };
    refused(&perplexity(&["--context", "300", "--queries", "8"]), &["text.txt", "301", "longer"]);
    refused(&perplexity(&["--context", "8", "--queries", "8"]), &["--queries 8"]);
    refused(&perplexity(&["--context", "1100"]), &["1100", "1024"]);
    std::fs::write(program.folder.0.join("other.csv"), "a,b\n").unwrap();
    let more = ["--context", "20", "--queries", "4", "--results", "other.csv"];
    refused(&perplexity(&more), &["other.csv", "line 1", "--results"]);
    refused(&program.run(&["needles", "--policy", "dense", "--context", "100"]), &["512"]);
    // The made-up model spells every letter.
    refused(&program.run(&["needles", "--policy", "dense", "--context", "512"]), &["too short", "needles"]);
    let output = Command::new(env!("CARGO_BIN_EXE_psa-model"))
        .args(["generate", "--prompt", "x"])
        .current_dir(&program.folder.0)
        .env("PSA_MODEL", "missing.gguf")
        .output()
        .unwrap();
    refused(&output, &["missing.gguf", "setup --for model"]);
}

const PERPLEXITY: [&str; 13] = [
    "perplexity",
    "--text",
    "text.txt",
    "--context",
    "260",
    "--queries",
    "12",
    "--policy",
    "progressive:0.8",
    "--policy",
    "quest:0.3",
    "--audit",
    "0.5",
];

#[test]
fn perplexity_compares_with_dense_and_a_larger_budget_is_nearer_to_it() {
    let program = Program::new("cli-perplexity");
    program.text(200);
    let more = ["--policy", "top-k:1.0", "--json", "--report", "page.html"];
    let all = records(&program.run(&[&PERPLEXITY[..], &more].concat()));
    let policies: Vec<&str> = all.iter().map(|record| record["policy"].as_str().unwrap()).collect();
    assert_eq!(policies, ["dense", "progressive:0.8", "quest:0.3", "top-k:1.0"]);
    let kl = |i: usize| all[i]["kl"]["mean"].as_f64().unwrap();
    assert_eq!((kl(0), kl(3)), (0.0, 0.0), "reading everything is dense attention");
    assert!(kl(1) > 0.0 && kl(2) > kl(1), "{} {}", kl(1), kl(2));
    assert!(all[1]["kv_fraction"].as_f64().unwrap() < 1.0);
    // The rule keeps what it promises, but for the error of the estimate, which is small here.
    assert!(all[1]["missed_mass"]["mean"].as_f64().unwrap() < 0.2, "{}", all[1]["missed_mass"]);
    assert!(all[2]["missed_mass"]["mean"].as_f64() > all[1]["missed_mass"]["mean"].as_f64());
    let page = std::fs::read_to_string(program.folder.0.join("page.html")).unwrap();
    assert!(page.contains("</html>") && page.matches("<svg").count() >= 9, "{}", page.len());
    assert!(!page.contains("<script") && !page.contains("src="), "one self-contained file");
}

#[test]
fn a_killed_evaluation_goes_on_where_it_was() {
    let program = Program::new("cli-resume");
    program.text(200);
    let arguments = [&PERPLEXITY[..], &["--json", "--results", "run.jsonl"]].concat();
    let first = records(&program.run(&arguments));
    let file = program.folder.0.join("run.jsonl");
    // Killed in the middle of the third record: what stands in the first two is not computed again.
    let text = std::fs::read_to_string(&file).unwrap();
    let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
    let marked = text[..ends[1] + 40].replacen("\"wall_ms\":", "\"wall_ms\":-1,\"was\":", 2);
    std::fs::write(&file, marked).unwrap();
    let second = records(&program.run(&arguments));
    assert_eq!(second.len(), 3);
    assert_eq!((&second[0]["wall_ms"], &second[1]["wall_ms"]), (&Value::from(-1), &Value::from(-1)));
    assert!(second[2]["wall_ms"].as_f64().unwrap() > 0.0);
    for (a, b) in first.iter().zip(&second) {
        assert_eq!((&a["nll"], &a["kl"], &a["kv_fraction"]), (&b["nll"], &b["kl"], &b["kv_fraction"]));
    }
}

#[test]
fn needles_asks_every_task_of_every_policy() {
    let program = Program::new("cli-needles");
    let arguments = ["needles", "--context", "1000", "--samples", "1", "--policy", "top-k:0.5", "--json"];
    let output = program.run(&arguments);
    let all = records(&output);
    assert_eq!(all.len(), 4, "two records and two sums");
    let tasks: Vec<&str> =
        all[0]["questions"].as_array().unwrap().iter().map(|q| q["task"].as_str().unwrap()).collect();
    assert_eq!(tasks.iter().filter(|task| **task == "multi-key").count(), 4);
    assert!(["single", "multi-value", "variables"].iter().all(|task| tasks.contains(task)));
    let sum = all.iter().find(|record| record["case"] == "all" && record["policy"] == "top-k:0.5").unwrap();
    assert!(
        sum["kv_fraction"].as_f64().unwrap() < 0.7 && sum["found"]["all"].as_str().unwrap().ends_with("of 9"),
        "{sum}"
    );
}

#[test]
fn serve_bench_serves_every_request_under_every_policy() {
    let program = Program::new("cli-serve");
    let arguments = [
        "serve-bench",
        "--policy",
        "dense",
        "--policy",
        "progressive:0.7",
        "--prompt-tokens",
        "300",
        "-n",
        "6",
        "--requests",
        "4",
        "--batch",
        "2",
        "--rate",
        "50",
        "--rounds",
        "2",
        "--json",
    ];
    for prefill in ["here", "elsewhere"] {
        let all = records(&program.run(&[&arguments[..], &["--prefill", prefill]].concat()));
        assert_eq!(all.len(), 2);
        for record in &all {
            assert_eq!(
                (&record["completed"], &record["rounds"]),
                (&Value::from(4), &Value::from(2)),
                "{record}"
            );
            for field in ["throughput_tokens_per_s", "kv_mb_per_token", "mean_batch", "throughput_ratio"] {
                assert!(record[field].as_f64().is_some_and(|x| x > 0.0), "{field}: {record}");
            }
            assert!(record["ttft_ms"]["p99"].as_f64() >= record["ttft_ms"]["p50"].as_f64());
        }
        assert_eq!(all[0]["throughput_ratio"], 1.0);
        assert!(all[1]["kv_fraction"].as_f64() < all[0]["kv_fraction"].as_f64());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_ends_cleanly_and_keeps_what_was_done() {
    let program = Program::new("cli-interrupt");
    let arguments =
        ["generate", "--prompt", "the thing", "-n", "500", "--ignore-end", "--json", "--audit", "1"];
    let child = program.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(|| catches_interrupts(child.id()));
    // SAFETY: a signal to a child that has not been waited for, so that its number is its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    // During the prefill there is nothing to report yet.
    if let Some(line) = std::str::from_utf8(&output.stdout).unwrap().lines().next() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert_eq!(record["interrupted"], true);
        assert!(record["new_tokens"].as_u64().unwrap() < 500);
    }
}

/// Whether the process has a handler for SIGINT (bit 1 of SigCgt).
#[cfg(target_os = "linux")]
fn catches_interrupts(process: u32) -> bool {
    let status =
        std::fs::read_to_string(Path::new("/proc").join(process.to_string()).join("status")).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).map_or("0", str::trim);
    u64::from_str_radix(mask, 16).unwrap() & 1 << (libc::SIGINT - 1) != 0
}

#[cfg(target_os = "linux")]
fn wait_for(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "it never happens");
        std::thread::sleep(Duration::from_millis(1));
    }
}
