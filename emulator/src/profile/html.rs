//! The profile as one HTML file without scripts or links.

use super::{Line, Profile, bytes, count, passes};
use std::collections::HashMap;
use std::fmt::Write as _;

const STYLE: &str = "body{font:14px/1.45 system-ui,sans-serif;margin:24px auto;max-width:1280px;color:#1a202c;background:#fff}\
h1{font-size:20px;margin:0 0 4px}h2{font-size:16px;margin:28px 0 8px}p{margin:4px 0}\
table{border-collapse:collapse;width:100%}th{font-weight:600;color:#4a5568;border-bottom:1px solid #cbd5e0}\
td,th{padding:1px 8px;text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}\
td.c,th.c{text-align:left;font-family:ui-monospace,monospace;white-space:pre;width:100%}\
tr.s td{background:#edf2f7;color:#2d3748;font-weight:600;text-align:left;font-family:ui-monospace,monospace;white-space:pre}\
.bad{color:#c05621;font-weight:600}.dim{color:#a0aec0}ol{padding-left:28px}li{margin:0 0 8px}\
li code,td code{font-family:ui-monospace,monospace;background:#edf2f7;padding:0 4px}.n{color:#4a5568}";

/// Text for HTML and SVG.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            // XML knows no other control characters.
            c if c < ' ' && c != '\t' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

const HEAD: &str = "<tr><th>lane instr</th><th>share</th><th>idle</th><th>sectors (ideal)</th><th>conflicts</th><th>bytes</th>";

/// Cells of a line under [`HEAD`]; the share colours its cell.
fn cells(l: &Line, total: &Line) -> String {
    let class = |bad: bool| if bad { " class=bad" } else { "" };
    let (share, idle) = (l.share(total), l.idle_fraction());
    format!(
        "<td>{}</td><td style=\"background:rgba(43,108,176,{:.2})\">{share:.1}%</td><td{}>{:.0}%</td>\
         <td{}>{}</td><td class=bad>{}</td><td>{}</td>",
        count(l.counters.lane_instructions),
        (share / 100.0).sqrt() * 0.7,
        class(idle > 0.25),
        100.0 * idle,
        class(l.scattered()),
        l.sectors(),
        l.conflicts(),
        l.moved(),
    )
}

impl Profile<'_> {
    /// One file with hints, the `top` hottest source lines, buffers, and the listing.
    pub fn html(&self, top: usize) -> String {
        let kernel = escape(self.kernel);
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=en><meta charset=utf-8><title>{kernel}: profile</title>\n<style>{STYLE}</style>\n\
             <h1>{kernel}</h1>\n<p>{}</p>\n<p class=n>Counted on the emulator, not timed. A pass is a warp instruction, a \
             turn of the banks of shared memory, a lane that waits in an atomic, or 128 bytes of sectors; the share is of \
             all {} passes.</p>\n",
            self.summary().iter().map(|s| escape(s)).collect::<Vec<_>>().join("<br>"),
            count(passes(&self.total.counters))
        );
        out += "<h2>Hints, by the passes that would be saved at best</h2>\n<ol>\n";
        let hints = self.hints();
        for h in hints.iter().take(top) {
            let saved = 100.0 * h.cost as f64 / passes(&self.total.counters).max(1) as f64;
            let _ = writeln!(
                out,
                "<li><b>{}</b>, <span class=bad>{}</span> (up to {saved:.0}% of the passes): {}<br><code>{}</code></li>",
                escape(&self.place(h)),
                h.kind,
                escape(&h.message),
                escape(self.code(h))
            );
        }
        out += "</ol>\n";
        if hints.is_empty() {
            out += "<p>None: coalesced, free of conflicts, all lanes at work.</p>\n";
        }
        let sources = self.by_source();
        if !sources.is_empty() {
            let _ = writeln!(out, "<h2>Hot source lines</h2>\n<table>{HEAD}<th class=c>source</th></tr>");
            for s in sources.iter().take(top) {
                let code = self.code_of((&s.file, s.line), s.inlined_at.as_ref()).unwrap_or("");
                let text = format!("{:<20} {code}", Self::short(&s.file, s.line, s.inlined_at.as_ref()));
                let _ = writeln!(
                    out,
                    "<tr>{}<td class=c>{}</td></tr>",
                    cells(&s.into(), &self.total),
                    escape(&text)
                );
            }
            out += "</table>\n";
        }
        if !self.buffers.is_empty() {
            out += "<h2>Buffers</h2>\n<table><tr><th>name</th><th>size</th><th>read</th><th>distinct</th><th>written</th>\
                    <th>distinct</th><th class=c></th></tr>\n";
            for b in self.buffers {
                let _ = writeln!(
                    out,
                    "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=c></td></tr>",
                    escape(&b.name),
                    bytes(b.size),
                    bytes(b.bytes_read),
                    bytes(b.distinct_read),
                    bytes(b.bytes_written),
                    bytes(b.distinct_written)
                );
            }
            out += "</table>\n";
        }
        self.table(&mut out);
        out += "</html>\n";
        out
    }

    fn table(&self, out: &mut String) {
        let by_line: HashMap<u32, _> = self.lines.iter().map(|l| (l.line, l)).collect();
        let (first, last) =
            (self.lines.first().map_or(1, |l| l.line), self.lines.last().map_or(0, |l| l.line));
        let _ = writeln!(out, "<h2>Listing</h2>\n<table>{HEAD}<th>line</th><th class=c>PTX</th></tr>");
        let mut source = None;
        for number in first..=last {
            let code = self.ptx.get(number as usize - 1).map_or("", |t| t.trim_end());
            let Some(l) = by_line.get(&number) else {
                let plain = code.trim();
                if !plain.is_empty() && !plain.starts_with(".loc") && !plain.starts_with("//") {
                    let _ = writeln!(
                        out,
                        "<tr class=dim><td colspan=6></td><td>{number}</td><td class=c>{}</td></tr>",
                        escape(code)
                    );
                }
                continue;
            };
            if l.source.is_some() && l.source != source {
                if let Some((file, line)) = &l.source {
                    let code = self.code_of((file, *line), l.inlined_at.as_ref()).unwrap_or("");
                    let text = format!("{}  {code}", Self::short(file, *line, l.inlined_at.as_ref()));
                    let _ = writeln!(out, "<tr class=s><td colspan=8>{}</td></tr>", escape(&text));
                }
                source = l.source.clone();
            }
            let _ = writeln!(
                out,
                "<tr>{}<td>{number}</td><td class=c>{}</td></tr>",
                cells(&(*l).into(), &self.total),
                escape(code)
            );
        }
        *out += "</table>\n";
    }
}
