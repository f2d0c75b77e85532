//! `psa pool-study`: which blocks should stay on the device. Replays recorded reads through the residency policies; a
//! table, and a picture of misses by capacity and of the demand of every layer and head.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use psa::eval::{ReplayOptions, Truth, evaluate};
use psa::plot::{Anchor, Axis, Chart, Marker, PALETTE, Rect, Series, Svg};
use psa::residency::{AccessError, Accesses, DECAY, StudyOptions, StudyRecord, study};
use psa::traces::Traces;
use psa::{Device, Policy};

use super::options::ReplayArgs;
use super::table::percent;
use super::{CliError, Progress, Table, Verdict, probe};

/// Steps that are not counted, unless a sequence has less than twice as many. The pool fills and scores settle in them.
const WARM_UP: usize = 32;

/// Options of `psa pool-study`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  psa pool-study\n  psa pool-study --capacity 0.2 --sequences 4 --json\n  psa pool-study --traces \
    tests/data/traces.safetensors\n\n\
    Without --traces the bundled reads are replayed: SmolLM2, 30 layers of 3 KV heads, 8,192 tokens of code, 256 steps.\n\
    --traces takes a psa-accesses-v1 file (tests/data/README.md), or a psa-traces-v1 file, whose cases are first\n\
    replayed by --policy and stand for the layers.\n\n\
    miss_rate: reads of blocks that were not on the device, by all reads. mb_per_token: 10^6 bytes fetched a token,\n\
    prefetches included. vs Belady: fetches by those of the offline optimum."
)]
pub struct PoolStudyArgs {
    /// A psa-accesses-v1 or psa-traces-v1 file [default: the bundled reads]
    #[arg(long, value_name = "FILE")]
    traces: Option<PathBuf>,
    /// Slots as a share of all blocks; may be repeated [default: 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    capacity: Vec<f64>,
    /// Sequences that share the pool, pieces of the recording; may be repeated [default: 1, 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    sequences: Vec<u32>,
    /// Steps that are not counted [default: 32, or half of a sequence's steps if those are fewer]
    #[arg(long, value_name = "STEPS")]
    warm_up: Option<usize>,
    /// What a read is worth a step later, for frequency and score-weighted
    #[arg(long, value_name = "FACTOR", default_value_t = DECAY, value_parser = parse_decay)]
    decay: f64,
    /// Policy that selects the blocks, for psa-traces-v1 files
    #[arg(long, value_name = "POLICY", default_value = "progressive:0.95")]
    policy: Policy,
    #[command(flatten)]
    replay: ReplayArgs,
    /// Where the picture goes
    #[arg(long, value_name = "FILE", default_value = "pool-study.svg")]
    out: PathBuf,
    /// One JSON object a line instead of a table; no picture
    #[arg(long)]
    json: bool,
    /// Progress on stderr even where it is no terminal
    #[arg(long)]
    progress: bool,
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("use a share of all blocks above 0 and at most 1, for example 0.2".into()),
    }
}

fn parse_decay(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (0.01..=0.999).contains(&factor) => Ok(factor),
        _ => Err("use a factor from 0.01 to 0.999".into()),
    }
}

/// Runs the command.
pub fn run(args: &PoolStudyArgs) -> Result<Verdict, CliError> {
    let progress = Progress::new(args.progress);
    if !args.json {
        probe(&args.out)?;
    }
    let accesses = load(args, &progress)?;
    let or = |given: &[f64], default: &[f64]| if given.is_empty() { default } else { given }.to_vec();
    let capacities = or(&args.capacity, &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]);
    let sequences = if args.sequences.is_empty() { vec![1, 4] } else { args.sequences.clone() };
    let mut records = Vec::new();
    for sequences in sequences.into_iter().map(|n| n as usize) {
        let warm_up = args.warm_up.unwrap_or(WARM_UP.min(accesses.steps / sequences / 2));
        let capacities = capacities.clone();
        let options = StudyOptions { capacities, sequences, warm_up, decay: args.decay };
        records.extend(study(&accesses, &options)?);
        progress.say(&format!("{sequences} sequence(s) done"));
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        for record in &records {
            writeln!(out, "{}", serde_json::to_string(record)?)?;
        }
    } else {
        std::fs::write(&args.out, draw(&accesses, &records))
            .map_err(|source| CliError::Picture { file: args.out.display().to_string(), source })?;
        write!(out, "{}", table(&accesses, &records))?;
        writeln!(out, "picture: {}", args.out.display())?;
    }
    out.flush()?;
    Ok(Verdict::Good)
}

fn load(args: &PoolStudyArgs, progress: &Progress) -> Result<Accesses, CliError> {
    let Some(file) = &args.traces else { return Ok(Accesses::bundled()?) };
    let bytes = std::fs::read(file)
        .map_err(|source| AccessError::Read { file: file.display().to_string(), source })?;
    if Accesses::is_one(&bytes) {
        return Ok(Accesses::parse(&file.display().to_string(), &bytes)?);
    }
    drop(bytes);
    select(args, file, progress)
}

/// The selections of a policy on a psa-traces-v1 file.
fn select(args: &PoolStudyArgs, file: &Path, progress: &Progress) -> Result<Accesses, CliError> {
    let traces = Traces::load(file)?;
    let mut cases = traces.select(args.replay.case.as_deref())?;
    // Rows are in the order of a step: by case, all of which have one piece of the same step.
    cases.sort_by_key(|case| case.name.trim_start_matches("case").parse::<usize>().unwrap_or(usize::MAX));
    progress.say("selecting");
    let truths: Vec<Truth> =
        cases.iter().map(|case| Truth::of(case, traces.scale, None)).collect::<Result<_, _>>()?;
    let pairs: Vec<_> = cases.iter().copied().zip(&truths).collect();
    let device: Device = args.replay.backend.device(args.replay.seed, args.replay.gpu)?;
    let options = ReplayOptions {
        device,
        forced: args.replay.forced(),
        limits: args.replay.limits(),
        tail: args.replay.tail,
        queries: None,
        keep: true,
    };
    let entrant = args.replay.entrant(args.policy);
    let replays = evaluate(&pairs, traces.scale, &[entrant], &options, &|_| {})?;
    let origin = format!("{}, selected by {}", traces.origin, args.policy);
    Ok(Accesses::from_replays(&origin, &cases, &truths, &replays[0]))
}

fn table(accesses: &Accesses, records: &[StudyRecord]) -> String {
    let head =
        ["policy", "sequences", "capacity %", "misses %", "MB/token", "vs Belady", "prefetch wasted %"];
    let mut table = Table::new(1, &head);
    for r in records {
        let wasted = r.prefetch_wasted as f64 / r.prefetched.max(1) as f64;
        table.row(vec![
            r.policy.clone(),
            r.sequences.to_string(),
            percent(r.capacity),
            format!("{:.2}", r.miss_rate * 100.0),
            format!("{:.3}", r.mb_per_token),
            r.ratio_to_belady.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
            if r.policy.ends_with("+prefetch") { percent(wasted) } else { String::new() },
        ]);
    }
    let weights = if accesses.weighted { "" } else { "No weights in this recording: no score-weighted.\n" };
    format!("{}\n{weights}\n{}", accesses.origin, table.render())
}

const WIDTH: f64 = 1180.0;

fn draw(accesses: &Accesses, records: &[StudyRecord]) -> String {
    let height = (90.0 + 14.0 * accesses.layers().min(128) as f64 + 90.0).max(560.0);
    let title = "Blocks that were not on the device, and who asks for blocks";
    let mut svg = Svg::new(WIDTH, height, title);
    svg.heading((28.0, 34.0), 18.0, Anchor::Start, title);
    svg.note((28.0, 54.0), 13.0, Anchor::Start, &accesses.origin.chars().take(150).collect::<String>());
    chart(records).draw(&mut svg, Rect { x: 24.0, y: 70.0, width: 680.0, height: 478.0 });
    demand(accesses, &mut svg, 740.0);
    svg.finish()
}

/// Misses by capacity, one line a policy; of the first number of sequences.
fn chart(records: &[StudyRecord]) -> Chart {
    let sequences = records.first().map_or(1, |r| r.sequences);
    let of_one: Vec<&StudyRecord> =
        records.iter().filter(|r| r.sequences == sequences && !r.policy.ends_with("+prefetch")).collect();
    let markers =
        [Marker::Square, Marker::Triangle, Marker::Wedge, Marker::Diamond, Marker::Circle, Marker::Star];
    let series = of_one
        .chunk_by(|a, b| a.policy == b.policy)
        .enumerate()
        .map(|(i, line)| Series {
            name: line[0].policy.clone(),
            color: PALETTE[i % PALETTE.len()].to_owned(),
            marker: markers[i % markers.len()],
            line: true,
            points: line.iter().map(|r| (r.capacity * 100.0, r.miss_rate * 100.0)).collect(),
            marked: Vec::new(),
        })
        .collect();
    let most = of_one.iter().map(|r| r.capacity * 100.0).fold(10.0, f64::max);
    Chart {
        title: format!("Misses by capacity, {sequences} sequence(s)"),
        x: Axis::linear("slots (% of all blocks)", 0.0, (most / 10.0).ceil() * 10.0),
        y: Axis::log("misses (% of reads)", of_one.iter().map(|r| r.miss_rate * 100.0), Some("0")),
        series,
        reference: None,
    }
}

/// A cell for each layer and KV head, darker where more is read.
fn demand(accesses: &Accesses, svg: &mut Svg, x: f64) {
    let heads = accesses.rows.iter().map(|row| row.kv_head + 1).max().unwrap_or(1);
    let wide = (360.0 / heads as f64).min(90.0);
    svg.heading((x, 86.0), 15.0, Anchor::Start, "Blocks read by layer and KV head (%)");
    // More layers would leave the picture.
    for (at, row) in accesses.rows.iter().enumerate().filter(|(_, row)| row.layer < 128) {
        let share = accesses.demand(at);
        let (left, top) = (x + 40.0 + wide * row.kv_head as f64, 100.0 + 14.0 * row.layer as f64);
        // Square root: most heads read little, and should not all look white.
        let tone = |dark: f64| (255.0 - (255.0 - dark) * share.sqrt()) as u8;
        let color = format!("#{:02x}{:02x}{:02x}", tone(0.0), tone(60.0), tone(120.0));
        svg.rect(Rect { x: left, y: top, width: wide - 1.0, height: 13.0 }, &color);
        if row.kv_head == 0 {
            svg.text((x + 34.0, top + 11.0), 11.0, Anchor::End, &row.layer.to_string());
        }
        if wide >= 30.0 && share < 0.4 {
            svg.text((left + wide / 2.0, top + 10.5), 10.0, Anchor::Middle, &percent(share));
        }
    }
    let below = 100.0 + 14.0 * accesses.layers().min(128) as f64 + 18.0;
    svg.note((x, below), 12.0, Anchor::Start, "% of the row's blocks in a step; no number: above 40 %");
}
