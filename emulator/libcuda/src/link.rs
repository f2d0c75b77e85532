//! `cuLinkCreate` and its kin, which programs call for the compiler's log: one PTX text goes in, is checked, and
//! comes out as it is.

use std::ffi::{CString, c_char, c_uint, c_void};

use ptx_emulator::Module;

use crate::code::Code;
use crate::state::say;

/// Where the caller wants the text of an error.
#[derive(Clone, Copy)]
pub struct Log {
    buffer: usize,
    bytes: usize,
}

impl Log {
    /// `CU_JIT_ERROR_LOG_BUFFER` (5) and its size (6) among the options.
    ///
    /// # Safety
    /// `options` and `values` hold `count` entries; the buffer stays valid as long as the driver API says.
    pub unsafe fn of_options(
        count: c_uint,
        options: *const c_uint,
        values: *const *mut c_void,
    ) -> Option<Log> {
        if options.is_null() || values.is_null() {
            return None;
        }
        // SAFETY: the caller's promise.
        let (options, values) = unsafe {
            (
                std::slice::from_raw_parts(options, count as usize),
                std::slice::from_raw_parts(values, count as usize),
            )
        };
        let option = |wanted| options.iter().position(|&option| option == wanted).map(|i| values[i] as usize);
        Some(Log { buffer: option(5)?, bytes: option(6)? }).filter(|log| log.buffer != 0 && log.bytes > 0)
    }

    /// Writes as much as fits, with a NUL.
    pub fn write(self, text: &str) {
        let length = text.len().min(self.bytes - 1);
        let to = self.buffer as *mut u8;
        // SAFETY: the buffer holds `bytes` bytes, as the caller of `of_options` promised.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), to, length);
            to.add(length).write(0);
        }
    }
}

/// A link under way.
pub struct Link {
    log: Option<Log>,
    text: Option<CString>,
}

impl Link {
    /// Nothing added.
    pub fn new(log: Option<Log>) -> Link {
        Link { log, text: None }
    }

    /// Adds the one text.
    pub fn add(&mut self, kind: c_uint, text: &[u8]) -> Result<(), Code> {
        /// `CU_JIT_INPUT_PTX`.
        const PTX: c_uint = 1;
        if kind != PTX || self.text.is_some() {
            say("cuLinkAddData: one PTX text and nothing else");
            return Err(Code::NOT_SUPPORTED);
        }
        let text: Vec<u8> = text.iter().copied().take_while(|&byte| byte != 0).collect();
        let text = CString::new(text).map_err(|_| Code::INVALID_VALUE)?;
        if let Err(error) = Module::parse(&text.to_string_lossy()) {
            say(&error.to_string());
            if let Some(log) = self.log {
                log.write(&error.to_string());
            }
            return Err(Code::INVALID_PTX);
        }
        self.text = Some(text);
        Ok(())
    }

    /// The text with its NUL, and its bytes.
    pub fn image(&self) -> Result<(*const c_char, usize), Code> {
        let text = self.text.as_ref().ok_or(Code::INVALID_VALUE)?;
        Ok((text.as_ptr(), text.as_bytes_with_nul().len()))
    }
}
