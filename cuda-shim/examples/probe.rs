//! Says what the driver library is and how a few calls of cust end. The shim's tests run it as a program.
//!
//! `cargo run -p psa-cuda-shim --example probe`

use cust::CudaFlags;
use cust::device::Device;

fn main() {
    println!("status: {}", psa_cuda_shim::status());
    println!("init: {}", outcome(cust::init(CudaFlags::empty())));
    println!("count: {}", outcome(Device::num_devices()));
    let mut pool = std::ptr::null_mut();
    // SAFETY: `pool` is writable.
    let code = unsafe { cust::sys::cuDeviceGetDefaultMemPool(&mut pool, 0) };
    println!("pool: {}", code as u32);
    println!("failure: {:?}", psa_cuda_shim::last_failure());
}

fn outcome<T: std::fmt::Debug>(result: Result<T, cust::error::CudaError>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => {
            let own = psa_cuda_shim::last_failure().map_or(0, |failure| failure.code);
            format!(
                "{error:?}: {error}; {} {:?}",
                psa_cuda_shim::error_name(own),
                psa_cuda_shim::error_text(own)
            )
        }
    }
}
