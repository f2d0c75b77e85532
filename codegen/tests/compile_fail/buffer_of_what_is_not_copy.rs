use cuda_std::kernel;

pub struct Handle(pub Box<u32>);

#[kernel(block = 128)]
pub unsafe fn read(x: *const Handle, out: *mut u32) {}

fn main() {}
