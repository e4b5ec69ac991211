//! A metacopy mark that is accepted survives.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plyfs_format::Metacopy;

fuzz_target!(|data: &[u8]| {
    if let Ok(metacopy) = Metacopy::parse(data) {
        assert_eq!(Metacopy::parse(&metacopy.encode()), Ok(metacopy));
    }
});
