//! Where every byte lies: slots, mirror pages, tables, plans. The same file is compiled into the
//! kernels and into the host crate, so both sides agree by construction.
//!
//! * A **block** is 16 consecutive tokens of one (sequence, layer, KV head): the unit of selection,
//!   and the page of the paged cache. It lives in a **slot** of the arena: K `[16, head_dim]`, then
//!   V `[16, head_dim]`, row-major, 2-byte elements.
//! * A **mirror page** holds the low-bit keys of 64 tokens (4 blocks), see [`MirrorKind`].
//! * Tables: `block_table [sequences, layers, kv_heads, max_blocks]` and
//!   `mirror_table [sequences, layers, kv_heads, max_groups]`, both u32.
//!
//! Trap: a page exists only for a *full* group of 64 tokens. The blocks of the open group have no
//! mirror; they are scored exactly and always read.

/// Tokens of a block.
pub const BLOCK: usize = 16;
/// Tokens of a quantisation group, one mirror page.
pub const QUANT_GROUP: usize = 64;
/// Blocks of a quantisation group.
pub const BLOCKS_PER_GROUP: usize = QUANT_GROUP / BLOCK;
/// Longest context in blocks, 1,048,576 tokens. Sums of masses fit: 2^16 blocks of 30 bits times a target of 16.
pub const MAX_BLOCKS: usize = 65_536;
/// Most query heads that share one KV head.
pub const MAX_GROUP: usize = 8;
/// Most splits of one (sequence, KV head).
pub const MAX_SPLITS: usize = 64;
/// Blocks that a CTA of `attend` should find on average in a dense plan.
pub const BLOCKS_PER_SPLIT: usize = 16;
/// Blocks that `merge` adds at a time while the mass read is short of the target.
pub const TOPUP_CHUNK: usize = 8;

/// Number of blocks that hold `tokens` tokens.
#[inline(always)]
pub const fn blocks(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK)
}

/// Number of mirror pages in use: full groups only.
#[inline(always)]
pub const fn full_groups(tokens: usize) -> usize {
    tokens / QUANT_GROUP
}

/// Splits of one (sequence, KV head). A function of the sequence's own length, never of the batch,
/// so that a sequence gives the same bits in any batch.
#[inline(always)]
pub const fn splits(blocks: usize) -> usize {
    let wanted = blocks.div_ceil(BLOCKS_PER_SPLIT);
    if wanted > MAX_SPLITS {
        MAX_SPLITS
    } else if wanted == 0 {
        1
    } else {
        wanted
    }
}

/// Elements of a slot: K and V of one block.
#[inline(always)]
pub const fn slot_elements(head_dim: usize) -> usize {
    2 * BLOCK * head_dim
}

/// Offset of token `t`'s key in its slot, in elements.
#[inline(always)]
pub const fn key_offset(head_dim: usize, t: usize) -> usize {
    t * head_dim
}

/// Offset of token `t`'s value in its slot, in elements.
#[inline(always)]
pub const fn value_offset(head_dim: usize, t: usize) -> usize {
    (BLOCK + t) * head_dim
}

/// What a mirror page holds for each 64-token group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MirrorKind {
    /// `planes` 2-bit planes of the key codes, most significant first: 1 plane = 2 bits, 2 planes =
    /// 4 bits. Page: zero `f16 [head_dim]`, step `f16 [head_dim]`, then each plane
    /// `[64, head_dim / 16]` u32 words (see [`code_shift`]).
    Planes(u32),
    /// Quest's box: for each of the 4 blocks, minimum `[head_dim]` then maximum `[head_dim]` of the
    /// keys in the cache's element type.
    Box,
}

impl MirrorKind {
    /// Bytes of one page.
    pub const fn page_bytes(self, head_dim: usize) -> usize {
        match self {
            MirrorKind::Planes(planes) => plane_offset(head_dim, planes as usize),
            MirrorKind::Box => BLOCKS_PER_GROUP * 2 * head_dim * 2,
        }
    }
}

/// Byte offset of the steps in a page of planes (the zeros are at 0).
#[inline(always)]
pub const fn step_offset(head_dim: usize) -> usize {
    2 * head_dim
}

/// Byte offset of plane `p` in a page of planes.
#[inline(always)]
pub const fn plane_offset(head_dim: usize, p: usize) -> usize {
    4 * head_dim + p * (QUANT_GROUP * head_dim / 4)
}

/// Bytes of one token's codes in one plane.
#[inline(always)]
pub const fn plane_row_bytes(head_dim: usize) -> usize {
    head_dim / 4
}

/// Bit position of channel `c`'s 2-bit code in the u32 word `c / 16` of its row. Four codes that are
/// neighbours in the channel lie one byte apart, so `(word >> 2 * j) & 0x0303_0303` holds channels
/// `4 j .. 4 j + 4` as bytes: what dp2a, dp4a and the integer tensor cores take.
#[inline(always)]
pub const fn code_shift(c: usize) -> u32 {
    (8 * (c % 4) + 2 * ((c % 16) / 4)) as u32
}

/// Byte offset of a block's box in a page: minimum, then maximum.
#[inline(always)]
pub const fn box_offset(head_dim: usize, block_in_group: usize) -> usize {
    block_in_group * 4 * head_dim
}

/// True where block `b` must be read whatever its mass: the first `sink` blocks, the last `recent`
/// ones, and every block of the open quantisation group.
#[inline(always)]
pub const fn forced(b: usize, tokens: usize, sink: usize, recent: usize) -> bool {
    b < sink || b + recent >= blocks(tokens) || b >= full_groups(tokens) * BLOCKS_PER_GROUP
}

/// Number of [`forced`] blocks.
#[inline(always)]
pub const fn forced_blocks(tokens: usize, sink: usize, recent: usize) -> usize {
    let blocks = blocks(tokens);
    let recent = blocks.saturating_sub(recent);
    let open = full_groups(tokens) * BLOCKS_PER_GROUP;
    let last = if recent < open { recent } else { open };
    if sink >= last { blocks } else { sink + blocks - last }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forced_blocks_are_counted_as_they_are_told() {
        for tokens in 0..300 {
            for (sink, recent) in [(0, 0), (1, 2), (0, 7), (5, 0), (400, 1), (1, 400)] {
                let told = (0..blocks(tokens)).filter(|&b| forced(b, tokens, sink, recent)).count();
                assert_eq!(forced_blocks(tokens, sink, recent), told, "{tokens} tokens, {sink}, {recent}");
            }
        }
    }

    #[test]
    fn mirror_page_is_the_promised_share_of_the_bytes() {
        // 2 bits: 7.8 % of the bf16 bytes of K and V at 128 dims; 4 bits: 14.1 %.
        let kv = (QUANT_GROUP * 2 * 128 * 2) as f64;
        assert_eq!(MirrorKind::Planes(1).page_bytes(128) as f64 / kv, 0.078125);
        assert_eq!(MirrorKind::Planes(2).page_bytes(128) as f64 / kv, 0.140625);
        assert_eq!(MirrorKind::Box.page_bytes(128) as f64 / kv, 0.0625);
    }

    #[test]
    fn codes_of_a_word_do_not_overlap() {
        let mut seen = 0u32;
        for c in 0..16 {
            let bits = 3u32 << code_shift(c);
            assert_eq!(seen & bits, 0, "channel {c}");
            seen |= bits;
        }
        assert_eq!(seen, u32::MAX);
        for j in 0..4 {
            for i in 0..4 {
                assert_eq!(code_shift(4 * j + i) - 2 * j as u32, 8 * i as u32);
            }
        }
    }

    #[test]
    fn splits_depend_on_the_length_alone_and_stay_in_range() {
        assert_eq!(splits(0), 1);
        assert_eq!(splits(16), 1);
        assert_eq!(splits(17), 2);
        assert_eq!(splits(MAX_BLOCKS), MAX_SPLITS);
        for b in 1..MAX_BLOCKS {
            assert!(splits(b + 1) >= splits(b));
        }
    }

    #[test]
    fn forced_blocks_are_sink_recent_and_open_group() {
        // 130 tokens: 9 blocks, two full groups (blocks 0-7), one open block.
        let f: Vec<usize> = (0..9).filter(|&b| forced(b, 130, 1, 2)).collect();
        assert_eq!(f, [0, 7, 8]);
        // 128 tokens: nothing open.
        let f: Vec<usize> = (0..8).filter(|&b| forced(b, 128, 1, 2)).collect();
        assert_eq!(f, [0, 6, 7]);
        // 1 token
        assert!(forced(0, 1, 0, 0));
    }
}
