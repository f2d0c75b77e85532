//! The committed PTX is what this crate's descriptors say, and holds the instructions the documentation names.

use psa_cuda_std_conformance::{PTX, kernels, lint_options};

#[test]
fn the_ptx_has_these_kernels_and_nothing_the_lint_forbids() {
    let findings = psa_codegen::lint(PTX, &kernels(), &lint_options());
    let text: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    assert!(findings.is_empty(), "{text}run `cargo xtask build-ptx`");
    assert!(kernels().len() >= 28);
}

/// The part of the PTX that is this entry.
fn entry(name: &str) -> &'static str {
    let start = PTX.find(&format!(".entry {name}(")).expect(name);
    let rest = &PTX[start..];
    &rest[..rest.find("\n}").expect("an end")]
}

#[test]
fn helpers_become_the_instructions_their_documentation_names() {
    for (kernel, instructions) in [
        (
            "shuffles_w8",
            &["shfl.sync.down.b32", "shfl.sync.up.b32", "shfl.sync.idx.b32", "shfl.sync.bfly.b32"][..],
        ),
        ("votes", &["vote.sync.all.pred", "vote.sync.any.pred", "vote.sync.ballot.b32", "bar.warp.sync"]),
        ("matches", &["match.any.sync.b32", "match.any.sync.b64"]),
        (
            "reductions",
            &[
                "redux.sync.add.s32",
                "redux.sync.min.u32",
                "redux.sync.max.u32",
                "redux.sync.min.s32",
                "redux.sync.max.s32",
                "redux.sync.and.b32",
                "redux.sync.or.b32",
                "redux.sync.xor.b32",
            ],
        ),
        (
            "barriers",
            &["bar.red.popc.u32", "bar.red.and.pred", "bar.red.or.pred", "bar.arrive", "bar.sync 1"],
        ),
        (
            "counters",
            &[
                "atom.relaxed.cta.global.add.u32",
                "atom.acquire.gpu.global.add.u32",
                "atom.release.sys.global.add.u32",
                "atom.acq_rel.gpu.global.add.u32",
                "fence.sc.gpu",
                "atom.acq_rel.gpu.global.inc.u32",
                "atom.acq_rel.gpu.global.cas.b64",
                "ld.acquire.gpu.global.b32",
                "st.release.gpu.global.b32",
            ],
        ),
        ("floats", &["atom.acq_rel.gpu.add.f32", "atom.relaxed.cta.add.f32", "atom.acquire.sys.add.f32"]),
        (
            "copies",
            &[
                "cp.async.cg.shared.global.L2::128B",
                "cp.async.commit_group",
                "cp.async.wait_group 1",
                "cp.async.wait_all",
                "ld.global.nc.L1::no_allocate.L2::256B.v4.b32",
                "st.global.v4.b32",
                "prefetch.global.L2",
            ],
        ),
        ("to_halves", &["cvt.rn.bf16.f32", "cvt.rn.f16.f32", "cvt.rn.bf16x2.f32", "cvt.rn.f16x2.f32"]),
        ("dots", &["dp2a.lo.s32.u32", "dp2a.hi.u32.u32", "dp4a.s32.s32", "prmt.b32"]),
        (
            "approximations",
            &[
                "ex2.approx.ftz.f32",
                "lg2.approx.ftz.f32",
                "rcp.approx.ftz.f32",
                "rsqrt.approx.ftz.f32",
                "fma.rn.f32",
            ],
        ),
        (
            "fragments",
            &[
                "ldmatrix.sync.aligned.m8n8.x1.shared.b16",
                "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16",
                "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
                "movmatrix.sync.aligned.m8n8.trans.b16",
            ],
        ),
        ("multiply_bf16", &["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"]),
        ("multiply_f16", &["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"]),
    ] {
        for instruction in instructions {
            assert!(entry(kernel).contains(instruction), "{kernel} has no {instruction}");
        }
    }
}
