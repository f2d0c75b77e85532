//! `psa lengths`: what policies read by the length of the context, on recorded contexts cut shorter and
//! made longer; table and picture. Longer ones are made up ([`psa::traces::extend`]) and marked so.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use psa::Policy;
use psa::eval::{Entrant, Record, Replay, ReplayOptions, Truth, evaluate};
use psa::plot::{Anchor, Axis, Chart, Marker, PALETTE, Rect, Series, Svg};
use psa::traces::{Case, SHORTEST, Traces, cut_case, extend_case};

use super::options::ReplayArgs;
use super::table::{error, mass, percent};
use super::{CliError, Progress, Table, Verdict, probe};

/// Options of `psa lengths`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  psa lengths --traces tests/data/traces.safetensors\n  psa lengths --traces T --lengths 1024,65536,1048576 \
    --policy progressive:0.95 --mirror 2+2 --out lengths.svg\n\n\
    Shorter contexts keep the first and the last tokens of the recorded ones. Longer ones are made up: recorded tokens of\n\
    the farthest half, drawn again, with the mass of each further octave as the recorded octaves let expect. Up to 2,097,152\n\
    tokens on cpu and reference, memory allowing (a case of 1,048,576 tokens and 64 channels takes 2 GB).\n\n\
    identity: share of the steps that read everything without asking a mirror, as short contexts do."
)]
pub struct LengthsArgs {
    /// A psa-traces-v1 file; its JSON lies beside it
    #[arg(long, value_name = "FILE")]
    traces: PathBuf,
    #[arg(
        long,
        value_name = "TOKENS",
        value_delimiter = ',',
        help = "Tokens of the contexts [default: 16, 64, 128, .. 32768, as far as the recorded ones can be made longer]"
    )]
    lengths: Vec<usize>,
    /// A policy; may be repeated [default: progressive:0.95, quest:0.4, oracle:0.95]
    #[arg(long, value_name = "POLICY")]
    policy: Vec<Policy>,
    #[command(flatten)]
    replay: ReplayArgs,
    /// Seed of the longer contexts
    #[arg(long, default_value_t = 0)]
    extend_seed: u64,
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

/// Steps of a case unless `--queries` says otherwise: lengths matter here, and neighbouring steps are alike.
const QUERIES: usize = 8;

/// Lengths unless `--lengths` says otherwise.
const LENGTHS: [usize; 11] = [16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768];

/// One policy at one length.
struct Point {
    tokens: usize,
    made_up: bool,
    record: Record,
}

/// Runs the command.
pub fn run(args: &LengthsArgs) -> Result<Verdict, CliError> {
    let progress = Progress::new(args.progress);
    if let Some(file) = &args.out {
        probe(file)?;
    }
    let device = args.replay.backend.device(args.replay.seed, args.replay.gpu)?;
    let mut traces = Traces::load(&args.traces)?;
    let queries = args.replay.queries.unwrap_or(QUERIES);
    let last = |case: &&Case| case.part(case.queries - queries.min(case.queries)..case.queries);
    traces.cases = traces.select(args.replay.case.as_deref())?.iter().map(last).collect();
    let recorded = traces.cases.iter().map(|case| case.context).min().unwrap_or(0);
    let policies = if args.policy.is_empty() {
        ["progressive:0.95", "quest:0.4", "oracle:0.95"].iter().filter_map(|text| text.parse().ok()).collect()
    } else {
        args.policy.clone()
    };
    let entrants: Vec<Entrant> = policies.into_iter().map(|policy| args.replay.entrant(policy)).collect();

    let mut lengths = args.lengths.clone();
    if lengths.is_empty() {
        let longest =
            if recorded >= SHORTEST.max(4 * queries) { LENGTHS[LENGTHS.len() - 1] } else { recorded };
        lengths = LENGTHS.into_iter().filter(|&tokens| tokens <= longest).collect();
        if longest == recorded {
            lengths.push(recorded);
        }
    }
    lengths.sort_unstable();
    lengths.dedup();
    let longest = lengths.last().copied().unwrap_or(0);
    check_memory(longest, &traces)?;
    let options = ReplayOptions {
        device: device.clone(),
        forced: args.replay.forced(),
        limits: args.replay.limits(),
        tail: args.replay.tail,
        queries: None,
        keep: false,
    };
    let mut points = Vec::new();
    for tokens in lengths {
        let made_up = tokens > recorded;
        let count = traces.cases.len();
        let mut replays: Vec<Vec<Replay>> = entrants.iter().map(|_| Vec::new()).collect();
        let all: Vec<usize> = (0..count).collect();
        for part in all.chunks(at_once(tokens)) {
            progress.say(&format!("{tokens} tokens, case {} of {count}", part[0] + 1));
            let cases = part.iter().map(|&index| match tokens > traces.cases[index].context {
                true => extend_case(&traces, index, tokens, args.extend_seed),
                false => cut_case(&traces, index, tokens),
            });
            let cases = cases.collect::<Result<Vec<Case>, _>>()?;
            let truths = cases.iter().map(|case| Truth::of(case, traces.scale, None));
            let truths = truths.collect::<Result<Vec<_>, _>>()?;
            let pairs: Vec<_> = cases.iter().zip(&truths).collect();
            let of_part = evaluate(&pairs, traces.scale, &entrants, &options, &|_| ())?;
            replays.iter_mut().zip(of_part).for_each(|(all, part)| all.extend(part));
        }
        points.extend(entrants.iter().zip(&replays).map(|(&entrant, replays)| Point {
            tokens,
            made_up,
            record: Record::of_all(entrant, device.name(), replays),
        }));
    }

    if let Some(file) = &args.out {
        std::fs::write(file, picture(&traces.origin, &entrants, &points, recorded))
            .map_err(|source| CliError::Picture { file: file.display().to_string(), source })?;
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        for point in &points {
            let mut record = serde_json::to_value(&point.record)?;
            record["tokens"] = point.tokens.into();
            record["made_up"] = point.made_up.into();
            writeln!(out, "{record}")?;
        }
    } else {
        writeln!(out, "Traces: {}; contexts marked * are made up\n", traces.origin)?;
        write!(out, "{}", table(&points))?;
        for (i, entrant) in entrants.iter().enumerate() {
            let mine: Vec<&Point> = points.iter().skip(i).step_by(entrants.len()).collect();
            writeln!(out, "{}", verdict(entrant, &mine))?;
        }
        if let Some(file) = &args.out {
            writeln!(out, "\nPicture: {}", file.display())?;
        }
    }
    out.flush()?;
    Ok(Verdict::Good)
}

/// Cases in memory at a time: all eight of the bundle up to 32,768 tokens, one by one beyond 262,144.
fn at_once(tokens: usize) -> usize {
    ((1 << 18) / tokens.max(1)).max(1)
}

/// Refuses what does not fit: making a case takes its K and V in f64 and in the cache's type, with the exact masses' keys
/// in f64 beside them, 28 bytes an element of K; the caches come when that is gone.
fn check_memory(tokens: usize, traces: &Traces) -> Result<(), CliError> {
    let widest = traces.cases.iter().map(|case| case.head_dim).max().unwrap_or(0);
    let cases = at_once(tokens).min(traces.cases.len());
    let needed = tokens.saturating_mul(widest).saturating_mul(28 * cases);
    match available_memory() {
        Some(available) if needed > available => Err(CliError::Memory { tokens, needed, available }),
        _ => Ok(()),
    }
}

/// Bytes that the system can still give, where it says so.
fn available_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

fn table(points: &[Point]) -> String {
    let head = [
        "policy",
        "mirror",
        "tokens",
        "KV read %",
        "metadata %",
        "total %",
        "identity %",
        "missed mean",
        "p99",
        "max",
        "output err mean",
    ];
    let mut table = Table::new(2, &head);
    for Point { tokens, made_up, record } in points {
        table.row(vec![
            record.policy.clone(),
            record.mirror.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{tokens}{}", if *made_up { "*" } else { " " }),
            percent(record.kv_fraction),
            percent(record.metadata_fraction),
            percent(record.bytes_fraction),
            percent(record.identity_fraction),
            mass(record.missed_mass.mean),
            mass(record.missed_mass.p99),
            mass(record.missed_mass.max),
            error(record.output_error.mean),
        ]);
    }
    table.render()
}

/// Up to which length the policy takes the identity path, and from which on it reads less than dense attention, metadata
/// counted.
fn verdict(entrant: &Entrant, points: &[&Point]) -> String {
    let pays = |point: &&&Point| point.record.bytes_fraction < 1.0;
    let from = points.iter().rev().take_while(pays).last();
    let whole = points.iter().take_while(|point| point.record.identity_fraction == 1.0).last();
    let whole = whole.map_or(String::new(), |last| {
        format!(" It reads everything, without metadata, up to {} tokens.", last.tokens)
    });
    match from {
        Some(first) => {
            format!("{} reads fewer bytes than dense from {} tokens on.{whole}", entrant.policy, first.tokens)
        }
        None => {
            format!(
                "{} reads no fewer bytes than dense at the longest of these lengths.{whole}",
                entrant.policy
            )
        }
    }
}

fn picture(origin: &str, entrants: &[Entrant], points: &[Point], recorded: usize) -> String {
    let markers =
        [Marker::Circle, Marker::Square, Marker::Star, Marker::Triangle, Marker::Diamond, Marker::Wedge];
    let series = entrants.iter().enumerate().map(|(i, entrant)| Series {
        name: match entrant.ranks_by() {
            Some(mirror) => format!("{}, {mirror}", entrant.policy),
            None => entrant.policy.to_string(),
        },
        color: PALETTE[i % PALETTE.len()].to_owned(),
        marker: markers[i % markers.len()],
        line: true,
        points: points
            .iter()
            .skip(i)
            .step_by(entrants.len())
            .map(|p| (p.tokens as f64, p.record.bytes_fraction * 100.0))
            .collect(),
        marked: Vec::new(),
    });
    let most = points.iter().map(|p| p.record.bytes_fraction * 100.0).fold(100.0, f64::max);
    let chart = Chart {
        title: "Bytes read by length of the context, metadata included".to_owned(),
        x: Axis::log("tokens", points.iter().map(|p| p.tokens as f64), None),
        y: Axis::linear("bytes read (% of dense)", 0.0, (most / 20.0).ceil() * 20.0),
        series: series.collect(),
        reference: Some((100.0, "dense".to_owned())),
    };
    let mut svg = Svg::new(760.0, 520.0, "Bytes read by length of the context");
    chart.draw(&mut svg, Rect { x: 20.0, y: 16.0, width: 720.0, height: 464.0 });
    let source = origin.split(',').next().unwrap_or(origin);
    svg.note(
        (30.0, 502.0),
        12.0,
        Anchor::Start,
        &format!("{source}: recorded up to {recorded} tokens; longer contexts are made up from them"),
    );
    svg.finish()
}
