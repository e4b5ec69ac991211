//! What version this is, to a person, to a script, and to a caller that believes it is talking to fuse-overlayfs.

use std::io::Write;

use serde_json::json;

use crate::failure::Outcome;

/// The version of fuse-overlayfs whose command line and options are understood.
const FUSE_OVERLAYFS: &str = "2.0.0";

/// plyfs's own version.
pub const PLYFS: &str = env!("CARGO_PKG_VERSION");

/// `plyfs version`.
pub fn show(as_json: bool, out: &mut dyn Write) -> Outcome<()> {
    if as_json {
        let value = json!({"plyfs": PLYFS, "fuse_overlayfs_compatible": FUSE_OVERLAYFS});
        writeln!(out, "{value}")?;
    } else {
        writeln!(out, "plyfs {PLYFS}")?;
    }
    Ok(())
}

/// `fuse-overlayfs --version`: podman and buildah look for the first line.
pub fn as_fuse_overlayfs(out: &mut dyn Write) -> Outcome<()> {
    writeln!(out, "fuse-overlayfs: version {FUSE_OVERLAYFS}")?;
    writeln!(out, "plyfs {PLYFS} in its place")?;
    Ok(())
}

/// The help of the foreign command lines.
pub fn foreign_help(out: &mut dyn Write) -> Outcome<()> {
    writeln!(
        out,
        "usage: fuse-overlayfs [-f] [-d] -o lowerdir=A:B[,upperdir=U,workdir=W][,OPTION…] [SOURCE] TARGET\n\
         \n\
         -f  stay in the foreground\n\
         -d  trace every request\n\
         -o  mount options; plyfs mount --help and docs/compatibility.md explain them\n\
         -V  show the version"
    )?;
    Ok(())
}
