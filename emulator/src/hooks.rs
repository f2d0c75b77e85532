//! What an embedding program may watch of a launch: every instruction and every access to memory.
//!
//! [`Device::launch_with`](crate::Device::launch_with) takes one [`Hooks`]. Events come in the order
//! in which the emulator runs the instructions: the schedule of the seed, the same on every machine,
//! always from the calling thread (a launch with hooks never spreads over threads). A launch without
//! hooks pays one predictable branch an instruction. Hooks see; they cannot change anything.

use crate::types::Space;

/// One warp instruction, before it is carried out.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct InstructionEvent<'a> {
    /// PTX line; its text is [`Module::line`](crate::Module::line).
    pub line: u32,
    /// File and line by `.loc`.
    pub source: Option<(&'a str, u32)>,
    /// CTA.
    pub cta: [u32; 3],
    /// Warp in the CTA.
    pub warp: u32,
    /// Lanes that carry it out; 0 when the guard is false in all of them.
    pub lanes: u32,
}

/// What an access does with the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessKind {
    /// Reads them: loads, `ldmatrix`, `wmma.load`, the source of a `cp.async`.
    Read,
    /// Writes them: stores, `stmatrix`, `wmma.store`, the destination of a `cp.async` (when it is
    /// issued: the bytes move later).
    Write,
    /// Reads and writes them: `atom` and `red`.
    Atomic,
}

/// One access of a warp to one space, before it is carried out. Lanes with a faulty address are left
/// out; they are findings. A generic access that reaches several spaces gives one event for each, a
/// `wmma` load or store one for each element of a lane, a `cp.async` one for each of its sides.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct MemoryEvent<'a> {
    /// PTX line.
    pub line: u32,
    /// File and line by `.loc`.
    pub source: Option<(&'a str, u32)>,
    /// CTA.
    pub cta: [u32; 3],
    /// Warp in the CTA.
    pub warp: u32,
    /// `Global` (constants included), `Shared`, `Local` or `Param`.
    pub space: Space,
    /// What is done.
    pub kind: AccessKind,
    /// Lanes that take part, one bit each.
    pub lanes: u32,
    /// Bytes a lane.
    pub bytes: u32,
    /// Address of each lane, meaningful where `lanes` has a bit: device addresses in global memory,
    /// offsets in the CTA's shared, the thread's local and the kernel's parameter memory.
    pub addresses: &'a [u64; 32],
}

impl MemoryEvent<'_> {
    /// Lane and address of the lanes that take part.
    pub fn lanes(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        (0..32).filter(|l| self.lanes >> l & 1 != 0).map(|l| (l, self.addresses[l as usize]))
    }

    /// Distinct units of `size` bytes (a power of two) that are touched, in the order of the lanes:
    /// 32 gives sectors, 128 cache lines.
    pub fn units(&self, size: u64) -> Vec<u64> {
        let mut out = Vec::new();
        for (_, a) in self.lanes() {
            let last = a.saturating_add(u64::from(self.bytes).saturating_sub(1)) / size.max(1);
            for unit in a / size.max(1)..=last {
                if !out.contains(&unit) {
                    out.push(unit);
                }
            }
        }
        out
    }
}

/// Watches a launch. Both methods do nothing unless written.
///
/// A trace of addresses in ten lines:
///
/// ```
/// use ptx_emulator::{AccessKind, Arg, Device, Hooks, LaunchConfig, MemoryEvent, Module, Options};
///
/// #[derive(Default)]
/// struct Trace(Vec<(u32, AccessKind, u64)>);
/// impl Hooks for Trace {
///     fn memory(&mut self, e: &MemoryEvent<'_>) {
///         self.0.extend(e.lanes().map(|(_, address)| (e.line, e.kind, address)));
///     }
/// }
///
/// let module = Module::parse("
/// .version 7.8
/// .target sm_80
/// .address_size 64
/// .visible .entry set(.param .u64 x) {
///     .reg .b64 %rd<4>; .reg .b32 %r<2>;
///     ld.param.u64 %rd1, [x];
///     mov.u32 %r1, %tid.x;
///     mul.wide.u32 %rd2, %r1, 4;
///     add.s64 %rd3, %rd1, %rd2;
///     st.global.u32 [%rd3], %r1;
///     ret;
/// }")?;
/// let mut device = Device::new(Options::default());
/// let x = device.alloc(8, "x")?;
/// let config = LaunchConfig { grid: [1, 1, 1], block: [2, 1, 1], shared_bytes: 0 };
/// let mut trace = Trace::default();
/// let report = device.launch_with(&module, "set", config, &[Arg::Ptr(x)], &mut trace)?;
/// assert!(report.is_clean());
/// let stores: Vec<_> = trace.0.into_iter().filter(|e| e.1 == AccessKind::Write).collect();
/// assert_eq!(stores, [(11, AccessKind::Write, x.0), (11, AccessKind::Write, x.0 + 4)]);
/// # Ok::<(), ptx_emulator::Error>(())
/// ```
pub trait Hooks {
    /// A warp is about to carry out an instruction.
    fn instruction(&mut self, event: &InstructionEvent<'_>) {
        let _ = event;
    }

    /// A warp is about to read or write memory.
    fn memory(&mut self, event: &MemoryEvent<'_>) {
        let _ = event;
    }
}
