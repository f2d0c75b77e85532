//! A results file that survives a kill: one JSON record a line, flushed to the disk when it is complete. A line
//! that a kill cut off is dropped on the next run; records that are there are not computed again.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::CliError;

/// Records so far, and where the next go.
pub struct Results {
    file: Option<(PathBuf, File)>,
    records: Vec<Value>,
}

impl Results {
    /// Opens or begins a file; without one, records live as long as the command.
    pub fn open(path: Option<&Path>) -> Result<Results, CliError> {
        let Some(path) = path else { return Ok(Results { file: None, records: vec![] }) };
        let failed =
            |source| CliError::Unwritable { file: path.display().to_string(), option: "--results", source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        let mut text = vec![];
        file.read_to_end(&mut text).map_err(failed)?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let mut records = vec![];
        for (number, line) in text[..whole].split(|&byte| byte == b'\n').enumerate() {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let bad = |reason: String| CliError::Results {
                file: path.display().to_string(),
                line: number + 1,
                reason,
            };
            let record: Value = serde_json::from_slice(line).map_err(|e| bad(e.to_string()))?;
            if record.get("key").and_then(Value::as_str).is_none() {
                return Err(bad("it has no \"key\"".into()));
            }
            records.push(record);
        }
        // Whatever follows the last whole line was never finished; but a file of something else stays as it is.
        if whole < text.len() {
            let begun = text[whole..].first() == Some(&b'{');
            if !begun {
                let reason = "it is not JSON".into();
                return Err(CliError::Results {
                    file: path.display().to_string(),
                    line: records.len() + 1,
                    reason,
                });
            }
            file.set_len(whole as u64).map_err(failed)?;
        }
        file.seek(SeekFrom::Start(whole as u64)).map_err(failed)?;
        Ok(Results { file: Some((path.to_owned(), file)), records })
    }

    /// The record of a key, where there is one.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.records.iter().find(|record| record["key"] == key)
    }

    /// Adds a record. It is on the disk when this returns.
    pub fn push(&mut self, record: Value) -> Result<(), CliError> {
        if let Some((path, file)) = &mut self.file {
            let written = file.write_all(format!("{record}\n").as_bytes()).and_then(|()| file.sync_data());
            written.map_err(|source| CliError::Unwritable {
                file: path.display().to_string(),
                option: "--results",
                source,
            })?;
        }
        self.records.push(record);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("psa-results-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn a_cut_off_line_is_dropped_and_whole_ones_stay() {
        let path = file("cut");
        Results::open(Some(&path)).unwrap().push(json!({"key": "a", "x": 1})).unwrap();
        let mut text = std::fs::read(&path).unwrap();
        text.extend(b"{\"key\": \"b\", \"x\"");
        std::fs::write(&path, text).unwrap();
        let mut results = Results::open(Some(&path)).unwrap();
        assert_eq!(results.get("a").unwrap()["x"], 1);
        assert!(results.get("b").is_none());
        results.push(json!({"key": "c"})).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_of_something_else_is_refused_and_left_alone() {
        let path = file("other");
        for content in ["name,value\n1,2\n", "no newline", "{\"other\": 1}\n"] {
            std::fs::write(&path, content).unwrap();
            assert!(matches!(Results::open(Some(&path)), Err(CliError::Results { .. })), "{content}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        std::fs::remove_file(path).unwrap();
    }
}
