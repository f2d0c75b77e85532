//! The picture: what every policy reads against what it misses, and how unevenly heads demand.

use psa::plot::{Anchor, Axis, Bars, Chart, Marker, PALETTE, Rect, Row, Series, Svg};
use psa::traces::Traces;

use super::contest::Contest;

const WIDTH: f64 = 1180.0;
const HEIGHT: f64 = 560.0;

/// The picture as SVG.
pub fn draw(traces: &Traces, contest: &Contest) -> String {
    let title = "What decode attention reads and what it misses";
    let mut svg = Svg::new(WIDTH, HEIGHT, title);
    svg.heading((28.0, 34.0), 18.0, Anchor::Start, title);
    let queries: usize = contest.mark.queries;
    let longest = traces.cases.iter().map(|case| case.context).max().unwrap_or(0);
    let source = format!(
        "{}: {} attention heads, {queries} decode steps, up to {longest} tokens",
        short(&traces.origin),
        traces.cases.len()
    );
    svg.note((28.0, 54.0), 13.0, Anchor::Start, &source);
    chart(contest).draw(&mut svg, Rect { x: 24.0, y: 70.0, width: 660.0, height: HEIGHT - 82.0 });
    bars(traces, contest).draw(&mut svg, Rect { x: 712.0, y: 70.0, width: 444.0, height: HEIGHT - 82.0 });
    svg.finish()
}

/// The origin up to its first comma: the rest is about files.
fn short(origin: &str) -> &str {
    origin.split(',').next().unwrap_or(origin)
}

fn chart(contest: &Contest) -> Chart {
    let markers =
        [Marker::Square, Marker::Triangle, Marker::Wedge, Marker::Circle, Marker::Diamond, Marker::Star];
    let mut series: Vec<Series> = contest
        .curves
        .iter()
        .enumerate()
        .map(|(i, curve)| Series {
            name: curve.name.clone(),
            color: PALETTE[i % PALETTE.len()].to_owned(),
            marker: markers[i % markers.len()],
            line: true,
            points: curve.points.iter().map(|&(bytes, missed)| (bytes * 100.0, missed)).collect(),
            marked: curve.marked.iter().map(|&(bytes, missed)| (bytes * 100.0, missed)).collect(),
        })
        .collect();
    series.push(Series {
        name: "dense".to_owned(),
        color: PALETTE[PALETTE.len() - 1].to_owned(),
        marker: Marker::Square,
        line: false,
        points: Vec::new(),
        marked: vec![(100.0, 0.0)],
    });
    let all = || series.iter().flat_map(|series| series.points.iter().chain(&series.marked));
    let most = all().map(|point| point.0).fold(100.0, f64::max);
    let y = Axis::log("missed softmax mass, p99 (share of 1)", all().map(|point| point.1), Some("0"));
    Chart {
        title: "Bytes read and mass missed (large: the runs of the table)".to_owned(),
        x: Axis::linear("bytes read, metadata included (% of dense)", 0.0, (most / 10.0).ceil() * 10.0),
        y,
        series,
        reference: Some((
            contest.mark.missed_mass.p99,
            format!("{} on 2 bits: {:.3}", contest.mark.policy, contest.mark.missed_mass.p99),
        )),
    }
}

fn bars(traces: &Traces, contest: &Contest) -> Bars {
    let name = |case: &str| {
        let label = traces.cases.iter().find(|c| c.name == case).map(|c| c.label.as_str()).unwrap_or("");
        if label.is_empty() { case.to_owned() } else { label.to_owned() }
    };
    let rows: Vec<Row> = contest
        .by_case
        .iter()
        // More would be unreadable; the table of `psa eval` has all.
        .take(16)
        .map(|(case, read, oracle)| Row { name: name(case), value: read * 100.0, mark: oracle * 100.0 })
        .collect();
    let most = rows.iter().map(|row| row.value.max(row.mark)).fold(20.0, f64::max);
    Bars {
        title: "KV blocks read by head".to_owned(),
        axis: Axis::linear("blocks read (% of blocks)", 0.0, (most / 20.0).ceil() * 20.0),
        color: PALETTE[3].to_owned(),
        bar_name: format!("{}, 2 bits", contest.mark.policy),
        mark_name: "oracle:0.95".to_owned(),
        rows,
    }
}
