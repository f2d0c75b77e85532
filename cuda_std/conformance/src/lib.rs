//! Kernels that exercise every helper of `cuda_std`, to be run where their PTX can be.
//!
//! One file a part of the library; a kernel reads inputs, calls helpers and writes what they gave, word by
//! word, for a test to compare with values computed independently. `ptx/conformance.ptx` is this crate's
//! device build (`cargo xtask build-ptx`); the tests in `tests/` run it on the emulator, so they need no device
//! compiler.

#![cfg_attr(target_arch = "nvptx64", no_std, feature(abi_ptx, asm_experimental_arch))]
#![cfg_attr(not(target_arch = "nvptx64"), allow(dead_code, unused_imports))]

pub mod arithmetic;
pub mod atomics;
pub mod block;
pub mod convergence;
pub mod matrix;
pub mod memory;
pub mod warp;

/// The PTX of this crate.
#[cfg(not(target_arch = "nvptx64"))]
pub const PTX: &str = include_str!("../ptx/conformance.ptx");

/// Every kernel of this crate.
#[cfg(not(target_arch = "nvptx64"))]
pub fn kernels() -> Vec<&'static psa_codegen::KernelDescriptor> {
    let families: [&'static [psa_codegen::KernelDescriptor]; 23] = [
        &arithmetic::approximations::INSTANCES,
        &arithmetic::dots::INSTANCES,
        &arithmetic::from_halves::INSTANCES,
        &arithmetic::to_halves::INSTANCES,
        &arithmetic::rounding::INSTANCES,
        &atomics::counters::INSTANCES,
        &atomics::floats::INSTANCES,
        &atomics::shared_atomics::INSTANCES,
        &block::barriers::INSTANCES,
        &block::clocks::INSTANCES,
        &block::positions::INSTANCES,
        &convergence::used_by_one_lane::INSTANCES,
        &convergence::between_branches::INSTANCES,
        &matrix::fragments::INSTANCES,
        &matrix::multiply::INSTANCES,
        &memory::address_spaces::INSTANCES,
        &memory::copies::INSTANCES,
        &memory::shared_types::INSTANCES,
        &warp::matches::INSTANCES,
        &warp::reductions::INSTANCES,
        &warp::shuffles::INSTANCES,
        &warp::shuffle_types::INSTANCES,
        &warp::votes::INSTANCES,
    ];
    families.into_iter().flatten().collect()
}

/// What the lint may find here and nowhere else: the generic accesses of rust-cuda's pointer API.
#[cfg(not(target_arch = "nvptx64"))]
pub fn lint_options() -> psa_codegen::LintOptions {
    let allowed = ["address_spaces", "floats"].map(|family| (family.to_owned(), psa_codegen::Rule::Generic));
    psa_codegen::LintOptions { allowed: allowed.to_vec(), ..psa_codegen::LintOptions::default() }
}
