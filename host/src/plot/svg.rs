//! The text of an SVG file: elements with escaped text and coordinates of one decimal.

use std::fmt::Write as _;

use super::{FAINT, INK};

/// Where a text stands relative to its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The text begins at the point.
    Start,
    /// The text is centred on the point.
    Middle,
    /// The text ends at the point.
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        }
    }
}

/// A rectangle, in pixels from the upper left corner of the picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rect {
    /// Left edge.
    pub x: f64,
    /// Upper edge.
    pub y: f64,
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
}

/// A picture that is being drawn.
pub struct Svg {
    body: String,
    width: f64,
    height: f64,
    title: String,
}

impl Svg {
    /// An empty picture on a light card. `title` is what screen readers say.
    pub fn new(width: f64, height: f64, title: &str) -> Svg {
        let mut svg = Svg { body: String::new(), width, height, title: title.to_owned() };
        let _ = writeln!(
            svg.body,
            "<rect x=\"0.5\" y=\"0.5\" width=\"{:.1}\" height=\"{:.1}\" rx=\"6\" fill=\"#ffffff\" \
             stroke=\"#bbbbbb\"/>",
            width - 1.0,
            height - 1.0
        );
        svg
    }

    /// A straight line; `dash` as SVG's `stroke-dasharray`, or empty.
    pub fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), color: &str, width: f64, dash: &str) {
        let dash = if dash.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dash}\"") };
        let _ = writeln!(
            self.body,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{color}\" \
             stroke-width=\"{width}\"{dash}/>"
        );
    }

    /// A line through several points.
    pub fn path(&mut self, points: &[(f64, f64)], color: &str, width: f64) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            self.body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\" \
             stroke-linejoin=\"round\"/>",
            points.join(" ")
        );
    }

    /// A filled polygon with a thin light outline, which keeps overlapping markers apart.
    pub fn polygon(&mut self, points: &[(f64, f64)], color: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            self.body,
            "<polygon points=\"{}\" fill=\"{color}\" stroke=\"#ffffff\" stroke-width=\"1\"/>",
            points.join(" ")
        );
    }

    /// A filled circle with a thin light outline.
    pub fn circle(&mut self, (x, y): (f64, f64), radius: f64, color: &str) {
        let _ = writeln!(
            self.body,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{color}\" stroke=\"#ffffff\" \
             stroke-width=\"1\"/>"
        );
    }

    /// A filled rectangle.
    pub fn rect(&mut self, r: Rect, color: &str) {
        let _ = writeln!(
            self.body,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{color}\"/>",
            r.x, r.y, r.width, r.height
        );
    }

    /// A text of `size` pixels; the point is on its base line.
    pub fn text(&mut self, at: (f64, f64), size: f64, anchor: Anchor, text: &str) {
        self.styled_text(at, size, anchor, INK, "", text);
    }

    /// A bold text.
    pub fn heading(&mut self, at: (f64, f64), size: f64, anchor: Anchor, text: &str) {
        self.styled_text(at, size, anchor, INK, " font-weight=\"bold\"", text);
    }

    /// A text of lesser importance.
    pub fn note(&mut self, at: (f64, f64), size: f64, anchor: Anchor, text: &str) {
        self.styled_text(at, size, anchor, FAINT, "", text);
    }

    /// A text that runs upwards, centred on the point.
    pub fn upward_text(&mut self, (x, y): (f64, f64), size: f64, text: &str) {
        let turn = format!(" transform=\"rotate(-90 {x:.1} {y:.1})\"");
        self.styled_text((x, y), size, Anchor::Middle, INK, &turn, text);
    }

    fn styled_text(
        &mut self,
        (x, y): (f64, f64),
        size: f64,
        anchor: Anchor,
        color: &str,
        more: &str,
        text: &str,
    ) {
        let _ = writeln!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{}\" fill=\"{color}\"{more}>\
             {}</text>",
            anchor.name(),
            escape(text)
        );
    }

    /// The whole file.
    pub fn finish(self) -> String {
        let Svg { body, width, height, title } = self;
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!-- Generated by the program psa; do not edit. -->\n\
             <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\" \
             font-family=\"system-ui, 'Segoe UI', 'Liberation Sans', 'DejaVu Sans', Arial, sans-serif\">\n\
             <title>{}</title>\n{body}</svg>\n",
            escape(&title)
        )
    }
}

/// Width of a text in pixels, nearly: no font is at hand, and the viewer's is unknown.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * 0.56
}

/// Text as XML character data or attribute value; control characters, which XML cannot hold, vanish.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() => {}
            c => escaped.push(c),
        }
    }
    escaped
}
