//! A scatter chart with optional lines, both axes labelled, the legend below.

use super::svg::text_width;
use super::{Anchor, Axis, GRID, INK, Rect, Svg};

/// Shape of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// Filled circle.
    Circle,
    /// Filled square.
    Square,
    /// Triangle that points up.
    Triangle,
    /// Triangle that points down.
    Wedge,
    /// Square on its tip.
    Diamond,
    /// Five-pointed star.
    Star,
}

impl Marker {
    /// Draws one at `(x, y)`, about `2 * size` wide.
    pub fn draw(self, svg: &mut Svg, (x, y): (f64, f64), size: f64, color: &str) {
        let ring = |corners: usize, turn: f64, radius: [f64; 2]| -> Vec<(f64, f64)> {
            (0..corners)
                .map(|i| {
                    let angle = (i as f64 / corners as f64 + turn) * std::f64::consts::TAU;
                    let r = radius[i % 2] * size;
                    (x + r * angle.sin(), y - r * angle.cos())
                })
                .collect()
        };
        match self {
            Marker::Circle => svg.circle((x, y), size, color),
            Marker::Square => svg.polygon(&ring(4, 0.125, [1.25; 2]), color),
            Marker::Triangle => svg.polygon(&ring(3, 0.0, [1.3; 2]), color),
            Marker::Wedge => svg.polygon(&ring(3, 0.5, [1.3; 2]), color),
            Marker::Diamond => svg.polygon(&ring(4, 0.0, [1.35; 2]), color),
            Marker::Star => svg.polygon(&ring(10, 0.0, [1.7, 0.7]), color),
        }
    }
}

/// Points of one kind.
#[derive(Clone, Debug)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Colour, as in SVG.
    pub color: String,
    /// Shape of the points.
    pub marker: Marker,
    /// True to connect the points in their order.
    pub line: bool,
    /// (x, y), in the units of the axes.
    pub points: Vec<(f64, f64)>,
    /// Points that stand out, drawn larger, among `points` or not.
    pub marked: Vec<(f64, f64)>,
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Heading.
    pub title: String,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// What is shown, the last on top.
    pub series: Vec<Series>,
    /// A horizontal reference line: value on `y` and its text.
    pub reference: Option<(f64, String)>,
}

const LEFT: f64 = 62.0;
const TOP: f64 = 30.0;
const LINE: f64 = 20.0;
const FLOOR: f64 = 34.0;

impl Chart {
    /// Draws the chart into `frame`.
    pub fn draw(&self, svg: &mut Svg, frame: Rect) {
        let rows = self.legend_rows(frame.width - LEFT);
        let floor = if self.y.floor.is_some() { FLOOR } else { 0.0 };
        let inner = Rect {
            x: frame.x + LEFT,
            y: frame.y + TOP,
            width: frame.width - LEFT - 12.0,
            height: frame.height - TOP - floor - 44.0 - LINE * rows.len() as f64,
        };
        let bottom = inner.y + inner.height;
        let base = bottom + floor;
        let place = |(x, y): (f64, f64)| {
            let across = inner.x + self.x.position(x).unwrap_or(0.0) * inner.width;
            (across, self.y.position(y).map_or(base - FLOOR / 2.0, |up| bottom - up * inner.height))
        };

        svg.heading((inner.x, frame.y + 16.0), 15.0, Anchor::Start, &self.title);
        self.draw_axes(svg, inner, base);
        if let Some((value, text)) = &self.reference {
            let (_, y) = place((self.x.min, *value));
            svg.line((inner.x, y), (inner.x + inner.width, y), INK, 1.0, "5 4");
            // Above the line, but where the heading is: there below it, at the far end.
            if y - 20.0 > frame.y + 16.0 {
                svg.note((inner.x + 6.0, y - 6.0), 12.0, Anchor::Start, text);
            } else {
                svg.note((inner.x + inner.width - 6.0, y + 16.0), 12.0, Anchor::End, text);
            }
        }
        for series in &self.series {
            let points: Vec<_> = series.points.iter().map(|&point| place(point)).collect();
            if series.line && points.len() > 1 {
                svg.path(&points, &series.color, 1.5);
            }
            for &point in &points {
                series.marker.draw(svg, point, 3.5, &series.color);
            }
        }
        // On top of all lines.
        for series in &self.series {
            for &point in &series.marked {
                series.marker.draw(svg, place(point), 7.0, &series.color);
            }
        }
        for (row, names) in rows.iter().enumerate() {
            let y = base + 60.0 + LINE * row as f64;
            let mut x = inner.x;
            for series in names {
                series.marker.draw(svg, (x + 6.0, y - 4.5), 5.0, &series.color);
                svg.text((x + 17.0, y), 13.0, Anchor::Start, &series.name);
                x += legend_width(series);
            }
        }
    }

    fn draw_axes(&self, svg: &mut Svg, inner: Rect, base: f64) {
        let (right, bottom) = (inner.x + inner.width, inner.y + inner.height);
        for (value, text) in self.x.ticks() {
            let x = inner.x + self.x.position(value).unwrap_or(0.0) * inner.width;
            svg.line((x, inner.y), (x, base), GRID, 1.0, "");
            svg.text((x, base + 17.0), 12.0, Anchor::Middle, &text);
        }
        for (value, text) in self.y.ticks() {
            let Some(up) = self.y.position(value) else { continue };
            let y = bottom - up * inner.height;
            svg.line((inner.x, y), (right, y), GRID, 1.0, "");
            svg.text((inner.x - 7.0, y + 4.0), 12.0, Anchor::End, &text);
        }
        if let Some(text) = &self.y.floor {
            svg.text((inner.x - 7.0, base - FLOOR / 2.0 + 4.0), 12.0, Anchor::End, text);
        }
        svg.line((inner.x, inner.y), (inner.x, base), INK, 1.0, "");
        svg.line((inner.x, base), (right, base), INK, 1.0, "");
        svg.text((inner.x + inner.width / 2.0, base + 37.0), 13.0, Anchor::Middle, &self.x.label);
        svg.upward_text((inner.x - LEFT + 14.0, inner.y + inner.height / 2.0), 13.0, &self.y.label);
    }

    /// Series by legend line, filled from the left.
    fn legend_rows(&self, width: f64) -> Vec<Vec<&Series>> {
        let mut rows: Vec<Vec<&Series>> = vec![Vec::new()];
        let mut used = 0.0;
        for series in &self.series {
            let wide = legend_width(series);
            if used + wide > width && used > 0.0 {
                rows.push(Vec::new());
                used = 0.0;
            }
            used += wide;
            if let Some(row) = rows.last_mut() {
                row.push(series);
            }
        }
        rows
    }
}

fn legend_width(series: &Series) -> f64 {
    17.0 + text_width(&series.name, 13.0) + 18.0
}
