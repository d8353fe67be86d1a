//! Keys and values of all sequences, in blocks of one arena.
//!
//! A sequence owns whole blocks of [`KV_BLOCK`] positions and holds their numbers in its block table, so sequences of
//! any length come and go without moving bytes and without fragments. A block has a place in every layer and head; all
//! blocks of a head lie side by side, for they are what a worker reads in one go, and blocks are handed out in the order in
//! which they lie, as far as that goes. The arena is
//! allocated and faulted once; a block given back is reused as it is, since a position is read only after it was written.
//! On several nodes each has the heads that its workers read, of all blocks.
//!
//! [`prefix`] knows which blocks hold the beginning of which text, so that sequences share them; [`disk`] keeps such
//! blocks in files, for the next run.

pub mod disk;
pub mod prefix;

use std::io;

use numa::{Pool, Region, Slices};
use simd::Dtype;
use simd::attention::{self, KV_BLOCK};

use crate::config::ModelConfig;
use crate::homes::{Homes, NodePages};

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

impl BlockId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

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
    /// Heads of each home, and their memory.
    heads: Slices,
    regions: Vec<Region>,
    free: Vec<BlockId>,
}

impl KvCache {
    /// Allocates and faults the arena.
    ///
    /// # Errors
    /// If the system does not give the memory.
    pub fn new(shape: KvShape, pool: &mut Pool) -> io::Result<Self> {
        Self::on_nodes(shape, &Homes::one(), pool)
    }

    /// As [`KvCache::new`], with the heads divided over the homes of a model.
    ///
    /// # Errors
    /// If the system, or one of the nodes, does not give the memory.
    pub fn on_nodes(shape: KvShape, homes: &Homes, pool: &mut Pool) -> io::Result<Self> {
        let heads = homes.slices(shape.heads);
        let of_head = shape.layers * shape.blocks * shape.head_bytes();
        let bytes: Vec<usize> = heads.iter().map(|heads| heads.len() * of_head).collect();
        let mut regions = homes.regions(&bytes)?;
        Region::prefault_all(&mut regions, pool)?;
        let free = (0..shape.blocks as u32).rev().map(BlockId).collect();
        Ok(Self { shape, heads, regions, free })
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
        let mut blocks = self.free.split_off(rest);
        blocks.reverse();
        Some(blocks)
    }

    /// Gives blocks back.
    pub fn give_back<I: IntoIterator<Item = BlockId, IntoIter: DoubleEndedIterator>>(&mut self, blocks: I) {
        self.free.extend(blocks.into_iter().rev());
        debug_assert!(self.free.len() <= self.shape.blocks, "a block was given back twice");
    }

    /// Keys and values of one block in one layer and head.
    pub fn block(&self, layer: usize, block: BlockId, head: usize) -> &[u8] {
        let (home, at) = self.place(layer, block, head);
        &self.regions[home].as_slice()[at..][..self.shape.head_bytes()]
    }

    /// The node that should compute a task with one head's keys and values: that which has them. With fewer heads than
    /// nodes some would have nothing to do, so tasks go to all in turn.
    pub(crate) fn home_of_task(&self, head: usize, task: usize) -> usize {
        let nodes = self.heads.nodes();
        if self.shape.heads < nodes { task % nodes } else { self.heads.node_of(head) }
    }

    /// Where its pages are, of those that are bound to nodes.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn placement(&self) -> io::Result<Vec<NodePages>> {
        NodePages::of(&self.regions)
    }

    /// Stores keys and values of one position of a sequence with block table `table`: `[heads, head_dim]` each.
    pub fn store(&mut self, layer: usize, table: &[BlockId], position: usize, keys: &[f32], values: &[f32]) {
        let KvShape { dtype, heads, head_dim, .. } = self.shape;
        let bytes = self.shape.head_bytes();
        for head in 0..heads {
            let (home, at) = self.place(layer, table[position / KV_BLOCK], head);
            let block = &mut self.regions[home].as_mut_slice()[at..][..bytes];
            let of_head = head * head_dim..(head + 1) * head_dim;
            attention::store(dtype, block, head_dim, position % KV_BLOCK, &keys[of_head.clone()], &values[of_head]);
        }
    }

    /// Appends the bytes of a block to `out`: layer by layer, head by head, wherever they live.
    pub fn copy_out(&self, block: BlockId, out: &mut Vec<u8>) {
        for layer in 0..self.shape.layers {
            for head in 0..self.shape.heads {
                out.extend_from_slice(self.block(layer, block, head));
            }
        }
    }

    /// Puts what [`copy_out`](Self::copy_out) gave into a block.
    ///
    /// # Panics
    /// If it is not as long as a block.
    pub fn copy_in(&mut self, block: BlockId, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.shape.block_bytes(), "bytes of a block");
        let mut parts = bytes.chunks_exact(self.shape.head_bytes());
        for layer in 0..self.shape.layers {
            for (head, part) in (0..self.shape.heads).zip(&mut parts) {
                let (home, at) = self.place(layer, block, head);
                self.regions[home].as_mut_slice()[at..][..part.len()].copy_from_slice(part);
            }
        }
    }

    /// Whether all numbers of a block are finite.
    pub fn is_finite(&self, block: BlockId) -> bool {
        let parts = (0..self.shape.layers).flat_map(|layer| (0..self.shape.heads).map(move |head| (layer, head)));
        let mut parts = parts.map(|(layer, head)| self.block(layer, block, head));
        match self.shape.dtype {
            Dtype::F16 => parts.all(|part| all_below::<2>(part, |x| u32::from(u16::from_le_bytes(x)), 0x7c00)),
            Dtype::Bf16 => parts.all(|part| all_below::<2>(part, |x| u32::from(u16::from_le_bytes(x)), 0x7f80)),
            Dtype::F32 => parts.all(|part| all_below::<4>(part, u32::from_le_bytes, 0x7f80_0000)),
        }
    }

    /// Region, and byte in it.
    fn place(&self, layer: usize, block: BlockId, head: usize) -> (usize, usize) {
        let home = self.heads.node_of(head);
        let heads = self.heads.of_node(home);
        let before = (layer * heads.len() + head - heads.start) * self.shape.blocks;
        (home, (before + block.0 as usize) * self.shape.head_bytes())
    }
}

/// Whether no number of `bytes` has all bits of its exponent set. Goes through all of them, which is faster than to stop.
fn all_below<const N: usize>(bytes: &[u8], bits: impl Fn([u8; N]) -> u32, exponent: u32) -> bool {
    bytes.as_chunks::<N>().0.iter().fold(true, |all, x| all & (bits(*x) & exponent != exponent))
}
