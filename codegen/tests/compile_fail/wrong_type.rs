use cuda_std::kernel;
use half::bf16;
use psa_codegen::{In, InOut, Out};

#[kernel(block = 128, instances(T in [bf16], D in [64, 128]), out(out))]
pub unsafe fn scale<T: Copy, const D: usize>(x: *const T, out: *mut f32, state: *mut u32, n: u32) {}

fn wrong(x: In<bf16>, out: Out<f32>, state: InOut<u32>, other: In<f32>) {
    // An element type that the instance has not, twice; a signed scalar.
    let _ = scale::launch::<bf16>(64, [1, 1, 1], scale::Args { x: other, out, state, n: 1 });
    let _ = scale::Instance::<bf16, 64>::launch([1, 1, 1], scale::Args { x: other, out, state, n: 1 });
    let _ = scale::launch::<bf16>(64, [1, 1, 1], scale::Args { x, out, state, n: 1i32 });
}

fn main() {}
