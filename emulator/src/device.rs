//! The device: memory, options, launches.
//!
//! Module variables get their memory at the first launch of (or the first question about) a module
//! and keep it, so a kernel sees what the kernel before it left there.

use crate::counters::Counters;
use crate::error::{Error, Result};
use crate::exec;
use crate::hooks::Hooks;
use crate::inst::{Const, Program};
use crate::limits::{Limits, within};
use crate::memory::{Memory, function_address};
use crate::module::{Kernel, Module};
use crate::report::{Class, Finding, Report};
use crate::types::Space;
use std::collections::HashMap;
use std::time::Instant;

/// Which checkers run. All do by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Bounds, alignment, lifetime. Off: an access outside memory ends the launch with an error.
    pub mem: bool,
    /// Reads of what was never written.
    pub init: bool,
    /// Conflicting accesses to shared and global memory without an order.
    pub race: bool,
    /// Barriers and warp-wide operations. Deadlocks are reported in any case.
    pub sync: bool,
    /// Block, shared memory and grid against the kernel and the named SM.
    pub launch: bool,
    /// The step limit as a finding; off, it still ends the run.
    pub steps: bool,
}

impl Checks {
    /// Every checker.
    pub fn all() -> Checks {
        Checks { mem: true, init: true, race: true, sync: true, launch: true, steps: true }
    }

    /// None of them.
    pub fn none() -> Checks {
        Checks { mem: false, init: false, race: false, sync: false, launch: false, steps: false }
    }
}

impl Default for Checks {
    fn default() -> Checks {
        Checks::all()
    }
}

/// How a device runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seed of the schedule; 0 is round robin.
    pub seed: u64,
    /// Checkers.
    pub checks: Checks,
    /// Warp instructions after which a launch is ended.
    pub max_steps: u64,
    /// Compute capability whose limits hold, e.g. 80, 86, 89, 90.
    pub sm: u32,
    /// CTAs that are under way at the same time.
    pub resident_ctas: usize,
    /// Count sectors and bank conflicts (instructions are counted always).
    pub counters: bool,
    /// Keep the counters of every line as well.
    pub profile: bool,
    /// Host threads that run CTAs; 0 and 1 mean the calling one. The number changes nothing of memory,
    /// findings and counters: CTAs that reach each other's memory run on one thread in any case.
    pub threads: usize,
    /// Keep what was read and written of every allocation as well.
    pub buffers: bool,
    /// End a launch at its first finding, for those who ask only whether there is one.
    pub stop_at_finding: bool,
    /// How much a launch may ask for; that of device memory holds from the making of the device on.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            seed: 0,
            checks: Checks::all(),
            max_steps: 1 << 28,
            sm: 80,
            resident_ctas: 16,
            counters: true,
            profile: false,
            threads: std::thread::available_parallelism().map_or(1, |n| n.get().min(8)),
            buffers: false,
            stop_at_finding: false,
            limits: Limits::default(),
        }
    }
}

/// Shared memory a CTA may have at most, with the opt-in, by compute capability.
fn shared_limit(sm: u32) -> u32 {
    let kib = match sm {
        0..=69 => 48,
        70..=72 => 96,
        75..=79 => 64,
        80 | 87 => 163,
        86 | 89 | 120..=129 => 99,
        90..=119 => 227,
        _ => 48,
    };
    kib * 1024
}

/// A device address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// The address `bytes` further on.
    pub fn offset(self, bytes: u64) -> DevicePtr {
        DevicePtr(self.0.wrapping_add(bytes))
    }
}

/// Grid, block and dynamic shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// CTAs in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a CTA in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u32,
}

/// One kernel argument.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Arg {
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Ptr(DevicePtr),
    /// Raw bytes of exactly the parameter's size (small integers, structs).
    Bytes(Vec<u8>),
}

impl Arg {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Arg::U32(v) => v.to_le_bytes().to_vec(),
            Arg::I32(v) => v.to_le_bytes().to_vec(),
            Arg::U64(v) => v.to_le_bytes().to_vec(),
            Arg::I64(v) => v.to_le_bytes().to_vec(),
            Arg::F32(v) => v.to_le_bytes().to_vec(),
            Arg::F64(v) => v.to_le_bytes().to_vec(),
            Arg::Ptr(p) => p.0.to_le_bytes().to_vec(),
            Arg::Bytes(b) => b.clone(),
        }
    }
}

/// A device that runs PTX on the CPU. A clone has its own memory, with the same contents at the same
/// addresses: a snapshot that launches can be repeated from.
#[derive(Clone, Debug)]
pub struct Device {
    options: Options,
    memory: Memory,
    /// Addresses of the variables of each module, by module id.
    modules: HashMap<u64, Vec<u64>>,
    spare: exec::Spare,
}

impl Device {
    /// A device without any memory in use.
    pub fn new(options: Options) -> Device {
        let memory = Memory::new(options.limits.memory_bytes);
        Device { options, memory, modules: HashMap::new(), spare: exec::Spare::default() }
    }

    /// The options; changes hold from the next launch on.
    pub fn options_mut(&mut self) -> &mut Options {
        &mut self.options
    }

    /// The options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Allocates `bytes` of memory that counts as never written; the name appears in findings.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn alloc(&mut self, bytes: u64, name: &str) -> Result<DevicePtr> {
        self.memory.alloc(bytes, name).map(DevicePtr)
    }

    /// Allocates and fills.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn alloc_init(&mut self, data: &[u8], name: &str) -> Result<DevicePtr> {
        let p = self.alloc(data.len() as u64, name)?;
        self.copy_to(p, data)?;
        Ok(p)
    }

    /// Host to device.
    ///
    /// # Errors
    /// [`Error::HostAccess`] unless the whole range lies in one live allocation.
    pub fn copy_to(&mut self, to: DevicePtr, data: &[u8]) -> Result<()> {
        self.memory.write(to.0, data)
    }

    /// Device to host.
    ///
    /// # Errors
    /// As [`Device::copy_to`].
    pub fn copy_from(&self, from: DevicePtr, out: &mut [u8]) -> Result<()> {
        self.memory.read(from.0, out)
    }

    /// Device to device; bytes never written stay so.
    ///
    /// # Errors
    /// As [`Device::copy_to`], for either side.
    pub fn copy_device(&mut self, to: DevicePtr, from: DevicePtr, bytes: u64) -> Result<()> {
        self.memory.copy(to.0, from.0, bytes)
    }

    /// Sets `bytes` bytes.
    ///
    /// # Errors
    /// As [`Device::copy_to`].
    pub fn memset(&mut self, at: DevicePtr, value: u8, bytes: u64) -> Result<()> {
        self.memory.fill(at.0, value, bytes)
    }

    /// Frees an allocation; its addresses are never given again, so later uses are found.
    ///
    /// # Errors
    /// [`Error::HostAccess`] when it is not the beginning of a live allocation.
    pub fn free(&mut self, at: DevicePtr) -> Result<()> {
        self.memory.free(at.0)
    }

    /// Address of a `.global` or `.const` variable.
    ///
    /// # Errors
    /// [`Error::UnknownSymbol`], [`Error::OutOfMemory`].
    pub fn symbol(&mut self, module: &Module, name: &str) -> Result<DevicePtr> {
        let addresses = self.load(module)?;
        let found =
            module.inner.vars.iter().position(|v| {
                v.name == name && matches!(v.space, Space::Global | Space::Const) && !v.external
            });
        match found {
            Some(i) => Ok(DevicePtr(addresses[i])),
            None => Err(Error::UnknownSymbol { name: name.to_string() }),
        }
    }

    /// Gives the variables of a module their memory, once.
    fn load(&mut self, module: &Module) -> Result<Vec<u64>> {
        if let Some(a) = self.modules.get(&module.inner.id) {
            return Ok(a.clone());
        }
        let vars = &module.inner.vars;
        let mut at = vec![0u64; vars.len()];
        for (i, v) in vars.iter().enumerate() {
            if matches!(v.space, Space::Global | Space::Const) && !v.external {
                at[i] = self.memory.alloc(v.size, &v.name)?;
                // Module variables without an initialiser are zero.
                let mut data = v.init.clone();
                data.resize(v.size as usize, 0);
                self.memory.write(at[i], &data)?;
            }
        }
        for (i, v) in vars.iter().enumerate() {
            for r in &v.relocs {
                let own = vars.iter().position(|t| t.name == r.symbol && !t.external);
                let base = match (own, module.inner.by_name.get(&r.symbol)) {
                    (Some(target), _) => at[target],
                    (None, Some(&f)) => function_address(f),
                    _ => return Err(Error::Unresolved { line: v.line, name: r.symbol.clone() }),
                };
                let value = base.wrapping_add(r.addend as u64);
                let place = at[i] + r.at as u64;
                match r.byte {
                    Some(k) => self.memory.write(place, &[(value >> (8 * k)) as u8])?,
                    None => self.memory.write(place, &value.to_le_bytes())?,
                }
            }
            if v.space == Space::Const
                && let Some(k) = self.memory.find(at[i])
            {
                self.memory.allocs[k].readonly = true;
            }
        }
        self.modules.insert(module.inner.id, at.clone());
        Ok(at)
    }

    /// How many CTAs may be under way at the same time.
    fn resident(&self, program: &Program, config: &LaunchConfig, shared: u64) -> Result<usize> {
        let limits = &self.options.limits;
        let ctas = config.grid.iter().fold(1u64, |n, &g| n.saturating_mul(u64::from(g)));
        within("ctas", ctas, limits.ctas, || format!("CTAs of a launch of kernel `{}`", program.name))?;
        let threads: u64 = config.block.iter().map(|&b| u64::from(b)).product();
        // Registers with the marks of what was written; local memory likewise; clocks of the race
        // checker. Shared memory has 12 bytes a byte of records, and a mark a bit.
        let warp = u64::from(program.slots) * 132
            + u64::from(program.preds) * 8
            + u64::from(program.local_bytes) * 36
            + 6144;
        let cta = threads.div_ceil(32).saturating_mul(warp).saturating_add(shared.saturating_mul(14));
        within("state_bytes", cta, limits.state_bytes, || {
            format!("bytes of registers, local and shared memory of one CTA of kernel `{}`", program.name)
        })?;
        let most = usize::try_from(limits.state_bytes / cta.max(1)).unwrap_or(usize::MAX);
        Ok(self.options.resident_ctas.clamp(1, most.max(1)))
    }

    /// What does not fit about a launch.
    fn validate(
        &self,
        kernel: &Kernel,
        c: &LaunchConfig,
        fixed: u32,
        args: &[Arg],
    ) -> Vec<(&'static str, String)> {
        let mut bad = Vec::new();
        let threads = c.block.iter().map(|&b| u64::from(b)).product::<u64>();
        if c.grid.contains(&0) || c.block.contains(&0) {
            bad.push((
                "empty launch",
                format!("grid {:?} and block {:?} must have no zero", c.grid, c.block),
            ));
        }
        if threads > 1024 || c.block[2] > 64 {
            bad.push((
                "block too large",
                format!("block {:?} has {threads} threads; a CTA has at most 1024, z at most 64", c.block),
            ));
        }
        if c.grid[1] > 65535 || c.grid[2] > 65535 || c.grid[0] > i32::MAX as u32 {
            bad.push(("grid too large", format!("grid {:?} is beyond [2147483647, 65535, 65535]", c.grid)));
        }
        if let Some(r) = kernel.reqntid
            && r != c.block
        {
            bad.push((
                "block differs from .reqntid",
                format!("block {:?}, the kernel requires {r:?}", c.block),
            ));
        }
        if let Some(m) = kernel.maxntid {
            let most = m.iter().map(|&b| u64::from(b)).product::<u64>();
            if threads > most {
                bad.push(("block beyond .maxntid", format!("{threads} threads, the kernel allows {most}")));
            }
        }
        let (limit, total) = (shared_limit(self.options.sm), u64::from(fixed) + u64::from(c.shared_bytes));
        if total > u64::from(limit) {
            let sm = self.options.sm;
            bad.push((
                "too much shared memory",
                format!("{fixed} static and {} dynamic bytes; sm_{sm} has {limit} a CTA", c.shared_bytes),
            ));
        }
        if args.len() != kernel.params.len() {
            bad.push((
                "argument count",
                format!("{} arguments for {} parameters", args.len(), kernel.params.len()),
            ));
        }
        for (i, (a, p)) in args.iter().zip(&kernel.params).enumerate() {
            let n = a.bytes().len();
            if n != p.size as usize {
                bad.push((
                    "argument size",
                    format!(
                        "argument {i} has {n} bytes, parameter `{}` (.{}) has {}",
                        p.name,
                        p.ty.name(),
                        p.size
                    ),
                ));
            }
        }
        bad
    }

    /// Runs a kernel to its end.
    ///
    /// Faults of the kernel and misfits of the launch are findings of the report, not errors; with
    /// misfits nothing is run.
    ///
    /// # Errors
    /// [`Error::UnknownKernel`]; [`Error::Unsupported`] and [`Error::Parse`] when the body cannot be
    /// decoded; [`Error::Launch`] for a misfit and [`Error::IllegalAddress`] for a stray access with
    /// the checker concerned off.
    pub fn launch(
        &mut self,
        module: &Module,
        kernel: &str,
        config: LaunchConfig,
        args: &[Arg],
    ) -> Result<Report> {
        self.start(module, kernel, config, args, None)
    }

    /// As [`Device::launch`], telling `hooks` of every instruction and every access to memory.
    ///
    /// # Errors
    /// As [`Device::launch`].
    pub fn launch_with(
        &mut self,
        module: &Module,
        kernel: &str,
        config: LaunchConfig,
        args: &[Arg],
        hooks: &mut dyn Hooks,
    ) -> Result<Report> {
        self.start(module, kernel, config, args, Some(hooks))
    }

    fn start(
        &mut self,
        module: &Module,
        kernel: &str,
        config: LaunchConfig,
        args: &[Arg],
        hooks: Option<&mut dyn Hooks>,
    ) -> Result<Report> {
        let program = module.program(kernel)?;
        let Some(info) = module.kernel(kernel) else {
            return Err(Error::UnknownKernel { name: kernel.to_string(), available: String::new() });
        };
        let misfits = self.validate(&info, &config, program.shared_bytes, args);
        let checked = self.options.checks.launch;
        // What cannot run at all is refused even when nobody checks.
        let fatal = |kind: &str| {
            !matches!(
                kind,
                "block differs from .reqntid" | "block beyond .maxntid" | "too much shared memory"
            )
        };
        let total = u64::from(program.dynamic_at) + u64::from(config.shared_bytes);
        let hopeless = total > u64::from(self.options.limits.shared_bytes);
        if let Some((_, problem)) = misfits.iter().find(|(k, _)| !checked && (fatal(k) || hopeless)) {
            return Err(Error::Launch { kernel: kernel.to_string(), problem: problem.clone() });
        }
        if checked && !misfits.is_empty() {
            let findings = misfits
                .into_iter()
                .map(|(kind, message)| Finding {
                    class: Class::Launch,
                    kind: kind.to_string(),
                    message: format!("{kind}: {message}"),
                    kernel: kernel.to_string(),
                    line: 0,
                    source: None,
                    cta: [0; 3],
                    warp: 0,
                    lanes: 0,
                    address: None,
                    allocation: None,
                    count: 1,
                    other: None,
                })
                .collect();
            return Ok(Report {
                kernel: kernel.to_string(),
                findings,
                counters: Counters::default(),
                completed: false,
                wall_ns: 0,
                output: String::new(),
                profile: Vec::new(),
                buffers: Vec::new(),
            });
        }
        let resident = self.resident(&program, &config, total)?;
        let addresses = self.load(module)?;
        let size = info.params.last().map_or(0, |p| p.offset + p.size);
        let mut params = vec![0u8; size as usize];
        for (a, p) in args.iter().zip(&info.params) {
            params[p.offset as usize..(p.offset + p.size) as usize].copy_from_slice(&a.bytes());
        }
        let consts: Vec<_> = program
            .consts
            .iter()
            .map(|(r, c)| {
                let v = match c {
                    Const::Value(v) => *v,
                    Const::Symbol(i, offset) => addresses[*i].wrapping_add(*offset as u64),
                    Const::Special(_) => 0,
                };
                (*r, c.clone(), v)
            })
            .collect();
        let dynamic_end = if config.shared_bytes > 0 { total as u32 } else { program.shared_bytes };
        let start = Instant::now();
        let launch = exec::Launch {
            prog: &program,
            mem: &self.memory,
            params: &params,
            consts: &consts,
            grid: config.grid,
            block: config.block,
            shared: dynamic_end,
            dynamic: config.shared_bytes,
            options: &self.options,
            spare: &self.spare,
            files: &module.inner.files,
            resident,
        };
        let out = exec::run(launch, hooks)?;
        Ok(Report {
            kernel: kernel.to_string(),
            findings: out.findings,
            counters: out.counters,
            completed: out.completed,
            wall_ns: start.elapsed().as_nanos() as u64,
            output: out.output,
            buffers: out.buffers,
            profile: crate::profile::by_line(&out.profile, &program, &module.inner.files),
        })
    }
}
