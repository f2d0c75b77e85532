//! What a device allows a launch: the figures that feasibility and launches are checked against.
//!
//! The table is NVIDIA's (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").
//! A driver that can ask its device overwrites what the device says otherwise.

/// Limits of a device, per compute capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Compute capability, as 80 for 8.0.
    pub sm: u32,
    /// Shared memory of a block, in bytes, with the opt-in that more than 48 KiB needs.
    pub shared_per_block: u32,
    /// Threads of a block.
    pub threads_per_block: u32,
    /// Threads of a multiprocessor.
    pub threads_per_sm: u32,
    /// 32-bit registers of a block.
    pub registers_per_block: u32,
    /// 32-bit registers of a multiprocessor.
    pub registers_per_sm: u32,
    /// Blocks of a grid: x, y, z.
    pub grid: [u32; 3],
}

impl DeviceLimits {
    /// The limits of a compute capability; of an unknown one, those of the nearest below (8.0 at least).
    #[must_use]
    pub const fn of_sm(sm: u32) -> Self {
        let (shared_kib, threads_per_sm) = match sm {
            86..=89 if sm != 87 => (99, 1536),
            87 => (163, 1536),
            90..=109 => (227, 2048),
            110..=119 => (227, 1536),
            120.. => (99, 1536),
            _ => (163, 2048),
        };
        Self {
            sm,
            shared_per_block: shared_kib * 1024,
            threads_per_block: 1024,
            threads_per_sm,
            registers_per_block: 65536,
            registers_per_sm: 65536,
            grid: [i32::MAX as u32, 65535, 65535],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_table() {
        for (sm, kib, threads) in [
            (80, 163, 2048),
            (86, 99, 1536),
            (87, 163, 1536),
            (89, 99, 1536),
            (90, 227, 2048),
            (100, 227, 2048),
            (103, 227, 2048),
            (120, 99, 1536),
            (121, 99, 1536),
        ] {
            let limits = DeviceLimits::of_sm(sm);
            assert_eq!((limits.shared_per_block, limits.threads_per_sm), (kib * 1024, threads), "sm_{sm}");
        }
    }
}
