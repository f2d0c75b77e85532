//! What ran when on the streams of a device: as a Chrome or Perfetto trace, and as a picture.
//!
//! On a GPU the times come from events; on the emulated driver from its declared costs ([`Timeline::modelled`]), and both
//! outputs then say "model". A stall is the time that a stream waits for an event of another one.

use serde_json::json;

use crate::plot::{Anchor, GRID, Rect, Svg};

/// What a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SpanKind {
    /// A kernel of ours.
    Kernel,
    /// A copy.
    Copy,
    /// The stream waits for another.
    Stall,
    /// Stands for the model's own work.
    Model,
}

impl SpanKind {
    /// Its name in files.
    pub const fn name(self) -> &'static str {
        match self {
            SpanKind::Kernel => "kernel",
            SpanKind::Copy => "copy",
            SpanKind::Stall => "stall",
            SpanKind::Model => "model",
        }
    }

    const fn color(self) -> &'static str {
        match self {
            SpanKind::Kernel => "#0072b2",
            SpanKind::Copy => "#009e73",
            SpanKind::Stall => "#d55e00",
            SpanKind::Model => "#bbbbbb",
        }
    }
}

/// One thing that took time on a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Stream, an index in [`Timeline::streams`].
    pub stream: usize,
    /// Kernel, copy or what was waited for.
    pub name: String,
    /// What it is.
    pub kind: SpanKind,
    /// Start, in microseconds.
    pub start_us: f64,
    /// End.
    pub end_us: f64,
    /// Distinct bytes that were touched or copied; 0 where unknown.
    pub bytes: u64,
}

/// Spans of all streams of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeline {
    /// The device, or the model.
    pub device: String,
    /// True where the times are those of a cost model.
    pub modelled: bool,
    /// Names of the streams.
    pub streams: Vec<String>,
    /// In the order in which they ran.
    pub spans: Vec<Span>,
}

impl Timeline {
    /// The part between two times.
    #[must_use]
    pub fn between(&self, from: f64, to: f64) -> Timeline {
        let inside = |span: &&Span| span.end_us > from && span.start_us < to;
        Timeline { spans: self.spans.iter().filter(inside).cloned().collect(), ..self.clone() }
    }

    /// Time that spans of a kind take on a stream, in microseconds.
    pub fn total_us(&self, stream: usize, kind: SpanKind) -> f64 {
        let of = |span: &&Span| span.stream == stream && span.kind == kind;
        self.spans.iter().filter(of).map(|span| span.end_us - span.start_us).sum()
    }

    /// A trace for chrome://tracing and ui.perfetto.dev: complete events, microseconds.
    pub fn to_chrome_json(&self) -> String {
        let process = if self.modelled { format!("{} (modelled)", self.device) } else { self.device.clone() };
        let mut events =
            vec![json!({"ph": "M", "pid": 0, "name": "process_name", "args": {"name": process}})];
        for (index, name) in self.streams.iter().enumerate() {
            events.push(
                json!({"ph": "M", "pid": 0, "tid": index, "name": "thread_name", "args": {"name": name}}),
            );
        }
        for span in &self.spans {
            events.push(json!({
                "ph": "X", "pid": 0, "tid": span.stream, "name": span.name, "cat": span.kind.name(),
                "ts": span.start_us, "dur": span.end_us - span.start_us,
                "args": {"bytes": span.bytes, "modelled": self.modelled},
            }));
        }
        let mut text = json!({"displayTimeUnit": "ns", "traceEvents": events}).to_string();
        text.push('\n');
        text
    }

    /// The same as a picture: a row a stream.
    pub fn to_svg(&self, title: &str) -> String {
        timelines_svg(&[(title, self)])
    }
}

/// Several timelines under each other, on one time axis that begins with each one's first span.
pub fn timelines_svg(parts: &[(&str, &Timeline)]) -> String {
    const WIDTH: f64 = 1000.0;
    const LEFT: f64 = 110.0;
    const ROW: f64 = 26.0;
    let start = |t: &Timeline| t.spans.iter().map(|s| s.start_us).fold(f64::INFINITY, f64::min);
    let length = |t: &Timeline| t.spans.iter().map(|s| s.end_us).fold(0.0, f64::max) - start(t);
    let longest = parts.iter().map(|(_, t)| length(t)).filter(|l| l.is_finite()).fold(1.0, f64::max);
    let rows = |t: &Timeline| (0..t.streams.len()).filter(|&i| t.spans.iter().any(|s| s.stream == i)).count();
    let height = 80.0 + parts.iter().map(|(_, t)| 34.0 + ROW * rows(t) as f64).sum::<f64>();
    let x = |us: f64| LEFT + us / longest * (WIDTH - LEFT - 20.0);
    let mut svg = Svg::new(WIDTH, height, "Streams of a device over time");
    let mut at = 24.0;
    let bottom = height - 46.0;
    let tick = nice(longest / 8.0);
    let mut us = 0.0;
    while us <= longest {
        svg.line((x(us), 30.0), (x(us), bottom), GRID, 1.0, "");
        svg.note((x(us), bottom + 14.0), 11.0, Anchor::Middle, &format!("{us:.0}"));
        us += tick;
    }
    for (title, timeline) in parts {
        svg.heading((12.0, at), 13.0, Anchor::Start, title);
        at += 8.0;
        let first = start(timeline);
        for (index, name) in timeline.streams.iter().enumerate() {
            let spans: Vec<&Span> = timeline.spans.iter().filter(|span| span.stream == index).collect();
            if spans.is_empty() {
                continue;
            }
            svg.note((LEFT - 8.0, at + 16.0), 11.0, Anchor::End, name);
            for span in spans {
                let (left, right) = (x(span.start_us - first), x(span.end_us - first));
                let thin = if span.kind == SpanKind::Stall { 8.0 } else { 0.0 };
                let rect = Rect {
                    x: left,
                    y: at + 2.0 + thin,
                    width: (right - left).max(0.6),
                    height: ROW - 6.0 - 2.0 * thin,
                };
                svg.rect(rect, span.kind.color());
                if right - left > 6.0 * span.name.len() as f64 && span.kind != SpanKind::Stall {
                    let middle = ((left + right) / 2.0, at + 16.0);
                    svg.text(middle, 10.0, Anchor::Middle, &span.name);
                }
            }
            at += ROW;
        }
        at += 26.0;
    }
    let mut left = 12.0;
    for kind in [SpanKind::Kernel, SpanKind::Copy, SpanKind::Stall, SpanKind::Model] {
        svg.rect(Rect { x: left, y: height - 22.0, width: 12.0, height: 12.0 }, kind.color());
        svg.note((left + 18.0, height - 12.0), 11.0, Anchor::Start, kind.name());
        left += 80.0;
    }
    let unit = match parts.iter().any(|(_, t)| t.modelled) {
        true => "microseconds by the declared cost model: nothing here was timed",
        false => "microseconds",
    };
    svg.note((WIDTH - 12.0, height - 12.0), 11.0, Anchor::End, unit);
    svg.finish()
}

/// 1, 2 or 5 times a power of ten, at least `x`.
fn nice(x: f64) -> f64 {
    let power = 10f64.powf(x.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|&step| step >= x).unwrap_or(power * 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline() -> Timeline {
        let span = |stream, name: &str, kind, start_us, end_us| Span {
            stream,
            name: name.into(),
            kind,
            start_us,
            end_us,
            bytes: 64,
        };
        Timeline {
            device: "model h100".into(),
            modelled: true,
            streams: vec!["compute".into(), "fetch".into()],
            spans: vec![
                span(0, "score", SpanKind::Kernel, 10.0, 14.0),
                span(0, "fetched", SpanKind::Stall, 14.0, 20.0),
                span(1, "copy of 64 bytes", SpanKind::Copy, 12.0, 20.0),
            ],
        }
    }

    #[test]
    fn the_trace_is_what_chrome_reads_and_says_that_it_is_modelled() {
        let trace: serde_json::Value = serde_json::from_str(&timeline().to_chrome_json()).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 1 + 2 + 3);
        assert!(events[0]["args"]["name"].as_str().unwrap().contains("modelled"));
        let stall = events.iter().find(|e| e["cat"] == "stall").unwrap();
        assert_eq!((stall["ts"].as_f64(), stall["dur"].as_f64()), (Some(14.0), Some(6.0)));
    }

    #[test]
    fn the_picture_says_that_nothing_was_timed() {
        let svg = timeline().to_svg("a step");
        assert!(svg.contains("nothing here was timed"), "{svg}");
        let measured = Timeline { modelled: false, ..timeline() };
        assert!(!measured.to_svg("a step").contains("nothing here"));
        // Streams without anything on them have no row, and no span gives no NaN.
        assert!(!Timeline { spans: vec![], ..timeline() }.to_svg("empty").contains("NaN"));
    }

    #[test]
    fn totals_are_of_one_stream_and_kind() {
        let t = timeline();
        assert_eq!((t.total_us(0, SpanKind::Stall), t.total_us(1, SpanKind::Copy)), (6.0, 8.0));
        assert_eq!(t.between(0.0, 13.0).spans.len(), 2);
    }
}
