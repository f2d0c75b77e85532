use cuda_std::kernel;

#[kernel(block = 128)]
pub unsafe fn scale<T: Copy, const D: usize>(x: *mut T) {}

fn main() {}
