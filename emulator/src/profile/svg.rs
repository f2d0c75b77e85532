//! The profile as a picture: the hottest lines as bars, with what is wrong with each.

use super::html::escape;
use super::{Line, Profile, count, passes};
use std::fmt::Write as _;

const WIDTH: f64 = 1200.0;
const ROW: f64 = 26.0;
/// Where the columns begin: bar, its share, idle, sectors, conflicts.
const BAR: f64 = 560.0;
const BAR_WIDTH: f64 = 280.0;
const COLUMNS: [(f64, &str); 4] =
    [(900.0, "share"), (965.0, "idle"), (1080.0, "sectors (ideal)"), (1175.0, "conflicts")];
/// Characters of 7.2 units that fit before the bar.
const LABEL: usize = 74;

/// At most `n` characters.
fn cut(text: &str, n: usize) -> String {
    match text.char_indices().nth(n) {
        Some(_) => text.chars().take(n.saturating_sub(1)).collect::<String>() + "…",
        None => text.to_string(),
    }
}

/// What a row shows.
struct Row {
    label: String,
    line: Line,
}

impl Profile<'_> {
    /// The `top` hottest source lines (PTX lines without `.loc`), and the first hints below them.
    pub fn svg(&self, top: usize) -> String {
        let mut rows: Vec<Row> = self
            .by_source()
            .into_iter()
            .map(|s| {
                let code = self
                    .code_of((&s.file, s.line), s.inlined_at.as_ref())
                    .unwrap_or_else(|| self.ptx_line(s.ptx_lines[0]));
                Row {
                    label: format!("{}  {code}", Self::short(&s.file, s.line, s.inlined_at.as_ref())),
                    line: (&s).into(),
                }
            })
            .collect();
        if rows.is_empty() {
            let row = |l: &&super::LineProfile| Row {
                label: format!("{}  {}", l.line, self.ptx_line(l.line)),
                line: (*l).into(),
            };
            rows = self.hot().iter().map(row).collect();
        }
        rows.truncate(top);
        let hints = self.hints();
        let shown = hints.len().min(5);
        let head = 96.0;
        let height = head + ROW * rows.len() as f64 + 50.0 + 40.0 * shown.max(1) as f64 + 20.0;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
             font-family=\"DejaVu Sans, sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <text x=\"16\" y=\"28\" font-size=\"17\" font-weight=\"bold\">{}: where the passes go</text>\n\
             <text x=\"16\" y=\"48\" fill=\"#4a5568\">{} passes, counted on the emulator, not timed; bars: passes of a line, \
             the pale part is the share of its lanes that are idle</text>\n",
            escape(&cut(self.kernel, 80)),
            count(passes(&self.total.counters)),
        );
        for (x, name) in COLUMNS {
            let _ = writeln!(
                out,
                "<text x=\"{x}\" y=\"{}\" text-anchor=\"end\" font-weight=\"bold\" fill=\"#4a5568\">{name}</text>",
                head - 12.0
            );
        }
        let most = rows.iter().map(|r| passes(&r.line.counters)).max().unwrap_or(1).max(1) as f64;
        for (i, r) in rows.iter().enumerate() {
            self.row(&mut out, r, head + ROW * i as f64, most);
        }
        let mut y = head + ROW * rows.len() as f64 + 28.0;
        let _ = writeln!(
            out,
            "<text x=\"16\" y=\"{y}\" font-weight=\"bold\">Hints, by the passes that would be saved at best</text>"
        );
        for (i, h) in hints.iter().take(shown).enumerate() {
            y += 22.0;
            let saved = 100.0 * h.cost as f64 / passes(&self.total.counters).max(1) as f64;
            let line = format!("{}. {}: {} (up to {saved:.0}% of the passes)", i + 1, self.place(h), h.kind);
            let _ = writeln!(
                out,
                "<text x=\"16\" y=\"{y}\" fill=\"#c05621\">{}</text>",
                escape(&cut(&line, 160))
            );
            y += 17.0;
            let _ = writeln!(
                out,
                "<text x=\"32\" y=\"{y}\" fill=\"#2d3748\">{}</text>",
                escape(&cut(&h.message, 175))
            );
        }
        if hints.is_empty() {
            y += 22.0;
            let _ = writeln!(
                out,
                "<text x=\"16\" y=\"{y}\">none: coalesced, free of conflicts, all lanes at work</text>"
            );
        }
        out += "</svg>\n";
        out
    }

    fn row(&self, out: &mut String, r: &Row, y: f64, most: f64) {
        let l = &r.line;
        let (idle, width) = (l.idle_fraction(), BAR_WIDTH * passes(&l.counters) as f64 / most);
        let base = y + 16.0;
        let _ = writeln!(
            out,
            "<text x=\"16\" y=\"{base}\" font-family=\"DejaVu Sans Mono, monospace\">{}</text>\n\
             <rect x=\"{BAR}\" y=\"{}\" width=\"{width:.1}\" height=\"16\" fill=\"#bee3f8\"/>\n\
             <rect x=\"{BAR}\" y=\"{}\" width=\"{:.1}\" height=\"16\" fill=\"#2b6cb0\"/>",
            escape(&cut(&r.label, LABEL)),
            y + 4.0,
            y + 4.0,
            width * (1.0 - idle),
        );
        let cells = [
            (format!("{:.1}%", l.share(&self.total)), false),
            (format!("{:.0}%", 100.0 * idle), idle > 0.25),
            (l.sectors(), l.scattered()),
            (l.conflicts(), true),
        ];
        for ((x, _), (text, bad)) in COLUMNS.into_iter().zip(cells) {
            let style = if bad { " fill=\"#c05621\" font-weight=\"bold\"" } else { "" };
            let _ = writeln!(out, "<text x=\"{x}\" y=\"{base}\" text-anchor=\"end\"{style}>{text}</text>");
        }
    }
}
