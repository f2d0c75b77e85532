//! LAUNCH.json: one kernel launch described in a file, for the command line.
//!
//! Paths are relative to the file. `{"in": F}` is a buffer filled from F, with `"out"` written back
//! after the run; `{"bytes": N, "out": F}` is a buffer that counts as never written.

use crate::device::{Arg, Checks, Device, DevicePtr, LaunchConfig, Options};
use crate::error::Error;
use crate::module::Module;
use crate::report::Report;
use serde::Deserialize;
use std::path::{Path, PathBuf};

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
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// A value that cannot be used.
    #[error("{path}: {problem}")]
    Value {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The module or the launch.
    #[error(transparent)]
    Emulator(#[from] Error),
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
    f32: Option<f32>,
    f64: Option<f64>,
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

fn dims(v: &[u32], what: &str, path: &Path) -> Result<[u32; 3], LaunchError> {
    match *v {
        [x] => Ok([x, 1, 1]),
        [x, y] => Ok([x, y, 1]),
        [x, y, z] => Ok([x, y, z]),
        _ => Err(LaunchError::Value {
            path: path.to_path_buf(),
            problem: format!("\"{what}\" has {} numbers; one to three are expected", v.len()),
        }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, LaunchError> {
    std::fs::read(path).map_err(|source| LaunchError::Io { path: path.to_path_buf(), source })
}

/// Runs a launch file. `checks` overrides what the file says.
///
/// # Errors
/// [`LaunchError`]; faults of the kernel are findings of the report instead.
pub fn run_file(path: &Path, checks: Option<Checks>, mut options: Options) -> Result<Report, LaunchError> {
    let text = read(path)?;
    let file: LaunchFile = serde_json::from_slice(&text)
        .map_err(|source| LaunchError::Json { path: path.to_path_buf(), source })?;
    let value = |problem: String| LaunchError::Value { path: path.to_path_buf(), problem };
    let dir = path.parent().unwrap_or(Path::new("."));
    let ptx_path = dir.join(&file.ptx);
    let ptx = String::from_utf8(read(&ptx_path)?)
        .map_err(|_| LaunchError::Value { path: ptx_path.clone(), problem: "not a text file".to_string() })?;
    options.checks = match (checks, &file.check) {
        (Some(c), _) => c,
        (None, Some(names)) => parse_checks(names.iter().map(String::as_str)).map_err(value)?,
        (None, None) => Checks::all(),
    };
    let module = Module::parse(&ptx)?;
    let mut device = Device::new(options);
    let mut args = Vec::new();
    let mut outs: Vec<(DevicePtr, u64, PathBuf)> = Vec::new();
    for (i, a) in file.args.iter().enumerate() {
        let name = format!("arg{i}");
        let set = [
            a.u32.is_some(),
            a.i32.is_some(),
            a.u64.is_some(),
            a.i64.is_some(),
            a.f32.is_some(),
            a.f64.is_some(),
        ];
        let scalars = set.iter().filter(|s| **s).count();
        let buffer = a.input.is_some() || a.bytes.is_some();
        if scalars + usize::from(buffer) != 1
            || (a.input.is_some() && a.bytes.is_some())
            || (scalars == 1 && a.out.is_some())
        {
            return Err(value(format!(
                "args[{i}] must be one of {{\"in\"}}, {{\"in\", \"out\"}}, {{\"bytes\", \"out\"}}, {{\"u32\"}}, {{\"i32\"}}, {{\"u64\"}}, {{\"i64\"}}, {{\"f32\"}}, {{\"f64\"}}"
            )));
        }
        if buffer {
            let (p, n) = match (&a.input, a.bytes) {
                (Some(f), _) => {
                    let data = read(&dir.join(f))?;
                    (device.alloc_init(&data, &name)?, data.len() as u64)
                }
                (None, n) => {
                    let n = n.unwrap_or(0);
                    (device.alloc(n, &name)?, n)
                }
            };
            if let Some(o) = &a.out {
                outs.push((p, n, dir.join(o)));
            }
            args.push(Arg::Ptr(p));
            continue;
        }
        let scalar = a
            .u32
            .map(Arg::U32)
            .or(a.i32.map(Arg::I32))
            .or(a.u64.map(Arg::U64))
            .or(a.i64.map(Arg::I64))
            .or(a.f32.map(Arg::F32))
            .or(a.f64.map(Arg::F64));
        args.extend(scalar);
    }
    let config = LaunchConfig {
        grid: dims(&file.grid, "grid", path)?,
        block: dims(&file.block, "block", path)?,
        shared_bytes: file.shared_bytes,
    };
    let report = device.launch(&module, &file.kernel, config, &args)?;
    for (p, n, out) in outs {
        let mut data = vec![0; n as usize];
        device.copy_from(p, &mut data)?;
        std::fs::write(&out, &data).map_err(|source| LaunchError::Io { path: out.clone(), source })?;
    }
    Ok(report)
}
