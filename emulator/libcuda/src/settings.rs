//! The settings in `PTX_EMULATOR_CUDA`: words `key=value`.
//!
//! | key | value | default |
//! |---|---|---|
//! | sm | compute capability whose limits hold, as 80 for 8.0 | 80 |
//! | checks | names as in `ptx-emu --check`, or `all`, `none` | all |
//! | seed | order of warps and blocks | 0 |
//! | log | 1: a line on stderr for every launch | 0 |

use ptx_emulator::{Options, parse_checks};

/// What the variable says.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// For the device.
    pub options: Options,
    /// A line for every launch.
    pub log: bool,
}

/// Reads the variable's text.
pub fn parse(text: &str) -> Result<Settings, String> {
    let mut settings = Settings::default();
    for word in text.split_whitespace() {
        let bad = |what: &str| format!("PTX_EMULATOR_CUDA: `{word}`: {what}");
        let (key, value) = word.split_once('=').ok_or_else(|| bad("not key=value"))?;
        match key {
            "sm" => settings.options.sm = value.parse().map_err(|_| bad("not a number, as 80"))?,
            "seed" => settings.options.seed = value.parse().map_err(|_| bad("not a number"))?,
            "checks" => {
                settings.options.checks = parse_checks(value.split(',')).map_err(|e| bad(&e))?;
            }
            "log" => settings.log = value == "1",
            _ => return Err(bad("there are sm, checks, seed and log")),
        }
    }
    Ok(settings)
}
