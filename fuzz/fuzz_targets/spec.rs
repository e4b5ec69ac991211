//! An option string that is accepted survives being printed.

#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;
use plyfs_format::StackSpec;

fuzz_target!(|data: &[u8]| {
    if let Ok(parsed) = StackSpec::parse(&[OsStr::from_bytes(data)]) {
        let printed = parsed.spec.to_option_string();
        let again = StackSpec::parse(&[&printed]).map(|parsed| parsed.spec);
        assert_eq!(again.as_ref(), Ok(&parsed.spec), "{printed:?}");
        for privileged in [false, true] {
            if let Ok(effective) = parsed.spec.effective(privileged) {
                assert!(!(effective.metacopy && effective.nfs_export));
            }
        }
    }
});
