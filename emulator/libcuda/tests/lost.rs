//! A fault of a kernel destroys the context for the whole process, as on a GPU: hence a process of its own.

use std::ffi::{CString, c_void};

use emulated_cuda::Code;
use emulated_cuda::api::*;

#[test]
fn after_a_stray_access_every_call_returns_its_code() {
    let ptx = CString::new(
        ".version 7.8\n.target sm_80\n.address_size 64\n.visible .entry stray(.param .u64 at) {\n.reg .b64 %rd<2>;\n\
         ld.param.u64 %rd1, [at];\nst.global.u32 [%rd1], 0;\nret;\n}\n",
    )
    .unwrap();
    let (mut context, mut module, mut function, mut out) = (0, 0, 0, 0u64);
    let at = 64u64;
    // SAFETY: valid pointers; the kernel's one parameter has its pointer.
    unsafe {
        assert_eq!(cuMemAlloc_v2(&mut out, 4), Code::NOT_INITIALIZED.0, "before cuInit");
        assert_eq!(cuInit(0), 0);
        assert_eq!(cuDevicePrimaryCtxRetain(&mut context, 0), 0);
        assert_eq!(cuCtxSetCurrent(context), 0);
        assert_eq!(cuModuleLoadData(&mut module, ptx.as_ptr().cast()), 0);
        assert_eq!(cuModuleGetFunction(&mut function, module, c"stray".as_ptr()), 0);
        let mut params = [(&raw const at).cast_mut().cast::<c_void>()];
        let launch = |params: *mut *mut c_void| {
            cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, 0, params, std::ptr::null_mut())
        };
        assert_eq!(launch(params.as_mut_ptr()), Code::ILLEGAL_ADDRESS.0);
        assert_eq!(cuCtxSynchronize(), Code::ILLEGAL_ADDRESS.0);
        assert_eq!(cuMemAlloc_v2(&mut out, 4), Code::ILLEGAL_ADDRESS.0);
        assert_eq!(launch(params.as_mut_ptr()), Code::ILLEGAL_ADDRESS.0);
    }
}
