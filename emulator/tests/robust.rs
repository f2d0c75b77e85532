//! No text and no launch file makes the parser, the loader or the machine panic, hang or take memory
//! without bound: what the fuzz targets do, over their corpus and over thousands of mutations of valid
//! input. The mutations are a function of a number, so a failure is the same on every machine.

mod common;
#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code)]
mod fuzz;

use common::bench::Rng;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Mutations of each seed: a few hundred, or what `PTX_EMU_CASES` says for a longer search.
fn cases(usual: u64) -> u64 {
    std::env::var("PTX_EMU_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// No case takes longer, on a machine however slow: the slowest takes some 20 ms on one core.
const LONGEST: Duration = Duration::from_secs(20);

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|p| (p.clone(), std::fs::read(p).unwrap())).collect()
}

/// Valid modules to be mutated: small ones, so that a mutation hits something.
fn modules() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = corpus("run").into_iter().map(|(_, d)| d).collect();
    for text in [
        include_str!("data/rust_sum.ptx"),
        include_str!("cuda/calls.ptx"),
        include_str!("cuda/mbarrier.ptx"),
        include_str!("cuda/mma.ptx"),
        include_str!("cuda/pipeline.ptx"),
        include_str!("cuda/print.ptx"),
        include_str!("cuda/scan.ptx"),
        include_str!("cuda/switches.ptx"),
    ] {
        all.push(text.as_bytes().to_vec());
    }
    all
}

/// Words, numbers and single characters, blanks left out.
fn tokens(text: &[u8]) -> Vec<(usize, usize)> {
    let word = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.');
    let mut out = Vec::new();
    let mut i = 0;
    while i < text.len() {
        let start = i;
        i += 1;
        if word(text[start]) {
            while i < text.len() && word(text[i]) {
                i += 1;
            }
        } else if text[start].is_ascii_whitespace() {
            continue;
        }
        out.push((start, i));
    }
    out
}

/// Values at which sizes, offsets and shifts go over an edge.
const EDGES: [&str; 14] = [
    "0",
    "-1",
    "1",
    "31",
    "32",
    "4294967295",
    "2147483648",
    "0x8000000000000000",
    "18446744073709551615",
    "1048577",
    "65536",
    "0f7F800000",
    "{",
    "}",
];

fn mutate_bytes(text: &mut Vec<u8>, rng: &mut Rng) {
    let mut below = |n: usize| (rng.next() % n.max(1) as u64) as usize;
    for _ in 0..1 + below(4) {
        let at = below(text.len());
        let end = (at + 1 + below(12)).min(text.len());
        match below(5) {
            0 if at < text.len() => text[at] ^= 1 << below(7),
            1 => drop(text.drain(at..end)),
            2 => {
                let piece = text[at..end].to_vec();
                let to = below(text.len());
                text.splice(to..to, piece);
            }
            3 if at < text.len() => text[at] = below(128) as u8,
            _ => text.truncate(if below(8) == 0 { at } else { text.len() }),
        }
    }
}

fn mutate_tokens(text: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..1 + rng.next() % 3 {
        let toks = tokens(text);
        if toks.is_empty() {
            return;
        }
        let mut pick = |n: usize| (rng.next() % n as u64) as usize;
        let (a, b) = (toks[pick(toks.len())], toks[pick(toks.len())]);
        let other = text[b.0..b.1].to_vec();
        match pick(6) {
            0 => drop(text.splice(a.0..a.1, other)),
            1 => drop(text.splice(a.0..a.1, EDGES[pick(EDGES.len())].bytes())),
            2 => drop(text.drain(a.0..a.1)),
            3 => {
                // A statement is dropped, or doubled elsewhere.
                let from = text[..a.0].iter().rposition(|&c| c == b';').map_or(0, |i| i + 1);
                let to = text[a.0..].iter().position(|&c| c == b';').map_or(text.len(), |i| a.0 + i + 1);
                let piece = text[from..to].to_vec();
                if pick(2) == 0 {
                    text.drain(from..to);
                } else if let Some(at) = text[b.0..].iter().position(|&c| c == b';') {
                    let at = b.0 + at + 1;
                    text.splice(at..at, piece);
                }
            }
            4 => {
                // Another register or number of the same beginning.
                let like: Vec<_> = toks.iter().filter(|t| text[t.0] == text[a.0] && t.1 - t.0 > 1).collect();
                if let Some(&&(from, to)) = like.get(pick(like.len().max(1))) {
                    let piece = text[from..to].to_vec();
                    text.splice(a.0..a.1, piece);
                }
            }
            _ => {
                // One suffix of an opcode more, or less.
                let at = text[a.0..a.1].iter().rposition(|&c| c == b'.').map_or(a.1, |i| a.0 + i);
                text.drain(at..a.1);
            }
        }
    }
}

/// Runs one case; a panic or a hang is reported with the input, which is kept.
fn case<T>(name: &str, data: &[u8], f: impl Fn(&[u8]) -> T + std::panic::RefUnwindSafe) -> T {
    let start = Instant::now();
    let result = catch_unwind(|| f(data));
    let keep = || {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("robust-{name}"));
        std::fs::write(&path, data).unwrap();
        path
    };
    assert!(start.elapsed() < LONGEST, "{name} took {:?}: {}", start.elapsed(), keep().display());
    match result {
        Ok(v) => v,
        Err(_) => panic!("{name} panicked on {}", keep().display()),
    }
}

#[test]
fn the_corpus_of_the_fuzz_targets_is_an_error_or_a_run() {
    for (path, data) in corpus("parse") {
        case(&format!("parse-{}", path.file_name().unwrap().display()), &data, fuzz::parse);
    }
    for (path, data) in corpus("run") {
        assert!(fuzz::run(&data) > 0, "{}: a seed of `run` runs", path.display());
    }
    let mut clean = 0;
    for (path, data) in corpus("launch") {
        clean += usize::from(case(
            &format!("launch-{}", path.file_name().unwrap().display()),
            &data,
            fuzz::launch,
        ));
    }
    assert!(clean > 0, "some launch of the corpus runs");
}

#[test]
fn thousands_of_mutated_modules_are_an_error_or_a_run() {
    let modules = modules();
    let (mut ran, mut tried) = (0, 0);
    for (m, module) in modules.iter().enumerate() {
        for n in 0..cases(250) {
            let mut rng = Rng((m as u64) << 32 | n);
            let mut text = module.clone();
            if n % 3 == 0 {
                mutate_bytes(&mut text, &mut rng);
            } else {
                mutate_tokens(&mut text, &mut rng);
            }
            tried += 1;
            ran += usize::from(case(&format!("run-{m}-{n}"), &text, fuzz::run) > 0);
            fuzz::parse(&text);
        }
    }
    // Mutations that only ever end in the parser would test nothing behind it.
    assert!(ran * 5 > tried, "{ran} of {tried} have a kernel that runs");
}

#[test]
fn thousands_of_mutated_launch_files_are_an_error_or_a_run() {
    let seeds = corpus("launch");
    let mut ran = 0;
    for (s, (_, seed)) in seeds.iter().enumerate() {
        for n in 0..cases(400) {
            let mut rng = Rng(1 << 60 | (s as u64) << 32 | n);
            let mut json = seed.clone();
            if n % 2 == 0 {
                mutate_bytes(&mut json, &mut rng)
            } else {
                mutate_tokens(&mut json, &mut rng)
            }
            ran += usize::from(case(&format!("launch-{s}-{n}"), &json, fuzz::launch));
        }
    }
    assert!(ran > 10, "{ran} ran");
}

#[test]
fn any_text_is_an_error_or_a_module() {
    let mut rng = Rng(3);
    let alphabet: Vec<char> =
        "{}()[];:,.@!%$_|<>-+=\"/*\n\t 0123456789abfxrdp\u{e9}\u{1F600}".chars().collect();
    for n in 0..4000 {
        let len = rng.next() % 120;
        let text: String =
            (0..len).map(|_| alphabet[(rng.next() % alphabet.len() as u64) as usize]).collect();
        case(&format!("text-{n}"), text.as_bytes(), fuzz::parse);
        let module = format!(".version 7.8\n.target sm_80\n.visible .entry k() {{ {text}");
        case(&format!("body-{n}"), module.as_bytes(), fuzz::parse);
    }
}
