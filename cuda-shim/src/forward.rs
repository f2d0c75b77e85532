//! What one function of the generated list becomes.
//!
//! The result is the number and not `CUresult`: both are passed alike, and only known numbers leave.

/// Defines the functions as symbols, and `FUNCTIONS` with their names.
macro_rules! forward {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?);)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($arg: $ty),*) -> u32 {
                static SYMBOL: $crate::library::Symbol = $crate::library::Symbol::new(
                    // Valid: an identifier has no NUL.
                    match ::std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => c"",
                    },
                );
                match SYMBOL.resolve() {
                    Ok(address) => {
                        type Function = unsafe extern "C" fn($($ty),*) -> u32;
                        // SAFETY: the symbol of this name has this type: that is what the bindings say.
                        let function: Function = unsafe { ::std::mem::transmute(address) };
                        // SAFETY: the caller keeps the contract of the driver's function.
                        $crate::codes::clamp(stringify!($name), unsafe { function($($arg),*) })
                    }
                    Err(failure) => {
                        $crate::remember(failure);
                        failure.code
                    }
                }
            }
        )*

        /// The functions that are passed on.
        pub const FUNCTIONS: &[&str] = &[$(stringify!($name)),*];
    };
}

/// Defines `CODES`.
macro_rules! codes {
    ($($code:literal $name:ident;)*) => {
        /// The result codes of the bindings, ascending, with their names.
        pub const CODES: &[(u32, &::std::ffi::CStr)] = &[
            $(($code, match ::std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => c"",
            })),*
        ];
    };
}
