//! PTX text as statements: what a mutation needs to see, and no more.
//!
//! A statement is `[@[!]%p] opcode operands;` with its byte range in the text, so that it can be replaced and
//! nothing else moves. Labels, directives and braces of scopes lie between statements.

use std::collections::BTreeSet;
use std::ops::Range;

/// One instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement<'a> {
    /// Bytes in the text, guard and semicolon included.
    pub range: Range<usize>,
    /// Line in the text, from 1.
    pub line: usize,
    /// Predicate register of the guard, and whether it is negated.
    pub guard: Option<(&'a str, bool)>,
    /// Opcode with its modifiers.
    pub op: &'a str,
    /// Operands, trimmed.
    pub operands: Vec<&'a str>,
}

impl Statement<'_> {
    /// The guard as written, with a blank behind it.
    pub fn guard_text(&self) -> String {
        match self.guard {
            Some((p, true)) => format!("@!{p} "),
            Some((p, false)) => format!("@{p} "),
            None => String::new(),
        }
    }

    /// The first parts of the opcode are these, e.g. `bar.sync` for `bar.sync.aligned`.
    pub fn is(&self, opcode: &str) -> bool {
        self.op.strip_prefix(opcode).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// One of the dotted parts of the opcode.
    pub fn has(&self, part: &str) -> bool {
        self.op.split('.').any(|p| p == part)
    }

    /// The statement with another guard, opcode or operands.
    pub fn with(&self, op: &str, operands: &[&str]) -> String {
        format!("{}{op} {};", self.guard_text(), operands.join(", "))
    }
}

/// The entry `name` of a module: its text, from `.visible .entry` to its closing brace.
pub fn entry(ptx: &str, name: &str) -> Option<Range<usize>> {
    let start = ptx.find(&format!(".entry {name}("))?;
    let start = ptx[..start].rfind('\n').map_or(0, |at| at + 1);
    let end = start + ptx[start..].find("\n}")? + 2;
    Some(start..end)
}

/// The module with this entry as its only one. Lines of the entry move up by what was left out before it.
pub fn alone(ptx: &str, name: &str) -> Option<String> {
    let kept = entry(ptx, name)?;
    let mut out = String::new();
    let mut at = 0;
    while let Some(found) = ptx[at..].find(".visible .entry ") {
        let from = at + found;
        let to = from + ptx[from..].find("\n}")? + 2;
        out.push_str(&ptx[at..from]);
        if from == kept.start {
            out.push_str(&ptx[from..to]);
        }
        at = to;
    }
    out.push_str(&ptx[at..]);
    Some(out)
}

/// The statements of one entry's text.
pub fn statements(text: &str) -> Vec<Statement<'_>> {
    let mut out = Vec::new();
    let Some(body) = text.find('{') else { return out };
    let bytes = text.as_bytes();
    let mut at = body + 1;
    let mut line = 1 + text[..at].matches('\n').count();
    while at < bytes.len() {
        match bytes[at] {
            b'\n' => {
                line += 1;
                at += 1;
            }
            b'/' if text[at..].starts_with("//") => {
                at += text[at..].find('\n').unwrap_or(text.len() - at);
            }
            b' ' | b'\t' | b'\r' | b'{' | b'}' | b';' => at += 1,
            b'.' => {
                // A directive: to its semicolon, `.loc` and its like to the end of the line.
                let rest = &text[at..];
                let end = if rest.starts_with(".loc") { rest.find('\n') } else { rest.find(';') };
                let end = end.unwrap_or(rest.len());
                line += rest[..end].matches('\n').count();
                at += end;
            }
            _ => {
                let rest = &text[at..];
                let end = rest.find(';').unwrap_or(rest.len());
                if let Some(colon) = rest[..end].find(':')
                    && rest[..colon].bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$'))
                {
                    at += colon + 1;
                    continue;
                }
                if let Some(s) = statement(text, at..(at + end + 1).min(text.len()), line) {
                    out.push(s);
                }
                line += rest[..end].matches('\n').count();
                at += end + 1;
            }
        }
    }
    out
}

fn statement(text: &str, range: Range<usize>, line: usize) -> Option<Statement<'_>> {
    let mut code = text[range.clone()].trim_end_matches(';').trim();
    let mut guard = None;
    if let Some(rest) = code.strip_prefix('@') {
        let (negated, rest) = rest.strip_prefix('!').map_or((false, rest), |r| (true, r));
        let (register, rest) = rest.split_once(char::is_whitespace)?;
        guard = Some((register, negated));
        code = rest.trim_start();
    }
    let (op, rest) = code.split_once(char::is_whitespace).unwrap_or((code, ""));
    let mut operands = Vec::new();
    let (mut depth, mut from) = (0, 0);
    for (i, c) in rest.char_indices() {
        match c {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                operands.push(rest[from..i].trim());
                from = i + 1;
            }
            _ => {}
        }
    }
    if !rest[from..].trim().is_empty() {
        operands.push(rest[from..].trim());
    }
    Some(Statement { range, line, guard, op, operands })
}

/// The registers named in an operand.
pub fn registers(operand: &str) -> impl Iterator<Item = &str> {
    operand
        .split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '%' | '_' | '.')))
        .filter(|word| word.starts_with('%'))
}

/// Registers from which addresses of memory accesses are computed, by any number of arithmetic instructions.
pub fn address_registers<'a>(statements: &[Statement<'a>]) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    for s in statements {
        for operand in &s.operands {
            // In a list of operands the address may be followed by others: cp.async has two.
            for part in operand.split('[').skip(1) {
                found.extend(registers(part.split(']').next().unwrap_or("")));
            }
        }
    }
    loop {
        let before = found.len();
        for s in statements {
            let arithmetic = ["add", "sub", "mul", "mad", "shl", "shr", "or", "and", "mov", "cvt", "cvta"]
                .iter()
                .any(|op| s.is(op));
            if arithmetic && s.operands.first().is_some_and(|d| found.contains(d)) {
                found.extend(s.operands[1..].iter().flat_map(|o| registers(o)));
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = ".visible .entry k(\n\t.param .u64 k_param_0\n)\n.reqntid 32, 1, 1\n{\n\t.reg .pred %p<2>;\n\
        \tld.param.b64 %rd1, [k_param_0]; // x: y\n$L__BB0_1:\n\t@!%p1 bra $L__BB0_1;\n\
        \tst.shared.v2.b32 [%r1+8], {%r2, %r3};\n\tbar.sync 0;\n\t{ ex2.approx.f32 %r1, %r2; }\n\tret;\n}";

    #[test]
    fn statements_have_guard_opcode_operands_and_line() {
        let all = statements(TEXT);
        let ops: Vec<_> = all.iter().map(|s| (s.op, s.line)).collect();
        assert_eq!(
            ops,
            [
                ("ld.param.b64", 7),
                ("bra", 9),
                ("st.shared.v2.b32", 10),
                ("bar.sync", 11),
                ("ex2.approx.f32", 12),
                ("ret", 13)
            ]
        );
        assert_eq!(all[1].guard, Some(("%p1", true)));
        assert_eq!(all[2].operands, ["[%r1+8]", "{%r2, %r3}"]);
        assert_eq!(&TEXT[all[1].range.clone()], "@!%p1 bra $L__BB0_1;");
        assert!(all[3].is("bar") && all[3].is("bar.sync") && !all[3].is("bar.sy"));
    }

    #[test]
    fn an_entry_alone_keeps_the_rest_of_the_module() {
        let other = TEXT.replace("entry k(", "entry other(");
        let ptx = format!(".version 7.8\n\n{other}\n\n.extern .shared .b8 x[];\n{TEXT}\n");
        assert_eq!(&ptx[entry(&ptx, "k").unwrap()], TEXT);
        let alone = alone(&ptx, "k").unwrap();
        assert!(alone.contains(".extern .shared") && alone.contains(".version") && alone.contains(TEXT));
        assert!(!alone.contains("entry other("));
        assert_eq!(entry(&ptx, "none"), None);
    }

    #[test]
    fn addresses_are_followed_back_through_arithmetic_only() {
        let text = "{ ld.global.b32 %r9, [%rd9]; cvt.u64.u32 %rd1, %r9; mul.wide.u32 %rd2, %r4, 8;\n\
            add.s64 %rd3, %rd1, %rd2; ld.global.b32 %r1, [%rd3+4]; add.s32 %r7, %r1, 1; }";
        let found = address_registers(&statements(text));
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["%r4", "%r9", "%rd1", "%rd2", "%rd3", "%rd9"]);
    }
}
