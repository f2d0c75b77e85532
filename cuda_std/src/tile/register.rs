//! Tiles in registers: the operands of `mma.m16n8k16`, one value of the type a warp.
//!
//! Each lane holds its part (see [`super::layout`]); a fragment is a value of the whole warp, so what makes or
//! combines fragments is a collective.

use core::marker::PhantomData;

use crate::ptx::{MmaElement, movmatrix_trans};

/// A, 16 x 16 of `T`: four words a lane.
#[derive(Clone, Copy)]
pub struct FragmentA<T> {
    words: [u32; 4],
    element: PhantomData<T>,
}

/// B, 16 x 8 of `T`: two words a lane.
#[derive(Clone, Copy)]
pub struct FragmentB<T> {
    words: [u32; 2],
    element: PhantomData<T>,
}

/// C and D, 16 x 8 of f32: four values a lane.
#[derive(Clone, Copy)]
pub struct Accumulator(pub [f32; 4]);

impl<T: MmaElement> FragmentA<T> {
    /// The lane's words, in the order of [`super::layout::a_element`].
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words, element: PhantomData }
    }
}

impl<T: MmaElement> FragmentB<T> {
    /// A fragment of zeros.
    pub const ZERO: Self = Self::from_words([0; 2]);

    /// The lane's words, in the order of [`super::layout::b_element`].
    #[inline(always)]
    pub const fn from_words(words: [u32; 2]) -> Self {
        Self { words, element: PhantomData }
    }
}

impl Accumulator {
    /// Zeros.
    pub const ZERO: Self = Self([0.0; 4]);

    /// `self + a b`. The order of the additions is the hardware's.
    /// PTX `mma.sync.aligned.m16n8k16.row.col.f32.T.T.f32`, sm_80.
    ///
    /// # Safety
    /// All 32 lanes make this call.
    #[inline(always)]
    #[must_use]
    pub unsafe fn mma<T: MmaElement>(self, a: FragmentA<T>, b: FragmentB<T>) -> Self {
        // SAFETY: the caller's contract.
        Self(unsafe { T::mma_m16n8k16(a.words, b.words, self.0) })
    }

    /// The sum with another tile.
    #[inline(always)]
    #[must_use]
    pub fn plus(self, Self([a, b, c, d]): Self) -> Self {
        Self([self.0[0] + a, self.0[1] + b, self.0[2] + c, self.0[3] + d])
    }

    /// Multiplies the even columns by `even`, the odd ones by `odd`: each lane's two columns.
    #[inline(always)]
    pub fn scale_columns(&mut self, [even, odd]: [f32; 2]) {
        self.0 = [self.0[0] * even, self.0[1] * odd, self.0[2] * even, self.0[3] * odd];
    }

    /// The values rounded to `T`, as the B operand of a product over this tile's rows: in B the rows are k, so
    /// each 8 x 8 half is transposed once. Two `movmatrix`.
    ///
    /// # Safety
    /// All 32 lanes make this call.
    #[inline(always)]
    pub unsafe fn to_b<T: MmaElement>(self) -> FragmentB<T> {
        let [a, b, c, d] = self.0;
        // SAFETY: the caller's contract.
        unsafe { FragmentB::from_words([movmatrix_trans(T::pack2(a, b)), movmatrix_trans(T::pack2(c, d))]) }
    }
}
