//! The demo's claims on parts of the bundled traces.

use std::path::Path;

use super::*;
use crate::demo::contest::CONTENDERS;
use psa::Mirror;
use psa::eval::{Entrant, Quality, Step, evaluate};

#[test]
fn bundled_traces_are_the_files_of_the_repository() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/traces.safetensors");
    assert_eq!(Traces::parse("bundled", TRACES, TRACES_JSON).unwrap(), Traces::load(&file).unwrap());
}

#[test]
fn tunable_policies_read_more_at_every_step_and_everything_at_the_last() {
    for tunable in CONTENDERS {
        assert!(
            tunable.at(256).policy.reads_everything() || tunable == CONTENDERS[0] || tunable == CONTENDERS[1]
        );
        for step in 1..256 {
            assert_ne!(tunable.at(step).policy, tunable.at(step + 1).policy, "{step}");
        }
    }
}

/// The table's claim: tuned policies are as good as progressive, and one step less would not be.
#[test]
fn tuned_policies_reach_the_mark_and_no_smaller_parameter_does() {
    let mut traces = Traces::parse("bundled", TRACES, TRACES_JSON).unwrap();
    traces.cases.truncate(2);
    let truths: Vec<_> = traces.cases.iter().map(|c| Truth::of(c, traces.scale, None).unwrap()).collect();
    let pairs: Vec<_> = traces.cases.iter().zip(&truths).collect();
    let options = ReplayOptions {
        device: Device::cpu(),
        forced: Forced::default(),
        limits: Default::default(),
        tail: 0.0,
        queries: Some(16),
        keep: false,
    };
    let field = Field { cases: pairs, scale: traces.scale, options };
    let contest = contest::run(&field, &Progress::new(false)).unwrap();
    for (quality, rows) in [(Quality::MissedP99, &contest.rows), (Quality::ErrorMean, &contest.by_output)] {
        let mark = quality.of(&contest.mark);
        let tuned: Vec<_> = rows.iter().filter(|row| row.tuned.is_some()).collect();
        assert_eq!(tuned.len(), 3);
        for row in tuned {
            let tunable = row.tuned.unwrap();
            assert!(quality.of(&row.record) <= mark, "{}", row.record.policy);
            let step =
                (1..=256).find(|&step| tunable.at(step).policy.to_string() == row.record.policy).unwrap();
            assert!(step > 1, "{}: nothing was tuned", row.record.policy);
            let less = field.records(&[tunable.at(step - 1)]).unwrap().remove(0);
            assert!(quality.of(&less) > mark, "{} would have done", less.policy);
        }
    }
    assert_eq!(contest.rows.len(), 1 + 3 + 3);
    let picture = figure(&traces, &contest).draw();
    for label in
        ["dense", "quest", "top-k, 2+2 bits", "progressive, 2 bits", "oracle", "prose_A, layer 3, head 0"]
    {
        assert!(picture.contains(label), "{label}");
    }
}

/// One case on the emulator; the demo does all of them.
#[test]
fn the_shipped_ptx_reads_the_blocks_that_the_cpu_reads() {
    let case = Traces::parse("bundled", TRACES, TRACES_JSON).unwrap().cases.remove(0);
    let truth = Truth::of(&case, 0.125, Some(2)).unwrap();
    let options = ReplayOptions {
        device: Device::cpu(),
        forced: Forced::default(),
        limits: Default::default(),
        tail: 0.0,
        queries: None,
        keep: false,
    };
    let field = Field { cases: vec![(&case, &truth)], scale: 0.125, options };
    let check = check::run(&field, &Progress::new(false));
    assert!(check.good(), "{check:?}");
    assert_eq!((check.cases, check.steps, check.same_selection), (1, 12, 12));
}

/// The comparison itself must be able to fail.
#[test]
fn differences_in_blocks_or_outputs_are_bad() {
    let case = Traces::parse("bundled", TRACES, TRACES_JSON).unwrap().cases.remove(0);
    let truth = Truth::of(&case, 0.125, Some(2)).unwrap();
    let options = ReplayOptions {
        device: Device::cpu(),
        forced: Forced::default(),
        limits: Default::default(),
        tail: 0.0,
        queries: Some(1),
        keep: true,
    };
    let entrant = Entrant::new("progressive:0.95".parse().unwrap(), Mirror::Bits2);
    let replays = evaluate(&[(&case, &truth)], 0.125, &[entrant], &options, &|_| ()).unwrap();
    let want = &replays[0][0];
    let compared = |change: &dyn Fn(&mut Step)| {
        let mut got = want.clone();
        change(&mut got.steps[0]);
        let mut check = check::Check::default();
        check.compare(&case, 0.125, want, &got);
        check
    };
    assert!(compared(&|_| ()).good());
    assert!(!compared(&|step| step.selection.swap(5, 6)).good());
    assert!(!compared(&|step| step.selection.truncate(5)).good());
    assert!(!compared(&|step| step.out[70] += 0.05).good());
    assert!(!compared(&|step| step.out[0] = f32::NAN).good());
    assert!(!check::Check::default().good());
}
