//! What can go wrong, with the values in it and what to do about it.
//!
//! After any error the cache is as it was before the call.

use crate::{Dtype, Mirror, Policy};

/// Errors of the crate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The shape is none that the kernels are built for.
    #[error("unsupported shape: {what}; supported: {supported}")]
    Shape {
        /// The values.
        what: String,
        /// What would do.
        supported: &'static str,
    },
    /// A configuration value makes no sense.
    #[error("configuration: {what}; {remedy}")]
    Config {
        /// The values.
        what: String,
        /// What would do.
        remedy: String,
    },
    /// A tensor has the wrong element type.
    #[error("{tensor} is {got}, but the cache holds {expected}; convert it or create the cache with {got}")]
    Dtype {
        /// Name of the argument.
        tensor: &'static str,
        /// Element type of the cache.
        expected: Dtype,
        /// Element type of the argument.
        got: Dtype,
    },
    /// A tensor has the wrong number of elements.
    #[error("{tensor} has {got} elements, expected {expected} = {layout}")]
    Length {
        /// Name of the argument.
        tensor: &'static str,
        /// Elements it must have.
        expected: usize,
        /// Elements it has.
        got: usize,
        /// The expected dimensions.
        layout: String,
    },
    /// A tensor holds a NaN or an infinity.
    #[error(
        "{tensor}[{index}] is not finite; fix the input, or set CacheConfig::check_finite to false to \
         compute with it"
    )]
    NonFinite {
        /// Name of the argument.
        tensor: &'static str,
        /// Index of the first such element in the flat slice.
        index: usize,
    },
    /// There are not enough free slots, or not enough blocks that may leave the device.
    #[error(
        "the pool is exhausted: {needed} slots needed, {free} free; remove sequences, or with a host tier swap them \
         out (that would free up to {evictable}), or create the cache with more capacity"
    )]
    PoolExhausted {
        /// Slots that the call needs.
        needed: usize,
        /// Slots that are free or can be made so, and are not reserved for others.
        free: usize,
        /// Slots held by sequences that the call does not concern.
        evictable: usize,
    },
    /// A sequence has fewer tokens than the call names.
    #[error("{sequence} has {length} tokens, not {tokens}; name at most as many as KvCache::len gives")]
    BeyondEnd {
        /// The sequence.
        sequence: String,
        /// Tokens named.
        tokens: usize,
        /// Tokens there are.
        length: usize,
    },
    /// The call moves blocks between the device and the host, and there is only the device.
    #[error("{call} needs a host tier; create the cache with CacheConfig::host")]
    NoHostTier {
        /// The call.
        call: &'static str,
    },
    /// The sequence is in the host tier only.
    #[error("{sequence} is swapped out; call KvCache::swap_in first")]
    SwappedOut {
        /// The sequence.
        sequence: String,
    },
    /// A sequence would grow beyond the longest context of the cache.
    #[error("the sequence would have {tokens} tokens, the limit is {limit} (CacheConfig::max_tokens)")]
    ContextTooLong {
        /// Tokens that the sequence would have.
        tokens: usize,
        /// Longest context.
        limit: usize,
    },
    /// The device has no memory for the cache.
    #[error("{device} has no {bytes} bytes for the cache; create it with less capacity")]
    OutOfMemory {
        /// The device.
        device: &'static str,
        /// Bytes asked for.
        bytes: usize,
    },
    /// No sequence can be added.
    #[error(
        "the cache already holds {limit} sequences (CacheConfig::max_sequences); remove one or create the \
         cache with more"
    )]
    TooManySequences {
        /// Sequences that the cache can hold.
        limit: usize,
    },
    /// The sequence was removed, or belongs to another cache.
    #[error("{sequence} is not in this cache: it was removed, or it belongs to another cache")]
    UnknownSequence {
        /// The sequence.
        sequence: String,
    },
    /// A batch names a sequence twice.
    #[error("{sequence} occurs more than once in the batch; give every sequence one row")]
    DuplicateSequence {
        /// The sequence.
        sequence: String,
    },
    /// The layer does not exist.
    #[error("layer {layer} does not exist, the cache has {layers} (0 to {})", .layers - 1)]
    UnknownLayer {
        /// The layer asked for.
        layer: usize,
        /// Layers of the cache.
        layers: usize,
    },
    /// The plan was made for another cache.
    #[error("the plan was made for another cache; make it with DecodePlan::new(&cache, ..) for this one")]
    ForeignPlan,
    /// The text or value is no policy.
    #[error("policy {text:?}: {reason}")]
    Policy {
        /// The policy as written.
        text: String,
        /// Why not, and what would do.
        reason: String,
    },
    /// The text is no mirror of this version.
    #[error(
        "mirror {text:?}: {reason}; use 1, 2, 4, 8 (bits), 2+2 or 4+4 (nested), box, mean, cuboid, mean-variance or \
         representatives"
    )]
    UnsupportedMirror {
        /// The mirror as written.
        text: String,
        /// Why not.
        reason: &'static str,
    },
    /// The policy needs other metadata than the cache keeps.
    #[error("policy {policy} cannot rank by a {mirror} mirror; create the cache with {needed}")]
    MirrorMismatch {
        /// The policy.
        policy: Policy,
        /// Mirror of the cache.
        mirror: Mirror,
        /// What it would need.
        needed: &'static str,
    },
    /// The device cannot run the policy.
    #[error("policy {policy} does not run on {device}; use the cpu or reference device")]
    UnsupportedPolicy {
        /// The policy.
        policy: Policy,
        /// The device.
        device: String,
    },
    /// The device has no kernels for the cache or the plan.
    #[error(
        "{what} does not run on {device}; it has {supported}. The cpu and reference devices run everything"
    )]
    Unsupported {
        /// What was asked for.
        what: String,
        /// The device.
        device: String,
        /// What it can do.
        supported: &'static str,
    },
    /// There is no such GPU, or it cannot be used.
    #[error("no GPU: {0}")]
    NoGpu(#[from] crate::driver::Unavailable),
    /// The device failed for good: no call on it will work again.
    #[error("{call}: {detail}")]
    DeviceLost {
        /// What was tried.
        call: String,
        /// The device, the error that destroyed its context, and what was queued then.
        detail: String,
    },
    /// The device failed.
    #[error("{device}: {call}: {detail}")]
    Backend {
        /// The device.
        device: String,
        /// What was tried.
        call: String,
        /// The driver's own words.
        detail: String,
    },
}
