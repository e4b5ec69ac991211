//! The store's reader of a stranger's reference: see plyfs_store::fuzzing.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| plyfs_store::fuzzing::reference(data));
