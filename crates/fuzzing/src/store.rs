//! The store's readers of layers. A fuzzer seldom finds the checksum of a tar's header, so it is put right here.

use std::fs;
use std::path::Path;

use plyfs_store::fuzzing;

const BLOCK: usize = 512;
/// Where a header keeps its checksum, and how long that is.
const SUM: std::ops::Range<usize> = 148..156;
const FLAGS: &[u8] = b"0123456LKxgS";
/// Components of paths that collide, hide one another, and try to leave.
const PARTS: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b".wh.a",
    b".wh.b",
    b".wh..wh..opq",
    b"..",
    b".",
    b"",
    b".wh.",
    b".wh...",
    b"\xff",
    b".wh..wh.plnk",
];

/// Reads an archive as it is, and once more with right checksums.
pub fn tar(data: &[u8]) {
    fuzzing::tar(data);
    let mut right = data.to_vec();
    right.chunks_exact_mut(BLOCK).filter(|block| block.get(257..262) == Some(b"ustar")).for_each(sum);
    if right != data {
        fuzzing::tar(&right);
    }
}

/// Unpacks the layer that the bytes describe, four an entry, into a directory beside which nothing may change.
pub fn apply(data: &[u8]) {
    // No temporary directory, no test: that is the machine's fault.
    let Ok(outside) = tempfile::tempdir_in(scratch()) else { return };
    let (into, beside) = (outside.path().join("layer"), outside.path().join("a"));
    if fs::create_dir(&into).and_then(|()| fs::write(&beside, "beside")).is_err() {
        return;
    }
    fuzzing::apply(&archive(data), &into);
    assert_eq!(
        fs::read(&beside).ok().as_deref(),
        Some(&b"beside"[..]),
        "a file outside of the layer was changed"
    );
    assert_eq!(
        fs::read_dir(outside.path()).map(Iterator::count).ok(),
        Some(2),
        "something was made outside of the layer"
    );
}

/// In memory, where that is possible.
fn scratch() -> std::path::PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

fn archive(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in data.chunks_exact(4).take(200) {
        if let [flag, name, link, more] = entry {
            out.extend(header(*flag, *name, *link, *more));
        }
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    out
}

fn header(flag: u8, name: u8, link: u8, more: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let flag = FLAGS.get(usize::from(flag) % FLAGS.len()).copied().unwrap_or(b'0');
    let device = if more & 1 == 0 { &b"0000000"[..] } else { b"0000005" };
    let fields: [(usize, &[u8]); 9] = [
        (0, &path(name, more)),
        (100, b"0000755"),
        (108, b"0000000"),
        (116, b"0000000"),
        (124, b"00000000000"),
        (136, b"14000000000"),
        (157, &path(link, more >> 4)),
        (257, b"ustar\x0000"),
        (329, device),
    ];
    for (at, bytes) in fields.into_iter().chain([(156, &[flag][..]), (337, device)]) {
        block.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    }
    sum(&mut block);
    block
}

/// One to three components; `more` says how they begin and end.
fn path(choice: u8, more: u8) -> Vec<u8> {
    let part = |number: usize| PARTS.get(number % PARTS.len()).copied().unwrap_or_default();
    let choice = usize::from(choice);
    let mut path = if more & 2 == 0 { Vec::new() } else { b"/".to_vec() };
    path.extend(part(choice));
    for step in (1..=2).take_while(|step| choice >> (7 - step) & 1 == 1) {
        path.push(b'/');
        path.extend(part(choice / (PARTS.len() * step) + usize::from(more >> 2 & 3)));
    }
    path
}

/// Puts the checksum of a header right.
fn sum(block: &mut [u8]) {
    block.iter_mut().skip(SUM.start).take(SUM.len()).for_each(|byte| *byte = b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let text = format!("{sum:06o}\0 ");
    block.iter_mut().skip(SUM.start).zip(text.bytes()).for_each(|(to, from)| *to = from);
}
