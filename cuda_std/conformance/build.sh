#!/usr/bin/env bash
# Builds ptx/conformance.ptx from the sources of this crate and of cuda_std. Needs a device compiler:
# a nightly with rust-src (the default), or RUSTC=/usr/bin/rustc with rustc-web and rust-web-src of Debian.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
flags="-Ctarget-cpu=sm_80 -Ctarget-feature=+ptx78 -Zmir-enable-passes=-JumpThreading"
RUSTC_BOOTSTRAP=1 CARGO_TARGET_NVPTX64_NVIDIA_CUDA_RUSTFLAGS="$flags" \
    cargo rustc -p psa-cuda-std-conformance --lib --crate-type cdylib --profile device -Zbuild-std=core \
    --target nvptx64-nvidia-cuda -- --emit=asm -Clinker=/bin/true
raw=$target/nvptx64-nvidia-cuda/device/deps/psa_cuda_std_conformance.s
env -u RUSTC cargo run --quiet -p psa-cuda-std-conformance --bin conformance-finish <"$raw" >ptx/conformance.partial
mv ptx/conformance.partial ptx/conformance.ptx
