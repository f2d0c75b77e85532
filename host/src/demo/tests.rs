//! The demo on the bundled traces, without the emulator.

use super::*;
use crate::demo::contest::{Quality, Tunable};

#[test]
fn bundled_traces_are_the_files_of_the_repository() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/traces.safetensors");
    assert_eq!(Traces::parse("bundled", TRACES, TRACES_JSON).unwrap(), Traces::load(&file).unwrap());
}

#[test]
fn tunable_policies_read_more_at_every_step_and_everything_at_the_last() {
    for tunable in Tunable::ALL {
        assert!(
            tunable.at(256).policy.reads_everything()
                || tunable == Tunable::ALL[0]
                || tunable == Tunable::ALL[1]
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
    let options =
        ReplayOptions { device: Device::cpu(), forced: Forced::default(), queries: Some(16), keep: false };
    let field = contest::Field { cases: &pairs, scale: traces.scale, options };
    let contest = contest::run(&field, &Progress::new(false)).unwrap();
    for (quality, rows) in [(Quality::MissedP99, &contest.rows), (Quality::OutputMean, &contest.by_output)] {
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
    let picture = figure::draw(&traces, &contest);
    for label in
        ["dense", "quest", "top-k, 2 bits", "progressive, 4 bits", "oracle", "prose_A, layer 3, head 0"]
    {
        assert!(picture.contains(label), "{label}");
    }
}
