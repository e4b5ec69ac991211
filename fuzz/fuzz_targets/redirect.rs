//! A redirect that is accepted prints as it was.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plyfs_format::Redirect;

fuzz_target!(|data: &[u8]| {
    if let Ok(redirect) = Redirect::parse(data) {
        assert_eq!(redirect.to_bytes(), data);
    }
});
