//! Where a launch spent its instructions and its memory traffic: by PTX line, by source line, as hints,
//! and as text, HTML or SVG.
//!
//! Everything is counted, nothing is timed. The order of hints and hot lines needs one number a line;
//! it is "passes": a warp instruction is one, so is a turn of the banks of shared memory, a lane that
//! waits for another in an atomic, and every four sectors (128 bytes) of global or local memory.

mod hints;
mod html;
mod svg;
mod text;

pub use hints::Hint;

use crate::counters::Counters;
use crate::inst::{Op, Program};
use crate::report::{BufferTraffic, Report};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// What one PTX line did in a launch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LineProfile {
    /// PTX line.
    pub line: u32,
    /// File and line by `.loc`.
    pub source: Option<(String, u32)>,
    /// Where that line was inlined, if it was.
    pub inlined_at: Option<(String, u32)>,
    /// Lanes of the executing warps that did not take part, of 32 an instruction. A branch that is not
    /// taken idles nobody.
    pub idle_lanes: u64,
    /// Counters of the instructions of that line.
    pub counters: Counters,
}

/// What the PTX lines of one source line did in a launch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SourceProfile {
    /// File as `.file` names it.
    pub file: String,
    /// Its line.
    pub line: u32,
    /// Where that line was inlined, if it was: each call is a line of its own.
    pub inlined_at: Option<(String, u32)>,
    /// PTX lines made from it that ran.
    pub ptx_lines: Vec<u32>,
    /// Idle lanes of theirs, as in [`LineProfile`].
    pub idle_lanes: u64,
    /// Their counters.
    pub counters: Counters,
}

/// Sums counters of instructions to lines.
pub(crate) fn by_line(
    counts: &[Counters],
    program: &Program,
    files: &HashMap<u32, String>,
) -> Vec<LineProfile> {
    let mut lines: BTreeMap<u32, LineProfile> = BTreeMap::new();
    for ((c, p), inst) in counts.iter().zip(&program.places).zip(&program.insts) {
        if c.warp_instructions == 0 {
            continue;
        }
        let l = lines.entry(p.line).or_default();
        l.line = p.line;
        // Line 0 is code of no line.
        let named = |file: u32, line: u32| {
            files.get(&file).filter(|_| file != 0 && line != 0).map(|f| (f.clone(), line))
        };
        l.source = named(p.file, p.source);
        l.inlined_at = named(p.call.0, p.call.1).filter(|_| l.source.is_some());
        if !matches!(inst.op, Op::Bra { .. } | Op::Exit | Op::RetFn { .. }) {
            l.idle_lanes += (32 * c.warp_instructions).saturating_sub(c.lane_instructions);
        }
        l.counters.add(c);
    }
    lines.into_values().collect()
}

/// A profiled launch beside the text of its PTX and, where they are found, of its sources.
///
/// ```
/// # use ptx_emulator::{Arg, Device, LaunchConfig, Module, Options, Profile};
/// let ptx = "
/// .version 7.8
/// .target sm_80
/// .address_size 64
/// .visible .entry stride(.param .u64 x) {
///     .reg .b64 %rd<4>; .reg .b32 %r<3>;
///     ld.param.u64 %rd1, [x];
///     mov.u32 %r1, %tid.x;
///     mul.wide.u32 %rd2, %r1, 128;
///     add.s64 %rd3, %rd1, %rd2;
///     ld.global.u32 %r2, [%rd3];
///     ret;
/// }";
/// let module = Module::parse(ptx)?;
/// let mut device = Device::new(Options { profile: true, ..Options::default() });
/// let x = device.alloc_init(&[0; 4096], "x")?;
/// let config = LaunchConfig { grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 0 };
/// let report = device.launch(&module, "stride", config, &[Arg::Ptr(x)])?;
///
/// let profile = Profile::new(ptx, &report);
/// let worst = &profile.hints()[0];
/// assert_eq!((worst.kind, worst.ptx_lines[0]), ("uncoalesced", 11));
/// assert!(worst.message.starts_with("32.0 sectors a request where 4.0 would hold the bytes"));
/// println!("{}", profile.text(10));
/// # Ok::<(), ptx_emulator::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Profile<'a> {
    kernel: &'a str,
    ptx: Vec<&'a str>,
    lines: &'a [LineProfile],
    buffers: &'a [BufferTraffic],
    total: Line,
    /// Lines of the source files that were found.
    sources: HashMap<String, Vec<String>>,
}

impl<'a> Profile<'a> {
    /// The profile of a launch that was made with [`Options::profile`](crate::Options::profile).
    pub fn new(ptx: &'a str, report: &'a Report) -> Profile<'a> {
        let mut total = Line::default();
        report.profile.iter().for_each(|l| total.add(&l.into()));
        Profile {
            kernel: &report.kernel,
            ptx: ptx.lines().collect(),
            lines: &report.profile,
            buffers: &report.buffers,
            total,
            sources: HashMap::new(),
        }
    }

    /// Reads the source files named by `.file`: as named, below `dir`, or by their last part in `dir`.
    /// Those not found are left out; the PTX is shown in any case.
    pub fn with_sources(mut self, dir: &Path) -> Profile<'a> {
        for (name, _) in self.lines.iter().flat_map(|l| [&l.source, &l.inlined_at]).flatten() {
            if self.sources.contains_key(name) {
                continue;
            }
            let path = Path::new(name);
            let places = [dir.join(path), path.file_name().map_or(dir.to_path_buf(), |n| dir.join(n))];
            // No source file is that large; a path may name anything.
            let readable = |p: &&std::path::PathBuf| {
                std::fs::metadata(p).is_ok_and(|m| m.is_file() && m.len() < 16 << 20)
            };
            let text = places.iter().find(readable).and_then(|p| std::fs::read_to_string(p).ok());
            if let Some(text) = text {
                self.sources.insert(name.clone(), text.lines().map(str::to_string).collect());
            }
        }
        self
    }

    /// Counters by source line, most passes first; empty without `.loc`.
    pub fn by_source(&self) -> Vec<SourceProfile> {
        let mut map: BTreeMap<_, SourceProfile> = BTreeMap::new();
        for l in self.lines {
            let Some((file, line)) = &l.source else { continue };
            let s = map.entry((file, *line, &l.inlined_at)).or_default();
            (s.file, s.line, s.inlined_at) = (file.clone(), *line, l.inlined_at.clone());
            s.ptx_lines.push(l.line);
            s.counters.add(&l.counters);
            s.idle_lanes += l.idle_lanes;
        }
        let mut all: Vec<SourceProfile> = map.into_values().collect();
        all.sort_by_key(|s| std::cmp::Reverse(passes(&s.counters)));
        all
    }

    /// PTX lines, most passes first.
    pub fn hot(&self) -> Vec<&LineProfile> {
        let mut all: Vec<&LineProfile> = self.lines.iter().collect();
        all.sort_by_key(|l| std::cmp::Reverse(passes(&l.counters)));
        all
    }

    /// Text of a PTX line.
    fn ptx_line(&self, line: u32) -> &str {
        (line as usize).checked_sub(1).and_then(|i| self.ptx.get(i)).map_or("", |t| t.trim())
    }

    /// Text of a source line, if the file was found.
    fn source_line(&self, file: &str, line: u32) -> Option<&str> {
        let lines = self.sources.get(file)?;
        (line as usize).checked_sub(1).and_then(|i| lines.get(i)).map(|t| t.trim())
    }

    /// `file:line` without the directories, and where it was inlined.
    fn short(file: &str, line: u32, inlined_at: Option<&(String, u32)>) -> String {
        let name = Path::new(file).file_name().map_or(file.into(), |n| n.to_string_lossy());
        match inlined_at {
            Some((file, at)) => format!("{name}:{line} in {}", Self::short(file, *at, None)),
            None => format!("{name}:{line}"),
        }
    }

    /// Text of the source line, or of the one it was inlined at, whichever is found first.
    fn code_of(&self, source: (&str, u32), inlined_at: Option<&(String, u32)>) -> Option<&str> {
        let call = || inlined_at.and_then(|(file, line)| self.source_line(file, *line));
        self.source_line(source.0, source.1).or_else(call)
    }

    /// What the launch did, a sentence a part of the machine.
    fn summary(&self) -> Vec<String> {
        let t = &self.total.counters;
        let mut all = vec![format!(
            "{} warp instructions, {} lane instructions, {:.1}% of the lanes idle",
            count(t.warp_instructions),
            count(t.lane_instructions),
            100.0 * self.total.idle_fraction()
        )];
        if t.global_requests > 0 {
            all.push(format!(
                "global memory: {} asked for in {} sectors of 32 bytes ({} would hold them)",
                bytes(t.global_bytes()),
                count(t.global_sectors()),
                count(t.global_sectors_ideal)
            ));
        }
        if let Some(degree) = t.conflict_degree() {
            let moved = bytes(t.shared_bytes);
            all.push(format!(
                "shared memory: {moved}, {degree:.2} passes over the banks for each one needed"
            ));
        }
        if t.local_bytes > 0 {
            all.push(format!("local memory: {}", bytes(t.local_bytes)));
        }
        if let Some(intensity) = t.mma_intensity().filter(|_| t.mma_operations > 0) {
            let n = count(t.mma_operations);
            all.push(format!("mma: {n} operations, {intensity:.1} for each byte of the sectors"));
        }
        all
    }
}

/// Counters with idle lanes: of a line, or of all.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    counters: Counters,
    idle_lanes: u64,
}

impl From<&LineProfile> for Line {
    fn from(l: &LineProfile) -> Line {
        Line { counters: l.counters, idle_lanes: l.idle_lanes }
    }
}

impl From<&SourceProfile> for Line {
    fn from(s: &SourceProfile) -> Line {
        Line { counters: s.counters, idle_lanes: s.idle_lanes }
    }
}

impl Line {
    fn add(&mut self, o: &Line) {
        self.counters.add(&o.counters);
        self.idle_lanes += o.idle_lanes;
    }

    /// Share of lanes that did not take part, from 0 to 1.
    fn idle_fraction(&self) -> f64 {
        self.idle_lanes as f64 / (32 * self.counters.warp_instructions).max(1) as f64
    }

    /// Share of all passes, in percent.
    fn share(&self, total: &Line) -> f64 {
        100.0 * passes(&self.counters) as f64 / passes(&total.counters).max(1) as f64
    }

    /// Sectors a request and the fewest that would do, as text.
    fn sectors(&self) -> String {
        let both = self.counters.sectors_per_request();
        both.map(|(s, i)| format!("{s:.1} ({i:.1})")).unwrap_or_default()
    }

    /// Passes over the banks for each one needed, as text, where there are conflicts.
    fn conflicts(&self) -> String {
        let degree = self.counters.conflict_degree().filter(|_| self.counters.bank_conflicts > 0);
        degree.map(|d| format!("{d:.1}x")).unwrap_or_default()
    }

    /// All bytes, whatever the space, as text.
    fn moved(&self) -> String {
        let c = &self.counters;
        match c.global_bytes() + c.shared_bytes + c.local_bytes {
            0 => String::new(),
            n => bytes(n),
        }
    }

    /// Far more sectors than needed.
    fn scattered(&self) -> bool {
        // A quarter more is what a row that begins amid a sector costs.
        self.counters.sectors_per_request().is_some_and(|(s, i)| s > 1.25 * i)
    }
}

/// The number lines are ordered by; see the head of this file.
fn passes(c: &Counters) -> u64 {
    c.warp_instructions
        + c.global_sectors().div_ceil(4)
        + c.local_bytes.div_ceil(128)
        + c.shared_passes_ideal
        + c.bank_conflicts
        + c.atomic_conflicts
}

/// A count with at most four digits.
fn count(n: u64) -> String {
    let v = n as f64;
    match n {
        0..10_000 => n.to_string(),
        10_000..10_000_000 => format!("{:.1}k", v / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1}M", v / 1e6),
        _ => format!("{:.1}G", v / 1e9),
    }
}

/// Bytes in binary units.
fn bytes(n: u64) -> String {
    let v = n as f64;
    match n {
        0..10_240 => format!("{n} B"),
        10_240..10_485_760 => format!("{:.1} KiB", v / 1024.0),
        10_485_760..10_737_418_240 => format!("{:.1} MiB", v / 1048576.0),
        _ => format!("{:.1} GiB", v / 1073741824.0),
    }
}
