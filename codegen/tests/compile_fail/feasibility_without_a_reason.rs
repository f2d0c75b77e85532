use cuda_std::kernel;

#[kernel(block = 128, instances(N in [64, 128]), shape(rows), feasible(rows <= N))]
pub unsafe fn sort<const N: usize>(x: *mut f32) {}

#[kernel(block = 128, instances(N in [64, 128]), shape(rows), prefer(smallest N => "less work"))]
pub unsafe fn sort_again<const N: usize>(x: *mut f32) {}

fn main() {}
