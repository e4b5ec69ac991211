//! From a compressed blob to a layer's directory, in one pass on all cores, while the blob is still coming in: one thread
//! decompresses, one digests, one writes files; whoever has the blob feeds them.
//!
//! Owns the pipeline and the bound on the compression ratio. Memory is a handful of chunks and the decoder's window. What
//! was unpacked lies in a staging directory, and is believed by nobody before the digests are (ingest.rs).

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

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

/// A layer to unpack.
pub struct Order {
    /// What messages call it.
    pub what: String,
    /// The empty directory to unpack into.
    pub into: PathBuf,
    /// Bytes of the blob, where they are known.
    pub compressed: Option<u64>,
    /// Whether its DiffID is promised, so that an archive without an end is no doubt.
    pub vouched: bool,
    /// Bounds.
    pub limits: Limits,
    /// How files are written.
    pub ownership: Ownership,
}

/// A layer that is being unpacked while its blob comes in.
pub struct Unpacking {
    blob: Option<SyncSender<Arc<[u8]>>>,
    fed: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<(Applied, Digest)>>>,
}

impl Unpacking {
    /// Starts the threads; they wait for the blob.
    pub fn start(order: Order) -> Result<Unpacking> {
        let (blob, from) = sync_channel(QUEUE);
        let fed = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&fed);
        let thread = std::thread::Builder::new()
            .name("unpack".into())
            .spawn(move || pipeline(&order, Chunks::new(from), &count))
            .at("start a thread to unpack", "the layer")?;
        Ok(Unpacking { blob: Some(blob), fed, thread: Some(thread) })
    }

    /// The blob's next bytes; waits while the threads are behind. Says whether more is wanted: not after a failure, which
    /// [`Unpacking::finish`] tells.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        self.fed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut parts = bytes.chunks(CHUNK);
        parts.all(|p| self.blob.as_ref().is_some_and(|to| to.send(p.into()).is_ok()))
    }

    /// The blob is complete: what was unpacked, and its DiffID.
    pub fn finish(mut self) -> Result<(Applied, Digest)> {
        self.blob = None;
        let thread = self.thread.take();
        let died = || Error::Damaged("the unpacking thread died".into());
        thread.ok_or_else(died)?.join().map_err(|_| died())?
    }
}

impl Drop for Unpacking {
    /// Given up: whoever removes the directory finds nobody at work in it.
    fn drop(&mut self) {
        self.blob = None;
        if let Some(Err(e)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("an unpacking thread died: {e:?}");
        }
    }
}

/// Unpacks the blob at `path`; returns the DiffID too.
///
/// `expected` is the DiffID that the image's configuration promises; another one is an error.
pub fn unpack(
    path: &Path,
    expected: Option<&Digest>,
    order: Order,
    task: &dyn Task,
) -> Result<(Applied, Digest)> {
    let file = File::open(path).at("open", path)?;
    let compressed = file.metadata().at("stat", path)?.len();
    let what = order.what.clone();
    let mut u =
        Unpacking::start(Order { compressed: Some(compressed), vouched: expected.is_some(), ..order })?;
    let mut from = Counted { inner: file, task };
    let mut buf = vec![0u8; CHUNK];
    loop {
        let n = from.read(&mut buf).at("read", path)?;
        if n == 0 || !u.feed(buf.get(..n).unwrap_or_default()) {
            break;
        }
    }
    let (applied, diff_id) = u.finish()?;
    if let Some(want) = expected {
        require_diff_id(&what, want, &diff_id)?;
    }
    Ok((applied, diff_id))
}

/// The check of an unpacked layer against its image's configuration.
pub fn require_diff_id(what: &str, expected: &Digest, found: &Digest) -> Result<()> {
    match expected == found {
        true => Ok(()),
        false => Err(Error::Digest {
            what: what.to_owned(),
            expected: expected.to_string(),
            found: found.to_string(),
        }),
    }
}

fn pipeline(order: &Order, input: Chunks<Arc<[u8]>>, fed: &AtomicU64) -> Result<(Applied, Digest)> {
    let (to_apply, from_read) = sync_channel::<Chunk>(QUEUE);
    let (to_hash, hash_in) = sync_channel::<Arc<[u8]>>(QUEUE);
    let (applied, diff_id) = std::thread::scope(|s| {
        s.spawn(move || decompress(order, input, fed, &to_apply, &to_hash));
        let hasher = s.spawn(move || hash(&hash_in));
        let mut tar = Reader::new(Chunks::new(from_read), &order.what, order.limits, !order.vouched);
        let applied = apply::apply(&mut tar, &order.into, order.ownership);
        drop(tar);
        (applied, hasher.join())
    });
    Ok((applied?, diff_id.map_err(|_| Error::Damaged("the digesting thread died".into()))?))
}

/// Ends when the input does, or when nobody listens any more.
fn decompress(
    order: &Order,
    inner: impl Read + Send,
    fed: &AtomicU64,
    a: &SyncSender<Chunk>,
    b: &SyncSender<Arc<[u8]>>,
) {
    let mut r = match blob::layer_decoder(inner) {
        Ok(r) => r,
        Err(e) => return drop(a.send(Err(e))),
    };
    let ratio = order.limits.ratio;
    let mut total = 0u64;
    loop {
        let chunk = match read_chunk(&mut r) {
            Ok(c) if c.is_empty() => return,
            Ok(c) => c,
            Err(e) => return drop(a.send(Err(e))),
        };
        total += chunk.len() as u64;
        let compressed = order.compressed.unwrap_or_else(|| fed.load(Ordering::Relaxed));
        if total > compressed.saturating_mul(ratio).max(RATIO_FLOOR) {
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
    let n = blob::read_full(r, &mut buf)?;
    buf.truncate(n);
    Ok(buf.into())
}

fn hash(input: &Receiver<Arc<[u8]>>) -> Digest {
    let mut h = Sha256::new();
    while let Ok(chunk) = input.recv() {
        h.update(&chunk);
    }
    Digest::from_bytes(h.finalize().into())
}

/// A queue of chunks as a stream.
struct Chunks<T> {
    from: Receiver<T>,
    chunk: Arc<[u8]>,
    at: usize,
}

/// What stands in a queue: bytes, or why there are no more.
trait Bytes {
    fn bytes(self) -> Chunk;
}

impl Bytes for Arc<[u8]> {
    fn bytes(self) -> Chunk {
        Ok(self)
    }
}

impl Bytes for Chunk {
    fn bytes(self) -> Chunk {
        self
    }
}

impl<T> Chunks<T> {
    fn new(from: Receiver<T>) -> Chunks<T> {
        Chunks { from, chunk: Arc::new([]), at: 0 }
    }
}

impl<T: Bytes> Read for Chunks<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            match self.from.recv() {
                Ok(c) => (self.chunk, self.at) = (c.bytes()?, 0),
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
