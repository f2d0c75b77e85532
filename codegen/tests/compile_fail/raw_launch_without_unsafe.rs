use psa_codegen::{In, KernelDescriptor, Launch, RawLaunch, Region};

fn wrong(kernel: &'static KernelDescriptor) {
    let _ = Launch::from_raw(RawLaunch::new(kernel, [1, 1, 1], Vec::new()));
    let _ = Region::new(0x1000, 64);
    let _ = In::<f32>::from_raw(0x1000, 16);
}

fn main() {}
