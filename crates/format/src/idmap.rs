//! The mapping of user or group ids between a layer's disk and the mount.
//!
//! Owns the text of fuse-overlayfs's `uidmapping=` and `gidmapping=`: triples `DISK:SHOWN:LENGTH` joined by `:`. The
//! kernel's overlayfs has no counterpart; `/proc/PID/uid_map` is the nearest.

use std::fmt;

/// One range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdRange {
    /// First id on the layers' disk.
    pub disk: u32,
    /// First id that the mount shows for it.
    pub shown: u32,
    /// How many ids follow one another; at least one.
    pub length: u32,
}

/// A list of ranges that overlap neither on disk nor in the mount.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdMap {
    ranges: Vec<IdRange>,
}

/// Why a text is no mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdMapError {
    /// Not a multiple of three fields.
    #[error("a mapping is groups of three numbers DISK:SHOWN:LENGTH, but there are {0} fields")]
    Fields(usize),
    /// A field that is no number of 32 bits.
    #[error("field {0} of the mapping is not a number from 0 to 4294967295")]
    Number(usize),
    /// A range of no ids, or one beyond the last id.
    #[error("range {0} of the mapping is empty or ends beyond 4294967295")]
    Range(usize),
    /// Two ranges share an id.
    #[error("range {0} of the mapping overlaps an earlier one")]
    Overlap(usize),
}

impl IdMap {
    /// Reads an option's value. One `:` before it is passed over: containers/storage (podman, buildah) always puts it
    /// there, and fuse-overlayfs does not mind.
    pub fn parse(text: &[u8]) -> Result<Self, IdMapError> {
        let numbers = text
            .strip_prefix(b":")
            .unwrap_or(text)
            .split(|byte| *byte == b':')
            .enumerate()
            .map(|(at, field)| number(field).ok_or(IdMapError::Number(at + 1)))
            .collect::<Result<Vec<u32>, _>>()?;
        let (triples, rest) = numbers.as_chunks::<3>();
        if !rest.is_empty() {
            return Err(IdMapError::Fields(numbers.len()));
        }
        Self::new(triples.iter().map(|&[disk, shown, length]| IdRange { disk, shown, length }).collect())
    }

    /// A mapping of these ranges; empty and overlapping ones are refused.
    pub fn new(ranges: Vec<IdRange>) -> Result<Self, IdMapError> {
        for (at, range) in ranges.iter().enumerate() {
            if !range.is_valid() {
                return Err(IdMapError::Range(at + 1));
            }
            if ranges.iter().take(at).any(|earlier| range.overlaps(earlier)) {
                return Err(IdMapError::Overlap(at + 1));
            }
        }
        Ok(Self { ranges })
    }

    /// The ranges, in the order given.
    #[must_use]
    pub fn ranges(&self) -> &[IdRange] {
        &self.ranges
    }

    /// The id that the mount shows for an id on disk; `None` if it is not mapped.
    #[must_use]
    pub fn to_shown(&self, disk: u32) -> Option<u32> {
        self.ranges.iter().find_map(|range| translate(disk, range.disk, range.shown, range.length))
    }

    /// The id on disk for one that a caller of the mount uses; `None` if it is not mapped (the kernel's EOVERFLOW).
    #[must_use]
    pub fn to_disk(&self, shown: u32) -> Option<u32> {
        self.ranges.iter().find_map(|range| translate(shown, range.shown, range.disk, range.length))
    }
}

fn translate(id: u32, from: u32, to: u32, length: u32) -> Option<u32> {
    let offset = id.checked_sub(from).filter(|offset| *offset < length)?;
    to.checked_add(offset)
}

impl IdRange {
    fn is_valid(&self) -> bool {
        let last = |first: u32| first.checked_add(self.length.wrapping_sub(1));
        self.length > 0 && last(self.disk).is_some() && last(self.shown).is_some()
    }

    fn overlaps(&self, other: &Self) -> bool {
        let meet = |mine: u32, its: u32| {
            u64::from(mine) < u64::from(its) + u64::from(other.length)
                && u64::from(its) < u64::from(mine) + u64::from(self.length)
        };
        meet(self.disk, other.disk) || meet(self.shown, other.shown)
    }
}

impl fmt::Display for IdMap {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.ranges.iter().enumerate() {
            let separator = if at == 0 { "" } else { ":" };
            write!(out, "{separator}{}:{}:{}", range.disk, range.shown, range.length)?;
        }
        Ok(())
    }
}

/// Digits only: `str::parse` would also take a sign.
fn number(field: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(field).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podmans_mapping_maps_both_ways() {
        let map = IdMap::parse(b"0:1000:1:1:110000:65536").unwrap();
        for (disk, shown) in [(0, 1000), (1, 110_000), (65_536, 175_535)] {
            assert_eq!(map.to_shown(disk), Some(shown));
            assert_eq!(map.to_disk(shown), Some(disk));
        }
        assert_eq!(map.to_shown(65_537), None);
        assert_eq!(map.to_disk(0), None);
        assert_eq!(map.to_string(), "0:1000:1:1:110000:65536");
    }

    #[test]
    fn the_colon_that_containers_storage_puts_first_is_passed_over() {
        assert_eq!(IdMap::parse(b":0:200000:65536"), IdMap::parse(b"0:200000:65536"));
    }

    #[test]
    fn malformed_mappings_are_refused() {
        for (text, expected) in [
            ("", IdMapError::Number(1)),
            ("::0:200000:65536", IdMapError::Number(1)),
            (":", IdMapError::Number(1)),
            ("0:1", IdMapError::Fields(2)),
            ("0:1:1:", IdMapError::Number(4)),
            ("0:1:1:5", IdMapError::Fields(4)),
            ("0:-1:1", IdMapError::Number(2)),
            ("0:1:0", IdMapError::Range(1)),
            ("4294967295:0:2", IdMapError::Range(1)),
            ("0:100:10:10:105:10", IdMapError::Overlap(2)),
            ("0:100:10:9:200:10", IdMapError::Overlap(2)),
        ] {
            assert_eq!(IdMap::parse(text.as_bytes()), Err(expected), "{text}");
        }
        assert!(IdMap::parse(b"0:0:4294967295").is_ok());
    }
}
