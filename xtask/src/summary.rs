//! Counting tests from what cargo prints, whatever the crates.
//!
//! Every test binary and every doc-test run ends with a line `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.

use std::fmt;

/// Tests counted so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Passed.
    pub passed: u64,
    /// Failed.
    pub failed: u64,
    /// Ignored by their authors.
    pub skipped: u64,
}

impl Summary {
    /// Adds the counts of `line` if it is a result line.
    pub fn see(&mut self, line: &str) {
        let Some(result) = line.trim().strip_prefix("test result: ") else { return };
        let Some((_, counts)) = result.split_once(". ") else { return };
        for count in counts.split(';') {
            let mut words = count.split_whitespace();
            let (Some(number), Some(what)) = (words.next().and_then(|n| n.parse::<u64>().ok()), words.next())
            else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Summary {
        let mut summary = Summary::default();
        text.lines().for_each(|line| summary.see(line));
        summary
    }

    #[test]
    fn all_result_lines_are_summed() {
        let text = "running 3 tests\ntest a ... ok\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s\n\
            test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s\n\
            test result: FAILED. 0 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.10s\n";
        assert_eq!(of(text), Summary { passed: 13, failed: 3, skipped: 3 });
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(of("test result of my own: 5 passed\nall 7 passed; 3 failed\n"), Summary::default());
    }

    #[test]
    fn the_summary_line_names_skipped_only_if_there_are_any() {
        assert_eq!(Summary { passed: 12, failed: 0, skipped: 0 }.to_string(), "12 passed, 0 failed");
        assert_eq!(
            Summary { passed: 12, failed: 1, skipped: 3 }.to_string(),
            "12 passed, 1 failed, 3 skipped"
        );
    }
}
