//! From a compressed blob to a layer's directory, in one pass on all cores: one thread reads and
//! decompresses, one digests, this one writes files.
//!
//! Owns the pipeline and the bound on the compression ratio. Memory is a handful of chunks.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use sha2::{Digest as _, Sha256};

use crate::apply::{self, Applied};
use crate::blob;
use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::owner::Ownership;
use crate::progress::{Counted, Task};
use crate::tar::{Limits, Reader};

const CHUNK: usize = 256 << 10;
const QUEUE: usize = 6;
/// Below this, no ratio is a bomb.
const RATIO_FLOOR: u64 = 1 << 30;

type Chunk = io::Result<Arc<[u8]>>;

/// Unpacks the blob at `path` into the empty directory `into`; returns the DiffID too.
///
/// `what` names it in messages. `expected` is the DiffID that the image's configuration promises; another one is an error.
pub fn unpack(
    path: &Path,
    what: &str,
    expected: Option<&Digest>,
    into: &Path,
    limits: Limits,
    ownership: Ownership,
    task: &dyn Task,
) -> Result<(Applied, Digest)> {
    let file = File::open(path).at("open", path)?;
    let compressed = file.metadata().at("stat", path)?.len();
    let (to_apply, from_read) = sync_channel::<Chunk>(QUEUE);
    let (to_hash, hash_in) = sync_channel::<Arc<[u8]>>(QUEUE);
    let (applied, diff_id) = std::thread::scope(|s| {
        s.spawn(move || {
            decompress(Counted { inner: file, task }, compressed, limits.ratio, &to_apply, &to_hash)
        });
        let hasher = s.spawn(move || hash(&hash_in));
        let mut tar = Reader::new(Chunks::new(from_read), what, limits, expected.is_none());
        let applied = apply::apply(&mut tar, into, ownership);
        drop(tar);
        (applied, hasher.join())
    });
    let applied = applied?;
    let diff_id = diff_id.map_err(|_| Error::Damaged("the digesting thread died".into()))?;
    match expected {
        Some(want) if *want != diff_id => Err(Error::Digest {
            what: what.to_owned(),
            expected: want.to_string(),
            found: diff_id.to_string(),
        }),
        _ => Ok((applied, diff_id)),
    }
}

/// Ends when the input does, or when nobody listens any more.
fn decompress(
    inner: impl Read + Send,
    compressed: u64,
    ratio: u64,
    a: &SyncSender<Chunk>,
    b: &SyncSender<Arc<[u8]>>,
) {
    let mut r = match blob::decoder(inner) {
        Ok(r) => r,
        Err(e) => return drop(a.send(Err(e))),
    };
    let limit = compressed.saturating_mul(ratio).max(RATIO_FLOOR);
    let mut total = 0u64;
    loop {
        let chunk = match read_chunk(&mut r) {
            Ok(c) if c.is_empty() => return,
            Ok(c) => c,
            Err(e) => return drop(a.send(Err(e))),
        };
        total += chunk.len() as u64;
        if total > limit {
            let why = format!("more than {ratio} times larger than its blob of {compressed} bytes");
            return drop(a.send(Err(io::Error::other(why))));
        }
        if b.send(Arc::clone(&chunk)).is_err() || a.send(Ok(chunk)).is_err() {
            return;
        }
    }
}

fn read_chunk(r: &mut impl Read) -> io::Result<Arc<[u8]>> {
    let mut buf = vec![0u8; CHUNK];
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|b| !b.is_empty()) {
        match r.read(rest) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    buf.truncate(done);
    Ok(buf.into())
}

fn hash(input: &Receiver<Arc<[u8]>>) -> Digest {
    let mut h = Sha256::new();
    while let Ok(chunk) = input.recv() {
        h.update(&chunk);
    }
    Digest::from_bytes(h.finalize().into())
}

/// The writing side's view of the chunks: a stream.
struct Chunks {
    from: Receiver<Chunk>,
    chunk: Arc<[u8]>,
    at: usize,
}

impl Chunks {
    fn new(from: Receiver<Chunk>) -> Chunks {
        Chunks { from, chunk: Arc::new([]), at: 0 }
    }
}

impl Read for Chunks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            match self.from.recv() {
                Ok(c) => (self.chunk, self.at) = (c?, 0),
                Err(_) => return Ok(0),
            }
        }
        let rest = self.chunk.get(self.at..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..n), rest.get(..n)) {
            to.copy_from_slice(from);
        }
        self.at += n;
        Ok(n)
    }
}
