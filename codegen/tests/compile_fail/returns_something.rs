use cuda_std::kernel;

#[kernel(block = 128)]
pub unsafe fn sum(x: *const f32, n: u32) -> f32 {
    0.0
}

fn main() {}
