//! Blobs: content-addressed files, and what they are compressed with.
//!
//! Owns staging a stream as a blob while it is digested, and opening a blob for uncompressed reading.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use crate::digest::{Digest, Hashing};
use crate::durable;
use crate::error::{Context, Error, Result};

/// The zstd window that a blob may ask for: 64 MiB, all of `zstd -19 --long=26`. Bounds memory.
const ZSTD_WINDOW_LOG: u32 = 26;

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
    let mut r = BufReader::with_capacity(256 << 10, inner);
    Ok(match Compression::detect(r.fill_buf()?) {
        Compression::None => Box::new(r),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(r)),
        Compression::Zstd => {
            let mut d = zstd::Decoder::with_buffer(r)?;
            d.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(d)
        }
    })
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

/// Copies a stream into the new file `path`, and digests it on the way.
pub fn stage(mut from: impl Read, path: PathBuf, limit: u64) -> Result<Staged> {
    let mut out = Hashing::new(durable::new_file(&path, 0o644)?);
    let mut buf = vec![0u8; 256 << 10];
    let mut head = Vec::new();
    loop {
        let n = match from.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::invalid("the blob's source", e.to_string())),
        };
        let part = buf.get(..n).unwrap_or_default();
        if head.len() < 4 {
            head.extend(part.iter().take(4 - head.len()));
        }
        out.write_all(part).at("write", &path)?;
        if out.count() > limit {
            return Err(Error::invalid("the blob's source", format!("longer than {limit} bytes")));
        }
    }
    let (_, digest, size) = out.finish();
    Ok(Staged { path, digest, size, compression: Compression::detect(&head) })
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
