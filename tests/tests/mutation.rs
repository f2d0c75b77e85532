//! The checkers see what they are for: mutants of our own kernels, a part of `cargo xtask mutate`.

use psa_tests::mutate::operators::Class;
use psa_tests::mutate::report::{Score, change, failures, scores, unreported};
use psa_tests::mutate::{Campaign, Outcome, Verdict, explained};
use psa_tests::scenes::Extent;
use ptx_emulator::Checks;

fn campaign() -> Campaign {
    Campaign {
        extent: Extent::Representative,
        kernel: None,
        classes: vec![Class::Synchronisation],
        checks: Checks::all(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    }
}

fn run(campaign: &Campaign) -> (Vec<Verdict>, Vec<Score>) {
    let verdicts = campaign.run(kernels_gpu::PTX, &|_, _| {}).unwrap();
    let scores = scores(&verdicts, &explained::parse(explained::TEXT).unwrap());
    (verdicts, scores)
}

#[test]
fn checkers_report_synchronisation_mutants_and_the_rest_is_explained() {
    let (verdicts, scores) = run(&campaign());
    let named: Vec<String> =
        unreported(&verdicts).map(|v| format!("{} line {}: {}", v.mutant.id, v.line, change(v))).collect();
    assert!(failures(&scores).is_empty(), "{:?}\n{}", failures(&scores), named.join("\n"));
    // Every stage takes part; a kernel without barriers has no mutants here.
    for stage in ["append_", "score_", "score_nested_", "refine_", "plan_", "attend_", "merge_"] {
        assert!(verdicts.iter().any(|v| v.kernel.starts_with(stage)), "{stage}");
    }
}

#[test]
fn without_the_race_checker_deleted_barriers_survive() {
    // The twin: the score can fall.
    let checks = Checks { race: false, ..Checks::all() };
    let campaign = Campaign { checks, kernel: Some("plan".into()), ..campaign() };
    let (verdicts, scores) = run(&campaign);
    assert!(scores[0].reported_percent() < 95.0, "{scores:?}");
    assert!(!failures(&scores).is_empty());
    let deleted = verdicts.iter().filter(|v| v.mutant.kind == "delete-barrier");
    assert!(deleted.filter(|v| !matches!(v.outcome, Outcome::Reported(_))).count() > 0);
}

#[test]
fn an_unknown_kernel_is_named_with_those_there_are() {
    let campaign = Campaign { kernel: Some("nothing".into()), ..campaign() };
    let text = campaign.run(kernels_gpu::PTX, &|_, _| {}).unwrap_err().to_string();
    assert!(text.contains("`nothing`") && text.contains("plan_n512"), "{text}");
}
