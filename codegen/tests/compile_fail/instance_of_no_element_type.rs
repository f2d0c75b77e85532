use cuda_std::kernel;

#[kernel(block = 128, instances(T in [bool]))]
pub unsafe fn flip<T: Copy>(x: *mut T) {}

fn main() {}
