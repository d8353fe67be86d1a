//! Keys and values of all sequences, in blocks of one arena.
//!
//! A sequence owns whole blocks of [`KV_BLOCK`] positions and holds their numbers in its block table, so sequences of
//! any length come and go without moving bytes and without fragments. A block has a place in every layer. The arena is
//! allocated and faulted once; a block given back is reused as it is, since a position is read only after it was written.

use std::io;

use numa::{Pool, Region};
use simd::Dtype;
use simd::attention::{self, KV_BLOCK};

use crate::config::ModelConfig;

/// Shape of the arena, from which its bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Type of keys and values.
    pub dtype: Dtype,
    /// Decoder layers.
    pub layers: usize,
    /// Key and value heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Blocks in the arena.
    pub blocks: usize,
}

/// Number of a block in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockId(u32);

impl KvShape {
    /// The arena for `blocks` blocks of a model.
    pub fn new(config: &ModelConfig, dtype: Dtype, blocks: usize) -> Self {
        Self {
            dtype,
            layers: config.layers.len(),
            heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            blocks,
        }
    }

    /// Bytes of one block in one layer and head: keys, then values.
    pub fn head_bytes(&self) -> usize {
        attention::block_bytes(self.dtype, self.head_dim).expect("config.json's limits keep a head small")
    }

    /// Bytes of one block in all layers and heads.
    pub fn block_bytes(&self) -> usize {
        self.layers * self.heads * self.head_bytes()
    }

    /// Bytes that one position takes in all layers and heads.
    pub fn position_bytes(&self) -> usize {
        self.block_bytes() / KV_BLOCK
    }

    /// Bytes of the arena.
    pub fn bytes(&self) -> usize {
        self.blocks * self.block_bytes()
    }
}

/// Blocks that hold `positions` positions.
pub fn blocks_for(positions: usize) -> usize {
    positions.div_ceil(KV_BLOCK)
}

/// The arena and its free blocks.
pub struct KvCache {
    shape: KvShape,
    region: Region,
    free: Vec<BlockId>,
}

impl KvCache {
    /// Allocates and faults the arena.
    ///
    /// # Errors
    /// If the system does not give the memory.
    pub fn new(shape: KvShape, pool: &mut Pool) -> io::Result<Self> {
        let mut region = Region::anonymous(shape.bytes())?;
        region.prefault(Some(pool))?;
        let free = (0..shape.blocks as u32).rev().map(BlockId).collect();
        Ok(Self { shape, region, free })
    }

    /// The arena's shape.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Blocks that no sequence owns.
    pub fn free_blocks(&self) -> usize {
        self.free.len()
    }

    /// Takes `count` blocks, or none if there are fewer.
    pub fn take(&mut self, count: usize) -> Option<Vec<BlockId>> {
        let rest = self.free.len().checked_sub(count)?;
        Some(self.free.split_off(rest))
    }

    /// Gives blocks back.
    pub fn give_back(&mut self, blocks: Vec<BlockId>) {
        self.free.extend(blocks);
        debug_assert!(self.free.len() <= self.shape.blocks, "a block was given back twice");
    }

    /// Keys and values of one block in one layer and head.
    pub fn block(&self, layer: usize, block: BlockId, head: usize) -> &[u8] {
        let bytes = self.shape.head_bytes();
        &self.region.as_slice()[self.offset(layer, block, head)..][..bytes]
    }

    /// Stores keys and values of one position of a sequence with block table `table`: `[heads, head_dim]` each.
    pub fn store(&mut self, layer: usize, table: &[BlockId], position: usize, keys: &[f32], values: &[f32]) {
        let KvShape { dtype, heads, head_dim, .. } = self.shape;
        let bytes = self.shape.head_bytes();
        for head in 0..heads {
            let at = self.offset(layer, table[position / KV_BLOCK], head);
            let block = &mut self.region.as_mut_slice()[at..][..bytes];
            let of_head = head * head_dim..(head + 1) * head_dim;
            attention::store(dtype, block, head_dim, position % KV_BLOCK, &keys[of_head.clone()], &values[of_head]);
        }
    }

    fn offset(&self, layer: usize, block: BlockId, head: usize) -> usize {
        ((layer * self.shape.blocks + block.0 as usize) * self.shape.heads + head) * self.shape.head_bytes()
    }
}
