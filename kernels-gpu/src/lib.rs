//! The kernels, one stage a file, and what the host needs to feed them.

pub mod layout;
pub mod numeric;
