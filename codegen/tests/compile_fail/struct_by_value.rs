use cuda_std::kernel;

#[derive(Clone, Copy)]
pub struct Shape {
    pub rows: u32,
    pub columns: u32,
}

#[kernel(block = 128)]
pub unsafe fn transpose(x: *const f32, out: *mut f32, shape: Shape) {}

fn main() {}
