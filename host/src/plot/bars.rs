//! Horizontal bars with a name and a value each, and a mark for comparison.

use super::svg::text_width;
use super::{Anchor, Axis, GRID, INK, Rect, Svg};

/// One bar.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is of.
    pub name: String,
    /// Its length, in the unit of the axis.
    pub value: f64,
    /// Where the comparison lies.
    pub mark: f64,
}

/// Bars under one another.
#[derive(Clone, Debug)]
pub struct Bars {
    /// Heading.
    pub title: String,
    /// Horizontal axis, from 0.
    pub axis: Axis,
    /// Colour of the bars.
    pub color: String,
    /// Name of the bars in the legend.
    pub bar_name: String,
    /// Name of the marks in the legend.
    pub mark_name: String,
    /// From top to bottom.
    pub rows: Vec<Row>,
}

impl Bars {
    /// Draws the bars into `frame`.
    pub fn draw(&self, svg: &mut Svg, frame: Rect) {
        let names = self.rows.iter().map(|row| text_width(&row.name, 12.0)).fold(0.0, f64::max) + 10.0;
        let inner = Rect {
            x: frame.x + names,
            y: frame.y + 30.0,
            width: frame.width - names - 44.0,
            height: frame.height - 30.0 - 64.0,
        };
        let bottom = inner.y + inner.height;
        let across = |value: f64| inner.x + self.axis.position(value).unwrap_or(0.0) * inner.width;
        svg.heading((frame.x, frame.y + 16.0), 15.0, Anchor::Start, &self.title);
        for (value, text) in self.axis.ticks() {
            svg.line((across(value), inner.y), (across(value), bottom), GRID, 1.0, "");
            svg.text((across(value), bottom + 17.0), 12.0, Anchor::Middle, &text);
        }
        let step = inner.height / self.rows.len().max(1) as f64;
        for (i, row) in self.rows.iter().enumerate() {
            let (y, height) = (inner.y + step * (i as f64 + 0.18), step * 0.64);
            let end = across(row.value);
            svg.rect(Rect { x: inner.x, y, width: end - inner.x, height }, &self.color);
            let mark = across(row.mark);
            svg.line((mark, y - 2.0), (mark, y + height + 2.0), INK, 2.5, "");
            svg.text((inner.x - 6.0, y + height / 2.0 + 4.0), 12.0, Anchor::End, &row.name);
            let text = format!("{:.0}", row.value);
            svg.text((end.max(mark) + 5.0, y + height / 2.0 + 4.0), 12.0, Anchor::Start, &text);
        }
        svg.line((inner.x, inner.y), (inner.x, bottom), INK, 1.0, "");
        svg.line((inner.x, bottom), (inner.x + inner.width, bottom), INK, 1.0, "");
        svg.text((inner.x + inner.width / 2.0, bottom + 37.0), 13.0, Anchor::Middle, &self.axis.label);
        let y = bottom + 60.0;
        svg.rect(Rect { x: frame.x, y: y - 10.0, width: 12.0, height: 11.0 }, &self.color);
        svg.text((frame.x + 17.0, y), 13.0, Anchor::Start, &self.bar_name);
        let x = frame.x + 17.0 + text_width(&self.bar_name, 13.0) + 18.0;
        svg.line((x, y - 11.0), (x, y + 2.0), INK, 2.5, "");
        svg.text((x + 8.0, y), 13.0, Anchor::Start, &self.mark_name);
    }
}
