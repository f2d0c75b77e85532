//! How much a text may ask for: what keeps a hostile or broken module from taking all memory or time.
//!
//! Sizes are checked where they are read, so an error comes before the allocation. Limits of the text
//! are given to [`Module::parse_with`](crate::Module::parse_with) and stay with the module, those of
//! the run are in [`Options`](crate::Options); the number of instructions a run may take is
//! [`Options::max_steps`](crate::Options::max_steps).

use crate::error::{Error, Result};

macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident: $ty:ty = $default:expr,)*) => {
        /// Upper limits, each with a default that no real kernel comes near.
        ///
        /// ```
        /// use ptx_emulator::{Error, Limits, Module};
        ///
        /// let text = ".version 7.8\n.target sm_80\n.address_size 64\n\
        ///             .visible .entry k() { .reg .b32 %r<500>; ret; }";
        /// let small = Limits { registers: 100, ..Limits::default() };
        /// let error = Module::parse_with(text, &small)?.check().unwrap_err();
        /// assert!(matches!(error, Error::Limit { value: 500, limit: 100, .. }));
        /// assert_eq!(
        ///     error.to_string(),
        ///     "line 4: virtual registers of kernel `k`: 500 is beyond the limit of 100 (`registers` of Limits)"
        /// );
        /// # Ok::<(), Error>(())
        /// ```
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Limits {
            $($(#[$doc])* pub $name: $ty,)*
        }

        impl Default for Limits {
            fn default() -> Limits {
                Limits { $($name: $default,)* }
            }
        }

        impl Limits {
            /// Names of the limits, as [`Limits::set`] and `ptx-emu run --limit` take them.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            /// Sets the limit of that name.
            ///
            /// # Errors
            /// What is wrong with the name or the value, and which names there are.
            pub fn set(&mut self, name: &str, value: u64) -> std::result::Result<(), String> {
                match name {
                    $(stringify!($name) => {
                        self.$name = <$ty>::try_from(value)
                            .map_err(|_| format!("`{name}`: {value} is more than {}", <$ty>::MAX))?;
                    })*
                    other => {
                        return Err(format!("no limit `{other}`; there are {}", Limits::NAMES.join(", ")));
                    }
                }
                Ok(())
            }
        }
    };
}

limits! {
    /// Bytes of PTX text.
    source_bytes: u64 = 256 << 20,
    /// Braces open at the same time in a body.
    nesting: u32 = 200,
    /// Instructions of a kernel with the functions it calls. The race checker tells no more than
    /// 2^20 apart.
    instructions: u32 = 1 << 20,
    /// Virtual registers declared by a kernel and the functions it calls.
    registers: u32 = 1 << 20,
    /// Bytes of `.global` and `.const` variables of a module.
    variable_bytes: u64 = 1 << 30,
    /// Bytes of shared memory of a CTA, declared or dynamic, however the SM is configured.
    shared_bytes: u32 = 16 << 20,
    /// Bytes of local memory of a thread; 512 KiB is what GPUs have.
    local_bytes: u32 = 512 << 10,
    /// Bytes of device memory in use at the same time.
    memory_bytes: u64 = 8 << 30,
    /// CTAs of a grid.
    ctas: u64 = 1 << 40,
    /// Bytes of registers, local and shared memory, with what the checkers keep of them, over all CTAs
    /// under way. Fewer CTAs run at the same time to stay below it.
    state_bytes: u64 = 4 << 30,
    /// Copies (one a lane) a warp may have in flight.
    copies: u32 = 1 << 16,
    /// Bytes a launch may print; the rest is dropped, and the output says so.
    output_bytes: u64 = 16 << 20,
}

/// An error unless `value` is within `limit`. `what` names the thing limited, with its place.
pub(crate) fn within(
    name: &'static str,
    value: impl Into<u64>,
    limit: impl Into<u64>,
    what: impl FnOnce() -> String,
) -> Result<()> {
    let (value, limit) = (value.into(), limit.into());
    if value > limit {
        return Err(Error::Limit { name, what: what(), value, limit });
    }
    Ok(())
}
