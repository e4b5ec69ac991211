//! A whiteout names what it deletes, and is built from it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plyfs_format::{Name, OciName, whiteout_name};

fuzz_target!(|data: &[u8]| {
    let Ok(name) = Name::new(data) else { return };
    if let OciName::Whiteout(target) = OciName::parse(name) {
        assert_eq!(whiteout_name(target).ok().as_ref().map(|built| built.as_bytes()), Some(data));
    }
    if let Ok(built) = whiteout_name(name) {
        assert_eq!(OciName::parse(built.as_name()), OciName::Whiteout(name));
    }
});
