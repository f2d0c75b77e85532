//! The picture of a comparison: what every policy reads against what it misses, and how unevenly heads
//! demand. `psa demo` and `psa match` draw it.

use psa::plot::{Anchor, Axis, Bars, Chart, Marker, PALETTE, Rect, Row, Series, Svg};
use psa::traces::Traces;

const WIDTH: f64 = 1180.0;
const HEIGHT: f64 = 560.0;

/// A curve: one policy over its parameter.
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// Bytes read (dense = 1) and quality, by bytes.
    pub points: Vec<(f64, f64)>,
    /// The run in the table.
    pub marked: Option<(f64, f64)>,
}

/// What there is to draw.
pub struct Figure<'a> {
    /// The data.
    pub traces: &'a Traces,
    /// Decode steps of each policy.
    pub steps: usize,
    /// In the order of the table.
    pub curves: &'a [Curve],
    /// What a curve's second value is, with its unit.
    pub quality: &'a str,
    /// The quality that policies are compared at, and its text.
    pub reference: (f64, String),
    /// Case, KV read by the policy of `bars`, by the oracle; shares of 1.
    pub by_case: &'a [(String, f64, f64)],
    /// Names of the two.
    pub bars: [String; 2],
}

impl Figure<'_> {
    /// The picture as SVG.
    pub fn draw(&self) -> String {
        let title = "What decode attention reads and what it misses";
        let mut svg = Svg::new(WIDTH, HEIGHT, title);
        svg.heading((28.0, 34.0), 18.0, Anchor::Start, title);
        let longest = self.traces.cases.iter().map(|case| case.context).max().unwrap_or(0);
        let source = format!(
            "{}: {} attention heads, {} decode steps, up to {longest} tokens",
            short(&self.traces.origin),
            self.traces.cases.len(),
            self.steps
        );
        svg.note((28.0, 54.0), 13.0, Anchor::Start, &source);
        self.chart().draw(&mut svg, Rect { x: 24.0, y: 70.0, width: 660.0, height: HEIGHT - 82.0 });
        self.heads().draw(&mut svg, Rect { x: 712.0, y: 70.0, width: 444.0, height: HEIGHT - 82.0 });
        svg.finish()
    }

    fn chart(&self) -> Chart {
        let markers =
            [Marker::Square, Marker::Triangle, Marker::Wedge, Marker::Circle, Marker::Diamond, Marker::Star];
        let mut series: Vec<Series> = self
            .curves
            .iter()
            .enumerate()
            .map(|(i, curve)| Series {
                name: curve.name.clone(),
                color: PALETTE[i % (PALETTE.len() - 1)].to_owned(),
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
        let y = Axis::log(self.quality, all().map(|point| point.1), Some("0"));
        Chart {
            title: "Bytes read and mass missed (large: the runs of the table)".to_owned(),
            x: Axis::linear("bytes read, metadata included (% of dense)", 0.0, (most / 10.0).ceil() * 10.0),
            y,
            series,
            reference: Some(self.reference.clone()),
        }
    }

    fn heads(&self) -> Bars {
        let name = |case: &str| {
            let found = self.traces.cases.iter().find(|c| c.name == case);
            let label = found.map(|c| c.label.as_str()).unwrap_or("");
            if label.is_empty() { case.to_owned() } else { label.to_owned() }
        };
        let rows: Vec<Row> = self
            .by_case
            .iter()
            // More would be unreadable; the table of `psa eval` has all.
            .take(16)
            .map(|(case, read, oracle)| Row { name: name(case), value: read * 100.0, mark: oracle * 100.0 })
            .collect();
        let most = rows.iter().map(|row| row.value.max(row.mark)).fold(20.0, f64::max);
        let [bar_name, mark_name] = self.bars.clone();
        Bars {
            title: "KV blocks read by head".to_owned(),
            axis: Axis::linear("blocks read (% of blocks)", 0.0, (most / 20.0).ceil() * 20.0),
            color: PALETTE[3].to_owned(),
            bar_name,
            mark_name,
            rows,
        }
    }
}

/// The origin up to its first comma: the rest is about files.
fn short(origin: &str) -> &str {
    origin.split(',').next().unwrap_or(origin)
}
