//! Tests of the whole option grammar.

use std::path::Path;
use std::time::Duration;

use super::*;

fn parse(options: &str) -> Result<Parsed, SpecError> {
    StackSpec::parse(&[options])
}

fn options(text: &str) -> Options {
    parse(&format!("lowerdir=/l,{text}")).unwrap().spec.options
}

fn error(text: &str) -> SpecError {
    parse(&format!("lowerdir=/l,{text}")).unwrap_err()
}

fn paths(paths: &[PathBuf]) -> Vec<&str> {
    paths.iter().map(|path| path.to_str().unwrap()).collect()
}

#[test]
fn podmans_command_line_is_read() {
    let parsed = parse("lowerdir=l/A:l/B,upperdir=/u/diff,workdir=/u/work,,volatile").unwrap();
    assert_eq!(paths(&parsed.spec.lowers), ["l/A", "l/B"]);
    let upper = parsed.spec.upper.unwrap();
    assert_eq!((upper.upper.as_path(), upper.work.as_path()), (Path::new("/u/diff"), Path::new("/u/work")));
    assert!(parsed.spec.options.volatile);
    assert!(parsed.ignored.is_empty());
}

#[test]
fn containerds_command_line_is_read() {
    let parsed = parse("workdir=/w,upperdir=/u,lowerdir=/l,dev,suid").unwrap();
    assert_eq!(parsed.spec.options.mount.nodev, Some(false));
    assert_eq!(parsed.spec.options.mount.nosuid, Some(false));
}

#[test]
fn several_option_strings_are_read_as_one_and_the_last_value_wins() {
    let parsed = StackSpec::parse(&["lowerdir=/a,index=on", "lowerdir=/b:/c", "index=off"]).unwrap();
    assert_eq!(paths(&parsed.spec.lowers), ["/b", "/c"]);
    assert_eq!(parsed.spec.options.index, Some(false));
}

#[test]
fn layers_can_be_added_one_by_one_without_escapes() {
    let parsed = parse("lowerdir+=/a:b,lowerdir+=/c\\:d,datadir+=/e").unwrap();
    assert_eq!(paths(&parsed.spec.lowers), ["/a:b", "/c\\:d"]);
    assert_eq!(paths(&parsed.spec.data_lowers), ["/e"]);
}

#[test]
fn the_kernels_rules_for_mixing_the_two_ways_of_giving_layers_hold() {
    assert_eq!(parse("lowerdir=/a,lowerdir+=/b"), Err(SpecError::AddAfterWhole { name: "lowerdir+" }));
    assert_eq!(parse("lowerdir=/a::/d,datadir+=/e"), Err(SpecError::AddAfterWhole { name: "datadir+" }));
    let after_data = parse("lowerdir+=/a,datadir+=/d,lowerdir+=/b");
    assert_eq!(after_data, Err(SpecError::LowerAfterData { path: "/b".into() }));
    assert_eq!(paths(&parse("lowerdir=/a,lowerdir=,lowerdir+=/b").unwrap().spec.lowers), ["/b"]);
    assert_eq!(paths(&parse("lowerdir+=/a,lowerdir=/b").unwrap().spec.lowers), ["/b"]);
    assert_eq!(parse("lowerdir+=/a,lowerdir="), Err(SpecError::NoLower));
    assert_eq!(parse("lowerdir+="), Err(SpecError::EmptyPath { name: "lowerdir+" }));
    assert_eq!(parse("datadir+=/d"), Err(SpecError::OnlyData));
}

#[test]
fn upper_and_work_belong_together() {
    assert_eq!(parse("lowerdir=/l,upperdir=/u"), Err(SpecError::NoWork { upper: "/u".into() }));
    let parsed = parse("lowerdir=/l,workdir=/w").unwrap();
    assert_eq!(parsed.spec.upper, None);
    assert_eq!(parsed.useless_work, Some("/w".into()));
    let escaped = parse("lowerdir=/l,upperdir=/u\\,1\\:x,workdir=/w\\\\").unwrap().spec.upper.unwrap();
    assert_eq!((escaped.upper.as_path(), escaped.work.as_path()), (Path::new("/u,1:x"), Path::new("/w\\")));
}

#[test]
fn every_kernel_option_is_read() {
    let read = options(
        "redirect_dir=nofollow,index=on,nfs_export=off,metacopy=on,xino=auto,uuid=null,verity=require,userxattr,\
         default_permissions,volatile,nooverride_creds",
    );
    assert_eq!(read.redirect_dir, Some(RedirectDir::NoFollow));
    assert_eq!((read.index, read.nfs_export, read.metacopy), (Some(true), Some(false), Some(true)));
    assert_eq!(
        (read.xino, read.uuid, read.verity),
        (Some(Xino::Auto), Some(UuidMode::Null), Some(Verity::Require))
    );
    assert!(read.userxattr && read.default_permissions && read.volatile);
    assert_eq!(read.override_creds, Some(false));
}

#[test]
fn every_fuse_overlayfs_option_is_read() {
    let read = options(
        "uidmapping=0:1000:1,gidmapping=0:1000:1:1:100000:65536,squash_to_root,squash_to_uid=7,squash_to_gid=8,\
         xattr_permissions=2,static_nlink,noacl,noxattrs=1,ino32_t,timeout=0.25,fsync=0,writeback=0,allow_other,\
         allow_root,threaded=0,fast_ino=1,debug,max_write=1048576",
    );
    assert_eq!(read.uid_mapping.unwrap().to_shown(0), Some(1000));
    assert_eq!(read.gid_mapping.unwrap().to_disk(100_000), Some(1));
    assert!(read.squash_to_root && read.static_nlink && read.noacl && read.noxattrs && read.ino32);
    assert_eq!((read.squash_to_uid, read.squash_to_gid), (Some(7), Some(8)));
    assert_eq!(read.xattr_permissions, Some(XattrPermissions::Containers));
    assert_eq!(read.timeout, Some(Duration::from_millis(250)));
    assert_eq!((read.fsync, read.writeback, read.threaded), (Some(false), Some(false), Some(false)));
    assert!(read.allow_other && read.allow_root && read.debug);
    assert_eq!(read.max_write, Some(1_048_576));
}

#[test]
fn generic_mount_flags_are_read_and_opposites_override() {
    let read =
        options("ro,nosuid,nodev,noexec,noatime,nodiratime,sync,dirsync,lazytime,rw,atime,fsname=a\\,b")
            .mount;
    assert_eq!(read.read_only, Some(false));
    assert_eq!((read.nosuid, read.nodev, read.noexec), (Some(true), Some(true), Some(true)));
    assert_eq!((read.atime, read.nodiratime), (Some(Atime::RelAtime), Some(true)));
    assert_eq!((read.sync, read.dirsync, read.lazytime), (Some(true), true, Some(true)));
    assert_eq!(options("fsname=a\\,b,subtype=plyfs").fsname.unwrap(), "a,b");
}

#[test]
fn a_security_context_may_be_quoted_and_hold_commas() {
    let read = options("context=\"system_u:object_r:container_file_t:s0:c1,c2\",ro");
    assert_eq!(read.contexts.context.unwrap(), "system_u:object_r:container_file_t:s0:c1,c2");
    assert_eq!(read.mount.read_only, Some(true));
    assert_eq!(options("rootcontext=u:r:t:s0").contexts.rootcontext.unwrap(), "u:r:t:s0");
    assert!(matches!(error("context=\"open,ro"), SpecError::Value { name: "context", .. }));
}

#[test]
fn options_that_mean_nothing_here_are_collected() {
    let parsed =
        parse("lowerdir=/l,_netdev,x-systemd.automount,defaults,comment=x,fast_ino=1,kernel_cache").unwrap();
    let names: Vec<_> = parsed.ignored.iter().filter_map(|line| line.split(':').next()).collect();
    assert_eq!(names, ["_netdev", "x-systemd.automount", "defaults", "comment", "fast_ino", "kernel_cache"]);
}

#[test]
fn an_unknown_option_is_an_error_with_the_nearest_known_name() {
    for (written, meant) in [
        ("metacpy=on", Some("metacopy")),
        ("redirectdir=on", Some("redirect_dir")),
        ("lowerdirs=/x", Some("lowerdir")),
        ("user_xattr", Some("userxattr")),
        ("nfsexport=on", Some("nfs_export")),
        ("frobnicate", None),
    ] {
        let name = written.split('=').next().unwrap().to_owned();
        assert_eq!(error(written), SpecError::Unknown { name, nearest: meant });
    }
    assert_eq!(error("metacpy=on").to_string(), "unknown mount option 'metacpy'; did you mean 'metacopy'?");
}

#[test]
fn wrong_values_name_the_option_and_what_it_takes() {
    for (written, message) in [
        ("xino=maybe", "mount option xino=maybe: the value must be on, off or auto"),
        ("index", "mount option index needs a value: write index= and on or off"),
        ("userxattr=1", "mount option userxattr takes no value: write userxattr instead of userxattr=1"),
        ("fsync=2", "mount option fsync=2: the value must be 0 or 1"),
        ("timeout=-1", "mount option timeout=-1: the value must be a number of seconds, such as 1 or 0.5"),
        (
            "squash_to_uid=+1",
            "mount option squash_to_uid=+1: the value must be a number from 0 to 4294967295",
        ),
    ] {
        assert_eq!(error(written).to_string(), message);
    }
    assert!(matches!(error("uidmapping=::0:200000:65536"), SpecError::IdMap { name: "uidmapping", .. }));
    assert!(matches!(
        parse("lowerdir=/a:"),
        Err(SpecError::Layers { reason: LayerListError::TrailingColon, .. })
    ));
    assert!(matches!(parse("lowerdir"), Err(SpecError::MissingValue { name: "lowerdir", .. })));
}

#[test]
fn a_remount_needs_no_layers_and_tells_its_flags() {
    let flags = |text: &str| StackSpec::parse_remount(&[text]).unwrap();
    assert_eq!(flags("lowerdir=/a,ro"), None);
    let read_only = MountFlags { read_only: Some(true), ..MountFlags::default() };
    assert_eq!(flags("rw,remount,ro,user_id=0,group_id=0,allow_other"), Some(read_only));
}

#[test]
fn no_layers_are_an_error() {
    assert_eq!(parse(""), Err(SpecError::NoLower));
    assert_eq!(parse("upperdir=/u,workdir=/w"), Err(SpecError::NoLower));
}

#[test]
fn a_specification_prints_as_the_options_it_was_read_from() {
    let text = "lowerdir=/a\\,b:/c::/d,upperdir=/u,workdir=/w,redirect_dir=on,index=off,xino=on,userxattr,\
                nooverride_creds,uidmapping=0:1000:1,timeout=1.5,fsync=0,context=\"u:r:t:s0:c1,c2\",ro,nosuid,dev,\
                noatime,fsname=x\\,y";
    let parsed = parse(text).unwrap();
    assert_eq!(parsed.spec.to_option_string(), text);
}

#[test]
fn no_option_name_is_defined_twice() {
    let mut names: Vec<_> = known_names().collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}
