use cuda_std::kernel;
use half::bf16;
use psa_codegen::In;

#[kernel(block = 128, instances(T in [bf16], D in [64, 128]), out(out))]
pub unsafe fn scale<T: Copy, const D: usize>(x: *const T, out: *mut f32, state: *mut u32, n: u32) {}

#[kernel(block = 128)]
pub unsafe fn other(x: *const bf16, n: u32) {}

fn wrong(x: In<bf16>, choice: psa_codegen::Choice<scale::Kernel<bf16>>) {
    let _ = choice.launch([1, 1, 1], other::Args { x, n: 1 });
}

fn main() {}
