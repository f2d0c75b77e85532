//! Elements of the cache: bf16 and f16, read in pairs and in 16-byte pieces.

use cuda_std::half::{Element, bf16, f16};
#[cfg(target_arch = "nvptx64")]
use cuda_std::ptx::{V4, unpack_bf16x2, unpack_f16x2};

/// An element type of K, V and q.
pub trait KvElement: Element {
    /// The two elements of a word, the lower address first.
    #[cfg(target_arch = "nvptx64")]
    fn unpack2(word: u32) -> [f32; 2];

    /// The eight elements of 16 bytes.
    #[cfg(target_arch = "nvptx64")]
    #[inline(always)]
    fn unpack8(V4([x, y, z, w]): V4) -> [f32; 8] {
        let ([a, b], [c, d]) = (Self::unpack2(x), Self::unpack2(y));
        let ([e, f], [g, h]) = (Self::unpack2(z), Self::unpack2(w));
        [a, b, c, d, e, f, g, h]
    }
}

impl KvElement for bf16 {
    #[cfg(target_arch = "nvptx64")]
    #[inline(always)]
    fn unpack2(word: u32) -> [f32; 2] {
        unpack_bf16x2(word).into()
    }
}

impl KvElement for f16 {
    #[cfg(target_arch = "nvptx64")]
    #[inline(always)]
    fn unpack2(word: u32) -> [f32; 2] {
        unpack_f16x2(word).into()
    }
}
