use cuda_std::kernel;
use half::bf16;
use psa_codegen::{In, InOut, Out};

#[kernel(block = 128, instances(T in [bf16], D in [64, 128]), out(out))]
pub unsafe fn scale<T: Copy, const D: usize>(x: *const T, out: *mut f32, state: *mut u32, n: u32) {}

fn wrong(x: In<bf16>, read_only: In<f32>, state: InOut<u32>, out: Out<f32>, written: Out<u32>) {
    let _ = scale::launch::<bf16>(64, [1, 1, 1], scale::Args { x, out: read_only, state, n: 1 });
    let _ = scale::launch::<bf16>(64, [1, 1, 1], scale::Args { x, out, state: written, n: 1 });
}

fn main() {}
