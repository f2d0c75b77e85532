//! `psa pipeline-bench`: decode steps with a host tier on recorded data, three ways: iterations with a wait of the host
//! after each (serial), pipelined, and with everything on the device (resident).
//!
//! The shipped kernels run on the emulator, so plans, misses and bits are real; all times are those of a declared cost
//! model. The emulated cache is a scale model: `--scale` bytes stand behind each of its bytes.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use half::f16;
use psa::driver::{Costs, Driver, Emulated, EmulatedOptions, Order, StreamId, StreamOptions};
use psa::pipeline::{DecodePipeline, PipelineConfig, Scheme, StepResults};
use psa::timeline::{SpanKind, Timeline, timelines_svg};
use psa::traces::{Case, Elements, Traces};
use psa::{Dtype, Policy, Shape};
use serde::Serialize;

use super::table::percent;
use super::{CliError, Progress, Table, Verdict, probe};
use crate::demo::bundled;

/// Options of `psa pipeline-bench`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  psa pipeline-bench\n  psa pipeline-bench --capacity 0.5 --steps 8 --json\n  psa pipeline-bench --trace \
    step.json --out step.svg\n\n\
    The cases of a psa-traces-v1 file are the rows of a small model: 4 KV heads a layer, as many layers as there are cases\n\
    for. modelled_us: a step, by the declared costs of the device; nothing is timed. miss_rate: blocks that were not\n\
    on the device when the last step ended, by blocks read. hidden_fraction: the share of the time of fetches during which\n\
    the compute stream computed. host_syncs_per_step does not count the read of the step's results.\n\n\
    Exit code 1 where the pipelined step is slower than the serial one, a resident one waits, or bits differ."
)]
pub struct PipelineBenchArgs {
    /// A psa-traces-v1 file [default: the bundled traces]
    #[arg(long, value_name = "FILE")]
    traces: Option<PathBuf>,
    /// Policy that selects the blocks
    #[arg(long, value_name = "POLICY", default_value = "progressive:0.95")]
    policy: Policy,
    /// Slots on the device as a share of all blocks; may be repeated [default: 0.35, 0.4, 0.5]
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    capacity: Vec<f64>,
    /// Steps that are counted, after as many that fill the device
    #[arg(long, value_name = "STEPS", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
    /// Tokens of context at most: the last ones
    #[arg(long, value_name = "TOKENS", default_value_t = 4096)]
    tokens: usize,
    /// Bytes that a byte of the emulated cache stands for [default: a cache of 8 KV heads, 128 dims, 32,768 tokens]
    #[arg(long, value_name = "FACTOR")]
    scale: Option<f64>,
    /// Time of the model's own work in a layer, in microseconds: weights of an 8B model (436 MB a layer)
    #[arg(long, value_name = "US", default_value_t = 156.0)]
    model_us: f64,
    /// Whose costs: h100 (PCIe 5), gh200 (the same with NVLink-C2C to the host)
    #[arg(long, value_name = "MODEL", default_value = "h100", value_parser = parse_device)]
    device: Costs,
    /// Blocks of a chunk of fetches
    #[arg(long, value_name = "BLOCKS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// Ranks below the stop that are fetched ahead
    #[arg(long, value_name = "RANKS", default_value_t = PipelineConfig::default().ahead)]
    ahead: usize,
    /// Where the picture of the last step goes
    #[arg(long, value_name = "FILE", default_value = "pipeline.svg")]
    out: PathBuf,
    /// Write the last pipelined step as a Chrome or Perfetto trace
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// One JSON object a line instead of a table; no picture
    #[arg(long)]
    json: bool,
    /// Progress on stderr even where it is no terminal
    #[arg(long)]
    progress: bool,
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("use a share of all blocks above 0 and below 1, for example 0.5".into()),
    }
}

fn parse_device(text: &str) -> Result<Costs, String> {
    match text {
        "h100" => Ok(Costs::H100),
        "gh200" => Ok(Costs::GH200),
        _ => Err("use h100 or gh200".into()),
    }
}

/// A scheme's record.
#[derive(Clone, Debug, Serialize)]
struct Record {
    scheme: &'static str,
    /// The model that the times come from.
    model: &'static str,
    capacity: f64,
    miss_rate: f64,
    host_syncs_per_step: f64,
    launches_per_layer: f64,
    allocations_per_step: f64,
    hidden_fraction: f64,
    modelled_us: f64,
    /// Time of fetches in a step.
    fetch_us: f64,
    fetched_mb_per_step: f64,
    ahead_wasted_fraction: f64,
    iterations_per_step: f64,
    same_bits: bool,
}

const KV_HEADS: usize = 4;

/// The rows of the small model and what happens in its steps.
struct Story<'a> {
    cases: Vec<&'a Case>,
    shape: Shape,
    policy: Policy,
    /// First token of the cases that is used.
    first: usize,
    /// First query that is a step.
    from: usize,
}

impl Story<'_> {
    fn case(&self, layer: usize, head: usize) -> &Case {
        self.cases[layer * KV_HEADS + head]
    }

    /// `[layers, tokens, kv_heads, head_dim]`.
    fn tokens(&self, of: impl Fn(&Case) -> &Elements, range: std::ops::Range<usize>) -> Vec<f16> {
        let d = self.shape.head_dim;
        let mut all = vec![];
        for layer in 0..self.shape.layers {
            for token in range.clone() {
                for head in 0..KV_HEADS {
                    let rows = of(self.case(layer, head)).rows(token * d..(token + 1) * d);
                    all.extend(rows.bits().iter().map(|&bits| f16::from_bits(bits)));
                }
            }
        }
        all
    }

    /// Queries of step `i`: `[layers, q_heads, head_dim]`.
    fn queries(&self, i: usize) -> Vec<f16> {
        let of = |case: &Case| case.query(i);
        let all = (0..self.shape.layers).flat_map(|l| (0..KV_HEADS).map(move |h| (l, h)));
        all.flat_map(|(l, h)| {
            let q = of(self.case(l, h));
            q.rows(0..q.len()).bits().iter().map(|&bits| f16::from_bits(bits)).collect::<Vec<_>>()
        })
        .collect()
    }
}

struct Outcome {
    record: Record,
    results: Vec<StepResults>,
    last: Timeline,
}

fn costs(args: &PipelineBenchArgs, story: &Story<'_>) -> Costs {
    let own = KV_HEADS * story.shape.head_dim * args.tokens;
    args.device.scaled(args.scale.unwrap_or(8.0 * 128.0 * 32768.0 / own as f64))
}

fn run_scheme(
    args: &PipelineBenchArgs,
    story: &Story<'_>,
    capacity: Option<f64>,
    scheme: Scheme,
) -> Result<Outcome, CliError> {
    let broken = |error: psa::driver::DriverError| {
        CliError::Psa(psa::Error::Backend {
            device: "emulator".into(),
            call: "pipeline-bench".into(),
            detail: error.to_string(),
        })
    };
    let (layers, counted) = (story.shape.layers, args.steps as usize);
    let context = story.cases[0].visible(story.from + 2 * counted - 1) - story.first;
    let every = layers * KV_HEADS * context.div_ceil(64) * 4;
    let slots = capacity.map(|share| (share * every as f64) as usize);
    let config = PipelineConfig {
        max_tokens: context,
        device_slots: slots,
        scheme,
        ahead: args.ahead,
        chunk: args.chunk as usize,
        ..Default::default()
    };
    let options = StreamOptions { order: Order::Timed, costs: costs(args, story), leave_out: None };
    let driver =
        Emulated::new(EmulatedOptions { seed: 0, checks: false }).map_err(broken)?.with_streams(options);
    let mut pipeline = DecodePipeline::new(Box::new(driver), story.shape, story.policy, config)?;
    let prompt = story.first..story.cases[0].visible(story.from) - 1;
    let (k, v) = (story.tokens(|c| &c.k, prompt.clone()), story.tokens(|c| &c.v, prompt.clone()));
    pipeline.prefill(0, (&k).into(), (&v).into())?;

    let mut results = vec![];
    let (mut us, mut fetch_us, mut hidden_us) = (0.0, 0.0, 0.0);
    let mut last = None;
    let (mut before, mut syncs, mut launches, mut allocations) = (pipeline.stats(), 0, 0, 0);
    for step in 0..2 * counted {
        if step == counted {
            before = pipeline.stats();
        }
        let query = story.from + step;
        let token = prompt.end + step;
        let (q, k, v) = (
            story.queries(query),
            story.tokens(|c| &c.k, token..token + 1),
            story.tokens(|c| &c.v, token..token + 1),
        );
        // A model computes q, k and v on the device, a layer at a time; here they wait in its memory.
        for layer in 0..layers {
            let inputs = pipeline.inputs(layer).unwrap_or([psa_codegen::Region::EMPTY; 3]);
            for (tensor, region) in [&q, &k, &v].into_iter().zip(inputs) {
                let bytes: &[u8] = bytemuck::cast_slice(tensor);
                let part = &bytes[layer * region.bytes() as usize..][..region.bytes() as usize];
                pipeline.driver_mut().upload(region.address(), part).map_err(broken)?;
            }
        }
        fn streams(driver: &mut dyn Driver) -> Result<&mut dyn psa::driver::Streams, CliError> {
            driver
                .streams()
                .ok_or(CliError::Backend { backend: "emulator", reason: "it has no streams".into() })
        }
        let s = streams(pipeline.driver_mut())?;
        s.synchronize(StreamId::MAIN).map_err(broken)?;
        s.trace(true).map_err(broken)?;
        let (start, counters) = (s.clock_us().unwrap_or(0.0), pipeline.counters());
        pipeline.begin_step()?;
        for layer in 0..layers {
            streams(pipeline.driver_mut())?.occupy(StreamId::MAIN, "model", args.model_us).map_err(broken)?;
            pipeline.layer(layer)?;
        }
        pipeline.end_step()?;
        let did = pipeline.counters() - counters;
        results.push(pipeline.results()?);
        let s = streams(pipeline.driver_mut())?;
        if step >= counted {
            us += s.clock_us().unwrap_or(0.0) - start;
            let timeline = s.timeline().map_err(broken)?;
            let (fetch, hidden) = overlap(&timeline);
            (fetch_us, hidden_us) = (fetch_us + fetch, hidden_us + hidden);
            syncs += did.host_syncs;
            launches += did.launches;
            allocations += did.allocations;
            last = Some(timeline);
        }
    }
    let (stats, n) = (pipeline.stats(), counted as f64);
    let of = |now: u64, then: u64| (now - then) as f64;
    let ahead = of(stats.ahead, before.ahead);
    let used = of(stats.ahead_used, before.ahead_used);
    let misses = of(stats.misses, before.misses) + used;
    let fetched = of(stats.by_copy + stats.by_gather, before.by_copy + before.by_gather);
    let scale = options.costs.scale;
    Ok(Outcome {
        record: Record {
            scheme: match (capacity, scheme) {
                (None, _) => "resident",
                (_, Scheme::Serial) => "serial",
                (_, Scheme::Pipelined) => "pipelined",
            },
            model: options.costs.name,
            capacity: capacity.unwrap_or(1.0),
            miss_rate: misses / of(stats.blocks_read, before.blocks_read).max(1.0),
            host_syncs_per_step: syncs as f64 / n,
            launches_per_layer: launches as f64 / n / layers as f64,
            allocations_per_step: allocations as f64 / n,
            hidden_fraction: if fetch_us > 0.0 { hidden_us / fetch_us } else { 1.0 },
            modelled_us: us / n,
            fetch_us: fetch_us / n,
            fetched_mb_per_step: fetched / n * story.shape.slot_bytes() as f64 * scale / 1e6,
            ahead_wasted_fraction: if ahead > 0.0 { 1.0 - used / ahead } else { 0.0 },
            iterations_per_step: of(stats.iterations, before.iterations) / n,
            same_bits: true,
        },
        results,
        last: last.unwrap_or(Timeline {
            device: String::new(),
            modelled: true,
            streams: vec![],
            spans: vec![],
        }),
    })
}

/// Time of fetches, and how much of it passed while the compute stream computed.
fn overlap(timeline: &Timeline) -> (f64, f64) {
    let Some(fetch) = timeline.streams.iter().position(|name| name == "fetch") else { return (0.0, 0.0) };
    let works = |kind| matches!(kind, SpanKind::Kernel | SpanKind::Copy | SpanKind::Model);
    let of = |stream| timeline.spans.iter().filter(move |span| span.stream == stream && works(span.kind));
    let (mut total, mut hidden) = (0.0, 0.0);
    for span in of(fetch) {
        total += span.end_us - span.start_us;
        for work in of(0) {
            hidden += (span.end_us.min(work.end_us) - span.start_us.max(work.start_us)).max(0.0);
        }
    }
    (total, hidden)
}

/// Runs the command.
pub fn run(args: &PipelineBenchArgs) -> Result<Verdict, CliError> {
    let progress = Progress::new(args.progress);
    if !args.json {
        probe(&args.out)?;
    }
    let traces = match &args.traces {
        Some(file) => Traces::load(file)?,
        None => bundled()?,
    };
    let story = story(args, &traces)?;
    let capacities = if args.capacity.is_empty() { vec![0.35, 0.4, 0.5] } else { args.capacity.clone() };
    progress.say("resident");
    let resident = run_scheme(args, &story, None, Scheme::Pipelined)?;
    let mut records = vec![resident.record.clone()];
    let mut parts = vec![];
    let mut good = resident.record.host_syncs_per_step == 0.0 && resident.record.allocations_per_step == 0.0;
    for &capacity in &capacities {
        let mut us = vec![];
        for scheme in [Scheme::Serial, Scheme::Pipelined] {
            progress.say(&format!("{scheme:?} with {} % of the blocks on the device", percent(capacity)));
            let mut outcome = run_scheme(args, &story, Some(capacity), scheme)?;
            outcome.record.same_bits = same(&outcome.results, &resident.results);
            good &= outcome.record.same_bits;
            us.push(outcome.record.modelled_us);
            records.push(outcome.record.clone());
            parts.push(outcome);
        }
        good &= us[1] <= us[0];
    }
    if let (Some(file), Some(outcome)) = (&args.trace, parts.last()) {
        std::fs::write(file, outcome.last.to_chrome_json()).map_err(|source| CliError::Unwritable {
            file: file.display().to_string(),
            option: "--trace",
            source,
        })?;
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        for record in &records {
            writeln!(out, "{}", serde_json::to_string(record)?)?;
        }
    } else {
        // Two layers of the first capacity: more would be too fine to see.
        let shown: Vec<(String, Timeline)> = parts
            .iter()
            .take(2)
            .chain([&resident])
            .map(|outcome| (outcome.record.scheme.to_owned(), first_layers(&outcome.last, 2)))
            .collect();
        let shown: Vec<(&str, &Timeline)> = shown.iter().map(|(name, t)| (name.as_str(), t)).collect();
        std::fs::write(&args.out, timelines_svg(&shown))
            .map_err(|source| CliError::Picture { file: args.out.display().to_string(), source })?;
        let model = costs(args, &story);
        writeln!(
            out,
            "Model: times are by the declared costs of {} (nothing is timed); a byte stands for {:.0}; {} us of other work \
             a layer, {} layers of {KV_HEADS} KV heads",
            model.name, model.scale, args.model_us, story.shape.layers
        )?;
        write!(out, "{}", table(&records))?;
        writeln!(out, "picture: {}", args.out.display())?;
    }
    out.flush()?;
    Ok(if good { Verdict::Good } else { Verdict::Bad })
}

/// From the step's start until `layers` further pieces of the model's work have begun.
fn first_layers(timeline: &Timeline, layers: usize) -> Timeline {
    let model: Vec<f64> =
        timeline.spans.iter().filter(|s| s.kind == SpanKind::Model).map(|s| s.start_us).collect();
    match (model.first(), model.get(layers)) {
        (Some(&from), Some(&to)) => timeline.between(from, to),
        _ => timeline.clone(),
    }
}

fn same(a: &[StepResults], b: &[StepResults]) -> bool {
    let bits = |x: &StepResults| {
        let of = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        (of(&x.out), of(&x.lse), x.read.clone())
    };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| bits(a) == bits(b))
}

fn story<'a>(args: &PipelineBenchArgs, traces: &'a Traces) -> Result<Story<'a>, CliError> {
    let refuse =
        |what: String, remedy: &str| CliError::Psa(psa::Error::Config { what, remedy: remedy.into() });
    let mut cases: Vec<&Case> = traces.cases.iter().collect();
    let Some(&first) = cases.first() else {
        return Err(refuse("traces without a case".into(), "name a file with some"));
    };
    let alike = |c: &&Case| {
        (c.group, c.queries, c.context, c.head_dim)
            == (first.group, first.queries, first.context, first.head_dim)
    };
    cases.retain(alike);
    let layers = cases.len() / KV_HEADS;
    cases.truncate(layers * KV_HEADS);
    if layers == 0 || !matches!(first.k, Elements::F16(_)) {
        return Err(refuse(
            format!("{} cases of one geometry", cases.len()),
            "pipeline-bench takes f16 traces with at least 4 cases of the same group, length and head_dim",
        ));
    }
    let steps = 2 * args.steps as usize;
    if steps > first.queries {
        return Err(refuse(
            format!("{} steps, half of them counted, where the traces have {} queries", steps, first.queries),
            "use fewer --steps",
        ));
    }
    let from = first.queries - steps;
    let tokens = args.tokens.min(first.visible(first.queries - 1));
    if tokens < steps + 64 {
        return Err(refuse(format!("{tokens} tokens"), "use at least 64 more --tokens than twice --steps"));
    }
    let shape = Shape {
        layers,
        q_heads: KV_HEADS * first.group,
        kv_heads: KV_HEADS,
        head_dim: first.head_dim,
        dtype: Dtype::F16,
    };
    let start = first.visible(first.queries - 1) - tokens;
    Ok(Story { cases, shape, policy: args.policy, first: start, from })
}

fn table(records: &[Record]) -> String {
    let head = [
        "scheme",
        "capacity %",
        "misses %",
        "host waits",
        "launches/layer",
        "allocations",
        "fetch us",
        "hidden %",
        "ahead wasted %",
        "step us",
        "bits",
    ];
    let mut table = Table::new(1, &head);
    for r in records {
        table.row(vec![
            r.scheme.into(),
            percent(r.capacity),
            percent(r.miss_rate),
            format!("{:.1}", r.host_syncs_per_step),
            format!("{:.1}", r.launches_per_layer),
            format!("{:.1}", r.allocations_per_step),
            format!("{:.0}", r.fetch_us),
            percent(r.hidden_fraction),
            percent(r.ahead_wasted_fraction),
            format!("{:.0}", r.modelled_us),
            if r.same_bits { "same" } else { "DIFFER" }.into(),
        ]);
    }
    table.render()
}
