//! `psa record` and `psa match` as others run them: dumps of every layout and type become the same
//! traces, made-up traces say so, policies are tuned where they are not compared.

use std::path::PathBuf;
use std::process::{Command, Output};

use half::f16;
use psa::traces::{Elements, Traces};
use safetensors::tensor::{Dtype, TensorView};

const BUNDLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/traces.safetensors");

fn psa(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_psa"))
        .args(arguments)
        .env("PSA_LIBCUDA", "/there/is/no/libcuda.so.1")
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A folder of this test's own, removed when it ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("psa-record-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Small numbers that f16 holds exactly, different everywhere.
fn value(seed: usize, i: usize) -> f32 {
    ((i * 37 + seed * 101) % 255) as f32 / 128.0 - 1.0
}

type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

/// 2 KV heads with 2 query heads each, 5 queries, 40 tokens, 64 channels.
fn dump(tokens_first: bool, f32_elements: bool, batch: bool) -> Vec<Tensor> {
    [("q", 4, 5), ("k", 2, 40), ("v", 2, 40)]
        .into_iter()
        .enumerate()
        .map(|(seed, (name, heads, tokens))| {
            let mut bytes = Vec::new();
            let mut push = |head: usize, token: usize| {
                for c in 0..64 {
                    let x = value(seed, (head * tokens + token) * 64 + c);
                    match f32_elements {
                        true => bytes.extend(x.to_le_bytes()),
                        false => bytes.extend(f16::from_f32(x).to_le_bytes()),
                    }
                }
            };
            let mut shape = if tokens_first { vec![tokens, heads, 64] } else { vec![heads, tokens, 64] };
            for i in 0..shape[0] {
                for j in 0..shape[1] {
                    if tokens_first { push(j, i) } else { push(i, j) }
                }
            }
            if batch {
                shape.insert(0, 1);
            }
            (name, if f32_elements { Dtype::F32 } else { Dtype::F16 }, shape, bytes)
        })
        .collect()
}

fn save(folder: &Folder, tensors: &[Tensor]) -> String {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    let file = folder.file("dump.safetensors");
    std::fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
    file
}

#[test]
fn dumps_of_every_layout_and_type_become_the_same_traces() {
    let folder = Folder::new("layouts");
    let mut first: Option<Traces> = None;
    for (tokens_first, f32_elements, batch) in
        [(false, false, false), (true, false, true), (false, true, true), (true, true, false)]
    {
        let from = save(&folder, &dump(tokens_first, f32_elements, batch));
        let to = folder.file("traces.safetensors");
        let layout = if tokens_first { "nhd" } else { "hnd" };
        let done = psa(&["record", "--from", &from, "--to", &to, "--layout", layout, "--queries", "3"]);
        assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
        let traces = Traces::load(to.as_ref()).unwrap();
        assert_eq!(traces.scale, 0.125);
        assert_eq!(traces.cases.len(), 2);
        let case = &traces.cases[1];
        assert_eq!((case.group, case.queries, case.context), (2, 3, 40));
        // The last three of five queries of heads 2 and 3; the keys of head 1.
        let Elements::F16(q) = &case.q else { panic!("{:?}", case.q) };
        assert_eq!(q[0].to_f32(), value(0, (2 * 5 + 2) * 64));
        assert_eq!(q[3 * 64].to_f32(), value(0, (3 * 5 + 2) * 64));
        assert_eq!(case.k.to_f64(0..1)[0], value(1, 40 * 64) as f64);
        match &first {
            None => first = Some(traces),
            Some(first) => assert_eq!(&traces, first, "{layout}, f32: {f32_elements}, batch: {batch}"),
        }
        // The answer is that of dense attention: eval says so, with exit code 0.
        let checked = psa(&["eval", "--traces", &to, "--policy", "dense"]);
        assert_eq!(checked.status.code(), Some(0), "{}", stderr(&checked));
    }
}

/// The dump with `heads` query heads of `tokens` queries.
fn resized(tensors: &[Tensor], heads: usize, tokens: usize) -> Vec<Tensor> {
    let mut tensors = tensors.to_vec();
    tensors[0].3 = (0..heads * tokens * 64).flat_map(|i| value(0, i).to_le_bytes()).collect();
    tensors[0].2 = vec![heads, tokens, 64];
    tensors
}

/// `heads` of `tokens` rows of `d` channels, in F32, BF16 or F16.
fn tensor(name: &'static str, dtype: Dtype, heads: usize, tokens: usize, d: usize) -> Tensor {
    let values = (0..heads * tokens * d).map(|i| value(name.len() + heads, i));
    let bytes = values.flat_map(|x| match dtype {
        Dtype::F32 => x.to_le_bytes().to_vec(),
        Dtype::F64 => (x as f64).to_le_bytes().to_vec(),
        Dtype::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
        _ => f16::from_f32(x).to_le_bytes().to_vec(),
    });
    (name, dtype, vec![heads, tokens, d], bytes.collect())
}

#[test]
fn odd_dumps_are_recorded_and_evaluated() {
    let folder = Folder::new("odd");
    let (from, to) = (folder.file("dump.safetensors"), folder.file("traces.safetensors"));
    for (q_heads, kv_heads, d, dtype, names) in [
        (1, 1, 128, Dtype::BF16, ["query", "key", "value"]),
        (8, 1, 64, Dtype::F32, ["layers.3.q", "layers.3.k", "layers.3.v"]),
        (6, 2, 128, Dtype::F16, ["model/0/Queries", "model/0/Keys", "model/0/Values"]),
        (5, 5, 64, Dtype::F64, ["attn_query_states", "attn_key_states", "attn_value_states"]),
        (7, 1, 64, Dtype::BF16, ["q", "k", "v"]),
    ] {
        // Of each length at which something changes: one token, one block, an open group, two pages.
        for (queries, tokens) in [(1, 1), (3, 16), (2, 65), (9, 200)] {
            let tensors = [
                tensor(names[0], dtype, q_heads, queries, d),
                tensor(names[1], dtype, kv_heads, tokens, d),
                tensor(names[2], dtype, kv_heads, tokens, d),
            ];
            assert_eq!(save(&folder, &tensors), from);
            let done = psa(&["record", "--from", &from, "--to", &to]);
            let what = format!("{names:?} {q_heads}/{kv_heads} {d} {dtype:?} {queries}/{tokens}");
            assert_eq!(done.status.code(), Some(0), "{what}: {}", stderr(&done));
            let traces = Traces::load(to.as_ref()).unwrap();
            assert_eq!(traces.cases.len(), kv_heads, "{what}");
            for case in &traces.cases {
                assert_eq!((case.group, case.queries, case.context), (q_heads / kv_heads, queries, tokens));
                assert_eq!(matches!(case.q, Elements::Bf16(_)), dtype == Dtype::BF16, "{what}");
            }
            for policy in ["dense", "progressive:0.9", "certified:0.1", "top-k:2"] {
                let done =
                    psa(&["eval", "--traces", &to, "--policy", policy, "--mirror", "2+2", "--audit", "1"]);
                assert_eq!(done.status.code(), Some(0), "{what} {policy}: {}", stderr(&done));
            }
        }
    }
}

#[test]
fn cases_of_different_sizes_share_a_file_and_a_table_of_lengths() {
    let folder = Folder::new("sizes");
    let mut tensors = vec![tensor("a.q", Dtype::F16, 3, 4, 64)];
    tensors.extend(
        [("a.k", 300, 64), ("a.v", 300, 64), ("b.q", 2, 128), ("b.k", 1100, 128), ("b.v", 1100, 128)]
            .map(|(name, tokens, d)| tensor(name, Dtype::F16, 1, tokens, d)),
    );
    let (from, to) = (save(&folder, &tensors), folder.file("traces.safetensors"));
    let done = psa(&["record", "--from", &from, "--to", &to]);
    assert_eq!(done.status.code(), Some(2), "two head_dims have two scales: {}", stderr(&done));
    assert!(stderr(&done).contains("one --scale for all"), "{}", stderr(&done));
    let done = psa(&["record", "--from", &from, "--to", &to, "--scale", "0.1"]);
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let done =
        psa(&["match", "--traces", &to, "--policy", "quest,progressive@2", "--quality", "missed_p99=0.2"]);
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    // The shorter one cannot be made longer: by itself the command stays below, and says so when told otherwise.
    let done = psa(&["lengths", "--traces", &to, "--policy", "progressive:0.9", "--json"]);
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let tokens = |done: &Output| -> Vec<u64> {
        let lines = std::str::from_utf8(&done.stdout).unwrap().lines();
        let json = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
        lines.map(|line| json(line)["tokens"].as_u64().unwrap()).collect()
    };
    assert_eq!(tokens(&done), [16, 64, 128, 256, 300]);
    let done = psa(&["lengths", "--traces", &to, "--lengths", "600"]);
    assert_eq!(done.status.code(), Some(2));
    for word in ["case0 has 300 tokens", "600", "at least 512", "--lengths"] {
        assert!(stderr(&done).contains(word), "{word}: {}", stderr(&done));
    }
    let done = psa(&["lengths", "--traces", &to, "--lengths", "64,600", "--case", "case1", "--json"]);
    assert_eq!(tokens(&done), [64, 64, 64, 600, 600, 600], "{}", stderr(&done));
    let done = psa(&["lengths", "--traces", BUNDLED, "--lengths", "2097152000", "--queries", "1"]);
    assert_eq!(done.status.code(), Some(2));
    assert!(stderr(&done).contains("bytes") && stderr(&done).contains("--lengths"), "{}", stderr(&done));
}

#[test]
fn bad_dumps_are_named_and_nothing_is_written() {
    let folder = Folder::new("bad");
    let to = folder.file("traces.safetensors");
    type Change = fn(&mut Vec<Tensor>);
    let cases: [(Change, &[&str]); 13] = [
        (|t| t.truncate(2), &["lacks v"]),
        (
            |t| *t = vec![("hidden", t[0].1, t[0].2.clone(), t[0].3.clone())],
            &["no tensor is named", "hidden"],
        ),
        (|t| t[0].2 = vec![5, 4, 64], &["5 heads", "multiple"]),
        (|t| t[1].2 = vec![2, 1, 40, 64], &["[2, 1, 40, 64]", "batch of 1"]),
        (|t| t[1].3[..4].copy_from_slice(&1e5f32.to_le_bytes()), &["k holds 100000", "--dtype bf16"]),
        (|t| t[2].3[4..8].copy_from_slice(&f32::NAN.to_le_bytes()), &["tensor v", "NaN", "[0, 0, 1]"]),
        // 4 heads of 5 queries as 5 heads of 4: the layout is the remedy.
        (|t| t[0].2 = vec![4 * 5 * 64], &["[1280]", "[tokens, head_dim]"]),
        (|t| t[0].2 = vec![5, 4, 64], &["--layout nhd"]),
        (
            |t| (t[0].2, t[1].2, t[2].2) = (vec![4, 10, 32], vec![2, 80, 32], vec![2, 80, 32]),
            &["head_dim 32", "64, 128"],
        ),
        (|t| *t = resized(t, 18, 5), &["query heads of a KV head 9", "1 to 8"]),
        (|t| *t = resized(t, 4, 41), &["q has 4 heads, 41 tokens", "a key for every query", "--layout nhd"]),
        (|t| t.push(("query", t[0].1, t[0].2.clone(), t[0].3.clone())), &["q and query are both q"]),
        (|t| t[1].1 = Dtype::I32, &["tensor k has element type I32", "F16, BF16, F32 or F64"]),
    ];
    for (change, expected) in cases {
        let mut tensors = dump(false, true, false);
        change(&mut tensors);
        let done = psa(&["record", "--from", &save(&folder, &tensors), "--to", &to]);
        assert_eq!(done.status.code(), Some(2), "{expected:?}");
        for text in expected {
            assert!(stderr(&done).contains(text), "{text}: {}", stderr(&done));
        }
    }
    assert!(!std::path::Path::new(&to).exists());
}

#[test]
fn made_up_traces_say_so() {
    let folder = Folder::new("made-up");
    let (short, long) = (folder.file("short.safetensors"), folder.file("long.safetensors"));
    let done = psa(&[
        "record",
        "--synthetic",
        "needle",
        "--tokens",
        "600",
        "--queries",
        "4",
        "--group",
        "2",
        "--to",
        &short,
    ]);
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    assert!(Traces::load(short.as_ref()).unwrap().origin.contains("synthetic needle"));
    let done = psa(&["record", "--extend", &short, "--tokens", "1500", "--to", &long]);
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let traces = Traces::load(long.as_ref()).unwrap();
    assert!(traces.origin.contains("by a model"), "{}", traces.origin);
    assert!(traces.cases.iter().all(|case| case.context == 1500));
    let refused = psa(&["record", "--synthetic", "needle", "--head-dim", "80", "--to", &short]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("supported: 64, 128"), "{}", stderr(&refused));
}

#[test]
fn policies_are_tuned_where_they_are_not_compared() {
    let matched = |split: &str| {
        let arguments = [
            "match",
            "--traces",
            BUNDLED,
            "--quality",
            "missed_p99=0.1",
            "--policy",
            "quest,progressive@2",
            "--queries",
            "4",
            "--split",
            split,
            "--json",
        ];
        let done = psa(&arguments);
        assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
        String::from_utf8(done.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .collect::<Vec<_>>()
    };
    let records = matched("halves");
    assert_eq!(records.len(), 3);
    for record in &records[..2] {
        assert_eq!(record["queries"], 32);
        assert_eq!(record["parameters"].as_array().unwrap().len(), 2);
        for quality in record["quality_where_tuned"].as_array().unwrap() {
            assert!(quality.as_f64().unwrap() <= 0.1);
        }
    }
    assert_eq!(records[1]["bytes_ratio"], 1.0);
    assert_eq!(records[2]["contender"], "dense");
    // Where it is the same cases, the quality is the one that was asked for.
    for record in &matched("none")[..2] {
        assert!(record["quality_where_compared"].as_f64().unwrap() <= 0.1);
        assert_eq!(record["quality_where_compared"], record["quality_where_tuned"][0]);
    }
}
