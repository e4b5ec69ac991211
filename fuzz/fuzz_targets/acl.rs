//! An access list that is accepted survives; a valid one stays valid.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plyfs_format::Acl;

fuzz_target!(|data: &[u8]| {
    let Ok(acl) = Acl::parse(data) else { return };
    assert_eq!(Acl::parse(&acl.encode()).as_ref(), Ok(&acl));
    if acl.validate().is_ok() {
        let mode = u32::from(data.last().copied().unwrap_or(0)) << 1;
        assert_eq!(acl.chmod(mode).to_mode(), mode & 0o777);
        let (access, new_mode) = acl.inherit(mode);
        assert_eq!(new_mode & !mode, 0);
        assert!(access.is_none_or(|access| access.validate().is_ok()));
    }
});
