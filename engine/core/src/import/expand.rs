//! The bytes of one output tensor, made chunk by chunk.
//!
//! Memory is bounded by the chunk, whatever the tensor. A chunk is expanded by all workers at once;
//! each value depends on its own block only, so the bytes are the same for any number of workers.

use half::{bf16, f16};
use rayon::prelude::*;

use super::Dtype;
use super::dequantize::dequantize;
use super::gguf::{ReadAt, TensorInfo};
use super::report::Rounding;
use super::tensors::{OutputTensor, unpermuted};

/// Values in a chunk; a whole number of blocks of every type.
const CHUNK_VALUES: u64 = 4 << 20;
/// Values for a worker at a time; a whole number of blocks of every type.
const PIECE_VALUES: usize = 64 << 10;

/// Why a chunk could not be made.
#[derive(Debug)]
pub(super) enum ExpandError<E> {
    Read(std::io::Error),
    NotFinite { index: u64 },
    TooLarge { index: u64 },
    Write(E),
}

/// Buffers that are used again for every chunk.
#[derive(Default)]
pub(super) struct Expander {
    source: Vec<u8>,
    values: Vec<f32>,
    bytes: Vec<u8>,
    reordered: Vec<u8>,
    /// What rounding changed so far; untouched when nothing is rounded.
    pub(super) rounding: Rounding,
}

impl Expander {
    /// Makes the bytes of `output` from `source` and hands them to `write` in order.
    pub(super) fn expand<E>(
        &mut self,
        file: &dyn ReadAt,
        source: &TensorInfo,
        output: &OutputTensor,
        mut write: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), ExpandError<E>> {
        // Rows of a head go together, because they change places; elsewhere only blocks matter.
        let unit = output.head_rows.map_or(source.kind.block_len() as u64, |rows| rows * output.row_len);
        let chunk = (CHUNK_VALUES / unit).max(1) * unit;
        let first = output.first_row * output.row_len;
        let mut done = 0;
        while done < output.values() {
            let values = chunk.min(output.values() - done);
            self.read(file, source, first + done, values).map_err(ExpandError::Read)?;
            match self.convert(source, output.dtype) {
                Ok(()) => {}
                Err((index, false)) => return Err(ExpandError::NotFinite { index: done + index }),
                Err((index, true)) => return Err(ExpandError::TooLarge { index: done + index }),
            }
            write(self.in_order(output)).map_err(ExpandError::Write)?;
            done += values;
        }
        Ok(())
    }

    fn read(&mut self, file: &dyn ReadAt, source: &TensorInfo, first: u64, values: u64) -> std::io::Result<()> {
        let (block_len, block_bytes) = (source.kind.block_len() as u64, source.kind.block_bytes() as u64);
        self.source.resize((values / block_len * block_bytes) as usize, 0);
        file.read_exact_at(&mut self.source, source.offset + first / block_len * block_bytes)
    }

    /// Fills `bytes`; else the first value that cannot be written, and whether it was finite.
    fn convert(&mut self, source: &TensorInfo, dtype: Dtype) -> Result<(), (u64, bool)> {
        if !source.kind.is_quantized() {
            std::mem::swap(&mut self.source, &mut self.bytes);
            return match first_not_finite(&self.bytes, dtype) {
                Some(index) => Err((index, false)),
                None => Ok(()),
            };
        }
        let (block_len, block_bytes) = (source.kind.block_len(), source.kind.block_bytes());
        let len = self.source.len() / block_bytes * block_len;
        self.values.resize(len, 0.0);
        self.values
            .par_chunks_mut(PIECE_VALUES)
            .zip(self.source.par_chunks(PIECE_VALUES / block_len * block_bytes))
            .for_each(|(values, blocks)| dequantize(source.kind, blocks, values));
        if let Some(index) = self.values.par_iter().position_first(|value| !value.is_finite()) {
            return Err((index as u64, false));
        }
        let width = dtype.bytes() as usize;
        self.bytes.resize(len * width, 0);
        let rounding = self
            .bytes
            .par_chunks_mut(PIECE_VALUES * width)
            .zip(self.values.par_chunks(PIECE_VALUES))
            .map(|(bytes, values)| encode(dtype, values, bytes))
            .reduce(Rounding::default, add);
        self.rounding = add(self.rounding, rounding);
        match first_not_finite(&self.bytes, dtype) {
            Some(index) => Err((index, true)),
            None => Ok(()),
        }
    }

    /// The chunk's bytes with the rows of each head in Hugging Face's order.
    fn in_order(&mut self, output: &OutputTensor) -> &[u8] {
        let Some(head_rows) = output.head_rows else { return &self.bytes };
        let row_bytes = (output.row_len * output.dtype.bytes()) as usize;
        self.reordered.resize(self.bytes.len(), 0);
        for (row, target) in self.reordered.chunks_exact_mut(row_bytes).enumerate() {
            let (head, row) = (row as u64 / head_rows, row as u64 % head_rows);
            let from = (head * head_rows + unpermuted(row, head_rows)) as usize;
            target.copy_from_slice(&self.bytes[from * row_bytes..][..row_bytes]);
        }
        &self.reordered
    }
}

const fn add(a: Rounding, b: Rounding) -> Rounding {
    Rounding {
        values: a.values + b.values,
        changed: a.changed + b.changed,
        max_abs_error: a.max_abs_error.max(b.max_abs_error),
    }
}

/// Writes `values` as `dtype`, rounded to nearest, ties to even.
fn encode(dtype: Dtype, values: &[f32], bytes: &mut [u8]) -> Rounding {
    let mut rounding = Rounding::default();
    let mut compare = |value: f32, kept: f32| {
        rounding.values += 1;
        if kept != value {
            rounding.changed += 1;
            rounding.max_abs_error = rounding.max_abs_error.max((kept - value).abs());
        }
    };
    match dtype {
        Dtype::F32 => {
            for (value, bytes) in values.iter().zip(bytes.as_chunks_mut().0) {
                *bytes = value.to_le_bytes();
            }
        }
        Dtype::F16 => {
            for (value, bytes) in values.iter().zip(bytes.as_chunks_mut().0) {
                let half = f16::from_f32(*value);
                compare(*value, half.to_f32());
                *bytes = half.to_le_bytes();
            }
        }
        Dtype::BF16 => {
            for (value, bytes) in values.iter().zip(bytes.as_chunks_mut().0) {
                let half = bf16::from_f32(*value);
                compare(*value, half.to_f32());
                *bytes = half.to_le_bytes();
            }
        }
    }
    rounding
}

/// Index of the first value whose exponent is all ones: infinite, or not a number.
fn first_not_finite(bytes: &[u8], dtype: Dtype) -> Option<u64> {
    let index = match dtype {
        Dtype::F32 => bytes.as_chunks::<4>().0.par_iter().position_first(|word| !f32::from_le_bytes(*word).is_finite()),
        Dtype::F16 => bytes.as_chunks::<2>().0.par_iter().position_first(|word| !f16::from_le_bytes(*word).is_finite()),
        Dtype::BF16 => {
            bytes.as_chunks::<2>().0.par_iter().position_first(|word| !bf16::from_le_bytes(*word).is_finite())
        }
    };
    index.map(|index| index as u64)
}
