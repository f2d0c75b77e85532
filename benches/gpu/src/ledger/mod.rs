//! `psa-gpu ledger`: every approximate or rounding instruction of the kernels, on its own.
//!
//! A generated PTX module runs each instruction over edge values and a dense sweep; results are compared with
//! exact ones and with the emulator's. The largest difference of each stands in a committed file,
//! `benches/ledger/ledger.json`, by kind of device. The comparison fails when an instruction appears or vanishes,
//! when a difference grows, and when it exceeds what the instruction's definition allows.
//!
//! Which instructions there must be is read from the shipped PTX: every opcode that is not known to be exact
//! ([`opcodes::exact`]) needs an entry ([`entries::all`]).

pub mod book;
pub mod entries;
pub mod module;
pub mod opcodes;
mod values;

use std::collections::BTreeSet;

use psa::driver::Driver;

use crate::Error;
use crate::record::{LedgerRecord, Record, table};
use crate::target::{Backend, download, upload};
use book::Book;
use entries::{Entry, Output};

/// What was measured, and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Kind of device, the key in the book.
    pub kind: String,
    /// One an instruction.
    pub records: Vec<LedgerRecord>,
    /// Everything that is wrong.
    pub failures: Vec<String>,
    /// What is no failure, but should be known.
    pub notes: Vec<String>,
}

impl Outcome {
    /// True where nothing is wrong.
    pub fn good(&self) -> bool {
        self.failures.is_empty() && !self.records.is_empty()
    }

    /// The records.
    pub fn records(&self) -> Vec<Record> {
        self.records.iter().cloned().map(Record::Ledger).collect()
    }

    /// A table, notes and failures.
    pub fn text(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .records
            .iter()
            .map(|r| {
                vec![
                    r.instruction.clone(),
                    r.unit.clone(),
                    format!("{:.4}", r.largest),
                    format!("{}", r.allowed),
                    r.cases.to_string(),
                    r.differs_from_emulator.to_string(),
                    if r.used { "yes" } else { "no" }.to_owned(),
                ]
            })
            .collect();
        let head =
            ["instruction", "unit", "largest error", "allowed", "inputs", "unlike emulator", "in kernels"];
        let mut text = table(&head, &rows);
        self.notes.iter().for_each(|note| text.push_str(&format!("note: {note}\n")));
        self.failures.iter().for_each(|failure| text.push_str(&format!("FAILED: {failure}\n")));
        text
    }
}

/// Measures on `backend` and compares with `book`.
///
/// # Errors
/// Errors of the device. Wrong results are in the outcome.
pub fn run(backend: Backend, book: &Book) -> Result<Outcome, Error> {
    let entries = entries::all();
    let ptx = module::ptx(&entries);
    let mut driver = backend.driver(&ptx)?;
    let kind = kind_of(&driver.name());
    let mut emulator =
        if backend == Backend::Emulator { None } else { Some(Backend::Emulator.driver(&ptx)?) };
    let used = opcodes::inexact(kernels_gpu::PTX);
    let mut outcome = Outcome { kind, ..Outcome::default() };
    outcome.failures.extend(missing(&used, &entries));
    for entry in &entries {
        let inputs = entry.inputs();
        let got = launch(driver.as_mut(), entry, &inputs)?;
        let emulated = match &mut emulator {
            Some(emulator) => Some(launch(emulator.as_mut(), entry, &inputs)?),
            None => None,
        };
        let mut record = judge(entry, &inputs, &got, emulated.as_deref(), &mut outcome.failures);
        record.device.clone_from(&outcome.kind);
        record.used = used.contains(entry.opcode);
        outcome.records.push(record);
    }
    let (failures, notes) = book.compare(&outcome.kind, &outcome.records);
    outcome.failures.extend(failures);
    outcome.notes.extend(notes);
    Ok(outcome)
}

/// The page of a device: `NVIDIA H100` for `cuda:0 (NVIDIA H100)`, since the index says nothing.
fn kind_of(name: &str) -> String {
    let inner = name.split_once(" (").and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).to_owned()
}

/// Opcodes of the kernels without an entry.
fn missing(used: &BTreeSet<String>, entries: &[Entry]) -> Vec<String> {
    used.iter()
        .filter(|opcode| !entries.iter().any(|entry| entry.opcode == opcode.as_str()))
        .map(|opcode| {
            format!(
                "the kernels use {opcode}, which the ledger does not try: add it to entries.rs, or to \
                 opcodes.rs if it is exact"
            )
        })
        .collect()
}

/// Runs an entry over its inputs; one output of up to 8 bytes each, as words.
fn launch(driver: &mut dyn Driver, entry: &Entry, inputs: &[u32]) -> Result<Vec<u32>, Error> {
    let count = inputs.len() / entry.words_in;
    let from = upload(driver, inputs, "inputs")?;
    let to = upload(driver, &vec![0u32; count * entry.words_out], "outputs")?;
    let launch = module::launch(entry, from.input(), to.output(), count as u32)
        .map_err(psa::driver::DriverError::Contract)?;
    driver.launch(&launch)?;
    let got = download(driver, to, count * entry.words_out)?;
    driver.free(from.address())?;
    driver.free(to.address())?;
    Ok(got)
}

fn judge(
    entry: &Entry,
    inputs: &[u32],
    got: &[u32],
    emulated: Option<&[u32]>,
    failures: &mut Vec<String>,
) -> LedgerRecord {
    let mut record = LedgerRecord {
        device: String::new(),
        instruction: entry.opcode.to_owned(),
        unit: entry.unit.to_owned(),
        largest: 0.0,
        allowed: entry.allowed,
        cases: 0,
        differs_from_emulator: 0,
        worst_input: Vec::new(),
        used: false,
    };
    let hex = |words: &[u32]| words.iter().map(|w| format!("{w:#010x}")).collect::<Vec<_>>();
    let mut wrong = 0;
    for (i, input) in inputs.chunks_exact(entry.words_in).enumerate() {
        let result = &got[i * entry.words_out..][..entry.words_out];
        record.cases += 1;
        if let Some(emulated) = emulated
            && !same(entry, result, &emulated[i * entry.words_out..][..entry.words_out])
        {
            record.differs_from_emulator += 1;
        }
        match (entry.error)(input, result) {
            Some(error) if error <= record.largest => {}
            Some(error) => {
                record.largest = error;
                record.worst_input = hex(input);
            }
            None => {
                wrong += 1;
                if wrong <= 3 {
                    failures.push(format!(
                        "{}: {} gives {}, which no rounding explains",
                        entry.opcode,
                        hex(input).join(" "),
                        hex(result).join(" ")
                    ));
                }
            }
        }
    }
    record
}

/// Bits, except that any NaN is like any other: hardware has its own.
fn same(entry: &Entry, a: &[u32], b: &[u32]) -> bool {
    let long = |words: &[u32]| f64::from_bits(u64::from(words[1]) << 32 | u64::from(words[0]));
    let short = |word: &u32| f32::from_bits(*word);
    a == b
        || (a.len() == b.len()
            && match entry.output {
                Output::Integer => false,
                Output::F32 => {
                    a.iter().zip(b).all(|(a, b)| a == b || (short(a).is_nan() && short(b).is_nan()))
                }
                Output::F64 => a
                    .chunks_exact(2)
                    .zip(b.chunks_exact(2))
                    .all(|(a, b)| a == b || (long(a).is_nan() && long(b).is_nan())),
            })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_of_a_kind_of_device_and_not_of_an_index() {
        assert_eq!(kind_of("cuda:3 (NVIDIA H100 80GB HBM3)"), "NVIDIA H100 80GB HBM3");
        assert_eq!(kind_of("emulator"), "emulator");
    }

    #[test]
    fn an_opcode_of_the_kernels_without_an_entry_is_named() {
        let used = BTreeSet::from(["tanh.approx.f32".to_owned(), "ex2.approx.ftz.f32".to_owned()]);
        let missing = missing(&used, &entries::all());
        assert_eq!(missing.len(), 1);
        assert!(missing[0].contains("tanh.approx.f32"), "{missing:?}");
    }

    #[test]
    fn a_result_that_is_off_grows_the_record_and_nonsense_is_a_failure() {
        let entries = entries::all();
        let rcp = entries.iter().find(|e| e.opcode == "rcp.approx.ftz.f32").unwrap();
        let mut failures = Vec::new();
        let off = judge(rcp, &[3.0f32.to_bits()], &[0.333_334f32.to_bits()], None, &mut failures);
        assert!(off.largest > 10.0, "{}", off.largest);
        assert_eq!(off.worst_input, ["0x40400000"]);
        assert!(failures.is_empty());
        judge(rcp, &[3.0f32.to_bits()], &[f32::NAN.to_bits()], None, &mut failures);
        assert!(failures[0].contains("no rounding explains"), "{failures:?}");
    }
}
