//! The PTX module of the ledger: one kernel an instruction, one thread (or, for mma, one warp) an input.
//!
//! `entry(input, output, count)`: input `[count, words_in]` u32, output `[count, words_out]` u32; 128 threads.

use psa_codegen::{Access, Arguments, ContractError, In, KernelDescriptor, Launch, Out, Param, ParamType};

use super::entries::{Entry, Shape};

const THREADS: u32 = 128;

static PARAMS: [Param; 3] = [
    Param::buffer("input", ParamType::ConstPtr("u32"), Access::In, 4),
    Param::buffer("output", ParamType::MutPtr("u32"), Access::Out, 4),
    Param::scalar("count", ParamType::U32),
];

/// The module.
pub fn ptx(entries: &[Entry]) -> String {
    let mut text =
        String::from("// instruction ledger, generated\n.version 7.8\n.target sm_80\n.address_size 64\n");
    for entry in entries {
        text.push_str(&kernel(entry));
    }
    text
}

fn kernel(entry: &Entry) -> String {
    let name = entry.kernel();
    let head = format!(
        "\n.visible .entry {name}(.param .u64 {name}_param_0, .param .u64 {name}_param_1, .param .u32 {name}_param_2)\n\
         .reqntid {THREADS}, 1, 1\n{{\n\
         \t.reg .pred %p<2>;\n\t.reg .b16 %h<4>;\n\t.reg .b32 %r<40>;\n\t.reg .b64 %rd<12>;\n\
         \tld.param.u64 %rd1, [{name}_param_0];\n\tld.param.u64 %rd2, [{name}_param_1];\n\
         \tld.param.u32 %r1, [{name}_param_2];\n\
         \tcvta.to.global.u64 %rd1, %rd1;\n\tcvta.to.global.u64 %rd2, %rd2;\n\
         \tmov.u32 %r2, %ctaid.x;\n\tmov.u32 %r3, %tid.x;\n\tmad.lo.s32 %r4, %r2, {THREADS}, %r3;\n"
    );
    let body = match entry.shape {
        Shape::Elementwise(code) => elementwise(entry, code),
        Shape::Mma(ty) => mma(ty),
    };
    head + &body + "\tret;\n}\n"
}

/// Inputs in %r10 .., with pairs of them in %rd5 .. where the code asks; the result in %r20 (and %r21), or %rd6.
fn elementwise(entry: &Entry, code: &str) -> String {
    let mut text = format!(
        "\tsetp.ge.u32 %p1, %r4, %r1;\n\t@%p1 ret;\n\
         \tmul.wide.u32 %rd3, %r4, {};\n\tadd.s64 %rd3, %rd1, %rd3;\n\
         \tmul.wide.u32 %rd4, %r4, {};\n\tadd.s64 %rd4, %rd2, %rd4;\n",
        4 * entry.words_in,
        4 * entry.words_out
    );
    for word in 0..entry.words_in {
        text.push_str(&format!("\tld.global.u32 %r{}, [%rd3+{}];\n", 10 + word, 4 * word));
    }
    text.push_str(code);
    for word in 0..entry.words_out {
        text.push_str(&format!("\tst.global.u32 [%rd4+{}], %r{};\n", 4 * word, 20 + word));
    }
    text
}

/// Words of an mma's input: a `[16, 16]` and b `[16, 8]` in 2-byte elements, c `[16, 8]` f32, as fragments: what
/// each lane holds lies together, `[32 lanes, 10]`.
pub const MMA_LANE_WORDS: usize = 4 + 2 + 4;

fn mma(ty: &str) -> String {
    // An input is a warp: lane l of warp w reads words (w * 32 + l) * 10. The count is a multiple of 4 warps.
    let mut text = format!(
        "\tshl.b32 %r1, %r1, 5;\n\tsetp.ge.u32 %p1, %r4, %r1;\n\t@%p1 ret;\n\
         \tmul.wide.u32 %rd3, %r4, {};\n\tadd.s64 %rd3, %rd1, %rd3;\n\
         \tmul.wide.u32 %rd4, %r4, 16;\n\tadd.s64 %rd4, %rd2, %rd4;\n",
        4 * MMA_LANE_WORDS
    );
    for word in 0..MMA_LANE_WORDS {
        text.push_str(&format!("\tld.global.u32 %r{}, [%rd3+{}];\n", 10 + word, 4 * word));
    }
    text.push_str(&format!(
        "\tmma.sync.aligned.m16n8k16.row.col.f32.{ty}.{ty}.f32 {{%r30, %r31, %r32, %r33}}, \
         {{%r10, %r11, %r12, %r13}}, {{%r14, %r15}}, {{%r16, %r17, %r18, %r19}};\n"
    ));
    for word in 0..4 {
        text.push_str(&format!("\tst.global.u32 [%rd4+{}], %r{};\n", 4 * word, 30 + word));
    }
    text
}

/// The launch of an entry over `count` inputs.
pub fn launch(entry: &Entry, input: In<u32>, output: Out<u32>, count: u32) -> Result<Launch, ContractError> {
    let threads = match entry.shape {
        Shape::Elementwise(_) => count,
        Shape::Mma(_) => 32 * count,
    };
    // A descriptor lives as long as the program; there are two dozen, a few dozen bytes each.
    let kernel = Box::leak(Box::new(KernelDescriptor {
        name: Box::leak(entry.kernel().into_boxed_str()),
        family: "ledger",
        params: &PARAMS,
        block: [THREADS, 1, 1],
        ..KernelDescriptor::PLAIN
    }));
    let args = Arguments::with_capacity(3).with(input).with(output).with(count);
    Launch::new(kernel, [threads.div_ceil(THREADS), 1, 1], args)
}
