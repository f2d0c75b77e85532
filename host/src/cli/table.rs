//! Aligned tables for people: texts to the left, numbers to the right.

/// A table that is being filled.
pub struct Table {
    left: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table whose first `left` columns are text.
    pub fn new(left: usize, head: &[&str]) -> Table {
        Table { left, rows: vec![head.iter().map(|text| (*text).to_owned()).collect()] }
    }

    /// Adds a row of as many cells as the head has.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The lines, with a rule under the head.
    pub fn render(&self) -> String {
        let columns = self.rows[0].len();
        let width = |c: usize| {
            self.rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (i, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).enumerate().map(|(c, (cell, &width))| {
                if c < self.left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            text.push_str(line.trim_end());
            text.push('\n');
            if i == 0 {
                text.push_str(&"-".repeat(widths.iter().sum::<usize>() + 2 * (columns - 1)));
                text.push('\n');
            }
        }
        text
    }
}

/// A share as per cent with one decimal.
pub fn percent(share: f64) -> String {
    format!("{:.1}", share * 100.0)
}

/// A mass between 0 and 1.
pub fn mass(value: f64) -> String {
    if value > 0.0 && value < 0.0005 { format!("{value:.0e}") } else { format!("{value:.3}") }
}

/// An error: decimals where it matters, its size alone where it is small.
pub fn error(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        x if x >= 0.001 => format!("{x:.3}"),
        x => format!("{x:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_space() {
        let mut table = Table::new(1, &["policy", "KV %"]);
        table.row(vec!["dense".into(), "100.0".into()]);
        table.row(vec!["progressive:0.95".into(), "9.1".into()]);
        let text = table.render();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "policy             KV %");
        assert_eq!(lines[1], "-----------------------");
        assert_eq!(lines[3], "progressive:0.95    9.1");
        assert!(lines.iter().all(|line| *line == line.trim_end()));
    }

    #[test]
    fn small_values_keep_their_size() {
        assert_eq!((mass(0.0), mass(0.0672), mass(1e-6)), ("0.000".into(), "0.067".into(), "1e-6".into()));
        assert_eq!((error(0.0), error(1.02), error(2.13e-7)), ("0".into(), "1.020".into(), "2.1e-7".into()));
        assert_eq!(error(f64::NAN), "NaN");
    }
}
