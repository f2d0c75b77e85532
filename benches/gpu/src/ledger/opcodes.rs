//! Which opcodes of a PTX text need an entry in the ledger.
//!
//! Exact is what integers, bits, memory and control flow do, and the comparison of floats; every other opcode
//! rounds, approximates or adds in an order of its own. The list is of what is exact, so that an instruction
//! nobody thought of counts as inexact.

use std::collections::BTreeSet;

/// Operations that are exact for every type, floats included.
const EXACT: &[&str] = &[
    "abs",
    "and",
    "bar",
    "bfe",
    "bfi",
    "bra",
    "brev",
    "clz",
    "copysign",
    "cvta",
    "exit",
    "fns",
    "isspacep",
    "ld",
    "ldmatrix",
    "ldu",
    "lop3",
    "max",
    "membar",
    "min",
    "mov",
    "movmatrix",
    "neg",
    "not",
    "or",
    "popc",
    "prefetch",
    "prmt",
    "ret",
    "selp",
    "set",
    "setp",
    "shf",
    "shfl",
    "shl",
    "shr",
    "slct",
    "st",
    "testp",
    "trap",
    "vote",
    "xor",
];

/// Operations that are exact for integers.
const EXACT_ON_INTEGERS: &[&str] = &["add", "atom", "cvt", "div", "mad", "mul", "red", "rem", "sad", "sub"];

/// True for an opcode with modifiers that has one right result, whatever the machine.
pub fn exact(opcode: &str) -> bool {
    let mut parts = opcode.split('.');
    let operation = parts.next().unwrap_or_default();
    if EXACT.contains(&operation) {
        return true;
    }
    // Copies, and waiting for them; `cp.reduce.async.bulk` adds.
    if operation == "cp" {
        return !opcode.starts_with("cp.reduce");
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
    instructions(ptx)
        .iter()
        .filter_map(|text| opcode(text))
        .filter(|opcode| !exact(opcode))
        .map(str::to_owned)
        .collect()
}

/// The instructions of `ptx`, each with its guard and up to its semicolon, which may stand some lines further
/// down: inline assembly of a `mma` takes five.
fn instructions(ptx: &str) -> Vec<String> {
    let (mut all, mut open) = (Vec::new(), String::new());
    for line in ptx.lines() {
        let line = line.split("//").next().unwrap_or_default();
        for piece in line.split_inclusive(';') {
            let mut piece = piece.trim();
            if open.is_empty() {
                piece = piece.trim_start_matches(['{', '}', ' ', '\t']);
                if let Some((label, rest)) = piece.split_once(':')
                    && !label.contains(char::is_whitespace)
                    && !rest.starts_with(':')
                {
                    piece = rest.trim_start();
                }
                // Directives begin with a dot.
                if !piece.starts_with(|c: char| c == '@' || c.is_ascii_lowercase()) {
                    continue;
                }
            }
            open.push_str(piece);
            if piece.ends_with(';') {
                all.push(std::mem::take(&mut open));
            } else {
                open.push(' ');
            }
        }
    }
    all
}

/// The opcode of an instruction, with its modifiers and without its guard.
fn opcode(instruction: &str) -> Option<&str> {
    let text = match instruction.strip_prefix('@') {
        Some(guarded) => guarded.split_once(char::is_whitespace)?.1.trim_start(),
        None => instruction,
    };
    text.split(|c: char| c.is_whitespace() || c == ';').next()
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
    fn an_instruction_over_lines_after_a_label_or_beside_another_is_seen() {
        let ptx = ".visible .entry k(\n\t.param .u64 k_param_0\n)\n{\n\t// begin inline asm\n\tmma.sync.a.f32\n\
                   {%r1, %r2},\n{%r3};\n\t{ .reg .f32 t; add.rn.f32 t, %r1, %r2; mul.rn.f32 %r1, t, t; }\n\
                   $L1: @%p1\n\tsub.rn.f32 %r1, %r2, %r3;\n\tcp.reduce.async.L2::x [%rd1], 8;\n\tret;\n}\n";
        let found: Vec<_> = inexact(ptx).into_iter().collect();
        assert_eq!(
            found,
            ["add.rn.f32", "cp.reduce.async.L2::x", "mma.sync.a.f32", "mul.rn.f32", "sub.rn.f32"]
        );
    }

    #[test]
    fn conversions_are_exact_between_integers_only() {
        assert!(exact("cvt.u64.u32") && exact("cvt.u16.u32") && exact("add.s64") && exact("mul.wide.u32"));
        for opcode in ["cvt.rn.f32.u64", "cvt.f32.f16", "cvt.rn.bf16x2.f32", "cvt.rna.tf32.f32", "add.rn.f32"]
        {
            assert!(!exact(opcode), "{opcode}");
        }
        // A copy is exact, one that adds is not.
        assert!(exact("cp.async.cg.shared.global.L2::128B") && exact("cp.async.wait_group"));
        assert!(!exact("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f16"));
        // Unknown counts as inexact.
        assert!(!exact("dp4a.u32.u32") && !exact("frobnicate.b32"));
    }

    #[test]
    fn the_shipped_ptx_uses_what_the_documents_say() {
        let used = inexact(kernels_gpu::PTX);
        assert!(used.iter().any(|o| o.starts_with("mma.") && o.ends_with(".bf16.bf16.f32")), "{used:?}");
        for opcode in ["ex2.approx.ftz.f32", "lg2.approx.ftz.f32", "rcp.approx.ftz.f32", "fma.rn.f32"] {
            assert!(used.contains(opcode), "{opcode} of {used:?}");
        }
    }
}
