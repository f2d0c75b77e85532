//! The committed ledger: for each kind of device, the largest difference of each instruction.
//!
//! An entry that appears, vanishes or grows is a failure; one that shrinks is a note, to be blessed. A kind of
//! device without a page has only the definitions' bounds to keep.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::record::LedgerRecord;

const SCHEMA: &str = "psa-ledger-v1";
/// Relative difference that is none: exact results come from this machine's f64 functions.
const SAME: f64 = 1e-6;

/// The committed file, as this program was built.
pub const COMMITTED: &str = include_str!("../../../ledger/ledger.json");

/// All pages.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Book {
    schema: String,
    /// Kind of device, then instruction.
    devices: BTreeMap<String, BTreeMap<String, Line>>,
}

/// What is known of an instruction on a kind of device.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Line {
    unit: String,
    largest: f64,
    allowed: f64,
    differs_from_emulator: u64,
}

impl Book {
    /// Reads a ledger's text; `file` stands in errors.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub fn parse(text: &str, file: &str) -> Result<Book, Error> {
        let book: Book = serde_json::from_str(text).map_err(|e| Error::Format {
            file: file.into(),
            line: e.line(),
            reason: e.to_string(),
        })?;
        if book.schema != SCHEMA {
            let reason = format!("schema {} is not {SCHEMA}", book.schema);
            return Err(Error::Format { file: file.into(), line: 1, reason });
        }
        Ok(book)
    }

    /// The committed ledger.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub fn committed() -> Result<Book, Error> {
        Book::parse(COMMITTED, "benches/ledger/ledger.json")
    }

    /// What differs from the pages: failures, then notes.
    pub fn compare(&self, kind: &str, records: &[LedgerRecord]) -> (Vec<String>, Vec<String>) {
        let (mut failures, mut notes) = (Vec::new(), Vec::new());
        for record in records {
            // Written so that NaN fails.
            let kept = record.largest <= record.allowed;
            if !kept {
                failures.push(format!(
                    "{}: off by {} ({}), {} is allowed, at input {}",
                    record.instruction,
                    record.largest,
                    record.unit,
                    record.allowed,
                    short(&record.worst_input)
                ));
            }
        }
        let Some(page) = self.devices.get(kind) else {
            notes.push(format!(
                "the ledger has no page for {kind}: only the definitions' bounds were checked; --bless adds one"
            ));
            return (failures, notes);
        };
        for record in records {
            let name = &record.instruction;
            match page.get(name) {
                None => failures.push(format!("{name} appeared: it is not in the ledger's page for {kind}")),
                Some(line) if record.largest > line.largest * (1.0 + SAME) => failures.push(format!(
                    "{name} grew on {kind}: off by {} ({}), the ledger has {}, at input {}",
                    record.largest,
                    record.unit,
                    line.largest,
                    short(&record.worst_input)
                )),
                Some(line) if record.differs_from_emulator > line.differs_from_emulator => {
                    failures.push(format!(
                        "{name} grew on {kind}: {} inputs unlike the emulator, the ledger has {}",
                        record.differs_from_emulator, line.differs_from_emulator
                    ));
                }
                Some(line) if record.largest < line.largest * (1.0 - SAME) => notes.push(format!(
                    "{name} shrank on {kind}: off by {}, the ledger has {}",
                    record.largest, line.largest
                )),
                Some(_) => {}
            }
        }
        for name in page.keys().filter(|name| !records.iter().any(|r| &r.instruction == *name)) {
            failures.push(format!("{name} vanished: the ledger has it for {kind}, and nothing tried it"));
        }
        (failures, notes)
    }

    /// Replaces a page.
    pub fn bless(&mut self, kind: &str, records: &[LedgerRecord]) {
        let line = |r: &LedgerRecord| Line {
            unit: r.unit.clone(),
            largest: r.largest,
            allowed: r.allowed,
            differs_from_emulator: r.differs_from_emulator,
        };
        let page = records.iter().map(|r| (r.instruction.clone(), line(r))).collect();
        self.devices.insert(kind.to_owned(), page);
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, file: &Path) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).map_err(std::io::Error::other);
        text.and_then(|text| std::fs::write(file, text + "\n")).map_err(Error::io("write", file))
    }
}

fn short(words: &[String]) -> String {
    let shown = words.iter().take(4).cloned().collect::<Vec<_>>().join(" ");
    if words.len() > 4 { format!("{shown} ..") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(instruction: &str, largest: f64) -> LedgerRecord {
        LedgerRecord {
            device: "d".into(),
            instruction: instruction.into(),
            unit: "ulp".into(),
            largest,
            allowed: 2.0,
            cases: 1,
            differs_from_emulator: 0,
            worst_input: vec!["0x1".into()],
            used: true,
        }
    }

    fn book() -> Book {
        let mut book = Book { schema: SCHEMA.into(), devices: BTreeMap::new() };
        book.bless("d", &[record("a", 0.5), record("b", 1.0)]);
        book
    }

    #[test]
    fn what_is_blessed_compares_clean_and_survives_the_file() {
        let text = serde_json::to_string(&book()).unwrap();
        let book = Book::parse(&text, "f").unwrap();
        assert_eq!(book.compare("d", &[record("a", 0.5), record("b", 1.0)]), (vec![], vec![]));
    }

    #[test]
    fn an_entry_that_appears_vanishes_or_grows_fails() {
        let failures = |records: &[LedgerRecord]| book().compare("d", records).0.join("; ");
        assert!(failures(&[record("a", 0.5), record("b", 1.0), record("c", 0.0)]).contains("c appeared"));
        assert!(failures(&[record("a", 0.5)]).contains("b vanished"));
        assert!(failures(&[record("a", 0.6), record("b", 1.0)]).contains("a grew"));
        let unlike = LedgerRecord { differs_from_emulator: 1, ..record("b", 1.0) };
        assert!(failures(&[record("a", 0.5), unlike]).contains("b grew"));
        assert!(failures(&[record("a", f64::NAN), record("b", 1.0)]).contains("a: off by NaN"));
    }

    #[test]
    fn a_smaller_difference_is_a_note_and_a_new_device_keeps_the_definition() {
        let (failures, notes) = book().compare("d", &[record("a", 0.1), record("b", 1.0)]);
        assert!(failures.is_empty() && notes[0].contains("a shrank"), "{failures:?} {notes:?}");
        let (failures, notes) = book().compare("new", &[record("a", 2.5)]);
        assert!(failures[0].contains("2 is allowed") && notes[0].contains("no page for new"));
    }

    #[test]
    fn a_broken_or_foreign_file_is_named_with_its_line() {
        let text = Book::parse("{\n\"schema\": 1", "x.json").unwrap_err().to_string();
        assert!(text.starts_with("x.json, line 2"), "{text}");
        let text = Book::parse("{\"schema\": \"other\", \"devices\": {}}", "x.json").unwrap_err().to_string();
        assert!(text.contains("other"), "{text}");
    }
}
