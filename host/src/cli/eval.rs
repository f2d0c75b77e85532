//! `psa eval`: replays recorded queries; one record a case and policy, then one over all cases.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use psa::Policy;
use psa::eval::{Entrant, Record, ReplayOptions, Truth, evaluate_audited};
use psa::traces::Traces;

use super::options::ReplayArgs;
use super::table::{error, mass, percent};
use super::watch::WatchArgs;
use super::{CliError, Progress, Table, Verdict};

/// Output error up to which dense attention counts as the recorded one: f16 inputs are exact, the
/// recorded output is f64 arithmetic rounded to f32, and f32 attention over them is far closer.
const DENSE_ERROR: f64 = 1e-3;

/// Options of `psa eval`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  psa eval --traces tests/data/traces.safetensors\n  psa eval --traces T --policy \
    progressive:0.95 --mirror 4 --json\n  psa eval --traces T --policy quest:0.4 --policy top-k:64 --case case3 --queries 8\n  \
    psa eval --traces T --telemetry steps.jsonl --audit 0.05\n  psa eval --traces T --audit 1 --calibration audit.svg\n\n\
    Policies: dense, top-k:F, top-p:M, progressive:M, certified:E, quest:F, mean:F, cuboid:F, oracle:M. F is a\n\
    fraction of the blocks (with a decimal point) or a number of blocks, M a share of the softmax mass, E the\n\
    largest share that may be missed.\n\n\
    Units: kv_fraction, metadata_fraction and missed_mass are shares of 1; the table shows the first two in per cent.\n\
    certified_fraction, missed_bound, output_bound and bound_violations are null but for certified:E, audit but\n\
    with --audit.\n\
    Exit code 1 where dense attention is not the recorded one, or a bound is below the truth."
)]
pub struct EvalArgs {
    /// A psa-traces-v1 file; its JSON lies beside it
    #[arg(long, value_name = "FILE")]
    traces: PathBuf,
    /// A policy; may be repeated [default: dense, progressive:0.95, oracle:0.95]
    #[arg(long, value_name = "POLICY")]
    policy: Vec<Policy>,
    #[command(flatten)]
    replay: ReplayArgs,
    #[command(flatten)]
    watch: WatchArgs,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// Progress on stderr even where it is no terminal
    #[arg(long)]
    progress: bool,
}

/// Runs the command.
pub fn run(args: &EvalArgs) -> Result<Verdict, CliError> {
    let progress = Progress::new(args.progress);
    let device = args.replay.backend.device(args.replay.seed, args.replay.gpu)?;
    let watch = args.watch.prepare(args.replay.seed)?;
    let traces = Traces::load(&args.traces)?;
    let cases = traces.select(args.replay.case.as_deref())?;
    progress.say(&format!("{} case(s) of {}: exact masses", cases.len(), traces.origin));
    let truths = cases.iter().map(|case| Truth::of(case, traces.scale, args.replay.queries));
    let truths = truths.collect::<Result<Vec<_>, _>>()?;
    let pairs: Vec<_> = cases.iter().copied().zip(&truths).collect();
    let entrants: Vec<Entrant> =
        policies(args).into_iter().map(|policy| args.replay.entrant(policy)).collect();
    let options = ReplayOptions {
        device: device.clone(),
        forced: args.replay.forced(),
        limits: args.replay.limits(),
        tail: args.replay.tail,
        queries: args.replay.queries,
        keep: false,
    };
    let replays = evaluate_audited(&pairs, traces.scale, &entrants, &options, watch.audit, &|step| {
        progress.say(&format!("{} done, {} of {}", step.case, step.done, step.cases));
    })?;

    let runs: Vec<_> = entrants.iter().copied().zip(replays.iter().map(Vec::as_slice)).collect();
    watch.write(&runs, device.name())?;
    let mut records = Vec::new();
    for (&entrant, replays) in entrants.iter().zip(&replays) {
        records.extend(replays.iter().map(|replay| Record::of_case(entrant, device.name(), replay)));
        records.push(Record::of_all(entrant, device.name(), replays));
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        for record in &records {
            writeln!(out, "{}", serde_json::to_string(record)?)?;
        }
    } else {
        write!(out, "{}", human_table(&records))?;
        if watch.audit.is_some() {
            write!(out, "\n{}", audit_table(&records))?;
        }
    }
    out.flush()?;
    Ok(judge(&records))
}

fn policies(args: &EvalArgs) -> Vec<Policy> {
    if args.policy.is_empty() {
        vec![Policy::Dense, Policy::Progressive { mass: 0.95 }, Policy::Oracle { mass: 0.95 }]
    } else {
        args.policy.clone()
    }
}

/// Dense attention has one right answer; with another, no figure of this run means anything.
fn judge(records: &[Record]) -> Verdict {
    let mut verdict = Verdict::Good;
    for record in records.iter().filter(|record| record.policy == Policy::Dense.to_string()) {
        // Written so that NaN is bad.
        let good = record.missed_mass.max == 0.0 && record.output_error.max <= DENSE_ERROR;
        if !good {
            eprintln!(
                "bad: dense attention on {} misses {} of the mass and is {:e} off the recorded output (limit \
                 {DENSE_ERROR:e}); the recorded output is not that of these queries, keys and values",
                record.case, record.missed_mass.max, record.output_error.max
            );
            verdict = Verdict::Bad;
        }
    }
    for record in records.iter().filter(|record| record.bound_violations.is_some_and(|n| n > 0)) {
        eprintln!(
            "bad: {} on {}: the true missed mass is above its certified bound in {} cases; this is a bug, please \
             report it",
            record.policy,
            record.case,
            record.bound_violations.unwrap_or(0)
        );
        verdict = Verdict::Bad;
    }
    verdict
}

/// What audits found, beside what was believed.
fn audit_table(records: &[Record]) -> String {
    let head = [
        "policy",
        "case",
        "audited heads",
        "believed missed mean",
        "missed mean",
        "p99",
        "max",
        "output err mean",
        "max",
        "more missed than believed %",
    ];
    let mut table = Table::new(2, &head);
    for record in records {
        let Some(audit) = &record.audit else { continue };
        table.row(vec![
            record.policy.clone(),
            record.case.clone(),
            audit.heads.to_string(),
            mass(audit.believed_missed.mean),
            mass(audit.missed_mass.mean),
            mass(audit.missed_mass.p99),
            mass(audit.missed_mass.max),
            error(audit.output_error.mean),
            error(audit.output_error.max),
            percent(audit.underestimated),
        ]);
    }
    table.render()
}

fn human_table(records: &[Record]) -> String {
    let mut table = Table::new(
        3,
        &[
            "policy",
            "mirror",
            "case",
            "steps",
            "KV read %",
            "metadata %",
            "missed mean",
            "p99",
            "max",
            "output err mean",
            "p99",
            "max",
            "lse err max",
            "top-ups %",
            "certified %",
            "time ms",
        ],
    );
    for record in records {
        table.row(vec![
            record.policy.clone(),
            record.mirror.clone().unwrap_or_else(|| "-".to_owned()),
            record.case.clone(),
            record.queries.to_string(),
            percent(record.kv_fraction),
            percent(record.metadata_fraction),
            mass(record.missed_mass.mean),
            mass(record.missed_mass.p99),
            mass(record.missed_mass.max),
            error(record.output_error.mean),
            error(record.output_error.p99),
            error(record.output_error.max),
            error(record.lse_error.max),
            percent(record.topup_fraction),
            record.certified_fraction.map_or_else(|| "-".to_owned(), percent),
            format!("{:.1}", record.wall_ms),
        ]);
    }
    table.render()
}
