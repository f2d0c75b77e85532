//! Tiles: pieces of matrices in registers, shared memory and global memory, their layout in their type.
//!
//! [`layout`] holds the maps, pure const functions: which element each lane holds of a fragment, which row
//! address it gives `ldmatrix`, where a 16-byte chunk lies in shared memory. [`FragmentA`], [`FragmentB`] and
//! [`Accumulator`] are the operands of `mma.m16n8k16`; a [`SharedTile`] is swizzled, a [`GlobalTile`] is
//! contiguous. The types carry what the hardware does not check: an A fragment where B belongs, f16 bits as
//! bf16, a tile of another width, bytes still on their way (see [`crate::pipeline`]) do not compile.
//!
//! Everything here is about matrices and lanes. What knows of attention (online softmax, pages) is not in this
//! crate but beside the kernels.
//!
//! ```
//! use cuda_std::half::bf16;
//! use cuda_std::tile::{Accumulator, FragmentA, FragmentB};
//! unsafe fn product(a: FragmentA<bf16>, b: FragmentB<bf16>) -> Accumulator {
//!     unsafe { Accumulator::ZERO.mma(a, b) }
//! }
//! ```
//!
//! Operands exchanged:
//! ```compile_fail,E0308
//! use cuda_std::half::bf16;
//! use cuda_std::tile::{Accumulator, FragmentA, FragmentB};
//! unsafe fn product(a: FragmentA<bf16>, b: FragmentB<bf16>) -> Accumulator {
//!     unsafe { Accumulator::ZERO.mma(b, a) }
//! }
//! ```
//!
//! Operands of two element types:
//! ```compile_fail,E0308
//! use cuda_std::half::{bf16, f16};
//! use cuda_std::tile::{Accumulator, FragmentA, FragmentB};
//! unsafe fn product(a: FragmentA<bf16>, b: FragmentB<f16>) -> Accumulator {
//!     unsafe { Accumulator::ZERO.mma(a, b) }
//! }
//! ```

pub mod layout;
mod memory;
mod register;

pub use memory::{Filling, GlobalTile, Ready, SharedTile, State};
pub use register::{Accumulator, FragmentA, FragmentB};
