//! Why mutants survive: the hand-written `explained.txt`.
//!
//! Identities at the beginning of a line, the reason indented below them. A `*` at the end of the kernel's name
//! stands for the instances of one family: `merge_*:off-by-one:1234abcd`.

/// One reason and whom it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Identities, with or without a `*`.
    pub ids: Vec<String>,
    /// The reason, on one line.
    pub reason: String,
}

/// A malformed line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tests/src/mutate/explained.txt, line {line}: {problem}")]
pub struct BadExplanation {
    /// From 1.
    pub line: usize,
    /// What is wrong and what would be right.
    pub problem: String,
}

/// The file.
pub const TEXT: &str = include_str!("explained.txt");

/// Reads explanations.
///
/// # Errors
/// [`BadExplanation`].
pub fn parse(text: &str) -> Result<Vec<Explanation>, BadExplanation> {
    let mut out: Vec<Explanation> = Vec::new();
    let mut open = false;
    for (i, line) in text.lines().enumerate() {
        let bad = |problem: &str| BadExplanation { line: i + 1, problem: problem.into() };
        let word = line.trim();
        if word.is_empty() || word.starts_with('#') {
            continue;
        }
        if line.starts_with([' ', '\t']) {
            let last = out.last_mut().ok_or_else(|| bad("a reason without an identity above it"))?;
            if !last.reason.is_empty() {
                last.reason.push(' ');
            }
            last.reason.push_str(word);
            open = false;
            continue;
        }
        if word.split(':').count() != 3 || word.contains(char::is_whitespace) {
            return Err(bad("an identity is kernel:kind:context, as `cargo xtask mutate` prints it"));
        }
        if !open {
            if out.last().is_some_and(|e| e.reason.is_empty()) {
                return Err(bad("the identities above have no reason"));
            }
            out.push(Explanation { ids: Vec::new(), reason: String::new() });
            open = true;
        }
        if let Some(last) = out.last_mut() {
            last.ids.push(word.to_owned());
        }
    }
    if out.last().is_some_and(|e| e.reason.is_empty()) {
        return Err(BadExplanation {
            line: text.lines().count(),
            problem: "the last identities have no reason".into(),
        });
    }
    Ok(out)
}

/// True when a written identity is meant for this one.
pub fn covers(written: &str, id: &str) -> bool {
    match (written.split_once(':'), id.split_once(':')) {
        (Some((kernels, rest)), Some((kernel, other))) => {
            rest == other && kernels.strip_suffix('*').map_or(kernels == kernel, |p| kernel.starts_with(p))
        }
        _ => false,
    }
}

/// The reason for an identity.
pub fn reason<'a>(explanations: &'a [Explanation], id: &str) -> Option<&'a str> {
    explanations.iter().find(|e| e.ids.iter().any(|w| covers(w, id))).map(|e| e.reason.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_share_the_reason_below_them() {
        let all = parse("# c\na:k:1\nb_*:k:2\n    because\n    of this\n\nc:k:3\n  other\n").unwrap();
        assert_eq!(reason(&all, "a:k:1"), Some("because of this"));
        assert_eq!(reason(&all, "b_x:k:2"), Some("because of this"));
        assert_eq!(reason(&all, "c:k:3"), Some("other"));
        for id in ["a:k:2", "b_x:k:1", "c:j:3", "a:k:1.2"] {
            assert_eq!(reason(&all, id), None, "{id}");
        }
    }

    #[test]
    fn what_is_malformed_names_its_line() {
        for (text, line) in [("  reason", 1), ("a:k:1\n", 1), ("a:k\n  r", 1), ("a:k:1\n  r\nb:k:2\n", 3)] {
            assert_eq!(parse(text).unwrap_err().line, line, "{text}");
        }
        parse(TEXT).unwrap();
    }
}
