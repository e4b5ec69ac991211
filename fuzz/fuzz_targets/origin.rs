//! A packed file handle that is accepted survives, as a value and as an index name.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plyfs_format::origin::{Origin, Parsed};

fuzz_target!(|data: &[u8]| {
    if let Ok(Parsed::Known(origin)) = Origin::parse(data) {
        assert_eq!(Origin::parse(&origin.encode()), Ok(Parsed::Known(origin)));
    }
    if let Ok(Parsed::Known(origin)) = Origin::parse_index_name(data)
        && let Ok(name) = origin.index_name()
    {
        assert_eq!(Origin::parse_index_name(name.as_bytes()), Ok(Parsed::Known(origin)));
    }
});
