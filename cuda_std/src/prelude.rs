//! What a kernel file usually needs: `use cuda_std::prelude::*;`.

pub use crate::float::{GpuFloat, GpuFloatExp};
pub use crate::half::{Element, bf16, f16};
pub use crate::shared::SharedPtr;
pub use crate::{atomic, gpu_only, kernel, ptx, shared, shared_array, thread, unroll, warp};
