use cuda_std::kernel;

#[kernel(block = 128)]
pub fn safe(x: *const f32) {}

#[kernel(block = 128)]
pub async unsafe fn asynchronous(x: *const f32) {}

#[kernel(block = 128)]
pub unsafe extern "C" fn external(x: *const f32) {}

#[kernel(block = 128)]
pub unsafe fn lifetime<'a>(x: *const f32) {}

fn main() {}
