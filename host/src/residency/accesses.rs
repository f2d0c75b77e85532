//! psa-accesses-v1: which blocks each decode step read, by layer and KV head.
//!
//! A safetensors file with one tensor, `acc`, U8 `[steps, layers, kv_heads, ceil(blocks / 8)]`: bit `7 - b % 8` of byte
//! `b / 8` is set where block `b` was read (the order of `numpy.packbits`). Its `__metadata__` holds, as text, `format`,
//! `blocks` (of 16 tokens, of a row), `block_bytes` (K and V), `context` (tokens at the last step) and `origin`.
//!
//! Trap: a sequence grows by a token a step. Step `s` sees `context - steps + s + 1` tokens, so the last blocks do
//! not exist in the first steps; they are written on the device and never fetched for that.

use std::ops::Range;
use std::path::Path;

use kernels_gpu::layout::{BLOCK, blocks};
use safetensors::{Dtype, SafeTensors};

use crate::eval::{Replay, Truth};
use crate::traces::Case;

/// Name of the format, as it stands in the metadata.
const FORMAT: &str = "psa-accesses-v1";

/// The bundled reads; tests/data/README.md says whose they are.
pub const BUNDLED: &[u8] = include_bytes!("../../../tests/data/accesses.safetensors");

/// Why a file of reads cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The file cannot be read.
    #[error("cannot read {file}: {source}; name a {FORMAT} or psa-traces-v1 file with --traces")]
    Read {
        /// Path.
        file: String,
        /// Reason.
        source: std::io::Error,
    },
    /// The container is broken.
    #[error("{file} is not a valid safetensors file: {source}; it may be cut off or not fetched (Git LFS)")]
    Container {
        /// Path.
        file: String,
        /// Reason.
        source: safetensors::SafeTensorError,
    },
    /// A metadata field is missing or no number in its range.
    #[error("{file}: {field} in the metadata is {found}, expected {expected}")]
    Field {
        /// Path.
        file: String,
        /// Its name.
        field: &'static str,
        /// What it says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// The tensor is missing or of another type or shape.
    #[error("{file}: tensor acc is {found}, expected {expected}")]
    Tensor {
        /// Path.
        file: String,
        /// What is there.
        found: String,
        /// What should be.
        expected: String,
    },
    /// A read of a block that does not exist yet.
    #[error(
        "{file}: step {step}, layer {layer}, KV head {kv_head} reads block {block}, but only {visible} blocks exist \
         then; `context` is wrong or the bits are in another order"
    )]
    Future {
        /// Path.
        file: String,
        /// Step.
        step: usize,
        /// Layer.
        layer: usize,
        /// KV head.
        kv_head: usize,
        /// Block.
        block: usize,
        /// Blocks that exist.
        visible: usize,
    },
    /// Not enough steps for what was asked.
    #[error(
        "{sequences} sequence(s) from {steps} steps are {each} steps each, not more than the {warm_up} of the warm-up; use fewer sequences, a shorter --warm-up or a longer recording"
    )]
    TooShort {
        /// Sequences asked for.
        sequences: usize,
        /// Steps recorded.
        steps: usize,
        /// Steps of each sequence.
        each: usize,
        /// Steps not counted.
        warm_up: usize,
    },
}

/// One (layer, KV head) of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Layer; rows of one layer stand together.
    pub layer: usize,
    /// KV head.
    pub kv_head: usize,
    /// Tokens seen in the last step.
    pub context: usize,
}

/// Recorded reads of one sequence.
#[derive(Clone, Debug)]
pub struct Accesses {
    /// Where they come from.
    pub origin: String,
    /// Bytes of K and V of a block.
    pub block_bytes: usize,
    /// Decode steps.
    pub steps: usize,
    /// Blocks of a row, at most.
    pub blocks: usize,
    /// In the order in which a step reads them.
    pub rows: Vec<Row>,
    /// True where weights were recorded; otherwise each is 1.
    pub weighted: bool,
    /// (block of the row, weight), by step and row.
    reads: Vec<(u32, f32)>,
    /// `[steps * rows + 1]`: where each (step, row) begins in `reads`.
    bounds: Vec<usize>,
}

impl Accesses {
    /// The bundled reads.
    ///
    /// # Errors
    /// None, unless the file was changed before the build.
    pub fn bundled() -> Result<Accesses, AccessError> {
        Accesses::parse("the bundled accesses.safetensors", BUNDLED)
    }

    /// True where `bytes` say that they are in this format. Others may be psa-traces-v1.
    pub fn is_one(bytes: &[u8]) -> bool {
        SafeTensors::read_metadata(bytes).is_ok_and(|(_, header)| {
            let format = header.metadata().as_ref().and_then(|m| m.get("format"));
            format.is_some_and(|format| format == FORMAT)
                || header.info("acc").is_some()
                || header.info("acc").is_some()
        })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`AccessError`], which names the file, the value and what was expected.
    pub fn load(file: &Path) -> Result<Accesses, AccessError> {
        let name = file.display().to_string();
        let bytes = std::fs::read(file).map_err(|source| AccessError::Read { file: name.clone(), source })?;
        Accesses::parse(&name, &bytes)
    }

    /// Reads a file that is in memory; `name` stands in the errors.
    ///
    /// # Errors
    /// As [`Accesses::load`].
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Accesses, AccessError> {
        let file = || name.to_owned();
        let broken = |source| AccessError::Container { file: file(), source };
        let tensors = SafeTensors::deserialize(bytes).map_err(broken)?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(broken)?;
        let text = |field: &str| header.metadata().as_ref().and_then(|m| m.get(field)).cloned();
        let wrong = |field, found: Option<String>, expected: String| AccessError::Field {
            file: file(),
            field,
            found: found.map_or_else(|| "missing".to_owned(), |text| format!("{text:?}")),
            expected,
        };
        let number = |field: &'static str, range: Range<usize>| {
            let found = text(field);
            match found.as_ref().and_then(|text| text.parse().ok()) {
                Some(n) if range.contains(&n) => Ok(n),
                _ => Err(wrong(field, found, format!("a number from {} to {}", range.start, range.end - 1))),
            }
        };
        if text("format").as_deref() != Some(FORMAT) {
            return Err(wrong("format", text("format"), format!("{FORMAT:?}")));
        }
        let tensor = tensors.tensor("acc").map_err(|_| AccessError::Tensor {
            file: file(),
            found: "missing".to_owned(),
            expected: "U8 [steps, layers, kv_heads, ceil(blocks / 8)]".to_owned(),
        })?;
        let shape = tensor.shape();
        let &[steps, layers, kv_heads, width] = shape else {
            return Err(AccessError::Tensor {
                file: file(),
                found: format!("of shape {shape:?}"),
                expected: "of shape [steps, layers, kv_heads, ceil(blocks / 8)]".to_owned(),
            });
        };
        // Fewer blocks than a thousandth of what 32 bits number, for many sequences.
        let row_blocks = number("blocks", 1..(1 << 21) / layers.saturating_mul(kv_heads).max(1) + 1)?;
        if tensor.dtype() != Dtype::U8
            || width != row_blocks.div_ceil(8)
            || steps * layers * kv_heads == 0
            || layers > 1 << 15
        {
            return Err(AccessError::Tensor {
                file: file(),
                found: format!("{:?} {shape:?}", tensor.dtype()),
                expected: format!(
                    "U8 with at least one step, layer and head, at most 32,768 layers, and {} bytes a row for {row_blocks} blocks",
                    row_blocks.div_ceil(8)
                ),
            });
        }
        // The range says both that all steps have a token and that the last step's blocks are all there.
        let last_token = row_blocks * BLOCK;
        let context = number("context", steps.max(last_token - BLOCK + 1)..last_token + 1)?;
        let rows = (0..layers * kv_heads)
            .map(|r| Row { layer: r / kv_heads, kv_head: r % kv_heads, context })
            .collect();
        let mut new = Accesses {
            origin: text("origin").unwrap_or_else(&file),
            block_bytes: number("block_bytes", 1..1 << 30)?,
            steps,
            blocks: row_blocks,
            rows,
            weighted: false,
            reads: Vec::new(),
            bounds: vec![0],
        };
        for (at, bits) in tensor.data().chunks_exact(width).enumerate() {
            let (step, row) = (at / new.rows.len(), at % new.rows.len());
            let visible = new.visible(row, step);
            for (byte, &set) in bits.iter().enumerate() {
                for bit in (0..8).filter(|bit| set & (0x80 >> bit) != 0) {
                    let block = byte * 8 + bit;
                    if block >= visible {
                        let Row { layer, kv_head, .. } = new.rows[row];
                        return Err(AccessError::Future {
                            file: file(),
                            step,
                            layer,
                            kv_head,
                            block,
                            visible,
                        });
                    }
                    new.reads.push((block as u32, 1.0));
                }
            }
            new.bounds.push(new.reads.len());
        }
        Ok(new)
    }

    /// The reads of replayed cases, each as a layer of one KV head, over the last steps that all of them have. The weight
    /// of a read is the block's exact share of the mass, mean over query heads. `replays` must have kept selections;
    /// `truths` and `replays` are those of `cases`, over all queries.
    pub fn from_replays(origin: &str, cases: &[&Case], truths: &[Truth], replays: &[Replay]) -> Accesses {
        let steps = cases.iter().map(|case| case.queries).min().unwrap_or(0);
        let rows: Vec<Row> = cases
            .iter()
            .enumerate()
            .map(|(layer, c)| Row { layer, kv_head: 0, context: c.context })
            .collect();
        let mut new = Accesses {
            origin: origin.to_owned(),
            block_bytes: cases.iter().map(|case| 2 * 2 * BLOCK * case.head_dim).max().unwrap_or(0),
            steps,
            blocks: cases.iter().map(|case| blocks(case.context)).max().unwrap_or(0),
            rows,
            weighted: true,
            reads: Vec::new(),
            bounds: vec![0],
        };
        for step in 0..steps {
            for ((case, truth), replay) in cases.iter().zip(truths).zip(replays) {
                let query = case.queries - steps + step;
                let mut selection = replay.steps[query].selection.clone();
                selection.sort_unstable();
                for block in selection {
                    let missed: f64 = (0..case.group).map(|g| truth.missed(query, g, &[block])).sum();
                    new.reads.push((block, (1.0 - missed / case.group as f64) as f32));
                }
                new.bounds.push(new.reads.len());
            }
        }
        new
    }

    /// (block, weight) of what `row` read in `step`.
    pub fn reads(&self, row: usize, step: usize) -> &[(u32, f32)] {
        let at = step * self.rows.len() + row;
        &self.reads[self.bounds[at]..self.bounds[at + 1]]
    }

    /// Blocks of `row` that exist in `step`.
    pub fn visible(&self, row: usize, step: usize) -> usize {
        blocks(self.rows[row].context - self.steps + step + 1)
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.rows.last().map_or(0, |row| row.layer + 1)
    }

    /// Share of the blocks that exist which a row reads, mean over the steps.
    pub fn demand(&self, row: usize) -> f64 {
        let read: usize = (0..self.steps).map(|step| self.reads(row, step).len()).sum();
        let there: usize = (0..self.steps).map(|step| self.visible(row, step)).sum();
        read as f64 / there.max(1) as f64
    }
}
