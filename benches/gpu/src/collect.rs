//! `psa-gpu collect`: one `results.json` of what the parts of a run left in a folder, and a summary for people.
//!
//! The folder holds `parts.tsv` (name, status, seconds, remark), `environment.tsv` (key, value) and any number of
//! `*.jsonl` with records; `ncu.csv` is ncu's report. A part that left nothing, or half a line because it was killed, costs only itself.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Error;
use crate::record::table;

/// Name of the format.
pub const SCHEMA: &str = "psa-gpu-results-v1";

/// A results file.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: String,
    /// Device, driver, commit, command, date; all as text.
    pub environment: BTreeMap<String, String>,
    /// How each part went.
    pub parts: Vec<Part>,
    /// All records, as the parts wrote them.
    pub records: Vec<Value>,
}

/// A part of the run.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Part {
    /// check, ledger, memcheck, .., time, peers, ncu.
    pub name: String,
    /// passed, failed, skipped, timeout.
    pub status: String,
    /// Wall clock.
    pub seconds: f64,
    /// Why it was skipped, or where to look.
    pub remark: String,
}

/// Gathers what lies in `folder`.
///
/// # Errors
/// [`Error::Io`] where the folder or `parts.tsv` cannot be read, [`Error::Format`] where `parts.tsv` is none.
pub fn gather(folder: &Path) -> Result<Results, Error> {
    let read = |file: &Path| std::fs::read_to_string(file).map_err(Error::io("read", file));
    let parts_file = folder.join("parts.tsv");
    let mut parts = Vec::new();
    for (i, line) in read(&parts_file)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let fields: Vec<&str> = line.splitn(4, '\t').collect();
        let seconds = fields.get(2).and_then(|s| s.parse::<f64>().ok());
        let ([name, status, ..], Some(seconds)) = (fields.as_slice(), seconds) else {
            let reason = "not: name, status, seconds, remark, with tabs between".to_owned();
            return Err(Error::Format { file: parts_file.display().to_string(), line: i + 1, reason });
        };
        let remark = fields.get(3).copied().unwrap_or_default().to_owned();
        parts.push(Part { name: (*name).into(), status: (*status).into(), seconds, remark });
    }
    let environment = read(&folder.join("environment.tsv")).unwrap_or_default();
    let environment = environment
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect();
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .map_err(Error::io("read", folder))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    files.sort();
    let mut records = Vec::new();
    for file in files {
        let text =
            String::from_utf8_lossy(&std::fs::read(&file).map_err(Error::io("read", &file))?).into_owned();
        records.extend(text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()));
    }
    if let Ok(csv) = std::fs::read_to_string(folder.join("ncu.csv")) {
        records.extend(ncu(&csv));
    }
    Ok(Results { schema: SCHEMA.into(), environment, parts, records })
}

/// The metrics of an ncu report in CSV, one record each. Lines before the head are ncu's own messages.
fn ncu(csv: &str) -> Vec<Value> {
    let mut lines = csv.lines().map(fields).skip_while(|f| !f.iter().any(|name| name == "Metric Name"));
    let Some(head) = lines.next() else { return Vec::new() };
    let column = |name: &str| head.iter().position(|n| n == name);
    let (Some(kernel), Some(grid), Some(metric), Some(unit), Some(value)) = (
        column("Kernel Name"),
        column("Grid Size"),
        column("Metric Name"),
        column("Metric Unit"),
        column("Metric Value"),
    ) else {
        return Vec::new();
    };
    lines
        .filter(|fields| fields.len() == head.len())
        .map(|fields| {
            // Thousands are set apart with commas.
            let number = fields[value].replace(',', "").parse::<f64>();
            serde_json::json!({
                "part": "ncu", "kernel": fields[kernel], "grid": fields[grid], "metric": fields[metric],
                "unit": fields[unit], "value": number.ok(),
            })
        })
        .collect()
}

/// The fields of a CSV line; quoted ones may hold commas and doubled quotes.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    fields.push(field);
    fields
}

impl Results {
    /// True where no part failed and at least one passed. Skipped parts are neither.
    pub fn good(&self) -> bool {
        let bad = |p: &Part| p.status != "passed" && p.status != "skipped";
        !self.parts.iter().any(bad) && self.parts.iter().any(|p| p.status == "passed")
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, file: &Path) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).map_err(std::io::Error::other);
        text.and_then(|text| std::fs::write(file, text + "\n")).map_err(Error::io("write", file))
    }

    /// For people: where it ran, how each part went, and the fastest of each shape.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (key, value) in &self.environment {
            text.push_str(&format!("{key}: {value}\n"));
        }
        text.push_str(&format!("\n{:<10}  {:<8}  {:>7}\n", "part", "status", "seconds"));
        for Part { name, status, seconds, remark } in &self.parts {
            let line = format!("{name:<10}  {status:<8}  {seconds:>7.1}  {remark}");
            text.push_str(line.trim_end());
            text.push('\n');
        }
        let checks: Vec<&Value> = self.records.iter().filter(|r| r["part"] == "check").collect();
        if !checks.is_empty() {
            let passed = checks.iter().filter(|r| r["tried"] == r["passed"] && r["tried"] != 0).count();
            text.push_str(&format!("\n{passed} of {} kernels right in every case\n", checks.len()));
        }
        let steps = self.steps();
        if !steps.is_empty() {
            text.push('\n');
            let head = ["step", "batch", "tokens", "group", "median us", "GB/s", "% of copy", "x dense"];
            text.push_str(&table(&head, &steps));
        }
        text
    }

    /// Whole steps, each with its speed-up over our own dense step of the same shape.
    fn steps(&self) -> Vec<Vec<String>> {
        let number = |r: &Value, key: &str| r[key].as_f64().unwrap_or(0.0);
        let shape =
            |r: &Value| ["batch", "tokens", "kv_heads", "group", "head_dim"].map(|key| number(r, key) as u64);
        let steps: Vec<&Value> =
            self.records.iter().filter(|r| r["part"] == "time" && r["what"] == "step").collect();
        let mut rows: Vec<([u64; 5], Vec<String>)> = steps
            .iter()
            .map(|r| {
                let dense = steps.iter().find(|d| {
                    d["run"] == r["run"] && d["by"] == "psa" && d["policy"] == "dense" && shape(d) == shape(r)
                });
                let ratio = dense.map_or(0.0, |d| number(d, "median_us") / number(r, "median_us"));
                let text = |key: &str| r[key].as_str().unwrap_or_default().to_owned();
                let row = vec![
                    format!("{} {}", text("by"), text("policy")).trim().to_owned(),
                    format!("{}", shape(r)[0]),
                    format!("{}", shape(r)[1]),
                    format!("{}", shape(r)[3]),
                    format!("{:.1}", number(r, "median_us")),
                    format!("{:.0}", number(r, "gb_s")),
                    format!("{:.1}", 100.0 * number(r, "copy_share")),
                    if ratio.is_finite() && ratio > 0.0 { format!("{ratio:.2}") } else { String::new() },
                ];
                (shape(r), row)
            })
            .collect();
        rows.sort_by_key(|(shape, _)| *shape);
        rows.into_iter().map(|(_, row)| row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("psa-gpu-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn half_a_line_costs_only_itself_and_a_failed_part_the_verdict() {
        let folder = folder("collect");
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        write("parts.tsv", "check\tpassed\t1.5\t\nncu\tskipped\t0\tnot installed\n");
        write("environment.tsv", "device\tD 1\ncommit\tabc\n");
        write("a.jsonl", "{\"part\":\"check\",\"tried\":2,\"passed\":2}\n{\"part\":\"che");
        let results = gather(&folder).unwrap();
        assert!(results.good());
        assert_eq!(results.records.len(), 1);
        assert_eq!(results.environment["device"], "D 1");
        assert!(results.text().contains("1 of 1 kernels right"), "{}", results.text());
        write("parts.tsv", "check\tpassed\t1.5\t\ntime\ttimeout\t60\tsee time.log\n");
        assert!(!gather(&folder).unwrap().good());
        write("parts.tsv", "ncu\tskipped\t0\tnot installed\n");
        assert!(!gather(&folder).unwrap().good());
        write("parts.tsv", "check passed\n");
        assert!(gather(&folder).unwrap_err().to_string().contains("parts.tsv, line 1"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn an_ncu_report_becomes_records_and_its_messages_do_not() {
        let csv = "==PROF== Connected\n\"ID\",\"Kernel Name\",\"Grid Size\",\"Metric Name\",\"Metric Unit\",\"Metric Value\"\n\
                   \"0\",\"attend_bf16_d128\",\"(64, 8, 16)\",\"dram__bytes_read.sum\",\"Mbyte\",\"1,234.5\"\n==PROF== done\n";
        let records = ncu(csv);
        assert_eq!(records.len(), 1);
        assert_eq!((&records[0]["value"], &records[0]["grid"]), (&1234.5.into(), &"(64, 8, 16)".into()));
        assert!(ncu("==ERROR== ERR_NVGPUCTRPERM\n").is_empty());
        assert_eq!(fields("a,\"b,\"\"c\"\"\",d"), ["a", "b,\"c\"", "d"]);
    }

    #[test]
    fn steps_are_set_beside_our_own_dense_step_of_the_same_shape() {
        let step = |policy: &str, tokens: u64, us: f64| {
            serde_json::json!({"part": "time", "what": "step", "by": "psa", "policy": policy, "batch": 1,
                "tokens": tokens, "kv_heads": 8, "group": 4, "head_dim": 128, "median_us": us})
        };
        let results = Results {
            schema: SCHEMA.into(),
            environment: BTreeMap::new(),
            parts: vec![],
            records: vec![step("dense", 64, 10.0), step("top-k:0.1", 64, 4.0), step("top-k:0.1", 128, 4.0)],
        };
        let text = results.text();
        assert!(text.contains("2.50"), "{text}");
        assert!(text.lines().last().unwrap().trim_end().ends_with("0.0"), "{text}");
    }
}
