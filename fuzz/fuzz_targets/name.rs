//! See `plyfs_fuzzing::TARGETS`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| plyfs_fuzzing::run("name", data));
