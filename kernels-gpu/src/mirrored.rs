//! A mirror page of planes and the query heads of its KV head, as a warp of `score` and `refine` meets them.
//!
//! A lane has two of the page's 64 tokens, `lane` and `lane + 32`, and the channels `lane`, `lane + 32`, ..: it reads the
//! codes of its tokens and the zeros and steps of its channels once for all heads. A head's weights lie in
//! shared memory, where every lane meets them with its codes; a block is half a warp.
//!
//! Trap: all of this is the bit-exact definition of `numeric` and docs/kernels.md; an "equivalent" order of
//! additions here is a different plan there.

use crate::element::KvElement;
use crate::layout::{plane_offset, plane_row_bytes, step_offset};
use crate::numeric::{LOG2_E, Unit, exp2, fma, log2};
use cuda_std::half::f16;
use cuda_std::ptx::{V4, dp2a_hi_s32_u32, dp2a_lo_s32_u32};
use cuda_std::shared::SharedPtr;
use cuda_std::warp::{group_max_f32, group_sum_f32, lane_id, shfl_xor_u32, sync_warp};

/// The query heads of one KV head, and where their masses go.
#[derive(Clone, Copy)]
pub struct Heads<T> {
    queries: *const T,  // [group, D]
    log_mass: *mut f32, // [group, max_blocks]
    scale: f32,
    /// Query heads.
    pub group: u32,
    /// Width of a row of masses.
    pub max_blocks: u32,
}

impl<T: KvElement> Heads<T> {
    /// The heads from query head `head` on.
    ///
    /// # Safety
    /// `q` T `[heads, D]` and `log_mass` f32 `[heads, max_blocks]` have `head + group` heads.
    #[inline(always)]
    pub unsafe fn new<const D: usize>(
        q: *const T,
        log_mass: *mut f32,
        scale: f32,
        head: usize,
        group: u32,
        max_blocks: u32,
    ) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Heads {
                queries: q.add(head * D),
                log_mass: log_mass.add(head * max_blocks as usize),
                scale,
                group,
                max_blocks,
            }
        }
    }

    /// Element `c` of query head `g`, scaled into the log2 domain.
    ///
    /// # Safety
    /// `g` is below the group, `c` below `D`.
    #[inline(always)]
    pub unsafe fn query<const D: usize>(&self, g: u32, c: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { (*self.queries.add(g as usize * D + c)).to_f32() * self.scale * LOG2_E }
    }

    /// Where the log2 mass of a block is.
    ///
    /// # Safety
    /// `g` is below the group, the block in the row.
    #[inline(always)]
    pub unsafe fn mass(&self, g: u32, block: u32) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.log_mass.add((g * self.max_blocks + block) as usize) }
    }
}

/// The log2 mass of the 16 token scores of a half warp, in all of its lanes.
///
/// # Safety
/// All 32 lanes make this call.
#[inline(always)]
pub unsafe fn block_mass(score: f32) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let m = group_max_f32::<16>(score);
        let sum = group_sum_f32::<16>(exp2(score - m));
        m + log2(sum)
    }
}

/// Codes of a lane's two tokens in `P` planes: `[token][plane][word]`.
pub type Codes<const P: usize> = [[[u32; 8]; P]; 2];

/// Reads the planes of the lane's tokens `i` for which `wanted[i]`, which is the same for all lanes of a half warp; the
/// others' codes are 0.
///
/// A row of 128 dims is a sector of 32 bytes, in two pieces of 16. So that every load takes whole sectors, neighbouring
/// lanes read the halves of one row, then of the other's, and exchange.
///
/// # Safety
/// All lanes of the warp make this call; `page` is a page of `P` planes or more.
#[inline(always)]
pub unsafe fn read_codes<const D: usize, const P: usize>(page: *const u8, wanted: [bool; 2]) -> Codes<P> {
    let mut codes = [[[0u32; 8]; P]; 2];
    let lane = lane_id() as usize;
    let odd = lane % 2 == 1;
    // SAFETY: the caller's promise; rows are 16 bytes or more.
    unsafe {
        cuda_std::unroll!(p < P, max 2, {
            cuda_std::unroll!(i < 2, max 2, {
                let plane = page.add(plane_offset(D, p) + 32 * i * plane_row_bytes(D));
                if D == 64 {
                    if wanted[i] {
                        let V4(words) = *(plane.add(lane * plane_row_bytes(D)) as *const V4);
                        cuda_std::unroll!(e < 4, max 4, {
                            codes[i][p][e] = words[e];
                        });
                    }
                } else {
                    let (mut first, mut second) = ([0u32; 4], [0u32; 4]);
                    if wanted[i] {
                        let rows = plane.add(lane / 2 * 2 * plane_row_bytes(D)) as *const V4;
                        V4(first) = *rows.add(lane % 2);
                        V4(second) = *rows.add(2 + lane % 2);
                    }
                    cuda_std::unroll!(e < 4, max 4, {
                        let other = shfl_xor_u32(if odd { first[e] } else { second[e] }, 1);
                        codes[i][p][e] = if odd { other } else { first[e] };
                        codes[i][p][4 + e] = if odd { second[e] } else { other };
                    });
                }
            });
        });
    }
    codes
}

/// Zeros and steps of a lane's channels.
#[derive(Clone, Copy)]
pub struct Ranges {
    zeros: [f32; 4],
    steps: [f32; 4],
}

impl Ranges {
    /// Of a page.
    ///
    /// # Safety
    /// `page` is a page of planes.
    #[inline(always)]
    pub unsafe fn read<const D: usize>(page: *const u8) -> Ranges {
        let lane = lane_id() as usize;
        let mut ranges = Ranges { zeros: [0.0; 4], steps: [0.0; 4] };
        // SAFETY: the caller's promise.
        unsafe {
            cuda_std::unroll!(k < D / 32, max 4, {
                ranges.zeros[k] = (*(page as *const f16).add(lane + 32 * k)).to_f32();
                ranges.steps[k] = (*(page.add(step_offset(D)) as *const f16).add(lane + 32 * k)).to_f32();
            });
        }
        ranges
    }
}

/// A query head against a page.
#[derive(Clone, Copy)]
pub struct Head {
    /// Of its weights.
    pub unit: Unit,
    /// Sum over channels of query times zero.
    pub zero: f32,
    /// The lane's products of query and step.
    products: [f32; 4],
}

impl Head {
    /// Query head `g` against the page of `ranges`; its weights go to `weights`, `[D]` of 16 bits. Ends with a
    /// barrier of the warp; another lies between the last use of the weights and the next call.
    ///
    /// # Safety
    /// All lanes of the warp make this call; `weights` is this warp's.
    #[inline(always)]
    pub unsafe fn new<T: KvElement, const D: usize>(
        heads: &Heads<T>,
        g: u32,
        ranges: &Ranges,
        weights: SharedPtr<f32>,
    ) -> Head {
        // SAFETY: the caller's promise.
        unsafe {
            let lane = lane_id() as usize;
            let mut products = [0.0f32; 4];
            let (mut zero, mut peak) = (0.0f32, 0.0f32);
            cuda_std::unroll!(k < D / 32, max 4, {
                let qs = heads.query::<D>(g, lane + 32 * k);
                zero = fma(qs, ranges.zeros[k], zero);
                products[k] = qs * ranges.steps[k];
                let magnitude = products[k].abs();
                peak = if magnitude > peak { magnitude } else { peak };
            });
            zero = group_sum_f32::<32>(zero);
            peak = group_max_f32::<32>(peak);
            let unit = Unit::of_peak(peak);
            cuda_std::unroll!(k < D / 32, max 4, {
                weights.cast::<u16>().add((lane + 32 * k) as u32).write(unit.weight(products[k]) as u16);
            });
            sync_warp(!0);
            Head { unit, zero, products }
        }
    }

    /// The tree sum over channels of (query times step) squared.
    ///
    /// # Safety
    /// All lanes of the warp make this call.
    #[inline(always)]
    pub unsafe fn squares<const D: usize>(&self) -> f32 {
        let mut sum = 0.0f32;
        cuda_std::unroll!(k < D / 32, max 4, {
            sum = fma(self.products[k], self.products[k], sum);
        });
        // SAFETY: the caller's promise.
        unsafe { group_sum_f32::<32>(sum) }
    }
}

/// Integer dot products of the lane's two tokens with the weights. `value` makes four values, one a byte, of four codes
/// of the tokens, one a byte in each plane.
///
/// # Safety
/// [`Head::new`] has written the weights.
#[inline(always)]
pub unsafe fn dots<const D: usize, const P: usize>(
    weights: SharedPtr<f32>,
    codes: &Codes<P>,
    value: impl Fn([u32; P]) -> u32,
) -> [i32; 2] {
    let mut dot = [0i32; 2];
    // SAFETY: the caller's promise.
    unsafe {
        cuda_std::unroll!(w < D / 16, max 8, {
            cuda_std::unroll!(j < 4, max 4, {
                let pairs = weights.cast::<u32>().add((8 * w + 2 * j) as u32).read_v2();
                cuda_std::unroll!(i < 2, max 2, {
                    let mut planes = [0u32; P];
                    cuda_std::unroll!(p < P, max 2, {
                        planes[p] = (codes[i][p][w] >> (2 * j)) & 0x0303_0303;
                    });
                    let four = value(planes);
                    dot[i] = dp2a_lo_s32_u32(pairs[0], four, dot[i]);
                    dot[i] = dp2a_hi_s32_u32(pairs[1], four, dot[i]);
                });
            });
        });
    }
    dot
}

/// Four codes by all of their planes.
#[inline(always)]
pub fn all_planes<const P: usize>(planes: [u32; P]) -> u32 {
    if P == 2 { planes[0] << 2 | planes[P - 1] } else { planes[0] }
}
