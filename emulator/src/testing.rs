//! PTX in `cargo test`: one kernel, its arguments, several schedules, and a readable failure.
//!
//! [`ptx_test!`](crate::ptx_test) makes a whole test; [`Case`] is what it is made of, for tests that
//! need more; [`assert_clean!`](crate::assert_clean) is for launches made by hand. These panic, as
//! tests do; [`Case::try_run`] does not.

use crate::device::{Arg, Device, DevicePtr, LaunchConfig, Options};
use crate::module::Module;
use crate::report::Report;
use std::marker::PhantomData;

/// A number of the host as it lies in device memory. f16 and bf16 are `u16`.
pub trait Number: Copy + PartialEq + std::fmt::Debug {
    /// Its bytes, little end first.
    fn bytes(self) -> Vec<u8>;
    /// From exactly its bytes.
    fn from_bytes(bytes: &[u8]) -> Self;
}

macro_rules! numbers {
    ($($t:ident)*) => { $(impl Number for $t {
        fn bytes(self) -> Vec<u8> {
            self.to_le_bytes().to_vec()
        }
        fn from_bytes(bytes: &[u8]) -> $t {
            let mut own = [0; size_of::<$t>()];
            let n = own.len().min(bytes.len());
            own[..n].copy_from_slice(&bytes[..n]);
            $t::from_le_bytes(own)
        }
    })* };
}
numbers!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);

/// A buffer of a [`Case`], by its number.
#[derive(Debug)]
pub struct Buffer<T> {
    index: usize,
    len: usize,
    of: PhantomData<T>,
}

impl<T> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Buffer<T> {}

#[derive(Clone, Debug)]
enum Given {
    Value(Arg),
    /// Contents (or only a length), and which buffer it is.
    Buffer {
        name: String,
        data: Option<Vec<u8>>,
        bytes: u64,
    },
}

/// A grid or block: one, two or three numbers.
#[derive(Clone, Copy, Debug)]
pub struct Dims([u32; 3]);

impl From<u32> for Dims {
    fn from(x: u32) -> Dims {
        Dims([x, 1, 1])
    }
}

impl From<[u32; 2]> for Dims {
    fn from([x, y]: [u32; 2]) -> Dims {
        Dims([x, y, 1])
    }
}

impl From<[u32; 3]> for Dims {
    fn from(d: [u32; 3]) -> Dims {
        Dims(d)
    }
}

/// One launch of a kernel under several schedules: every one must be clean, and all must give the same
/// bytes.
///
/// ```
/// use ptx_emulator::Case;
///
/// let ptx = "
/// .version 7.8
/// .target sm_80
/// .address_size 64
/// .visible .entry fill(.param .u64 out, .param .u32 v) {
///     .reg .b64 %rd<4>; .reg .b32 %r<3>;
///     ld.param.u64 %rd1, [out];
///     ld.param.u32 %r1, [v];
///     mov.u32 %r2, %tid.x;
///     mul.wide.u32 %rd2, %r2, 4;
///     add.s64 %rd3, %rd1, %rd2;
///     st.global.u32 [%rd3], %r1;
///     ret;
/// }";
/// let mut case = Case::new(ptx, "fill").block(32);
/// let out = case.output::<u32>("out", 32);
/// case.arg(7u32);
/// case.run();
/// assert_eq!(case.read(out), [7; 32]);
///
/// // One word too few: the failure says where, with the line of the PTX.
/// let mut case = Case::new(ptx, "fill").block(32);
/// case.output::<u32>("out", 31);
/// case.arg(7u32);
/// let failure = case.try_run().unwrap_err();
/// assert!(failure.contains("offset 124 of `out` (124 bytes)"), "{failure}");
/// assert!(failure.contains("12 |     st.global.u32 [%rd3], %r1;"), "{failure}");
/// ```
#[derive(Clone, Debug)]
pub struct Case {
    ptx: String,
    kernel: String,
    config: LaunchConfig,
    options: Options,
    seeds: u64,
    order_matters: bool,
    given: Vec<Given>,
    /// Contents of the buffers after the first schedule.
    results: Vec<Vec<u8>>,
}

impl Case {
    /// The kernel of that name, with one CTA of 32 threads and eight schedules.
    pub fn new(ptx: &str, kernel: &str) -> Case {
        Case {
            ptx: ptx.to_string(),
            kernel: kernel.to_string(),
            config: LaunchConfig { grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 0 },
            options: Options::default(),
            seeds: 8,
            order_matters: false,
            given: Vec::new(),
            results: Vec::new(),
        }
    }

    /// CTAs.
    pub fn grid(mut self, grid: impl Into<Dims>) -> Case {
        self.config.grid = grid.into().0;
        self
    }

    /// Threads of a CTA.
    pub fn block(mut self, block: impl Into<Dims>) -> Case {
        self.config.block = block.into().0;
        self
    }

    /// Dynamic shared memory in bytes.
    pub fn shared(mut self, bytes: u32) -> Case {
        self.config.shared_bytes = bytes;
        self
    }

    /// Schedules to run: seeds 0 to `n` - 1, at least one.
    pub fn seeds(mut self, n: u64) -> Case {
        self.seeds = n.max(1);
        self
    }

    /// Other options; the seed is that of the schedule.
    pub fn options(mut self, options: Options) -> Case {
        self.options = options;
        self
    }

    /// The result may depend on the schedule, as a sum of floats by atomics does: only the first
    /// schedule's is kept, the others are checked but not compared.
    pub fn order_matters(mut self) -> Case {
        self.order_matters = true;
        self
    }

    fn buffer<T>(&mut self, name: &str, data: Option<Vec<u8>>, len: usize) -> Buffer<T> {
        let bytes = (len * size_of::<T>()) as u64;
        let index = self.given.iter().filter(|g| matches!(g, Given::Buffer { .. })).count();
        self.given.push(Given::Buffer { name: name.to_string(), data, bytes });
        Buffer { index, len, of: PhantomData }
    }

    /// The next argument is a buffer with these contents.
    pub fn input<T: Number>(&mut self, name: &str, data: &[T]) -> Buffer<T> {
        self.buffer(name, Some(data.iter().flat_map(|v| v.bytes()).collect()), data.len())
    }

    /// The next argument is a buffer of `len` numbers that were never written.
    pub fn output<T: Number>(&mut self, name: &str, len: usize) -> Buffer<T> {
        self.buffer(name, None, len)
    }

    /// The next argument is a number of that type.
    pub fn arg(&mut self, value: impl Number) {
        self.given.push(Given::Value(Arg::Bytes(value.bytes())));
    }

    /// Runs all schedules.
    ///
    /// # Panics
    /// With the message of [`Case::try_run`].
    #[track_caller]
    pub fn run(&mut self) -> Report {
        match self.try_run() {
            Ok(r) => r,
            Err(message) => panic!("{message}"),
        }
    }

    /// Runs all schedules and returns the report of the first.
    ///
    /// # Errors
    /// Why the PTX cannot be run, what the checkers found in which schedule, or which buffer differs
    /// between two schedules, with the lines of the PTX.
    pub fn try_run(&mut self) -> Result<Report, String> {
        let module = Module::parse_with(&self.ptx, &self.options.limits).map_err(|e| e.to_string())?;
        let mut first: Option<Report> = None;
        for seed in 0..self.seeds {
            let (report, buffers) = self.once(&module, seed).map_err(|e| e.to_string())?;
            if !report.is_clean() {
                return Err(format!("with seed {seed}: {}", describe(&report, Some(&module))));
            }
            match &first {
                None => {
                    self.results = buffers;
                    first = Some(report);
                }
                Some(_) if !self.order_matters => self.compare(&buffers, seed)?,
                Some(_) => {}
            }
        }
        first.ok_or_else(|| "no schedule was run".to_string())
    }

    fn once(&self, module: &Module, seed: u64) -> crate::Result<(Report, Vec<Vec<u8>>)> {
        let mut device = Device::new(Options { seed, ..self.options.clone() });
        let mut args = Vec::new();
        let mut buffers: Vec<(DevicePtr, u64)> = Vec::new();
        for g in &self.given {
            match g {
                Given::Value(a) => args.push(a.clone()),
                Given::Buffer { name, data, bytes } => {
                    let p = match data {
                        Some(d) => device.alloc_init(d, name)?,
                        None => device.alloc(*bytes, name)?,
                    };
                    buffers.push((p, *bytes));
                    args.push(Arg::Ptr(p));
                }
            }
        }
        let report = device.launch(module, &self.kernel, self.config, &args)?;
        let read = |(p, n): (DevicePtr, u64)| {
            let mut data = vec![0; n as usize];
            device.copy_from(p, &mut data).map(|()| data)
        };
        Ok((report, buffers.into_iter().map(read).collect::<crate::Result<_>>()?))
    }

    fn compare(&self, other: &[Vec<u8>], seed: u64) -> Result<(), String> {
        let names = self.given.iter().filter_map(|g| match g {
            Given::Buffer { name, .. } => Some(name),
            Given::Value(_) => None,
        });
        for ((name, a), b) in names.zip(&self.results).zip(other) {
            if let Some(at) = a.iter().zip(b).position(|(x, y)| x != y) {
                return Err(format!(
                    "kernel `{}`: the result depends on the schedule: `{name}` differs at byte {at} between seeds 0 and \
                     {seed}; if the order may matter (a sum of floats by atomics), say so with .order_matters()",
                    self.kernel
                ));
            }
        }
        Ok(())
    }

    /// Contents of a buffer after the first schedule; empty before [`Case::run`].
    pub fn read<T: Number>(&self, buffer: Buffer<T>) -> Vec<T> {
        let data = self.results.get(buffer.index).map_or(&[][..], Vec::as_slice);
        data.chunks_exact(size_of::<T>()).take(buffer.len).map(T::from_bytes).collect()
    }
}

/// What is wrong with a launch, for people: each finding with its line of the PTX.
pub fn describe(report: &Report, module: Option<&Module>) -> String {
    let n = report.findings.len();
    let mut out = match n {
        0 if report.completed => return format!("kernel `{}` is clean", report.kernel),
        0 => format!("kernel `{}` did not run to its end", report.kernel),
        1 => format!("kernel `{}` is not clean:", report.kernel),
        _ => format!("kernel `{}` is not clean, {n} findings:", report.kernel),
    };
    for (i, f) in report.findings.iter().take(20).enumerate() {
        out += &format!("\n{:>3}. {f}", i + 1);
        let lines = [Some(f.line), f.other.as_ref().map(|o| o.line)];
        for line in lines.into_iter().flatten().filter(|&l| l > 0) {
            if let Some(m) = module {
                out += &format!("\n{line:>10} | {}", m.line(line));
            }
        }
    }
    if n > 20 {
        out += &format!("\n     and {} more", n - 20);
    }
    out
}

/// Fails unless a launch was clean, with every finding; with the module as second argument also with
/// the lines of the PTX.
///
/// ```
/// # use ptx_emulator::{Device, LaunchConfig, Module, Options, assert_clean};
/// let ptx = ".version 7.8\n.target sm_80\n.address_size 64\n.visible .entry nothing() { ret; }";
/// let module = Module::parse(ptx)?;
/// let config = LaunchConfig { grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 0 };
/// let report = Device::new(Options::default()).launch(&module, "nothing", config, &[])?;
/// assert_clean!(report);
/// assert_clean!(report, module);
/// # Ok::<(), ptx_emulator::Error>(())
/// ```
#[macro_export]
macro_rules! assert_clean {
    ($report:expr $(,)?) => {{
        let report = &$report;
        assert!(report.is_clean(), "{}", $crate::describe(report, None));
    }};
    ($report:expr, $module:expr $(,)?) => {{
        let report = &$report;
        assert!(report.is_clean(), "{}", $crate::describe(report, Some(&$module)));
    }};
}

/// A test of one kernel: clean under eight schedules, the same result in each, and what the block says.
///
/// Arguments are `in NAME: SLICE`, `inout NAME: SLICE`, `out NAME: [TYPE; LENGTH]`, or a number with its
/// type; the last two kinds of buffers are vectors of that name in the block.
///
/// ```
/// ptx_emulator::ptx_test! {
///     fn scales_every_element {
///         ptx: include_str!("../tests/data/scale.ptx"),
///         kernel: "scale",
///         grid: 2,
///         block: 64,
///         args: [in x: &[1.5f32; 100], out y: [f32; 100], 3.0f32, 100u32],
///     } => {
///         assert_eq!(y, [4.5; 100]);
///     }
/// }
/// # fn main() { scales_every_element() }
/// ```
#[macro_export]
macro_rules! ptx_test {
    (
        $(#[$meta:meta])*
        fn $name:ident {
            ptx: $ptx:expr,
            kernel: $kernel:expr,
            grid: $grid:expr,
            block: $block:expr,
            $(shared: $shared:expr,)?
            args: [$($args:tt)*] $(,)?
        } => $check:block
    ) => {
        $(#[$meta])*
        #[cfg_attr(test, test)]
        fn $name() {
            #[allow(unused_mut)]
            let mut case = $crate::Case::new($ptx, $kernel).grid($grid).block($block);
            $(case = case.shared($shared);)?
            $crate::ptx_test!(@push case; $($args)*);
            case.run();
            $crate::ptx_test!(@bind case; $($args)*);
            $check
        }
    };
    (@push $case:ident;) => {};
    (@push $case:ident; in $name:ident: $data:expr $(, $($rest:tt)*)?) => {
        $case.input(stringify!($name), $data);
        $crate::ptx_test!(@push $case; $($($rest)*)?);
    };
    (@push $case:ident; inout $name:ident: $data:expr $(, $($rest:tt)*)?) => {
        let $name = $case.input(stringify!($name), $data);
        $crate::ptx_test!(@push $case; $($($rest)*)?);
    };
    (@push $case:ident; out $name:ident: [$ty:ty; $len:expr] $(, $($rest:tt)*)?) => {
        let $name = $case.output::<$ty>(stringify!($name), $len);
        $crate::ptx_test!(@push $case; $($($rest)*)?);
    };
    (@push $case:ident; $value:expr $(, $($rest:tt)*)?) => {
        $case.arg($value);
        $crate::ptx_test!(@push $case; $($($rest)*)?);
    };
    (@bind $case:ident;) => {};
    (@bind $case:ident; in $name:ident: $data:expr $(, $($rest:tt)*)?) => {
        $crate::ptx_test!(@bind $case; $($($rest)*)?);
    };
    (@bind $case:ident; inout $name:ident: $data:expr $(, $($rest:tt)*)?) => {
        #[allow(unused_variables)]
        let $name = $case.read($name);
        $crate::ptx_test!(@bind $case; $($($rest)*)?);
    };
    (@bind $case:ident; out $name:ident: [$ty:ty; $len:expr] $(, $($rest:tt)*)?) => {
        #[allow(unused_variables)]
        let $name = $case.read($name);
        $crate::ptx_test!(@bind $case; $($($rest)*)?);
    };
    (@bind $case:ident; $value:expr $(, $($rest:tt)*)?) => {
        $crate::ptx_test!(@bind $case; $($($rest)*)?);
    };
}
