//! The library as its callers see it: handles, codes, and what a real driver would refuse too.

use std::ffi::{CString, c_void};
use std::ptr::null_mut;

use emulated_cuda::Code;
use emulated_cuda::api::*;

const PTX: &str = "
.version 7.8
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
.visible .entry fill(.param .u64 out, .param .u32 value)
.reqntid 32, 1, 1
{
    .reg .b32 %r<3>; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [out];
    ld.param.u32 %r1, [value];
    mov.u32 %r2, %tid.x;
    mul.wide.u32 %rd2, %r2, 4;
    add.s64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r1;
    ret;
}";

/// A context on this thread and the module in it.
fn module() -> usize {
    let (mut context, mut module) = (0, 0);
    let ptx = CString::new(PTX).unwrap();
    // SAFETY: valid pointers.
    unsafe {
        assert_eq!(cuInit(0), 0);
        assert_eq!(cuDevicePrimaryCtxRetain(&mut context, 0), 0);
        assert_eq!(cuCtxSetCurrent(context), 0);
        assert_eq!(cuModuleLoadData(&mut module, ptx.as_ptr().cast()), 0);
    }
    module
}

fn function(module: usize) -> usize {
    let mut function = 0;
    // SAFETY: valid pointers.
    assert_eq!(unsafe { cuModuleGetFunction(&mut function, module, c"fill".as_ptr()) }, 0);
    function
}

/// A key of the packed form, which is a number in a pointer's place.
fn key(number: usize) -> *mut c_void {
    std::ptr::without_provenance_mut(number)
}

fn launch(function: usize, block: u32, shared: u32, out: u64) -> u32 {
    let mut values = (out, 7u32);
    let mut params = [(&raw mut values.0).cast::<c_void>(), (&raw mut values.1).cast()];
    // SAFETY: a pointer for each of the two parameters.
    unsafe { cuLaunchKernel(function, 1, 1, 1, block, 1, 1, shared, 0, params.as_mut_ptr(), null_mut()) }
}

#[test]
fn a_kernel_runs_and_its_results_come_back() {
    let function = function(module());
    let (mut out, mut data) = (0, [0u32; 32]);
    // SAFETY: valid pointers, 128 bytes each.
    unsafe {
        assert_eq!(cuMemAlloc_v2(&mut out, 128), 0);
        assert_eq!(launch(function, 32, 0, out), 0);
        assert_eq!(cuMemcpyDtoH_v2(data.as_mut_ptr().cast(), out, 128), 0);
        assert_eq!(data, [7; 32]);
        assert_eq!(cuMemsetD32_v2(out, 9, 32), 0);
        // The packed form of the parameters.
        let mut block = [0u8; 12];
        block[..8].copy_from_slice(&out.to_le_bytes());
        block[8] = 3;
        let mut size = block.len();
        let mut extra = [key(1), block.as_mut_ptr().cast(), key(2), (&raw mut size).cast(), null_mut()];
        assert_eq!(cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, 0, null_mut(), extra.as_mut_ptr()), 0);
        assert_eq!(cuMemcpyDtoH_v2(data.as_mut_ptr().cast(), out, 128), 0);
        assert_eq!(data, [3; 32]);
        assert_eq!(cuMemFree_v2(out), 0);
        assert_eq!(cuMemFree_v2(out), Code::INVALID_VALUE.0, "freed twice");
    }
}

#[test]
fn a_refused_launch_leaves_the_context_alive() {
    let function = function(module());
    let mut out = 0;
    // SAFETY: valid pointers.
    assert_eq!(unsafe { cuMemAlloc_v2(&mut out, 128) }, 0);
    assert_eq!(launch(function, 64, 0, out), Code::INVALID_VALUE.0, "another block than .reqntid");
    assert_eq!(launch(function, 32, 60_000, out), Code::INVALID_VALUE.0, "48 KiB without the attribute");
    assert_eq!(launch(1, 32, 0, out), Code::INVALID_HANDLE.0);
    // SAFETY: numbers.
    unsafe {
        assert_eq!(cuFuncSetAttribute(function, 8, 200_000), Code::INVALID_VALUE.0, "more than sm_80 has");
        assert_eq!(cuFuncSetAttribute(function, 8, 60_000), 0);
    }
    assert_eq!(launch(function, 32, 60_000, out), 0);
}

#[test]
fn what_is_no_ptx_is_refused_by_its_kind() {
    module();
    let mut handle = 0;
    // SAFETY: valid pointers, images that end with a NUL.
    unsafe {
        assert_eq!(
            cuModuleLoadData(&mut handle, c"\x7fELF and more".as_ptr().cast()),
            Code::NO_BINARY_FOR_GPU.0
        );
        assert_eq!(cuModuleLoadData(&mut handle, c"int main() {}".as_ptr().cast()), Code::INVALID_PTX.0);
        assert_eq!(cuModuleLoadData(&mut handle, std::ptr::null()), Code::INVALID_VALUE.0);
        assert_eq!(cuModuleGetFunction(&mut handle, module(), c"empty".as_ptr()), Code::NOT_FOUND.0);
        assert_eq!(cuDeviceGet(&mut 0, 1), Code::INVALID_DEVICE.0);
        let (mut version, mut found) = (0, null_mut());
        assert_eq!(cuGetProcAddress_v2(c"cuMemAlloc".as_ptr(), &mut found, 12000, 0, &mut version), 0);
        assert_eq!((found as usize, version), (cuMemAlloc_v2 as *const () as usize, 0));
        assert_eq!(
            cuGetProcAddress_v2(c"cuTensorMapEncodeTiled".as_ptr(), &mut found, 12000, 0, &mut version),
            0
        );
        assert!(found.is_null() && version == 1);
        let mut name = std::ptr::null();
        assert_eq!(cuGetErrorName(700, &mut name), 0);
        assert_eq!(std::ffi::CStr::from_ptr(name), c"CUDA_ERROR_ILLEGAL_ADDRESS");
    }
}

#[test]
fn a_thread_without_a_context_is_told_so() {
    module();
    let other = std::thread::spawn(|| {
        let mut out = 0;
        // SAFETY: a valid pointer.
        unsafe { cuMemAlloc_v2(&mut out, 128) }
    });
    assert_eq!(other.join().unwrap(), Code::INVALID_CONTEXT.0);
}
