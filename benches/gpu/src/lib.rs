//! Tests and times the shipped kernels on the device at hand: what the program `psa-gpu` does.
//!
//! | module | question |
//! |---|---|
//! | [`check`] | does every kernel give what the reference gives, and the same bits every time? |
//! | [`ledger`] | does every approximate instruction stay within its documented error? |
//! | [`time`] | how long do the stages and whole steps take, beside a plain copy in the same run? |
//! | [`collect`] | one results file of the parts of a run |
//!
//! [`target`] is the device; a test of this crate runs everything on the emulator, where nothing is timed.
//! Records are the lines of [`record`]; benches/results/README.md describes them.

pub mod check;
pub mod collect;
pub mod error;
pub mod ledger;
pub mod record;
pub mod target;
pub mod time;

pub use error::Error;
