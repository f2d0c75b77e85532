//! Telemetry, audits and the calibration picture of `psa eval`: options and files.
//!
//! Files are tried before the run, so that a name that cannot be written costs no replay.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use psa::eval::{Entrant, Replay};
use psa::telemetry::{Audit, Labels, Telemetry, prometheus, write_json_lines};

use super::calibration::{Calibration, Points};
use super::{CliError, probe};

/// Text form of telemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Every step, audit and total as one JSON object a line
    Jsonl,
    /// The counters in Prometheus' text format
    Prometheus,
}

/// What to write down besides the records.
#[derive(Args, Clone, Debug)]
pub struct WatchArgs {
    /// Write what every step read: JSON lines to FILE.jsonl, counters for Prometheus to FILE.prom
    #[arg(long, value_name = "FILE")]
    telemetry: Option<PathBuf>,
    /// Form of the telemetry, where the file's name does not say it
    #[arg(long, value_enum, value_name = "FORMAT", requires = "telemetry")]
    telemetry_format: Option<Format>,
    /// Recompute dense attention in f64 for this share of the steps, 0 to 1, chosen by --seed
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    audit: Option<f64>,
    /// Draw what audits found, believed against true missed mass
    #[arg(long, value_name = "FILE.svg", requires = "audit")]
    calibration: Option<PathBuf>,
}

/// Options that were found good.
pub struct Watch {
    telemetry: Option<(PathBuf, Format)>,
    calibration: Option<PathBuf>,
    /// The sample.
    pub audit: Option<Audit>,
}

impl WatchArgs {
    /// Checks everything that can be checked before the run.
    pub fn prepare(&self, seed: u64) -> Result<Watch, CliError> {
        let telemetry = match &self.telemetry {
            None => None,
            Some(file) => {
                let by_name = match file.extension().and_then(|e| e.to_str()) {
                    Some("jsonl" | "ndjson") => Some(Format::Jsonl),
                    Some("prom") => Some(Format::Prometheus),
                    _ => None,
                };
                let format = self.telemetry_format.or(by_name);
                let format =
                    format.ok_or_else(|| CliError::TelemetryFormat { file: file.display().to_string() })?;
                Some((file.clone(), format))
            }
        };
        for (file, option) in
            [(self.telemetry.as_ref(), "--telemetry"), (self.calibration.as_ref(), "--calibration")]
        {
            if let Some(file) = file {
                probe(file).map_err(|error| unwritable(error, option))?;
            }
        }
        let audit = self.audit.map(|rate| Audit::new(rate, seed)).transpose()?;
        Ok(Watch { telemetry, calibration: self.calibration.clone(), audit })
    }
}

impl Watch {
    /// Writes the files. `runs`: an entrant's replays, one a case.
    pub fn write(&self, runs: &[(Entrant, &[Replay])], device: &str) -> Result<(), CliError> {
        if let Some((file, format)) = &self.telemetry {
            write_to(file, "--telemetry", &telemetry_text(runs, device, *format)?)?;
        }
        if let Some(file) = &self.calibration {
            let points = runs.iter().map(|(entrant, replays)| Points {
                name: entrant.policy.to_string(),
                missed: replays
                    .iter()
                    .flat_map(|replay| replay.telemetry.audits())
                    .flat_map(|audit| {
                        audit.believed_missed.iter().copied().zip(audit.true_missed.iter().copied())
                    })
                    .collect(),
            });
            let picture = Calibration { runs: points.collect() }.draw();
            write_to(file, "--calibration", picture.as_bytes())?;
        }
        Ok(())
    }
}

fn telemetry_text(runs: &[(Entrant, &[Replay])], device: &str, format: Format) -> Result<Vec<u8>, CliError> {
    let mut sources: Vec<(Labels, &Telemetry)> = Vec::new();
    for (entrant, replays) in runs {
        for replay in *replays {
            let mirror = entrant.ranks_by().map_or_else(|| "none".to_owned(), |mirror| mirror.to_string());
            let labels = Labels::new([
                ("case", replay.case.clone()),
                ("policy", entrant.policy.to_string()),
                ("mirror", mirror),
                ("backend", device.to_owned()),
            ])?;
            // A policy that was asked for twice did the same twice.
            if sources.iter().all(|(known, _)| *known != labels) {
                sources.push((labels, &replay.telemetry));
            }
        }
    }
    let mut text = Vec::new();
    match format {
        Format::Jsonl => {
            for (labels, telemetry) in &sources {
                write_json_lines(&mut text, labels, telemetry)?;
            }
        }
        Format::Prometheus => {
            let sources: Vec<_> = sources.iter().map(|(labels, telemetry)| (labels, *telemetry)).collect();
            text.write_all(prometheus(&sources).as_bytes())?;
        }
    }
    Ok(text)
}

fn write_to(file: &Path, option: &'static str, text: &[u8]) -> Result<(), CliError> {
    let failed = |source| CliError::Unwritable { file: file.display().to_string(), option, source };
    std::fs::write(file, text).map_err(failed)
}

fn unwritable(error: CliError, option: &'static str) -> CliError {
    match error {
        CliError::Picture { file, source } => CliError::Unwritable { file, option, source },
        other => other,
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.0..=1.0).contains(&rate) => Ok(rate),
        _ => Err("use a share of the steps from 0 to 1, for example 0.05".into()),
    }
}
