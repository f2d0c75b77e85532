//! The profile as text: summary, hints, hot lines, and the whole listing.

use super::{Line, Profile, bytes, count};
use std::collections::HashMap;
use std::fmt::Write as _;

const COLUMNS: &str = "  lane instr  share   idle  sectors (ideal)  conflicts       bytes";

/// The numbers of a line under [`COLUMNS`].
fn cells(l: &Line, total: &Line) -> String {
    format!(
        "{:>12} {:>5.1}% {:>5.1}% {:>16} {:>10} {:>11}",
        count(l.counters.lane_instructions),
        l.share(total),
        100.0 * l.idle_fraction(),
        l.sectors(),
        l.conflicts(),
        l.moved()
    )
}

impl Profile<'_> {
    /// Hints, the `top` hottest PTX and source lines, and the listing of all lines that ran.
    pub fn text(&self, top: usize) -> String {
        let mut out = format!("\nprofile of {}\n  {}\n", self.kernel, self.summary().join("\n  "));
        if self.lines.is_empty() {
            out += "nothing was counted: the launch was refused, or made without Options::profile\n";
            return out;
        }
        self.traffic(&mut out);
        out += "\nhints, by the passes that would be saved at best (counted, not timed)\n";
        let hints = self.hints();
        for (i, h) in hints.iter().take(top).enumerate() {
            let _ = writeln!(out, "{:>3}. {}: {}: {}", i + 1, self.place(h), h.kind, h.message);
            let _ = writeln!(out, "       {}", self.code(h));
        }
        match hints.len() {
            0 => out += "     none: coalesced, free of conflicts, all lanes at work\n",
            n if n > top => out += &format!("     and {} more\n", n - top),
            _ => {}
        }
        let sources = self.by_source();
        if !sources.is_empty() {
            let _ = writeln!(out, "\nhot source lines\n{COLUMNS}  source");
            for s in sources.iter().take(top) {
                let code = self.code_of((&s.file, s.line), s.inlined_at.as_ref()).unwrap_or("");
                let place = Self::short(&s.file, s.line, s.inlined_at.as_ref());
                let _ = writeln!(out, "{}  {place:<18} {code}", cells(&s.into(), &self.total));
            }
        }
        let _ = writeln!(out, "\nhot PTX lines\n{COLUMNS}  line");
        for l in self.hot().into_iter().take(top) {
            let code = self.ptx_line(l.line);
            let _ = writeln!(out, "{}  {:>5} {code}", cells(&l.into(), &self.total), l.line);
        }
        self.listing(&mut out);
        out
    }

    fn traffic(&self, out: &mut String) {
        if self.buffers.is_empty() {
            return;
        }
        *out += "\nbuffers            size        read    distinct     written    distinct\n";
        for b in self.buffers {
            let _ = writeln!(
                out,
                "{:<12} {:>11} {:>11} {:>11} {:>11} {:>11}",
                b.name,
                bytes(b.size),
                bytes(b.bytes_read),
                bytes(b.distinct_read),
                bytes(b.bytes_written),
                bytes(b.distinct_written)
            );
        }
    }

    /// From the first line that ran to the last, with the source lines between.
    fn listing(&self, out: &mut String) {
        let by_line: HashMap<u32, _> = self.lines.iter().map(|l| (l.line, l)).collect();
        let (first, last) =
            (self.lines.first().map_or(1, |l| l.line), self.lines.last().map_or(0, |l| l.line));
        let _ = writeln!(out, "\nlisting\n{COLUMNS}   line PTX");
        let mut source = None;
        for number in first..=last {
            let code = self.ptx.get(number as usize - 1).map_or("", |t| t.trim_end());
            let Some(l) = by_line.get(&number) else {
                let plain = code.trim();
                if !plain.is_empty() && !plain.starts_with(".loc") && !plain.starts_with("//") {
                    let _ = writeln!(out, "{:>COLUMNS_WIDTH$} {number:>6} {code}", "");
                }
                continue;
            };
            if l.source.is_some() && l.source != source {
                if let Some((file, line)) = &l.source {
                    let code = self.code_of((file, *line), l.inlined_at.as_ref()).unwrap_or("");
                    let place = Self::short(file, *line, l.inlined_at.as_ref());
                    let _ = writeln!(out, "-- {place}  {code}");
                }
                source = l.source.clone();
            }
            let _ = writeln!(out, "{} {number:>6} {code}", cells(&(*l).into(), &self.total));
        }
    }
}

const COLUMNS_WIDTH: usize = COLUMNS.len();
