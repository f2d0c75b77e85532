//! What the parts of a run write down: one JSON object a line, told apart by `part`; and tables for people.
//! benches/results/README.md is the format's description.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;

/// One line of a results file.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "part", rename_all = "lowercase")]
pub enum Record {
    /// The cases of one kernel entry.
    Check(CheckRecord),
    /// One instruction.
    Ledger(LedgerRecord),
    /// One timing, ours or a peer's.
    Time(TimeRecord),
    /// What was left out, and why.
    Left {
        /// What.
        name: String,
        /// Why.
        reason: String,
    },
}

/// What the cases that ran a kernel gave.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct CheckRecord {
    /// Device.
    pub device: String,
    /// Entry of the PTX.
    pub kernel: String,
    /// Cases that launched it.
    pub tried: u32,
    /// Those that were right.
    pub passed: u32,
    /// Largest error of an output over its bound, of all cases; 0 where bits are compared.
    pub worst_error_over_bound: f64,
    /// The first failures.
    pub failures: Vec<String>,
}

/// What an instruction gave.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct LedgerRecord {
    /// Device.
    pub device: String,
    /// Opcode with its modifiers.
    pub instruction: String,
    /// What `largest` and `allowed` count.
    pub unit: String,
    /// Largest difference from the exact result.
    pub largest: f64,
    /// Largest difference that the instruction's definition allows.
    pub allowed: f64,
    /// Inputs.
    pub cases: u64,
    /// Inputs with other bits than on the emulator.
    pub differs_from_emulator: u64,
    /// The input of the largest difference, as words.
    pub worst_input: Vec<String>,
    /// True where a shipped kernel has it.
    pub used: bool,
}

/// Figures of what was timed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct TimeRecord {
    /// Device.
    pub device: String,
    /// Who: `psa`, or a peer by name.
    pub by: String,
    /// What: copy, launch, step, score, plan, attend, merge.
    pub what: String,
    /// dense, top-k:0.1, progressive:0.95; empty where it means nothing.
    pub policy: String,
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Query heads of a KV head.
    pub group: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// bf16, f16.
    pub dtype: String,
    /// graph or stream.
    pub mode: String,
    /// True where the L2 cache was emptied before each round.
    pub l2_cold: bool,
    /// Rounds.
    pub rounds: usize,
    /// Median of a round.
    pub median_us: f64,
    /// A tenth of the rounds were faster.
    pub p10_us: f64,
    /// A tenth of the rounds were slower.
    pub p90_us: f64,
    /// Fastest round.
    pub min_us: f64,
    /// Bytes that the algorithm has to move.
    pub bytes: u64,
    /// `bytes` over the median, in 10^9 bytes a second.
    pub gb_s: f64,
    /// Share of the copy's bytes a second in the same run; 0 where no copy was timed.
    pub copy_share: f64,
    /// Blocks that were read, of all rows.
    pub blocks_read: u64,
    /// Blocks that there are.
    pub blocks_total: u64,
}

impl TimeRecord {
    /// Fills in the figures of `rounds` (microseconds); needs `bytes`.
    #[must_use]
    pub fn with_rounds(mut self, rounds: &[f32], copy_gb_s: f64) -> TimeRecord {
        let mut sorted: Vec<f64> = rounds.iter().map(|&x| f64::from(x)).collect();
        sorted.sort_by(f64::total_cmp);
        self.rounds = sorted.len();
        if sorted.is_empty() {
            return self;
        }
        self.median_us = quantile(&sorted, 0.5);
        self.p10_us = quantile(&sorted, 0.1);
        self.p90_us = quantile(&sorted, 0.9);
        self.min_us = sorted[0];
        if self.median_us > 0.0 {
            self.gb_s = self.bytes as f64 / self.median_us / 1e3;
        }
        if copy_gb_s > 0.0 {
            self.copy_share = self.gb_s / copy_gb_s;
        }
        self
    }
}

/// The value that a share `q` of the sorted values stays below; between two of them in proportion.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

/// Writes records, one a line.
///
/// # Errors
/// [`Error::Io`].
pub fn write(file: &Path, records: &[Record]) -> Result<(), Error> {
    let mut text = Vec::new();
    for record in records {
        serde_json::to_writer(&mut text, record)
            .map_err(|e| Error::io("write", file)(std::io::Error::other(e)))?;
        text.push(b'\n');
    }
    let mut out = std::fs::File::create(file).map_err(Error::io("write", file))?;
    out.write_all(&text).map_err(Error::io("write", file))
}

/// An aligned table: the first column to the left, the others to the right.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |c: usize| {
        let cells = rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count());
        cells.chain([head[c].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let cells = cells.iter().zip(&widths).enumerate().map(|(c, (cell, &width))| {
            if c == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(head.to_vec());
    text.push_str(&"-".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1)));
    text.push('\n');
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_follow_from_rounds_and_bytes() {
        let rounds: Vec<f32> = (1..=11).map(|x| x as f32).collect();
        let record = TimeRecord { bytes: 6_000_000, ..TimeRecord::default() }.with_rounds(&rounds, 2000.0);
        assert_eq!((record.median_us, record.p10_us, record.p90_us, record.min_us), (6.0, 2.0, 10.0, 1.0));
        assert_eq!((record.gb_s, record.copy_share, record.rounds), (1000.0, 0.5, 11));
        assert_eq!(TimeRecord::default().with_rounds(&[], 1.0).rounds, 0);
    }

    #[test]
    fn records_come_back_as_they_were_written() {
        let record = Record::Time(TimeRecord { by: "psa".into(), tokens: 7, ..TimeRecord::default() });
        let text = serde_json::to_string(&record).unwrap();
        assert!(text.starts_with("{\"part\":\"time\","), "{text}");
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }
}
