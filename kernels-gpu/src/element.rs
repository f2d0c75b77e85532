//! Elements of the cache: bf16 and f16, what tensor cores multiply; read in words and in 16-byte pieces.

use cuda_std::half::{bf16, f16};
use cuda_std::ptx::MmaElement;
#[cfg(target_arch = "nvptx64")]
use cuda_std::ptx::V4;

/// An element type of K, V and q.
pub trait KvElement: MmaElement {
    /// The eight elements of 16 bytes, the lowest address first.
    #[cfg(target_arch = "nvptx64")]
    #[inline(always)]
    fn unpack8(V4([x, y, z, w]): V4) -> [f32; 8] {
        let ((a, b), (c, d)) = (Self::unpack2(x), Self::unpack2(y));
        let ((e, f), (g, h)) = (Self::unpack2(z), Self::unpack2(w));
        [a, b, c, d, e, f, g, h]
    }
}

impl KvElement for bf16 {}
impl KvElement for f16 {}
