use cuda_std::kernel;

#[kernel(threads = 128)]
pub unsafe fn a(x: *mut f32) {}

#[kernel(dynamic_shared = 1024)]
pub unsafe fn b(x: *mut f32) {}

fn main() {}
