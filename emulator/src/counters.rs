//! What a launch, or one line of it, did: plain sums, and the ratios people read from them.
//!
//! Bytes count what active lanes asked for. Sectors are the 32 bytes in which global memory moves;
//! passes are turns of the 32 banks of shared memory. Nothing here is a time.

use serde::Serialize;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a launch did. Bytes count what active lanes asked for.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// What was counted since `before`.
            pub(crate) fn since(&self, before: &Counters) -> Counters {
                Counters { $($name: self.$name - before.$name,)* }
            }

            /// Adds another launch, or another line.
            pub fn add(&mut self, o: &Counters) {
                $(self.$name += o.$name;)*
            }
        }
    };
}

counters! {
    /// Instructions, once a warp.
    warp_instructions,
    /// Instructions, once an active lane.
    lane_instructions,
    /// Warp accesses to global memory, atomics included; a `cp.async` is one.
    global_requests,
    /// Bytes loaded from global memory, `cp.async` included.
    global_bytes_read,
    /// Bytes stored to global memory, atomics included.
    global_bytes_written,
    /// 32-byte sectors of the loads, distinct within a warp instruction.
    global_sectors_read,
    /// 32-byte sectors of the stores and atomics.
    global_sectors_written,
    /// Sectors, read and written, that the distinct bytes of each access would fill if they lay side by
    /// side. Counted with [`Options::profile`](crate::Options::profile) only.
    global_sectors_ideal,
    /// Warp instructions that read or wrote shared memory.
    shared_accesses,
    /// Bytes of shared memory read or written, those of `ldmatrix` and `cp.async` included.
    shared_bytes,
    /// Passes those accesses need without a conflict: one for 4 bytes a lane, two for 8, four for 16.
    shared_passes_ideal,
    /// Passes beyond those.
    bank_conflicts,
    /// Bytes of local memory read or written.
    local_bytes,
    /// CTA barriers reached, once a warp.
    barriers,
    /// Atomics, once a lane.
    atomics,
    /// Lanes of an atomic behind another lane at the same address, who wait for it. Counted with
    /// [`Options::profile`](crate::Options::profile) only.
    atomic_conflicts,
    /// Floating or integer operations of mma (two a product).
    mma_operations,
}

fn ratio(a: u64, b: u64) -> Option<f64> {
    (b > 0).then(|| a as f64 / b as f64)
}

impl Counters {
    /// Sectors of global memory, read and written.
    pub fn global_sectors(&self) -> u64 {
        self.global_sectors_read + self.global_sectors_written
    }

    /// Bytes of global memory asked for, read and written.
    pub fn global_bytes(&self) -> u64 {
        self.global_bytes_read + self.global_bytes_written
    }

    /// Sectors an access to global memory touches, and the fewest it could; `None` without an access,
    /// or without the counter of the fewest.
    pub fn sectors_per_request(&self) -> Option<(f64, f64)> {
        let ideal = ratio(self.global_sectors_ideal, self.global_requests)?;
        (self.global_sectors_ideal > 0)
            .then(|| (self.global_sectors() as f64 / self.global_requests as f64, ideal))
    }

    /// Passes over the banks for each one needed: 1 without conflicts, 32 at worst.
    pub fn conflict_degree(&self) -> Option<f64> {
        ratio(self.shared_passes_ideal + self.bank_conflicts, self.shared_passes_ideal)
    }

    /// Operations of `mma` for each byte of global memory moved in sectors.
    pub fn mma_intensity(&self) -> Option<f64> {
        ratio(self.mma_operations, 32 * self.global_sectors())
    }
}
