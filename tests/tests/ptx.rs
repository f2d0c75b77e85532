//! The committed PTX: lint clean, and exactly the kernels that the descriptors promise.

use std::collections::BTreeSet;

#[test]
fn the_committed_ptx_is_lint_clean_and_matches_the_descriptors() {
    let kernels = kernels_gpu::kernels();
    let findings = psa_codegen::lint(kernels_gpu::PTX, &kernels, &psa_codegen::LintOptions::default());
    assert!(findings.is_empty(), "{findings:#?}");
}

#[test]
fn a_missing_barrier_bound_or_parameter_is_found_by_the_lint() {
    // The twin: the same text, damaged, is not clean.
    let kernels = kernels_gpu::kernels();
    for (from, to) in [
        (".reqntid 128, 1, 1", ".reqntid 64, 1, 1"),
        ("\tld.global.b32", "\tld.b32"),
        (".visible .entry gather(", ".visible .entry scatter("),
    ] {
        let damaged = kernels_gpu::PTX.replacen(from, to, 1);
        assert_ne!(damaged, kernels_gpu::PTX, "{from} occurs");
        let findings = psa_codegen::lint(&damaged, &kernels, &psa_codegen::LintOptions::default());
        assert!(!findings.is_empty(), "{from} -> {to} passes the lint");
    }
}

#[test]
fn every_kernel_has_a_name_of_its_own_and_fits_a_hundred_kilobytes() {
    let kernels = kernels_gpu::kernels();
    let names: BTreeSet<_> = kernels.iter().map(|k| k.name).collect();
    assert_eq!(names.len(), kernels.len());
    // sm_86, sm_89 and sm_120 allow 99 KiB of shared memory a block.
    for k in kernels {
        assert!(k.shared_bytes <= 99 * 1024, "{}: {} bytes", k.name, k.shared_bytes);
    }
}

#[test]
fn the_emulator_takes_every_kernel() {
    let module = ptx_emulator::Module::parse(kernels_gpu::PTX).unwrap();
    let names: BTreeSet<String> = module.kernels().iter().map(|k| k.name.to_string()).collect();
    let promised: BTreeSet<String> = kernels_gpu::kernels().iter().map(|k| k.name.to_string()).collect();
    assert_eq!(names, promised);
}
