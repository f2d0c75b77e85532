use cuda_std::kernel;

#[kernel(block = 128)]
pub unsafe fn scale(x: &mut [f32], by: f32) {}

fn main() {}
