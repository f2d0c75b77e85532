//! Finding and loading the driver's library, once a process, and its symbols, once each.
//!
//! What is loaded must have `cuInit` and `cuDriverGetVersion`; anything else is no CUDA driver, whatever
//! its name. The library is never unloaded: its threads outlive every handle.

use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int, c_void};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::{Failure, codes};

/// Names a file to load instead of the system's library.
const VARIABLE: &str = "PSA_LIBCUDA";

/// By the loader's search path; then where WSL and NixOS keep it outside that path.
const USUAL: [&str; 3] =
    ["libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1", "/run/opengl-driver/lib/libcuda.so.1"];

const NO_DEVICE: u32 = 100;
const SYMBOL_NOT_FOUND: u32 = 302;

/// What became of the library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// There is none.
    NotFound {
        /// The names that were tried.
        tried: Vec<String>,
        /// The loader's words about the first one.
        detail: String,
    },
    /// There is a file, and it is no CUDA driver for this process.
    Wrong {
        /// As given to the loader.
        file: String,
        /// The loader's words, or what the library lacks.
        detail: String,
    },
    /// It is loaded.
    Loaded {
        /// Where it lies.
        path: PathBuf,
        /// Version of the CUDA API that the driver has, as 12040 for 12.4, or its error code.
        version: Result<u32, u32>,
    },
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The loader's words about a file that is not there say no more.
            Status::NotFound { tried, .. } => {
                write!(f, "there is no CUDA driver library {}", tried.first().map_or("", String::as_str))
            }
            Status::Wrong { file, detail } => write!(f, "{file} is not a usable CUDA driver: {detail}"),
            Status::Loaded { path, version: Ok(version) } => {
                write!(f, "{}, CUDA {}.{}", path.display(), version / 1000, version % 1000 / 10)
            }
            Status::Loaded { path, version: Err(code) } => {
                write!(
                    f,
                    "{}, which does not tell its version ({})",
                    path.display(),
                    codes::error_name(*code)
                )
            }
        }
    }
}

/// A library was loaded, or searched for, before another was named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlreadyLoaded;

impl fmt::Display for AlreadyLoaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the CUDA driver library is already in use; name another before the first CUDA call")
    }
}

impl std::error::Error for AlreadyLoaded {}

struct Library {
    handle: *mut c_void,
    path: PathBuf,
}

// SAFETY: a handle of `dlopen` may be used from every thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

enum Missing {
    NotFound { tried: Vec<String>, detail: String },
    Wrong { file: String, detail: String },
}

static CHOSEN: OnceLock<OsString> = OnceLock::new();
static LIBRARY: OnceLock<Result<Library, Missing>> = OnceLock::new();

/// Loads `file` instead of the system's library, for tests. `PSA_LIBCUDA` in the environment does the same
/// for a whole process.
///
/// # Errors
/// [`AlreadyLoaded`] after the first CUDA call of the process, or when another file was chosen.
pub fn use_library(file: impl Into<OsString>) -> Result<(), AlreadyLoaded> {
    let file = file.into();
    if LIBRARY.get().is_some() || *CHOSEN.get_or_init(|| file.clone()) != file {
        return Err(AlreadyLoaded);
    }
    Ok(())
}

fn library() -> Result<&'static Library, &'static Missing> {
    LIBRARY.get_or_init(load).as_ref()
}

fn load() -> Result<Library, Missing> {
    let chosen = CHOSEN.get().cloned().or_else(|| std::env::var_os(VARIABLE).filter(|file| !file.is_empty()));
    let names = match chosen {
        Some(file) => vec![file],
        None => USUAL.iter().map(OsString::from).collect(),
    };
    let mut missing = None;
    for name in &names {
        match open(name) {
            Ok(library) => return Ok(library),
            Err(wrong @ Missing::Wrong { .. }) => return Err(wrong),
            Err(not_found) => missing = missing.or(Some(not_found)),
        }
    }
    let tried = names.iter().map(|name| name.display().to_string()).collect();
    let detail = match missing {
        Some(Missing::NotFound { detail, .. } | Missing::Wrong { detail, .. }) => detail,
        None => String::new(),
    };
    Err(Missing::NotFound { tried, detail })
}

fn open(name: &OsStr) -> Result<Library, Missing> {
    let shown = name.display().to_string();
    let wrong = |detail: String| Missing::Wrong { file: shown.clone(), detail };
    let file = CString::new(name.as_bytes()).map_err(|_| wrong("the name contains a NUL".into()))?;
    // SAFETY: `file` is a C string. Constructors of the library run; that is the point of naming it.
    let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        let detail = loader_error();
        // Also said, with another name in front, of a library that this one needs.
        let absent = detail.starts_with(&format!("{shown}: cannot open")) && detail.contains("No such file");
        return Err(if absent { Missing::NotFound { tried: vec![], detail } } else { wrong(detail) });
    }
    let mut address = ptr::null_mut();
    for needed in [c"cuInit", c"cuDriverGetVersion"] {
        // SAFETY: `handle` came from `dlopen`, `needed` is a C string.
        address = unsafe { libc::dlsym(handle, needed.as_ptr()) };
        if address.is_null() {
            let detail = format!("it has no function {}", needed.to_string_lossy());
            // SAFETY: `handle` is open and nothing of it is in use.
            unsafe { libc::dlclose(handle) };
            return Err(wrong(detail));
        }
    }
    Ok(Library { handle, path: path_of(address).unwrap_or_else(|| PathBuf::from(name)) })
}

/// The file that holds `address`.
fn path_of(address: *mut c_void) -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: ptr::null(),
        dli_fbase: ptr::null_mut(),
        dli_sname: ptr::null(),
        dli_saddr: ptr::null_mut(),
    };
    // SAFETY: `info` is writable; `address` is only compared.
    let found = unsafe { libc::dladdr(address, &mut info) } != 0 && !info.dli_fname.is_null();
    // SAFETY: `dladdr` wrote a C string that lives as long as the library.
    found
        .then(|| unsafe { CStr::from_ptr(info.dli_fname) }.to_bytes().to_vec())
        .map(|name| PathBuf::from(OsString::from_vec(name)))
}

fn loader_error() -> String {
    // SAFETY: returns null or a C string of this thread that is valid until the next loader call.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "the loader gives no reason".into();
    }
    // SAFETY: not null, see above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Loads the library where that has not happened, and tells what became of it.
pub fn status() -> Status {
    match library() {
        Err(Missing::NotFound { tried, detail }) => {
            Status::NotFound { tried: tried.clone(), detail: detail.clone() }
        }
        Err(Missing::Wrong { file, detail }) => Status::Wrong { file: file.clone(), detail: detail.clone() },
        Ok(library) => {
            let mut version = 0;
            static SLOT: Symbol = Symbol::new(c"cuDriverGetVersion");
            let code = SLOT.resolve().map_or_else(
                |failure| failure.code,
                |address| {
                    // SAFETY: the type of cuDriverGetVersion, in every version of CUDA.
                    let function: unsafe extern "C" fn(*mut c_int) -> u32 =
                        unsafe { std::mem::transmute(address) };
                    // SAFETY: `version` is writable.
                    unsafe { function(&mut version) }
                },
            );
            let version = if code == 0 { Ok(version.max(0) as u32) } else { Err(code) };
            Status::Loaded { path: library.path.clone(), version }
        }
    }
}

/// A symbol of the library with its address, once that is known.
pub(crate) struct Symbol {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
}

impl Symbol {
    pub(crate) const fn new(name: &'static CStr) -> Symbol {
        Symbol { name, address: AtomicPtr::new(ptr::null_mut()) }
    }

    /// The address; else what the function shall return.
    pub(crate) fn resolve(&self) -> Result<*mut c_void, Failure> {
        let known = self.address.load(Ordering::Acquire);
        if !known.is_null() {
            return Ok(known);
        }
        let (code, lacking) = match library() {
            Ok(library) => {
                // SAFETY: the handle stays open, the name is a C string.
                let address = unsafe { libc::dlsym(library.handle, self.name.as_ptr().cast::<c_char>()) };
                if !address.is_null() {
                    self.address.store(address, Ordering::Release);
                    return Ok(address);
                }
                (SYMBOL_NOT_FOUND, true)
            }
            Err(_) => (NO_DEVICE, false),
        };
        Err(Failure { function: self.name(), code, lacking })
    }

    pub(crate) fn name(&self) -> &'static str {
        // The names are those of C functions.
        self.name.to_str().unwrap_or_default()
    }
}
