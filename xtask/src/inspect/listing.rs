//! The listings: PTX or machine instructions under the Rust lines they came from, or the Rust lines with
//! how many instructions each became.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::sass::Function;

/// Source files, read once.
#[derive(Debug, Default)]
pub struct Sources(BTreeMap<PathBuf, Vec<String>>);

impl Sources {
    /// The text of a line, empty if there is none.
    fn line(&mut self, file: &Path, line: u32) -> &str {
        let lines = self.0.entry(file.to_owned()).or_insert_with(|| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        });
        (line as usize).checked_sub(1).and_then(|i| lines.get(i)).map_or("", String::as_str)
    }

    fn heading(&mut self, root: &Path, file: &Path, line: u32) -> String {
        let shown = file.strip_prefix(root).unwrap_or(file).display().to_string();
        format!("-- {shown}:{line}  {}", self.line(file, line).trim())
    }
}

/// Machine instructions under their Rust lines; `>` marks the main loop.
pub fn sass(function: &Function, root: &Path, sources: &mut Sources) -> String {
    let main_loop = function.main_loop();
    let mut text = String::new();
    let mut last = None;
    for (i, instruction) in function.instructions.iter().enumerate() {
        let place = instruction.places.first();
        if place != last
            && let Some((file, line)) = place
        {
            let _ = writeln!(text, "{}", sources.heading(root, Path::new(file), *line));
        }
        last = place.or(last);
        let mark = if main_loop.binary_search(&i).is_ok() { '>' } else { ' ' };
        let _ = writeln!(text, "{mark} {:05x}  {}", instruction.address, instruction.text);
    }
    text
}

/// PTX under its Rust lines.
pub fn ptx(kernel: &[String], files: &BTreeMap<u32, PathBuf>, root: &Path, sources: &mut Sources) -> String {
    let mut text = String::new();
    let mut last = None;
    for line in kernel {
        match loc(line) {
            Some(place) if last != Some(place) => {
                last = Some(place);
                if let Some(file) = files.get(&place.0) {
                    let _ = writeln!(text, "{}", sources.heading(root, file, place.1));
                }
            }
            Some(_) => {}
            None => {
                let _ = writeln!(text, "{line}");
            }
        }
    }
    text
}

/// `.loc 1 7 3`: file and line.
fn loc(line: &str) -> Option<(u32, u32)> {
    let mut words = line.trim_start().strip_prefix(".loc")?.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// Every Rust line that became instructions: how many of PTX, of the machine, and of its main loop.
pub fn source(
    function: &Function,
    kernel: &[String],
    files: &BTreeMap<u32, PathBuf>,
    root: &Path,
    sources: &mut Sources,
) -> String {
    let mut counts: BTreeMap<PathBuf, BTreeMap<u32, [u32; 3]>> = BTreeMap::new();
    let mut count = |file: &Path, line: u32, column: usize| {
        counts.entry(file.to_owned()).or_default().entry(line).or_default()[column] += 1;
    };
    let mut at = None;
    for line in kernel {
        if let Some((file, line)) = loc(line) {
            at = files.get(&file).map(|file| (file, line));
        } else if line.trim_end().ends_with(';')
            && !line.trim_start().starts_with('.')
            && let Some((file, line)) = at
        {
            count(file, line, 0);
        }
    }
    let main_loop = function.main_loop();
    for (i, instruction) in function.instructions.iter().enumerate() {
        if let Some((file, line)) = instruction.places.first() {
            count(Path::new(file), *line, 1);
            if main_loop.binary_search(&i).is_ok() {
                count(Path::new(file), *line, 2);
            }
        }
    }
    let mut text = format!("{:>6} {:>6} {:>6}  line\n", "ptx", "sass", "loop");
    for (file, lines) in counts {
        let _ = writeln!(text, "-- {}", file.strip_prefix(root).unwrap_or(&file).display());
        for (line, [ptx, sass, inner]) in lines {
            let _ = writeln!(text, "{ptx:>6} {sass:>6} {inner:>6}  {line:>4} {}", sources.line(&file, line));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sass;

    fn sources() -> Sources {
        let lines = ["fn k() {", "    load();", "    store();", "}"].map(str::to_owned).to_vec();
        Sources(BTreeMap::from([(PathBuf::from("/w/k.rs"), lines)]))
    }

    const CODE: &str = "\t.section\t.text.k,\"ax\"\n\
        //## File \"/w/k.rs\", line 2\n/*0000*/ LDG.E R1, [R2] ;\n\
        .a:\n//## File \"/w/k.rs\", line 3\n/*0010*/ STG.E [R2], R1 ;\n/*0020*/ @P0 BRA `(.a) ;\n/*0030*/ EXIT ;\n";

    #[test]
    fn machine_code_stands_under_its_line_and_the_loop_is_marked() {
        let text = super::sass(&sass::parse(CODE)[0], Path::new("/w"), &mut sources());
        assert_eq!(
            text,
            "-- k.rs:2  load();\n  00000  LDG.E R1, [R2]\n-- k.rs:3  store();\n> 00010  STG.E [R2], R1\n> 00020  @P0 BRA `(.a)\n  00030  EXIT\n"
        );
    }

    #[test]
    fn ptx_stands_under_its_line() {
        let kernel: Vec<String> =
            ["{", "\t.loc 1 2 5", "\tld.global.u32 %r1, [%rd1];", "\t.loc 1 2 9", "\tret;", "}"]
                .map(str::to_owned)
                .into();
        let files = BTreeMap::from([(1, PathBuf::from("/w/k.rs"))]);
        let text = ptx(&kernel, &files, Path::new("/w"), &mut sources());
        assert_eq!(text, "{\n-- k.rs:2  load();\n\tld.global.u32 %r1, [%rd1];\n\tret;\n}\n");
    }

    #[test]
    fn a_line_is_counted_in_ptx_machine_code_and_loop() {
        let kernel: Vec<String> =
            [".reg .b32 %r<2>;", "\t.loc 1 3 5", "\tst.global.u32 [%rd1], %r1;", "\tret;"]
                .map(str::to_owned)
                .into();
        let files = BTreeMap::from([(1, PathBuf::from("/w/k.rs"))]);
        let text = source(&sass::parse(CODE)[0], &kernel, &files, Path::new("/w"), &mut sources());
        let rows: Vec<Vec<&str>> =
            text.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            rows,
            [vec!["--", "k.rs"], vec!["0", "1", "0", "2", "load();"], vec!["2", "3", "2", "3", "store();"]]
        );
    }
}
