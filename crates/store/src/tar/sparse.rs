//! Sparse maps: which parts of a file have data. Owns their validation; reading them off the archive in
//! the old GNU form and in pax 1.0 is done with the closures given.

use super::BLOCK;
use super::header::Header;
use super::header::number;
use super::pax::decimal;

/// Offset and length of the parts with data.
pub type Map = Vec<(u64, u64)>;

/// Checks that a map ascends, ends within the file, and describes exactly `stored` bytes.
pub fn check(map: Map, real_size: u64, stored: u64) -> Result<Map, String> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for (offset, len) in &map {
        if *offset < end {
            return Err("the segments of a sparse file overlap or are out of order".into());
        }
        end = offset.checked_add(*len).ok_or("a segment of a sparse file overflows")?;
        sum = sum.checked_add(*len).ok_or("the segments of a sparse file overflow")?;
    }
    if end > real_size {
        return Err("a segment lies beyond the end of its sparse file".into());
    }
    if sum != stored {
        return Err(format!("a sparse file's segments hold {sum} bytes, the archive {stored}"));
    }
    Ok(map.into_iter().filter(|(_, len)| *len > 0).collect())
}

/// Pairs up the numbers of formats 0.0 and 0.1.
pub fn pairs(numbers: &[u64]) -> Result<Map, String> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("a sparse map ends in half a segment".into());
    }
    Ok(pairs.iter().map(|[a, b]| (*a, *b)).collect())
}

/// The old GNU form: four segments in the header, then 21 in each block that follows.
pub fn old_gnu(
    h: &Header<'_>,
    max: usize,
    mut next_block: impl FnMut() -> Result<[u8; BLOCK], crate::Error>,
    bad: impl Fn(String) -> crate::Error,
) -> Result<(Map, u64), crate::Error> {
    let mut map = Map::new();
    add(&mut map, h.bytes(386, 96), max).map_err(&bad)?;
    let real = h.unsigned(483, 12, "real size").map_err(&bad)?;
    let mut more = h.bytes(482, 1) != [0];
    while more {
        let block = next_block()?;
        add(&mut map, block.get(..504).unwrap_or_default(), max).map_err(&bad)?;
        more = block.get(504).is_some_and(|b| *b != 0);
    }
    Ok((map, real))
}

fn add(map: &mut Map, fields: &[u8], max: usize) -> Result<(), String> {
    for pair in fields.chunks_exact(24) {
        let (a, b) = pair.split_at(12);
        if a.iter().chain(b).all(|x| *x == 0) {
            break;
        }
        let n = |f| number(f).and_then(|n| u64::try_from(n).ok()).ok_or("a sparse map holds no number");
        if map.len() >= max {
            return Err(format!("more than {max} segments"));
        }
        map.push((n(a)?, n(b)?));
    }
    Ok(())
}

/// Pax 1.0: a decimal count, then offsets and lengths, one a line, padded to a block. Returns the map and
/// how many bytes of the entry's data it took.
pub fn in_data(
    max: usize,
    mut next_block: impl FnMut() -> Result<[u8; BLOCK], crate::Error>,
    bad: impl Fn(String) -> crate::Error,
) -> Result<(Map, u64), crate::Error> {
    let mut numbers: Vec<u64> = Vec::new();
    let mut line: Vec<u8> = Vec::new();
    let mut taken = 0u64;
    let mut wanted: Option<usize> = None;
    loop {
        let block = next_block()?;
        taken += BLOCK as u64;
        for b in block {
            if b != b'\n' {
                line.push(b);
                if line.len() > 20 {
                    return Err(bad("a line of a sparse map is too long".into()));
                }
                continue;
            }
            let n = decimal(&line).ok_or_else(|| bad("a sparse map holds no number".into()))?;
            line.clear();
            match wanted {
                None if n > max as u64 => return Err(bad(format!("more than {max} segments"))),
                None => wanted = Some(n as usize * 2),
                Some(_) => numbers.push(n),
            }
            if wanted == Some(numbers.len()) {
                return Ok((pairs(&numbers).map_err(&bad)?, taken));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_that_overlap_overflow_or_lie_about_their_size_are_refused() {
        assert!(check(vec![(0, 5), (4, 5)], 100, 10).is_err());
        assert!(check(vec![(5, 5), (0, 5)], 100, 10).is_err());
        assert!(check(vec![(u64::MAX, 2)], 100, 2).is_err());
        assert!(check(vec![(99, 2)], 100, 2).is_err());
        assert!(check(vec![(0, 5)], 100, 6).is_err());
        assert_eq!(check(vec![(0, 5), (10, 0)], 10, 5).unwrap(), [(0, 5)]);
    }
}
