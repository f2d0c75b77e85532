//! `psa bench-report`: draws the timings of `psa-gpu` and its peers. One picture with the share of the copy
//! bandwidth by shape and, per batch and group, the time of a step by length; and a table.
//!
//! Reads the results file of a run, or files of records, one a line; several make one picture. Figures are shown
//! as they are in the files: what was not timed is not there, and nothing is estimated. A record that says it
//! is made up (as tests write them) makes the picture say so too. Records of the CPU bench are drawn by
//! [`cpu_report`].

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use psa::plot::{Anchor, Axis, Bars, Chart, Marker, PALETTE, Rect, Row, Scale, Series, Svg};
use serde::Deserialize;
use serde_json::Value;

use super::cpu_report::{self, Paired};
use super::{CliError, Table, Verdict};

/// Options of `psa bench-report`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  psa bench-report results.json\n  psa bench-report a/results.json b/results.json --out report.svg\n\n\
    The files come from `run.sh` of the GPU bundle (docs/gpu.md), from `psa-gpu time --json`, or from\n\
    `cargo xtask bench --json > cpu.jsonl`, which has a picture of its own: time and bytes by length, the limit a line.\n\
    % of copy is the bandwidth of the bytes that the algorithm has to move, as a share of a plain copy's in the same run."
)]
pub struct BenchReportArgs {
    /// Results files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where the picture goes
    #[arg(long, value_name = "FILE", default_value = "bench-report.svg")]
    out: PathBuf,
}

/// A timing; the fields that are drawn.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
struct Timing {
    device: String,
    by: String,
    what: String,
    policy: String,
    batch: u64,
    tokens: u64,
    group: u64,
    median_us: f64,
    p10_us: f64,
    p90_us: f64,
    gb_s: f64,
    copy_share: f64,
    blocks_read: u64,
    blocks_total: u64,
    /// `peers` for records of the peers' run, which has arms of ours too.
    run: String,
    made_up: bool,
}

impl Timing {
    /// `dense`; `torch dense` of a peer, `psa dense` of our arm in the peers' run.
    fn arm(&self) -> String {
        if self.run.is_empty() && (self.by == "psa" || self.by.is_empty()) {
            self.policy.clone()
        } else {
            format!("{} {}", self.by, self.policy)
        }
    }

    /// Whether `other` is our own dense step of the same shape in the same run.
    fn is_beside(&self, other: &Timing) -> bool {
        other.what == "step"
            && other.by == "psa"
            && other.policy == "dense"
            && (&other.run, &other.device) == (&self.run, &self.device)
            && (other.batch, other.group, other.tokens) == (self.batch, self.group, self.tokens)
    }
}

/// Runs the command.
pub fn run(args: &BenchReportArgs) -> Result<Verdict, CliError> {
    let (mut timings, mut paired) = (Vec::new(), Vec::new());
    for file in &args.files {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file)
            .map_err(|source| CliError::Results { file: name.clone(), reason: source.to_string() })?;
        let refused = |reason| CliError::Results { file: name.clone(), reason };
        let values = records(&text).map_err(refused)?;
        let cpu: Result<Vec<Paired>, String> = values.iter().filter_map(Paired::of).collect();
        paired.extend(cpu.map_err(refused)?);
        timings.extend(read(values).map_err(refused)?);
    }
    if !paired.is_empty() {
        if !timings.is_empty() {
            let reason =
                "some records are of a GPU, some of the CPU bench: draw one kind at a time".to_owned();
            return Err(CliError::Results { file: args.files[0].display().to_string(), reason });
        }
        return finish(args, &cpu_report::draw(&paired), &cpu_report::table(&paired));
    }
    if !timings.iter().any(|t| t.what == "step") {
        let files: Vec<_> = args.files.iter().map(|f| f.display().to_string()).collect();
        let reason = "no timing of a step is in it: the part `time` of that run did not finish".to_owned();
        return Err(CliError::Results { file: files.join(", "), reason });
    }
    finish(args, &draw(&timings), &table(&timings))
}

fn finish(args: &BenchReportArgs, picture: &str, table: &str) -> Result<Verdict, CliError> {
    std::fs::write(&args.out, picture)
        .map_err(|source| CliError::Picture { file: args.out.display().to_string(), source })?;
    let mut out = std::io::stdout().lock();
    write!(out, "{table}")?;
    writeln!(out, "picture: {}", args.out.display())?;
    Ok(Verdict::Good)
}

/// The records of a results file, or of lines of records.
fn records(text: &str) -> Result<Vec<Value>, String> {
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(mut whole)) if whole.contains_key("records") => match whole.remove("records") {
            Some(Value::Array(records)) => Ok(records),
            _ => Err("`records` is no list".into()),
        },
        Ok(one) => Ok(vec![one]),
        Err(_) => text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(i, line)| {
                serde_json::from_str(line).map_err(|e| format!("line {} is no record: {e}", i + 1))
            })
            .collect(),
    }
}

/// The timings among records.
fn read(records: Vec<Value>) -> Result<Vec<Timing>, String> {
    records
        .into_iter()
        .filter(|record| record["part"] == "time")
        .map(|record| serde_json::from_value(record).map_err(|e| format!("a timing is not as expected: {e}")))
        .collect()
}

/// What all timings have in common, for the heading.
fn heading(timings: &[Timing]) -> String {
    let mut devices: Vec<&str> = timings.iter().map(|t| t.device.as_str()).collect();
    devices.sort_unstable();
    devices.dedup();
    let copy = timings.iter().filter(|t| t.what == "copy").map(|t| format!("{:.0} GB/s", t.gb_s));
    let mut parts = vec![devices.join(", ")];
    let copies: Vec<String> = copy.collect();
    if !copies.is_empty() {
        parts.push(format!("copy {}", copies.join(", ")));
    }
    if timings.iter().any(|t| t.made_up) {
        parts.push("MADE-UP FIGURES, not a measurement".to_owned());
    }
    parts.join("; ")
}

const WIDTH: f64 = 1180.0;
const CHART: f64 = 400.0;

fn draw(timings: &[Timing]) -> String {
    let by_shape = by_shape(timings);
    let bars = bars(timings);
    let left = 80.0 + 24.0 * bars.rows.len() as f64 + 110.0;
    let right = 80.0 + (CHART + 16.0) * by_shape.len() as f64;
    let height = left.max(right) + 16.0;
    let title = "Decode attention by shape";
    let mut svg = Svg::new(WIDTH, height, title);
    svg.heading((28.0, 34.0), 18.0, Anchor::Start, title);
    svg.note((28.0, 54.0), 13.0, Anchor::Start, &heading(timings));
    bars.draw(&mut svg, Rect { x: 24.0, y: 70.0, width: 540.0, height: left - 80.0 });
    for (i, ((batch, group), steps)) in by_shape.iter().enumerate() {
        let y = 70.0 + (CHART + 16.0) * i as f64;
        let frame = Rect { x: 590.0, y, width: 566.0, height: CHART };
        chart(*batch, *group, steps).draw(&mut svg, frame);
    }
    svg.finish()
}

/// Steps by (batch, group).
fn by_shape(timings: &[Timing]) -> BTreeMap<(u64, u64), Vec<&Timing>> {
    let mut shapes: BTreeMap<(u64, u64), Vec<&Timing>> = BTreeMap::new();
    for step in timings.iter().filter(|t| t.what == "step") {
        shapes.entry((step.batch, step.group)).or_default().push(step);
    }
    shapes
}

/// Time by length, an arm a line.
fn chart(batch: u64, group: u64, steps: &[&Timing]) -> Chart {
    let mut arms: Vec<String> = steps.iter().map(|t| t.arm()).collect();
    arms.sort();
    arms.dedup();
    let markers =
        [Marker::Square, Marker::Circle, Marker::Triangle, Marker::Diamond, Marker::Wedge, Marker::Star];
    let series = arms
        .iter()
        .enumerate()
        .map(|(i, arm)| {
            let mut points: Vec<(f64, f64)> = steps
                .iter()
                .filter(|t| &t.arm() == arm)
                .map(|t| (t.tokens as f64 / 1024.0, t.median_us))
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Series {
                name: arm.clone(),
                color: PALETTE[i % PALETTE.len()].to_owned(),
                marker: markers[i % markers.len()],
                line: true,
                points,
                marked: Vec::new(),
            }
        })
        .collect();
    let lengths = || steps.iter().map(|t| t.tokens as f64 / 1024.0);
    let x = Axis {
        label: "context (thousands of tokens, logarithmic)".to_owned(),
        scale: Scale::Log,
        min: lengths().fold(f64::MAX, f64::min) / 1.2,
        max: lengths().fold(0.0, f64::max) * 1.2,
        floor: None,
    };
    Chart {
        title: format!("Time of a step, batch {batch}, group {group}"),
        x,
        y: Axis::log("median (us)", steps.iter().map(|t| t.median_us), None),
        series,
        reference: None,
    }
}

/// Share of the copy bandwidth by shape: attend and whole dense steps, where there are copies to compare with.
fn bars(timings: &[Timing]) -> Bars {
    let mut shown: Vec<&Timing> = timings.iter().filter(|t| t.what == "step" && t.copy_share > 0.0).collect();
    shown.sort_by_key(|t| (t.batch, t.group, t.tokens, t.arm()));
    let rows: Vec<Row> = shown
        .iter()
        .map(|t| {
            let dense = timings.iter().find(|d| t.is_beside(d));
            Row {
                name: format!("{} bs{} {}K g{}", t.arm(), t.batch, t.tokens / 1024, t.group),
                value: 100.0 * t.copy_share,
                mark: 100.0 * dense.map_or(t.copy_share, |d| d.copy_share),
            }
        })
        .collect();
    let most = rows.iter().map(|row| row.value.max(row.mark)).fold(100.0, f64::max);
    Bars {
        title: "Share of the copy bandwidth, whole steps".to_owned(),
        axis: Axis::linear("% of a copy's bytes a second", 0.0, (most / 20.0).ceil() * 20.0),
        color: PALETTE[0].to_owned(),
        bar_name: "this arm".to_owned(),
        mark_name: "our dense step, same shape".to_owned(),
        rows,
    }
}

fn table(timings: &[Timing]) -> String {
    let head = [
        "what",
        "batch",
        "tokens",
        "group",
        "median us",
        "p10-p90 us",
        "GB/s",
        "% of copy",
        "% read",
        "x dense",
    ];
    let mut table = Table::new(1, &head);
    let mut rows: Vec<&Timing> = timings.iter().filter(|t| t.what != "copy").collect();
    rows.sort_by_key(|t| (t.what != "step", t.what.clone(), t.batch, t.group, t.tokens, t.arm()));
    let some = |value: f64, decimals: usize| {
        if value > 0.0 { format!("{value:.decimals$}") } else { String::new() }
    };
    for t in rows {
        let dense = timings.iter().find(|d| t.what == "step" && t.is_beside(d));
        table.row(vec![
            format!("{} {}", t.what, t.arm()).trim_end().to_owned(),
            t.batch.to_string(),
            t.tokens.to_string(),
            t.group.to_string(),
            format!("{:.1}", t.median_us),
            format!("{:.1}-{:.1}", t.p10_us, t.p90_us),
            some(t.gb_s, 0),
            some(100.0 * t.copy_share, 1),
            some(100.0 * t.blocks_read as f64 / t.blocks_total.max(1) as f64, 1),
            dense.map_or(String::new(), |d| format!("{:.2}", d.median_us / t.median_us)),
        ]);
    }
    format!("{}\n\n{}", heading(timings), table.render())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timings(text: &str) -> Result<Vec<Timing>, String> {
        read(records(text)?)
    }

    /// Made-up figures: a dense step takes 10 us a thousand tokens, a sparse one 4.
    fn made_up() -> String {
        let mut lines = vec![
            r#"{"part":"time","device":"no device","by":"psa","what":"copy","gb_s":1000.0,"made_up":true}"#
                .to_owned(),
            r#"{"part":"check","kernel":"x"}"#.to_owned(),
        ];
        for tokens in [4096, 16384, 65536] {
            for (policy, slope) in [("dense", 10), ("top-k:0.1", 4)] {
                let us = tokens / 1024 * slope;
                lines.push(format!(
                    r#"{{"part":"time","device":"no device","by":"psa","what":"step","policy":"{policy}","batch":16,
                    "tokens":{tokens},"group":4,"median_us":{us}.0,"gb_s":500.0,"copy_share":0.5,"blocks_read":1,
                    "blocks_total":4,"made_up":true}}"#
                )
                .replace('\n', ""));
            }
        }
        lines.join("\n")
    }

    #[test]
    fn lines_and_results_files_are_read_alike() {
        let lines = timings(&made_up()).unwrap();
        let values: Vec<Value> = made_up().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let whole = serde_json::json!({"schema": "psa-gpu-results-v1", "records": values}).to_string();
        assert_eq!(lines, timings(&whole).unwrap());
        assert_eq!(lines.len(), 7);
        assert!(timings("{\"part\":\"time\"}\nnonsense").unwrap_err().contains("line 2"));
        assert!(timings("{\"records\": 3}").unwrap_err().contains("no list"));
    }

    #[test]
    fn the_table_sets_sparse_beside_dense_and_says_that_figures_are_made_up() {
        let text = table(&timings(&made_up()).unwrap());
        let row = text.lines().find(|l| l.starts_with("step top-k:0.1") && l.contains("65536")).unwrap();
        assert!(row.trim_end().ends_with("2.50") && row.contains("256.0") && row.contains("25.0"), "{row}");
        assert!(text.contains("MADE-UP") && text.contains("copy 1000 GB/s"), "{text}");
    }

    #[test]
    fn a_peer_is_set_beside_our_dense_step_of_its_own_run() {
        let step = |by: &str, run: &str, us: f64| Timing {
            by: by.into(),
            run: run.into(),
            what: "step".into(),
            policy: "dense".into(),
            median_us: us,
            ..Timing::default()
        };
        let timings = [step("psa", "", 10.0), step("psa", "peers", 20.0), step("torch", "peers", 40.0)];
        let text = table(&timings);
        let row = text.lines().find(|l| l.starts_with("step torch dense")).unwrap();
        assert!(row.trim_end().ends_with("0.50"), "{text}");
        assert!(text.contains("step psa dense"), "{text}");
    }

    #[test]
    fn the_picture_has_every_shape_and_says_that_figures_are_made_up() {
        let picture = draw(&timings(&made_up()).unwrap());
        for part in ["top-k:0.1 bs16 64K g4", "batch 16, group 4", "MADE-UP FIGURES", "% of a copy", "</svg>"]
        {
            assert!(picture.contains(part), "{part}");
        }
        assert!(!picture.contains("NaN"), "{picture}");
    }
}
