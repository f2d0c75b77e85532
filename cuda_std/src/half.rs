//! 16-bit floats: `bf16` and `f16`, and what kernels generic over them need.
//!
//! On the host these are the `half` crate's types, so that host and device signatures agree. On the
//! device they are our own: `half` converts in software there (132 instructions against 13 for a load,
//! multiply and store of f16). Storage types only: arithmetic is done in f32. Conversion from f32 rounds
//! to nearest even on both sides and saturates to infinity; a NaN stays a NaN, but only the host keeps
//! its payload (the device gives 0x7fff).

#[cfg(target_arch = "nvptx64")]
mod device;

#[cfg(not(target_arch = "nvptx64"))]
pub use ::half::{bf16, f16};
#[cfg(target_arch = "nvptx64")]
pub use device::{bf16, f16};

/// A stored element of a tensor: converts to and from f32 (round to nearest even).
pub trait Element: Copy + Send + Sync + 'static {
    /// The type's name, in lower case, as in entry names and descriptors.
    const NAME: &'static str;

    /// The value as f32; exact.
    fn to_f32(self) -> f32;

    /// The nearest value of this type; ties to even.
    fn from_f32(value: f32) -> Self;
}

impl Element for f32 {
    const NAME: &'static str = "f32";

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";

    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

impl Element for f16 {
    const NAME: &'static str = "f16";

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
}
