//! Vector instructions, chosen at run time.
//!
//! Hot loops are ordinary Rust in `#[inline(always)]` bodies; [`per_isa`] compiles a body once for each
//! level below and calls the best one there is. Every level computes the same bits: the bodies fix the order
//! of additions by working on arrays of lanes, and say `mul_add` where one rounding is meant.
//!
//! Trap: without FMA hardware `mul_add` is a library call, correct and slow.

use std::fmt;

/// A set of instructions that this machine has: holding one is the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

/// What bodies are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// The target's baseline.
    Portable,
    /// AVX2, F16C, FMA: x86-64 of 2013 and later.
    Avx2,
    /// AVX-512 F, BW, DQ, VL, VNNI: Ice Lake of 2019, Zen 4 and later.
    Avx512,
}

impl Isa {
    /// The best there is.
    pub fn detect() -> Isa {
        *Isa::available().last().unwrap_or(&Isa(Level::Portable))
    }

    /// All there are, the best last.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut all = vec![Isa(Level::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("f16c")
                && is_x86_feature_detected!("fma");
            if avx2 {
                all.push(Isa(Level::Avx2));
            }
            if avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                all.push(Isa(Level::Avx512));
            }
        }
        all
    }

    pub(crate) fn level(self) -> Level {
        self.0
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Level::Portable => "portable",
            Level::Avx2 => "avx2 + f16c + fma",
            Level::Avx512 => "avx512 + vnni",
        })
    }
}

/// `fn name [generics] [arguments of the body's generics] (parameters) -> result = body;` defines `name`,
/// with an [`Isa`] before the parameters, which calls `body` compiled for that level. The body's first generic
/// is the level's `Lanes`.
macro_rules! per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident [$($gen:tt)*] [$($arg:tt)*]
     ($($p:ident: $t:ty),* $(,)?) $(-> $r:ty)? = $body:ident;) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<$($gen)*>(isa: $crate::cpu::isa::Isa, $($p: $t),*) $(-> $r)? {
            use $crate::cpu::lanes;
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::cpu::isa::Level;

                #[target_feature(enable = "avx2,f16c,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2<$($gen)*>($($p: $t),*) $(-> $r)? {
                    $body::<lanes::Avx2, $($arg)*>($($p),*)
                }
                #[target_feature(enable = "avx2,f16c,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
                #[allow(clippy::too_many_arguments)]
                fn avx512<$($gen)*>($($p: $t),*) $(-> $r)? {
                    $body::<lanes::Avx512, $($arg)*>($($p),*)
                }
                match isa.level() {
                    // SAFETY: an `Isa` of this level exists only where the features were detected.
                    Level::Avx512 => return unsafe { avx512::<$($arg)*>($($p),*) },
                    // SAFETY: as above.
                    Level::Avx2 => return unsafe { avx2::<$($arg)*>($($p),*) },
                    Level::Portable => {}
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = isa;
            $body::<lanes::Portable, $($arg)*>($($p),*)
        }
    };
}
pub(crate) use per_isa;
