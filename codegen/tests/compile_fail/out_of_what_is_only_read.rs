use cuda_std::kernel;

#[kernel(block = 128, out(x), align(n = 16), may_overlap(x))]
pub unsafe fn copy(x: *const f32, out: *mut f32, n: u32) {}

#[kernel(block = 128, align(x = 2))]
pub unsafe fn too_little(x: *const f32) {}

fn main() {}
