//! The example programs run to the end, and print what their readers look for.

use std::process::Command;

/// Standard output of a program that succeeds.
fn output(program: &str) -> String {
    let output = Command::new(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// The line that starts so.
fn line<'a>(text: &'a str, start: &str) -> &'a str {
    text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start:?} in:\n{text}"))
}

/// The numbers among the words of a line.
fn numbers(line: &str) -> Vec<f64> {
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn decode_reads_less_than_dense_and_holds_the_mass() {
    let text = output(env!("CARGO_BIN_EXE_decode"));
    assert_eq!(numbers(line(&text, "dense")), [1000.0, 1000.0, 100.0, 0.0]);
    let [read, all, mass, error] = numbers(line(&text, "progressive:0.95"))[..] else { panic!("{text}") };
    assert!(read > 50.0 && read < 500.0 && all == 1000.0, "{text}");
    assert!((95.0..100.0).contains(&mass), "{text}");
    // Missing 5 % of the mass cannot move an output by more than a few percent here.
    assert!(error > 0.0 && error < 10.0, "{text}");
    let [read, .., mass, _] = numbers(line(&text, "top-k:0.1"))[..] else { panic!("{text}") };
    assert!(read == 100.0 && mass < 95.0, "{text}");
}

#[test]
fn kernels_only_shows_the_mirror_that_the_kernel_wrote() {
    let text = output(env!("CARGO_BIN_EXE_kernels_only"));
    assert!(line(&text, "append_f16_d64_p1 ran").contains(" 0 finding(s)"), "{text}");
    assert!(
        text.contains("64 keys of 64 f16 (8192 bytes) became a 2-bit mirror page of 1280 bytes."),
        "{text}"
    );
    for (start, key, code) in [("  token  0:", -40.0, 0.0), ("  token 63:", 40.0, 3.0)] {
        let words = line(&text, start).replace(',', "");
        let [got_key, got_code, mirrored] = numbers(words.split_once(':').unwrap().1)[..] else {
            panic!("{text}")
        };
        assert_eq!((got_key, got_code), (key, code), "{text}");
        // The ends of the range are hit up to the rounding of the step to f16, 2^-11 of 3 steps.
        assert!((mirrored - key).abs() <= 80.0 / 2048.0 + 0.005, "{text}");
    }
    for t in [16, 40] {
        let words = line(&text, &format!("  token {t}:")).replace(',', "");
        let [key, _, mirrored] = numbers(words.split_once(':').unwrap().1)[..] else { panic!("{text}") };
        // Half a step of 26.67.
        assert!((mirrored - key).abs() <= 26.68 / 2.0, "{text}");
    }
}
