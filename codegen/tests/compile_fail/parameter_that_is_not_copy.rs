use cuda_std::kernel;

#[kernel(block = 128)]
pub unsafe fn sum(x: Vec<f32>, out: *mut f32) {}

fn main() {}
