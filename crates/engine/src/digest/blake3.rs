//! BLAKE3, a node of its tree for each MiB. [BLAKE3 2.1, "Tree structure"]

use ::blake3::hazmat::{
    ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root,
};
use ::blake3::{Hash, Hasher};

use super::parts::{Parts, Piece};
use super::stream::zeros;

/// Bytes of the leaves that the tree is made of here: whole subtrees of it, a power of two. Long
/// enough for the widest vectors.
pub(super) const LEAF: u64 = 1 << 20;

/// The tree over all leaves so far.
#[derive(Default)]
pub(super) struct Tree {
    /// How many leaves there are.
    leaves: u64,
    /// The nodes that are not joined yet, from the left; each stands over fewer leaves than the one
    /// before.
    nodes: Vec<ChainingValue>,
    /// What the digest is if there is only one leaf, which is hashed in another way then.
    alone: Option<Hash>,
}

/// What has to be known of a piece.
#[derive(Default)]
pub(super) struct Leaves {
    nodes: Vec<ChainingValue>,
    alone: Option<Hash>,
}

impl Leaves {
    /// Adds the leaf at guest byte `at` with these bytes.
    fn push(&mut self, at: u64, fill: impl FnOnce(&mut Hasher)) {
        let mut hasher = Hasher::new();
        hasher.set_input_offset(at);
        fill(&mut hasher);
        self.nodes.push(hasher.finalize_non_root());
        if at == 0 {
            self.alone = Some(hasher.finalize());
        }
    }
}

impl Parts for Tree {
    type Part = Leaves;

    fn part(piece: &Piece<'_>) -> Leaves {
        let mut leaves = Leaves::default();
        let mut at = piece.at;
        let behind = piece.at + piece.zeros;
        while at < behind {
            let len = LEAF.min(behind - at);
            leaves.push(at, |hasher| {
                zeros(len, |zeros| {
                    hasher.update(zeros);
                });
            });
            at += len;
        }
        for leaf in piece.bytes.chunks(LEAF as usize) {
            leaves.push(at, |hasher| {
                hasher.update(leaf);
            });
            at += leaf.len() as u64;
        }
        leaves
    }

    fn add(&mut self, part: Leaves) {
        self.alone = self.alone.or(part.alone);
        for node in part.nodes {
            // Only when another leaf comes is it known that what stands here is not the root.
            while self.nodes.len() > self.leaves.count_ones() as usize {
                self.join();
            }
            self.nodes.push(node);
            self.leaves += 1;
        }
    }

    fn finish(mut self) -> Vec<u8> {
        while self.nodes.len() > 2 {
            self.join();
        }
        let root = match &*self.nodes {
            [left, right] => merge_subtrees_root(left, right, Mode::Hash),
            _ => self.alone.unwrap_or_else(|| ::blake3::hash(&[])),
        };
        root.as_bytes().to_vec()
    }
}

impl Tree {
    /// Joins the last two nodes.
    fn join(&mut self) {
        if let Some(right) = self.nodes.pop()
            && let Some(left) = self.nodes.pop()
        {
            let node = merge_subtrees_non_root(&left, &right, Mode::Hash);
            self.nodes.push(node);
        }
    }
}
