//! Telemetry of plans: what is counted, kept, audited and exported.

mod common;

use common::{Batch, Tensor};
use openmetrics_parser::prometheus::parse_prometheus;
use psa::telemetry::{Audit, Counters, Labels, Telemetry, prometheus, write_json_lines};
use psa::{DecodePlan, Device, Dtype, KvCache, Mirror, Path, Policy, SequenceId, Shape};
use std::collections::{BTreeMap, BTreeSet};

const SHAPE: Shape = Shape { layers: 1, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };

/// A step of the whole batch: plan, queries, output, lse.
struct Step {
    plan: DecodePlan,
    q: Tensor,
    out: Vec<f32>,
    lse: Vec<f32>,
}

fn step(batch: &Batch, cache: &mut KvCache, ids: &[SequenceId], policy: Policy, record: bool) -> Step {
    let entries: Vec<usize> = (0..ids.len()).collect();
    let q = batch.queries(&entries);
    let mut plan = DecodePlan::new(cache, ids, policy).unwrap();
    if record {
        plan = plan.with_record();
    }
    let mut out = vec![0.0; ids.len() * batch.shape.query_elements()];
    let mut lse = vec![0.0; ids.len() * batch.shape.q_heads];
    plan.attend_with_lse(cache, 0, q.rows(), &mut out, &mut lse).unwrap();
    Step { plan, q, out, lse }
}

fn audits(audit: Audit, step: &Step, cache: &mut KvCache) -> Vec<psa::telemetry::AuditRecord> {
    audit.check(0, &step.plan, cache, 0, step.q.rows(), &step.out, &step.lse).unwrap()
}

fn path_counts(counters: &Counters) -> BTreeMap<&'static str, u64> {
    Path::ALL.iter().map(|path| path.name()).zip(counters.paths).filter(|(_, n)| *n > 0).collect()
}

#[test]
fn counters_prove_that_the_sparse_path_ran() {
    let batch = Batch::random(SHAPE, &[1000, 700, 40], 5);
    let (mut cache, ids) = batch.cache(&Device::cpu(), Mirror::Bits4);
    let mut count = |policy: Policy| {
        let mut telemetry = Telemetry::new(SHAPE, 0);
        let step = step(&batch, &mut cache, &ids, policy, false);
        telemetry.observe(0, &step.plan, 0).unwrap();
        (telemetry.total(), step.plan.report())
    };
    let (dense, _) = count(Policy::Dense);
    assert_eq!(path_counts(&dense), BTreeMap::from([("dense", 6)]));
    assert_eq!((dense.blocks_read, dense.metadata_bytes), (dense.blocks_total, 0));
    assert_eq!(dense.kv_bytes, dense.blocks_total * SHAPE.slot_bytes() as u64);
    assert_eq!(dense.believed_missed, 0.0);

    let (sparse, report) = count(Policy::Progressive { mass: 0.5 });
    assert_eq!((sparse.steps, sparse.blocks_total, sparse.heads), (6, dense.blocks_total, 12));
    assert!(sparse.blocks_read < dense.blocks_read / 2, "{sparse:?}");
    assert_eq!(sparse.blocks_read as usize, report.blocks_read());
    assert_eq!(sparse.metadata_bytes as usize, report.metadata_bytes());
    let paths = path_counts(&sparse);
    // The short sequence reads everything, the long ones do not.
    assert_eq!(paths.get("identity"), Some(&2), "{paths:?}");
    assert_eq!(paths.get("planned").unwrap_or(&0) + paths.get("topped_up").unwrap_or(&0), 4, "{paths:?}");
    assert!(sparse.believed_missed > 0.0 && sparse.believed_missed < 0.5 * 12.0);
}

#[test]
fn totals_are_the_sums_of_the_records_and_a_full_ring_drops_the_oldest() {
    let batch = Batch::random(SHAPE, &[400, 300], 6);
    let (mut cache, ids) = batch.cache(&Device::cpu(), Mirror::Bits2);
    let step = step(&batch, &mut cache, &ids, Policy::Progressive { mass: 0.7 }, false);
    let (mut all, mut few) = (Telemetry::new(SHAPE, 100), Telemetry::new(SHAPE, 6));
    for number in 0..5 {
        all.observe(number, &step.plan, 0).unwrap();
        few.observe(number, &step.plan, 0).unwrap();
    }
    let records: Vec<_> = all.records().collect();
    assert_eq!((records.len(), all.dropped()), (5 * 4, 0));
    for kv_head in 0..2 {
        let of_head = || records.iter().filter(|record| record.kv_head == kv_head);
        let counters = all.counters(0, kv_head);
        let sum =
            |value: fn(&psa::telemetry::Record<'_>) -> usize| of_head().map(value).sum::<usize>() as u64;
        assert_eq!(counters.steps, 10);
        assert_eq!(counters.blocks_read, sum(|r| r.blocks_read));
        assert_eq!(counters.blocks_total, sum(|r| r.blocks_total));
        assert_eq!(counters.topups, sum(|r| r.topups));
        assert_eq!(counters.kv_bytes, sum(|r| r.kv_bytes));
        assert_eq!(counters.metadata_bytes, sum(|r| r.metadata_bytes));
        let believed: f64 = of_head().flat_map(|r| r.mass).map(|&mass| 1.0 - mass as f64).sum();
        // Each of 20 terms is rounded to f32.
        assert!((counters.believed_missed - believed).abs() < 20.0 * 6e-8, "{counters:?} {believed}");
    }
    assert_eq!(all.total(), all.counters(0, 0).plus(&all.counters(0, 1)));
    assert_eq!(all.total(), few.total(), "dropping forgets no count");
    assert_eq!(few.dropped(), 14);
    let kept: Vec<_> = few.records().collect();
    assert_eq!(kept, records[14..], "the last ones, oldest first");
    // Not there: zeros, not a panic.
    assert_eq!((all.counters(1, 0), all.counters(0, 2)), (Counters::default(), Counters::default()));
}

#[test]
fn a_plan_of_another_geometry_is_refused_and_the_layer_named() {
    let batch = Batch::random(SHAPE, &[40], 1);
    let (mut cache, ids) = batch.cache(&Device::cpu(), Mirror::Bits2);
    let step = step(&batch, &mut cache, &ids, Policy::Dense, false);
    let error = Telemetry::new(Shape { kv_heads: 4, ..SHAPE }, 1).observe(0, &step.plan, 0).unwrap_err();
    assert!(error.to_string().contains("Telemetry::new(plan.shape()"), "{error}");
    let error = Telemetry::new(SHAPE, 1).observe(0, &step.plan, 3).unwrap_err();
    assert!(error.to_string().contains("layer 3"), "{error}");
}

/// The lse knows what was missed, to its own precision; the emulator's memory holds what was appended.
#[test]
fn an_audit_needs_neither_a_record_nor_host_memory() {
    let batch = Batch::random(SHAPE, &[330, 90], 9);
    let all = Audit::new(1.0, 0).unwrap();
    for (device, cut) in [(Device::cpu(), false), (Device::reference(), false), (Device::emulator(), true)] {
        let (mut cache, ids) = batch.cache(&device, Mirror::Bits2);
        let policy = Policy::Progressive { mass: 0.5 };
        let recorded = step(&batch, &mut cache, &ids, policy, true);
        let plain = step(&batch, &mut cache, &ids, policy, false);
        // The cache may grow after the step.
        let row = SHAPE.token_elements();
        cache.append(ids[0], 0, batch.k[1].part(0, row), batch.v[1].part(0, row)).unwrap_or_else(|e| {
            assert!(matches!(e, psa::Error::ContextTooLong { .. } | psa::Error::PoolExhausted { .. }), "{e}")
        });
        let (recorded, plain) = (audits(all, &recorded, &mut cache), audits(all, &plain, &mut cache));
        assert_eq!((recorded.len(), plain.len()), (4, 4));
        let mut missed = 0;
        for (a, b) in recorded.iter().zip(&plain) {
            assert_eq!((a.entry, a.kv_head, &a.believed_missed), (b.entry, b.kv_head, &b.believed_missed));
            for g in 0..2 {
                // The lse is f32: below 16, half a unit in the last place is 5e-7, and f32 sums of 330 terms are
                // off by less than 330 * 6e-8.
                let (exact, by_lse) = (a.true_missed[g], b.true_missed[g]);
                assert!((exact - by_lse).abs() < 2e-5 + 5e-7, "{} {exact} {by_lse}", device.name());
                missed += (exact > 0.01) as usize;
                assert!(exact == 0.0 || a.output_error[g] > 1e-4, "what is missed shows in the output");
                assert!(a.lse_error[g] < 1.0, "{}", a.lse_error[g]);
            }
        }
        assert!(missed >= 2, "{} missed too little to tell, emulated: {cut}", device.name());
    }
}

#[test]
fn an_audit_of_nothing_costs_nothing_and_wrong_lengths_are_named() {
    let batch = Batch::random(SHAPE, &[40], 2);
    let (mut cache, ids) = batch.cache(&Device::cpu(), Mirror::Bits2);
    let mut step = step(&batch, &mut cache, &ids, Policy::Dense, false);
    // The sequence is gone, so that any read of the cache would be an error.
    let none = Audit::new(0.0, 3).unwrap();
    cache.remove_sequence(ids[0]).unwrap();
    assert_eq!(audits(none, &step, &mut cache), []);
    let all = Audit::new(1.0, 3).unwrap();
    let gone = all.check(0, &step.plan, &mut cache, 0, step.q.rows(), &step.out, &step.lse).unwrap_err();
    assert!(matches!(gone, psa::Error::UnknownSequence { .. }), "{gone}");
    step.lse.pop();
    let short = all.check(0, &step.plan, &mut cache, 0, step.q.rows(), &step.out, &step.lse).unwrap_err();
    assert!(short.to_string().contains("lse has 3 elements, expected 4"), "{short}");
}

/// One sample of the exposition format: name, labels, value. Panics on anything else.
fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let (name, rest) = line.split_once('{').unwrap();
    assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{line}");
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    while !rest.starts_with('}') {
        let (label, tail) = rest.split_once("=\"").unwrap();
        let mut value = String::new();
        let mut chars = tail.char_indices();
        let end = loop {
            match chars.next().unwrap() {
                (_, '\\') => value.push(match chars.next().unwrap().1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    c => panic!("escape {c}"),
                }),
                (i, '"') => break i,
                (_, c) => value.push(c),
            }
        };
        assert_eq!(labels.insert(label.to_owned(), value), None, "{line}");
        rest = tail[end + 1..].trim_start_matches(',');
    }
    (name.to_owned(), labels, rest[1..].trim().parse().unwrap())
}

#[test]
fn prometheus_text_is_valid_and_says_what_the_counters_say() {
    let batch = Batch::random(SHAPE, &[400, 300], 6);
    let (mut cache, ids) = batch.cache(&Device::cpu(), Mirror::Bits2);
    let step = step(&batch, &mut cache, &ids, Policy::Progressive { mass: 0.7 }, true);
    let (mut watched, mut plain) = (Telemetry::new(SHAPE, 3), Telemetry::new(SHAPE, 3));
    watched.observe(0, &step.plan, 0).unwrap();
    plain.observe(0, &step.plan, 0).unwrap();
    watched.add_audits(audits(Audit::new(1.0, 0).unwrap(), &step, &mut cache));
    let odd = "a \"b\" \\ c\nd".to_owned();
    let labels =
        [Labels::new([("policy", odd.clone())]).unwrap(), Labels::new([("policy", "p".into())]).unwrap()];
    let text = prometheus(&[(&labels[0], &watched), (&labels[1], &plain)]);

    // A parser that others wrote takes it whole, and takes no metric twice.
    let exposition = parse_prometheus(&text).unwrap();
    for (name, samples) in [("psa_blocks_read_total", 4), ("psa_path_steps_total", 4 * Path::ALL.len())] {
        assert_eq!(exposition.families[name].iter_samples().count(), samples, "{name}");
    }
    assert!(parse_prometheus(&format!("{text}{text}")).is_err());

    let (mut types, mut helps, mut seen) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    let mut values = BTreeMap::new();
    let mut current = String::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let name = help.split_once(' ').unwrap().0;
            assert!(helps.insert(name.to_owned()), "{name} has two HELP lines");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(types.insert(name.to_owned(), kind.to_owned()), None, "{name} has two TYPE lines");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} {kind}");
            assert!(helps.contains(name), "HELP comes first");
            assert!(exposition.families.contains_key(name), "{name} has no sample");
            current = name.to_owned();
        } else {
            let (name, labels, value) = sample(line);
            let family = match types[&current].as_str() {
                "summary" => name.strip_suffix("_sum").or(name.strip_suffix("_count")).unwrap_or(&name),
                _ => &name,
            };
            assert_eq!(family, current, "samples of a metric stand together");
            assert!(seen.insert((name.clone(), labels.clone())), "{line} twice");
            let by = |label: &str| labels.get(label).cloned().unwrap_or_default();
            values.insert((name, by("policy"), by("kv_head"), by("path")), value);
        }
    }
    let value = |name: &str, policy: &str, kv_head: &str, path: &str| {
        values.get(&(name.to_owned(), policy.to_owned(), kv_head.to_owned(), path.to_owned())).copied()
    };
    for kv_head in 0..2 {
        let (counters, text) = (watched.counters(0, kv_head), kv_head.to_string());
        for policy in [odd.as_str(), "p"] {
            assert_eq!(value("psa_blocks_read_total", policy, &text, ""), Some(counters.blocks_read as f64));
            assert_eq!(value("psa_kv_read_bytes_total", policy, &text, ""), Some(counters.kv_bytes as f64));
            let paths: f64 =
                Path::ALL.iter().filter_map(|p| value("psa_path_steps_total", policy, &text, p.name())).sum();
            assert_eq!(paths, counters.steps as f64);
        }
        let audits = watched.audit_counters(0, kv_head);
        assert_eq!(value("psa_audit_missed_mass_sum", &odd, &text, ""), Some(audits.true_missed));
        assert_eq!(value("psa_audit_missed_mass_count", &odd, &text, ""), Some(4.0));
        assert_eq!(value("psa_audit_missed_mass_sum", "p", &text, ""), None, "nothing audited, nothing said");
    }
    assert_eq!(value("psa_records_dropped_total", "p", "", ""), Some(1.0));
}

#[test]
fn json_lines_have_every_record_and_audit_and_end_with_their_number() {
    let batch = Batch::random(SHAPE, &[400, 300], 6);
    let (mut cache, ids) = batch.cache(&Device::cpu(), Mirror::Bits2);
    let step = step(&batch, &mut cache, &ids, Policy::Progressive { mass: 0.7 }, true);
    let mut telemetry = Telemetry::new(SHAPE, 3);
    telemetry.observe(7, &step.plan, 0).unwrap();
    telemetry.add_audits(audits(Audit::new(1.0, 0).unwrap(), &step, &mut cache));
    let mut text = Vec::new();
    let labels = Labels::new([("policy", "progressive:0.7".to_owned())]).unwrap();
    write_json_lines(&mut text, &labels, &telemetry).unwrap();
    let lines: Vec<serde_json::Value> =
        String::from_utf8(text).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<&str> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["read", "read", "read", "audit", "audit", "audit", "totals", "totals", "end"]);
    assert!(lines.iter().all(|line| line["policy"] == "progressive:0.7"));
    let first = telemetry.records().next().unwrap();
    assert_eq!(
        (lines[0]["step"].as_u64(), lines[0]["blocks_read"].as_u64()),
        (Some(7), Some(first.blocks_read as u64))
    );
    assert_eq!(lines[0]["path"], first.path.name());
    assert_eq!(lines[0]["mass"].as_array().unwrap().len(), 2);
    let audit = telemetry.audits().next().unwrap();
    assert_eq!(lines[3]["true_missed"][1].as_f64(), Some(audit.true_missed[1]));
    assert_eq!(lines[6]["blocks_read"].as_u64(), Some(telemetry.counters(0, 0).blocks_read));
    assert_eq!(lines[6]["paths"].as_object().unwrap().len(), Path::ALL.len());
    let end = &lines[8];
    assert_eq!((end["records"].as_u64(), end["records_dropped"].as_u64()), (Some(3), Some(1)));
    assert_eq!((end["audits"].as_u64(), end["audits_dropped"].as_u64()), (Some(3), Some(1)));
}

#[test]
fn labels_that_no_reader_would_take_are_refused_by_name() {
    for bad in ["", "9a", "a-b", "__a", "layer", "step"] {
        let error = Labels::new([(bad, String::new())]).unwrap_err().to_string();
        assert!(error.contains(&format!("{bad:?}")), "{error}");
    }
    assert!(Labels::new([("a", String::new()), ("a", String::new())]).is_err());
}
