//! The kernels' PTX with line information, beside the shipped one that has none.
//!
//! The same build with line directives added; its code is compared with the shipped text, so that what is
//! shown is what is shipped. A `.loc` into another crate (core) is dropped: the instruction then counts for
//! the line of the workspace before it, which is what a reader looks for.
//!
//! Trap: the labels of line information look like the ends of basic blocks, which the finishing step counts.
//! They go before it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use psa_codegen::manifest::combined_sha256;

use crate::device::DeviceCompiler;
use crate::device_crates::KERNELS;
use crate::error::{Error, Result};
use crate::ptx::source_hashes;
use crate::workspace::Workspace;

/// One kernel's PTX, cut out of its module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// A module with this kernel and the device functions.
    pub module: String,
    /// The kernel's own lines.
    pub kernel: Vec<String>,
    /// Files by the numbers of `.loc`.
    pub files: BTreeMap<u32, PathBuf>,
}

/// The finished PTX with line information of the sources as they are; kept until they change. `None` without
/// a device compiler.
pub fn with_lines(workspace: &Workspace) -> Result<Option<String>> {
    let Some(compiler) = DeviceCompiler::find() else { return Ok(None) };
    let sources = combined_sha256(&source_hashes(workspace.root(), &KERNELS)?);
    let folder = workspace.target().join("psa-inspect");
    let key = psa_codegen::manifest::sha256(format!("{sources} {}", compiler.version.identity).as_bytes());
    let kept = folder.join(format!("{}.ptx", &key[..16]));
    if let Ok(text) = fs::read_to_string(&kept) {
        return Ok(Some(text));
    }
    eprintln!("==> device build with line information ({})", compiler.place);
    let raw = compiler.build_with_lines(workspace, &KERNELS)?;
    let text = psa_codegen::finish(&without_labels(&raw, workspace.root()))
        .map_err(|error| Error::BadPtx(error.to_string()))?;
    fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    fs::write(&kept, &text).map_err(Error::io("write", &kept))?;
    Ok(Some(text))
}

/// Drops the labels of line information, its sections, and every `.loc` into a file outside `root`.
fn without_labels(raw: &str, root: &Path) -> String {
    let files = files(raw);
    let ours = |number: &str| {
        number.parse().ok().and_then(|n: u32| files.get(&n)).is_some_and(|file| file.starts_with(root))
    };
    let mut text = String::with_capacity(raw.len());
    for line in raw.lines() {
        let code = line.trim();
        let label = ["$L__tmp", "$L__func_begin", "$L__func_end"].iter().any(|start| code.starts_with(start));
        let elsewhere = code.strip_prefix(".loc").is_some_and(|rest| {
            let mut words = rest.split_whitespace();
            // Line 0 is code that belongs to no line.
            !ours(words.next().unwrap_or("")) || words.next() == Some("0")
        });
        if (label && code.ends_with(':')) || elsewhere || code.starts_with(".section") {
            continue;
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// The `.file` table: number to path.
fn files(ptx: &str) -> BTreeMap<u32, PathBuf> {
    let file = |line: &str| {
        let rest = line.trim().strip_prefix(".file")?.trim();
        let (number, path) = rest.split_once(char::is_whitespace)?;
        Some((number.parse().ok()?, PathBuf::from(path.trim().trim_matches('"'))))
    };
    ptx.lines().filter_map(file).collect()
}

/// Cuts a kernel out of a finished module; `None` if it is not in it.
pub fn cut(ptx: &str, kernel: &str) -> Option<Cut> {
    let mut module = String::new();
    let mut own = Vec::new();
    let mut skipping = false;
    let mut inside = false;
    for line in ptx.lines() {
        if let Some(rest) = line.split_once(".entry ").map(|(_, rest)| rest) {
            inside = rest.split('(').next().is_some_and(|name| name.trim() == kernel);
            skipping = !inside;
        }
        if !skipping {
            module.push_str(line);
            module.push('\n');
        }
        if inside {
            own.push(line.to_owned());
        }
        // In finished text the brace of a function stands alone in the first column.
        if line == "}" {
            (skipping, inside) = (false, false);
        }
    }
    (!own.is_empty()).then(|| Cut { module, kernel: own, files: files(ptx) })
}

/// A kernel's lines without line information.
pub fn code(kernel: &[String]) -> Vec<&str> {
    let info = |line: &&str| line.trim_start().starts_with(".loc");
    kernel.iter().map(String::as_str).filter(|line| !info(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: &str = "\
.version 7.8
.target sm_80
.visible .entry a(
)
{
$L__func_begin0:
\t.loc\t1 7 3
\tmov.u32 %r1, 1;
$L__tmp0:
\t.loc\t2 863 18
\t.loc\t1 0 0
\tadd.u32 %r1, %r1, 1;
$L__BB0_1:
\tret;
$L__func_end0:
}
\t.section\t.debug_macinfo\t{\t}
\t.file\t1 \"/w/kernels-gpu/src/a.rs\"
\t.file\t2 \"/usr/lib/core/ptr.rs\"
";

    #[test]
    fn lines_of_other_crates_and_labels_go_and_branch_targets_stay() {
        let text = without_labels(RAW, Path::new("/w"));
        assert!(text.contains(".loc\t1 7 3") && text.contains("$L__BB0_1:"), "{text}");
        for gone in [".loc\t2", ".loc\t1 0", "$L__tmp0", "$L__func", ".section"] {
            assert!(!text.contains(gone), "{gone}: {text}");
        }
    }

    #[test]
    fn a_kernel_is_cut_out_with_the_header_and_the_files() {
        let module = ".version 7.8\n\n.visible .entry a(\n)\n{\n\tret;\n}\n\n.visible .entry ab(\n)\n{\n\tbra x;\n}\n.file 1 \"/w/a.rs\"\n";
        let cut = cut(module, "ab").expect("there");
        assert!(cut.module.starts_with(".version 7.8\n") && cut.module.contains(".file 1"));
        assert!(!cut.module.contains("ret;"));
        assert_eq!(cut.kernel, [".visible .entry ab(", ")", "{", "\tbra x;", "}"]);
        assert_eq!(cut.files[&1], Path::new("/w/a.rs"));
        assert_eq!(super::cut(module, "b"), None);
    }

    #[test]
    fn code_is_compared_without_its_lines() {
        let with: Vec<String> = ["\t.loc 1 2 3", "\tret;"].map(str::to_owned).into();
        assert_eq!(code(&with), ["\tret;"]);
    }
}
