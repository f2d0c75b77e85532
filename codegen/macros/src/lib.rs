//! The attributes and macros of device code.
//!
//! `#[kernel]` turns one (generic) function into PTX entry points on the device and into descriptors
//! and a typed launcher on the host; `#[gpu_only]` gives a device function a twin on the host that
//! panics; `shared_array!` declares static shared memory. All three are re-exported by `cuda_std`,
//! which is where kernels take them from. The generated code names `::cuda_std` (device and host) and
//! `::psa_codegen` (host only), so a kernel crate depends on both under these names.

mod gpu_only;
mod kernel;
mod shared_array;

use proc_macro::TokenStream;

/// Declares a kernel family: one function, one PTX entry per specialisation.
///
/// ```text
/// #[kernel(block = 128, min_blocks_per_sm = 3, dynamic_shared = 2 * D * 128,
///          instances(T in [bf16, f16], D in [64, 128]))]
/// pub unsafe fn attend<T: Element, const D: usize>(q: *const T, out: *mut f32, n: u32) { .. }
/// ```
///
/// | key | value |
/// |---|---|
/// | `block` | threads of a block: an integer, a const expression, or a tuple `(x, y, z)`; required |
/// | `dynamic_shared` | bytes of dynamic shared memory, a const expression; default 0 |
/// | `min_blocks_per_sm` | `.minnctapersm`; default: not set |
/// | `max_registers` | `.maxnreg`; default: not set |
/// | `min_sm` | lowest compute capability, as 80 for 8.0; default 80 |
/// | `instances(T in [..], D in [..])` | the cartesian product of these values, the last generic fastest; given several times: the union |
///
/// | `grid` | blocks along x, y, z: `(EXPRESSION, let name, _)`; exactly so many, any number under a name, any number. Axes left out are 1; without the key nothing is said |
/// | `out(a, b)` | `*mut` parameters whose old contents do not matter; other `*mut` ones are read and written |
/// | `align(a = 16)` | alignment of a buffer beyond its element's, in bytes |
/// | `may_overlap(a, b)` | buffers that may share memory although one is written; no others may |
/// | `requires(LEFT <= RIGHT, ..)` | what must hold of a launch: scalars `u32` and `u64`, `x.len()`, `x.max()` (largest value, where the host knows it), names of the grid, constants; `+ - * / %`, `min`, `max`, `div_ceil` |
/// | `shape(a, b)` | sizes of a request; default: the const generics in lower case, which must be equal |
/// | `feasible(LEFT <= RIGHT => "why", ..)` | what must hold of a request for an instance to serve it |
/// | `prefer(least EXPRESSION => "why")` | which of several feasible instances is taken; or `most` |
///
/// Every expression may mention the function's generics and is evaluated once per instance.
///
/// An entry is named after the function, then per generic in declaration order the lower-case type
/// name or the lower-case const name with its value: `attend_bf16_d64`.
///
/// On the device (`target_arch = "nvptx64"`) the function itself stays callable (`#[inline(always)]`),
/// and each entry starts with the marker that `psa_codegen::finish` turns into launch bounds. On the
/// host the body is not compiled; in place of the function stands a module of its name with
/// `FAMILY`, `INSTANCES`, `Args`, and three ways to a launch: `select(shape, device, hint)` and
/// `launch` on the choice, `launch(..)` for exactly these generics, `Instance::<..>::launch(..)` where they are
/// known at compile time. Each checks the contract.
///
/// Parameters are raw pointers and `u32 i32 u64 i64 f32 f64`. A kernel crate's root needs
/// `#![cfg_attr(target_arch = "nvptx64", no_std, feature(abi_ptx, asm_experimental_arch))]`.
#[proc_macro_attribute]
pub fn kernel(attribute: TokenStream, item: TokenStream) -> TokenStream {
    kernel::expand(attribute.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Compiles the function on the device; on the host leaves its signature with a body that panics and
/// says so, so that device helpers can be named (and type-checked) in host builds.
#[proc_macro_attribute]
pub fn gpu_only(_attribute: TokenStream, item: TokenStream) -> TokenStream {
    gpu_only::expand(item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// `shared_array![T; N]`: a block's static shared memory, as a `cuda_std::shared::SharedPtr<T>`.
///
/// `T` and `N` are resolved in the enclosing *module* (not the enclosing function: a function's
/// generics or local items are not visible). Each use in the source is one array, however often the
/// function around it is instantiated or inlined. Contents start undefined.
#[proc_macro]
pub fn shared_array(input: TokenStream) -> TokenStream {
    let span = proc_macro::Span::call_site();
    let place = shared_array::place(&span.file(), span.line(), span.column());
    shared_array::expand(input.into(), &place).unwrap_or_else(syn::Error::into_compile_error).into()
}
