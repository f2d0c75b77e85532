//! `unroll!`: a counted loop written out, so that arrays indexed by its counter stay in registers.
//!
//! A `while` loop is unrolled only after LLVM has decided about arrays; one that it leaves indexes them
//! dynamically, and they silently move to local memory. Here each step is separate code with a constant
//! counter from the start.

/// `unroll!(i < N, max 16, { .. })`: the block with `i` (a `usize`) as 0, 1, .. `N - 1`.
///
/// `N` is a const expression (generics allowed) of at most `max`; more is a compile error, never a silently
/// shorter loop. `max` is one of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64: the block is compiled `max` times, so
/// keep it tight. `break` and `continue` do not work in the block.
#[macro_export]
macro_rules! unroll {
    ($i:ident < $n:expr, max 1, $body:block) => { $crate::unroll!(@ $i, $n, 1, $body, 0) };
    ($i:ident < $n:expr, max 2, $body:block) => { $crate::unroll!(@ $i, $n, 2, $body, 0 1) };
    ($i:ident < $n:expr, max 3, $body:block) => { $crate::unroll!(@ $i, $n, 3, $body, 0 1 2) };
    ($i:ident < $n:expr, max 4, $body:block) => { $crate::unroll!(@ $i, $n, 4, $body, 0 1 2 3) };
    ($i:ident < $n:expr, max 6, $body:block) => { $crate::unroll!(@ $i, $n, 6, $body, 0 1 2 3 4 5) };
    ($i:ident < $n:expr, max 8, $body:block) => { $crate::unroll!(@ $i, $n, 8, $body, 0 1 2 3 4 5 6 7) };
    ($i:ident < $n:expr, max 12, $body:block) => {
        $crate::unroll!(@ $i, $n, 12, $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    ($i:ident < $n:expr, max 16, $body:block) => {
        $crate::unroll!(@ $i, $n, 16, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($i:ident < $n:expr, max 24, $body:block) => {
        $crate::unroll!(@ $i, $n, 24, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23)
    };
    ($i:ident < $n:expr, max 32, $body:block) => {
        $crate::unroll!(@ $i, $n, 32, $body,
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
    };
    ($i:ident < $n:expr, max 48, $body:block) => {
        $crate::unroll!(@ $i, $n, 48, $body,
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
            32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47)
    };
    ($i:ident < $n:expr, max 64, $body:block) => {
        $crate::unroll!(@ $i, $n, 64, $body,
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
            32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63)
    };
    (@ $i:ident, $n:expr, $max:literal, $body:block, $($k:literal)*) => {{
        const { ::core::assert!($n <= $max, "unroll!: the count is above `max`") };
        $(
            if $k < $n {
                #[allow(unused_variables)]
                let $i: usize = $k;
                $body
            }
        )*
    }};
}

#[cfg(test)]
mod tests {
    fn sum<const N: usize>() -> [usize; 2] {
        let mut out = [0, 0];
        unroll!(i < N, max 16, {
            out[0] += 1;
            out[1] += i;
        });
        out
    }

    #[test]
    fn the_block_runs_n_times_with_ascending_counters() {
        assert_eq!(sum::<0>(), [0, 0]);
        assert_eq!(sum::<1>(), [1, 0]);
        assert_eq!(sum::<16>(), [16, 120]);
        let mut seen = Vec::new();
        unroll!(i < 64, max 64, { seen.push(i) });
        assert_eq!(seen, (0..64).collect::<Vec<_>>());
    }

    #[test]
    fn the_block_nests() {
        let mut pairs = 0;
        unroll!(i < 3, max 4, { unroll!(j < 2, max 2, { pairs += i * 10 + j }) });
        assert_eq!(pairs, 60 + 3);
    }
}
