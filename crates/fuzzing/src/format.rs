//! The formats of plyfs-format: what is accepted survives being printed and read again.
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use plyfs_format::origin::{Origin, Parsed};
use plyfs_format::xattr as names;
use plyfs_format::{
    Acl, IdMap, LowerChain, Metacopy, Name, Namespace, Nlink, OciName, Opaque, OverrideStat, Protattr,
    Redirect, RelPath, StackSpec, whiteout_name,
};

/// An access list that is accepted survives; a valid one stays valid.
pub fn acl(data: &[u8]) {
    let Ok(acl) = Acl::parse(data) else { return };
    assert_eq!(Acl::parse(&acl.encode()).as_ref(), Ok(&acl));
    if acl.validate().is_ok() {
        let mode = u32::from(data.last().copied().unwrap_or(0)) << 1;
        assert_eq!(acl.chmod(mode).to_mode(), mode & 0o777);
        let (access, new_mode) = acl.inherit(mode);
        assert_eq!(new_mode & !mode, 0);
        assert!(access.is_none_or(|access| access.validate().is_ok()));
    }
}

/// A metacopy mark that is accepted survives.
pub fn metacopy(data: &[u8]) {
    if let Ok(metacopy) = Metacopy::parse(data) {
        assert_eq!(Metacopy::parse(&metacopy.encode()), Ok(metacopy));
    }
}

/// A path that is accepted is its components joined.
pub fn name(data: &[u8]) {
    if let Ok(path) = RelPath::parse(data) {
        assert_eq!(path.components().fold(RelPath::root(), |path, name| path.join(name)), path);
    }
}

/// A packed file handle that is accepted survives, as a value and as an index name.
pub fn origin(data: &[u8]) {
    if let Ok(Parsed::Known(origin)) = Origin::parse(data) {
        assert_eq!(Origin::parse(&origin.encode()), Ok(Parsed::Known(origin)));
    }
    if let Ok(Parsed::Known(origin)) = Origin::parse_index_name(data)
        && let Ok(name) = origin.index_name()
    {
        assert_eq!(Origin::parse_index_name(name.as_bytes()), Ok(Parsed::Known(origin)));
    }
}

/// A redirect that is accepted prints as it was.
pub fn redirect(data: &[u8]) {
    if let Ok(redirect) = Redirect::parse(data) {
        assert_eq!(redirect.to_bytes(), data);
    }
}

/// The short text formats: what is accepted survives.
pub fn small(data: &[u8]) {
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
}

/// An option string that is accepted survives being printed.
pub fn spec(data: &[u8]) {
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
}

/// A whiteout names what it deletes, and is built from it.
pub fn whiteout(data: &[u8]) {
    let Ok(name) = Name::new(data) else { return };
    if let OciName::Whiteout(target) = OciName::parse(name) {
        assert_eq!(whiteout_name(target).ok().as_ref().map(|built| built.as_bytes()), Some(data));
    }
    if let Ok(built) = whiteout_name(name) {
        assert_eq!(OciName::parse(built.as_name()), OciName::Whiteout(name));
    }
}

/// Escaping hides nothing and loses nothing.
pub fn xattr(data: &[u8]) {
    for namespace in [Namespace::Trusted, Namespace::User] {
        if let Ok(escaped) = names::escape(namespace, data) {
            assert_eq!(names::unescape(namespace, &escaped).as_deref(), Some(data));
        }
        assert_eq!(names::unescape(namespace, data).is_none(), names::is_private(namespace, data));
    }
}
