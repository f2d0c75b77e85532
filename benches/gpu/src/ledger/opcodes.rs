//! Which opcodes of a PTX text need an entry in the ledger.
//!
//! Exact is what integers, bits, memory and control flow do, and the comparison of floats; every other opcode
//! rounds, approximates or adds in an order of its own. The list is of what is exact, so that an instruction
//! nobody thought of counts as inexact.

use std::collections::BTreeSet;

/// Operations that are exact for every type, floats included.
const EXACT: &[&str] = &[
    "abs", "and", "bar", "bfe", "bfi", "bra", "brev", "clz", "copysign", "cvta", "exit", "fns", "isspacep",
    "ld", "ldu", "lop3", "max", "membar", "min", "mov", "neg", "not", "or", "popc", "prefetch", "prmt",
    "ret", "selp", "set", "setp", "shf", "shfl", "shl", "shr", "slct", "st", "testp", "trap", "vote", "xor",
];

/// Operations that are exact for integers.
const EXACT_ON_INTEGERS: &[&str] = &["add", "cvt", "div", "mad", "mul", "rem", "sad", "sub"];

/// True for an opcode with modifiers that has one right result, whatever the machine.
pub fn exact(opcode: &str) -> bool {
    let mut parts = opcode.split('.');
    let operation = parts.next().unwrap_or_default();
    if EXACT.contains(&operation) {
        return true;
    }
    let float = |part: &str| {
        let digits = part.trim_start_matches("bf").trim_start_matches("tf").trim_start_matches(['f', 'e']);
        part.starts_with(['f', 'b', 't', 'e'])
            && digits.starts_with(|c: char| c.is_ascii_digit())
            && !matches!(part, "b8" | "b16" | "b32" | "b64")
    };
    EXACT_ON_INTEGERS.contains(&operation) && !parts.any(float)
}

/// The opcodes of `ptx` that are not exact.
pub fn inexact(ptx: &str) -> BTreeSet<String> {
    ptx.lines().filter_map(opcode).filter(|opcode| !exact(opcode)).map(str::to_owned).collect()
}

/// The opcode of a line that holds an instruction, with its modifiers and without its guard.
fn opcode(line: &str) -> Option<&str> {
    let line = line.split("//").next()?.trim();
    let line = match line.strip_prefix('@') {
        Some(guarded) => guarded.split_once(char::is_whitespace)?.1.trim_start(),
        None => line,
    };
    // Instructions end with a semicolon; directives begin with a dot, labels with a dollar.
    let instruction = line.strip_suffix(';')?;
    let opcode = instruction.split(char::is_whitespace).next()?;
    opcode.starts_with(|c: char| c.is_ascii_lowercase()).then_some(opcode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_labels_directives_and_comments_are_no_opcodes() {
        let ptx = ".version 7.8\n$L0:\n\t.reg .b32 %r<9>;\n\t@!%p1 bra $L0;\n\t@%p2 ex2.approx.ftz.f32 %r1, %r2;\n\
                   \tfma.rn.f32 %r1, %r2, %r3, %r4; // tanh.approx.f32 %r1;\n\tmul.wide.u32 %rd1, %r1, 4;\n";
        assert_eq!(inexact(ptx).into_iter().collect::<Vec<_>>(), ["ex2.approx.ftz.f32", "fma.rn.f32"]);
    }

    #[test]
    fn conversions_are_exact_between_integers_only() {
        assert!(exact("cvt.u64.u32") && exact("cvt.u16.u32") && exact("add.s64") && exact("mul.wide.u32"));
        for opcode in ["cvt.rn.f32.u64", "cvt.f32.f16", "cvt.rn.bf16x2.f32", "cvt.rna.tf32.f32", "add.rn.f32"]
        {
            assert!(!exact(opcode), "{opcode}");
        }
        // Unknown counts as inexact.
        assert!(!exact("dp4a.u32.u32") && !exact("frobnicate.b32"));
    }

    #[test]
    fn the_shipped_ptx_uses_what_the_documents_say() {
        let used = inexact(kernels_gpu::PTX);
        for opcode in ["ex2.approx.ftz.f32", "lg2.approx.ftz.f32", "rcp.approx.ftz.f32", "fma.rn.f32"] {
            assert!(used.contains(opcode), "{opcode} of {used:?}");
        }
    }
}
