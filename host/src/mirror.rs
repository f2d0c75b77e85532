//! What a cache keeps beside K and V to rank blocks by, and how large a page of it is.
//!
//! A **page** describes one quantisation group: 32 to 256 consecutive tokens, whole blocks. Mirrors hold
//! the keys in few bits, with a zero and a step for each channel of the group; summaries hold something
//! about each block. Every format has the group, because the open (incomplete) one has no page, whatever
//! the format, and its blocks are always read.
//!
//! Trap: the kernels know some formats only; [`MirrorFormat::kernel`] says which.

use crate::{Error, Shape};
use kernels_gpu::layout::{BLOCK, MirrorKind, QUANT_GROUP};
use std::fmt;
use std::str::FromStr;

/// What a cache keeps beside K and V to rank blocks by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mirror {
    /// Keys quantised to 1 bit.
    Bits1,
    /// Keys quantised to 2 bits.
    Bits2,
    /// Keys quantised to 4 bits.
    Bits4,
    /// Keys quantised to 8 bits.
    Bits8,
    /// The codes of [`Mirror::Bits4`] in two planes of 2 bits: the coarse one is read of every block, the fine
    /// one of blocks that may matter.
    Nested,
    /// The same with 8 bits in two halves of 4: for bounds, which 2 bits leave too wide.
    Nested8,
    /// Minimum and maximum of every channel of a block (Quest): an upper bound of every score.
    Box,
    /// The mean key of a block.
    Mean,
    /// The centre of a block's box (ArkVale's cuboid mean).
    Cuboid,
    /// Mean and variance of every channel of a block: its keys as if they were normal.
    MeanVariance,
    /// Four of a block's keys, each with the number of keys it stands for.
    Representatives,
}

impl Mirror {
    /// All of them.
    pub const ALL: [Mirror; 11] = [
        Mirror::Bits1,
        Mirror::Bits2,
        Mirror::Bits4,
        Mirror::Bits8,
        Mirror::Nested,
        Mirror::Nested8,
        Mirror::Box,
        Mirror::Mean,
        Mirror::Cuboid,
        Mirror::MeanVariance,
        Mirror::Representatives,
    ];

    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Mirror::Bits1 => "1",
            Mirror::Bits2 => "2",
            Mirror::Bits4 => "4",
            Mirror::Bits8 => "8",
            Mirror::Nested => "2+2",
            Mirror::Nested8 => "4+4",
            Mirror::Box => "box",
            Mirror::Mean => "mean",
            Mirror::Cuboid => "cuboid",
            Mirror::MeanVariance => "mean-variance",
            Mirror::Representatives => "representatives",
        }
    }

    /// Bits of a key element, where keys are quantised.
    pub const fn bits(self) -> Option<u32> {
        match self {
            Mirror::Bits1 => Some(1),
            Mirror::Bits2 => Some(2),
            Mirror::Bits4 | Mirror::Nested => Some(4),
            Mirror::Bits8 | Mirror::Nested8 => Some(8),
            _ => None,
        }
    }

    /// Bits that only the second look reads; 0 where there is none.
    pub const fn fine_bits(self) -> u32 {
        match self {
            Mirror::Nested => 2,
            Mirror::Nested8 => 4,
            _ => 0,
        }
    }

    /// True where the page gives an upper bound of every score, which `certified` needs.
    pub const fn bounds_scores(self) -> bool {
        self.bits().is_some() || matches!(self, Mirror::Box)
    }

    /// The page format that the kernels know, for groups of 64.
    pub const fn kernel(self) -> Option<MirrorKind> {
        match self {
            Mirror::Bits2 => Some(MirrorKind::Planes(1)),
            Mirror::Bits4 => Some(MirrorKind::Planes(2)),
            Mirror::Nested => Some(MirrorKind::Nested),
            Mirror::Box => Some(MirrorKind::Box),
            _ => None,
        }
    }

    /// The estimated mass p0 up to which the first pass of `progressive` reads when the exact mass is to
    /// reach `mass` = p: `p + (1 - p) / 5` with 2 bits and fewer, p otherwise. Measured on the bundled traces at
    /// p = .95 (chunks of 8; share of steps that top up, and KV read):
    ///
    /// | p0 | 2 bits: top-ups, KV | 4 bits: top-ups, KV |
    /// |---|---|---|
    /// | .90 | .99, .325 | .93, .291 |
    /// | .93 | .98, .325 | .90, .290 |
    /// | .95 | .95, .326 | **.24, .284** |
    /// | .96 | **.51, .325** | .00, .302 |
    /// | .97 | .23, .347 | .00, .334 |
    ///
    /// `real_traces_read_what_the_prototype_read` would notice a change.
    pub fn predicted_mass(self, mass: f32) -> f32 {
        match self {
            Mirror::Bits1 | Mirror::Bits2 => mass + (1.0 - mass) * 0.2,
            _ => mass,
        }
    }
}

impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mirror {
    type Err = Error;

    fn from_str(text: &str) -> Result<Mirror, Error> {
        Mirror::ALL
            .into_iter()
            .find(|mirror| mirror.name() == text)
            .ok_or_else(|| Error::UnsupportedMirror { text: text.into(), reason: "unknown" })
    }
}

/// Quantisation groups that there are, in tokens.
pub const QUANT_GROUPS: [usize; 4] = [32, 64, 128, 256];

/// The pages of a cache: what they hold, and for how many tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MirrorFormat {
    /// What.
    pub mirror: Mirror,
    /// Tokens of a page, one of [`QUANT_GROUPS`].
    pub group: usize,
}

impl MirrorFormat {
    /// Pages of `group` tokens.
    ///
    /// # Errors
    /// [`Error::Config`] where `group` is none of [`QUANT_GROUPS`].
    pub fn new(mirror: Mirror, group: usize) -> Result<MirrorFormat, Error> {
        if !QUANT_GROUPS.contains(&group) {
            return Err(Error::Config {
                what: format!("quantisation group of {group} tokens"),
                remedy: "use 32, 64, 128 or 256".into(),
            });
        }
        Ok(MirrorFormat { mirror, group })
    }

    /// Blocks of a page.
    pub const fn blocks(self) -> usize {
        self.group / BLOCK
    }

    /// Groups of a context of `tokens` tokens that are full, and so have a page.
    pub const fn full_groups(self, tokens: usize) -> usize {
        tokens / self.group
    }

    /// Bytes of a page.
    pub const fn page_bytes(self, head_dim: usize) -> usize {
        match self.mirror {
            Mirror::Bits1
            | Mirror::Bits2
            | Mirror::Bits4
            | Mirror::Bits8
            | Mirror::Nested
            | Mirror::Nested8 => {
                // Zero and step as f16, then the codes.
                let bits = match self.mirror.bits() {
                    Some(bits) => bits as usize,
                    None => 0,
                };
                4 * head_dim + self.group * head_dim * bits / 8
            }
            Mirror::Box | Mirror::MeanVariance => self.blocks() * 4 * head_dim,
            Mirror::Mean | Mirror::Cuboid => self.blocks() * 2 * head_dim,
            Mirror::Representatives => self.blocks() * (8 * head_dim + 4),
        }
    }

    /// Bytes of a page that are read of every block; less than a page where the rest is read of some blocks
    /// only.
    pub const fn first_bytes(self, head_dim: usize) -> usize {
        self.page_bytes(head_dim) - self.blocks() * self.fine_bytes(head_dim)
    }

    /// Bytes that the second look at one block reads.
    pub const fn fine_bytes(self, head_dim: usize) -> usize {
        BLOCK * head_dim * self.mirror.fine_bits() as usize / 8
    }

    /// The page format that the kernels know.
    pub fn kernel(self) -> Option<MirrorKind> {
        self.mirror.kernel().filter(|_| self.group == QUANT_GROUP)
    }

    /// Bytes of a page for each byte of K and V.
    pub fn stored_fraction(self, shape: &Shape) -> f64 {
        self.page_bytes(shape.head_dim) as f64 / (self.blocks() * shape.slot_bytes()) as f64
    }
}

impl fmt::Display for MirrorFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in groups of {}", self.mirror, self.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_mirrors_are_inverse_and_others_are_refused() {
        for mirror in Mirror::ALL {
            assert_eq!(mirror.to_string().parse::<Mirror>().unwrap(), mirror);
        }
        let error = "3".parse::<Mirror>().unwrap_err().to_string();
        assert!(error.contains("\"3\"") && error.contains("1, 2, 4, 8"), "{error}");
    }

    #[test]
    fn pages_are_the_kernels_where_the_kernels_know_them() {
        for mirror in Mirror::ALL {
            for head_dim in [64, 128] {
                let format = MirrorFormat::new(mirror, 64).unwrap();
                if let Some(kind) = format.kernel() {
                    assert_eq!(kind.page_bytes(head_dim), format.page_bytes(head_dim), "{mirror}");
                }
                assert_eq!(MirrorFormat::new(mirror, 32).unwrap().kernel(), None);
            }
        }
        assert!(MirrorFormat::new(Mirror::Bits2, 48).unwrap_err().to_string().contains("48"));
    }

    #[test]
    fn two_bits_predict_a_fifth_of_the_way_to_everything() {
        assert!((Mirror::Bits2.predicted_mass(0.95) - 0.96).abs() < 1e-6);
        assert_eq!(Mirror::Bits4.predicted_mass(0.95), 0.95);
        assert_eq!(Mirror::Bits2.predicted_mass(1.0), 1.0);
    }

    #[test]
    fn the_planes_of_a_nested_page_are_those_of_four_bits() {
        let (nested, four) = (MirrorFormat::new(Mirror::Nested, 64).unwrap(), Mirror::Bits4);
        let four = MirrorFormat::new(four, 64).unwrap();
        assert_eq!(nested.page_bytes(128), four.page_bytes(128));
        assert_eq!(nested.first_bytes(128), MirrorFormat::new(Mirror::Bits2, 64).unwrap().page_bytes(128));
        assert_eq!(nested.first_bytes(64) + 4 * nested.fine_bytes(64), nested.page_bytes(64));
    }
}
