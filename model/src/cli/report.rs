//! One self-contained HTML page: facts, tables, and pictures as inline SVG. It appears under its name when it is
//! complete; a full disk leaves an older one alone.

use std::fmt::Write as _;
use std::path::Path;

use psa::plot::{Anchor, Axis, Chart, Marker, PALETTE, Rect, Series, Svg};
use psa::telemetry::AuditRecord;
use psa::{DecodePlan, Shape};
use psa_model::Reading;
use serde_json::{Value, json};

use super::CliError;

/// A page that is being written.
pub struct Report {
    title: String,
    body: String,
}

/// Writes a picture.
pub fn write_picture(file: &Path, svg: Svg) -> Result<(), CliError> {
    std::fs::write(file, svg.finish()).map_err(|source| CliError::Unwritable {
        file: file.display().to_string(),
        option: "--picture",
        source,
    })
}

/// Checks, before long work, that a file can be written, leaving an existing one as it is.
pub fn probe(file: &Path) -> Result<(), CliError> {
    let fresh = !file.exists();
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(file);
    opened.map_err(|source| unwritable(file, source))?;
    if fresh {
        let _ = std::fs::remove_file(file);
    }
    Ok(())
}

fn unwritable(file: &Path, source: std::io::Error) -> CliError {
    CliError::Unwritable { file: file.display().to_string(), option: "--report", source }
}

/// Missed mass of audited heads, or null where none was.
pub fn missed(audits: &[AuditRecord]) -> Value {
    let mut all: Vec<f64> = audits.iter().flat_map(|audit| audit.true_missed.iter().copied()).collect();
    all.sort_by(f64::total_cmp);
    let Some(max) = all.last() else { return Value::Null };
    let p99 = all[((all.len() - 1) as f64 * 0.99) as usize];
    json!({ "mean": all.iter().sum::<f64>() / all.len() as f64, "p99": p99, "max": max, "sampled": all.len() })
}

impl Report {
    /// An empty page.
    pub fn new(title: &str) -> Report {
        Report { title: title.to_owned(), body: String::new() }
    }

    /// A heading.
    pub fn heading(&mut self, text: &str) {
        let _ = writeln!(self.body, "<h2>{}</h2>", escape(text));
    }

    /// A text as it is.
    pub fn text(&mut self, title: &str, text: &str) {
        let _ = writeln!(
            self.body,
            "<details><summary>{}</summary><pre>{}</pre></details>",
            escape(title),
            escape(text)
        );
    }

    /// The plain values of a record.
    pub fn facts(&mut self, record: &Value) {
        self.body.push_str("<table>");
        for (name, value) in record.as_object().into_iter().flatten() {
            if name == "text" || name == "tokens" {
                continue;
            }
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let _ = write!(self.body, "<tr><td>{}</td><td>{}</td></tr>", escape(name), escape(&value));
        }
        self.body.push_str("</table>\n");
    }

    /// Records as a table; columns are (title, field), as for [`plain_table`].
    pub fn table(&mut self, records: &[Value], columns: &[(&str, &str)]) {
        self.body.push_str("<h2>All</h2><table><tr>");
        for (title, _) in columns {
            let _ = write!(self.body, "<th>{}</th>", escape(title));
        }
        self.body.push_str("</tr>");
        for record in records {
            self.body.push_str("<tr>");
            for (_, field) in columns {
                let _ = write!(self.body, "<td>{}</td>", escape(&cell(record, field)));
            }
            self.body.push_str("</tr>");
        }
        self.body.push_str("</table>\n");
    }

    /// The picture of [`comparison`].
    pub fn comparison(&mut self, records: &[Value]) {
        self.body.push_str(&inline(comparison(records)));
    }

    /// What was read: by layer and head as a heat map, and along the text.
    pub fn reading(&mut self, reading: &Reading, shape: Shape, start: usize) {
        let shares = reading.by_head();
        let grid = Grid {
            title: "Share of K and V read, by layer and KV head",
            x: "layer",
            y: "KV head",
            columns: shape.layers,
            rows: shape.kv_heads,
            value: &|column, row| shares[column * shape.kv_heads + row],
            most: 1.0,
            unit: "% of the blocks",
        };
        self.body.push_str(&grid.draw());
        let points: Vec<(f64, f64)> = reading
            .by_step()
            .iter()
            .enumerate()
            .map(|(i, share)| ((start + i) as f64, share * 100.0))
            .collect();
        let Some(&(last, _)) = points.last() else { return };
        let series = Series {
            name: "all layers and heads".into(),
            color: PALETTE[0].into(),
            marker: Marker::Circle,
            line: true,
            points,
            marked: vec![],
        };
        let chart = Chart {
            title: "Share of K and V read along the text".into(),
            x: Axis::linear("tokens of context", start as f64, last.max(start as f64 + 1.0)),
            y: Axis::linear("blocks read (%)", 0.0, 100.0),
            series: vec![series],
            reference: None,
        };
        let mut svg = Svg::new(760.0, 340.0, "Share of K and V read along the text");
        chart.draw(&mut svg, Rect { x: 12.0, y: 12.0, width: 736.0, height: 300.0 });
        self.body.push_str(&inline(svg));
    }

    /// Which blocks the plan's last step read, by layer: how many of the KV heads. `needle`: blocks to mark.
    pub fn blocks_read(
        &mut self,
        plan: &DecodePlan,
        shape: Shape,
        needle: Option<std::ops::RangeInclusive<usize>>,
    ) {
        let total = plan.heads(0).map(|head| head.blocks_total).next().unwrap_or(0);
        if total == 0 {
            return;
        }
        let mut read = vec![0.0f64; shape.layers * total];
        for layer in 0..shape.layers {
            for kv_head in 0..shape.kv_heads {
                for &block in plan.selection(layer, 0, kv_head).unwrap_or_default() {
                    if let Some(read) = read.get_mut(layer * total + block as usize) {
                        *read += 1.0 / shape.kv_heads as f64;
                    }
                }
            }
        }
        // At most 256 columns: neighbours share one, by the largest.
        let wide = total.div_ceil(256);
        let value = |column: usize, row: usize| {
            let from = row * total + column * wide;
            read[from..(from + wide).min((row + 1) * total)].iter().copied().fold(0.0, f64::max)
        };
        let title = match &needle {
            Some(needle) => format!(
                "Blocks that the last step read; the needle is in {} to {}",
                needle.start(),
                needle.end()
            ),
            None => "Blocks that the last step read".to_owned(),
        };
        let x = format!(
            "block of 16 tokens{}",
            if wide > 1 { format!(", {wide} a column") } else { String::new() }
        );
        let grid = Grid {
            title: &title,
            x: &x,
            y: "layer",
            columns: total.div_ceil(wide),
            rows: shape.layers,
            value: &value,
            most: 1.0,
            unit: "% of the KV heads",
        };
        let mark = needle.map(|needle| (needle.start() / wide, needle.end() / wide));
        self.body.push_str(&grid.draw_marked(mark));
    }

    /// Missed mass of audited heads, by layer.
    pub fn audits(&mut self, audits: &[AuditRecord], shape: Shape) {
        let points: Vec<(f64, f64)> = audits
            .iter()
            .flat_map(|audit| audit.true_missed.iter().map(|&missed| (audit.layer as f64, missed)))
            .collect();
        if points.is_empty() {
            return;
        }
        let count = points.len();
        let chart = Chart {
            title: format!("Missed mass of {count} audited query heads"),
            x: Axis::linear("layer", 0.0, shape.layers as f64),
            y: Axis::log("share of the mass", points.iter().map(|p| p.1), Some("0")),
            series: vec![Series {
                name: "recomputed in f64".into(),
                color: PALETTE[1].into(),
                marker: Marker::Circle,
                line: false,
                points,
                marked: vec![],
            }],
            reference: None,
        };
        let mut svg = Svg::new(760.0, 380.0, "Missed mass by layer");
        chart.draw(&mut svg, Rect { x: 12.0, y: 12.0, width: 736.0, height: 340.0 });
        self.body.push_str(&inline(svg));
    }

    /// Writes the page.
    pub fn write(&self, file: &Path) -> Result<(), CliError> {
        let Report { title, body } = self;
        let title = escape(title);
        let page = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n<style>\
             body{{font-family:system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}}\
             table{{border-collapse:collapse;margin:1rem 0}}td,th{{border:1px solid #ddd;padding:.2rem .6rem;text-align:left}}\
             svg{{max-width:100%;height:auto;margin:.5rem 0}}pre{{white-space:pre-wrap;background:#f6f6f6;padding:1rem}}\
             </style></head><body>\n<h1>{title}</h1>\n{body}</body></html>\n"
        );
        let mut partial = file.as_os_str().to_owned();
        partial.push(".partial");
        let written = std::fs::write(&partial, page).and_then(|()| std::fs::rename(&partial, file));
        if written.is_err() {
            let _ = std::fs::remove_file(&partial);
        }
        written.map_err(|source| unwritable(file, source))
    }
}

/// Divergence from dense against bytes read, means over the texts; policies of one kind share a line.
pub fn comparison(records: &[Value]) -> Svg {
    // (kind, policy): sums of bytes and KL, and how many.
    let mut points: Vec<(String, String, f64, f64, f64)> = vec![];
    for record in records {
        let (policy, mirror) =
            (record["policy"].as_str().unwrap_or(""), record["mirror"].as_str().unwrap_or(""));
        let (Some(bytes), Some(kl)) = (record["bytes_fraction"].as_f64(), record["kl"]["mean"].as_f64())
        else {
            continue;
        };
        let Some((kind, _)) = policy.split_once(':') else { continue };
        let kind = match kind {
            "quest" | "mean" | "cuboid" | "oracle" => kind.to_owned(),
            _ => format!("{kind}, mirror {mirror}"),
        };
        match points.iter_mut().find(|point| (&point.0, point.1.as_str()) == (&kind, policy)) {
            Some(point) => (point.2, point.3, point.4) = (point.2 + bytes, point.3 + kl, point.4 + 1.0),
            None => points.push((kind, policy.to_owned(), bytes, kl, 1.0)),
        }
    }
    let markers =
        [Marker::Circle, Marker::Square, Marker::Triangle, Marker::Diamond, Marker::Wedge, Marker::Star];
    let mut series: Vec<Series> = vec![];
    for (kind, _, bytes, kl, n) in &points {
        let at = (100.0 * bytes / n, kl / n);
        match series.iter_mut().find(|series| series.name == *kind) {
            Some(series) => series.points.push(at),
            None => series.push(Series {
                name: kind.clone(),
                color: PALETTE[series.len() % PALETTE.len()].into(),
                marker: markers[series.len() % markers.len()],
                line: true,
                points: vec![at],
                marked: vec![],
            }),
        }
    }
    series.iter_mut().for_each(|series| series.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    let context = records.first().and_then(|record| record["context"].as_u64()).unwrap_or(0);
    let title = format!("Divergence from dense attention against bytes read, {context} tokens of context");
    let chart = Chart {
        title: title.clone(),
        x: Axis::linear("bytes read, metadata included (% of dense)", 0.0, 100.0),
        y: Axis::log("KL (nats)", points.iter().map(|point| point.3 / point.4), Some("0")),
        series,
        reference: None,
    };
    let mut svg = Svg::new(760.0, 520.0, &title);
    chart.draw(&mut svg, Rect { x: 12.0, y: 12.0, width: 736.0, height: 470.0 });
    svg
}

/// A heat map.
struct Grid<'a> {
    title: &'a str,
    x: &'a str,
    y: &'a str,
    columns: usize,
    rows: usize,
    value: &'a dyn Fn(usize, usize) -> f64,
    most: f64,
    unit: &'a str,
}

impl Grid<'_> {
    fn draw(&self) -> String {
        self.draw_marked(None)
    }

    /// Draws it, with a frame around the columns `mark`.
    fn draw_marked(&self, mark: Option<(usize, usize)>) -> String {
        let cell = (690.0 / self.columns as f64).min(30.0);
        let high = (420.0 / self.rows as f64).min(22.0);
        let (left, top) = (56.0, 40.0);
        let bottom = top + high * self.rows as f64;
        let mut svg = Svg::new(770.0, bottom + 66.0, self.title);
        svg.heading((left, 24.0), 15.0, Anchor::Start, self.title);
        for row in 0..self.rows {
            let shades: Vec<String> =
                (0..self.columns).map(|column| shade((self.value)(column, row) / self.most)).collect();
            // Neighbours of one shade are one rectangle, or a page would have megabytes.
            let mut column = 0;
            for run in shades.chunk_by(|a, b| a == b) {
                let (x, y) = (left + cell * column as f64, top + high * row as f64);
                svg.rect(Rect { x, y, width: cell * run.len() as f64, height: high }, &run[0]);
                column += run.len();
            }
            if self.rows <= 8 || row % 5 == 0 {
                svg.text(
                    (left - 6.0, top + high * (row as f64 + 0.5) + 4.0),
                    11.0,
                    Anchor::End,
                    &row.to_string(),
                );
            }
        }
        for column in (0..self.columns).step_by((self.columns / 8).max(1)) {
            let at = (left + cell * (column as f64 + 0.5), bottom + 15.0);
            svg.text(at, 11.0, Anchor::Middle, &column.to_string());
        }
        if let Some((from, to)) = mark {
            let (x0, x1) = (left + cell * from as f64 - 1.0, left + cell * (to + 1) as f64 + 1.0);
            for x in [x0, x1] {
                svg.line((x, top - 6.0), (x, bottom + 4.0), PALETTE[1], 1.5, "");
            }
        }
        svg.text((left + cell * self.columns as f64 / 2.0, bottom + 32.0), 12.0, Anchor::Middle, self.x);
        svg.upward_text((18.0, (top + bottom) / 2.0), 12.0, self.y);
        for i in 0..=20 {
            let r = Rect { x: left + 12.0 * i as f64, y: bottom + 42.0, width: 12.0, height: 10.0 };
            svg.rect(r, &shade(i as f64 / 20.0));
        }
        let most = self.most * 100.0;
        svg.note(
            (left + 260.0, bottom + 51.0),
            11.0,
            Anchor::Start,
            &format!("0 to {most:.0} {}", self.unit),
        );
        inline(svg)
    }
}

/// White to dark blue, for 0 to 1; lightness falls evenly, so that it reads without colour.
fn shade(value: f64) -> String {
    let x = if value.is_finite() { value.clamp(0.0, 1.0) } else { 0.0 };
    let mix = |from: f64, to: f64| (from + (to - from) * x).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mix(244.0, 8.0), mix(247.0, 48.0), mix(251.0, 107.0))
}

/// An SVG inside HTML: without the XML declaration.
fn inline(svg: Svg) -> String {
    let text = svg.finish();
    text.find("<svg").map_or_else(String::new, |at| text[at..].to_owned())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// One value of a record: `a.b` is a path, `%a` a share as per cent.
fn cell(record: &Value, field: &str) -> String {
    let (percent, path) = field.strip_prefix('%').map_or((false, field), |path| (true, path));
    let value = path.split('.').fold(record, |value, part| &value[part]);
    match (value.as_f64(), value.as_str()) {
        (Some(x), _) if percent => format!("{:.1}", 100.0 * x),
        (Some(x), _) if value.is_u64() => format!("{x}"),
        (Some(x), _) if x != 0.0 && x.abs() < 0.001 => format!("{x:.1e}"),
        (Some(x), _) if x.abs() < 1.0 => format!("{x:.4}"),
        (Some(x), _) => format!("{x:.3}"),
        (_, Some(text)) => text.to_owned(),
        _ => "-".to_owned(),
    }
}

/// Records as an aligned table for a terminal.
pub fn plain_table(records: &[Value], columns: &[(&str, &str)]) -> String {
    let mut rows: Vec<Vec<String>> = vec![columns.iter().map(|(title, _)| (*title).to_owned()).collect()];
    rows.extend(records.iter().map(|record| columns.iter().map(|(_, field)| cell(record, field)).collect()));
    let widths: Vec<usize> = (0..columns.len())
        .map(|c| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_cannot_be_written_leaves_the_old_one() {
        let folder = std::env::temp_dir().join(format!("psa-report-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("page.html");
        Report::new("old").write(&file).unwrap();
        // A folder stands where the partial file would be written, as a full disk would.
        std::fs::create_dir(folder.join("page.html.partial")).unwrap();
        let error = Report::new("new").write(&file).unwrap_err().to_string();
        assert!(error.contains("page.html") && error.contains("--report"), "{error}");
        assert!(std::fs::read_to_string(&file).unwrap().contains("<h1>old</h1>"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_page_is_one_file_and_escapes_what_it_shows() {
        let mut page = Report::new("<model>");
        page.text("prompt", "a <b> & \"c\"");
        let mut reading = String::new();
        reading.push_str(
            &Grid {
                title: "t",
                x: "x",
                y: "y",
                columns: 3,
                rows: 2,
                value: &|c, r| (c + r) as f64 / 3.0,
                most: 1.0,
                unit: "%",
            }
            .draw(),
        );
        page.body.push_str(&reading);
        assert!(page.body.contains("a &lt;b&gt; &amp; &quot;c&quot;"));
        assert!(
            page.body.contains("<svg") && !page.body.contains("<?xml") && !page.body.contains("http-equiv")
        );
    }

    #[test]
    fn cells_find_nested_values_and_shares() {
        let record = json!({"a": {"b": 0.25}, "n": 12, "s": "x", "z": null});
        assert_eq!(cell(&record, "%a.b"), "25.0");
        assert_eq!(cell(&record, "n"), "12");
        assert_eq!((cell(&record, "s"), cell(&record, "z")), ("x".into(), "-".into()));
    }
}
