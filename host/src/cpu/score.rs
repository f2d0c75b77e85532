//! score: the log2 mass of every block for every query head of a group, with the reference's bits.
//!
//! A page's codes are unpacked once for all heads of the group, 64 tokens at a time, into 16-bit integers
//! `[4][64][D / 4]` that meet 16-bit weights: of planes of 2 bits first the lowest two bits of every byte, then the
//! next two. Integer sums do not care about the order of channels, so only the weights have to follow it
//! ([`position`]). With AVX-512 VNNI pages are not unpacked: lanes are tokens there, and codes of a byte meet weights
//! split into two. Boxes have a fast path of their own; the other summaries go through [`Estimator`].
//!
//! A nested page is looked at twice, as the reference defines it: the coarse plane of all blocks, then all planes
//! of those that may matter.

use super::isa::{Isa, per_isa};
use super::lanes::{CHUNK, ChunkDots, Codes, Lanes, Split};
use super::{Queries, by_format};
use crate::Mirror;
use crate::element::{F16, Format};
use crate::estimator::planes::{bound, coarse_score, nested_bound, spread};
use crate::estimator::{Bound, DOUBT, Estimator, FUNCTIONS, upper};
use crate::reference::score::{matters, open_rounding, threshold};
use crate::store::HeadView;
use kernels_gpu::layout::{BLOCK, MAX_GROUP, box_offset, plane_row_bytes, step_offset};
use kernels_gpu::numeric::{Unit, exp2, finite_score, fma, log2};

/// Where scores go; rows are `width` long.
pub(super) struct Scores<'a> {
    /// `[group, width]`
    pub log_mass: &'a mut [f32],
    pub width: usize,
    /// Upper bounds `[group, width]` and what a score may be off by `[group]`, where asked for.
    pub bounds: Option<(&'a mut [f32], &'a mut [f32])>,
}

/// Scores all blocks; returns the mirror bytes read.
pub(super) fn score(
    isa: Isa,
    view: &HeadView<'_>,
    estimator: &dyn Estimator,
    queries: Queries<'_>,
    mut scores: Scores<'_>,
) -> usize {
    by_format!(view, score_row(isa, view, estimator, queries, &mut scores))
}

per_isa! {
    fn score_row[F: Format, const D: usize][F, D](
        view: &HeadView<'_>, estimator: &dyn Estimator, queries: Queries<'_>, scores: &mut Scores<'_>,
    ) -> usize = score_row_body;
}

#[inline(always)]
fn score_row_body<L: Lanes, F: Format, const D: usize>(
    view: &HeadView<'_>,
    estimator: &dyn Estimator,
    queries: Queries<'_>,
    scores: &mut Scores<'_>,
) -> usize {
    let (format, width) = (view.format(), scores.width);
    let (pages, per_page) = (view.full_groups(), view.format().blocks());
    let queries = queries.scaled.as_chunks::<D>().0;
    let bits = format.mirror.bits().map(|bits| bits as usize);
    let mut permuted = [[0.0f32; D]; MAX_GROUP];
    if let Some(bits) = bits {
        for (to, from) in permuted.iter_mut().zip(queries) {
            for c in 0..D {
                to[position::<D>(bits, c)] = from[c];
            }
        }
    }
    let fine_bits = format.mirror.fine_bits() as usize;
    let nested = fine_bits > 0;
    let planes = bits.map_or(0, |bits| bits.div_ceil(2));

    for group in 0..pages {
        let page = view.page(group);
        if group + 1 < pages {
            L::prefetch(view.page(group + 1));
        }
        match bits {
            Some(bits) => {
                let page = Page { bytes: page, bits, tokens: format.group };
                let used = planes - fine_bits / 2;
                let target = Target { first: group * per_page, width, only: None };
                score_page::<L, D>(page, used, queries, &permuted, target, scores.log_mass);
            }
            None if format.mirror == Mirror::Box => {
                score_boxes::<F, D>(page, queries, group * per_page, width, scores.log_mass);
            }
            None => {
                for (g, query) in queries.iter().enumerate() {
                    let masses = &mut scores.log_mass[g * width + group * per_page..][..per_page];
                    estimator.masses(page, query, masses);
                }
            }
        }
    }
    for block in view.described_blocks()..view.blocks() {
        score_open::<L, F, D>(view.block_keys(block), queries, block, width, scores.log_mass);
    }

    // [group, pages]
    let mut bounds: Vec<Bound> = vec![];
    if scores.bounds.is_some() {
        for query in queries {
            bounds.extend((0..pages).map(|group| page_bound::<D>(view, estimator, group, query)));
        }
    }
    let mut metadata = pages * format.first_bytes(D);
    let mut fine = vec![false; view.blocks()];
    if nested {
        for (g, query) in queries.iter().enumerate() {
            let row = &scores.log_mass[g * width..][..view.blocks()];
            let threshold = threshold(row, !bounds.is_empty());
            for group in 0..pages {
                let doubt = match bounds.get(g * pages + group) {
                    Some(bound) => bound.slack,
                    None => DOUBT * spread(&halves::<D>(view.page(group), step_offset(D)), query, fine_bits),
                };
                for block in group * per_page..(group + 1) * per_page {
                    fine[block] |= matters(row[block], doubt, threshold);
                }
            }
        }
        for group in 0..pages {
            let only = &fine[group * per_page..][..per_page];
            let wanted = only.iter().filter(|&&fine| fine).count();
            if wanted > 0 {
                let page = Page { bytes: view.page(group), bits: 2 * fine_bits, tokens: format.group };
                let target = Target { first: group * per_page, width, only: Some(only) };
                score_page::<L, D>(page, planes, queries, &permuted, target, scores.log_mass);
                metadata += wanted * format.fine_bytes(D);
            }
        }
    }
    if let Some((uppers, roundings)) = &mut scores.bounds {
        for (g, query) in queries.iter().enumerate() {
            let bounds = &bounds[g * pages..][..pages];
            let mut rounding = bounds.iter().fold(0.0f32, |m, b| if b.rounding > m { b.rounding } else { m });
            for block in view.described_blocks()..view.blocks() {
                for key in view.block_keys(block).as_chunks::<D>().0 {
                    rounding =
                        open_rounding(rounding, key.iter().map(|&k| F::widen(k)).zip(query.iter().copied()));
                }
            }
            let row = &scores.log_mass[g * width..][..view.blocks()];
            for (block, (to, &mass)) in uppers[g * width..].iter_mut().zip(row).enumerate() {
                let slack = match bounds.get(block / per_page) {
                    Some(bound) if fine[block] => bound.fine_slack,
                    Some(bound) => bound.slack,
                    None => rounding + FUNCTIONS,
                };
                *to = upper(mass, slack);
            }
            roundings[g] = rounding;
        }
    }
    metadata
}

#[inline(always)]
fn page_bound<const D: usize>(
    view: &HeadView<'_>,
    estimator: &dyn Estimator,
    group: usize,
    query: &[f32; D],
) -> Bound {
    let (page, mirror) = (view.page(group), view.format().mirror);
    match mirror.bits() {
        Some(bits) => {
            let (zeros, steps) = (halves::<D>(page, 0), halves::<D>(page, step_offset(D)));
            if mirror.fine_bits() > 0 {
                nested_bound(&zeros, &steps, query, bits as usize, mirror.fine_bits() as usize)
            } else {
                bound(&zeros, &steps, query, bits as usize)
            }
        }
        None => estimator.bound(page, query),
    }
}

/// Where the weight of channel `c` is in `[4][D / 4]`: by its place in its byte, then by byte. A byte of a 1-bit
/// plane has eight places: the upper four come in the second half of each row.
#[inline(always)]
const fn position<const D: usize>(bits: usize, c: usize) -> usize {
    if bits == 1 {
        let (byte, place) = (c / 32 * 4 + c % 4, c % 32 / 4);
        place % 4 * (D / 4) + place / 4 * (D / 8) + byte
    } else {
        c % 16 / 4 * (D / 4) + c / 16 * 4 + c % 4
    }
}

/// A page of planes.
#[derive(Clone, Copy)]
struct Page<'a> {
    bytes: &'a [u8],
    bits: usize,
    tokens: usize,
}

/// Where a page's masses go: rows of `width`, from block `first` on, some of them.
#[derive(Clone, Copy)]
struct Target<'a> {
    first: usize,
    width: usize,
    only: Option<&'a [bool]>,
}

/// Zeros or steps of a page.
#[inline(always)]
fn halves<const D: usize>(page: &[u8], at: usize) -> [f32; D] {
    let mut x = [0.0f32; D];
    for (x, b) in x.iter_mut().zip(page[at..][..2 * D].as_chunks::<2>().0) {
        *x = F16::widen(u16::from_le_bytes(*b));
    }
    x
}

/// A query head against a page: its unit, weights by [`position`], and the sum of query times zero.
#[derive(Clone, Copy)]
struct Head<const D: usize> {
    unit: Unit,
    zero: f32,
    weights: [i16; D],
    all: i32,
}

#[inline(always)]
fn head<L: Lanes, const D: usize>(
    query: &[f32; D],
    permuted: &[f32; D],
    zeros: &[f32; D],
    steps: &[f32; D],
) -> Head<D> {
    let mut lanes = [0.0f32; 32];
    for c in (0..D).step_by(32) {
        for l in 0..32 {
            lanes[l] = fma(query[c + l], zeros[c + l], lanes[l]);
        }
    }
    let mut sixteen = [0.0f32; 16];
    for l in 0..16 {
        sixteen[l] = lanes[l] + lanes[l + 16];
    }
    let zero = L::sum(sixteen);

    let mut products = [0.0f32; D];
    let mut peaks = [0.0f32; 16];
    for c in (0..D).step_by(16) {
        for l in 0..16 {
            let w = permuted[c + l] * steps[c + l];
            products[c + l] = w;
            peaks[l] = if w.abs() > peaks[l] { w.abs() } else { peaks[l] };
        }
    }
    let unit = Unit::of_peak(L::max(peaks));
    let mut weights = [0i16; D];
    let mut all = 0;
    for c in 0..D {
        weights[c] = unit.weight(products[c]) as i16;
        all += weights[c] as i32;
    }
    Head { unit, zero, weights, all }
}

/// Masses by the first `used` planes.
#[inline(always)]
fn score_page<L: Lanes, const D: usize>(
    page: Page<'_>,
    used: usize,
    queries: &[[f32; D]],
    permuted: &[[f32; D]; MAX_GROUP],
    target: Target<'_>,
    log_mass: &mut [f32],
) {
    let packed = L::PACKED && page.bits > 1 && page.tokens >= CHUNK;
    let (zeros, natural_steps) = (halves::<D>(page.bytes, 0), halves::<D>(page.bytes, step_offset(D)));
    let mut steps = natural_steps;
    if !packed {
        for c in 0..D {
            steps[position::<D>(page.bits, c)] = natural_steps[c];
        }
    }
    let mut heads = [Head { unit: Unit::of_peak(0.0), zero: 0.0, weights: [0; D], all: 0 }; MAX_GROUP];
    let mut split = [Split { high: [0; D], low: [0; D] }; MAX_GROUP];
    let heads = &mut heads[..queries.len()];
    let split = &mut split[..queries.len()];
    for (g, query) in queries.iter().enumerate() {
        heads[g] = head::<L, D>(query, if packed { query } else { &permuted[g] }, &zeros, &steps);
        if packed {
            split[g] = Split::of(&heads[g].weights);
        }
    }
    let left = if used < page.bits.div_ceil(2) { page.bits - 2 * used } else { 0 };
    for chunk in 0..page.tokens.div_ceil(CHUNK) {
        let blocks = CHUNK.min(page.tokens) / BLOCK;
        let first = chunk * (CHUNK / BLOCK);
        let wanted = |block: usize| target.only.is_none_or(|only| only[first + block]);
        if !(0..blocks).any(wanted) {
            continue;
        }
        let mut dots: ChunkDots = [[[0; BLOCK]; CHUNK / BLOCK]; MAX_GROUP];
        if packed {
            let bytes = plane_row_bytes(D);
            for p in 0..used {
                let plane = &page.bytes[4 * D + (p * page.tokens + chunk * CHUNK) * bytes..][..CHUNK * bytes];
                let more = L::packed_dots::<D>(split, plane);
                for g in 0..queries.len() {
                    for (dot, &more) in dots[g].as_flattened_mut().iter_mut().zip(more[g].as_flattened()) {
                        *dot = 4 * *dot + more;
                    }
                }
            }
        } else {
            let mut codes: Codes<D> = [[[0; D]; BLOCK]; 4];
            unpack::<D>(page, used, chunk, &mut codes);
            for (head, dots) in heads.iter().zip(&mut dots) {
                for (block, dots) in dots.iter_mut().enumerate().take(blocks) {
                    *dots = L::code_dots(&head.weights, &codes, block);
                }
            }
        }
        for (quad, heads) in heads.chunks(4).enumerate() {
            let mut scores = [[0.0f32; BLOCK]; 16];
            for (g, head) in heads.iter().enumerate() {
                for block in 0..blocks {
                    for t in 0..BLOCK {
                        let dot = dots[4 * quad + g][block][t];
                        scores[4 * g + block][t] = if left > 0 {
                            coarse_score(head.unit, head.zero, dot, head.all, left)
                        } else {
                            head.unit.score(head.zero, dot)
                        };
                    }
                }
            }
            let masses = block_masses::<L>(&scores);
            for g in 0..heads.len() {
                let row = &mut log_mass[(4 * quad + g) * target.width + target.first + first..][..blocks];
                for (block, to) in row.iter_mut().enumerate() {
                    if wanted(block) {
                        *to = masses[4 * g + block];
                    }
                }
            }
        }
    }
}

/// Codes of 64 tokens (or as many as the page has). Plane by plane, place by place: loops over whole planes become
/// vector code.
#[inline(always)]
fn unpack<const D: usize>(page: Page<'_>, used: usize, chunk: usize, codes: &mut Codes<D>) {
    let tokens = CHUNK.min(page.tokens);
    if page.bits == 1 {
        let plane = &page.bytes[4 * D + chunk * CHUNK * D / 8..][..tokens * D / 8];
        for place in 0..8 {
            let rows = codes[place % 4].as_flattened_mut().chunks_exact_mut(D / 4);
            for (row, bytes) in rows.zip(plane.chunks_exact(D / 8)) {
                let half = &mut row[place / 4 * (D / 8)..][..D / 8];
                for (code, &byte) in half.iter_mut().zip(bytes) {
                    *code = ((byte >> place) & 1) as i16;
                }
            }
        }
        return;
    }
    let bytes = plane_row_bytes(D);
    for (j, codes) in codes.iter_mut().enumerate() {
        let codes = &mut codes.as_flattened_mut()[..tokens * bytes];
        for p in 0..used {
            let plane = &page.bytes[4 * D + (p * page.tokens + chunk * CHUNK) * bytes..][..tokens * bytes];
            if p == 0 {
                for (code, &byte) in codes.iter_mut().zip(plane) {
                    *code = ((byte >> (2 * j)) & 3) as i16;
                }
            } else {
                for (code, &byte) in codes.iter_mut().zip(plane) {
                    *code = *code << 2 | ((byte >> (2 * j)) & 3) as i16;
                }
            }
        }
    }
}

/// log2 of the sum of `2^score`, for 16 blocks; scores of tokens that are not there are `-inf`.
#[inline(always)]
fn block_masses<L: Lanes>(scores: &[[f32; BLOCK]; 16]) -> [f32; 16] {
    let tops = L::maxima(scores);
    let mut e = [[0.0f32; BLOCK]; 16];
    for b in 0..16 {
        for t in 0..BLOCK {
            e[b][t] = exp2(scores[b][t] - tops[b]);
        }
    }
    let sums = L::sums(&e);
    let mut masses = [0.0f32; 16];
    for b in 0..16 {
        masses[b] = tops[b] + log2(sums[b]);
    }
    masses
}

#[inline(always)]
fn score_open<L: Lanes, F: Format, const D: usize>(
    keys: &[u16],
    queries: &[[f32; D]],
    block: usize,
    width: usize,
    log_mass: &mut [f32],
) {
    // Lanes are tokens, so that each adds its channels in ascending order.
    let mut columns = [[0.0f32; BLOCK]; D];
    let keys = keys.as_chunks::<D>().0;
    for (t, key) in keys.iter().enumerate() {
        for c in 0..D {
            columns[c][t] = F::widen(key[c]);
        }
    }
    // Of MAX_GROUP heads; the others' are not stored.
    let mut scores = [[0.0f32; BLOCK]; 16];
    for (q, scores) in queries.iter().zip(&mut scores) {
        let mut dots = [0.0f32; BLOCK];
        for c in 0..D {
            for t in 0..BLOCK {
                dots[t] = fma(q[c], columns[c][t], dots[t]);
            }
        }
        *scores = [f32::NEG_INFINITY; BLOCK];
        for t in 0..keys.len() {
            scores[t] = finite_score(dots[t]);
        }
    }
    let masses = block_masses::<L>(&scores);
    for g in 0..queries.len() {
        log_mass[g * width + block] = masses[g];
    }
}

/// Blocks of a page whose boxes are scored side by side.
const LANES: usize = 4;

#[inline(always)]
fn score_boxes<F: Format, const D: usize>(
    page: &[u8],
    queries: &[[f32; D]],
    first: usize,
    width: usize,
    log_mass: &mut [f32],
) {
    let blocks = page.len() / (4 * D);
    for from in (0..blocks).step_by(LANES) {
        // Lanes are blocks; those beyond the page hold zeros and are not stored.
        let (mut low, mut high) = ([[0.0f32; LANES]; D], [[0.0f32; LANES]; D]);
        let lanes = LANES.min(blocks - from);
        for block in 0..lanes {
            let bounds = page[box_offset(D, from + block)..][..4 * D].as_chunks::<2>().0;
            for c in 0..D {
                low[c][block] = F::widen(u16::from_le_bytes(bounds[c]));
                high[c][block] = F::widen(u16::from_le_bytes(bounds[D + c]));
            }
        }
        for (g, q) in queries.iter().enumerate() {
            let mut bound = [0.0f32; LANES];
            for c in 0..D {
                for block in 0..LANES {
                    let (a, b) = (q[c] * low[c][block], q[c] * high[c][block]);
                    bound[block] += if a > b { a } else { b };
                }
            }
            for block in 0..lanes {
                log_mass[g * width + first + from + block] = finite_score(bound[block]) + 4.0;
            }
        }
    }
}
