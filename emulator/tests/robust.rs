//! No text makes the parser or the machine panic or hang.

use proptest::prelude::*;
use ptx_emulator::{Arg, Device, LaunchConfig, Module, Options};

const PTX: &str = include_str!("data/rust_sum.ptx");

/// Returns how many kernels ran.
fn try_all(text: &str) -> usize {
    let mut ran = 0;
    let Ok(module) = Module::parse(text) else { return 0 };
    for k in module.kernels() {
        if module.check_kernel(&k.name).is_err() {
            continue;
        }
        let mut device = Device::new(Options { max_steps: 20_000, ..Options::default() });
        let Ok(p) = device.alloc_init(&[1; 512], "buffer") else { continue };
        let args: Vec<Arg> = k
            .params
            .iter()
            .map(|q| if q.size == 8 { Arg::Ptr(p) } else { Arg::Bytes(vec![3; q.size as usize]) })
            .collect();
        let config = LaunchConfig { grid: [2, 1, 1], block: [64, 1, 1], shared_bytes: 64 };
        ran += usize::from(device.launch(&module, &k.name, config, &args).is_ok());
    }
    ran
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_an_error_or_a_module(text in "\\PC{0,200}") {
        try_all(&format!(".version 7.8\n.target sm_80\n{text}"));
        try_all(&text);
    }

    #[test]
    fn mutated_modules_are_an_error_or_a_run(edits in proptest::collection::vec((any::<usize>(), 0usize..40, any::<usize>()), 1..4)) {
        // Each edit overwrites a stretch with one from elsewhere: tokens land where they do not belong.
        let mut text = PTX.as_bytes().to_vec();
        for (at, n, from) in edits {
            let (at, from) = (at % text.len(), from % text.len());
            let n = n.min(text.len() - from);
            let piece = text[from..from + n].to_vec();
            let end = (at + n / 2).min(text.len());
            text.splice(at..end, piece);
        }
        try_all(&String::from_utf8_lossy(&text));
    }

    #[test]
    fn shuffled_statements_are_an_error_or_a_run(edits in proptest::collection::vec((any::<usize>(), any::<usize>(), 0u8..4), 1..6)) {
        // Whole lines of the body dropped, doubled or exchanged: most of these still run.
        let mut lines: Vec<&str> = PTX.lines().collect();
        let first = lines.iter().position(|l| l.contains(".reg .b64")).unwrap() + 1;
        for (a, b, kind) in edits {
            let n = lines.len() - first - 2;
            let (a, b) = (first + a % n, first + b % n);
            match kind {
                0 => drop(lines.remove(a)),
                1 => lines.insert(b, lines[a]),
                _ => lines.swap(a, b),
            }
        }
        try_all(&lines.join("\n"));
    }
}
