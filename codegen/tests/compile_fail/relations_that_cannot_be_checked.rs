use cuda_std::kernel;

#[kernel(block = 128, requires(x >= n))]
pub unsafe fn buffer_as_number(x: *const f32, n: u32) {}

#[kernel(block = 128, requires(scale > 0))]
pub unsafe fn float(x: *const f32, scale: f32) {}

#[kernel(block = 128, requires(x.len() >= n && n > 0))]
pub unsafe fn two_at_once(x: *const f32, n: u32) {}

#[kernel(block = 128, requires(x.len() >= n.pow(2)))]
pub unsafe fn not_computed(x: *const f32, n: u32) {}

#[kernel(block = 128, requires(x.len() >= rows * 4))]
pub unsafe fn no_such_name(x: *const f32, n: u32) {}

#[kernel(block = 128, requires(x.len() >= n * 4))]
pub unsafe fn fine(x: *const f32, n: u32) {}

fn main() {}
