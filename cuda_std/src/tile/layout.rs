//! The maps between lanes and matrix elements, and between tiles and shared memory. Pure arithmetic, tested on
//! the host against the PTX ISA's tables (9.7.14, "Matrix Fragments for mma.m16n8k16", "ldmatrix", "movmatrix").
//!
//! A 16-bit fragment is words of two neighbouring elements; `half` 0 is the lower one. Positions are
//! `(row, column)`.
//!
//! Shared tiles: rows of 16-byte chunks. Eight lanes that read one chunk each of eight rows below each other
//! would meet in the same banks, so a chunk's index is XORed with bits of its row ([`swizzle`]). Rows of a
//! multiple of 128 bytes use three bits; rows of 64 more (head_dim 96) start in alternate halves of the banks
//! and need two.

/// Element of A (16 x 16) in half `half` of word `word` (0 to 3) of lane `lane`.
#[inline(always)]
pub const fn a_element(lane: usize, word: usize, half: usize) -> (usize, usize) {
    (lane / 4 + 8 * (word % 2), 2 * (lane % 4) + 8 * (word / 2) + half)
}

/// Element of B (16 x 8) in half `half` of word `word` (0, 1) of lane `lane`.
#[inline(always)]
pub const fn b_element(lane: usize, word: usize, half: usize) -> (usize, usize) {
    (2 * (lane % 4) + 8 * word + half, lane / 4)
}

/// Element of C and D (16 x 8) in value `value` (0 to 3) of lane `lane`.
#[inline(always)]
pub const fn c_element(lane: usize, value: usize) -> (usize, usize) {
    (lane / 4 + 8 * (value / 2), 2 * (lane % 4) + value % 2)
}

/// Element of an 8 x 8 matrix that `ldmatrix` gives lane `lane`; with `.trans` the matrix is the transposed one.
#[inline(always)]
pub const fn ldmatrix_element(lane: usize, half: usize, transposed: bool) -> (usize, usize) {
    let (row, column) = (lane / 4, 2 * (lane % 4) + half);
    if transposed { (column, row) } else { (row, column) }
}

/// Row and chunk of a 16 x 16 piece that lane `lane` gives `ldmatrix.x4` to load it as A.
#[inline(always)]
pub const fn a_row(lane: usize) -> (usize, usize) {
    // Matrices in the order of A's words: upper left, lower left, upper right, lower right.
    (lane % 8 + 8 * (lane / 8 % 2), lane / 16)
}

/// Row and chunk of a 16 x 16 piece that lane `lane` gives `ldmatrix.x4.trans` to load its transpose as A.
#[inline(always)]
pub const fn a_row_transposed(lane: usize) -> (usize, usize) {
    // A's lower left is the piece's upper right.
    (lane % 8 + 8 * (lane / 16), lane / 8 % 2)
}

/// Elements of a 16-byte chunk.
pub const CHUNK: usize = 8;

/// The chunk-index bits that [`swizzle`] may change, for rows of `columns` 16-bit elements.
#[inline(always)]
pub const fn swizzle_mask(columns: usize) -> usize {
    assert!(columns.is_multiple_of(32), "a row of a shared tile is a multiple of 64 bytes");
    if columns.is_multiple_of(64) { 7 } else { 3 }
}

/// What the chunk indices of row `row` are XORed with. Linear in the bits of `row`:
/// `swizzle(a ^ b) == swizzle(a) ^ swizzle(b)`.
#[inline(always)]
pub const fn swizzle(columns: usize, row: usize) -> usize {
    if columns.is_multiple_of(64) { row % 8 } else { row / 2 % 4 }
}

/// Byte offset of a chunk in a shared tile with rows of `columns` 16-bit elements.
#[inline(always)]
pub const fn chunk_offset(columns: usize, row: usize, chunk: usize) -> usize {
    row * columns * 2 + (chunk ^ swizzle(columns, row)) * 16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ISA's formulas, element index `i` as there: A has 8 elements a lane, B 4, C 4.
    fn isa_a(lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane >> 2, lane % 4);
        let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
        let column = if i < 4 { thread * 2 + (i & 1) } else { thread * 2 + (i & 1) + 8 };
        (row, column)
    }

    fn isa_b(lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane >> 2, lane % 4);
        (if i < 2 { thread * 2 + (i & 1) } else { thread * 2 + (i & 1) + 8 }, group)
    }

    fn isa_c(lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane >> 2, lane % 4);
        (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1))
    }

    /// Each element of a `rows` x `columns` matrix is held once.
    fn partition(rows: usize, columns: usize, elements: impl Iterator<Item = (usize, usize)>) {
        let mut held = vec![0; rows * columns];
        elements.for_each(|(row, column)| held[row * columns + column] += 1);
        assert!(held.iter().all(|&n| n == 1), "{held:?}");
    }

    #[test]
    fn fragments_are_the_isas_and_hold_every_element_once() {
        let lanes = 0..32usize;
        for lane in lanes.clone() {
            for i in 0..8 {
                assert_eq!(a_element(lane, i / 2, i % 2), isa_a(lane, i), "A, lane {lane}, a{i}");
            }
            for i in 0..4 {
                assert_eq!(b_element(lane, i / 2, i % 2), isa_b(lane, i), "B, lane {lane}, b{i}");
                assert_eq!(c_element(lane, i), isa_c(lane, i), "C, lane {lane}, c{i}");
            }
        }
        let words = |n: usize| lanes.clone().flat_map(move |l| (0..2 * n).map(move |i| (l, i / 2, i % 2)));
        partition(16, 16, words(4).map(|(l, w, h)| a_element(l, w, h)));
        partition(16, 8, words(2).map(|(l, w, h)| b_element(l, w, h)));
        partition(16, 8, lanes.clone().flat_map(|l| (0..4).map(move |i| c_element(l, i))));
        partition(8, 8, words(1).map(|(l, _, h)| ldmatrix_element(l, h, true)));
    }

    #[test]
    fn a_few_entries_copied_from_the_isas_figures() {
        // Figure "MMA .m16n8k16 fragment layout for matrix A with .f16 / .bf16 type": rows 0 and 8, T0 and T31.
        assert_eq!([0, 1, 2, 3].map(|w| a_element(0, w, 0)), [(0, 0), (8, 0), (0, 8), (8, 8)]);
        assert_eq!([0, 1, 2, 3].map(|w| a_element(31, w, 1)), [(7, 7), (15, 7), (7, 15), (15, 15)]);
        // The same for B and C.
        assert_eq!([0, 1].map(|w| b_element(5, w, 0)), [(2, 1), (10, 1)]);
        assert_eq!([0, 1, 2, 3].map(|i| c_element(5, i)), [(1, 2), (1, 3), (9, 2), (9, 3)]);
    }

    /// The element of a 16 x 16 row-major piece that lands in a lane's word: matrix `word` of an `ldmatrix.x4`
    /// starts in the row and at the chunk that lanes `8 word ..` gave.
    fn loaded(lane: usize, word: usize, half: usize, transposed: bool) -> (usize, usize) {
        let address = |giver: usize| if transposed { a_row_transposed(giver) } else { a_row(giver) };
        let (row, column) = ldmatrix_element(lane, half, transposed);
        let (r, chunk) = address(8 * word + row);
        (r, CHUNK * chunk + column)
    }

    #[test]
    fn ldmatrix_with_these_rows_gives_a_and_with_trans_its_transpose() {
        for (lane, word, half) in (0..256).map(|i| (i / 8, i / 2 % 4, i % 2)) {
            let (row, column) = a_element(lane, word, half);
            assert_eq!(loaded(lane, word, half, false), (row, column), "lane {lane}, word {word}");
            assert_eq!(loaded(lane, word, half, true), (column, row), "lane {lane}, word {word}, trans");
        }
    }

    #[test]
    fn the_halves_of_an_accumulator_transposed_are_b() {
        // movmatrix on the packed values 2 w, 2 w + 1: lane l then holds what the transposed matrix has there.
        for (lane, word, half) in (0..128).map(|i| (i / 4, i / 2 % 2, i % 2)) {
            let (row, column) = ldmatrix_element(lane, half, true);
            let (giver, value) = (4 * row + column / 2, 2 * word + column % 2);
            assert_eq!(c_element(giver, value), b_element(lane, word, half), "lane {lane}, word {word}");
        }
    }

    #[test]
    fn swizzled_tiles_are_without_bank_conflicts_for_rows_and_for_columns() {
        for columns in [64, 96, 128, 192, 256] {
            let chunks = columns / CHUNK;
            // A bijection inside each row.
            for row in 0..32 {
                let mut offsets: Vec<_> = (0..chunks).map(|c| chunk_offset(columns, row, c)).collect();
                offsets.sort_unstable();
                let first = row * columns * 2;
                assert!(offsets.iter().enumerate().all(|(i, &o)| o == first + 16 * i), "{columns}, {row}");
            }
            // ldmatrix reads eight chunks below each other: eight different groups of four banks.
            for (row, chunk) in (0..32).step_by(8).flat_map(|r| (0..chunks).map(move |c| (r, c))) {
                let mut groups: Vec<_> =
                    (row..row + 8).map(|r| chunk_offset(columns, r, chunk) / 16 % 8).collect();
                groups.sort_unstable();
                assert_eq!(groups, [0, 1, 2, 3, 4, 5, 6, 7], "{columns} columns, row {row}, chunk {chunk}");
            }
            // A copy writes chunks of a row in turn: every eight lanes cover all banks as well.
            for first in (0..16 * chunks).step_by(8) {
                let mut groups: Vec<_> = (first..first + 8)
                    .map(|i| chunk_offset(columns, i / chunks, i % chunks) / 16 % 8)
                    .collect();
                groups.sort_unstable();
                assert_eq!(groups, [0, 1, 2, 3, 4, 5, 6, 7], "{columns} columns, chunks from {first}");
            }
        }
    }

    #[test]
    fn swizzles_are_linear_and_stay_in_their_mask() {
        for columns in [64, 96, 128, 256] {
            for (a, b) in (0..1024).map(|i| (i / 32, i % 32)) {
                assert_eq!(swizzle(columns, a ^ b), swizzle(columns, a) ^ swizzle(columns, b));
                assert_eq!(swizzle(columns, a) & !swizzle_mask(columns), 0);
            }
        }
    }
}
