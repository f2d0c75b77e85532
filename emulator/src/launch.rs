//! LAUNCH.json: one kernel launch described in a file, for the command line.
//!
//! Paths are relative to the file. `{"in": F}` is a buffer filled from F, with `"out"` written back
//! after the run; `{"bytes": N, "out": F}` is a buffer that counts as never written. Everything that
//! can be wrong with the file is said before the kernel runs.

use crate::device::{Arg, Checks, Device, DevicePtr, LaunchConfig, Options};
use crate::error::Error;
use crate::limits::Limits;
use crate::module::{Module, Param};
use crate::report::{Class, Report};
use serde::Deserialize;
use std::collections::HashMap;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// Why a launch file could not be run.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum LaunchError {
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Not the JSON that is expected.
    #[error("not a launch file: {0}")]
    Json(#[from] serde_json::Error),
    /// A value that cannot be used: what is wrong and what would be right.
    #[error("{0}")]
    Value(String),
    /// The module or the launch.
    #[error("{ptx}: {source}")]
    Emulator {
        /// The PTX file.
        ptx: PathBuf,
        /// What is wrong.
        source: Error,
    },
    /// A buffer that cannot be made.
    #[error(transparent)]
    Buffer(#[from] Error),
}

/// Where the files of a launch are.
pub trait Files {
    /// The contents of a file of at most `most` bytes.
    ///
    /// # Errors
    /// What stands in the way.
    fn read(&mut self, path: &Path, most: u64) -> std::io::Result<Vec<u8>>;

    /// Says before the run whether a file could be written.
    ///
    /// # Errors
    /// What stands in the way.
    fn can_write(&mut self, path: &Path) -> std::io::Result<()>;

    /// Writes a file.
    ///
    /// # Errors
    /// What stands in the way.
    fn write(&mut self, path: &Path, data: &[u8]) -> std::io::Result<()>;
}

/// Files of a directory; absolute paths are themselves.
#[derive(Clone, Debug)]
pub struct Disk(pub PathBuf);

impl Files for Disk {
    fn read(&mut self, path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
        let path = self.0.join(path);
        // Before it is opened: opening a pipe would wait for its writer.
        if !std::fs::metadata(&path)?.is_file() {
            return Err(std::io::Error::other("not a regular file"));
        }
        let mut data = Vec::new();
        std::fs::File::open(&path)?.take(most.saturating_add(1)).read_to_end(&mut data)?;
        if data.len() as u64 > most {
            return Err(std::io::Error::other(format!("longer than the limit of {most} bytes")));
        }
        Ok(data)
    }

    fn can_write(&mut self, path: &Path) -> std::io::Result<()> {
        let path = self.0.join(path);
        if path.is_dir() {
            return Err(std::io::Error::other("is a directory; the output of a buffer needs a file name"));
        }
        match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() && !dir.is_dir() => {
                Err(std::io::Error::other(format!("no directory {}; make it first", dir.display())))
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, path: &Path, data: &[u8]) -> std::io::Result<()> {
        std::fs::write(self.0.join(path), data)
    }
}

/// The contents of a LAUNCH.json.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchFile {
    /// PTX file.
    pub ptx: PathBuf,
    /// Entry to run.
    pub kernel: String,
    /// CTAs, one to three numbers.
    pub grid: Vec<u32>,
    /// Threads, one to three numbers.
    pub block: Vec<u32>,
    /// Dynamic shared memory.
    #[serde(default)]
    pub shared_bytes: u32,
    /// Arguments in order.
    #[serde(default)]
    pub args: Vec<ArgSpec>,
    /// Checkers to run; all when missing.
    pub check: Option<Vec<String>>,
}

/// One argument of a LAUNCH.json.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArgSpec {
    #[serde(rename = "in")]
    input: Option<PathBuf>,
    out: Option<PathBuf>,
    bytes: Option<u64>,
    u32: Option<u32>,
    i32: Option<i32>,
    u64: Option<u64>,
    i64: Option<i64>,
    f32: Option<f64>,
    f64: Option<f64>,
}

const FORMS: &str = "{\"in\"}, {\"in\", \"out\"}, {\"bytes\"}, {\"bytes\", \"out\"}, {\"u32\"}, {\"i32\"}, {\"u64\"}, {\"i64\"}, \
     {\"f32\"}, {\"f64\"}";

/// What an argument asks for.
enum Wanted<'a> {
    Buffer { input: Option<&'a Path>, bytes: u64, out: Option<&'a Path> },
    Scalar(Arg),
}

impl ArgSpec {
    fn wanted(&self, i: usize) -> Result<Wanted<'_>, LaunchError> {
        let wrong = |what: &str| LaunchError::Value(format!("args[{i}] {what}; it must be one of {FORMS}"));
        let mut scalars = [
            self.u32.map(Arg::U32),
            self.i32.map(Arg::I32),
            self.u64.map(Arg::U64),
            self.i64.map(Arg::I64),
            self.f32.map(|v| Arg::F32(v as f32)),
            self.f64.map(Arg::F64),
        ]
        .into_iter()
        .flatten();
        let (scalar, more) = (scalars.next(), scalars.next());
        let buffer = self.input.is_some() || self.bytes.is_some();
        match scalar {
            Some(_) if more.is_some() || buffer => Err(wrong("is several things")),
            Some(_) if self.out.is_some() => Err(wrong("is a number, which has no \"out\"")),
            Some(Arg::F32(v)) if v.is_infinite() => Err(LaunchError::Value(format!(
                "args[{i}]: {:e} is beyond the range of f32",
                self.f32.unwrap_or_default()
            ))),
            Some(a) => Ok(Wanted::Scalar(a)),
            None if self.input.is_some() && self.bytes.is_some() => {
                Err(wrong("has \"in\" and \"bytes\": the size of a buffer is that of its file"))
            }
            None if !buffer && self.out.is_some() => {
                Err(wrong("has \"out\" but neither \"in\" nor \"bytes\""))
            }
            None if !buffer => Err(wrong("is nothing")),
            None => Ok(Wanted::Buffer {
                input: self.input.as_deref(),
                bytes: self.bytes.unwrap_or(0),
                out: self.out.as_deref(),
            }),
        }
    }
}

/// Reads names of checkers, as in `--check mem,init` or `none`; steps and launch stay on.
///
/// # Errors
/// The name that is not known.
pub fn parse_checks<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Checks, String> {
    let mut c = Checks { launch: true, steps: true, ..Checks::none() };
    for n in names {
        match n.trim() {
            "mem" => c.mem = true,
            "init" => c.init = true,
            "race" => c.race = true,
            "sync" => c.sync = true,
            "launch" | "steps" | "" | "none" => {}
            "all" => c = Checks::all(),
            other => {
                return Err(format!("`{other}` is no checker; there are mem, init, race, sync, all, none"));
            }
        }
    }
    Ok(c)
}

fn dims(v: &[u32], what: &str) -> Result<[u32; 3], LaunchError> {
    match *v {
        [x] => Ok([x, 1, 1]),
        [x, y] => Ok([x, y, 1]),
        [x, y, z] => Ok([x, y, z]),
        _ => {
            Err(LaunchError::Value(format!("\"{what}\" has {} numbers; one to three are expected", v.len())))
        }
    }
}

/// `a/./b` and `a/b` are one file.
fn tidy(path: &Path) -> PathBuf {
    path.components().filter(|c| *c != Component::CurDir).collect()
}

/// Integers of 32 bits are narrowed to parameters of 8 and 16, for which there is no form of their own.
fn narrowed(arg: Arg, param: Option<&Param>) -> Arg {
    let value = match arg {
        Arg::U32(v) => i64::from(v),
        Arg::I32(v) => i64::from(v),
        other => return other,
    };
    let fits = match param.map(|p| p.size) {
        Some(1) => (-0x80..0x100).contains(&value),
        Some(2) => (-0x8000..0x1_0000).contains(&value),
        _ => false,
    };
    let size = param.map_or(0, |p| p.size as usize);
    if fits { Arg::Bytes(value.to_le_bytes()[..size].to_vec()) } else { arg }
}

impl LaunchFile {
    /// Reads the JSON and checks all that can be checked without other files.
    ///
    /// # Errors
    /// [`LaunchError::Json`] with line and column, [`LaunchError::Value`].
    ///
    /// ```
    /// use ptx_emulator::LaunchFile;
    ///
    /// let json = r#"{"ptx": "k.ptx", "kernel": "k", "grid": [1], "block": [32], "args": [{"u32": -1}]}"#;
    /// let error = LaunchFile::from_json(json.as_bytes()).unwrap_err().to_string();
    /// assert!(error.contains("invalid value: integer `-1`, expected u32 at line 1"), "{error}");
    /// ```
    pub fn from_json(json: &[u8]) -> Result<LaunchFile, LaunchError> {
        let file: LaunchFile = serde_json::from_slice(json)?;
        dims(&file.grid, "grid")?;
        dims(&file.block, "block")?;
        file.checks()?;
        let mut outs: HashMap<PathBuf, usize> = HashMap::new();
        for (i, a) in file.args.iter().enumerate() {
            let Wanted::Buffer { out: Some(out), .. } = a.wanted(i)? else { continue };
            if let Some(first) = outs.insert(tidy(out), i) {
                return Err(LaunchError::Value(format!(
                    "args[{first}] and args[{i}] both have \"out\": {out:?}; give each buffer a file of its own"
                )));
            }
        }
        Ok(file)
    }

    fn checks(&self) -> Result<Checks, LaunchError> {
        match &self.check {
            Some(names) => parse_checks(names.iter().map(String::as_str)).map_err(LaunchError::Value),
            None => Ok(Checks::all()),
        }
    }

    /// The text of the PTX file.
    ///
    /// # Errors
    /// [`LaunchError::Io`]; [`LaunchError::Value`] when it is no text.
    pub fn ptx_text(&self, files: &mut dyn Files, limits: &Limits) -> Result<String, LaunchError> {
        let path = &self.ptx;
        let data = files
            .read(path, limits.source_bytes)
            .map_err(|source| LaunchError::Io { path: path.clone(), source })?;
        String::from_utf8(data)
            .map_err(|_| LaunchError::Value(format!("{}: not a text file, PTX is text", path.display())))
    }

    /// Runs the kernel and writes the outputs; nothing is written when the launch itself was refused.
    /// `checks` overrides what the file says.
    ///
    /// # Errors
    /// [`LaunchError`]; faults of the kernel are findings of the report instead.
    pub fn run(
        &self,
        files: &mut dyn Files,
        checks: Option<Checks>,
        mut options: Options,
    ) -> Result<Report, LaunchError> {
        options.checks = match checks {
            Some(c) => c,
            None => self.checks()?,
        };
        let wrong = |source| LaunchError::Emulator { ptx: self.ptx.clone(), source };
        let text = self.ptx_text(files, &options.limits)?;
        let module = Module::parse_with(&text, &options.limits).map_err(wrong)?;
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| LaunchError::Io { path, source }
        };
        let most = options.limits.memory_bytes;
        let mut device = Device::new(options);
        let params = module.kernel(&self.kernel).map(|k| k.params).unwrap_or_default();
        let mut args = Vec::new();
        let mut outs: Vec<(DevicePtr, u64, &Path)> = Vec::new();
        for (i, a) in self.args.iter().enumerate() {
            match a.wanted(i)? {
                Wanted::Scalar(v) => args.push(narrowed(v, params.get(i))),
                Wanted::Buffer { input, bytes, out } => {
                    let name = format!("arg{i}");
                    let (p, n) = match input {
                        Some(f) => {
                            let data = files.read(f, most).map_err(io(f))?;
                            (device.alloc_init(&data, &name)?, data.len() as u64)
                        }
                        None => (device.alloc(bytes, &name)?, bytes),
                    };
                    if let Some(o) = out {
                        files.can_write(o).map_err(io(o))?;
                        outs.push((p, n, o));
                    }
                    args.push(Arg::Ptr(p));
                }
            }
        }
        let config = LaunchConfig {
            grid: dims(&self.grid, "grid")?,
            block: dims(&self.block, "block")?,
            shared_bytes: self.shared_bytes,
        };
        let report = device.launch(&module, &self.kernel, config, &args).map_err(wrong)?;
        if report.of(Class::Launch).next().is_some() {
            return Ok(report);
        }
        for (p, n, out) in outs {
            let mut data = vec![0; n as usize];
            device.copy_from(p, &mut data)?;
            files.write(out, &data).map_err(io(out))?;
        }
        Ok(report)
    }
}

/// Reads a launch file; the other files are relative to the second value.
///
/// # Errors
/// [`LaunchError`].
pub fn read_launch(path: &Path) -> Result<(LaunchFile, Disk), LaunchError> {
    let dir = path.parent().unwrap_or(Path::new("")).to_path_buf();
    // No launch needs more than that of JSON.
    let json = Disk(PathBuf::new())
        .read(path, 16 << 20)
        .map_err(|source| LaunchError::Io { path: path.to_path_buf(), source })?;
    Ok((LaunchFile::from_json(&json)?, Disk(dir)))
}

/// Runs a launch file. `checks` overrides what the file says.
///
/// # Errors
/// [`LaunchError`]; faults of the kernel are findings of the report instead.
pub fn run_file(path: &Path, checks: Option<Checks>, options: Options) -> Result<Report, LaunchError> {
    let (file, mut disk) = read_launch(path)?;
    file.run(&mut disk, checks, options)
}
