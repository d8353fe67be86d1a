//! Sequences of few tokens come, grow and go in any order: owners add up, and no block is in two places.

use proptest::prelude::*;

use super::*;

/// Blocks of the arena: fewer than the sequences would like.
const BLOCKS: usize = 12;

/// What a sequence does next.
#[derive(Clone, Debug)]
enum Deed {
    /// One with these contents comes, as far as there are blocks.
    Come(Vec<u8>),
    /// The one of this number goes.
    Go(usize),
    Evict,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let one = prop_oneof![
        4 => prop::collection::vec(0u8..2, 1..6).prop_map(Deed::Come),
        3 => (0usize..8).prop_map(Deed::Go),
        1 => Just(Deed::Evict),
    ];
    prop::collection::vec(one, 1..80)
}

/// Checks all that must be true of the forest, its owners and the blocks without names.
fn check(prefixes: &Prefixes, free: &[BlockId], running: &[(Vec<u8>, Vec<BlockId>)]) {
    let mut unowned = 0;
    for (index, node) in prefixes.nodes.iter().enumerate() {
        let block = BlockId(index as u32);
        let owners = running.iter().filter(|(_, path)| path.contains(&block)).count();
        let Some(node) = node else {
            assert_eq!(owners, 0);
            assert_eq!(free.iter().filter(|free| **free == block).count(), 1, "{block:?} is lost or free twice");
            continue;
        };
        assert!(!free.contains(&block), "{block:?} is free and has a name");
        assert_eq!(node.owners, owners);
        assert_eq!(prefixes.by_hash[&node.hash], block);
        let children = prefixes.nodes.iter().flatten().filter(|other| other.parent == Some(block)).count();
        assert_eq!(node.children, children);
        if let Some(parent) = node.parent {
            let parent = prefixes.nodes[parent.index()].as_ref().expect("parents outlive their children");
            assert!(parent.owners >= node.owners);
        }
        let is_leaf = node.owners == 0 && node.children == 0;
        assert_eq!(prefixes.leaves.contains(&(node.used, block)), is_leaf);
        unowned += usize::from(node.owners == 0);
    }
    assert_eq!(prefixes.unowned, unowned);
    assert_eq!(prefixes.by_hash.len() + free.len(), BLOCKS);
    assert!(prefixes.leaves.len() <= unowned);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn owners_add_up_and_every_block_is_in_one_place(deeds in deeds()) {
        let mut prefixes = Prefixes::new(BLOCKS);
        let mut free: Vec<BlockId> = (0..BLOCKS as u32).map(BlockId).collect();
        let mut running: Vec<(Vec<u8>, Vec<BlockId>)> = Vec::new();
        for deed in deeds {
            match deed {
                Deed::Come(contents) => {
                    let (mut hash, mut parent, mut path) = (ChainHash::root(b"test"), None, Vec::new());
                    for content in &contents {
                        let tokens = [u32::from(*content); KV_BLOCK];
                        hash = hash.then(&tokens);
                        let block = match prefixes.find(&hash, parent, &tokens) {
                            Some(block) => {
                                prefixes.own(block);
                                block
                            }
                            None => {
                                let Some(block) = free.pop().or_else(|| prefixes.evict()) else { break };
                                prop_assert!(prefixes.insert(hash, parent, &tokens, block));
                                block
                            }
                        };
                        path.push(block);
                        parent = Some(block);
                    }
                    running.push((contents, path));
                }
                Deed::Go(which) if !running.is_empty() => {
                    let (_, path) = running.remove(which % running.len());
                    prefixes.release(&path);
                }
                Deed::Go(_) => {}
                Deed::Evict => free.extend(prefixes.evict()),
            }
            check(&prefixes, &free, &running);
        }
        // With all of them gone, every block can be had.
        for (_, path) in running.drain(..) {
            prefixes.release(&path);
        }
        prop_assert_eq!(prefixes.unowned(), prefixes.len());
        free.extend(std::iter::from_fn(|| prefixes.evict()));
        check(&prefixes, &free, &running);
        prop_assert_eq!(free.len(), BLOCKS);
    }
}

#[test]
fn the_block_that_was_left_longest_ago_goes_first_and_never_before_its_children() {
    let mut prefixes = Prefixes::new(4);
    let root = ChainHash::root(b"test");
    let tokens = [[1; KV_BLOCK], [2; KV_BLOCK], [3; KV_BLOCK]];
    let [a, b, c] = [0, 1, 2].map(BlockId);
    assert!(prefixes.insert(root.then(&tokens[0]), None, &tokens[0], a));
    assert!(prefixes.insert(root.then(&tokens[0]).then(&tokens[1]), Some(a), &tokens[1], b));
    assert!(prefixes.insert(root.then(&tokens[2]), None, &tokens[2], c));
    assert_eq!(prefixes.evict(), None, "all have owners");
    prefixes.release(&[a, b]);
    prefixes.release(&[c]);
    // Used again: now `c` was left longest ago.
    prefixes.own(a);
    prefixes.release(&[a]);
    assert_eq!(prefixes.evict(), Some(b));
    assert_eq!(prefixes.evict(), Some(c));
    assert_eq!(prefixes.evict(), Some(a));
    assert_eq!((prefixes.evict(), prefixes.is_empty()), (None, true));
}

#[test]
fn a_name_is_of_all_tokens_before_and_of_how_they_are_computed() {
    let (one, two) = ([1; KV_BLOCK], [2; KV_BLOCK]);
    let root = ChainHash::root(b"a model");
    let names = [root, ChainHash::root(b"another"), root.then(&one), root.then(&two), root.then(&two).then(&one)];
    for (at, name) in names.iter().enumerate() {
        assert!(names[..at].iter().all(|other| other != name));
        assert_eq!(ChainHash::from_hex(&name.hex()), Some(*name));
    }
    for wrong in [&names[0].hex()[1..], &names[0].hex().to_uppercase(), "", "lock"] {
        assert_eq!(ChainHash::from_hex(wrong), None, "{wrong}");
    }
    // The same hash with other tokens, or behind another block, is not found.
    let mut prefixes = Prefixes::new(2);
    assert!(prefixes.insert(names[2], None, &one, BlockId(0)));
    assert_eq!(prefixes.find(&names[2], None, &one), Some(BlockId(0)));
    assert_eq!(prefixes.find(&names[2], None, &two), None);
    assert_eq!(prefixes.find(&names[2], Some(BlockId(1)), &one), None);
}
