//! Scores and survivors, for people, programs and docs/mutation.md.

use std::fmt::Write as _;

use serde::Serialize;

use super::explained::{self, Explanation};
use super::operators::Class;
use super::{Outcome, REPORTED_AT_LEAST, Verdict};

/// Counts of one class.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Score {
    /// Its word.
    pub class: String,
    /// Mutants made.
    pub mutants: usize,
    /// Reported by a checker.
    pub reported: usize,
    /// Not reported, but memory differs from the clean run.
    pub wrong: usize,
    /// Neither, explained.
    pub explained: usize,
    /// Neither, not explained.
    pub unexplained: usize,
    /// Of those: the changed instruction is executed by no scene, so nothing could see it.
    pub unreached: usize,
    /// Not loaded.
    pub refused: usize,
    /// By checker, most first.
    pub by: Vec<(String, usize)>,
}

impl Score {
    /// Share reported by checkers, in percent of all mutants that load; one that no scene executes is not reported.
    pub fn reported_percent(&self) -> f64 {
        100.0 * self.reported as f64 / (self.mutants - self.refused).max(1) as f64
    }

    /// Share reported or wrong, in percent of the same.
    pub fn noticed_percent(&self) -> f64 {
        100.0 * (self.reported + self.wrong) as f64 / (self.mutants - self.refused).max(1) as f64
    }
}

/// The counts of the classes that have mutants.
pub fn scores(verdicts: &[Verdict], explanations: &[Explanation]) -> Vec<Score> {
    Class::ALL
        .into_iter()
        .filter_map(|class| {
            let mut s = Score { class: class.name().into(), ..Score::default() };
            for v in verdicts.iter().filter(|v| v.mutant.class == class) {
                s.mutants += 1;
                match &v.outcome {
                    Outcome::Reported(checker) => {
                        s.reported += 1;
                        let name = checker.name();
                        match s.by.iter_mut().find(|(n, _)| n == name) {
                            Some((_, n)) => *n += 1,
                            None => s.by.push((name.to_owned(), 1)),
                        }
                    }
                    Outcome::Wrong => s.wrong += 1,
                    Outcome::Refused(_) => s.refused += 1,
                    Outcome::Survived => {
                        s.unreached += usize::from(!v.executed);
                        match explained::reason(explanations, &v.mutant.id) {
                            Some(_) => s.explained += 1,
                            None => s.unexplained += 1,
                        }
                    }
                }
            }
            s.by.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
            (s.mutants > 0).then_some(s)
        })
        .collect()
}

/// Why a campaign fails; empty when it passes.
pub fn failures(scores: &[Score]) -> Vec<String> {
    let mut out = Vec::new();
    for s in scores.iter().filter(|s| s.class == Class::Synchronisation.name()) {
        if s.reported_percent() < REPORTED_AT_LEAST {
            out.push(format!(
                "checkers report {:.1} % of the synchronisation mutants, at least {REPORTED_AT_LEAST} % are promised",
                s.reported_percent()
            ));
        }
        if s.unexplained > 0 {
            out.push(format!(
                "{} {} survivor(s) without a reason in tests/src/mutate/explained.txt: make the scenes or the \
                 checkers see them, or write down why nothing can",
                s.unexplained, s.class
            ));
        }
    }
    out
}

/// Explanations that no mutant of these kernels needs any more.
pub fn stale(verdicts: &[Verdict], explanations: &[Explanation]) -> Vec<String> {
    explanations
        .iter()
        .flat_map(|e| &e.ids)
        .filter(|id| !verdicts.iter().any(|v| explained::covers(id, &v.mutant.id)))
        .cloned()
        .collect()
}

/// One row a class, as text in columns or as a Markdown table.
pub fn table(scores: &[Score], markdown: bool) -> String {
    let mut rows = vec![
        [
            "class",
            "mutants",
            "reported",
            "wrong bytes",
            "survived",
            "not executed",
            "unexplained",
            "reported %",
            "noticed %",
            "by",
        ]
        .map(String::from),
    ];
    for s in scores {
        let by: Vec<String> = s.by.iter().map(|(name, n)| format!("{name} {n}")).collect();
        rows.push([
            s.class.clone(),
            (s.mutants - s.refused).to_string(),
            s.reported.to_string(),
            s.wrong.to_string(),
            (s.explained + s.unexplained).to_string(),
            s.unreached.to_string(),
            s.unexplained.to_string(),
            format!("{:.1}", s.reported_percent()),
            format!("{:.1}", s.noticed_percent()),
            by.join(", "),
        ]);
    }
    let widths: Vec<usize> = (0..10).map(|i| rows.iter().map(|r| r[i].len()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for (n, row) in rows.iter().enumerate() {
        if markdown {
            let _ = writeln!(out, "| {} |", row.join(" | "));
            if n == 0 {
                let _ = writeln!(out, "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|");
            }
            continue;
        }
        for (i, cell) in row.iter().enumerate() {
            let w = widths[i];
            let _ = match i {
                0 => write!(out, "{cell:<w$}"),
                9 => write!(out, "  {cell}"),
                _ => write!(out, "  {cell:>w$}"),
            };
        }
        out.push('\n');
    }
    out
}

/// The change on one line.
pub fn change(v: &Verdict) -> String {
    if v.mutant.after.is_empty() {
        format!("`{}` deleted", v.mutant.before)
    } else {
        format!("`{}` -> `{}`", v.mutant.before, v.mutant.after)
    }
}

/// Who was not reported and has to be named: survivors, and synchronisation mutants with wrong bytes only.
pub fn unreported(verdicts: &[Verdict]) -> impl Iterator<Item = &Verdict> {
    verdicts.iter().filter(|v| match v.outcome {
        Outcome::Survived => true,
        Outcome::Wrong => v.mutant.class == Class::Synchronisation,
        _ => false,
    })
}

/// docs/mutation.md.
pub fn document(verdicts: &[Verdict], explanations: &[Explanation], kernels: &[String]) -> String {
    let scores = scores(verdicts, explanations);
    let mut out = String::from(HEAD);
    let _ = write!(out, "\nKernels: {}.\n\n{}", kernels.join(", "), table(&scores, true));
    out.push_str(WORDS);
    for class in Class::ALL {
        let of: Vec<_> = unreported(verdicts).filter(|v| v.mutant.class == class).collect();
        if of.is_empty() {
            continue;
        }
        let _ = writeln!(out, "\n## Not reported: {class}");
        // One heading a reason, in the order in which they are first met.
        let mut groups: Vec<(String, Vec<&Verdict>)> = Vec::new();
        for v in of {
            let why = match (&v.outcome, explained::reason(explanations, &v.mutant.id)) {
                (Outcome::Wrong, why) => format!("wrong bytes, no report. {}", why.unwrap_or("")),
                (_, Some(why)) => why.to_owned(),
                (_, None) if !v.executed => "Executed by no scene, so nothing could see it.".into(),
                (_, None) => "Unexplained: executed, unseen, and nobody has said why.".into(),
            };
            match groups.iter_mut().find(|(reason, _)| *reason == why) {
                Some((_, those)) => those.push(v),
                None => groups.push((why, vec![v])),
            }
        }
        for (why, those) in groups {
            let _ = writeln!(out, "\n{} ({}):\n", why.trim_end().trim_end_matches('.'), those.len());
            for v in those {
                let _ = writeln!(out, "* `{}`, line {}: {}", v.mutant.id, v.line, change(v));
            }
        }
    }
    out
}

const HEAD: &str = "# Mutation of the kernels

Made by `cargo xtask mutate --write`; the reasons are those of `tests/src/mutate/explained.txt`. The PTX that is \
shipped is changed in one place at a time, run on the emulator with all checkers on, and compared with the clean run. \
It shows what the checkers would see of a mistake in these kernels; it says nothing about other kernels.
";

const WORDS: &str = "
* *reported*: a checker has a finding; *by* says which one came first. Counted for synchronisation mutants under four \
schedules, otherwise under one.
* *wrong bytes*: no finding, but memory after the launch differs from the clean run in at least one byte. Of the \
classes other than synchronisation a mutant ends at whichever comes first.
* *noticed*: reported or wrong bytes.
* *survived*: neither. Each is named below, by reason. Of synchronisation, each has a reason, or the run fails.
* *not executed*: of those that survived, the ones whose instruction no scene executes. They count as not reported.
* *%*: of all mutants.
* *unexplained*: survivors without a reason yet.

What is changed: *synchronisation*: barriers, waits, fences deleted or weakened, orders and scopes of atomics \
relaxed, masks of warp-wide instructions halved; *bounds*: integer comparisons off by one; *predicate*: guards negated \
or dropped; *address*: constants of address arithmetic plus one, operands swapped, `add` for `mul`, `sub` for `add`, \
accesses moved by their own width. A comparison that only chooses the smaller or larger of its operands is no bound.
";
