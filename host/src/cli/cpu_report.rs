//! The CPU half of `psa bench-report`: what `cargo xtask bench` recorded, as time by length and bytes by length.
//!
//! The limit is a line of its own in both: the time of a plain read of all keys and values, and their bytes. Times
//! are medians as recorded; nothing is estimated.

use psa::plot::{Anchor, Axis, Chart, Marker, PALETTE, Rect, Scale, Series, Svg};
use serde::Deserialize;
use serde_json::Value;

use super::Table;

/// A record of the paired bench; the fields that are drawn.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Paired {
    name: String,
    policy: String,
    tokens: u64,
    batch: u64,
    bytes: u64,
    median_ms: f64,
    ratio_to_torch_dense: Option<f64>,
    ratio_to_own_dense: Option<f64>,
    share_of_read_bandwidth: Option<f64>,
}

/// Name of the plain read among the records.
const READ: &str = "read";

impl Paired {
    /// The record, where `value` is one of the paired bench.
    pub fn of(value: &Value) -> Option<Result<Paired, String>> {
        value.get("share_of_read_bandwidth")?;
        let record = serde_json::from_value(value.clone());
        Some(record.map_err(|e| format!("a record of the CPU bench is not as expected: {e}")))
    }

    /// `dense`; `torch-bf16-rows dense`; the limit.
    fn arm(&self) -> String {
        match self.name.as_str() {
            "psa" => self.policy.clone(),
            READ => "limit: plain read of all K and V".to_owned(),
            other => format!("{other} {}", self.policy),
        }
    }
}

const WIDTH: f64 = 1180.0;
const CHART: f64 = 440.0;

/// One row of two charts for each batch.
pub fn draw(records: &[Paired]) -> String {
    let mut batches: Vec<u64> = records.iter().map(|r| r.batch).collect();
    batches.sort_unstable();
    batches.dedup();
    let height = 80.0 + (CHART + 16.0) * batches.len() as f64;
    let title = "Decode attention on the CPU by length";
    let mut svg = Svg::new(WIDTH, height, title);
    svg.heading((28.0, 34.0), 18.0, Anchor::Start, title);
    let note = "medians of rounds in which all subjects take turns; one layer";
    svg.note((28.0, 54.0), 13.0, Anchor::Start, note);
    for (i, &batch) in batches.iter().enumerate() {
        let of_batch: Vec<&Paired> = records.iter().filter(|r| r.batch == batch).collect();
        let y = 70.0 + (CHART + 16.0) * i as f64;
        let frame = |x: f64| Rect { x, y, width: 556.0, height: CHART };
        let time =
            chart(&of_batch, &format!("Time of a step, batch {batch}"), "median (ms)", |r| r.median_ms);
        time.draw(&mut svg, frame(24.0));
        let read = |r: &Paired| r.bytes as f64 / (1 << 20) as f64;
        chart(&of_batch, &format!("Bytes read, batch {batch}"), "MiB", read).draw(&mut svg, frame(600.0));
    }
    svg.finish()
}

fn chart(records: &[&Paired], title: &str, unit: &str, value: impl Fn(&Paired) -> f64) -> Chart {
    let mut arms: Vec<String> = records.iter().map(|r| r.arm()).collect();
    arms.sort();
    arms.dedup();
    let markers = [Marker::Circle, Marker::Triangle, Marker::Diamond, Marker::Wedge, Marker::Star];
    let series = arms.iter().enumerate().map(|(i, arm)| {
        let of_arm = records.iter().filter(|r| &r.arm() == arm);
        let mut points: Vec<(f64, f64)> = of_arm.map(|r| (r.tokens as f64 / 1024.0, value(r))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let limit = arm.starts_with("limit");
        Series {
            name: arm.clone(),
            color: if limit { PALETTE[PALETTE.len() - 1] } else { PALETTE[i % (PALETTE.len() - 1)] }
                .to_owned(),
            marker: if limit { Marker::Square } else { markers[i % markers.len()] },
            line: true,
            points,
            marked: Vec::new(),
        }
    });
    let lengths = || records.iter().map(|r| r.tokens as f64 / 1024.0);
    Chart {
        title: title.to_owned(),
        x: Axis {
            label: "context (thousands of tokens, logarithmic)".to_owned(),
            scale: Scale::Log,
            min: lengths().fold(f64::MAX, f64::min) / 1.2,
            max: lengths().fold(0.0, f64::max) * 1.2,
            floor: None,
        },
        y: Axis::log(unit, records.iter().map(|r| value(r)), None),
        series: series.collect(),
        reference: None,
    }
}

/// Every record a row.
pub fn table(records: &[Paired]) -> String {
    let head = ["what", "batch", "tokens", "median ms", "MiB", "% of read", "x own dense", "x torch"];
    let mut table = Table::new(1, &head);
    let mut rows: Vec<&Paired> = records.iter().collect();
    rows.sort_by_key(|r| (r.batch, r.tokens, r.arm()));
    let some = |x: Option<f64>, factor: f64| x.map_or(String::new(), |x| format!("{:.2}", factor * x));
    for r in rows {
        table.row(vec![
            r.arm(),
            r.batch.to_string(),
            r.tokens.to_string(),
            format!("{:.3}", r.median_ms),
            format!("{:.1}", r.bytes as f64 / (1 << 20) as f64),
            some(r.share_of_read_bandwidth, 100.0),
            some(r.ratio_to_own_dense, 1.0),
            some(r.ratio_to_torch_dense, 1.0),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn records() -> Vec<Paired> {
        let record = |name: &str, policy: &str, tokens: u64, ms: f64, bytes: u64| {
            let value = json!({
                "name": name, "policy": policy, "tokens": tokens, "batch": 1, "bytes": bytes, "median_ms": ms,
                "ratio_to_torch_dense": null, "ratio_to_own_dense": 2.5, "share_of_read_bandwidth": 0.5,
            });
            Paired::of(&value).unwrap().unwrap()
        };
        let of_length = |tokens: u64| {
            let ms = tokens as f64 / 1024.0;
            [
                record("read", "none", tokens, ms, tokens * 4096),
                record("psa", "dense", tokens, 2.0 * ms, tokens * 4096),
                record("psa", "progressive:0.95", tokens, ms, tokens * 1024),
                record("torch-f32-rows", "dense", tokens, 4.0 * ms, tokens * 8192),
            ]
        };
        [1024, 4096].into_iter().flat_map(of_length).collect()
    }

    #[test]
    fn the_picture_has_time_and_bytes_of_every_policy_and_the_limit() {
        let picture = draw(&records());
        for part in
            ["Time of a step", "Bytes read", "limit: plain read", "progressive:0.95", "torch-f32-rows"]
        {
            assert!(picture.contains(part), "{part}");
        }
        assert!(!picture.contains("NaN"));
    }

    #[test]
    fn the_table_has_a_row_a_record_and_leaves_out_what_was_not_run() {
        let text = table(&records());
        let row = text.lines().find(|l| l.starts_with("progressive:0.95") && l.contains("4096")).unwrap();
        assert!(row.contains("4.000") && row.contains("50.00") && row.trim_end().ends_with("2.50"), "{row}");
        assert_eq!(text.lines().filter(|l| l.contains("dense") && l.contains("1024")).count(), 2);
    }

    #[test]
    fn records_of_other_kinds_are_not_ours_and_bad_ones_say_what_is_wrong() {
        assert!(Paired::of(&json!({"part": "time"})).is_none());
        let bad = json!({"name": "psa", "share_of_read_bandwidth": 1.0});
        assert!(Paired::of(&bad).unwrap().unwrap_err().contains("policy"));
    }
}
