//! A small engine of mutations, for compilers without libFuzzer: it follows no coverage, so it needs good seeds.

use fastrand::Rng;

/// What readers look for.
const WORDS: &[&[u8]] = &[
    b"/",
    b"..",
    b".wh.",
    b".wh..wh..opq",
    b"\0",
    b"\\",
    b":",
    b",",
    b"=",
    b"::",
    b"%41",
    b"\"",
    b"{}",
    b"[]",
    b"-1",
    b"18446744073709551615",
    b"\xff",
    b"trusted.overlay.",
    b"user.overlay.",
    b"sha256:",
    b"path=",
    b"size=",
    b"GNU.sparse.",
];
/// No input grows beyond this.
const LONGEST: usize = 1 << 16;

/// Changes `data` in one to four places; a piece of `other` may be taken in.
pub fn mutate(data: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    for _ in 0..rng.usize(1..=4) {
        let at = rng.usize(0..=data.len());
        match rng.u8(0..7) {
            0 => drop(data.get_mut(at).map(|byte| *byte ^= 1 << rng.u8(0..8))),
            1 => drop(data.get_mut(at).map(|byte| *byte = rng.u8(..))),
            2 => data.truncate(at),
            3 => {
                let end = rng.usize(at..=data.len());
                data.drain(at..end.min(at + 16));
            }
            4 => {
                let word = rng.choice(WORDS).copied().unwrap_or_default();
                data.splice(at..at, word.iter().copied());
            }
            5 => {
                let from = rng.usize(0..=other.len());
                let piece = other.get(from..(from + 64).min(other.len())).unwrap_or_default();
                data.splice(at..at, piece.iter().copied());
            }
            _ => {
                let end = rng.usize(at..=data.len()).min(at + 64);
                let piece: Vec<u8> = data.get(at..end).unwrap_or_default().to_vec();
                data.splice(at..at, piece);
            }
        }
    }
    data.truncate(LONGEST);
}
