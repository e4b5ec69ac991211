//! Escaping hides nothing and loses nothing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plyfs_format::{Namespace, xattr};

fuzz_target!(|data: &[u8]| {
    for namespace in [Namespace::Trusted, Namespace::User] {
        if let Ok(escaped) = xattr::escape(namespace, data) {
            assert_eq!(xattr::unescape(namespace, &escaped).as_deref(), Some(data));
        }
        assert_eq!(xattr::unescape(namespace, data).is_none(), xattr::is_private(namespace, data));
    }
});
