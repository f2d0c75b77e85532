//! What must not be in the PTX of a kernel, and what must: rules that a compiler change breaks silently.
//!
//! None of these is a compile error anywhere: an unknown intrinsic becomes an external function, an array
//! that is indexed dynamically goes to local memory with no spill reported, a generic pointer costs a
//! slower instruction, a lost launch bound costs registers. The lint compares finished text with the
//! descriptors of the same source.

use std::collections::HashSet;
use std::fmt;

use crate::KernelDescriptor;
use crate::text::{self, Function};

/// A rule of the lint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// `.version`, `.target` or `.address_size` is not what is expected.
    Header,
    /// Local memory: a depot, `ld.local`, `st.local`.
    Local,
    /// `ld`, `st`, `atom` or `red` without a state space.
    Generic,
    /// A leftover `llvm.` name, or an external function.
    Extern,
    /// A `call` that was not inlined.
    Call,
    /// A launch-bounds marker that was not moved.
    Marker,
    /// A descriptor without an entry.
    Missing,
    /// An entry without a descriptor.
    Unexpected,
    /// Parameters that are not the descriptor's.
    Params,
    /// Launch bounds that are not the descriptor's.
    Bounds,
    /// The text is not a complete module.
    Incomplete,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Local => "local",
            Self::Generic => "generic",
            Self::Extern => "extern",
            Self::Call => "call",
            Self::Marker => "marker",
            Self::Missing => "missing",
            Self::Unexpected => "unexpected",
            Self::Params => "params",
            Self::Bounds => "bounds",
            Self::Incomplete => "incomplete",
        })
    }
}

/// One violation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Line, from 1; 0 when it is about the whole file.
    pub line: usize,
    /// The entry or function it is in.
    pub kernel: Option<String>,
    /// The rule.
    pub rule: Rule,
    /// What is there, and what to do.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        if let Some(kernel) = &self.kernel {
            write!(f, "`{kernel}`: ")?;
        }
        write!(f, "[{}] {}", self.rule, self.text)
    }
}

/// What the lint expects.
#[derive(Clone, Debug)]
pub struct LintOptions {
    /// `.version`.
    pub isa: String,
    /// `.target`.
    pub target: String,
    /// Exceptions: a kernel family and a rule that does not hold in it.
    pub allowed: Vec<(String, Rule)>,
}

impl Default for LintOptions {
    /// ISA 7.8, sm_80, no exceptions.
    fn default() -> Self {
        Self { isa: "7.8".to_owned(), target: "sm_80".to_owned(), allowed: Vec::new() }
    }
}

/// Checks finished PTX against the descriptors of its kernels. No findings: clean. Ordered by line.
#[must_use]
pub fn lint(ptx: &str, kernels: &[&KernelDescriptor], options: &LintOptions) -> Vec<Finding> {
    let code = text::code_lines(ptx);
    let Some(functions) = text::functions(&code) else {
        let text = "the text ends inside a function; build it again".to_owned();
        return vec![Finding { line: code.len(), kernel: None, rule: Rule::Incomplete, text }];
    };
    let mut findings = Vec::new();
    header(&code, options, &mut findings);
    lines(ptx, &code, &functions, &mut findings);
    entries(&functions, kernels, &mut findings);
    findings.retain(|finding| {
        let family = |name: &str| kernels.iter().find(|k| k.name == name).map_or("", |k| k.family);
        let allowed = |(kernel, rule): &(String, Rule)| {
            finding.rule == *rule && finding.kernel.as_deref().is_some_and(|name| family(name) == kernel)
        };
        !options.allowed.iter().any(allowed)
    });
    findings.sort_by_key(|finding| (finding.line, finding.rule));
    findings
}

fn header(code: &[String], options: &LintOptions, findings: &mut Vec<Finding>) {
    for (directive, expected) in
        [(".version", options.isa.as_str()), (".target", options.target.as_str()), (".address_size", "64")]
    {
        let found = code.iter().enumerate().find_map(|(n, line)| {
            let rest = line.trim().strip_prefix(directive)?;
            Some((n + 1, rest.trim().to_owned()))
        });
        let (line, text) = match found {
            Some((_, value)) if value == expected => continue,
            Some((line, value)) => (line, format!("`{directive} {value}`, expected `{expected}`")),
            None => (0, format!("no `{directive}`, expected `{directive} {expected}`")),
        };
        findings.push(Finding { line, kernel: None, rule: Rule::Header, text });
    }
}

fn lines(ptx: &str, code: &[String], functions: &[Function], findings: &mut Vec<Finding>) {
    for (number, (raw, line)) in ptx.lines().zip(code).enumerate() {
        let inside = functions.iter().find(|f| (f.line..=f.close).contains(&number));
        let mut report = |rule, text: String| {
            findings.push(Finding { line: number + 1, kernel: inside.map(|f| f.name.clone()), rule, text });
        };
        if raw.contains("//@launch_bounds") {
            report(Rule::Marker, "a launch-bounds marker was not moved; run `finish` on the text".to_owned());
        }
        if line.contains("llvm.") {
            report(
                Rule::Extern,
                format!("an LLVM intrinsic that this back end does not have: `{}`", line.trim()),
            );
        }
        if inside.is_some_and(|f| f.is_extern && f.line == number) {
            report(Rule::Extern, format!("an external function, which nobody links: `{}`", line.trim()));
        }
        if inside.is_none_or(|f| f.open.is_none_or(|(at, _)| number < at)) {
            if is_local(line) {
                report(Rule::Local, format!("local memory at module level: `{}`", line.trim()));
            }
            continue;
        }
        if is_local(line) {
            let text = format!(
                "local memory: `{}`; is an array indexed by a loop that is not `unroll!`ed?",
                line.trim()
            );
            report(Rule::Local, text);
        }
        for opcode in text::opcodes(line) {
            let mut parts = opcode.split('.');
            let operation = parts.next().unwrap_or("");
            if operation == "call" {
                report(
                    Rule::Call,
                    format!(
                        "a call that was not inlined: `{}`; is it a panic or a bounds check?",
                        line.trim()
                    ),
                );
            }
            let has_space = |part: &str| {
                let space = part.split("::").next().unwrap_or("");
                matches!(space, "global" | "shared" | "local" | "param" | "const")
            };
            if matches!(operation, "ld" | "st" | "atom" | "red") && !parts.any(has_space) {
                let text = format!(
                    "a generic access: `{}`; use `SharedPtr` or a pointer that is a parameter",
                    line.trim()
                );
                report(Rule::Generic, text);
            }
        }
    }
}

/// A declaration in local memory, the compiler's depot, or an access. `isspacep.local` and `cvta.local` only talk of it.
fn is_local(line: &str) -> bool {
    let accesses = |opcode: &str| {
        let mut parts = opcode.split('.');
        matches!(parts.next(), Some("ld" | "st")) && parts.any(|part| part == "local")
    };
    line.contains("__local_depot")
        || line.split_whitespace().any(|word| word == ".local")
        || text::opcodes(line).any(accesses)
}

fn entries(functions: &[Function], kernels: &[&KernelDescriptor], findings: &mut Vec<Finding>) {
    let mut seen = HashSet::new();
    for entry in functions.iter().filter(|f| f.is_entry) {
        seen.insert(entry.name.as_str());
        let mut report = |rule, text| {
            findings.push(Finding { line: entry.line + 1, kernel: Some(entry.name.clone()), rule, text });
        };
        let Some(kernel) = kernels.iter().find(|k| k.name == entry.name) else {
            report(
                Rule::Unexpected,
                "no descriptor has this name; is the host build older than the PTX?".to_owned(),
            );
            continue;
        };
        if entry.params.len() != kernel.params.len() {
            let text =
                format!("{} parameters, the descriptor has {}", entry.params.len(), kernel.params.len());
            report(Rule::Params, text);
        } else {
            for (index, (found, expected)) in entry.params.iter().zip(kernel.params).enumerate() {
                if found.bytes != expected.ty.size() {
                    let text = format!(
                        "parameter {index} has {} bytes (.{}), the descriptor's `{}: {}` has {}",
                        found.bytes,
                        found.ty,
                        expected.name,
                        expected.ty,
                        expected.ty.size()
                    );
                    report(Rule::Params, text);
                }
            }
        }
        let [x, y, z] = kernel.block;
        let mut expected = vec![format!(".reqntid {x}, {y}, {z}")];
        expected.extend(kernel.min_blocks_per_sm.map(|n| format!(".minnctapersm {n}")));
        expected.extend(kernel.max_registers.map(|n| format!(".maxnreg {n}")));
        let (expected, found) = (expected.join(" "), entry.directives.join(" "));
        if expected != found {
            report(Rule::Bounds, format!("launch bounds `{found}`, the descriptor's are `{expected}`"));
        }
    }
    for kernel in kernels.iter().filter(|k| !seen.contains(k.name)) {
        let text = "the descriptor has no entry in the PTX; is the PTX older than the sources?".to_owned();
        findings.push(Finding { line: 0, kernel: Some(kernel.name.to_owned()), rule: Rule::Missing, text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, Param, ParamType};

    static KERNEL: KernelDescriptor = KernelDescriptor {
        name: "k_bf16",
        family: "k",
        specialisation: &[("T", "bf16")],
        params: &[
            Param::buffer("x", ParamType::ConstPtr("bf16"), Access::In, 2),
            Param::scalar("n", ParamType::U32),
        ],
        block: [128, 1, 1],
        min_blocks_per_sm: Some(3),
        ..KernelDescriptor::PLAIN
    };

    const GOOD: &str = "\
.version 7.8
.target sm_80
.address_size 64
.extern .shared .align 1024 .b8 __dyn_smem[];

.visible .entry k_bf16(
	.param .u64 .ptr .align 1 k_bf16_param_0,
	.param .u32 k_bf16_param_1
)
.reqntid 128, 1, 1
.minnctapersm 3
{
	.reg .b32 %r<4>;
	ld.param.b64 %rd1, [k_bf16_param_0];
	ld.global.nc.L1::no_allocate.L2::256B.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];
	ld.relaxed.gpu.global.b32 %r1, [%rd1];
	st.shared::cta.b32 [%r2], %r1;
	atom.acq_rel.gpu.global.add.u32 %r2, [%rd1], %r3;
	redux.sync.add.s32 %r1, %r2, %r3;
	@%p1 bra $L__BB0_2;
$L__BB0_2:
	ret;
}
";

    fn rules(ptx: &str) -> Vec<(usize, Rule)> {
        lint(ptx, &[&KERNEL], &LintOptions::default()).into_iter().map(|f| (f.line, f.rule)).collect()
    }

    /// The rules found when `from` in the clean text becomes `to`.
    fn with(from: &str, to: &str) -> Vec<(usize, Rule)> {
        assert_eq!(GOOD.matches(from).count(), 1, "{from}");
        rules(&GOOD.replace(from, to))
    }

    #[test]
    fn the_clean_text_is_clean() {
        assert_eq!(rules(GOOD), []);
    }

    #[test]
    fn another_version_target_or_address_size_is_found() {
        assert_eq!(with(".version 7.8", ".version 8.0"), [(1, Rule::Header)]);
        assert_eq!(with(".target sm_80", ".target sm_90a"), [(2, Rule::Header)]);
        assert_eq!(with(".address_size 64\n", "\n"), [(0, Rule::Header)]);
    }

    #[test]
    fn local_memory_is_found() {
        let depot = ".local .align 16 .b8 __local_depot0[64];";
        assert_eq!(with(".reg .b32 %r<4>;", depot), [(13, Rule::Local)]);
        assert_eq!(with("redux.sync.add.s32 %r1, %r2, %r3", "ld.local.b32 %r1, [%rd2]"), [(19, Rule::Local)]);
        assert_eq!(
            with("redux.sync.add.s32 %r1, %r2, %r3", "@%p1 st.local.v2.b32 [%rd2], {%r1, %r1}"),
            [(19, Rule::Local)]
        );
        assert_eq!(
            with("redux.sync.add.s32 %r1, %r2, %r3", "mov.b64 %SPL, __local_depot0"),
            [(19, Rule::Local)]
        );
        assert_eq!(with("redux.sync.add.s32 %r1, %r2, %r3", "{ .reg .pred p; isspacep.local p, %rd7; }"), []);
        // A symbol that merely contains the word is not local memory.
        assert_eq!(with("redux.sync.add.s32 %r1, %r2, %r3", "mov.u32 %r1, __shared_local_7_1"), []);
    }

    #[test]
    fn generic_accesses_are_found() {
        for bad in [
            "ld.b32 %r1, [%rd1]",
            "ld.acquire.gpu.b32 %r1, [%rd1]",
            "@%p1 st.v2.b32 [%rd1], {%r1, %r2}",
            "atom.add.u32 %r2, [%rd1], %r3",
            "red.relaxed.gpu.add.f32 [%rd1], %r3",
        ] {
            assert_eq!(with("redux.sync.add.s32 %r1, %r2, %r3", bad), [(19, Rule::Generic)], "{bad}");
        }
    }

    #[test]
    fn leftover_intrinsics_external_functions_and_calls_are_found() {
        let declaration =
            ".extern .func (.param .b32 r) llvm.nvvm.shlf.sync(.param .b32 a);\n\n.visible .entry";
        assert_eq!(with("\n.visible .entry", declaration), [(5, Rule::Extern), (5, Rule::Extern)]);
        let declaration = ".extern .func helper(.param .b32 a);\n\n.visible .entry";
        assert_eq!(with("\n.visible .entry", declaration), [(5, Rule::Extern)]);
        assert_eq!(with("redux.sync.add.s32 %r1, %r2, %r3", "call.uni helper, (p)"), [(19, Rule::Call)]);
        assert_eq!(
            with("redux.sync.add.s32 %r1, %r2, %r3", "{ call (r), helper, (p); }"),
            [(19, Rule::Call)]
        );
    }

    #[test]
    fn markers_that_stayed_are_found() {
        assert_eq!(with("	ret;", "	//@launch_bounds reqntid=1,1,1\n	ret;"), [(22, Rule::Marker)]);
        // Another comment is no marker.
        assert_eq!(with("	ret;", "	// launch bounds\n	ret;"), []);
    }

    #[test]
    fn missing_and_unexpected_entries_are_found() {
        assert_eq!(with(".entry k_bf16(", ".entry k_f16("), [(0, Rule::Missing), (6, Rule::Unexpected)]);
        assert_eq!(rules(&GOOD[..GOOD.find(".visible").expect("there")]), [(0, Rule::Missing)]);
    }

    #[test]
    fn other_parameters_are_found() {
        assert_eq!(with(",\n	.param .u32 k_bf16_param_1", ""), [(6, Rule::Params)]);
        assert_eq!(with(".param .u32 k", ".param .u64 k"), [(6, Rule::Params)]);
        assert_eq!(
            with(".param .u32 k_bf16_param_1", ".param .align 4 .b8 k_bf16_param_1[16]"),
            [(6, Rule::Params)]
        );
        assert_eq!(with(".param .u32 k_bf16_param_1", ".param .align 4 .b8 k_bf16_param_1[4]"), []);
    }

    #[test]
    fn other_launch_bounds_are_found() {
        assert_eq!(with(".reqntid 128, 1, 1", ".reqntid 64, 1, 1"), [(6, Rule::Bounds)]);
        assert_eq!(with(".reqntid 128, 1, 1\n", ""), [(6, Rule::Bounds)]);
        assert_eq!(with(".minnctapersm 3", ".minnctapersm 2"), [(6, Rule::Bounds)]);
        assert_eq!(with(".minnctapersm 3\n", ""), [(6, Rule::Bounds)]);
        assert_eq!(with(".minnctapersm 3", ".minnctapersm 3\n.maxnreg 64"), [(6, Rule::Bounds)]);
    }

    #[test]
    fn a_cut_text_is_found() {
        assert_eq!(rules(GOOD.trim_end().trim_end_matches('}')), [(22, Rule::Incomplete)]);
    }

    #[test]
    fn an_exception_holds_for_its_family_and_rule_only() {
        let text = GOOD.replace("redux.sync.add.s32 %r1, %r2, %r3", "ld.b32 %r1, [%rd1]");
        let found = |family: &str, rule| {
            let options = LintOptions { allowed: vec![(family.to_owned(), rule)], ..LintOptions::default() };
            lint(&text, &[&KERNEL], &options).len()
        };
        assert_eq!(found("k", Rule::Generic), 0);
        assert_eq!(found("k", Rule::Local), 1);
        assert_eq!(found("other", Rule::Generic), 1);
    }

    #[test]
    fn a_finding_reads_with_line_kernel_and_rule() {
        let text = GOOD.replace("redux.sync.add.s32 %r1, %r2, %r3", "ld.b32 %r1, [%rd1]");
        let finding = lint(&text, &[&KERNEL], &LintOptions::default())[0].to_string();
        assert!(
            finding.starts_with("line 19: `k_bf16`: [generic] a generic access: `ld.b32 %r1, [%rd1];`"),
            "{finding}"
        );
    }
}
