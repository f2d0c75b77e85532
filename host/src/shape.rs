//! The geometry of a model's attention: layers, heads, head_dim, element type.
//!
//! What the kernels are built for is checked here, once; everything behind [`Shape::validate`] relies
//! on it.

use crate::Error;
use kernels_gpu::layout::{MAX_GROUP, slot_elements};
use std::fmt;

/// Element type of q, k, v and of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// bfloat16: the upper half of an f32.
    Bf16,
    /// IEEE 754 half precision.
    F16,
}

impl Dtype {
    /// Bytes of an element.
    pub const BYTES: usize = 2;
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
        })
    }
}

/// Geometry of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Layers of the model.
    pub layers: usize,
    /// Query heads of a layer: a multiple of `kv_heads`.
    pub q_heads: usize,
    /// KV heads of a layer.
    pub kv_heads: usize,
    /// Elements of a head: 64 or 128.
    pub head_dim: usize,
    /// Element type of q, k and v.
    pub dtype: Dtype,
}

impl Shape {
    /// Checks that the shape is one that the kernels are built for.
    ///
    /// # Errors
    /// [`Error::Shape`], saying what is supported.
    pub fn validate(&self) -> Result<(), Error> {
        let Shape { layers, q_heads, kv_heads, head_dim, .. } = *self;
        let fail = |what: String, supported: &'static str| Err(Error::Shape { what, supported });
        if layers == 0 || q_heads == 0 || kv_heads == 0 {
            return fail(
                format!("layers = {layers}, q_heads = {q_heads}, kv_heads = {kv_heads}"),
                "at least one of each",
            );
        }
        if layers > 4096 || kv_heads > 4096 {
            return fail(format!("layers = {layers}, kv_heads = {kv_heads}"), "at most 4096 of each");
        }
        if head_dim != 64 && head_dim != 128 {
            return fail(format!("head_dim = {head_dim}"), "64 and 128");
        }
        if !q_heads.is_multiple_of(kv_heads) {
            return fail(
                format!("q_heads = {q_heads} is no multiple of kv_heads = {kv_heads}"),
                "every KV head serves the same number of query heads",
            );
        }
        if q_heads / kv_heads > MAX_GROUP {
            return fail(
                format!("q_heads / kv_heads = {q_heads} / {kv_heads} = {}", q_heads / kv_heads),
                "groups of 1 to 8 query heads",
            );
        }
        Ok(())
    }

    /// Query heads that share a KV head.
    pub const fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    /// Elements of one token's keys (or values) in one layer: `kv_heads * head_dim`.
    pub const fn token_elements(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Elements of one sequence's queries (or outputs) in one layer: `q_heads * head_dim`.
    pub const fn query_elements(&self) -> usize {
        self.q_heads * self.head_dim
    }

    /// Bytes of a slot: K and V of one block.
    pub const fn slot_bytes(&self) -> usize {
        slot_elements(self.head_dim) * Dtype::BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Shape = Shape { layers: 2, q_heads: 8, kv_heads: 2, head_dim: 128, dtype: Dtype::Bf16 };

    #[test]
    fn unsupported_shapes_are_refused_and_the_error_says_what_is_supported() {
        GOOD.validate().unwrap();
        for (bad, expected) in [
            (Shape { head_dim: 96, ..GOOD }, "head_dim = 96"),
            (Shape { q_heads: 7, ..GOOD }, "no multiple"),
            (Shape { q_heads: 18, ..GOOD }, "1 to 8"),
            (Shape { kv_heads: 0, ..GOOD }, "at least one"),
            (Shape { layers: 0, ..GOOD }, "at least one"),
            (Shape { layers: usize::MAX, ..GOOD }, "at most 4096"),
        ] {
            let text = bad.validate().unwrap_err().to_string();
            assert!(text.contains(expected) && text.contains("supported"), "{text}");
        }
    }
}
