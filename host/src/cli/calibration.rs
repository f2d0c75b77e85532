//! The calibration picture: what share of the mass a step believed to have missed, against what it missed.
//!
//! Both axes are logarithmic and have the same range, so that the diagonal is where belief is true: above it a step
//! missed more than it believed. Points closer together than the eye can tell are drawn once.

use std::collections::BTreeSet;

use psa::eval::{Stats, quantile};
use psa::plot::{Anchor, Axis, Chart, Marker, PALETTE, Rect, Series, Svg};

const WIDTH: f64 = 760.0;
const CHART: f64 = 620.0;
const HEAD: f64 = 74.0;
const LINE: f64 = 19.0;
/// Cells of an axis in which points are drawn once: 4 pixels, about a marker's radius.
const CELLS: f64 = 160.0;
/// Least share on an axis, and least difference that counts: beliefs come from f32 attention, good to about 1e-6.
const LEAST: f64 = 1e-5;

/// One policy's audits.
pub struct Points {
    /// Name in the legend.
    pub name: String,
    /// Believed and true missed mass of every audited step and query head, shares of 1.
    pub missed: Vec<(f64, f64)>,
}

/// What there is to draw.
pub struct Calibration {
    /// By policy.
    pub runs: Vec<Points>,
}

impl Calibration {
    /// The picture as SVG.
    pub fn draw(&self) -> String {
        let height = HEAD + CHART + LINE * self.runs.len() as f64 + 20.0;
        let title = "Missed softmax mass: believed and true";
        let mut svg = Svg::new(WIDTH, height, title);
        svg.heading((28.0, 34.0), 18.0, Anchor::Start, title);
        let what = "One point a decode step and query head; above the diagonal more was missed than believed";
        svg.note((28.0, 56.0), 13.0, Anchor::Start, what);
        self.chart().draw(&mut svg, Rect { x: 24.0, y: HEAD, width: WIDTH - 48.0, height: CHART });
        for (i, run) in self.runs.iter().enumerate() {
            let y = HEAD + CHART + LINE * (i as f64 + 1.0);
            svg.note((28.0, y), 13.0, Anchor::Start, &summary(run));
        }
        svg.finish()
    }

    fn chart(&self) -> Chart {
        let all = || self.runs.iter().flat_map(|run| &run.missed).flat_map(|&(b, t)| [b, t]);
        let shown = all().filter(|x| *x >= LEAST);
        let axis = |label: &str| Axis::log(label, shown.clone(), Some("0"));
        let x =
            Axis { floor: None, ..axis("believed missed (share of the mass; the least also stands for 0)") };
        let y = axis("truly missed (share of the mass)");
        let mut series: Vec<Series> = vec![Series {
            name: "believed = true".to_owned(),
            color: PALETTE[PALETTE.len() - 1].to_owned(),
            marker: Marker::Diamond,
            line: true,
            points: vec![(x.min, x.min), (x.max, x.max)],
            marked: Vec::new(),
        }];
        let markers = [Marker::Circle, Marker::Triangle, Marker::Square, Marker::Wedge, Marker::Star];
        for (i, run) in self.runs.iter().enumerate() {
            series.push(Series {
                name: run.name.clone(),
                color: PALETTE[i % (PALETTE.len() - 1)].to_owned(),
                marker: markers[i % markers.len()],
                line: false,
                points: thinned(&run.missed, &x, &y),
                marked: Vec::new(),
            });
        }
        Chart { title: String::new(), x, y, series, reference: None }
    }
}

/// One point for each cell that holds any.
fn thinned(points: &[(f64, f64)], x: &Axis, y: &Axis) -> Vec<(f64, f64)> {
    let cell = |axis: &Axis, value: f64| axis.position(value).map(|part| (part * CELLS) as i64);
    let mut seen = BTreeSet::new();
    let kept = points.iter().filter(|point| seen.insert((cell(x, point.0), cell(y, point.1))));
    kept.copied().collect()
}

fn summary(run: &Points) -> String {
    if run.missed.is_empty() {
        return format!("{}: nothing was audited", run.name);
    }
    let (believed, truth): (Vec<f64>, Vec<f64>) = run.missed.iter().copied().unzip();
    let above = run.missed.iter().filter(|(b, t)| *t > b + LEAST).count() as f64 / run.missed.len() as f64;
    format!(
        "{}: believed {:.4}, true {:.4} in the mean, {:.4} at p99; {:.1} % of {} above the diagonal",
        run.name,
        Stats::of(&believed).mean,
        Stats::of(&truth).mean,
        quantile(&truth, 0.99),
        above * 100.0,
        truth.len()
    )
}
