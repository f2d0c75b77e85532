//! The fake driver for tests: `libcuda.c`, compiled with the system's C compiler, and its controls.
//!
//! Processes get it through `PSA_LIBCUDA` and its settings through `FAKE_CUDA`; a test in the same process
//! calls [`Controls`]. It executes no kernel, so what kernels would have written stays zero.

#![allow(dead_code)] // Every test uses a part of it.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder of one test with a library in it, removed at the end.
pub struct Fake {
    folder: PathBuf,
}

impl Fake {
    /// Compiles the library, with `-D` options.
    pub fn build(test: &str, options: &[&str]) -> Fake {
        let fake = Fake::empty(test);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cuda-shim/tests/fake/libcuda.c");
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-pthread", "-o"])
            .arg(fake.library())
            .args(options)
            .arg(source)
            .output()
            .expect("a C compiler is there, since rustc links with it");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fake
    }

    /// The library is the text or bytes given.
    pub fn wrong(test: &str, contents: &[u8]) -> Fake {
        let fake = Fake::empty(test);
        std::fs::write(fake.library(), contents).unwrap();
        fake
    }

    /// There is no library.
    pub fn empty(test: &str) -> Fake {
        let folder =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fake-cuda-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        Fake { folder }
    }

    pub fn library(&self) -> PathBuf {
        self.folder.join("libcuda.so.1")
    }

    /// For files of the test.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The library's own functions; loads it.
    pub fn controls(&self) -> Controls {
        let file = CString::new(self.library().into_os_string().into_encoded_bytes()).unwrap();
        // SAFETY: a C string; the library has no constructors.
        let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null());
        let find = |name: &CStr| {
            // SAFETY: the handle is open and never closed.
            let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
            assert!(!address.is_null(), "{name:?}");
            address
        };
        // SAFETY: the types are those in libcuda.c.
        unsafe {
            Controls {
                configure: std::mem::transmute::<*mut libc::c_void, Configure>(find(c"fake_configure")),
                log: std::mem::transmute::<*mut libc::c_void, Log>(find(c"fake_log")),
                live: std::mem::transmute::<*mut libc::c_void, Live>(find(c"fake_live")),
            }
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

type Configure = unsafe extern "C" fn(*const c_char);
type Log = unsafe extern "C" fn() -> *const c_char;
type Live = unsafe extern "C" fn() -> c_int;

/// What a test says to the library in its own process.
#[derive(Clone, Copy)]
pub struct Controls {
    configure: Configure,
    log: Log,
    live: Live,
}

impl Controls {
    /// Settings as in libcuda.c; clears the log.
    pub fn configure(&self, settings: &str) {
        let settings = CString::new(settings).unwrap();
        // SAFETY: a C string, which the library copies.
        unsafe { (self.configure)(settings.as_ptr()) }
    }

    /// One line a call.
    pub fn log(&self) -> Vec<String> {
        // SAFETY: the library returns a C string; no other thread calls it now.
        let text = unsafe { CStr::from_ptr((self.log)()) };
        text.to_str().unwrap().lines().map(str::to_owned).collect()
    }

    /// Lines that begin with `call`.
    pub fn calls(&self, call: &str) -> Vec<String> {
        let start = format!("{call} ");
        self.log().into_iter().filter(|line| line.starts_with(&start)).collect()
    }

    /// Objects, allocations and retained contexts that are alive.
    pub fn live(&self) -> i32 {
        // SAFETY: no arguments.
        unsafe { (self.live)() }
    }
}
