//! The kernels of progressive sparse attention, one stage a file, in the order of the data:
//! [`mod@append`], [`mod@score`], [`mod@plan`], [`mod@attend`], [`mod@merge`]; [`mod@gather`] stands beside
//! the road.
//!
//! [`mod@stop`] is the rule by which merge stops. On the device the kernels share `row` (the paged cache), `pages`
//! (a plan as a warp meets it), `ranking`, `softmax`, `stream` (a warp over its pages, on tensor cores) and `parts` (warps and
//! splits combined): they know of attention, and stand on `cuda_std::tile` and `cuda_std::pipeline`, which do not.
//!
//! Built for `nvptx64`, this crate is the PTX in `ptx/psa_kernels.ptx` (`cargo xtask build-ptx`). Built
//! for the host, it is what others need to use that PTX: the text itself ([`PTX`]), a descriptor and a
//! typed launcher for every kernel, and the layouts and arithmetic both sides share ([`layout`],
//! [`numeric`]).

#![cfg_attr(target_arch = "nvptx64", no_std, feature(abi_ptx))]
// Kernels take flat scalars and pointers: a struct or a slice by value hides its pointers from
// address-space inference.
#![allow(clippy::too_many_arguments)]

pub mod element;
pub mod layout;
pub mod numeric;
#[cfg(target_arch = "nvptx64")]
pub mod pages;
#[cfg(target_arch = "nvptx64")]
pub mod parts;
#[cfg(target_arch = "nvptx64")]
pub mod ranking;
#[cfg(target_arch = "nvptx64")]
pub mod row;
#[cfg(target_arch = "nvptx64")]
pub mod softmax;
pub mod stop;
#[cfg(target_arch = "nvptx64")]
pub mod stream;

pub mod append;
pub mod attend;
pub mod gather;
pub mod histogram;
pub mod merge;
pub mod plan;
pub mod plan_long;
pub mod score;

#[cfg(not(target_arch = "nvptx64"))]
mod embedded;
#[cfg(not(target_arch = "nvptx64"))]
pub use embedded::{MANIFEST, PTX, families, kernels};
