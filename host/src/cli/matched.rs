//! `psa match`: what every policy reads at the same quality.
//!
//! Each contender's parameter is tuned on one half of the cases and compared on the other, and the other
//! way round; a row of the table pools both, so every case counts once and no parameter has seen it.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use psa::Policy;
use psa::eval::{Contender, Entrant, Field, Goal, Record, Replay, ReplayOptions, Truth, halves, tune};
use psa::traces::{Case, Traces};
use serde_json::json;

use super::figure::{Curve, Figure};
use super::options::ReplayArgs;
use super::table::{error, mass, percent};
use super::{CliError, Progress, Table, Verdict, probe};

/// Who competes unless said otherwise.
const CONTENDERS: &str = "quest,mean,top-k@2+2,top-p@2+2,progressive@2+2,progressive@2,certified@8,oracle";

/// Options of `psa match`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  psa match --traces tests/data/traces.safetensors --quality missed_p99=0.05\n  psa match --traces T \
    --quality error_mean=0.02 --policy quest,progressive@4,oracle --json\n  psa match --traces T --quality missed_p99=0.05 \
    --split none --out match.svg\n\n\
    Figures of quality: missed_mean, missed_p99, missed_max, error_mean, error_p99, error_max; shares of 1.\n\
    Contenders: quest, mean, cuboid, oracle, and with a mirror after @ (2+2 without): top-k, top-p, progressive,\n    certified. --unit and --quant-group hold for all, --mirror for none.\n\n\
    Exit code 1 where a contender cannot reach the quality even reading everything."
)]
pub struct MatchArgs {
    /// A psa-traces-v1 file; its JSON lies beside it
    #[arg(long, value_name = "FILE")]
    traces: PathBuf,
    /// The quality that all are tuned to
    #[arg(long, value_name = "FIGURE=VALUE", default_value = "missed_p99=0.05")]
    quality: Goal,
    /// Contenders, without a parameter: it is tuned
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = CONTENDERS)]
    policy: Vec<Contender>,
    /// What is tuned on what is not compared on
    #[arg(long, value_enum, default_value_t = Split::Halves)]
    split: Split,
    #[command(flatten)]
    replay: ReplayArgs,
    /// Where the picture goes; none without it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// Progress on stderr even where it is no terminal
    #[arg(long)]
    progress: bool,
}

/// How cases are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Split {
    /// Every other case; a single case by its queries
    Halves,
    /// Tuned and compared on all: an upper bound of what tuning can do
    None,
}

/// One contender over all comparisons.
struct Outcome {
    contender: Contender,
    /// One a fold; the policy with its parameter, and its quality where it was tuned.
    tuned: Vec<(Policy, f64)>,
    /// Where it was not.
    record: Record,
}

/// What the folds have given for one contender so far.
#[derive(Default)]
struct Folds {
    tuned: Vec<(Policy, f64)>,
    replays: Vec<Replay>,
}

/// Runs the command.
pub fn run(args: &MatchArgs) -> Result<Verdict, CliError> {
    let progress = Progress::new(args.progress);
    if let Some(file) = &args.out {
        probe(file)?;
    }
    let device = args.replay.backend.device(args.replay.seed, args.replay.gpu)?;
    let traces = Traces::load(&args.traces)?;
    let selected = traces.select(args.replay.case.as_deref())?;
    // The last queries, as in `psa eval`.
    let contenders: Vec<Contender> = args
        .policy
        .iter()
        .map(|&c| Contender { quant_group: args.replay.quant_group, unit: args.replay.unit, ..c })
        .collect();
    let cases: Vec<Case> = selected
        .iter()
        .map(|case| {
            let kept = args.replay.queries.unwrap_or(case.queries).min(case.queries);
            case.part(case.queries - kept..case.queries)
        })
        .collect();
    // Parts of the cases, and which is tuned on and which compared on.
    let (parts, folds): (Vec<Vec<Case>>, &[[usize; 2]]) = match args.split {
        Split::None => (vec![cases.clone()], &[[0, 0]]),
        Split::Halves => {
            let parts = halves(&cases.iter().collect::<Vec<_>>());
            if parts[1].is_empty() {
                return Err(CliError::Halves { case: cases[0].name.clone() });
            }
            (parts.into(), &[[0, 1], [1, 0]])
        }
    };
    progress.say("exact masses");
    let masses = parts.iter().map(|part| truths(part, traces.scale)).collect::<Result<Vec<_>, _>>()?;
    let options = ReplayOptions {
        device: device.clone(),
        forced: args.replay.forced(),
        limits: args.replay.limits(),
        tail: args.replay.tail,
        queries: None,
        keep: false,
    };

    let mut results: Vec<Option<Folds>> = contenders.iter().map(|_| Some(Folds::default())).collect();
    let mut dense: Vec<Replay> = Vec::new();
    let field = |part: usize| field(&parts[part], &masses[part], traces.scale, &options);
    for (fold, &[tuning, comparing]) in folds.iter().enumerate() {
        let say = |text: &str| progress.say(&format!("split {} of {}: {text}", fold + 1, folds.len()));
        let tuned = tune(&field(tuning), &contenders, &[args.quality], &|round| {
            say(&format!("tuning, round {round}"))
        })?;
        let tuned = tuned.into_iter().next().unwrap_or_default();
        let entrants: Vec<Option<Entrant>> = tuned.iter().map(|t| t.as_ref().map(|t| t.entrant)).collect();
        say("comparing");
        let dense_entrant = Entrant::new(Policy::Dense, args.replay.mirror);
        let known: Vec<Entrant> = entrants.iter().flatten().copied().chain([dense_entrant]).collect();
        let mut replays = field(comparing).replay(&known)?;
        dense.extend(replays.pop().unwrap_or_default());
        let mut replays = replays.into_iter();
        for (result, tuned) in results.iter_mut().zip(tuned) {
            let (Some(Folds { tuned: parameters, replays: steps }), Some(tuned)) = (result.as_mut(), tuned)
            else {
                *result = None;
                continue;
            };
            parameters.push((tuned.entrant.policy, args.quality.quality.of(&tuned.record)));
            steps.extend(replays.next().unwrap_or_default());
        }
    }

    let name = device.name();
    let mut outcomes = Vec::new();
    let mut failed = Vec::new();
    let mut by_case: Vec<Vec<(String, f64)>> = Vec::new();
    for (&contender, result) in contenders.iter().zip(results) {
        let Some(Folds { tuned, replays }) = result else {
            failed.push(contender);
            continue;
        };
        let entrant = Entrant { policy: tuned[0].0, ..contender.at(1) };
        by_case.push(
            replays.iter().map(|r| (r.case.clone(), Record::of_case(entrant, name, r).kv_fraction)).collect(),
        );
        outcomes.push(Outcome { contender, record: Record::of_all(entrant, name, &replays), tuned });
    }
    let dense = Record::of_all(Entrant::new(Policy::Dense, args.replay.mirror), name, &dense);

    if let Some(file) = &args.out {
        progress.say("curves for the picture, over all cases");
        let picture = picture(args, &traces, &cases, &options, &outcomes, &by_case)?;
        std::fs::write(file, picture)
            .map_err(|source| CliError::Picture { file: file.display().to_string(), source })?;
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        print_json(&mut out, args, &outcomes, &dense)?;
    } else {
        print_text(&mut out, args, &traces, &cases, &outcomes, &dense)?;
    }
    out.flush()?;
    for contender in &failed {
        eprintln!("bad: {contender} does not reach {} even where it reads everything it may", args.quality);
    }
    Ok(if failed.is_empty() { Verdict::Good } else { Verdict::Bad })
}

fn truths(cases: &[Case], scale: f32) -> Result<Vec<Truth>, CliError> {
    Ok(cases.iter().map(|case| Truth::of(case, scale, None)).collect::<Result<_, _>>()?)
}

fn field<'a>(cases: &'a [Case], truths: &'a [Truth], scale: f32, options: &ReplayOptions) -> Field<'a> {
    Field { cases: cases.iter().zip(truths).collect(), scale, options: options.clone() }
}

/// The run that others are measured in: the first progressive one, else the first.
fn yardstick(outcomes: &[Outcome]) -> Option<&Outcome> {
    let progressive = outcomes.iter().find(|o| matches!(o.tuned[0].0, Policy::Progressive { .. }));
    progressive.or(outcomes.first())
}

fn print_json(
    out: &mut impl Write,
    args: &MatchArgs,
    outcomes: &[Outcome],
    dense: &Record,
) -> Result<(), CliError> {
    for outcome in outcomes {
        let mut record = serde_json::to_value(&outcome.record)?;
        record["contender"] = outcome.contender.to_string().into();
        record["quality"] = args.quality.to_string().into();
        let parameters: Vec<String> = outcome.tuned.iter().map(|(policy, _)| policy.to_string()).collect();
        record["policy"] = parameters.join(" / ").into();
        record["parameters"] = json!(parameters);
        record["quality_where_tuned"] = json!(outcome.tuned.iter().map(|t| t.1).collect::<Vec<_>>());
        record["quality_where_compared"] = json!(args.quality.quality.of(&outcome.record));
        if let Some(yardstick) = yardstick(outcomes) {
            record["yardstick"] = yardstick.contender.to_string().into();
            record["blocks_ratio"] = json!(outcome.record.kv_fraction / yardstick.record.kv_fraction);
            record["bytes_ratio"] = json!(outcome.record.bytes_fraction / yardstick.record.bytes_fraction);
        }
        writeln!(out, "{record}")?;
    }
    let mut record = serde_json::to_value(dense)?;
    record["contender"] = "dense".into();
    writeln!(out, "{record}")?;
    Ok(())
}

fn print_text(
    out: &mut impl Write,
    args: &MatchArgs,
    traces: &Traces,
    cases: &[Case],
    outcomes: &[Outcome],
    dense: &Record,
) -> Result<(), CliError> {
    writeln!(out, "Traces: {}", traces.origin)?;
    let how = match args.split {
        Split::Halves if cases.len() > 1 => "tuned on every other case, compared on the rest, both ways",
        Split::Halves => "tuned on one half of the queries, compared on the other, both ways",
        Split::None => "tuned and compared on the same cases",
    };
    writeln!(
        out,
        "{} case(s), {} decode steps; {} each, {how}.\n",
        cases.len(),
        dense.queries,
        args.quality
    )?;
    let by = yardstick(outcomes);
    let name = by.map_or("-".to_owned(), |o| o.contender.to_string());
    let blocks_head = format!("blocks / {name}");
    let head = [
        "policy",
        "parameter",
        "where tuned",
        "KV read %",
        "metadata %",
        "total %",
        &blocks_head,
        "bytes / same",
        "missed p99",
        "missed max",
        "output err mean",
        "p99",
    ];
    let mut table = Table::new(2, &head);
    let row = |name: String, tuned: &[(Policy, f64)], record: &Record| {
        let ratio = |part: fn(&Record) -> f64| {
            by.map_or("-".to_owned(), |by| format!("{:.2}", part(record) / part(&by.record)))
        };
        let parameters: Vec<String> = tuned
            .iter()
            .map(|(policy, _)| policy.to_string())
            .map(|text| text.split_once(':').map_or(text.clone(), |(_, p)| short(p)))
            .collect();
        let reached = tuned.iter().map(|t| t.1).fold(0.0, f64::max);
        vec![
            name,
            if parameters.is_empty() { "-".to_owned() } else { parameters.join(" / ") },
            if tuned.is_empty() { "-".to_owned() } else { mass(reached) },
            percent(record.kv_fraction),
            percent(record.metadata_fraction),
            percent(record.bytes_fraction),
            ratio(|r| r.kv_fraction),
            ratio(|r| r.bytes_fraction),
            mass(record.missed_mass.p99),
            mass(record.missed_mass.max),
            error(record.output_error.mean),
            error(record.output_error.p99),
        ]
    };
    table.row(row("dense".to_owned(), &[], dense));
    for outcome in outcomes {
        table.row(row(outcome.contender.to_string(), &outcome.tuned, &outcome.record));
    }
    write!(out, "{}", table.render())?;
    writeln!(
        out,
        "\nWhere tuned: {} on the cases that the parameter was tuned on (the worse of the two ways); all other\n\
         columns where it was not. KV read: share of the blocks of K and V; metadata: bytes read to rank;\n\
         total: both, dense = 100.",
        args.quality.quality
    )?;
    if let Some(file) = &args.out {
        writeln!(out, "\nPicture: {}", file.display())?;
    }
    Ok(())
}

/// A parameter with at most five characters after the point.
fn short(parameter: &str) -> String {
    parameter.chars().take(7).collect()
}

fn picture(
    args: &MatchArgs,
    traces: &Traces,
    cases: &[Case],
    options: &ReplayOptions,
    outcomes: &[Outcome],
    by_case: &[Vec<(String, f64)>],
) -> Result<String, CliError> {
    let truths = truths(cases, traces.scale)?;
    let field = field(cases, &truths, traces.scale, options);
    let sweeps: Vec<Vec<Entrant>> = outcomes
        .iter()
        .map(|o| o.contender.sweep().iter().map(|&step| o.contender.at(step)).collect())
        .collect();
    let mut records = field.records(&sweeps.concat())?.into_iter();
    let point = |record: &Record| (record.bytes_fraction, args.quality.quality.of(record));
    let curves: Vec<Curve> = outcomes
        .iter()
        .zip(&sweeps)
        .map(|(outcome, sweep)| {
            let marked = point(&outcome.record);
            let mut points: Vec<_> = records.by_ref().take(sweep.len()).map(|r| point(&r)).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Curve { name: outcome.contender.to_string(), points, marked: Some(marked) }
        })
        .collect();
    let place = |name: &str| outcomes.iter().position(|o| o.contender.to_string() == name);
    let shown = yardstick(outcomes).map(|o| o.contender.to_string()).unwrap_or_default();
    let oracle = place("oracle").map(|i| &by_case[i]);
    let heads: Vec<(String, f64, f64)> = place(&shown)
        .map(|i| &by_case[i])
        .into_iter()
        .flatten()
        .map(|(case, read)| {
            let best = oracle.and_then(|o| o.iter().find(|(name, _)| name == case)).map_or(*read, |o| o.1);
            (case.clone(), *read, best)
        })
        .collect();
    let figure = Figure {
        traces,
        steps: cases.iter().map(|case| case.queries).sum(),
        curves: &curves,
        quality: &args.quality.quality.to_string(),
        reference: (args.quality.value, args.quality.to_string()),
        by_case: &heads,
        bars: [shown, if oracle.is_some() { "oracle".to_owned() } else { "same".to_owned() }],
    };
    Ok(figure.draw())
}
