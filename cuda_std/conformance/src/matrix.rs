//! The collectives of `ptx` on matrices: fragments as documented, and a product.

use cuda_std::prelude::*;

/// Four 8 x 8 matrices of 16-bit elements through every `ldmatrix`, and one through `movmatrix`.
#[kernel(block = 32, dynamic_shared = 4 * 8 * 16)]
pub unsafe fn fragments(
    /// [4, 8, 4]: the matrices, two elements a word.
    matrices: *const u32,
    /// [32, 15]: x1, x1 transposed, x2, x2 transposed, x4, x4 transposed, movmatrix of x1.
    out: *mut u32,
) {
    unsafe {
        let lane = warp::lane_id();
        let room = shared::dynamic_shared::<u32>();
        unroll!(i < 4, max 4, {
            let word = i as u32 * 32 + lane;
            room.add(word).write(*matrices.add(word as usize));
        });
        warp::sync_warp(u32::MAX);
        // Lane 8 i + r gives row r of matrix i: 16 bytes a row, 128 a matrix.
        let row = room.byte_add(lane * 16);
        let mut out = out.add(lane as usize * 15);
        macro_rules! put {
            ($($words:expr;)*) => {$(
                for word in $words {
                    *out = word;
                    out = out.add(1);
                }
            )*};
        }
        let x1 = ptx::ldmatrix_x1(row);
        put! {
            x1;
            ptx::ldmatrix_x1_trans(row);
            ptx::ldmatrix_x2(row);
            ptx::ldmatrix_x2_trans(row);
            ptx::ldmatrix_x4(row);
            ptx::ldmatrix_x4_trans(row);
            [ptx::movmatrix_trans(x1[0])];
        }
        let _ = out;
    }
}

/// `D = A B + C`, fragments gathered by the layout that `ptx` documents.
#[kernel(block = 32, instances(T in [bf16, f16]))]
pub unsafe fn multiply<T: ptx::MmaElement>(
    /// [16, 16], row-major.
    a: *const T,
    /// [16, 8], row-major.
    b: *const T,
    /// [16, 8], row-major.
    c: *const f32,
    /// [16, 8], row-major.
    d: *mut f32,
) {
    unsafe {
        let lane = warp::lane_id() as usize;
        let (g, t) = (lane / 4, lane % 4);
        let pair = |x: T, y: T| T::pack2(x.to_f32(), y.to_f32());
        let mut fa = [0u32; 4];
        unroll!(i < 4, max 4, {
            let at = a.add((g + 8 * (i & 1)) * 16 + 2 * t + 8 * (i >> 1));
            fa[i] = pair(*at, *at.add(1));
        });
        let mut fb = [0u32; 2];
        unroll!(i < 2, max 2, {
            let at = b.add((2 * t + 8 * i) * 8 + g);
            fb[i] = pair(*at, *at.add(8));
        });
        let mut fc = [0.0; 4];
        unroll!(i < 4, max 4, { fc[i] = *c.add((g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)) });
        let fd = T::mma_m16n8k16(fa, fb, fc);
        unroll!(i < 4, max 4, { *d.add((g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)) = fd[i] });
    }
}
