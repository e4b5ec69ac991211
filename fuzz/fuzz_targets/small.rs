//! The short text formats: what is accepted survives.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plyfs_format::{IdMap, LowerChain, Nlink, Opaque, OverrideStat, Protattr};

fuzz_target!(|data: &[u8]| {
    assert!(Opaque::parse(data).to_bytes().is_none_or(|value| value == data));
    if let Ok(nlink) = Nlink::parse(data) {
        assert_eq!(Nlink::parse(&nlink.to_bytes()), Ok(nlink));
    }
    if let Ok(flags) = Protattr::parse(data) {
        assert_eq!(flags.to_bytes().map(Protattr::parse), Some(Ok(flags)));
    }
    if let Ok(stat) = OverrideStat::parse(data) {
        assert_eq!(OverrideStat::parse(&stat.to_bytes()), Ok(stat));
    }
    if let Ok(map) = IdMap::parse(data) {
        assert_eq!(IdMap::parse(map.to_string().as_bytes()), Ok(map));
    }
    if let Ok(chain) = LowerChain::parse(data) {
        assert_eq!(chain.to_string().as_bytes(), data);
    }
});
