//! The pinned table: its file, and what changed between two tables.
//!
//! Kernel -> column -> number -> value. A column is a target (`sm_90`) or `emulator`. Some numbers are
//! *held*: they may only get smaller. The others only move between each other (an `int` that became a
//! `move`): their sum is in `whole` and `loop`, and those are held.
//!
//! Trap: numbers of two compilers, or of two assemblers, say nothing about the kernels. The table names
//! both, and a comparison across them is never a success.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// The file's own format.
pub const SCHEMA: u32 = 1;

/// Number to value, in one column.
pub type Numbers = BTreeMap<String, u64>;

/// Kernel to column to numbers.
pub type Kernels = BTreeMap<String, BTreeMap<String, Numbers>>;

/// The pinned table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    /// [`SCHEMA`].
    pub schema: u32,
    /// For whoever opens the file.
    pub generated: String,
    /// What the numbers belong to.
    pub made_with: MadeWith,
    /// Numbers that got worse on purpose.
    pub accepted: Vec<Accepted>,
    /// The numbers.
    pub kernels: Kernels,
}

/// What the numbers belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeWith {
    /// The device compiler of the committed PTX.
    pub compiler: String,
    /// The assembler.
    pub ptxas: String,
}

/// Numbers that got worse on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Why.
    pub reason: String,
    /// What, a line a number.
    pub worse: Vec<String>,
}

/// Whether a number may only get smaller.
pub fn held(number: &str) -> bool {
    let class = number.split_once('.').map_or(number, |(_, class)| class);
    !matches!(
        class,
        "tensor" | "fp32" | "fp16" | "fp64" | "int" | "move" | "convert" | "constant" | "control" | "other"
    )
}

/// One number of one kernel in some columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The kernel.
    pub kernel: String,
    /// The columns in which it changed so.
    pub columns: Vec<String>,
    /// The number.
    pub number: String,
    /// What was pinned.
    pub old: u64,
    /// What it is.
    pub new: u64,
}

/// What is different.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Held numbers that grew.
    pub worse: Vec<Change>,
    /// Held numbers that shrank.
    pub better: Vec<Change>,
    /// Numbers that are not held and changed.
    pub moved: usize,
    /// Kernels, or columns of a kernel, that are not pinned.
    pub added: Vec<String>,
    /// Pinned kernels, or columns of one, that are gone.
    pub removed: Vec<String>,
}

impl Comparison {
    /// Nothing is different.
    pub fn is_empty(&self) -> bool {
        *self == Comparison::default()
    }
}

/// Compares numbers with the pinned ones.
pub fn compare(pinned: &Kernels, now: &Kernels) -> Comparison {
    let mut comparison = Comparison::default();
    let mut changes: BTreeMap<(&str, &str, u64, u64), Vec<String>> = BTreeMap::new();
    for (kernel, columns) in now {
        let Some(old_columns) = pinned.get(kernel) else {
            comparison.added.push(kernel.clone());
            continue;
        };
        for (column, numbers) in columns {
            let Some(old_numbers) = old_columns.get(column) else {
                comparison.added.push(format!("{kernel} {column}"));
                continue;
            };
            let names: BTreeSet<&String> = numbers.keys().chain(old_numbers.keys()).collect();
            for name in names {
                // A class without instructions is not listed.
                let value = |numbers: &Numbers| numbers.get(name).copied().unwrap_or(0);
                let (old, new) = (value(old_numbers), value(numbers));
                if old == new {
                    continue;
                }
                if held(name) {
                    changes.entry((kernel, name, old, new)).or_default().push(column.clone());
                } else {
                    comparison.moved += 1;
                }
            }
        }
    }
    for (kernel, columns) in pinned {
        match now.get(kernel) {
            None => comparison.removed.push(kernel.clone()),
            Some(new) => {
                let gone = columns.keys().filter(|column| !new.contains_key(*column));
                comparison.removed.extend(gone.map(|column| format!("{kernel} {column}")));
            }
        }
    }
    for ((kernel, number, old, new), columns) in changes {
        let change = Change { kernel: kernel.to_owned(), columns, number: number.to_owned(), old, new };
        if new > old { comparison.worse.push(change) } else { comparison.better.push(change) }
    }
    comparison
}

impl Change {
    /// The columns, as `sm_80, 86, 90`.
    fn place(&self) -> String {
        let short = |(i, column): (usize, &String)| match column.strip_prefix("sm_") {
            Some(sm) if i > 0 => sm.to_owned(),
            _ => column.clone(),
        };
        self.columns.iter().enumerate().map(short).collect::<Vec<_>>().join(", ")
    }

    /// For [`Accepted`].
    pub fn line(&self) -> String {
        format!("{} ({}) {}: {} -> {}", self.kernel, self.place(), self.number, self.old, self.new)
    }
}

/// A table of changes, `most` rows at most.
pub fn show(changes: &[Change], most: usize) -> String {
    let rows: Vec<[String; 5]> = changes
        .iter()
        .take(most)
        .map(|c| [c.kernel.clone(), c.place(), c.number.clone(), c.old.to_string(), c.new.to_string()])
        .collect();
    let head = ["kernel", "where", "number", "pinned", "now"].map(str::to_owned);
    let width = |i: usize| rows.iter().chain([&head]).map(|row| row[i].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut text = String::new();
    for row in [&head].into_iter().chain(&rows) {
        let [kernel, place, number, old, new] = row;
        let _ = writeln!(
            text,
            "  {kernel:0$}  {place:1$}  {number:2$}  {old:>3$}  {new:>4$}",
            widths[0], widths[1], widths[2], widths[3], widths[4]
        );
    }
    if changes.len() > most {
        let _ = writeln!(text, "  and {} more", changes.len() - most);
    }
    text
}

/// The file's text: a line for each column of each kernel, so that a diff reads as a table.
pub fn to_text(pins: &Pins) -> String {
    let mut text = String::from("{\n");
    let _ = writeln!(text, "  \"schema\": {},", pins.schema);
    let _ = writeln!(text, "  \"generated\": {},", quote(&pins.generated));
    let _ = writeln!(
        text,
        "  \"made_with\": {{\n    \"compiler\": {},\n    \"ptxas\": {}\n  }},",
        quote(&pins.made_with.compiler),
        quote(&pins.made_with.ptxas)
    );
    let accepted: Vec<String> = pins
        .accepted
        .iter()
        .map(|a| {
            let lines: Vec<String> = a.worse.iter().map(|line| format!("        {}", quote(line))).collect();
            format!(
                "    {{\n      \"reason\": {},\n      \"worse\": [\n{}\n      ]\n    }}",
                quote(&a.reason),
                lines.join(",\n")
            )
        })
        .collect();
    let list =
        if accepted.is_empty() { "[]".to_owned() } else { format!("[\n{}\n  ]", accepted.join(",\n")) };
    let _ = writeln!(text, "  \"accepted\": {list},");
    let kernels: Vec<String> = pins
        .kernels
        .iter()
        .map(|(kernel, columns)| {
            let columns: Vec<String> = columns
                .iter()
                .map(|(column, numbers)| {
                    let numbers: Vec<String> =
                        numbers.iter().map(|(name, value)| format!("{}: {value}", quote(name))).collect();
                    format!("      {}: {{{}}}", quote(column), numbers.join(", "))
                })
                .collect();
            format!("    {}: {{\n{}\n    }}", quote(kernel), columns.join(",\n"))
        })
        .collect();
    let _ = writeln!(text, "  \"kernels\": {{\n{}\n  }}\n}}", kernels.join(",\n"));
    text
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kernel, column, numbers.
    type Row<'a> = (&'a str, &'a str, &'a [(&'a str, u64)]);

    fn kernels(rows: &[Row<'_>]) -> Kernels {
        let mut kernels = Kernels::new();
        for (kernel, column, numbers) in rows {
            let numbers = numbers.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
            kernels.entry((*kernel).to_owned()).or_default().insert((*column).to_owned(), numbers);
        }
        kernels
    }

    #[test]
    fn a_number_that_grew_is_worse_and_one_that_shrank_is_better() {
        let old = kernels(&[("k", "sm_80", &[("registers", 40), ("whole", 100)])]);
        let new = kernels(&[("k", "sm_80", &[("registers", 41), ("whole", 90)])]);
        let comparison = compare(&old, &new);
        assert_eq!(comparison.worse.len(), 1);
        assert_eq!(comparison.worse[0].line(), "k (sm_80) registers: 40 -> 41");
        assert_eq!(comparison.better[0].line(), "k (sm_80) whole: 100 -> 90");
        assert!(compare(&old, &old).is_empty());
    }

    #[test]
    fn a_class_that_appears_is_worse_if_it_is_held() {
        let old = kernels(&[("k", "sm_80", &[("whole", 9), ("whole.int", 9)])]);
        let new = kernels(&[("k", "sm_80", &[("whole", 9), ("whole.local", 1), ("whole.move", 8)])]);
        let comparison = compare(&old, &new);
        assert_eq!(
            comparison.worse.iter().map(Change::line).collect::<Vec<_>>(),
            ["k (sm_80) whole.local: 0 -> 1"]
        );
        assert_eq!((comparison.better.len(), comparison.moved), (0, 2));
    }

    #[test]
    fn kernels_and_targets_that_come_or_go_are_named_and_are_neither_better_nor_worse() {
        let old = kernels(&[("a", "sm_80", &[("registers", 1)]), ("b", "sm_80", &[]), ("b", "sm_90", &[])]);
        let new =
            kernels(&[("b", "sm_80", &[]), ("b", "emulator", &[]), ("c", "sm_80", &[("registers", 9)])]);
        let comparison = compare(&old, &new);
        assert_eq!(comparison.added, ["b emulator", "c"]);
        assert_eq!(comparison.removed, ["a", "b sm_90"]);
        assert!(comparison.worse.is_empty() && comparison.better.is_empty());
    }

    #[test]
    fn equal_changes_on_several_targets_are_one_row() {
        let at = |n| kernels(&[("k", "sm_80", &[("registers", n)]), ("k", "sm_86", &[("registers", n)])]);
        let comparison = compare(&at(8), &at(9));
        assert_eq!(comparison.worse.len(), 1);
        let table = show(&comparison.worse, 5);
        assert!(table.contains("sm_80, 86") && table.lines().count() == 2, "{table}");
    }

    #[test]
    fn a_long_table_says_how_much_it_leaves_out() {
        let change =
            Change { kernel: "k".into(), columns: vec!["sm_80".into()], number: "n".into(), old: 1, new: 2 };
        assert!(show(&vec![change; 7], 5).ends_with("  and 2 more\n"));
    }

    #[test]
    fn the_file_is_json_that_reads_back_with_a_line_a_column() {
        let pins = Pins {
            schema: SCHEMA,
            generated: "by \"this\"".into(),
            made_with: MadeWith { compiler: "rustc 1".into(), ptxas: "13.5".into() },
            accepted: vec![Accepted {
                reason: "a trade".into(),
                worse: vec!["k (sm_80) whole: 1 -> 2".into()],
            }],
            kernels: kernels(&[("k", "sm_80", &[("registers", 40), ("whole", 100)]), ("k", "sm_90", &[])]),
        };
        let text = to_text(&pins);
        assert_eq!(serde_json::from_str::<Pins>(&text).expect("JSON"), pins);
        assert!(text.contains("\n      \"sm_80\": {\"registers\": 40, \"whole\": 100},\n"), "{text}");
        let empty = Pins { accepted: vec![], ..pins };
        assert_eq!(serde_json::from_str::<Pins>(&to_text(&empty)).expect("JSON"), empty);
    }
}
