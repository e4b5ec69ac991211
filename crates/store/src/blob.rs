//! Blobs: content-addressed files, and what they are compressed with.
//!
//! Owns staging a stream as a blob while it is digested, and opening a blob for uncompressed reading.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::digest::{Digest, Hashing};
use crate::durable;
use crate::error::{Context, Error, Result};

/// The zstd window that a blob may ask for: 64 MiB, all of `zstd -19 --long=26`. Bounds memory.
const ZSTD_WINDOW_LOG: u32 = 26;
/// The one that any number of layers may use at the same time: 8 MiB, which every zstd level up to 19 is content with.
const ZSTD_COMMON_LOG: u32 = 23;

/// How a blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip: what every reader of images knows.
    #[default]
    Gzip,
    /// zstd: smaller and faster, known since 2022.
    Zstd,
}

impl Compression {
    /// From the first bytes of a stream.
    pub fn detect(head: &[u8]) -> Compression {
        match head {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            // A frame, or a skippable frame (as zstd:chunked begins with).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }

    /// The media type of a layer compressed so (image-spec, layer.md).
    pub fn media_type(self) -> &'static str {
        match self {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// Reads `inner` uncompressed, whatever it is compressed with.
pub fn decoder<'a>(inner: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut r = Peeked::new(inner);
    Ok(match Compression::detect(r.peek()?) {
        Compression::Zstd => {
            let mut d = zstd::Decoder::with_buffer(r)?;
            d.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(d)
        }
        how => simple(r, how),
    })
}

/// The same for one of several layers: of those in a frame with a large window, one at a time, so that memory stays bounded.
pub fn layer_decoder<'a>(inner: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut r = Peeked::new(inner);
    Ok(match Compression::detect(r.peek()?) {
        Compression::Zstd => Box::new(Frames::Between(r)),
        how => simple(r, how),
    })
}

/// Whether a file may be a layer: a compressed stream, or a tar (POSIX, or GNU's).
pub fn may_be_layer(head: &[u8]) -> bool {
    Compression::detect(head) != Compression::None || head.get(257..262) == Some(b"ustar")
}

fn simple<'a>(r: impl BufRead + Send + 'a, how: Compression) -> Box<dyn Read + Send + 'a> {
    match how {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(r)),
        _ => Box::new(r),
    }
}

/// The bytes of a frame's header that say its window: magic, descriptor, window, dictionary, size of the content.
const PEEK: usize = 4 + 1 + 1 + 4 + 8;

/// A stream whose next bytes can be looked at, in however small pieces it comes.
struct Peeked<R> {
    head: [u8; PEEK],
    /// Where in `head` the bytes are that were looked at and not yet read.
    ahead: Range<usize>,
    inner: BufReader<R>,
}

impl<R: Read> Peeked<R> {
    fn new(inner: R) -> Peeked<R> {
        Peeked { head: [0; PEEK], ahead: 0..0, inner: BufReader::with_capacity(256 << 10, inner) }
    }

    /// The next bytes; fewer than [`PEEK`] only where the stream ends.
    fn peek(&mut self) -> io::Result<&[u8]> {
        self.head.copy_within(self.ahead.clone(), 0);
        self.ahead = 0..self.ahead.len();
        let room = self.head.get_mut(self.ahead.end..).unwrap_or_default();
        self.ahead.end += read_full(&mut self.inner, room)?;
        Ok(self.head.get(self.ahead.clone()).unwrap_or_default())
    }
}

impl<R: Read> Read for Peeked<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.ahead.is_empty() {
            return self.inner.read(buf);
        }
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

impl<R: Read> BufRead for Peeked<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.head.get(self.ahead.clone()) {
            Some(head) if !head.is_empty() => Ok(head),
            _ => self.inner.fill_buf(),
        }
    }

    fn consume(&mut self, n: usize) {
        if self.ahead.is_empty() {
            self.inner.consume(n);
        } else {
            self.ahead.start += n.min(self.ahead.len());
        }
    }
}

/// The frames of a zstd stream, each with the window that it asks for: zstd:chunked makes one of every file, and others have
/// large windows only after the first.
enum Frames<'a, R: Read> {
    Between(Peeked<R>),
    Within(zstd::Decoder<'a, Peeked<R>>, Option<Turn>),
    Failed,
}

impl<R: Read> Frames<'_, R> {
    fn next_frame(mut r: Peeked<R>) -> io::Result<Self> {
        let large = zstd_window(r.peek()?).is_some_and(|n| n > 1 << ZSTD_COMMON_LOG);
        let turn = large.then(Turn::take);
        let mut d = zstd::Decoder::with_buffer(r)?.single_frame();
        d.window_log_max(if large { ZSTD_WINDOW_LOG } else { ZSTD_COMMON_LOG })?;
        Ok(Frames::Within(d, turn))
    }
}

impl<R: Read> Read for Frames<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            *self = match std::mem::replace(self, Frames::Failed) {
                Frames::Between(mut r) => {
                    if r.peek()?.is_empty() {
                        *self = Frames::Between(r);
                        return Ok(0);
                    }
                    Frames::next_frame(r)?
                }
                Frames::Within(mut d, turn) => match d.read(buf)? {
                    0 => Frames::Between(d.finish()),
                    n => {
                        *self = Frames::Within(d, turn);
                        return Ok(n);
                    }
                },
                Frames::Failed => return Err(io::Error::other("read again after a failure")),
            };
        }
    }
}

/// The window that a frame asks for (RFC 8878, 3.1.1.1); none if `head` is no start of one with content.
fn zstd_window(head: &[u8]) -> Option<u64> {
    let [0x28, 0xb5, 0x2f, 0xfd, descriptor, rest @ ..] = head else { return None };
    if descriptor & 0x20 == 0 {
        let window = rest.first()?;
        let base = 1u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // A single segment: the window is the content, whose size comes behind the dictionary's number.
    let skip = [0usize, 1, 2, 4].get(usize::from(descriptor & 3))?;
    let size = rest.get(*skip..)?;
    let le = |n: usize| Some(size.get(..n)?.iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b)));
    match descriptor >> 6 {
        0 => le(1),
        1 => le(2).map(|n| n + 256),
        2 => le(4),
        _ => le(8),
    }
}

/// The right to use a large window, which one layer of this process has at a time, until the frame ends.
struct Turn;

static TAKEN: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

impl Turn {
    fn take() -> Turn {
        let lock = TAKEN.0.lock().unwrap_or_else(PoisonError::into_inner);
        *TAKEN.1.wait_while(lock, |taken| *taken).unwrap_or_else(PoisonError::into_inner) = true;
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TAKEN.0.lock().unwrap_or_else(PoisonError::into_inner) = false;
        TAKEN.1.notify_one();
    }
}

/// Opens a file, or standard input for `-`, with its size where known.
pub fn open_input(from: &Path) -> Result<(Box<dyn Read + Send>, Option<u64>)> {
    if from == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let f = File::open(from).at("open", from)?;
    let size = f.metadata().at("stat", from)?.len();
    Ok((Box::new(f), Some(size)))
}

/// A blob that lies in a staging directory, complete, not yet visible.
#[derive(Debug, Clone)]
pub struct Staged {
    /// Where it lies.
    pub path: PathBuf,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What its first bytes say.
    pub compression: Compression,
}

/// Copies a stream into the new file `path`, and digests it on the way; `also` is shown each part, the first of them as long
/// as the stream allows.
pub fn stage(
    mut from: impl Read,
    path: PathBuf,
    limit: u64,
    also: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Staged> {
    let mut out = Hashing::new(durable::new_file(&path, 0o644)?);
    let mut buf = vec![0u8; 256 << 10];
    let mut head = [0u8; 4];
    loop {
        let n =
            read_full(&mut from, &mut buf).map_err(|e| Error::invalid("the blob's source", e.to_string()))?;
        let part = buf.get(..n).unwrap_or_default();
        if part.is_empty() {
            break;
        }
        if out.count() == 0 {
            head.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
        }
        out.write_all(part).at("write", &path)?;
        if out.count() > limit {
            return Err(Error::invalid("the blob's source", format!("longer than {limit} bytes")));
        }
        also(part)?;
    }
    let (_, digest, size) = out.finish();
    Ok(Staged { path, digest, size, compression: Compression::detect(&head) })
}

/// Reads until the buffer is full or the stream ends.
pub fn read_full(from: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|b| !b.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Writes a new blob through `fill`, compressed; digests both what went in (the DiffID) and what came out.
pub fn compose(
    path: PathBuf,
    how: Compression,
    fill: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<(Staged, Digest)> {
    let out = Hashing::new(io::BufWriter::with_capacity(256 << 10, durable::new_file(&path, 0o644)?));
    let (out, diff_id) = match how {
        Compression::None => {
            let mut w = Hashing::new(out);
            fill(&mut w)?;
            let (out, diff, _) = w.finish();
            (out, diff)
        }
        Compression::Gzip => {
            // No name and no time in the header: the same tar gives the same blob.
            let mut w = Hashing::new(flate2::write::GzEncoder::new(out, flate2::Compression::new(5)));
            fill(&mut w)?;
            let (gz, diff, _) = w.finish();
            (gz.finish().at("write", &path)?, diff)
        }
        Compression::Zstd => {
            let enc = zstd::Encoder::new(out, 3).at("write", &path)?;
            let mut w = Hashing::new(enc);
            fill(&mut w)?;
            let (z, diff, _) = w.finish();
            (z.finish().at("write", &path)?, diff)
        }
    };
    let (mut file, digest, size) = out.finish();
    file.flush().at("write", &path)?;
    Ok((Staged { path, digest, size, compression: how }, diff_id))
}

/// Digests a whole file.
pub fn digest_file(path: &Path) -> Result<(Digest, u64)> {
    let mut r = Hashing::new(File::open(path).at("open", path)?);
    io::copy(&mut r, &mut io::sink()).at("read", path)?;
    let (_, digest, size) = r.finish();
    Ok((digest, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A zstd stream of one frame.
    fn frame(data: &[u8], level: i32, log: u32, known: bool) -> Vec<u8> {
        let mut e = zstd::Encoder::new(Vec::new(), level).unwrap();
        e.window_log(log).unwrap();
        if known {
            e.set_pledged_src_size(Some(data.len() as u64)).unwrap();
            e.include_contentsize(true).unwrap();
        }
        e.write_all(data).unwrap();
        e.finish().unwrap()
    }

    #[test]
    fn the_window_of_a_zstd_frame_is_read_from_its_header() {
        let window = |level: i32, log: u32, known: bool| {
            zstd_window(&frame(&vec![7; 70_000], level, log, known)[..PEEK]).unwrap()
        };
        assert_eq!(window(3, 20, false), 1 << 20);
        assert_eq!(window(19, 25, false), 1 << 25);
        assert!((70_000..1 << 20).contains(&window(3, 20, true)));
        assert_eq!(zstd_window(b"no zstd"), None);
        assert_eq!(zstd_window(&[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]), None);
    }

    /// A stream that comes in pieces of `n` bytes.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(buf.len());
            self.0.read(&mut buf[..n])
        }
    }

    fn decoded(stream: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        layer_decoder(Pieces(stream, piece))?.read_to_end(&mut out)?;
        let mut whole = Vec::new();
        decoder(Pieces(stream, piece))?.read_to_end(&mut whole)?;
        assert_eq!(out, whole);
        Ok(out)
    }

    #[test]
    fn a_stream_is_known_in_however_small_pieces_it_comes() {
        let data: Vec<u8> = (0..2000u32).flat_map(u32::to_le_bytes).collect();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&data).unwrap();
        for stream in [gzip.finish().unwrap(), frame(&data, 3, 20, false), data.clone(), vec![1], Vec::new()]
        {
            let want = if stream.len() < 2 { &stream } else { &data };
            for piece in [1, 3, usize::MAX] {
                assert_eq!(&decoded(&stream, piece).unwrap(), want);
            }
        }
    }

    #[test]
    fn any_frame_of_a_zstd_stream_may_have_a_large_window() {
        let large: Vec<u8> =
            (0..3u32 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let skipped: &[u8] = &[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        let (one, two) = (frame(b"one", 1, 10, true), frame(&large, 1, 26, false));
        assert_eq!(zstd_window(&two), Some(1 << 26));
        let stream = [skipped, &one, &two, &frame(b"", 1, 10, false), &two, skipped, &one].concat();
        let want = [b"one", &large[..], &large, b"one"].concat();
        assert!(decoded(&stream, usize::MAX).unwrap() == want);
        // Two at a time wait for each other and for nobody else.
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| assert!(decoded(&stream, 1 << 16).unwrap() == want));
            }
        });
        assert!(decoded(&stream[..stream.len() - 1], 1 << 16).is_err(), "cut off");
        assert!(decoded(&[&one[..], b"garbage"].concat(), 1 << 16).is_err());
        assert!(decoded(&frame(b"x", 1, 27, false), 1 << 16).is_err(), "more than is allowed");
    }
}
