//! A checkpoint's own weights as a GGUF file, so that llama.cpp can be measured on them.
//!
//! Nothing is quantised and no value changes: matrices keep their type, and MXFP4 its blocks in another order; norms,
//! biases and routers become float32, as llama.cpp's converter has them. Tensors are streamed from the mapped checkpoint; memory stays small for any model.
//! There is no vocabulary in the file, only its size: benches draw token ids, and text is no matter of speed.
//!
//! Format: `docs/gguf.md` of ggml-org/ggml; names and orders: `conversion/` of llama.cpp.

mod gpt_oss;
mod header;
mod mxfp4;
mod names;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use engine_core::checkpoint::{Checkpoint, Tensor};
use simd::Dtype;
use simd::matmul::MXFP4_BLOCK;

use header::{ALIGNMENT, Header};
use names::{Form, Part, Stored, architecture};

/// Values that are widened at a time.
const CHUNK: usize = 1 << 16;

/// Writes `output` beside its last name first, so that an interrupted run leaves no file that looks whole.
///
/// # Errors
/// What cannot be said in GGUF, or could not be written.
pub(crate) fn write(checkpoint: &Checkpoint, output: &Path) -> Result<(), String> {
    if checkpoint.packed_from().is_some() {
        let folder = checkpoint.folder().display();
        return Err(format!("{folder}: its matrices lie in panels; give the published folder that it was packed from"));
    }
    let named = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    let unfinished = output.with_extension("gguf.unfinished");
    if let Some(folder) = output.parent() {
        fs::create_dir_all(folder).map_err(|error| named(folder, error))?;
    }
    let stored = names::tensors(checkpoint)?;
    let header = Header::new(architecture(checkpoint.config())?, checkpoint, &stored)?;
    let result = File::create(&unfinished).and_then(|file| stream(checkpoint, &header, &stored, file));
    // A shard that was cut short meanwhile has read as zeros.
    let result = result.map_err(|error| named(&unfinished, error)).and_then(|()| {
        checkpoint.check_intact().map_err(|error| error.to_string())?;
        fs::rename(&unfinished, output).map_err(|error| named(&unfinished, error))
    });
    match result {
        Ok(()) => Ok(()),
        Err(error) => {
            let _ = fs::remove_file(&unfinished); // a part of a large model is in the way of the next attempt
            Err(error)
        }
    }
}

fn stream(checkpoint: &Checkpoint, header: &Header, stored: &[Stored], file: File) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, file);
    file.write_all(header.bytes())?;
    for tensor in stored {
        for part in &tensor.parts {
            match part {
                Part::Divisors(divisors) => write_floats(&mut file, divisors)?,
                Part::Biases { name, rows } => {
                    let Tensor { dtype, bytes, .. } = checkpoint.tensor(name);
                    let mut floats = vec![0.0; bytes.len() / dtype.size()];
                    dtype.widen(bytes, &mut floats);
                    let chosen: Vec<f32> = rows.of(floats.len()).map(|row| floats[row]).collect();
                    write_floats(&mut file, &chosen)?;
                }
                Part::Mxfp4 { blocks, scales, rows } => {
                    let [blocks, scales] = [blocks, scales].map(|name| checkpoint.bytes(&checkpoint.location(name)));
                    let row_blocks = tensor.shape.last().map_or(1, |size| size / MXFP4_BLOCK);
                    mxfp4::write(&mut file, blocks, scales, row_blocks, *rows)?;
                }
                Part::Tensor(name) => {
                    let Tensor { dtype, shape, bytes, .. } = checkpoint.tensor(name);
                    match (tensor.form == Form::Numbers(dtype), tensor.rotary_heads) {
                        (false, _) => widen(&mut file, dtype, bytes)?,
                        (true, None) => file.write_all(bytes)?,
                        (true, Some(heads)) => {
                            let row_bytes = bytes.len() / shape[0];
                            for row in interleaved_rows(shape[0], heads) {
                                file.write_all(&bytes[row * row_bytes..][..row_bytes])?;
                            }
                        }
                    }
                }
            }
        }
        let padding = tensor.bytes().next_multiple_of(ALIGNMENT) - tensor.bytes();
        file.write_all(&[0; ALIGNMENT][..padding])?;
    }
    file.into_inner()?.sync_all()
}

fn write_floats(file: &mut impl Write, floats: &[f32]) -> io::Result<()> {
    floats.iter().try_for_each(|float| file.write_all(&float.to_le_bytes()))
}

fn widen(file: &mut impl Write, dtype: Dtype, bytes: &[u8]) -> io::Result<()> {
    let mut floats = vec![0.0; CHUNK];
    for bytes in bytes.chunks(CHUNK * dtype.size()) {
        let floats = &mut floats[..bytes.len() / dtype.size()];
        dtype.widen(bytes, floats);
        write_floats(file, floats)?;
    }
    Ok(())
}

/// Rows of a query or key projection in the order of llama.cpp's Llama: the two halves of a head, which rotate with each
/// other, lie interleaved there.
fn interleaved_rows(rows: usize, heads: usize) -> impl Iterator<Item = usize> {
    let head_dim = rows / heads;
    (0..rows).map(move |row| {
        let (head, place) = (row / head_dim, row % head_dim);
        head * head_dim + (place % 2) * (head_dim / 2) + place / 2
    })
}

#[cfg(test)]
mod tests;
