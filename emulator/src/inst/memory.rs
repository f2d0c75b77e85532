//! What loads, stores, atomics and mbarrier operations do, without their registers.

use super::R;
use crate::types::Space;

/// A load or store, without its registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// State space written in the opcode.
    pub space: Space,
    /// Bytes of one element: 1, 2, 4, 8.
    pub bytes: u8,
    /// Elements: 1, 2, 4, 8.
    pub n: u8,
    /// Sign-extend into wider registers.
    pub signed: bool,
    /// Volatile, relaxed, acquire or release.
    pub strong: bool,
    /// Acquires by itself.
    pub acquire: bool,
    /// Releases by itself.
    pub release: bool,
    /// Of CTA scope.
    pub near: bool,
    /// Address register, or [`R::NONE`].
    pub base: R,
    /// Added to the address.
    pub offset: i64,
}

/// Atomic operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

/// Operations on an mbarrier object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Mbar {
    Init,
    Inval,
    Arrive {
        drop: bool,
        no_complete: bool,
    },
    /// test_wait and try_wait, for a state or a parity.
    Wait {
        parity: bool,
    },
    Pending,
    /// Arrival of the copies of a lane; `counted` (.noinc) as one of those expected.
    CopyArrive {
        counted: bool,
    },
}
