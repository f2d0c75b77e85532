//! What the demo prints: the table, what it means, and whether everything held.

use std::io::Write;
use std::path::Path;

use psa::Policy;
use psa::eval::{Quality, Record};
use psa::traces::Traces;
use serde_json::json;

use super::check::Check;
use super::contest::{Contest, Row};
use crate::cli::table::{error, mass, percent};
use crate::cli::{CliError, Table, Verdict};

/// Output error up to which dense attention counts as the recorded one; as in `psa eval`.
const DENSE_ERROR: f64 = 1e-3;

/// Everything there is to say.
pub struct Summary<'a> {
    /// The data.
    pub traces: &'a Traces,
    /// The policies.
    pub contest: &'a Contest,
    /// The PTX, unless left out.
    pub check: Option<&'a Check>,
}

impl Summary<'_> {
    /// Prints it, and says whether it is good.
    pub fn print(&self, picture: &Path, json: bool) -> Result<Verdict, CliError> {
        let mut out = std::io::stdout().lock();
        if json {
            self.print_json(&mut out, picture)?;
        } else {
            self.print_text(&mut out, picture)?;
        }
        out.flush()?;
        let good = self.dense_is_good() && self.check.is_none_or(Check::good);
        Ok(if good { Verdict::Good } else { Verdict::Bad })
    }

    fn dense(&self) -> Option<&Record> {
        self.contest.rows.iter().map(|row| &row.record).find(|r| r.policy == Policy::Dense.to_string())
    }

    /// Written so that NaN is bad.
    fn dense_is_good(&self) -> bool {
        self.dense().is_some_and(|r| r.missed_mass.max == 0.0 && r.output_error.max <= DENSE_ERROR)
    }

    fn print_json(&self, out: &mut impl Write, picture: &Path) -> Result<(), CliError> {
        let lists = [("missed_mass.p99", &self.contest.rows), ("output_error.mean", &self.contest.by_output)];
        for (quality, rows) in lists {
            for row in rows {
                let mut record = serde_json::to_value(&row.record)?;
                record["tuned_to"] = if row.tuned.is_some() { quality.into() } else { json!(null) };
                writeln!(out, "{record}")?;
            }
        }
        let verdict = json!({
            "demo": "verdict",
            "dense_reproduces_recorded_outputs": self.dense_is_good(),
            "emulator": self.check,
            "emulator_agrees": self.check.map(Check::good),
            "bytes_ratio_to_dense": 1.0 / self.contest.mark.bytes_fraction,
            "picture": picture.display().to_string(),
        });
        writeln!(out, "{verdict}")?;
        Ok(())
    }

    fn print_text(&self, out: &mut impl Write, picture: &Path) -> Result<(), CliError> {
        let (traces, mark) = (self.traces, &self.contest.mark);
        let longest = traces.cases.iter().map(|case| case.context).max().unwrap_or(0);
        writeln!(out, "Traces: {}", traces.origin)?;
        writeln!(
            out,
            "{} attention heads (KV heads with their query heads), {} decode steps, up to {longest} tokens.\n",
            traces.cases.len(),
            mark.queries
        )?;
        writeln!(
            out,
            "Every policy on the CPU. Policies marked * are tuned to the p99 of missed mass of {} on 2+2 bits:",
            mark.policy
        )?;
        write!(out, "{}", self.table())?;
        writeln!(
            out,
            "\nKV read: share of the blocks of K and V; metadata: mirror bytes; total: both, dense = 100.\n\
             Missed: softmax mass that was not read; output error: ||o - dense|| / ||dense||.\n"
        )?;
        for line in self.findings() {
            writeln!(out, "{line}")?;
        }
        writeln!(out, "\nPicture: {}", picture.display())?;
        Ok(())
    }

    fn table(&self) -> String {
        let head = [
            "policy",
            "ranks by",
            "KV read %",
            "metadata %",
            "total %",
            "x progressive",
            "missed p99",
            "missed max",
            "output err mean",
            "top-ups %",
        ];
        let mut table = Table::new(2, &head);
        for Row { tuned, record } in &self.contest.rows {
            let star = if tuned.is_some() { " *" } else { "" };
            table.row(vec![
                format!("{}{star}", record.policy),
                ranks_by(record),
                percent(record.kv_fraction),
                percent(record.metadata_fraction),
                percent(record.bytes_fraction),
                format!("{:.2}", record.bytes_fraction / self.contest.mark.bytes_fraction),
                mass(record.missed_mass.p99),
                mass(record.missed_mass.max),
                error(record.output_error.mean),
                percent(record.topup_fraction),
            ]);
        }
        table.render()
    }

    /// One line each.
    fn findings(&self) -> Vec<String> {
        let mark = &self.contest.mark;
        let mut lines = vec![format!(
            "{} on 2+2 bits reads {} % of dense's bytes, metadata included; dense reads {:.1} times as many.",
            mark.policy,
            percent(mark.bytes_fraction),
            1.0 / mark.bytes_fraction
        )];
        let lists = [(Quality::MissedP99, &self.contest.rows), (Quality::ErrorMean, &self.contest.by_output)];
        for (quality, rows) in lists {
            let costs: Vec<String> = rows
                .iter()
                .filter(|row| row.tuned.is_some())
                .map(|row| {
                    let ratio = row.record.bytes_fraction / mark.bytes_fraction;
                    format!("{} {ratio:.2} times its bytes", row.record.policy)
                })
                .collect();
            let what = match quality {
                Quality::ErrorMean => format!("mean output error ({})", error(quality.of(mark))),
                _ => format!("p99 of missed mass ({})", mass(quality.of(mark))),
            };
            lines.push(format!("At the same {what}: {}.", costs.join(", ")));
        }
        lines.push(match self.dense() {
            Some(dense) => format!(
                "{}: dense attention gives the recorded outputs; largest error {}, limit {DENSE_ERROR:.0e}.",
                ok(self.dense_is_good()),
                error(dense.output_error.max)
            ),
            None => "BAD: dense attention did not run.".to_owned(),
        });
        lines.extend(self.check.map(check_line));
        lines
    }
}

fn ranks_by(record: &Record) -> String {
    match record.mirror.as_deref() {
        Some("box") => "min/max boxes".to_owned(),
        Some(bits) => format!("{bits}-bit keys"),
        None if record.policy.starts_with("oracle") => "true masses".to_owned(),
        None => "-".to_owned(),
    }
}

fn check_line(check: &Check) -> String {
    let mut line = format!(
        "{}: the shipped PTX on the emulator, checkers on: {} of {} decode steps read the CPU's blocks; outputs \
         differ by at most {}, {:.2} % of what rounding allows; {} of {} heads, {:.1} s.",
        ok(check.good()),
        check.same_selection,
        check.steps,
        error(check.output_difference),
        check.share_of_bound * 100.0,
        check.cases,
        check.cases_total,
        check.seconds
    );
    if !check.problem.is_empty() {
        line.push_str(&format!(" {}", check.problem));
    }
    line
}

fn ok(good: bool) -> &'static str {
    if good { "OK" } else { "BAD" }
}
