//! Counters of every PTX line, and a listing with them.

use crate::inst::Place;
use crate::report::Counters;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

/// What one PTX line did in a launch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LineProfile {
    /// PTX line.
    pub line: u32,
    /// File and line by `.loc`.
    pub source: Option<(String, u32)>,
    /// Counters of the instructions of that line.
    pub counters: Counters,
}

impl LineProfile {
    /// Lanes of the executing warps that did not take part, of 32 an instruction.
    pub fn idle_lanes(&self) -> u64 {
        32 * self.counters.warp_instructions - self.counters.lane_instructions
    }
}

/// Sums counters of instructions to lines.
pub(crate) fn by_line(
    counts: &[Counters],
    places: &[Place],
    files: &HashMap<u32, String>,
) -> Vec<LineProfile> {
    let mut lines: BTreeMap<u32, LineProfile> = BTreeMap::new();
    for (c, p) in counts.iter().zip(places) {
        if c.warp_instructions == 0 {
            continue;
        }
        let l = lines.entry(p.line).or_default();
        l.line = p.line;
        l.source = files.get(&p.file).filter(|_| p.file != 0).map(|f| (f.clone(), p.source));
        l.counters.add(c);
    }
    lines.into_values().collect()
}

/// The lines from the first to the last that ran, with warp executions, their share, idle lanes in
/// percent, sectors an access to global memory and the ideal, and bank conflicts an access to shared.
pub fn listing(text: &str, profile: &[LineProfile]) -> String {
    let total: u64 = profile.iter().map(|l| l.counters.warp_instructions).sum();
    let by_line: HashMap<u32, &LineProfile> = profile.iter().map(|l| (l.line, l)).collect();
    let (first, last) =
        (profile.first().map_or(1, |l| l.line as usize), profile.last().map_or(0, |l| l.line as usize));
    let mut out = format!(
        "{:>6} {:>10} {:>6} {:>6} {:>15} {:>9}  PTX\n",
        "line", "executed", "share", "idle", "sectors/needed", "conflicts"
    );
    let mut source = None;
    for (i, code) in text.lines().enumerate().take(last).skip(first.saturating_sub(1)) {
        let number = i as u32 + 1;
        let code = code.trim_end();
        if code.trim_start().starts_with(".loc") || code.is_empty() {
            continue;
        }
        let Some(l) = by_line.get(&number) else {
            let _ = writeln!(out, "{number:>6} {:>50}  {code}", "");
            continue;
        };
        if l.source.is_some() && l.source != source {
            if let Some((file, line)) = &l.source {
                let _ = writeln!(out, "       -- {file}:{line}");
            }
            source = l.source.clone();
        }
        let c = &l.counters;
        let n = c.warp_instructions.max(1) as f64;
        let share = 100.0 * c.warp_instructions as f64 / total.max(1) as f64;
        let idle = 100.0 * l.idle_lanes() as f64 / (32.0 * n);
        let sectors = c.global_sectors_read + c.global_sectors_written;
        let needed = (c.global_bytes_read + c.global_bytes_written) as f64 / 32.0;
        let memory = match sectors {
            0 => String::new(),
            s => format!("{:.1}/{:.1}", s as f64 / n, needed / n),
        };
        let conflicts = match c.bank_conflicts {
            0 => String::new(),
            b => format!("{:.1}", b as f64 / n),
        };
        let _ = writeln!(
            out,
            "{number:>6} {:>10} {share:>5.1}% {idle:>5.1}% {memory:>15} {conflicts:>9}  {code}",
            c.warp_instructions
        );
    }
    out
}
