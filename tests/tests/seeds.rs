//! The schedule leaves every byte unchanged: a part of `cargo xtask seeds`, and what it would catch.

use psa_tests::scenes::{self, Extent};
use psa_tests::seeds::compare;
use ptx_emulator::Module;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn every_kernel_leaves_the_same_bytes_under_every_seed() {
    let module = Module::parse(kernels_gpu::PTX).unwrap();
    let scenes = scenes::record(&module, Extent::Representative).unwrap();
    for stage in [
        "append_",
        "append_box",
        "score_",
        "score_nested",
        "refine_",
        "score_box",
        "plan_",
        "plan_identity",
        "attend_",
        "merge_",
    ] {
        assert!(scenes.iter().any(|s| s.kernel().starts_with(stage)), "{stage}");
    }
    let seeds = if std::env::var_os("PSA_QUICK").is_some() { 10 } else { 30 };
    let found = compare(&module, &scenes, seeds, threads(), &|_| {}, &|_| {});
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_kernel_without_its_barriers_is_seen() {
    // The twin.
    let text = kernels_gpu::PTX.replace("bar.sync 0;", "");
    let (module, damaged) = (Module::parse(kernels_gpu::PTX).unwrap(), Module::parse(&text).unwrap());
    let mut scenes = scenes::record(&module, Extent::Representative).unwrap();
    scenes.retain(|s| s.kernel() == "plan_n512");
    let found = compare(&damaged, &scenes, 3, threads(), &|_| {}, &|_| {});
    assert!(!found.is_empty() && found.iter().all(|d| d.kernel == "plan_n512"), "{found:?}");
}
