//! Reading nvdisasm's text: the instructions of each kernel, by class, and its main loop.
//!
//! The *main loop* is the largest innermost natural loop: a branch back to a block that dominates it, and
//! everything that reaches the branch without passing that block; innermost means that no other loop's head
//! lies in it; the largest has most instructions, the earlier one at a tie. Padding (`NOP`s and the branch
//! to itself behind the code) is no instruction of the kernel.
//!
//! Trap: a branch to a lower address is not always a loop. The slow halves of divergent shuffles stand
//! behind the kernel's end and branch back into it; only dominance tells them apart.

mod flow;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::error::{Error, Result};
use crate::process;
use crate::setup::CUDA_TOOLS;
use crate::workspace::Workspace;

/// One machine instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// Byte offset in the kernel.
    pub address: u32,
    /// The instruction with its predicate and operands.
    pub text: String,
    /// Opcode with its modifiers, as `LDG.E.128`.
    pub opcode: String,
    /// Whether a predicate may keep it from executing.
    pub predicated: bool,
    /// The instruction that it may branch to, by index.
    pub target: Option<usize>,
    /// File and line, and those of the calls it was inlined into, innermost first. Empty without line
    /// information.
    pub places: Vec<(String, u32)>,
}

/// A kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Its instructions, padding left out.
    pub instructions: Vec<Instruction>,
}

impl Function {
    /// Instructions by class; classes without any are absent.
    pub fn mix(&self) -> BTreeMap<&'static str, u64> {
        mix(self.instructions.iter())
    }

    /// The indices of the main loop's instructions, ascending; empty without a loop.
    pub fn main_loop(&self) -> Vec<usize> {
        flow::main_loop(&self.instructions)
    }

    /// The main loop's instructions by class.
    pub fn loop_mix(&self) -> BTreeMap<&'static str, u64> {
        mix(self.main_loop().iter().map(|&i| &self.instructions[i]))
    }
}

fn mix<'a>(instructions: impl Iterator<Item = &'a Instruction>) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for instruction in instructions {
        *counts.entry(class(&instruction.opcode)).or_default() += 1;
    }
    counts
}

/// The class of an opcode.
pub fn class(opcode: &str) -> &'static str {
    let base = opcode.split('.').next().unwrap_or(opcode);
    match base {
        "HMMA" | "IMMA" | "DMMA" | "BMMA" | "QMMA" | "OMMA" | "HGMMA" | "IGMMA" | "QGMMA" => "tensor",
        "LDG" | "LD" => "global_load",
        "STG" | "ST" => "global_store",
        "ATOM" | "ATOMG" | "ATOMS" | "RED" | "REDG" => "atomic",
        "LDGSTS" => "async_copy",
        "LDSM" | "MOVM" => "ldmatrix",
        "LDS" => "shared_load",
        "STS" | "STSM" => "shared_store",
        "LDL" | "STL" => "local",
        "LDC" | "ULDC" | "LDCU" => "constant",
        "MUFU" => "mufu",
        "SHFL" | "VOTE" | "VOTEU" | "MATCH" | "REDUX" | "CREDUX" => "shuffle",
        "BAR" | "MEMBAR" | "DEPBAR" | "LDGDEPBAR" | "WARPSYNC" | "ENDCOLLECTIVE" | "FENCE" | "ERRBAR"
        | "CCTL" | "CCTLL" | "SYNCS" | "ARRIVES" | "ACQBULK" => "barrier",
        "BRA" | "BRX" | "BRXU" | "JMP" | "JMX" | "CALL" | "RET" | "EXIT" | "BSSY" | "BSYNC" | "BREAK"
        | "BMOV" | "YIELD" | "WARPEXIT" | "KILL" | "BPT" | "NANOSLEEP" | "NOP" => "control",
        "MOV" | "UMOV" | "CS2R" | "CS2UR" | "S2R" | "S2UR" | "R2UR" | "P2R" | "R2P" | "UP2UR" | "SEL"
        | "USEL" | "FSEL" | "PRMT" | "UPRMT" | "PLOP3" | "UPLOP3" => "move",
        "FFMA" | "FADD" | "FMUL" | "FSETP" | "FSET" | "FMNMX" | "FMNMX3" | "FCHK" | "FSWZADD" | "FRND"
        | "FFMA2" | "FADD2" | "FMUL2" | "UFADD" | "UFFMA" | "UFMUL" | "UFSETP" | "UFSEL" | "UFMNMX" => "fp32",
        "F2F" | "F2I" | "I2F" | "F2FP" | "I2FP" | "F2IP" | "I2I" | "I2IP" | "UF2F" | "UF2FP" | "UI2F"
        | "UI2FP" | "UF2I" => "convert",
        _ if base.starts_with("UTC") && base.ends_with("MMA") => "tensor",
        "HADD2" | "HFMA2" | "HMUL2" | "HSETP2" | "HSET2" | "HMNMX2" => "fp16",
        "DADD" | "DFMA" | "DMUL" | "DSETP" | "DMNMX" => "fp64",
        "IADD3" | "IADD" | "IMAD" | "IMUL" | "IDP" | "IDP4A" | "IABS" | "LOP3" | "LOP" | "SHF" | "SHL"
        | "SHR" | "LEA" | "ISETP" | "IMNMX" | "VIMNMX" | "VIMNMX3" | "VIADD" | "VIADDMNMX" | "POPC"
        | "FLO" | "BREV" | "SGXT" | "BMSK" | "VABSDIFF" | "VABSDIFF4" | "UIADD3" | "UIMAD" | "ULOP3"
        | "ULOP" | "USHF" | "ULEA" | "UISETP" | "UFLO" | "UPOPC" | "UBREV" | "USGXT" | "UBMSK"
        | "UVIMNMX" | "UVIADD" | "UVIRTCOUNT" => "int",
        _ => "other",
    }
}

/// Disassembles a cubin; with `lines`, every instruction has its places.
pub fn disassemble(workspace: &Workspace, cubin: &Path, lines: bool) -> Result<Vec<Function>> {
    let mut command = Command::new(tool(workspace)?);
    command.args(["--print-code", "--no-vliw"]);
    if lines {
        command.arg("--print-line-info-inline");
    }
    command.arg(cubin);
    let output = command.output().map_err(|source| process::spawn_error(&command, source))?;
    if !output.status.success() {
        return Err(Error::BadPtx(format!(
            "nvdisasm refuses {}:\n  {}",
            cubin.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// The pinned nvdisasm.
fn tool(workspace: &Workspace) -> Result<std::path::PathBuf> {
    if CUDA_TOOLS.installed(workspace) {
        return Ok(CUDA_TOOLS.place(workspace).join("bin/nvdisasm"));
    }
    Err(Error::Missing {
        what: "nvdisasm is not installed".into(),
        remedy: "`cargo xtask setup --for build-ptx`".into(),
    })
}

/// Reads what `nvdisasm --print-code --no-vliw` prints: every `.text.KERNEL` section.
pub fn parse(text: &str) -> Vec<Function> {
    let mut functions: Vec<Builder> = Vec::new();
    let mut places: Vec<(String, u32)> = Vec::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(rest) = trimmed.strip_prefix(".section") {
            let name = rest.trim().split([',', '"', '\t', ' ']).next().unwrap_or("");
            if let Some(kernel) = name.strip_prefix(".text.") {
                functions.push(Builder::new(kernel));
                places.clear();
            }
            continue;
        }
        let Some(function) = functions.last_mut() else { continue };
        if let Some(note) = trimmed.strip_prefix("//## ") {
            // A note of its own begins anew; `inlined at` goes on with the last one.
            match place(note) {
                Some((found, true)) if !function.noted => {
                    places.clear();
                    places.extend(found);
                    function.noted = true;
                }
                Some((found, _)) => places.extend(found),
                None => {}
            }
        } else if let Some(label) = trimmed.strip_suffix(':') {
            function.labels.insert(label.trim_matches('\'').to_owned(), function.instructions.len());
        } else if let Some((address, text)) = instruction(trimmed) {
            function.push(address, text, &places);
            function.noted = false;
        }
    }
    functions.into_iter().map(Builder::finish).collect()
}

/// `File "/a/b.rs", line 12 inlined at "/c.rs", line 3`: the places, and whether a `File` opens the note.
fn place(note: &str) -> Option<(Vec<(String, u32)>, bool)> {
    let mut found = Vec::new();
    let mut rest = note;
    while let Some((_, after)) = rest.split_once('"') {
        let (file, after) = after.split_once('"')?;
        let after = after.trim_start_matches(',').trim_start();
        let digits = after.strip_prefix("line ")?;
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        found.push((file.to_owned(), digits[..end].parse().ok()?));
        rest = &digits[end..];
    }
    (!found.is_empty()).then_some((found, note.starts_with("File")))
}

/// `/*0040*/ @P0 EXIT ;` as its address and text.
fn instruction(line: &str) -> Option<(u32, &str)> {
    let (address, rest) = line.strip_prefix("/*")?.split_once("*/")?;
    let address = u32::from_str_radix(address, 16).ok()?;
    let text = rest.split(" ;").next().unwrap_or(rest).trim();
    (!text.is_empty()).then_some((address, text))
}

struct Builder {
    name: String,
    instructions: Vec<(Instruction, Option<String>)>,
    labels: BTreeMap<String, usize>,
    /// The line notes before the next instruction have begun.
    noted: bool,
}

impl Builder {
    fn new(name: &str) -> Builder {
        Builder { name: name.to_owned(), instructions: Vec::new(), labels: BTreeMap::new(), noted: false }
    }

    fn push(&mut self, address: u32, text: &str, places: &[(String, u32)]) {
        let mut words = text.split_whitespace();
        let first = words.next().unwrap_or("");
        let predicated = first.starts_with('@') && first != "@PT" && first != "@UPT";
        let opcode = if first.starts_with('@') { words.next().unwrap_or("") } else { first };
        let opcode = opcode.trim_end_matches(';').to_owned();
        // A call comes back; the slow half of a collective is reached through its own branch.
        let branches = matches!(opcode.split('.').next(), Some("BRA" | "BRX" | "JMP"));
        let label = branches.then(|| text.split_once("`(")?.1.split_once(')')).flatten();
        let label = label.map(|(label, _)| label.to_owned());
        let instruction = Instruction {
            address,
            text: text.to_owned(),
            opcode,
            predicated,
            target: None,
            places: places.to_vec(),
        };
        self.instructions.push((instruction, label));
    }

    /// Resolves the branches and takes the padding away.
    fn finish(self) -> Function {
        let labels = self.labels;
        let mut instructions: Vec<Instruction> = self
            .instructions
            .into_iter()
            .map(|(mut instruction, label)| {
                instruction.target = label.and_then(|label| labels.get(&label).copied());
                instruction
            })
            .collect();
        while let Some(last) = instructions.last() {
            let to_itself = last.target == Some(instructions.len() - 1);
            if last.opcode != "NOP" && !to_itself {
                break;
            }
            instructions.pop();
        }
        let count = instructions.len();
        for instruction in &mut instructions {
            instruction.target = instruction.target.filter(|&target| target < count);
        }
        Function { name: self.name, instructions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
//--------------------- .text.copy              --------------------------
	.section	.text.copy,"ax",@progbits
	.align	128
        .global         copy
copy:
.text.copy:
	//## File "/a/copy.rs", line 7 inlined at "/a/lib.rs", line 3
	//## File "/a/lib.rs", line 3
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   ISETP.LE.U32.AND P0, PT, R0, UR4, PT ;
        /*0020*/               @P0 EXIT ;
.L_x_2:
	//## File "/a/copy.rs", line 9
        /*0030*/                   LDG.E.128 R4, desc[UR6][R2.64] ;
        /*0040*/                   BRA.DIV UR4, `(.L_x_3) ;
.L_x_4:
        /*0050*/                   STG.E.128 desc[UR6][R8.64], R4 ;
        /*0060*/              @!P1 BRA `(.L_x_2) ;
        /*0070*/                   EXIT ;
.L_x_3:
        /*0080*/                   SHFL.IDX PT, R3, R4, RZ, 0x1f ;
        /*0090*/                   BRA `(.L_x_4) ;
.L_x_5:
        /*00a0*/                   BRA `(.L_x_5);
        /*00b0*/                   NOP;
	.section	.nv.info,"",@"SHT_CUDA_INFO"
"#;

    #[test]
    fn instructions_labels_and_places_are_read_and_padding_is_not() {
        let functions = parse(TEXT);
        assert_eq!(functions.len(), 1);
        let copy = &functions[0];
        assert_eq!((copy.name.as_str(), copy.instructions.len()), ("copy", 10));
        let exit = &copy.instructions[2];
        assert_eq!((exit.opcode.as_str(), exit.predicated, exit.target), ("EXIT", true, None));
        assert_eq!(copy.instructions[6].target, Some(3));
        assert_eq!(copy.instructions[4].target, Some(8));
        assert_eq!(copy.instructions[0].places[0], ("/a/copy.rs".to_owned(), 7));
        assert_eq!(copy.instructions[0].places[1], ("/a/lib.rs".to_owned(), 3));
        assert_eq!(copy.instructions[9].places, [("/a/copy.rs".to_owned(), 9)]);
    }

    #[test]
    fn the_mix_counts_every_instruction_once() {
        let copy = &parse(TEXT)[0];
        let mix = copy.mix();
        assert_eq!(mix.values().sum::<u64>(), 10);
        assert_eq!((mix["global_load"], mix["global_store"], mix["control"]), (1, 1, 5));
        assert_eq!(copy.loop_mix()["global_load"], 1);
    }

    #[test]
    fn the_opcodes_of_the_shipped_kernels_have_a_class() {
        for opcode in ["FFMA.FTZ", "LDGSTS.E.BYPASS.128", "HMMA.16816.F32.BF16", "IMAD.WIDE.U32", "ULDC.64"] {
            assert_ne!(class(opcode), "other", "{opcode}");
        }
        assert_eq!(class("FROBNICATE.X"), "other");
    }
}
