//! Writes tar archives: ustar headers, and pax records where ustar is too small. The same entries give the
//! same bytes: no time of access, no user name, records in one order.

use std::io::{self, Write};

use super::{BLOCK, Entry, Kind, Time};

/// Writes entries to an uncompressed archive.
pub struct Writer<W> {
    out: W,
    left: u64,
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Writer<W> {
        Writer { out, left: 0, padding: 0 }
    }

    /// Writes an entry's headers. For a file, exactly the bytes of its segments (or of all of it) are
    /// to follow through [`Writer::data`].
    pub fn entry(&mut self, e: &Entry) -> io::Result<()> {
        self.end_data()?;
        let mut records = records(e);
        let map = e.sparse.as_deref().filter(|_| e.kind == Kind::File).map(sparse_map);
        let stored = match (&e.sparse, &map) {
            (Some(s), Some(m)) => m.len() as u64 + s.iter().map(|(_, n)| n).sum::<u64>(),
            _ if e.kind == Kind::File => e.size,
            _ => 0,
        };
        let mut name = full_name(e);
        if map.is_some() {
            records.push((b"GNU.sparse.major".to_vec(), b"1".to_vec()));
            records.push((b"GNU.sparse.minor".to_vec(), b"0".to_vec()));
            records.push((b"GNU.sparse.name".to_vec(), name.clone()));
            records.push((b"GNU.sparse.realsize".to_vec(), e.size.to_string().into_bytes()));
            name = [b"GNUSparseFile.0/", base(&name)].concat();
        }
        let link = match &e.kind {
            Kind::Hardlink(t) | Kind::Symlink(t) => t.clone(),
            _ => Vec::new(),
        };
        let name = fit(name, "path", &mut records);
        let link = fit(link, "linkpath", &mut records);
        if stored >= 1 << 33 {
            records.push((b"size".to_vec(), stored.to_string().into_bytes()));
        }
        if !records.is_empty() {
            self.extended(records)?;
        }
        self.out.write_all(&header(&name, &link, e, flag(&e.kind), stored))?;
        self.left = stored;
        self.padding = pad(stored);
        match map {
            Some(m) => self.data(&m),
            None => Ok(()),
        }
    }

    /// Writes data of the present file.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.left = self
            .left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| io::Error::other("more data than the entry's header promised"))?;
        self.out.write_all(bytes)
    }

    /// Writes the end of the archive and gives the stream back.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_data()?;
        self.out.write_all(&[0; BLOCK * 2])?;
        Ok(self.out)
    }

    fn end_data(&mut self) -> io::Result<()> {
        if self.left != 0 {
            return Err(io::Error::other("less data than the entry's header promised"));
        }
        let zeros = [0u8; BLOCK];
        self.out.write_all(zeros.get(..std::mem::take(&mut self.padding)).unwrap_or_default())
    }

    fn extended(&mut self, mut records: Vec<(Vec<u8>, Vec<u8>)>) -> io::Result<()> {
        records.sort();
        let body: Vec<u8> = records.iter().flat_map(|(k, v)| record(k, v)).collect();
        let head = Entry {
            path: Vec::new(),
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size: body.len() as u64,
            xattrs: Vec::new(),
            sparse: None,
        };
        self.out.write_all(&header(b"PaxHeaders.0/x", b"", &head, b'x', head.size))?;
        self.out.write_all(&body)?;
        self.padding = pad(head.size);
        self.end_data()
    }
}

fn flag(kind: &Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::Hardlink(_) => b'1',
        Kind::Symlink(_) => b'2',
        Kind::Char(..) => b'3',
        Kind::Block(..) => b'4',
        Kind::Dir => b'5',
        Kind::Fifo => b'6',
    }
}

/// Directories end in a slash, as every tar writes them.
fn full_name(e: &Entry) -> Vec<u8> {
    let path: &[u8] = if e.path.is_empty() { b"." } else { &e.path };
    if e.kind == Kind::Dir { [path, b"/"].concat() } else { path.to_vec() }
}

fn base(name: &[u8]) -> &[u8] {
    name.rsplit(|b| *b == b'/').next().unwrap_or(name)
}

/// What ustar cannot say about owner, time and attributes.
fn records(e: &Entry) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut r: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    if e.mtime.nanos != 0 || e.mtime.secs < 0 || e.mtime.secs >= 1 << 33 {
        r.push((b"mtime".to_vec(), time(e.mtime).into_bytes()));
    }
    for (key, id) in [("uid", e.uid), ("gid", e.gid)] {
        if id > 0o7777777 {
            r.push((key.into(), id.to_string().into_bytes()));
        }
    }
    let xattr = |(n, v): &(Vec<u8>, Vec<u8>)| ([b"SCHILY.xattr.", &n[..]].concat(), v.clone());
    r.extend(e.xattrs.iter().map(xattr));
    r
}

fn time(t: Time) -> String {
    let (sign, secs, nanos) = match (t.secs < 0, t.nanos) {
        (true, 0) => ("-", t.secs.unsigned_abs(), 0),
        (true, n) => ("-", t.secs.unsigned_abs() - 1, 1_000_000_000 - n),
        (false, n) => ("", t.secs.unsigned_abs(), n),
    };
    let text = format!("{sign}{secs}.{nanos:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A name that ustar's 100 bytes hold, else the start of it and a pax record.
fn fit(name: Vec<u8>, key: &str, records: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Vec<u8> {
    if name.len() <= 100 && name.is_ascii() {
        return name;
    }
    let short = name.iter().take(100).copied().collect();
    records.push((key.into(), name));
    short
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut len = body + digits(body);
    if digits(len) > digits(body) {
        len += 1;
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn digits(n: usize) -> usize {
    n.to_string().len()
}

/// The map of pax format 1.0, padded to a block.
fn sparse_map(map: &[(u64, u64)]) -> Vec<u8> {
    let mut text = format!("{}\n", map.len());
    for (offset, len) in map {
        text.push_str(&format!("{offset}\n{len}\n"));
    }
    let mut v = text.into_bytes();
    v.resize(v.len().next_multiple_of(BLOCK), 0);
    v
}

fn header(name: &[u8], link: &[u8], e: &Entry, flag: u8, size: u64) -> [u8; BLOCK] {
    let mut b = [0u8; BLOCK];
    put(&mut b, 0, name);
    octal(&mut b, 100, 7, u64::from(e.mode & 0o7777));
    octal(&mut b, 108, 7, u64::from(e.uid).min(0o7777777));
    octal(&mut b, 116, 7, u64::from(e.gid).min(0o7777777));
    octal(&mut b, 124, 11, if size >= 1 << 33 { 0 } else { size });
    octal(&mut b, 136, 11, u64::try_from(e.mtime.secs).unwrap_or(0).min((1 << 33) - 1));
    put(&mut b, 148, b"        ");
    put(&mut b, 156, &[flag]);
    put(&mut b, 157, link);
    put(&mut b, 257, b"ustar\x0000");
    if let Kind::Char(major, minor) | Kind::Block(major, minor) = e.kind {
        octal(&mut b, 329, 7, u64::from(major));
        octal(&mut b, 337, 7, u64::from(minor));
    }
    let sum: u64 = b.iter().map(|x| u64::from(*x)).sum();
    octal(&mut b, 148, 6, sum);
    put(&mut b, 154, b"\0 ");
    b
}

fn put(b: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    if let Some(field) = b.get_mut(at..at + bytes.len()) {
        field.copy_from_slice(bytes);
    }
}

fn octal(b: &mut [u8; BLOCK], at: usize, digits: usize, n: u64) {
    put(b, at, format!("{n:0digits$o}").as_bytes());
}

fn pad(size: u64) -> usize {
    (size.next_multiple_of(BLOCK as u64) - size) as usize
}
