//! What the process has of the one device: memory, modules, functions, and whether it still lives.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ptx_emulator::{Device, Module};

use crate::code::Code;
use crate::link::Link;
use crate::settings::{self, Settings};

/// A loaded kernel.
#[derive(Clone)]
pub struct Function {
    pub module: usize,
    pub name: String,
    /// Most dynamic shared memory of a launch: 48 KiB less the static part, until the attribute is set.
    pub dynamic_limit: u32,
    pub static_shared: u32,
}

/// Everything behind the handles.
pub struct State {
    pub device: Device,
    pub log: bool,
    pub modules: HashMap<usize, Module>,
    pub functions: HashMap<usize, Function>,
    pub links: HashMap<usize, Link>,
    /// Streams and events.
    pub handles: HashSet<usize>,
    /// Host memory of `cuMemAllocHost`: address to bytes.
    pub host: HashMap<usize, usize>,
    pub allocations: u64,
    /// Device memory in use, by address.
    pub sizes: HashMap<u64, u64>,
    next: usize,
    /// The error that destroyed the context.
    pub lost: Option<Code>,
}

impl State {
    fn new(settings: Settings) -> State {
        State {
            device: Device::new(settings.options),
            log: settings.log,
            modules: HashMap::new(),
            functions: HashMap::new(),
            links: HashMap::new(),
            handles: HashSet::new(),
            host: HashMap::new(),
            allocations: 0,
            sizes: HashMap::new(),
            // Handles look like pointers to callers: never 0, and never CU_STREAM_LEGACY (1) or PER_THREAD (2).
            next: 0x1000,
            lost: None,
        }
    }

    /// A new handle.
    pub fn handle(&mut self) -> usize {
        self.next += 16;
        self.next
    }
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// The one context's handle.
pub const CONTEXT: usize = 0x100;

fn lock() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `cuInit`: a second one does nothing.
pub fn init() -> Result<(), Code> {
    let mut state = lock();
    if state.is_none() {
        let settings = settings::parse(&std::env::var("PTX_EMULATOR_CUDA").unwrap_or_default());
        *state = Some(State::new(settings.map_err(|why| {
            say(&why);
            Code::INVALID_VALUE
        })?));
    }
    Ok(())
}

/// The state, for calls that need no context.
pub fn with<T>(work: impl FnOnce(&mut State) -> Result<T, Code>) -> Result<T, Code> {
    work(lock().as_mut().ok_or(Code::NOT_INITIALIZED)?)
}

/// The state, for calls that need a context that lives.
pub fn in_context<T>(work: impl FnOnce(&mut State) -> Result<T, Code>) -> Result<T, Code> {
    with(|state| match state.lost {
        Some(code) => Err(code),
        None if current() == 0 => Err(Code::INVALID_CONTEXT),
        None => work(state),
    })
}

/// The context of this thread, 0 for none.
pub fn current() -> usize {
    CURRENT.get()
}

/// Makes `context` this thread's.
pub fn set_current(context: usize) {
    CURRENT.set(context);
}

/// A line for people: codes alone say little.
pub fn say(text: &str) {
    eprintln!("emulated libcuda: {text}");
}
