//! Short contexts: which sequences are read whole without asking the mirror, and a step of both kinds on a device that
//! cannot mix them.
//!
//! [`reads_whole`] is a function of the sequence's own length and of settings, never of the batch or the device, so that
//! a sequence gives the same bits anywhere. A sequence that is read whole has the identity plan: the bits of dense
//! attention, and no byte of metadata.
//!
//! Trap: kernels take one kind of plan a launch. Where a batch has both, [`decode_apart`] launches twice; what a row
//! gets does not depend on its neighbours, so no bit changes.

use crate::backend::{DecodeRecord, DecodeResult, DecodeStep, Ranking};
use crate::{Error, Forced, KvCache, MirrorFormat, Rows};
use half::slice::HalfBitsSliceExt;
use kernels_gpu::layout::{BLOCK, blocks};

/// Mirror pages from which on a rule by mass is worth asking.
///
/// One page of 64 tokens describes four blocks, of which block 0 is read anyway: three can be saved, of the four to
/// eight blocks there are. In bytes (bundled traces cut to their first block and their last tokens, `progressive:0.95`
/// before this rule, 2 / 4 bits, dense = 1): 64 tokens 1.03 / 1.08, 72 .99 / .99, 96 .94 / .91, 127 .92 / .88. So up to
/// 64 tokens asking costs more than it saves, and up to 127 it saves at most a block of eight. In time that is a loss:
/// the CPU's dense step takes about half as long as a sparse one at 129 to 192 tokens, a GPU would launch `score` for
/// it. `short_contexts_read_no_metadata_and_longer_ones_do` would notice a change.
pub const LEAST_PAGES: usize = 2;

/// True where all blocks of a sequence of `tokens` tokens are read whatever their mass: no block is left to choose, or
/// the rule is by mass, uncapped, and the context has fewer than [`LEAST_PAGES`] pages. Budgets are promises of their
/// own: they are kept however short the context. `unit`: blocks that are selected together.
pub fn reads_whole(
    tokens: usize,
    format: MirrorFormat,
    forced: Forced,
    unit: usize,
    by_mass_uncapped: bool,
) -> bool {
    (by_mass_uncapped && format.full_groups(tokens) < LEAST_PAGES)
        || nothing_to_choose(tokens, format, forced, unit)
}

/// True where no unit of blocks lies wholly between the sink and what is forced at the end.
fn nothing_to_choose(tokens: usize, format: MirrorFormat, forced: Forced, unit: usize) -> bool {
    let all = blocks(tokens);
    let described = format.full_groups(tokens) * format.blocks();
    let end = described.min(all.saturating_sub(forced.recent as usize));
    let first = (forced.sink as usize).div_ceil(unit).saturating_mul(unit);
    first >= all || (first + unit).min(all) > end
}

/// A step in which the entries `whole` have the identity plan and the others are ranked, as two steps.
///
/// # Errors
/// Those of the cache's step.
pub(crate) fn decode_apart(
    cache: &mut KvCache,
    step: &DecodeStep<'_>,
    whole: &[bool],
    result: &mut DecodeResult<'_>,
) -> Result<(), Error> {
    let shape = cache.shape();
    let (group, max_blocks) = (shape.group(), cache.pool().tables().extents.max_blocks);
    let zeros = vec![0u32; shape.kv_heads];
    let off = vec![0.0f32; shape.kv_heads];
    for kind in [true, false] {
        let entries: Vec<usize> = (0..whole.len()).filter(|&b| whole[b] == kind).collect();
        if entries.is_empty() {
            continue;
        }
        let query = shape.query_elements();
        let pick = |from: &[u32]| entries.iter().map(|&b| from[b]).collect::<Vec<u32>>();
        let (seqs, lens) = (pick(step.seqs), pick(step.lens));
        let (budget, floor) = (pick(step.budget), pick(step.floor));
        let bits: Vec<u16> =
            entries.iter().flat_map(|&b| &step.q.bits()[b * query..][..query]).copied().collect();
        let q = match step.q {
            Rows::F16(_) => Rows::F16(bits.reinterpret_cast()),
            Rows::Bf16(_) => Rows::Bf16(bits.reinterpret_cast()),
        };
        let part = DecodeStep { seqs: &seqs, lens: &lens, q, budget: &budget, floor: &floor, ..*step };
        let part = match kind {
            true => DecodeStep { ranking: Ranking::Identity, target: &zeros, mass: &off, ..part },
            false => part,
        };
        let (rows, heads) = (entries.len() * shape.kv_heads, entries.len() * shape.q_heads);
        let (mut out, mut lse) = (vec![0.0; entries.len() * query], vec![0.0; heads]);
        let (mut read, mut mass, mut metadata) = (vec![0; rows * 2], vec![0.0; heads], vec![0; rows]);
        let kept = if result.record.is_some() { rows * max_blocks } else { 0 };
        let (mut order, mut log_mass) = (vec![0; kept], vec![0.0; kept * group]);
        let record = (kept > 0).then_some(DecodeRecord { order: &mut order, log_mass: &mut log_mass });
        let mut of_part = DecodeResult {
            out: &mut out,
            lse: &mut lse,
            read: &mut read,
            mass: &mut mass,
            metadata: &mut metadata,
            record,
        };
        cache.decode(&part, &mut of_part)?;
        put(&entries, &out, result.out);
        put(&entries, &lse, result.lse);
        put(&entries, &read, result.read);
        put(&entries, &mass, result.mass);
        put(&entries, &metadata, result.metadata);
        if let Some(record) = &mut result.record {
            put(&entries, &order, record.order);
            put(&entries, &log_mass, record.log_mass);
        }
    }
    Ok(())
}

/// Copies what belongs to each entry of a part, in equal shares, to its place in the batch.
fn put<T: Copy>(entries: &[usize], from: &[T], to: &mut [T]) {
    let width = from.len() / entries.len();
    for (from, &entry) in from.chunks(width.max(1)).zip(entries) {
        to[entry * width..][..width].copy_from_slice(from);
    }
}

/// Tokens of the longest sequence that a rule by mass reads whole, for people.
pub fn longest_whole(format: MirrorFormat) -> usize {
    LEAST_PAGES * format.blocks() * BLOCK - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::plan::Limits;
    use crate::{Mirror, QUANT_GROUPS};

    #[test]
    fn nothing_is_left_to_choose_exactly_where_the_plan_has_only_forced_blocks() {
        for group in QUANT_GROUPS {
            let format = MirrorFormat::new(Mirror::Bits2, group).unwrap();
            for (sink, recent, unit) in [
                (1, 2, 1),
                (0, 0, 1),
                (0, 1, 1),
                (5, 3, 1),
                (1, 2, 2),
                (1, 2, 4),
                (0, 0, 4),
                (3, 0, 4),
                (90, 0, 1),
            ] {
                for tokens in (0..1400).filter(|t| t % 16 < 2 || t % 16 == 15) {
                    let limits = Limits { tokens, sink, recent, group: format.blocks(), unit, floor: 0 };
                    let forced = Forced { sink: sink as u32, recent: recent as u32 };
                    assert_eq!(
                        reads_whole(tokens, format, forced, unit, false),
                        limits.forced_blocks() == blocks(tokens),
                        "{tokens} tokens, groups of {group}, {forced:?}, units of {unit}"
                    );
                }
            }
        }
    }

    #[test]
    fn rules_by_mass_are_asked_from_two_pages_on() {
        for group in QUANT_GROUPS {
            let format = MirrorFormat::new(Mirror::Nested, group).unwrap();
            let whole = |tokens| reads_whole(tokens, format, Forced::default(), 1, true);
            assert_eq!(longest_whole(format), 2 * group - 1);
            assert!(whole(0) && whole(1) && whole(2 * group - 1));
            assert!(!whole(2 * group) && !whole(100 * group));
        }
    }
}
