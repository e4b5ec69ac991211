//! Every parser on arbitrary bytes: none panics, and what one accepts survives being printed and read again.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy's exemption does not reach helpers"
)]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use plyfs_format::acl::{Acl, AclEntry, AclTag};
use plyfs_format::origin::Parsed as ParsedOrigin;
use plyfs_format::spec::{
    Atime, MountFlags, RedirectDir, SecurityContexts, UuidMode, Verity, XattrPermissions, Xino,
};
use plyfs_format::{
    ChainId, DiffId, Digest, FileHandle, IdMap, LinkId, LowerChain, Metacopy, MetacopyDigest, Name,
    Namespace, Nlink, NlinkBase, OciName, Options, Origin, OverrideKind, OverrideStat, Protattr, Redirect,
    RelPath, StackSpec, UpperSpec, whiteout_name, xattr,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn bytes(up_to: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..up_to)
}

/// Bytes that come near a grammar made of these pieces.
fn near(pieces: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => proptest::sample::select(pieces).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => bytes(4),
    ];
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 1..40).prop_filter("a valid name", |bytes| Name::new(bytes).is_ok())
}

fn path() -> impl Strategy<Value = PathBuf> {
    let special = proptest::sample::select(&b":,\\/\""[..]);
    vec(prop_oneof![1 => special, 3 => 1_u8..], 1..20)
        .prop_map(|bytes| PathBuf::from(OsString::from_vec(bytes)))
}

proptest! {
    #[test]
    fn a_path_is_its_components_joined(value in near(&["a", "/", "..", ".", "bc", "\u{e9}"])) {
        if let Ok(path) = RelPath::parse(&value) {
            prop_assert_eq!(path.as_bytes(), &value[..]);
            let joined = path.components().fold(RelPath::root(), |path, name| path.join(name));
            prop_assert_eq!(&joined, &path);
            if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
                prop_assert_eq!(parent.join(name), path);
            }
        }
    }

    #[test]
    fn escaped_attribute_names_are_never_private_and_unescape_to_what_they_were(
        name in near(&["trusted.", "user.", "overlay.", "opaque", "x"]),
        trusted: bool,
    ) {
        let namespace = if trusted { Namespace::Trusted } else { Namespace::User };
        if let Ok(escaped) = xattr::escape(namespace, &name) {
            prop_assert!(!xattr::is_private(namespace, &escaped));
            let unescaped = xattr::unescape(namespace, &escaped);
            prop_assert_eq!(unescaped.as_deref(), Some(&name[..]));
        }
        prop_assert_eq!(xattr::is_private(namespace, &name), xattr::unescape(namespace, &name).is_none());
    }

    #[test]
    fn redirects_survive(value in near(&["/", "a", "..", "dir", "\0"])) {
        if let Ok(redirect) = Redirect::parse(&value) {
            prop_assert_eq!(redirect.to_bytes(), value);
        }
    }

    #[test]
    fn arbitrary_file_handles_never_panic_and_known_ones_survive(value in bytes(200), cut in any::<bool>()) {
        let mut value = value;
        if let [version, magic, length, flags, ..] = &mut value[..] {
            (*version, *magic, *flags) = (0, 0xfb, *flags & 7);
            if cut { *length %= 64; }
        }
        if let Ok(ParsedOrigin::Known(origin)) = Origin::parse(&value) {
            let encoded = origin.encode();
            prop_assert!(value.starts_with(&encoded));
            prop_assert_eq!(Origin::parse(&encoded), Ok(ParsedOrigin::Known(origin)));
        }
    }

    #[test]
    fn file_handles_survive_in_values_and_in_index_names(
        kind: u8, uuid: [u8; 16], handle in bytes(100), upper: bool,
    ) {
        let handle = FileHandle::new(kind, &handle).unwrap();
        let origin = if upper { Origin::new_upper(uuid, handle) } else { Origin::new(uuid, handle) };
        prop_assert_eq!(Origin::parse(&origin.encode()), Ok(ParsedOrigin::Known(origin.clone())));
        let name = origin.index_name().unwrap();
        prop_assert_eq!(Origin::parse_index_name(name.as_bytes()), Ok(ParsedOrigin::Known(origin)));
    }

    #[test]
    fn arbitrary_index_names_never_panic(name in near(&["00fb", "1d", "0", "ff", "#", "A"])) {
        if let Ok(ParsedOrigin::Known(origin)) = Origin::parse_index_name(&name) {
            let printed = origin.index_name();
            prop_assert!(printed.is_err() || name.starts_with(printed.unwrap().as_bytes()));
        }
    }

    #[test]
    fn metacopy_marks_survive(algorithm in 0_u8..4, flags: u8, digest in bytes(70), stated in option::of(any::<u8>())) {
        let length = u8::try_from(digest.len() + 4).unwrap();
        let value = [&[0, stated.unwrap_or(length), flags, algorithm][..], &digest].concat();
        if let Ok(metacopy) = Metacopy::parse(&value) {
            prop_assert_eq!(Metacopy::parse(&metacopy.encode()), Ok(metacopy.clone()));
            if metacopy != Metacopy::default() {
                prop_assert_eq!(metacopy.encode(), value);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic_any_attribute_parser(value in bytes(80)) {
        let metacopy = Metacopy::parse(&value);
        prop_assert!(metacopy.is_ok() || !value.is_empty());
        if let Ok(acl) = Acl::parse(&value) { prop_assert_eq!(acl.encode().len(), value.len()); }
        if let Ok(nlink) = Nlink::parse(&value) { prop_assert!(value.len() <= 1 + nlink.to_bytes().len() + 80); }
        if let Ok(stat) = OverrideStat::parse(&value) { prop_assert!(stat.mode <= 0o7777); }
        if let Ok(flags) = Protattr::parse(&value) { prop_assert!(!flags.is_empty()); }
    }

    #[test]
    fn link_counts_survive(difference: i32, upper: bool) {
        let nlink = Nlink { base: if upper { NlinkBase::Upper } else { NlinkBase::Lower }, difference };
        prop_assert_eq!(Nlink::parse(&nlink.to_bytes()), Ok(nlink));
    }

    #[test]
    fn malformed_link_counts_never_panic(value in near(&["U", "L", "+", "-", "1", "999999999", " "])) {
        if let Ok(nlink) = Nlink::parse(&value) {
            prop_assert_eq!(Nlink::parse(&nlink.to_bytes()), Ok(nlink));
        }
    }

    #[test]
    fn protecting_attributes_survive(value in near(&["a", "i", "x"])) {
        match Protattr::parse(&value) {
            Ok(flags) => prop_assert_eq!(Protattr::parse(flags.to_bytes().unwrap()), Ok(flags)),
            Err(_) => prop_assert!(value.is_empty() || value.len() > 32 || value.iter().any(|b| !b"ai".contains(b))),
        }
    }

    #[test]
    fn a_whiteout_deletes_the_name_it_was_built_from(name in name()) {
        let name = Name::new(&name).unwrap();
        if let Ok(whiteout) = whiteout_name(name) {
            prop_assert_eq!(OciName::parse(whiteout.as_name()), OciName::Whiteout(name));
        }
    }

    #[test]
    fn names_near_whiteouts_are_each_of_one_kind(value in near(&[".wh.", ".", "opq", ".opq", "a", "wh"])) {
        if let Ok(name) = Name::new(&value) {
            match OciName::parse(name) {
                OciName::Plain => prop_assert!(!value.starts_with(b".wh.")),
                OciName::Whiteout(target) => {
                    let built = whiteout_name(target).unwrap();
                    prop_assert_eq!(built.as_bytes(), &value[..]);
                }
                OciName::OpaqueMarker => prop_assert_eq!(&value[..], b".wh..wh..opq"),
                OciName::Invalid(_) => prop_assert!(value.starts_with(b".wh.")),
            }
        }
    }

    #[test]
    fn overridden_stats_survive(uid: u32, gid: u32, mode in 0_u32..0o10000, kind in option::of(override_kind())) {
        let stat = OverrideStat { uid, gid, mode, kind };
        prop_assert_eq!(OverrideStat::parse(&stat.to_bytes()), Ok(stat));
    }

    #[test]
    fn malformed_overridden_stats_never_panic(value in near(&["0", ":", "755", "char", "-", "1", "file", "9"])) {
        if let Ok(stat) = OverrideStat::parse(&value) {
            prop_assert_eq!(OverrideStat::parse(&stat.to_bytes()), Ok(stat));
        }
    }

    #[test]
    fn id_maps_survive_and_map_back(value in near(&["0", ":", "1", "1000", "65536", "4294967295"]), id: u32) {
        if let Ok(map) = IdMap::parse(&value) {
            prop_assert_eq!(IdMap::parse(map.to_string().as_bytes()), Ok(map.clone()));
            let firsts = map.ranges().iter().map(|range| range.disk).chain([id]);
            for disk in firsts {
                if let Some(shown) = map.to_shown(disk) { prop_assert_eq!(map.to_disk(shown), Some(disk)); }
                if let Some(back) = map.to_disk(disk) { prop_assert_eq!(map.to_shown(back), Some(disk)); }
            }
        }
    }

    #[test]
    fn layer_chains_survive(random in vec(any::<[u8; 16]>(), 1..6)) {
        let ids: Vec<_> = random.iter().map(|bits| LinkId::from_random(*bits)).collect();
        for id in &ids { prop_assert_eq!(LinkId::parse(id.as_str().as_bytes()), Ok(*id)); }
        let chain = LowerChain::new(ids);
        prop_assert_eq!(LowerChain::parse(chain.to_string().as_bytes()), Ok(chain));
    }

    #[test]
    fn malformed_layer_chains_never_panic(value in near(&["l/", ":", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "\n"])) {
        if let Ok(chain) = LowerChain::parse(&value) {
            prop_assert_eq!(chain.to_string().into_bytes(), value);
        }
    }

    #[test]
    fn digests_survive(content in bytes(40), text in "(sha256:)?[0-9a-fA-F]{62,66}") {
        let digest = Digest::of(&content);
        prop_assert_eq!(Digest::parse(&digest.to_string()), Ok(digest));
        prop_assert_eq!(ChainId::base(DiffId(digest)).to_string(), digest.to_string());
        if let Ok(digest) = Digest::parse(&text) { prop_assert_eq!(digest.to_string(), text); }
    }

    #[test]
    fn access_lists_survive(entries in vec((0_u8..6, any::<u32>(), 0_u16..16), 0..8)) {
        let acl = Acl::from_entries(entries.into_iter().map(acl_entry));
        prop_assert_eq!(Acl::parse(&acl.encode()), Ok(acl));
    }

    #[test]
    fn an_inherited_access_list_agrees_with_the_mode_and_grants_nothing_new(list in valid_acl(), mode in 0_u32..0o10000) {
        prop_assert_eq!(list.validate(), Ok(()));
        let (access, new_mode) = list.inherit(mode);
        prop_assert_eq!(new_mode & 0o7000, mode & 0o7000);
        prop_assert_eq!(new_mode & !mode, 0);
        if let Some(access) = access {
            prop_assert_eq!(access.validate(), Ok(()));
            prop_assert_eq!(access.to_mode(), new_mode & 0o777);
        }
    }

    #[test]
    fn an_access_list_shows_the_mode_it_was_changed_to(list in valid_acl(), mode in 0_u32..0o10000) {
        let changed = list.chmod(mode);
        prop_assert_eq!(changed.validate(), Ok(()));
        prop_assert_eq!(changed.to_mode(), mode & 0o777);
        prop_assert_eq!(changed.entries().len(), list.entries().len());
    }

    #[test]
    fn option_strings_near_the_grammar_never_panic_and_survive(value in near(&[
        "lowerdir=", "lowerdir+=", "datadir+=", "upperdir=", "workdir=", ",", ":", "::", "\\", "\"", "/a", "b", "on",
        "index=", "context=\"", "timeout=", "1.5", "uidmapping=0:1:2", "userxattr", "x-y", "ro", "noatime",
    ])) {
        if let Ok(parsed) = StackSpec::parse(&[OsStr::from_bytes(&value)]) {
            let printed = parsed.spec.to_option_string();
            let again = StackSpec::parse(&[&printed]).unwrap();
            prop_assert_eq!(&again.spec, &parsed.spec);
            prop_assert!(again.ignored.is_empty());
        }
    }

    #[test]
    fn every_specification_survives_being_printed_and_read(spec in spec()) {
        let printed = spec.to_option_string();
        let parsed = StackSpec::parse(&[&printed]).unwrap();
        prop_assert_eq!(parsed.spec, spec, "{:?}", printed);
        prop_assert!(parsed.ignored.is_empty());
    }

    #[test]
    fn resolved_settings_keep_their_promises(spec in spec(), privileged: bool) {
        if let Ok(effective) = spec.effective(privileged) {
            prop_assert!(!(effective.metacopy && effective.nfs_export));
            prop_assert!(spec.upper.is_some() || !effective.index && !effective.volatile);
            prop_assert!(!effective.nfs_export || effective.index || spec.upper.is_none());
            prop_assert!(privileged || spec.options.userxattr || !effective.metacopy);
        }
    }
}

fn override_kind() -> impl Strategy<Value = OverrideKind> {
    prop_oneof![
        Just(OverrideKind::File),
        Just(OverrideKind::Dir),
        Just(OverrideKind::Symlink),
        Just(OverrideKind::Pipe),
        Just(OverrideKind::Socket),
        any::<(u32, u32)>().prop_map(|(major, minor)| OverrideKind::Block(major, minor)),
        any::<(u32, u32)>().prop_map(|(major, minor)| OverrideKind::Char(major, minor)),
    ]
}

fn acl_entry((kind, id, perm): (u8, u32, u16)) -> AclEntry {
    let tag = match kind {
        0 => AclTag::UserObj,
        1 => AclTag::User(id),
        2 => AclTag::GroupObj,
        3 => AclTag::Group(id),
        4 => AclTag::Mask,
        _ => AclTag::Other,
    };
    AclEntry { tag, perm }
}

fn valid_acl() -> impl Strategy<Value = Acl> {
    let named = || vec((0_u32..1000, 0_u16..8), 0..3);
    (any::<[u8; 4]>(), named(), named(), any::<bool>()).prop_map(|(perms, users, groups, masked)| {
        let [owner, group, mask, other] = perms.map(|perm| u16::from(perm % 8));
        let masked = masked || !users.is_empty() || !groups.is_empty();
        let mut entries = vec![AclEntry { tag: AclTag::UserObj, perm: owner }];
        entries.extend(users.into_iter().map(|(id, perm)| AclEntry { tag: AclTag::User(id), perm }));
        entries.push(AclEntry { tag: AclTag::GroupObj, perm: group });
        entries.extend(groups.into_iter().map(|(id, perm)| AclEntry { tag: AclTag::Group(id), perm }));
        entries.extend(masked.then_some(AclEntry { tag: AclTag::Mask, perm: mask }));
        entries.push(AclEntry { tag: AclTag::Other, perm: other });
        Acl::from_entries(entries)
    })
}

fn one_of<T: Copy + std::fmt::Debug + 'static>(values: &'static [T]) -> impl Strategy<Value = Option<T>> {
    option::of(proptest::sample::select(values))
}

fn spec() -> impl Strategy<Value = StackSpec> {
    let upper = option::of((path(), path()).prop_map(|(upper, work)| UpperSpec { upper, work }));
    (vec(path(), 1..4), vec(path(), 0..3), upper, kernel_options(), fuse_options(), mount_options()).prop_map(
        |(lowers, data_lowers, upper, kernel, fuse, mount)| {
            let options = Options {
                redirect_dir: kernel.redirect_dir,
                index: kernel.index,
                nfs_export: kernel.nfs_export,
                metacopy: kernel.metacopy,
                xino: kernel.xino,
                uuid: kernel.uuid,
                verity: kernel.verity,
                userxattr: kernel.userxattr,
                default_permissions: kernel.default_permissions,
                volatile: kernel.volatile,
                override_creds: kernel.override_creds,
                contexts: mount.contexts,
                mount: mount.mount,
                fsname: mount.fsname,
                subtype: mount.subtype,
                remount: mount.remount,
                ..fuse
            };
            StackSpec { lowers, data_lowers, upper, options }
        },
    )
}

fn kernel_options() -> impl Strategy<Value = Options> {
    let choices = (
        one_of(&[RedirectDir::On, RedirectDir::Off, RedirectDir::Follow, RedirectDir::NoFollow]),
        one_of(&[Xino::On, Xino::Off, Xino::Auto]),
        one_of(&[UuidMode::Off, UuidMode::Null, UuidMode::Auto, UuidMode::On]),
        one_of(&[Verity::Off, Verity::On, Verity::Require]),
    );
    (choices, any::<[Option<bool>; 4]>(), any::<[bool; 3]>()).prop_map(
        |((redirect_dir, xino, uuid, verity), switches, flags)| {
            let [index, nfs_export, metacopy, override_creds] = switches;
            let [userxattr, default_permissions, volatile] = flags;
            Options {
                redirect_dir,
                index,
                nfs_export,
                metacopy,
                xino,
                uuid,
                verity,
                userxattr,
                default_permissions,
                volatile,
                override_creds,
                ..Options::default()
            }
        },
    )
}

fn fuse_options() -> impl Strategy<Value = Options> {
    let id_map = || {
        option::of(any::<(u16, u16, u16)>().prop_map(|(disk, shown, length)| {
            IdMap::parse(format!("{disk}:{shown}:{}", u32::from(length) + 1).as_bytes()).unwrap()
        }))
    };
    let numbers = (any::<[Option<u32>; 3]>(), option::of((0_u64..1 << 40, 0_u32..1_000_000_000)));
    let modes = one_of(&[XattrPermissions::Off, XattrPermissions::Privileged, XattrPermissions::Containers]);
    (id_map(), id_map(), numbers, modes, any::<[Option<bool>; 3]>(), any::<[bool; 8]>()).prop_map(
        |(uid_mapping, gid_mapping, (numbers, timeout), xattr_permissions, switches, flags)| {
            let [squash_to_uid, squash_to_gid, max_write] = numbers;
            let [fsync, writeback, threaded] = switches;
            let [squash_to_root, static_nlink, noacl, noxattrs, ino32, allow_other, allow_root, debug] =
                flags;
            Options {
                uid_mapping,
                gid_mapping,
                squash_to_root,
                squash_to_uid,
                squash_to_gid,
                xattr_permissions,
                static_nlink,
                noacl,
                noxattrs,
                ino32,
                timeout: timeout.map(|(seconds, nanos)| Duration::new(seconds, nanos)),
                fsync,
                writeback,
                allow_other,
                allow_root,
                threaded,
                debug,
                max_write,
                ..Options::default()
            }
        },
    )
}

fn mount_options() -> impl Strategy<Value = Options> {
    let label = || option::of("[a-z:,0-9_]{1,12}".prop_map(OsString::from));
    let labels = (label(), label(), label(), label());
    let text = || option::of(path().prop_map(PathBuf::into_os_string));
    let atime = one_of(&[Atime::NoAtime, Atime::RelAtime, Atime::StrictAtime]);
    (labels, text(), text(), atime, any::<[Option<bool>; 8]>(), any::<[bool; 2]>()).prop_map(
        |(
            (context, fscontext, defcontext, rootcontext),
            fsname,
            subtype,
            atime,
            switches,
            [dirsync, remount],
        )| {
            let [read_only, nosuid, nodev, noexec, nosymfollow, nodiratime, sync, lazytime] = switches;
            Options {
                contexts: SecurityContexts { context, fscontext, defcontext, rootcontext },
                mount: MountFlags {
                    read_only,
                    nosuid,
                    nodev,
                    noexec,
                    nosymfollow,
                    atime,
                    nodiratime,
                    sync,
                    dirsync,
                    lazytime,
                },
                fsname,
                subtype,
                remount,
                ..Options::default()
            }
        },
    )
}

/// Digests of known length keep the type they were written as.
#[test]
fn a_metacopy_digest_of_the_right_length_is_recognised() {
    let sha512 = Metacopy { flags: 0, digest: MetacopyDigest::Sha512([1; 64]) };
    assert_eq!(Metacopy::parse(&sha512.encode()), Ok(sha512));
}
