//! Which blocks hold the beginning of which text: sequences that begin alike share their blocks.
//!
//! A full block is a function of its own tokens, of all tokens before it and of how they are computed; the chain of hashes
//! over these is its name ([`ChainHash`]). Named blocks form a forest: a block's parent holds the positions before it. A
//! sequence owns a path from a root, so a block without an owner has no owned block behind it, and all of them can be
//! given up, children before parents, least recently used first. This is bookkeeping alone: it never sees the bytes.

use std::collections::{BTreeSet, HashMap};

use simd::attention::KV_BLOCK;

use super::BlockId;

/// Names a full block: a hash over how it is computed, the tokens of all blocks before it and its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainHash([u8; 32]);

impl ChainHash {
    /// The name that all first blocks stand behind: `described` is all but tokens that decides their bytes.
    pub fn root(described: &[u8]) -> Self {
        Self(blake3::hash(described).into())
    }

    /// The name of the block with `tokens` behind this one.
    pub fn then(&self, tokens: &[u32; KV_BLOCK]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0).update(bytemuck::cast_slice(tokens));
        Self(hasher.finalize().into())
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The name in 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    /// What [`hex`](Self::hex) wrote.
    pub fn from_hex(digits: &str) -> Option<Self> {
        let hash = blake3::Hash::from_hex(digits).ok()?;
        // Capitals are read too, but only one name is a block's.
        (hash.to_hex().as_str() == digits).then(|| Self(hash.into()))
    }
}

/// A block with a name.
#[derive(Debug)]
struct Node {
    hash: ChainHash,
    parent: Option<BlockId>,
    tokens: [u32; KV_BLOCK],
    /// Sequences that have it in their tables.
    owners: usize,
    children: usize,
    /// When the last owner left it.
    used: u64,
}

/// The named blocks of one arena.
#[derive(Debug)]
pub struct Prefixes {
    /// By number of the block: so no block has two names.
    nodes: Vec<Option<Node>>,
    by_hash: HashMap<ChainHash, BlockId>,
    /// Blocks without owners and children, by when they were used.
    leaves: BTreeSet<(u64, BlockId)>,
    unowned: usize,
    clock: u64,
}

impl Prefixes {
    /// For an arena of so many blocks, none of them named.
    pub fn new(blocks: usize) -> Self {
        let nodes = (0..blocks).map(|_| None).collect();
        Self { nodes, by_hash: HashMap::with_capacity(blocks), leaves: BTreeSet::new(), unowned: 0, clock: 0 }
    }

    /// Named blocks that no sequence owns.
    pub fn unowned(&self) -> usize {
        self.unowned
    }

    /// Named blocks.
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    /// Whether no block has a name.
    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    /// Whether a block has this name.
    pub fn has_name(&self, block: BlockId, hash: &ChainHash) -> bool {
        self.by_hash.get(hash) == Some(&block)
    }

    /// Whether a block has a name and no owner.
    pub fn is_unowned(&self, block: BlockId) -> bool {
        self.nodes[block.index()].as_ref().is_some_and(|node| node.owners == 0)
    }

    /// The block of this name, if it holds these tokens behind `parent`: a hash that two texts share is no match.
    pub fn find(&self, hash: &ChainHash, parent: Option<BlockId>, tokens: &[u32; KV_BLOCK]) -> Option<BlockId> {
        let block = *self.by_hash.get(hash)?;
        let node = self.nodes[block.index()].as_ref()?;
        (node.parent == parent && node.tokens == *tokens).then_some(block)
    }

    /// Tokens of a named block.
    pub fn tokens(&self, block: BlockId) -> Option<&[u32; KV_BLOCK]> {
        self.nodes[block.index()].as_ref().map(|node| &node.tokens)
    }

    /// One more sequence owns a named block. It owns its parent already.
    pub fn own(&mut self, block: BlockId) {
        let Some(node) = &mut self.nodes[block.index()] else { return debug_assert!(false, "{block:?} has no name") };
        if node.owners == 0 {
            self.unowned -= 1;
            self.leaves.remove(&(node.used, block));
        }
        node.owners += 1;
    }

    /// Names a block that one sequence owns, and its parent too. False if the name is taken: then nothing changes.
    pub fn insert(
        &mut self,
        hash: ChainHash,
        parent: Option<BlockId>,
        tokens: &[u32; KV_BLOCK],
        block: BlockId,
    ) -> bool {
        debug_assert!(self.nodes[block.index()].is_none(), "{block:?} has a name");
        if self.by_hash.contains_key(&hash) || self.nodes[block.index()].is_some() {
            return false;
        }
        self.by_hash.insert(hash, block);
        if let Some(node) = parent.and_then(|parent| self.nodes[parent.index()].as_mut()) {
            node.children += 1;
        }
        self.nodes[block.index()] = Some(Node { hash, parent, tokens: *tokens, owners: 1, children: 0, used: 0 });
        true
    }

    /// A sequence leaves its path, given from the root on.
    pub fn release(&mut self, path: &[BlockId]) {
        self.clock += 1;
        for block in path {
            let Some(node) = &mut self.nodes[block.index()] else { continue };
            node.owners -= 1;
            if node.owners == 0 {
                node.used = self.clock;
                self.unowned += 1;
                if node.children == 0 {
                    self.leaves.insert((node.used, *block));
                }
            }
        }
    }

    /// Takes its name from the block that was left longest ago and has none behind it: it holds nothing any more.
    pub fn evict(&mut self) -> Option<BlockId> {
        let (_, block) = self.leaves.pop_first()?;
        let node = self.nodes[block.index()].take()?;
        self.by_hash.remove(&node.hash);
        self.unowned -= 1;
        if let Some(parent) = node.parent
            && let Some(node) = &mut self.nodes[parent.index()]
        {
            node.children -= 1;
            if node.children == 0 && node.owners == 0 {
                self.leaves.insert((node.used, parent));
            }
        }
        Some(block)
    }
}

#[cfg(test)]
mod tests;
