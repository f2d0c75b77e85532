//! What a launch found and what it counted.
//!
//! Findings of the same kind at the same instruction are one, with a count; the first occurrence
//! gives the details.

use crate::counters::Counters;
use crate::profile::LineProfile;
use serde::Serialize;
use std::fmt;

/// Which checker speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Bounds, alignment, lifetime of memory.
    Mem,
    /// Reads of what was never written.
    Init,
    /// Accesses without an order.
    Race,
    /// Barriers and warp-wide operations.
    Sync,
    /// The launch does not fit the kernel.
    Launch,
    /// The step limit.
    Steps,
    /// The kernel stopped itself by `trap`.
    Trap,
}

impl Class {
    /// The name as in `--check`.
    pub fn name(self) -> &'static str {
        match self {
            Class::Mem => "mem",
            Class::Init => "init",
            Class::Race => "race",
            Class::Sync => "sync",
            Class::Launch => "launch",
            Class::Steps => "steps",
            Class::Trap => "trap",
        }
    }
}

/// The allocation an address belongs to, or is nearest to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Name given at the allocation.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// Byte offset of the access; negative before the beginning, at or above `size` behind the end.
    pub offset: i64,
}

/// The access a race was with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    /// PTX line.
    pub line: u32,
    /// File and line by `.loc`.
    pub source: Option<(String, u32)>,
    /// CTA.
    pub cta: [u32; 3],
    /// Warp in the CTA.
    pub warp: u32,
    /// Lanes, all when there were several.
    pub lanes: u32,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.cta;
        write!(f, "CTA ({x},{y},{z}) warp {}", self.warp)?;
        if self.lanes.count_ones() == 1 {
            write!(f, " lane {}", self.lanes.trailing_zeros())?;
        }
        write!(f, " at PTX line {}", self.line)?;
        match &self.source {
            Some((file, line)) => write!(f, " ({file}:{line})"),
            None => Ok(()),
        }
    }
}

/// One thing wrong with a kernel or a launch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The checker.
    pub class: Class,
    /// Short name of the kind of fault, e.g. `out of bounds`.
    pub kind: String,
    /// All of it in a sentence.
    pub message: String,
    /// Kernel name.
    pub kernel: String,
    /// Line of the PTX, 0 when the launch as a whole is meant.
    pub line: u32,
    /// File and line by `.loc`.
    pub source: Option<(String, u32)>,
    /// CTA.
    pub cta: [u32; 3],
    /// Warp in the CTA.
    pub warp: u32,
    /// Lanes, one bit each.
    pub lanes: u32,
    /// Address of the first lane concerned, as the instruction had it.
    pub address: Option<u64>,
    /// Where that address lies.
    pub allocation: Option<Place>,
    /// How many times it happened (per warp instruction).
    pub count: u64,
    /// The other access of a race.
    pub other: Option<Side>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: kernel `{}`", self.class.name(), self.message, self.kernel)?;
        if self.line > 0 {
            write!(f, ", PTX line {}", self.line)?;
            if let Some((file, line)) = &self.source {
                write!(f, " ({file}:{line})")?;
            }
            let [x, y, z] = self.cta;
            write!(f, ", CTA ({x},{y},{z}), warp {}, lanes {:#010x}", self.warp, self.lanes)?;
        }
        if let Some(a) = self.address {
            write!(f, ", address {a:#x}")?;
        }
        if let Some(p) = &self.allocation {
            write!(f, ", offset {} of `{}` ({} bytes)", p.offset, p.name, p.size)?;
        }
        if self.count > 1 {
            write!(f, " [{} times]", self.count)?;
        }
        Ok(())
    }
}

/// What a launch read and wrote of one allocation. `distinct` counts each byte once: the traffic that no
/// kernel for the same job can avoid. Sectors of `wmma.load` and `wmma.store` count an element each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BufferTraffic {
    /// Name given at the allocation.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// Bytes loaded, as active lanes asked for them.
    pub bytes_read: u64,
    /// Distinct bytes loaded.
    pub distinct_read: u64,
    /// 32-byte sectors of the loads, distinct within a warp instruction.
    pub sectors_read: u64,
    /// Bytes stored, atomics included.
    pub bytes_written: u64,
    /// Distinct bytes stored.
    pub distinct_written: u64,
    /// 32-byte sectors of the stores and atomics.
    pub sectors_written: u64,
}

/// The result of a launch.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Kernel name.
    pub kernel: String,
    /// Findings, first seen first.
    pub findings: Vec<Finding>,
    /// Counters.
    pub counters: Counters,
    /// False when the run was refused or cut short.
    pub completed: bool,
    /// Wall time of the run, in nanoseconds.
    pub wall_ns: u64,
    /// Text printed by the kernel.
    pub output: String,
    /// Counters by PTX line, with [`Options::profile`](crate::Options::profile).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<LineProfile>,
    /// Traffic of every allocation touched, with [`Options::buffers`](crate::Options::buffers).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub buffers: Vec<BufferTraffic>,
}

impl Report {
    /// No findings, and the kernel ran to its end.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.completed
    }

    /// Findings of one class.
    pub fn of(&self, class: Class) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |f| f.class == class)
    }
}
