//! Reads a tar archive that may be hostile. Owns the loop over headers and all bounds; refuses what two
//! readers could read differently. Writes nothing.
//!
//! What is refused although some archiver may have written it: two lengths that differ, data behind a
//! link or a directory, a repeated extended header, a lone zero block before more entries, bytes after the
//! end of the archive, a missing end (unless a digest vouches for it), names with `..`, and a root that is
//! not a directory (CVE-2021-29136).

use std::io::{self, Read};

use super::header::Header;
use super::{BLOCK, Entry, Kind, Time, pax, sparse};
use crate::error::{Error, Result};

/// Bounds on what an archive may make the reader do. Each is an option of the commands that unpack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries of one layer.
    pub entries: u64,
    /// Bytes of one layer's tar, uncompressed, and of its files as they are seen (holes counted).
    pub bytes: u64,
    /// How many times larger than its compressed blob a layer may be, once it is larger than 1 GiB.
    pub ratio: u64,
    /// Bytes of one extended header.
    pub header: u64,
    /// Segments of one sparse file.
    pub segments: usize,
    /// Bytes of a path.
    pub path: usize,
    /// Components of a path.
    pub depth: usize,
}

impl Default for Limits {
    /// Wide for every image known, narrow for a bomb.
    fn default() -> Limits {
        Limits {
            entries: 10_000_000,
            bytes: 1 << 40,
            ratio: 500,
            header: 1 << 20,
            segments: 1 << 18,
            path: 4095,
            depth: 1000,
        }
    }
}

/// Reads entries from an uncompressed archive.
pub struct Reader<R> {
    inner: R,
    what: String,
    limits: Limits,
    require_end: bool,
    offset: u64,
    entries: u64,
    seen_bytes: u64,
    /// Bytes of the current entry's data not read yet, and the padding behind them.
    left: u64,
    padding: u64,
    finished: bool,
}

impl<R: Read> Reader<R> {
    /// Reads `inner`; `what` names it in errors. `require_end`: an archive that stops without its two zero
    /// blocks is taken for truncated; pass false where a digest of the whole is checked anyway.
    pub fn new(inner: R, what: impl Into<String>, limits: Limits, require_end: bool) -> Reader<R> {
        Reader {
            inner,
            what: what.into(),
            limits,
            require_end,
            offset: 0,
            entries: 0,
            seen_bytes: 0,
            left: 0,
            padding: 0,
            finished: false,
        }
    }

    /// The next entry; what is left of the present one's data is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        if self.finished {
            return Ok(None);
        }
        self.skip_data()?;
        let Some((block, ext, long_name, long_link)) = self.headers()? else {
            self.finished = true;
            return Ok(None);
        };
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(self.bad(format!("more than {} entries", self.limits.entries)));
        }
        let head = Header::new(&block).map_err(|e| self.bad(e))?;
        let raw = Raw { ext, long_name, long_link };
        let entry = self.entry(&head, raw)?;
        self.seen_bytes = self.seen_bytes.saturating_add(entry.size);
        if self.seen_bytes > self.limits.bytes {
            return Err(self.bad(format!("its files have more than {} bytes", self.limits.bytes)));
        }
        Ok(Some(entry))
    }

    /// Reads data of the present entry: for a sparse file its segments, one after the other.
    pub fn read_data(&mut self, buf: &mut [u8]) -> Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let part = buf.get_mut(..want).unwrap_or_default();
        if part.is_empty() {
            return Ok(0);
        }
        let n = self.read_some(part)?;
        if n == 0 {
            return Err(self.truncated());
        }
        self.left -= n as u64;
        Ok(n)
    }

    /// Headers up to that of an entry: the block, and what extended headers said about it.
    #[allow(clippy::type_complexity)]
    fn headers(
        &mut self,
    ) -> Result<Option<([u8; BLOCK], Option<pax::Extended>, Option<Vec<u8>>, Option<Vec<u8>>)>> {
        let (mut ext, mut name, mut link) = (None, None, None);
        let mut globals = 0u32;
        loop {
            let Some(block) = self.block_or_end()? else {
                if ext.is_some() || name.is_some() || link.is_some() {
                    return Err(self.bad("ends behind an extended header"));
                }
                return Ok(None);
            };
            let h = Header::new(&block).map_err(|e| self.bad(e))?;
            let repeated = match h.flag() {
                b'x' => ext.replace(self.extended(&h)?).is_some(),
                b'L' => name.replace(self.long(&h)?).is_some(),
                b'K' => link.replace(self.long(&h)?).is_some(),
                b'g' => {
                    let body = self.body(&h)?;
                    pax::global(&body).map_err(|e| self.bad(e))?;
                    globals += 1;
                    globals > 1000
                }
                _ => return Ok(Some((block, ext, name, link))),
            };
            if repeated {
                return Err(self.bad("an extended header stands twice"));
            }
        }
    }

    fn extended(&mut self, h: &Header<'_>) -> Result<pax::Extended> {
        let body = self.body(h)?;
        pax::local(&body, self.limits.segments).map_err(|e| self.bad(e))
    }

    fn long(&mut self, h: &Header<'_>) -> Result<Vec<u8>> {
        let mut v = self.body(h)?;
        if let Some(end) = v.iter().position(|b| *b == 0) {
            if v.get(end..).is_some_and(|rest| rest.iter().any(|b| *b != 0)) {
                return Err(self.bad("a long name contains a NUL"));
            }
            v.truncate(end);
        }
        Ok(v)
    }

    /// The body of an extended header, bounded.
    fn body(&mut self, h: &Header<'_>) -> Result<Vec<u8>> {
        let size = h.size().map_err(|e| self.bad(e))?;
        if size > self.limits.header {
            return Err(
                self.bad(format!("an extended header has {size} bytes, more than {}", self.limits.header))
            );
        }
        let mut v = vec![0u8; size as usize];
        self.read_full(&mut v)?;
        self.skip(pad(size))?;
        Ok(v)
    }

    /// Puts a header and its extensions together.
    fn entry(&mut self, h: &Header<'_>, raw: Raw) -> Result<Entry> {
        let ext = raw.ext.unwrap_or_default();
        let name = match &ext.sparse.name {
            Some(n) => n.clone(),
            None => self.agreed(ext.path.clone(), raw.long_name, "names")?.unwrap_or_else(|| h.name()),
        };
        let link =
            self.agreed(ext.linkpath.clone(), raw.long_link, "link targets")?.unwrap_or_else(|| h.link());
        let old_dir = matches!(h.flag(), 0 | b'0') && name.ends_with(b"/");
        let path = self.clean(&name)?;
        let stored = self.length(h, ext.size)?;
        let kind = self.kind(h, if old_dir { b'5' } else { h.flag() }, &link)?;
        if kind != Kind::File && stored != 0 {
            return Err(self.bad(format!("{}: data behind something that is no file", path.escape_ascii())));
        }
        if path.is_empty() && kind != Kind::Dir {
            return Err(self.bad("the root is not a directory"));
        }
        self.left = stored;
        self.padding = pad(stored);
        let (size, map) = self.sparse(h, &ext.sparse, stored)?;
        let time = match ext.mtime {
            Some(t) => t,
            None => Time { secs: h.mtime().map_err(|e| self.bad(e))?, nanos: 0 },
        };
        Ok(Entry {
            path,
            kind,
            mode: h.mode().map_err(|e| self.bad(e))?,
            uid: self.id(ext.uid, h.uid())?,
            gid: self.id(ext.gid, h.gid())?,
            mtime: time,
            size,
            xattrs: ext.xattrs,
            sparse: map,
        })
    }

    /// pax and GNU may both give a long name; two different ones are an attack.
    fn agreed(&self, a: Option<Vec<u8>>, b: Option<Vec<u8>>, what: &str) -> Result<Option<Vec<u8>>> {
        match (a, b) {
            (Some(a), Some(b)) if a != b => Err(self.bad(format!("two different {what} for one entry"))),
            (a, b) => Ok(a.or(b)),
        }
    }

    /// The length of the data: both headers must agree, unless the old field is too small for it.
    fn length(&self, h: &Header<'_>, pax: Option<u64>) -> Result<u64> {
        let field = h.size().map_err(|e| self.bad(e))?;
        match pax {
            Some(n) if n != field && (field != 0 || n < 1 << 33) => {
                Err(self.bad(format!("two lengths for one entry: {field} and {n}")))
            }
            Some(n) => Ok(n),
            None => Ok(field),
        }
    }

    fn id(&self, pax: Option<u64>, field: std::result::Result<u64, String>) -> Result<u32> {
        let n = match pax {
            Some(n) => n,
            None => field.map_err(|e| self.bad(e))?,
        };
        // -1 means "leave unchanged" to chown(2).
        u32::try_from(n)
            .ok()
            .filter(|n| *n != u32::MAX)
            .ok_or_else(|| self.bad(format!("owner {n} is out of range")))
    }

    fn kind(&self, h: &Header<'_>, flag: u8, link: &[u8]) -> Result<Kind> {
        let device = || h.device().map_err(|e| self.bad(e));
        Ok(match flag {
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::Hardlink(self.clean(link)?),
            b'2' if link.is_empty() || link.len() > self.limits.path => {
                return Err(self.bad("a symbolic link's text is empty or too long"));
            }
            b'2' => Kind::Symlink(link.to_vec()),
            b'3' => device().map(|(a, b)| Kind::Char(a, b))?,
            b'4' => device().map(|(a, b)| Kind::Block(a, b))?,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            f => return Err(self.bad(format!("unknown type of entry '{}'", f.escape_ascii()))),
        })
    }

    fn sparse(
        &mut self,
        h: &Header<'_>,
        keys: &pax::SparseKeys,
        stored: u64,
    ) -> Result<(u64, Option<sparse::Map>)> {
        let what = self.what.clone();
        let bad = |why: String| Error::invalid(what.clone(), why);
        let max = self.limits.segments;
        let (map, real, stored) = if h.flag() == b'S' {
            if keys.seen {
                return Err(bad("two sparse formats for one entry".into()));
            }
            let (map, real) = sparse::old_gnu(h, max, || self.block(), bad)?;
            (map, real, stored)
        } else if keys.map_in_data {
            let (map, taken) =
                sparse::in_data(max, || self.data_block(), |w| Error::invalid(what.clone(), w))?;
            (map, keys.real_size.unwrap_or(0), stored.saturating_sub(taken))
        } else if keys.seen {
            (sparse::pairs(&keys.numbers).map_err(&bad)?, keys.real_size.unwrap_or(stored), stored)
        } else {
            return Ok((stored, None));
        };
        let map = sparse::check(map, real, stored).map_err(|w| Error::invalid(what.clone(), w))?;
        Ok((real, Some(map)))
    }

    /// A path as a list of plain components, relative to the root.
    fn clean(&self, name: &[u8]) -> Result<Vec<u8>> {
        let shown = || name.get(..name.len().min(200)).unwrap_or_default().escape_ascii().to_string();
        if name.is_empty() || name.contains(&0) {
            return Err(self.bad("an empty name, or one with a NUL"));
        }
        if name.len() > self.limits.path {
            return Err(self.bad(format!("a name of {} bytes: {}…", name.len(), shown())));
        }
        let mut out: Vec<u8> = Vec::with_capacity(name.len());
        let mut depth = 0;
        for c in name.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".") {
            if c == b".." {
                return Err(self.bad(format!("a name with \"..\": {}", shown())));
            }
            if c.len() > 255 {
                return Err(self.bad(format!("a component longer than 255 bytes: {}…", shown())));
            }
            depth += 1;
            if !out.is_empty() {
                out.push(b'/');
            }
            out.extend_from_slice(c);
        }
        if depth > self.limits.depth {
            return Err(self.bad(format!("a name deeper than {} components", self.limits.depth)));
        }
        Ok(out)
    }

    /// The next header block; none at the end of the archive.
    fn block_or_end(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut b = [0u8; BLOCK];
        let n = self.read_up_to(&mut b)?;
        match n {
            0 if self.require_end => Err(self.truncated()),
            0 => Ok(None),
            BLOCK if b.iter().any(|x| *x != 0) => Ok(Some(b)),
            BLOCK => self.end().map(|()| None),
            _ => Err(self.truncated()),
        }
    }

    /// Behind the first zero block: another, and nothing but zeros.
    fn end(&mut self) -> Result<()> {
        let mut b = [0u8; BLOCK * 16];
        let mut total = 0u64;
        loop {
            let n = self.read_up_to(&mut b)?;
            if b.get(..n).unwrap_or_default().iter().any(|x| *x != 0) {
                return Err(self.bad("more data behind the end of the archive"));
            }
            total += n as u64;
            if n < b.len() {
                break;
            }
        }
        if total < BLOCK as u64 && self.require_end {
            return Err(self.truncated());
        }
        Ok(())
    }

    fn skip_data(&mut self) -> Result<()> {
        let n = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        self.skip(n)
    }

    fn skip(&mut self, mut n: u64) -> Result<()> {
        let mut b = [0u8; 8192];
        while n > 0 {
            let want = usize::try_from(n).unwrap_or(usize::MAX).min(b.len());
            self.read_full(b.get_mut(..want).unwrap_or_default())?;
            n -= want as u64;
        }
        Ok(())
    }

    fn block(&mut self) -> Result<[u8; BLOCK]> {
        let mut b = [0u8; BLOCK];
        self.read_full(&mut b)?;
        Ok(b)
    }

    /// A block of the present entry's data.
    fn data_block(&mut self) -> Result<[u8; BLOCK]> {
        self.left = self
            .left
            .checked_sub(BLOCK as u64)
            .ok_or_else(|| self.bad("a sparse map longer than its entry"))?;
        self.block()
    }

    fn read_full(&mut self, buf: &mut [u8]) -> Result<()> {
        match self.read_up_to(buf)? {
            n if n == buf.len() => Ok(()),
            _ => Err(self.truncated()),
        }
    }

    fn read_up_to(&mut self, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
            match self.read_some(rest)? {
                0 => break,
                n => done += n,
            }
        }
        Ok(done)
    }

    fn read_some(&mut self, buf: &mut [u8]) -> Result<usize> {
        loop {
            match self.inner.read(buf) {
                Ok(n) => {
                    self.offset += n as u64;
                    if self.offset > self.limits.bytes {
                        return Err(self.bad(format!("longer than {} bytes", self.limits.bytes)));
                    }
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.bad(format!("cannot be read: {e}"))),
            }
        }
    }

    fn truncated(&self) -> Error {
        self.bad("truncated")
    }

    fn bad(&self, why: impl Into<String>) -> Error {
        Error::invalid(format!("{} at byte {}", self.what, self.offset), why)
    }
}

struct Raw {
    ext: Option<pax::Extended>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

fn pad(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}
