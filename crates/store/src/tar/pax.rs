//! The records of a pax extended header: `LENGTH KEY=VALUE\n`. Owns their syntax and what each key means
//! for an entry; bounds of size are the reader's.

use super::Time;

/// What extended headers said about the entry that follows.
#[derive(Debug, Default)]
pub struct Extended {
    /// Replaces the name.
    pub path: Option<Vec<u8>>,
    /// Replaces the link's target.
    pub linkpath: Option<Vec<u8>>,
    /// Replaces the length.
    pub size: Option<u64>,
    /// Replaces the owner.
    pub uid: Option<u64>,
    /// Replaces the group.
    pub gid: Option<u64>,
    /// Replaces the time of change.
    pub mtime: Option<Time>,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// GNU's sparse keys.
    pub sparse: SparseKeys,
}

/// `GNU.sparse.*`, formats 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
pub struct SparseKeys {
    /// The real name (0.1, 1.0).
    pub name: Option<Vec<u8>>,
    /// The real size: `size` or `realsize`.
    pub real_size: Option<u64>,
    /// Format 1.0: the map stands before the data.
    pub map_in_data: bool,
    /// The map of 0.0 and 0.1: offsets and lengths in turn.
    pub numbers: Vec<u64>,
    /// Whether any of these keys was seen.
    pub seen: bool,
}

/// One record.
type Record<'a> = (&'a [u8], &'a [u8]);

/// Splits the body of an extended header.
pub fn records(mut body: &[u8]) -> Result<Vec<Record<'_>>, String> {
    let mut out = Vec::new();
    while !body.is_empty() {
        let (record, rest) = record(body).ok_or("malformed record in an extended header")?;
        out.push(record);
        body = rest;
    }
    Ok(out)
}

fn record(body: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = body.iter().take(20).position(|b| *b == b' ')?;
    let len = usize::try_from(decimal(body.get(..space)?)?).ok()?;
    let text = body.get(space + 1..len)?.strip_suffix(b"\n")?;
    let eq = text.iter().position(|b| *b == b'=').filter(|p| *p > 0)?;
    Some(((text.get(..eq)?, text.get(eq + 1..)?), body.get(len..)?))
}

/// Digits alone: no sign, no space.
pub fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |n, b| match b {
        b'0'..=b'9' => n.checked_mul(10)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

/// A decimal fraction of seconds; more than nine places are cut.
pub fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(t) => (true, t),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |b| *b == b'.');
    let secs = i64::try_from(decimal(parts.next()?)?).ok()?;
    let nanos = match parts.next() {
        None | Some(b"") => 0,
        Some(f) if f.iter().all(u8::is_ascii_digit) => {
            let nine: Vec<u8> = f.iter().copied().chain(std::iter::repeat(b'0')).take(9).collect();
            u32::try_from(decimal(&nine)?).ok()?
        }
        Some(_) => return None,
    };
    Some(match (negative, nanos) {
        (false, _) => Time { secs, nanos },
        (true, 0) => Time { secs: -secs, nanos: 0 },
        (true, n) => Time { secs: -secs - 1, nanos: 1_000_000_000 - n },
    })
}

/// Reads the header of one entry (`x`).
pub fn local(body: &[u8], max_segments: usize) -> Result<Extended, String> {
    let mut e = Extended::default();
    for (key, value) in records(body)? {
        apply(&mut e, key, value, max_segments)
            .map_err(|why| format!("extended header {}: {why}", key.escape_ascii()))?;
    }
    Ok(e)
}

fn apply(e: &mut Extended, key: &[u8], value: &[u8], max_segments: usize) -> Result<(), String> {
    let number = || decimal(value).ok_or_else(|| "not a number".to_owned());
    match key {
        b"path" => once(&mut e.path, text(value)?),
        b"linkpath" => once(&mut e.linkpath, text(value)?),
        b"size" => once(&mut e.size, number()?),
        b"uid" => once(&mut e.uid, number()?),
        b"gid" => once(&mut e.gid, number()?),
        b"mtime" => once(&mut e.mtime, time(value).ok_or("not a time")?),
        _ if key.starts_with(b"SCHILY.xattr.") => {
            let name = key.get(b"SCHILY.xattr.".len()..).unwrap_or_default();
            if name.is_empty()
                || name.contains(&0)
                || name.len() > 255
                || e.xattrs.iter().any(|(n, _)| n == name)
            {
                return Err("bad or repeated attribute name".into());
            }
            e.xattrs.push((name.to_vec(), value.to_vec()));
            Ok(())
        }
        _ if key.starts_with(b"GNU.sparse.") => sparse(&mut e.sparse, key, value, max_segments),
        // Times of access and status, user names, comments, vendors' keys: nothing a layer keeps.
        _ => Ok(()),
    }
}

/// A key that decides where or what an entry is may stand once: parsers differ on which of two wins.
fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err("stands twice".into()),
    }
}

fn text(value: &[u8]) -> Result<Vec<u8>, String> {
    if value.contains(&0) { Err("contains a NUL".into()) } else { Ok(value.to_vec()) }
}

fn sparse(s: &mut SparseKeys, key: &[u8], value: &[u8], max: usize) -> Result<(), String> {
    s.seen = true;
    let number = || decimal(value).ok_or_else(|| "not a number".to_owned());
    match key {
        b"GNU.sparse.name" => once(&mut s.name, text(value)?),
        b"GNU.sparse.size" | b"GNU.sparse.realsize" => once(&mut s.real_size, number()?),
        b"GNU.sparse.major" => match number()? {
            0 => Ok(()),
            1 => {
                s.map_in_data = true;
                Ok(())
            }
            _ => Err("unknown version of the sparse format".into()),
        },
        b"GNU.sparse.minor" | b"GNU.sparse.numblocks" => number().map(drop),
        b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => push(s, number()?, max),
        b"GNU.sparse.map" => value
            .split(|b| *b == b',')
            .filter(|v| !v.is_empty())
            .try_for_each(|v| push(s, decimal(v).ok_or("not a number")?, max)),
        _ => Err("unknown sparse key".into()),
    }
}

fn push(s: &mut SparseKeys, n: u64, max: usize) -> Result<(), String> {
    if s.numbers.len() >= max.saturating_mul(2) {
        return Err(format!("more than {max} segments"));
    }
    s.numbers.push(n);
    Ok(())
}

/// Reads a global header (`g`): one that would change entries is refused, since readers differ on whether
/// and for how long it holds; comments and the like are ignored.
pub fn global(body: &[u8]) -> Result<(), String> {
    for (key, _) in records(body)? {
        let harmless = matches!(
            key,
            b"comment" | b"mtime" | b"atime" | b"ctime" | b"charset" | b"hdrcharset" | b"uname" | b"gname"
        );
        if !harmless && !key.contains(&b'.') || key.starts_with(b"GNU.sparse.") || key.starts_with(b"SCHILY.")
        {
            return Err(format!("global header {} would change the entries after it", key.escape_ascii()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_split_by_their_length() {
        assert_eq!(
            records(b"11 path=a=\n13 comment=x\n").unwrap(),
            [(&b"path"[..], &b"a="[..]), (b"comment", b"x")]
        );
        for bad in [&b"0 a=b\n"[..], b"99 a=b\n", b"6 a=b\n7 ", b"+6 a=b\n", b"5 =b\n", b"6 a=bx", b"x"] {
            assert!(records(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn times_have_nanoseconds_and_may_lie_before_the_epoch() {
        assert_eq!(time(b"12.5"), Some(Time { secs: 12, nanos: 500_000_000 }));
        assert_eq!(time(b"1.0123456789"), Some(Time { secs: 1, nanos: 12_345_678 }));
        assert_eq!(time(b"-1.25"), Some(Time { secs: -2, nanos: 750_000_000 }));
        assert_eq!(time(b"-3"), Some(Time { secs: -3, nanos: 0 }));
        for bad in [&b""[..], b".5", b"1.x", b"--1", b"1e3"] {
            assert_eq!(time(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        assert!(local(b"8 size=1\n", 9).is_err(), "a wrong length");
        assert_eq!(local(b"9 size=1\n", 9).unwrap().size, Some(1));
        assert!(local(b"9 size=1\n9 size=2\n", 9).unwrap_err().contains("twice"));
    }

    #[test]
    fn a_global_header_that_moves_entries_is_refused() {
        assert!(global(b"13 comment=x\n").is_ok());
        assert!(global(b"10 path=a\n").is_err());
        assert!(global(b"9 size=1\n").is_err());
        assert!(global(b"20 SCHILY.xattr.a=b\n").is_err());
    }
}
