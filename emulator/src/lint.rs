//! What makes PTX slow or unfinished and can be seen without running it.
//!
//! Reads the text of bodies, statement by statement: generic accesses, local memory, calls of LLVM
//! intrinsics nobody lowered, and `//@` markers that a tool behind the compiler should have taken out.

use crate::module::Module;
use serde::Serialize;
use std::fmt;

/// One remark about a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lint {
    /// PTX line.
    pub line: u32,
    /// `generic access`, `local memory`, `llvm intrinsic` or `marker`.
    pub kind: &'static str,
    /// The statement, or the part of the line concerned.
    pub text: String,
}

impl fmt::Display for Lint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}: {}", self.line, self.kind, self.text)
    }
}

const SPACES: [&str; 7] = ["global", "shared", "local", "param", "const", "shared::cta", "shared::cluster"];

/// What is remarkable about one statement, without its guard.
fn kind(statement: &str) -> Option<&'static str> {
    let opcode = statement.split([' ', '\t', '{', '[', '(']).next().unwrap_or("");
    let mut parts = opcode.split('.');
    let name = parts.next().unwrap_or("");
    if opcode == ".local" || (matches!(name, "ld" | "st") && opcode.contains(".local")) {
        return Some("local memory");
    }
    let space = |p: &str| SPACES.contains(&p) || p.starts_with("param::");
    if matches!(name, "ld" | "st" | "atom" | "red") && !parts.any(space) {
        return Some("generic access");
    }
    None
}

impl Module {
    /// Remarks on the text of the module, by line.
    pub fn lint(&self) -> Vec<Lint> {
        let mut found = Vec::new();
        for (i, line) in self.inner.text.lines().enumerate() {
            let number = i as u32 + 1;
            let mut add = |kind, text: &str| {
                found.push(Lint { line: number, kind, text: text.trim().to_string() });
            };
            let (code, comment) = line.split_once("//").unwrap_or((line, ""));
            if comment.starts_with('@') {
                add("marker", &format!("//{comment}"));
            }
            if let Some(at) = code.find("llvm.").or_else(|| code.find("llvm_")) {
                let name = &code[at..];
                let end = name.find(|c: char| !(c.is_ascii_alphanumeric() || "._$".contains(c)));
                add("llvm intrinsic", &name[..end.unwrap_or(name.len())]);
            }
            for statement in code.split(';').map(str::trim) {
                let guarded = statement.strip_prefix('@').and_then(|s| s.split_once(char::is_whitespace));
                let body = guarded.map_or(statement, |(_, rest)| rest).trim_start_matches(['{', ' ', '\t']);
                if let Some(kind) = kind(body) {
                    add(kind, statement);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_seen_at_its_line_and_nothing_else() {
        let text = ".version 7.8\n.target sm_80\n.address_size 64\n\
            .visible .entry k(.param .u64 a) {\n\
            .reg .b64 %rd<4>; .reg .b32 %r<4>; .reg .pred %p<2>;\n\
            .local .align 8 .b8 depot[16];\n\
            ld.param.u64 %rd1, [a];\n\
            @%p1 ld.u32 %r1, [%rd1];\n\
            ld.global.v2.u32 {%r1, %r2}, [%rd1]; st.relaxed.gpu.u32 [%rd1], %r1;\n\
            //@launch_bounds reqntid=1,1,1\n\
            ld.shared::cta.u32 %r1, [%r2]; // ld.u32 is not meant\n\
            st.local.u32 [depot], %r1;\n\
            atom.shared.add.u32 %r1, [%r2], 1;\n\
            ret; }\n";
        let lints = Module::parse(text).unwrap().lint();
        let seen: Vec<(u32, &str)> = lints.iter().map(|l| (l.line, l.kind)).collect();
        assert_eq!(
            seen,
            [
                (6, "local memory"),
                (8, "generic access"),
                (9, "generic access"),
                (10, "marker"),
                (12, "local memory")
            ]
        );
    }

    #[test]
    fn intrinsics_left_over_are_named() {
        let text = ".version 7.8\n.target sm_80\n.address_size 64\n\
            .extern .func llvm.nvvm.foo(.param .b32 x);\n";
        let lints = Module::parse(text).unwrap().lint();
        assert_eq!((lints[0].kind, lints[0].text.as_str()), ("llvm intrinsic", "llvm.nvvm.foo"));
    }
}
