//! MXFP4 as ggml has it: each block of 32 weights is one byte of scale and 16 bytes of two weights.
//!
//! A published byte holds two neighbours, the first in its low half; ggml's byte `i` holds weights `i` and `i + 16` of the
//! block. Scales stand in a tensor of their own there and before each block here. No weight changes.

use std::io::{self, Write};

use simd::matmul::MXFP4_BLOCK;

/// Bytes of weights in a block.
const NIBBLES: usize = MXFP4_BLOCK / 2;
/// Bytes of a block in the file.
pub(super) const BLOCK_BYTES: usize = 1 + NIBBLES;
/// Blocks that are turned at a time.
const BLOCKS: usize = 1 << 12;

/// Which rows of each expert a tensor takes: gate and up alternate in one published stack.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rows {
    All,
    Even,
    Odd,
}

impl Rows {
    pub(super) fn of(self, count: usize) -> impl Iterator<Item = usize> {
        let (first, step) = match self {
            Self::All => (0, 1),
            Self::Even => (0, 2),
            Self::Odd => (1, 2),
        };
        (first..count).step_by(step)
    }
}

/// Writes the chosen rows of a stack; `blocks` are `[rows, row_blocks, 16]`, `scales` `[rows, row_blocks]`. Experts with
/// an even number of rows each may follow one another: then every expert begins with an even row.
pub(super) fn write(
    file: &mut impl Write,
    blocks: &[u8],
    scales: &[u8],
    row_blocks: usize,
    rows: Rows,
) -> io::Result<()> {
    let (blocks, _) = blocks.as_chunks::<NIBBLES>();
    let mut turned = Vec::with_capacity(BLOCKS.min(row_blocks) * BLOCK_BYTES);
    for row in rows.of(scales.len() / row_blocks) {
        let range = row * row_blocks..(row + 1) * row_blocks;
        for (blocks, scales) in blocks[range.clone()].chunks(BLOCKS).zip(scales[range].chunks(BLOCKS)) {
            turned.clear();
            for (block, scale) in blocks.iter().zip(scales) {
                turned.push(*scale);
                turned.extend(halves_apart(block));
            }
            file.write_all(&turned)?;
        }
    }
    Ok(())
}

/// Neighbours in a byte become weights that are half a block apart.
fn halves_apart(block: &[u8; NIBBLES]) -> [u8; NIBBLES] {
    let nibble = |weight: usize| block[weight / 2] >> (4 * (weight % 2)) & 15;
    std::array::from_fn(|byte| nibble(byte) | nibble(byte + NIBBLES) << 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weight `i` of a published block is `i % 16`, so its bytes are 0x10, 0x32, … 0xfe, twice.
    const COUNTING: [u8; 16] =
        [0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe, 0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe];

    #[test]
    fn weights_half_a_block_apart_share_a_byte() {
        // Weights 0 and 16 are 0, 1 and 17 are 1, …
        let want = [0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];
        assert_eq!(halves_apart(&COUNTING), want);
        let mut one = [0; 16];
        one[0] = 0x21; // weights 0 and 1 are 1 and 2
        one[8] = 0x43; // weights 16 and 17 are 3 and 4
        let want = [[0x31, 0x42].as_slice(), &[0; 14]].concat();
        assert_eq!(halves_apart(&one).as_slice(), want);
    }

    #[test]
    fn each_block_follows_its_scale_and_alternating_rows_come_apart() {
        // Two experts of two rows of two blocks; the first byte of block n is n.
        let blocks: Vec<u8> = (0..8).flat_map(|block| [&[block][..], &[0; 15]].concat()).collect();
        let scales: Vec<u8> = (120..128).collect();
        let written = |rows| {
            let mut file = Vec::new();
            write(&mut file, &blocks, &scales, 2, rows).unwrap();
            assert_eq!(file.len() % BLOCK_BYTES, 0);
            file.chunks(BLOCK_BYTES).map(|block| (block[0], block[1])).collect::<Vec<_>>()
        };
        assert_eq!(written(Rows::Even), [(120, 0), (121, 1), (124, 4), (125, 5)]);
        assert_eq!(written(Rows::Odd), [(122, 2), (123, 3), (126, 6), (127, 7)]);
        assert_eq!(written(Rows::All).len(), 8);
    }
}
