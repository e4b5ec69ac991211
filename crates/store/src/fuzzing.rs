//! Entries for the fuzz targets: each reader of a stranger's bytes, on bytes. Nothing here is for callers.

use std::io::Cursor;
use std::path::Path;

use crate::manifest::{Config, read_index, read_manifest};
use crate::owner::Ownership;
use crate::tar::{Limits, Reader, Writer};

/// Reads an archive to its end. What was read is written again and must read the same.
pub fn tar(bytes: &[u8]) {
    let limits =
        Limits { entries: 1000, bytes: 1 << 24, header: 1 << 16, segments: 1 << 10, ..Limits::default() };
    let mut r = Reader::new(Cursor::new(bytes), "fuzz", limits, true);
    while let Ok(Some(e)) = r.next_entry() {
        let mut whole = e.clone();
        whole.size = 0;
        whole.sparse = None;
        let mut w = Writer::new(Vec::new());
        let Ok(again) = w.entry(&whole).and_then(|()| w.finish()) else { return };
        let read = Reader::new(Cursor::new(again), "again", limits, true).next_entry();
        assert!(matches!(read, Ok(Some(x)) if x == whole), "{whole:?} does not survive");
    }
}

/// Unpacks an archive into the empty directory `into`; says whether all of it was accepted. No name of the result may be a
/// marker of a layer's: those became whiteouts.
pub fn apply(bytes: &[u8], into: &Path) -> bool {
    let limits =
        Limits { entries: 1000, bytes: 1 << 20, header: 1 << 16, segments: 1 << 10, ..Limits::default() };
    let mut r = Reader::new(Cursor::new(bytes), "fuzz", limits, true);
    let accepted = crate::apply::apply(&mut r, into, Ownership::detect()).is_ok();
    let mut pending = vec![into.to_owned()];
    while let Some(dir) = pending.pop() {
        for e in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            assert!(!e.file_name().as_encoded_bytes().starts_with(b".wh."), "{:?} was made", e.path());
            if e.file_type().is_ok_and(|t| t.is_dir()) {
                pending.push(e.path());
            }
        }
    }
    accepted
}

/// Reads a manifest, an index and a configuration.
pub fn json(bytes: &[u8]) {
    if let Ok(m) = read_manifest(bytes) {
        assert!(m.layers.len() <= crate::MAX_DEPTH);
    }
    if let Ok(ids) = Config::read(bytes).and_then(|c| c.diff_ids()) {
        assert!(ids.len() <= crate::MAX_DEPTH);
    }
    if let Ok(i) = read_index(bytes) {
        assert!(serde_json::to_vec(&i).is_ok());
    }
}

/// Reads an image's name.
pub fn reference(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(r) = crate::reference::Reference::parse(text)
    {
        assert!(!r.repository.split('/').any(|c| c == ".." || c.is_empty()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fuzz targets run elsewhere; here a few thousand mutations of valid archives.
    #[test]
    fn mutated_archives_neither_panic_nor_read_differently() {
        let entry = |path: &str, kind| crate::tar::Entry {
            path: path.into(),
            kind,
            mode: 0o644,
            uid: 3_000_000,
            gid: 1,
            mtime: crate::tar::Time { secs: 5, nanos: 7 },
            size: 0,
            xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())],
            sparse: None,
        };
        let mut w = Writer::new(Vec::new());
        w.entry(&entry(&"long/".repeat(40), crate::tar::Kind::Fifo)).unwrap();
        let mut sparse = entry("s", crate::tar::Kind::File);
        (sparse.size, sparse.sparse) = (5000, Some(vec![(0, 3), (4000, 2)]));
        w.entry(&sparse).unwrap();
        w.data(b"abcde").unwrap();
        w.entry(&entry("l", crate::tar::Kind::Symlink(b"t".to_vec()))).unwrap();
        let valid = w.finish().unwrap();
        let mut seed = 1u64;
        for _ in 0..5000 {
            let mut bytes = valid.clone();
            for _ in 0..3 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = usize::try_from(seed >> 33).unwrap() % bytes.len();
                bytes[at] = u8::try_from(seed >> 20 & 0xff).unwrap();
                // Half of them get a right checksum again, to come further.
                let block = at / 512 * 512;
                if seed & 1 == 0 {
                    bytes[block + 148..block + 156].fill(b' ');
                    let sum: u32 = bytes[block..block + 512].iter().map(|b| u32::from(*b)).sum();
                    bytes[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            tar(&bytes);
            json(&bytes);
        }
    }
}
