//! The fs-verity digest of a file, computed from its bytes: what `overlay.metacopy` records of a data file.
//!
//! Owns the Merkle tree and the descriptor with blocks of 4096 bytes and no salt, the parameters that overlay users write.
//! Reads no file: the bytes are handed in. The kernel's counterparts are `fs/verity/enable.c` and `measure.c`; the format
//! is that of Documentation/filesystems/fsverity.rst, "Merkle tree" and "fs-verity descriptor".

use sha2::{Digest, Sha256, Sha512};

use crate::MetacopyDigest;

/// The size of a block of data and of the tree, in bytes.
const BLOCK: usize = 4096;
/// log2 of [`BLOCK`].
const LOG_BLOCK: u8 = 12;
/// Size of the descriptor that is hashed last, in bytes.
const DESCRIPTOR: usize = 256;
/// Where the root hash stands in the descriptor.
const ROOT_HASH: usize = 16;

/// Which hash function the digest uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerityAlgorithm {
    /// SHA-256, algorithm 1 of fs-verity.
    Sha256,
    /// SHA-512, algorithm 2 of fs-verity.
    Sha512,
}

/// Computes a digest from data handed in piece by piece.
#[derive(Debug)]
pub struct VerityHasher(Inner);

#[derive(Debug)]
enum Inner {
    Sha256(Tree<Sha256>),
    Sha512(Tree<Sha512>),
}

/// The part of the tree that is not finished: one block a level, the data's first.
#[derive(Debug)]
struct Tree<H> {
    levels: Vec<Vec<u8>>,
    size: u64,
    hash: std::marker::PhantomData<H>,
}

impl VerityHasher {
    /// Nothing has been hashed yet.
    #[must_use]
    pub fn new(algorithm: VerityAlgorithm) -> Self {
        Self(match algorithm {
            VerityAlgorithm::Sha256 => Inner::Sha256(Tree::new()),
            VerityAlgorithm::Sha512 => Inner::Sha512(Tree::new()),
        })
    }

    /// Takes the next bytes of the file.
    pub fn update(&mut self, data: &[u8]) {
        match &mut self.0 {
            Inner::Sha256(tree) => tree.update(data),
            Inner::Sha512(tree) => tree.update(data),
        }
    }

    /// The digest of all that was taken.
    #[must_use]
    pub fn finish(self) -> MetacopyDigest {
        match self.0 {
            Inner::Sha256(tree) => MetacopyDigest::Sha256(tree.finish(1).into()),
            Inner::Sha512(tree) => MetacopyDigest::Sha512(tree.finish(2).into()),
        }
    }
}

impl<H: Digest> Tree<H> {
    fn new() -> Self {
        Self { levels: vec![Vec::with_capacity(BLOCK)], size: 0, hash: std::marker::PhantomData }
    }

    fn update(&mut self, mut data: &[u8]) {
        self.size += data.len() as u64;
        while !data.is_empty() {
            let room = self.levels.first().map_or(BLOCK, |block| BLOCK - block.len());
            let (now, rest) = data.split_at(room.min(data.len()));
            self.add(0, now);
            data = rest;
        }
    }

    /// Appends to the block of a level, which has room for it, and hashes the block into the next level once it is full.
    fn add(&mut self, level: usize, bytes: &[u8]) {
        if self.levels.len() == level {
            self.levels.push(Vec::with_capacity(BLOCK));
        }
        let Some(block) = self.levels.get_mut(level) else { return };
        block.extend_from_slice(bytes);
        if block.len() == BLOCK {
            let hash = H::digest(&block);
            block.clear();
            self.add(level + 1, &hash);
        }
    }

    fn finish(mut self, algorithm: u8) -> sha2::digest::Output<H> {
        let root = self.root();
        let mut descriptor = [0_u8; DESCRIPTOR];
        let header = [1, algorithm, LOG_BLOCK, 0, 0, 0, 0, 0];
        let fields = header.into_iter().chain(self.size.to_le_bytes()).chain(root);
        for (to, from) in descriptor.iter_mut().zip(fields) {
            *to = from;
        }
        debug_assert_eq!(header.len() + 8, ROOT_HASH);
        H::digest(descriptor)
    }

    /// Pads and hashes the unfinished blocks upwards until one hash is left; nothing for an empty file.
    fn root(&mut self) -> Vec<u8> {
        let hash_size = <H as Digest>::output_size();
        let mut level = 0;
        loop {
            let above = self.levels.len() > level + 1;
            let Some(block) = self.levels.get_mut(level) else { return Vec::new() };
            if !above && level > 0 && block.len() == hash_size {
                return std::mem::take(block);
            }
            if !above && block.is_empty() {
                return Vec::new();
            }
            if !block.is_empty() {
                block.resize(BLOCK, 0);
                let hash = H::digest(&block);
                block.clear();
                self.add(level + 1, &hash);
            }
            level += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(digest: &MetacopyDigest) -> String {
        let bytes: &[u8] = match digest {
            MetacopyDigest::Sha256(bytes) => bytes,
            MetacopyDigest::Sha512(bytes) => bytes,
            _ => &[],
        };
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn of(algorithm: VerityAlgorithm, data: &[u8]) -> String {
        let mut hasher = VerityHasher::new(algorithm);
        hasher.update(data);
        hex(&hasher.finish())
    }

    /// The plain definition: the whole file, level by level.
    fn slowly(data: &[u8]) -> String {
        let mut level: Vec<Vec<u8>> = data.chunks(BLOCK).map(<[u8]>::to_vec).collect();
        let root = loop {
            let hashes: Vec<u8> = level
                .iter()
                .flat_map(|block| {
                    let mut padded = block.clone();
                    padded.resize(BLOCK, 0);
                    Sha256::digest(&padded).to_vec()
                })
                .collect();
            if hashes.len() <= 32 {
                break hashes;
            }
            level = hashes.chunks(BLOCK).map(<[u8]>::to_vec).collect();
        };
        let mut descriptor = vec![1, 1, 12, 0, 0, 0, 0, 0];
        descriptor.extend((data.len() as u64).to_le_bytes());
        descriptor.extend(root);
        descriptor.resize(DESCRIPTOR, 0);
        Sha256::digest(&descriptor).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn known_digests_come_out() {
        let empty = "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95";
        assert_eq!(of(VerityAlgorithm::Sha256, b""), empty);
        let hello = "1e2eaa4202d750a41174ee454970b92c1bc2f925b1e35076d8c7d5f56362ba64";
        assert_eq!(of(VerityAlgorithm::Sha256, b"hello world"), hello);
        let hello = "18430270729d162d4e469daca123ae61893db4b0583d8f7081e3bf4f92b88ba5\
                     14e7982f10733fb6aa895195c5ae8fd2eb2c47a8be05513ce5a0c51a6f570409";
        assert_eq!(of(VerityAlgorithm::Sha512, b"hello world"), hello);
    }

    #[test]
    fn every_shape_of_the_tree_agrees_with_the_plain_definition() {
        for size in
            [1, 4095, 4096, 4097, 8192, 128 * BLOCK, 128 * BLOCK + 1, 200 * BLOCK + 7, 128 * 128 * BLOCK + 1]
        {
            let data: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let mut hasher = VerityHasher::new(VerityAlgorithm::Sha256);
            for piece in data.chunks(10_007) {
                hasher.update(piece);
            }
            assert_eq!(hex(&hasher.finish()), slowly(&data), "{size}");
        }
    }
}
