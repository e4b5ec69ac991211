//! A path that is accepted is its components joined.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plyfs_format::RelPath;

fuzz_target!(|data: &[u8]| {
    if let Ok(path) = RelPath::parse(data) {
        assert_eq!(path.components().fold(RelPath::root(), |path, name| path.join(name)), path);
    }
});
