//! Weight matrices as the file quantises them, times activations in f32.
//!
//! Outputs come in panels of 16, one a lane; `[panels][inputs]` vectors of 16 codes. Q4_1 and Q4_0 keep 4-bit
//! codes (two inputs a byte, 16 apart, as in the file), Q8_0 bytes, every other type becomes f32. An output is
//! one fixed sequence of additions over the inputs, whatever the number of rows, threads or vector width: a
//! sequence gets the same bits in any batch.

mod product;

use candle_core::quantized::{GgmlDType, QTensor};
use half::f16;
use rayon::prelude::*;

use crate::simd::{Isa, LANES};

/// Inputs that share a scale.
const BLOCK: usize = 32;
/// Rows that one task takes where there are many.
const ROWS: usize = 32;

/// A vector of lanes.
type Lane<T> = [T; LANES];

/// Weights `[outputs, inputs]`.
#[derive(Debug)]
pub struct Matrix {
    outputs: usize,
    inputs: usize,
    form: Form,
    isa: Isa,
}

/// How the weights are held.
#[derive(Debug)]
enum Form {
    /// `scale * code + offset`; codes `[panels][blocks][16]`, the low halves of the bytes are inputs 0..16 of the block,
    /// the high ones 16..32. `[panels][blocks]` scales and offsets.
    Four { codes: Vec<Lane<u8>>, scale: Vec<Lane<f32>>, offset: Vec<Lane<f32>> },
    /// `scale * code`; codes `[panels][inputs]`.
    Eight { codes: Vec<Lane<i8>>, scale: Vec<Lane<f32>> },
    /// `[panels][inputs]`.
    Plain { weights: Vec<Lane<f32>> },
}

impl Matrix {
    /// Repacks a matrix of a file.
    ///
    /// # Errors
    /// candle's, where the tensor is no matrix or cannot be dequantised.
    pub fn new(tensor: &QTensor) -> candle_core::Result<Matrix> {
        let (outputs, inputs) = tensor.shape().dims2()?;
        let panels = outputs.div_ceil(LANES);
        let blocks = inputs / BLOCK;
        let form = match tensor.dtype() {
            GgmlDType::Q4_1 | GgmlDType::Q4_0 if inputs.is_multiple_of(BLOCK) => {
                let data = tensor.data()?;
                let with_offset = tensor.dtype() == GgmlDType::Q4_1;
                let bytes = if with_offset { 20 } else { 18 };
                let mut codes = vec![[0; LANES]; panels * blocks * 16];
                let mut scale = vec![[0.0; LANES]; panels * blocks];
                let mut offset = scale.clone();
                for (i, block) in data.chunks_exact(bytes).enumerate() {
                    let (output, b) = (i / blocks, i % blocks);
                    let (at, lane) = (output / LANES * blocks + b, output % LANES);
                    let d = half_at(block, 0);
                    scale[at][lane] = d;
                    offset[at][lane] = if with_offset { half_at(block, 2) } else { -8.0 * d };
                    for (j, &byte) in block[bytes - 16..].iter().enumerate() {
                        codes[at * 16 + j][lane] = byte;
                    }
                }
                Form::Four { codes, scale, offset }
            }
            GgmlDType::Q8_0 if inputs.is_multiple_of(BLOCK) => {
                let data = tensor.data()?;
                let mut codes = vec![[0; LANES]; panels * inputs];
                let mut scale = vec![[0.0; LANES]; panels * blocks];
                for (i, block) in data.chunks_exact(2 + BLOCK).enumerate() {
                    let (output, b) = (i / blocks, i % blocks);
                    let (panel, lane) = (output / LANES, output % LANES);
                    scale[panel * blocks + b][lane] = half_at(block, 0);
                    for (j, &byte) in block[2..].iter().enumerate() {
                        codes[panel * inputs + b * BLOCK + j][lane] = byte as i8;
                    }
                }
                Form::Eight { codes, scale }
            }
            _ => {
                let values = tensor.dequantize(&candle_core::Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
                let mut weights = vec![[0.0; LANES]; panels * inputs];
                for (output, row) in values.chunks_exact(inputs.max(1)).enumerate() {
                    for (j, &w) in row.iter().enumerate() {
                        weights[output / LANES * inputs + j][output % LANES] = w;
                    }
                }
                Form::Plain { weights }
            }
        };
        Ok(Matrix { outputs, inputs, form, isa: Isa::detect() })
    }

    /// Rows of the matrix: numbers that come out.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the matrix: numbers that go in.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes that one multiplication reads.
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Four { codes, scale, offset } => {
                size_of_val(&codes[..]) + size_of_val(&scale[..]) + size_of_val(&offset[..])
            }
            Form::Eight { codes, scale } => size_of_val(&codes[..]) + size_of_val(&scale[..]),
            Form::Plain { weights } => size_of_val(&weights[..]),
        }
    }

    /// The weights of one output, `[inputs]`, added to `out`.
    pub fn add_row(&self, output: usize, out: &mut [f32]) {
        let (panel, lane) = (output / LANES, output % LANES);
        let blocks = self.inputs / BLOCK;
        for (i, out) in out.iter_mut().enumerate() {
            let (at, j) = (panel * blocks + i / BLOCK, i % BLOCK);
            *out += match &self.form {
                Form::Four { codes, scale, offset } => {
                    let code = codes[at * 16 + j % 16][lane] >> (4 * (j / 16)) & 15;
                    scale[at][lane] * code as f32 + offset[at][lane]
                }
                Form::Eight { codes, scale } => scale[at][lane] * codes[panel * self.inputs + i][lane] as f32,
                Form::Plain { weights } => weights[panel * self.inputs + i][lane],
            };
        }
    }

    /// `out[r] = W x[r]`: x `[rows, inputs]`, out `[rows, outputs]`.
    ///
    /// # Panics
    /// Where the lengths do not agree: an error of the caller, not of a file.
    pub fn multiply(&self, x: &[f32], out: &mut [f32]) {
        assert!(x.len().is_multiple_of(self.inputs) && x.len() / self.inputs * self.outputs == out.len());
        let rows = x.len() / self.inputs;
        if rows >= ROWS {
            (x.par_chunks(ROWS * self.inputs)).zip(out.par_chunks_mut(ROWS * self.outputs)).for_each(
                |(x, out)| {
                    let sums = self.block_sums(x);
                    for panel in 0..self.outputs.div_ceil(LANES) {
                        self.panel(panel, x, &sums, |row, values| {
                            scatter(values, out, row, self.outputs, panel)
                        });
                    }
                },
            );
            return;
        }
        let sums = self.block_sums(x);
        // Few rows: the panels are divided among the threads.
        let mut panels = vec![[0.0; LANES]; self.outputs.div_ceil(LANES) * rows];
        panels.par_chunks_mut(rows.max(1)).with_min_len(4).enumerate().for_each(|(panel, to)| {
            self.panel(panel, x, &sums, |row, values| to[row] = *values);
        });
        for (panel, values) in panels.chunks(rows.max(1)).enumerate() {
            for (row, values) in values.iter().enumerate() {
                scatter(values, out, row, self.outputs, panel);
            }
        }
    }

    /// Sum of every block of 32 inputs, which the offset of Q4_1 multiplies: `[rows, blocks]`.
    fn block_sums(&self, x: &[f32]) -> Vec<f32> {
        match self.form {
            Form::Four { .. } => x
                .chunks_exact(BLOCK)
                .map(|block| {
                    let mut lanes = [0.0; LANES];
                    for (lane, (a, b)) in lanes.iter_mut().zip(block[..16].iter().zip(&block[16..])) {
                        *lane = a + b;
                    }
                    lanes.iter().sum()
                })
                .collect(),
            _ => vec![],
        }
    }

    /// One panel for all rows of `x`, in tiles that share the unpacking of the codes.
    fn panel(&self, panel: usize, x: &[f32], sums: &[f32], mut store: impl FnMut(usize, &Lane<f32>)) {
        let rows = x.len() / self.inputs;
        let mut row = 0;
        while row < rows {
            let mut out = [[0.0; LANES]; 8];
            let tile = match rows - row {
                8.. => self.tile::<8>(panel, row, x, sums, &mut out),
                4.. => self.tile::<4>(panel, row, x, sums, &mut out),
                2.. => self.tile::<2>(panel, row, x, sums, &mut out),
                _ => self.tile::<1>(panel, row, x, sums, &mut out),
            };
            for (i, out) in out[..tile].iter().enumerate() {
                store(row + i, out);
            }
            row += tile;
        }
    }

    fn tile<const R: usize>(
        &self,
        panel: usize,
        row: usize,
        x: &[f32],
        sums: &[f32],
        out: &mut [Lane<f32>],
    ) -> usize {
        let (n, blocks) = (self.inputs, self.inputs / BLOCK);
        let x: [&[f32]; R] = std::array::from_fn(|r| &x[(row + r) * n..][..n]);
        let mut lanes = [[0.0; LANES]; R];
        match &self.form {
            Form::Four { codes, scale, offset } => {
                let sums: [&[f32]; R] = std::array::from_fn(|r| &sums[(row + r) * blocks..][..blocks]);
                let (scale, offset) =
                    (&scale[panel * blocks..][..blocks], &offset[panel * blocks..][..blocks]);
                product::four(
                    self.isa,
                    &codes[panel * blocks * 16..][..blocks * 16],
                    scale,
                    offset,
                    x,
                    sums,
                    &mut lanes,
                );
            }
            Form::Eight { codes, scale } => {
                product::eight(
                    self.isa,
                    &codes[panel * n..][..n],
                    &scale[panel * blocks..][..blocks],
                    x,
                    &mut lanes,
                );
            }
            Form::Plain { weights } => product::plain(self.isa, &weights[panel * n..][..n], x, &mut lanes),
        }
        out[..R].copy_from_slice(&lanes);
        R
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn scatter(values: &Lane<f32>, out: &mut [f32], row: usize, outputs: usize, panel: usize) {
    let out = &mut out[row * outputs..][..outputs][panel * LANES..];
    let n = out.len().min(LANES);
    out[..n].copy_from_slice(&values[..n]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut x = seed;
        (0..n)
            .map(|_| {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (x >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn tensor(outputs: usize, inputs: usize, dtype: GgmlDType) -> QTensor {
        let values = Tensor::from_vec(numbers(outputs * inputs, 7), (outputs, inputs), &Device::Cpu).unwrap();
        QTensor::quantize(&values, dtype).unwrap()
    }

    const TYPES: [GgmlDType; 6] =
        [GgmlDType::Q4_1, GgmlDType::Q4_0, GgmlDType::Q8_0, GgmlDType::F32, GgmlDType::F16, GgmlDType::Q5_1];

    #[test]
    fn products_are_those_of_the_dequantised_weights_in_f64() {
        for dtype in TYPES {
            // 40 outputs: the last panel is half empty.
            let (outputs, inputs, rows) = (40, 96, 45);
            let tensor = tensor(outputs, inputs, dtype);
            let weights = tensor.dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
            let matrix = Matrix::new(&tensor).unwrap();
            let x = numbers(rows * inputs, 3);
            let mut out = vec![f32::NAN; rows * outputs];
            matrix.multiply(&x, &mut out);
            for (r, x) in x.chunks(inputs).enumerate() {
                for (o, w) in weights.iter().enumerate() {
                    let exact: f64 = w.iter().zip(x).map(|(w, x)| *w as f64 * *x as f64).sum();
                    // Factoring the scale out of a block leaves terms of up to 15 codes and offsets of up to 8 scales, a
                    // scale is at most 2/7: |terms| < 5, 96 of them, each rounded a few times by 2^-24.
                    let bound = 96.0 * 5.0 * 4.0 * 2f64.powi(-24);
                    assert!((out[r * outputs + o] as f64 - exact).abs() < bound, "{dtype:?} {r} {o}");
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_batch() {
        for dtype in TYPES {
            let matrix = Matrix::new(&tensor(48, 64, dtype)).unwrap();
            let x = numbers(70 * 64, 5);
            let mut all = vec![0.0; 70 * 48];
            matrix.multiply(&x, &mut all);
            for rows in [1, 2, 3, 7, 33] {
                let mut part = vec![0.0; rows * 48];
                matrix.multiply(&x[64 * 2..][..rows * 64], &mut part);
                assert_eq!(part, all[48 * 2..][..rows * 48], "{dtype:?}, {rows} rows");
            }
        }
    }

    #[test]
    fn every_vector_width_gives_the_same_bits() {
        for dtype in TYPES {
            let mut matrix = Matrix::new(&tensor(48, 64, dtype)).unwrap();
            let x = numbers(11 * 64, 9);
            let results: Vec<Vec<f32>> = Isa::available()
                .into_iter()
                .map(|isa| {
                    matrix.isa = isa;
                    let mut out = vec![0.0; 11 * 48];
                    matrix.multiply(&x, &mut out);
                    out
                })
                .collect();
            assert!(results.iter().all(|out| *out == results[0]), "{dtype:?}");
        }
    }

    #[test]
    fn one_output_s_weights_are_the_dequantised_ones() {
        for dtype in TYPES {
            let tensor = tensor(40, 96, dtype);
            let weights = tensor.dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
            let mut row = vec![0.0; 96];
            Matrix::new(&tensor).unwrap().add_row(37, &mut row);
            // One rounding of the product and one of the sum, of numbers up to 5.
            assert!(row.iter().zip(&weights[37]).all(|(a, b)| (a - b).abs() < 1e-6), "{dtype:?}");
        }
    }
}
