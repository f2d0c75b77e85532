//! Replays on small made-up cases and on the bundled traces.

use super::*;
use crate::eval::Record;
use crate::traces::tests::synthetic;
use crate::traces::{Case, Elements, Traces};

fn options(device: Device) -> ReplayOptions {
    ReplayOptions {
        device,
        forced: Forced::default(),
        limits: BlockLimits::default(),
        tail: 0.0,
        queries: None,
        keep: false,
    }
}

fn bundled() -> Traces {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/traces.safetensors");
    Traces::load(&file).unwrap()
}

fn records(cases: &[Case], scale: f32, entrants: &[(&str, Mirror)], options: &ReplayOptions) -> Vec<Record> {
    let truths: Vec<Truth> =
        cases.iter().map(|case| Truth::of(case, scale, options.queries).unwrap()).collect();
    let pairs: Vec<_> = cases.iter().zip(&truths).collect();
    let entrants: Vec<_> =
        entrants.iter().map(|(policy, mirror)| Entrant::new(policy.parse().unwrap(), *mirror)).collect();
    let replays = evaluate(&pairs, scale, &entrants, options, &|_| ()).unwrap();
    entrants.iter().zip(&replays).map(|(entrant, replays)| Record::of_all(*entrant, "cpu", replays)).collect()
}

/// Largest relative error that f32 attention may have on `case`, from its own numbers.
///
/// A score is a sum of D products, formed and added in f32, of operands scaled in f32: its error is at
/// most (D + 3) u sum |q k|, u = 2^-24. exp2, the running maximum and the sums over tokens in f32 add a
/// relative error of at most (n + 8) u for each weight, so weights are off by theta, which is
/// `e^(2 (score error) + (n + 8) u) - 1`, and the output by at most 2 theta sum_t p_t |v_t| (once from the numerator, once
/// from the denominator). The file's f32 output adds u.
fn dense_bound(case: &Case, scale: f64) -> f64 {
    let (d, u) = (case.head_dim, 2f64.powi(-24));
    let (keys, values) = (case.k.to_f64(0..case.k.len()), case.v.to_f64(0..case.v.len()));
    let mut bound = 0.0f64;
    for g in 0..case.group {
        for i in 0..case.queries {
            let row = (g * case.queries + i) * d;
            let q = case.q.to_f64(row..row + d);
            let lse = case.lse[g * case.queries + i] as f64;
            let (mut size, mut spread) = (0.0f64, 0.0f64);
            for t in 0..case.visible(i) {
                let products = || q.iter().zip(&keys[t * d..][..d]).map(|(q, k)| scale * q * k);
                size = size.max(products().map(f64::abs).sum());
                let p = (products().sum::<f64>() - lse).exp();
                spread += p * values[t * d..][..d].iter().map(|v| v * v).sum::<f64>().sqrt();
            }
            let n = case.visible(i) as f64;
            let theta = (2.0 * (d as f64 + 3.0) * u * size + (n + 8.0) * u).exp_m1();
            let out = case.out[row..][..d].iter().map(|o| (*o as f64).powi(2)).sum::<f64>().sqrt();
            bound = bound.max(2.0 * theta * spread / out + u);
        }
    }
    bound
}

#[test]
fn dense_misses_nothing_and_gives_the_recorded_output() {
    let traces = bundled();
    let cases: Vec<Case> = traces.cases;
    let [dense] = records(&cases, traces.scale, &[("dense", Mirror::Bits2)], &options(Device::cpu()))
        .try_into()
        .unwrap();
    assert_eq!(dense.missed_mass, crate::eval::Stats::default());
    assert_eq!((dense.kv_fraction, dense.metadata_fraction, dense.queries), (1.0, 0.0, 8 * 64));
    let bound = cases.iter().map(|case| dense_bound(case, 0.125)).fold(0.0, f64::max);
    assert!(bound < 0.03, "the bound says little: {bound}");
    assert!(dense.output_error.max < bound, "{} against {bound}", dense.output_error.max);
    // What is observed is far better than the worst case; 1e-3 is the promise of the command line.
    assert!(dense.output_error.max < 1e-3, "{}", dense.output_error.max);
    assert!(dense.lse_error.max < 1e-4, "{}", dense.lse_error.max);
}

/// Figures of the numpy prototype of the same definitions.
#[test]
fn bundled_traces_give_the_figures_of_the_prototype() {
    let traces = bundled();
    let entrants = [
        ("progressive:0.95", Mirror::Bits2),
        ("progressive:0.95", Mirror::Bits4),
        ("oracle:0.95", Mirror::Bits2),
    ];
    let [two, four, oracle] =
        records(&traces.cases, traces.scale, &entrants, &options(Device::cpu())).try_into().unwrap();
    let near = |what: &str, got: f64, want: f64| assert!((got - want).abs() < 0.002, "{what}: {got}, {want}");
    near("2 bit KV read", two.kv_fraction, 0.325);
    near("2 bit missed p99", two.missed_mass.p99, 0.067);
    near("2 bit missed max", two.missed_mass.max, 0.388);
    near("2 bit metadata", two.metadata_fraction, 0.078);
    near("4 bit KV read", four.kv_fraction, 0.284);
    near("4 bit missed p99", four.missed_mass.p99, 0.054);
    near("4 bit metadata", four.metadata_fraction, 0.14);
    near("oracle KV read", oracle.kv_fraction, 0.276);
    assert!(oracle.missed_mass.max < 0.05 + 1e-6, "{}", oracle.missed_mass.max);
    assert_eq!((oracle.metadata_fraction, &oracle.mirror), (0.0, &None));
    assert!((two.topup_fraction - 0.508).abs() < 0.01, "2 bit top-ups: {}", two.topup_fraction);
}

#[test]
fn all_is_all_cases_together_and_the_last_queries_are_the_last() {
    let cases = [synthetic("case0", 2, 5, 400, 1), synthetic("case1", 3, 4, 333, 2)];
    let options = ReplayOptions { queries: Some(3), keep: true, ..options(Device::cpu()) };
    let truths = cases.each_ref().map(|case| Truth::of(case, 0.125, Some(3)).unwrap());
    let pairs: Vec<_> = cases.iter().zip(&truths).collect();
    let entrant = Entrant::new("top-k:9".parse().unwrap(), Mirror::Bits4);
    let replays = evaluate(&pairs, 0.125, &[entrant], &options, &|_| ()).unwrap().remove(0);
    let by_case = replays.iter().map(|replay| Record::of_case(entrant, "cpu", replay)).collect::<Vec<_>>();
    let all = Record::of_all(entrant, "cpu", &replays);
    assert_eq!(replays[1].steps.iter().map(|step| step.query).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!((all.queries, by_case[0].queries), (6, 3));
    assert_eq!(all.blocks_read, by_case[0].blocks_read + by_case[1].blocks_read);
    assert_eq!(all.blocks_read, 6 * 9);
    assert_eq!(all.missed_mass.max, by_case[0].missed_mass.max.max(by_case[1].missed_mass.max));
    let step = &replays[1].steps[0];
    assert_eq!((step.selection.len(), step.out.len(), step.missed.len()), (9, 3 * 64, 3));
    // 331 tokens: 5 full groups of 64; a page of 64 channels, 4 bits, is 256 + 2 * 1024 bytes.
    assert_eq!((step.metadata_bytes, step.seen_bytes), (5 * 2304, 331 * 2 * 64 * 2));
}

/// The missed mass of a set does not depend on who computes; the reference is the definition.
#[test]
fn reference_and_cpu_give_the_same_records() {
    let cases = [synthetic("case0", 4, 3, 500, 7)];
    let entrants =
        [("progressive:0.9", Mirror::Bits2), ("quest:0.3", Mirror::Bits2), ("top-p:0.9", Mirror::Bits4)];
    let cpu = records(&cases, 0.125, &entrants, &options(Device::cpu()));
    let reference = records(&cases, 0.125, &entrants, &options(Device::reference()));
    for (cpu, reference) in cpu.iter().zip(&reference) {
        assert_eq!((cpu.blocks_read, cpu.missed_mass), (reference.blocks_read, reference.missed_mass));
        assert!((cpu.output_error.max - reference.output_error.max).abs() < 1e-4);
    }
    assert_eq!(cpu[1].mirror.as_deref(), Some("box"));
}

/// An audit knows the cache and the step, [`Truth`] the file: two ways to the same numbers.
#[test]
fn audits_find_what_the_truth_of_the_file_says() {
    let cases = [synthetic("case0", 3, 6, 500, 7), synthetic("case1", 2, 4, 333, 8)];
    let truths = cases.each_ref().map(|case| Truth::of(case, 0.125, None).unwrap());
    let pairs: Vec<_> = cases.iter().zip(&truths).collect();
    let entrants = ["dense", "progressive:0.8", "certified:0.2", "quest:0.3", "oracle:0.7"]
        .map(|policy| Entrant::new(policy.parse().unwrap(), Mirror::Bits4));
    let all = Audit::new(1.0, 0).unwrap();
    for device in [Device::cpu(), Device::reference()] {
        let replays =
            evaluate_audited(&pairs, 0.125, &entrants, &options(device), Some(all), &|_| ()).unwrap();
        let mut missed = 0;
        for (entrant, replay) in
            entrants.iter().zip(&replays).flat_map(|(e, r)| r.iter().map(move |r| (e, r)))
        {
            let (records, audits): (Vec<_>, Vec<_>) =
                (replay.telemetry.records().collect(), replay.telemetry.audits().collect());
            assert_eq!((records.len(), audits.len()), (replay.steps.len(), replay.steps.len()));
            for ((step, record), audit) in replay.steps.iter().zip(records).zip(audits) {
                assert_eq!((record.step, audit.step), (step.query as u64, step.query as u64));
                assert_eq!((record.blocks_read, record.blocks_total), (step.blocks_read, step.blocks_total));
                for g in 0..step.missed.len() {
                    // The same f64 sums of at most 500 terms.
                    assert!((audit.true_missed[g] - step.missed[g]).abs() < 1e-12, "{entrant:?}");
                    // The file's output is rounded to f32, 6e-8 of each channel.
                    assert!((audit.output_error[g] - step.output_error[g]).abs() < 1e-6, "{entrant:?}");
                    missed += (audit.true_missed[g] > 0.01) as usize;
                }
                if !step.missed_bound.is_empty() {
                    assert_eq!(audit.believed_missed, step.missed_bound);
                    assert_eq!(audit.underestimated(), 0);
                }
            }
        }
        assert!(missed > 50, "the policies missed too little to tell: {missed}");
    }
}

#[test]
fn bf16_cases_replay_as_f16_ones_do() {
    let mut case = synthetic("case0", 2, 2, 200, 3);
    for elements in [&mut case.q, &mut case.k, &mut case.v] {
        if let Elements::F16(x) = elements {
            *elements = Elements::Bf16(x.iter().map(|x| half::bf16::from_f32(x.to_f32())).collect());
        }
    }
    // Rounding to bf16 moves scores by up to 2^-8 of themselves, and the recorded answers are f16's.
    let [dense] =
        records(&[case], 0.125, &[("dense", Mirror::Bits2)], &options(Device::cpu())).try_into().unwrap();
    assert_eq!(dense.missed_mass.max, 0.0);
    assert!(dense.output_error.max < 0.05, "{}", dense.output_error.max);
}

#[test]
fn impossible_selections_are_refused() {
    assert_eq!(check_selection(&[2, 0, 1], 3, 3), Ok(()));
    for (selection, read, word) in
        [(&[0, 1][..], 3, "names 2"), (&[0, 3], 2, "block 3 of 3"), (&[1, 1], 2, "twice")]
    {
        assert!(check_selection(selection, read, 3).unwrap_err().contains(word));
    }
}

#[test]
fn errors_of_the_cache_name_the_case_and_the_policy() {
    let case = synthetic("case5", 1, 1, 40, 1);
    let truth = Truth::of(&case, 0.125, None).unwrap();
    let entrant =
        Entrant { mirror: Mirror::Bits2, ..Entrant::new("quest:0.5".parse().unwrap(), Mirror::Box) };
    let error = evaluate(&[(&case, &truth)], 0.125, &[entrant], &options(Device::cpu()), &|_| ());
    let error = error.err().unwrap().to_string();
    assert!(error.starts_with("case5, quest:0.5: ") && error.contains("box mirror"), "{error}");
}

#[test]
fn json_fields_of_a_record_are_those_of_the_contract() {
    let entrant = Entrant::new("progressive:0.95".parse().unwrap(), Mirror::Bits2);
    let record = Record::of_all(entrant, "cpu", &[]);
    let value = serde_json::to_value(record).unwrap();
    let object = value.as_object().unwrap();
    for field in [
        "case",
        "policy",
        "backend",
        "queries",
        "blocks_read",
        "blocks_total",
        "kv_fraction",
        "metadata_fraction",
        "missed_mass",
        "output_error",
        "lse_error",
        "topup_fraction",
        "certified_fraction",
        "wall_ms",
    ] {
        assert!(object.contains_key(field), "{field} is missing");
    }
    for field in ["mean", "p99", "max"] {
        assert!(value["missed_mass"][field].is_number() && value["output_error"][field].is_number());
    }
    assert!(value["lse_error"]["max"].is_number() && value["certified_fraction"].is_null());
    assert_eq!((value["case"].as_str(), value["policy"].as_str()), (Some("all"), Some("progressive:0.95")));
}
