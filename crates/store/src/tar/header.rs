//! The fields of one 512-byte header. Owns their positions and number formats; reads nothing else.

use super::BLOCK;

/// A header whose checksum is right.
pub struct Header<'a>(&'a [u8; BLOCK]);

/// Which dialect a header is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// POSIX: `ustar\0`, with a name prefix.
    Ustar,
    /// GNU: `ustar  \0`, without a prefix.
    Gnu,
    /// Before both: no magic, no device numbers.
    V7,
}

impl<'a> Header<'a> {
    /// Checks the checksum.
    pub fn new(block: &'a [u8; BLOCK]) -> Result<Header<'a>, String> {
        let h = Header(block);
        let want = h.number(148, 8, "checksum")?;
        let sum = |signed: bool| -> i64 {
            let byte = |(i, b): (usize, &u8)| match i {
                148..156 => i64::from(b' '),
                _ if signed => i64::from(b.cast_signed()),
                _ => i64::from(*b),
            };
            block.iter().enumerate().map(byte).sum()
        };
        // Old tars summed signed bytes.
        if sum(false) != want && sum(true) != want {
            return Err(format!("header checksum is {}, the header says {want}", sum(false)));
        }
        Ok(h)
    }

    /// The dialect, from the magic.
    pub fn dialect(&self) -> Dialect {
        match self.bytes(257, 8) {
            [b'u', b's', b't', b'a', b'r', 0, ..] => Dialect::Ustar,
            b"ustar  \0" => Dialect::Gnu,
            _ => Dialect::V7,
        }
    }

    /// The type flag.
    pub fn flag(&self) -> u8 {
        self.bytes(156, 1).first().copied().unwrap_or(0)
    }

    /// The name, with the prefix where the dialect has one.
    pub fn name(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        let prefix = if self.dialect() == Dialect::Ustar { self.text(345, 155) } else { &[] };
        match prefix {
            [] => name.to_vec(),
            p => [p, b"/", name].concat(),
        }
    }

    /// The link's target.
    pub fn link(&self) -> Vec<u8> {
        self.text(157, 100).to_vec()
    }

    /// Permission bits.
    pub fn mode(&self) -> Result<u32, String> {
        Ok((self.number(100, 8, "mode")? & 0o7777) as u32)
    }

    /// Owner.
    pub fn uid(&self) -> Result<u64, String> {
        self.unsigned(108, 8, "uid")
    }

    /// Group.
    pub fn gid(&self) -> Result<u64, String> {
        self.unsigned(116, 8, "gid")
    }

    /// Length of the data that follows.
    pub fn size(&self) -> Result<u64, String> {
        self.unsigned(124, 12, "size")
    }

    /// Seconds of the last change.
    pub fn mtime(&self) -> Result<i64, String> {
        self.number(136, 12, "mtime")
    }

    /// Device numbers: major, minor.
    pub fn device(&self) -> Result<(u32, u32), String> {
        if self.dialect() == Dialect::V7 {
            return Ok((0, 0));
        }
        let half = |at, what| -> Result<u32, String> {
            u32::try_from(self.number(at, 8, what)?).map_err(|_| format!("{what} is out of range"))
        };
        Ok((half(329, "device major")?, half(337, "device minor")?))
    }

    /// Any field as raw bytes; empty if it were outside the header.
    pub fn bytes(&self, at: usize, len: usize) -> &'a [u8] {
        self.0.get(at..at + len).unwrap_or_default()
    }

    fn text(&self, at: usize, len: usize) -> &'a [u8] {
        self.bytes(at, len).split(|b| *b == 0).next().unwrap_or_default()
    }

    /// A number field that cannot be negative.
    pub fn unsigned(&self, at: usize, len: usize, what: &str) -> Result<u64, String> {
        u64::try_from(self.number(at, len, what)?).map_err(|_| format!("{what} is negative"))
    }

    fn number(&self, at: usize, len: usize, what: &str) -> Result<i64, String> {
        number(self.bytes(at, len)).ok_or_else(|| format!("{what} is not a number"))
    }
}

/// Octal digits, padded with spaces and NULs; or GNU's base 256 with the top bit set.
pub fn number(field: &[u8]) -> Option<i64> {
    match field {
        [first, rest @ ..] if first & 0x80 != 0 => base256(*first, rest),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let pad = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| *b != b' ').unwrap_or(field.len());
    let digits = field.get(start..)?;
    let end = digits.iter().position(pad).unwrap_or(digits.len());
    // Anything behind the padding would be read by one parser and not by another.
    if !digits.get(end..)?.iter().all(pad) {
        return None;
    }
    digits.get(..end)?.iter().try_fold(0i64, |n, b| match b {
        b'0'..=b'7' => n.checked_mul(8)?.checked_add(i64::from(b - b'0')),
        _ => None,
    })
}

fn base256(first: u8, rest: &[u8]) -> Option<i64> {
    let negative = first & 0x40 != 0;
    let start = i64::from(first & 0x3f) - if negative { 64 } else { 0 };
    rest.iter().try_fold(start, |n, b| n.checked_mul(256)?.checked_add(i64::from(*b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_octal_and_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"    644 "), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"77777777"), Some(0o77777777));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
    }

    #[test]
    fn fields_that_parsers_read_differently_are_not_numbers() {
        for f in [&b"0000648\0"[..], b"64\x0044\0", b"-1      ", b"0x1ff\0\0", b"6 4     "] {
            assert_eq!(number(f), None, "{}", f.escape_ascii());
        }
        let mut huge = [0xffu8; 12];
        huge[0] = 0xbf;
        assert_eq!(number(&huge), None);
    }
}
