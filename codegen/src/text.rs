//! As much of PTX's grammar as finishing and linting need: comments, functions, statements.
//!
//! Works on lines, since findings name them. Comments become spaces and keep their line; a function is
//! its header (up to the brace) and the lines of its body; a statement is what stands between
//! semicolons on a line, without label and predicate. Strings do not occur in code without debug
//! information, and are skipped where they do.

/// `ptx` without comments, line by line.
pub fn code_lines(ptx: &str) -> Vec<String> {
    let mut in_block = false;
    ptx.lines().map(|line| strip_comments(line, &mut in_block)).collect()
}

fn strip_comments(line: &str, in_block: &mut bool) -> String {
    let mut out = String::with_capacity(line.len());
    let mut in_string = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if *in_block {
            if c == '*' && chars.peek() == Some(&'/') {
                chars.next();
                *in_block = false;
                out.push(' ');
            }
        } else if in_string {
            in_string = c != '"';
            out.push(c);
        } else if c == '/' && chars.peek() == Some(&'/') {
            break;
        } else if c == '/' && chars.peek() == Some(&'*') {
            chars.next();
            *in_block = true;
        } else {
            in_string = c == '"';
            out.push(c);
        }
    }
    out
}

/// A `.entry` or `.func` of a module. Lines count from 0.
#[derive(Debug)]
pub struct Function {
    pub name: String,
    pub is_entry: bool,
    pub is_extern: bool,
    /// Line of the `.entry` or `.func`.
    pub line: usize,
    pub params: Vec<Param>,
    /// What stands between the parameters and the body, as `.reqntid 128, 1, 1`: words in order.
    pub directives: Vec<String>,
    /// Line and column of the `{`; none for a declaration.
    pub open: Option<(usize, usize)>,
    /// Line of the `}`.
    pub close: usize,
}

/// A formal parameter: its type (`u64`) and its bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Param {
    pub ty: String,
    pub bytes: u32,
}

/// Every function of a module, in order. `None` if a brace stays open.
pub fn functions(code: &[String]) -> Option<Vec<Function>> {
    let mut out = Vec::new();
    let mut line = 0;
    while line < code.len() {
        let Some(keyword) = function_keyword(&code[line]) else {
            line += 1;
            continue;
        };
        let (header, open, end) = header(code, line)?;
        let close = match open {
            Some((at, column)) => closing_brace(code, at, column)?,
            None => end,
        };
        let (name, params, directives) = split_header(&header, keyword);
        out.push(Function {
            name,
            is_entry: keyword == ".entry",
            is_extern: header.contains(".extern"),
            line,
            params,
            directives,
            open,
            close,
        });
        line = close + 1;
    }
    Some(out)
}

fn function_keyword(line: &str) -> Option<&'static str> {
    [".entry", ".func"].into_iter().find(|keyword| line.split_whitespace().any(|word| word == *keyword))
}

type Place = (usize, usize);

/// The text from `first` to the body's brace or the declaration's semicolon, the brace, and the last line.
fn header(code: &[String], first: usize) -> Option<(String, Option<Place>, usize)> {
    let mut text = String::new();
    for (line, content) in code.iter().enumerate().skip(first) {
        if let Some(column) = content.find(['{', ';']) {
            text.push_str(&content[..column]);
            let is_body = content[column..].starts_with('{');
            return Some((text, is_body.then_some((line, column)), line));
        }
        text.push_str(content);
        text.push('\n');
    }
    None
}

fn closing_brace(code: &[String], line: usize, column: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, content) in code.iter().enumerate().skip(line) {
        let from = if at == line { column } else { 0 };
        for c in content[from..].chars() {
            match c {
                '{' => depth += 1,
                '}' => {
                    depth = depth.checked_sub(1)?;
                    if depth == 0 {
                        return Some(at);
                    }
                }
                _ => {}
            }
        }
    }
    None
}

fn split_header(header: &str, keyword: &str) -> (String, Vec<Param>, Vec<String>) {
    let mut rest = header.split_once(keyword).map_or("", |(_, rest)| rest).trim_start();
    // A function's result stands in parentheses before its name.
    if rest.starts_with('(') {
        rest = rest.split_once(')').map_or("", |(_, rest)| rest).trim_start();
    }
    let name: String = rest.chars().take_while(|c| !c.is_whitespace() && *c != '(').collect();
    let rest = rest[name.len()..].trim_start();
    let (params, rest) = match rest.strip_prefix('(') {
        Some(inner) => inner.split_once(')').unwrap_or((inner, "")),
        None => ("", rest),
    };
    let params = params.split(',').filter_map(param).collect();
    (name, params, rest.split_whitespace().map(str::to_owned).collect())
}

/// `.param .align 16 .b8 name[32]`.
fn param(text: &str) -> Option<Param> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let ty =
        words.iter().filter_map(|word| word.strip_prefix('.')).rfind(|word| type_bytes(word).is_some())?;
    let name = words.last()?;
    let count = match name.split_once('[') {
        Some((_, count)) => count.trim_end_matches(']').parse().ok()?,
        None => 1,
    };
    Some(Param { ty: ty.to_owned(), bytes: type_bytes(ty)? * count })
}

fn type_bytes(ty: &str) -> Option<u32> {
    let (kind, bits) = ty.split_at_checked(1)?;
    if !matches!(kind, "b" | "u" | "s" | "f") {
        return None;
    }
    match bits {
        "8" => Some(1),
        "16" => Some(2),
        "32" => Some(4),
        "64" => Some(8),
        _ => None,
    }
}

/// The opcodes (with modifiers) on a line of a body, and its directives; labels and predicates dropped.
pub fn opcodes(line: &str) -> impl Iterator<Item = &str> {
    line.split(';').filter_map(|statement| {
        let mut rest = statement.trim_start_matches(|c: char| c.is_whitespace() || c == '{' || c == '}');
        loop {
            let word = rest.split_whitespace().next()?;
            if !(word.ends_with(':') || word.starts_with('@')) {
                return Some(word);
            }
            rest = rest[word.len()..].trim_start_matches(|c: char| c.is_whitespace() || c == '{');
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_names_params_directives_and_extent() {
        let ptx = "\
.version 7.8
.visible .entry k( // a comment with { in it
	.param .u64 .ptr .align 1 k_param_0,
	.param .align 8 .b8 k_param_1[24]
)
.reqntid 128, 1, 1
.minnctapersm 3
{
	{ .reg .pred p; }
	ret;
}
.extern .func (.param .b32 r) helper(.param .b64 x);
.entry empty()
{ ret; }
";
        let functions = functions(&code_lines(ptx)).expect("balanced");
        assert_eq!(functions.len(), 3);
        let k = &functions[0];
        assert_eq!((k.name.as_str(), k.is_entry, k.line, k.open, k.close), ("k", true, 1, Some((7, 0)), 10));
        let params: Vec<_> = k.params.iter().map(|p| (p.ty.as_str(), p.bytes)).collect();
        assert_eq!(params, [("u64", 8), ("b8", 24)]);
        assert_eq!(k.directives.join(" "), ".reqntid 128, 1, 1 .minnctapersm 3");
        let helper = &functions[1];
        assert!(helper.is_extern && !helper.is_entry && helper.open.is_none());
        assert_eq!((helper.name.as_str(), helper.params.len()), ("helper", 1));
        assert_eq!(functions[2].params.len(), 0);
    }

    #[test]
    fn an_open_brace_is_noticed() {
        assert!(functions(&code_lines(".entry k()\n{\n ret;\n")).is_none());
    }

    #[test]
    fn opcodes_come_without_labels_and_predicates() {
        let of = |line: &'static str| opcodes(line).collect::<Vec<_>>();
        assert_eq!(of("\t@%p1 bra \t$L__BB0_2;"), ["bra"]);
        assert_eq!(of("$L: @!%p1 st.shared.b32 [%r1], %r2;"), ["st.shared.b32"]);
        assert_eq!(of("{ .reg .pred p; isspacep.shared p, %rd1; }"), [".reg", "isspacep.shared"]);
        assert_eq!(of("ld.shared.v2.b32 {%r1, %r2}, [%r3];"), ["ld.shared.v2.b32"]);
        assert_eq!(of("$L__BB0_2:"), [] as [&str; 0]);
    }

    #[test]
    fn comments_go_and_strings_stay() {
        let code = code_lines("a /* b\nc */ d // e\n.file 1 \"http://x\"");
        assert_eq!(code, ["a ", "  d ", ".file 1 \"http://x\""]);
    }
}
