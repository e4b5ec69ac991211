//! How much a container may write: a project quota on its upper and work directories.
//!
//! Owns finding a free project, and telling why there can be none. The file system keeps the limit, whoever shows the
//! merged view, and `statfs` in it shows the limit. The kernel's counterpart is XFS's and ext4's own accounting.

use std::fs::File;
use std::path::Path;

use plyfs_sys::quota;
use rustix::io::Errno;

use crate::durable;
use crate::error::{Context, Error, Result};

/// How many numbers are tried.
const TRIES: usize = 32;
/// The smallest limit: directories and whiteouts take room, too.
const LEAST: u64 = 64 << 10;

/// Gives a new layer's `diff` and `work` a project of their own, limited to `bytes`; returns its number.
pub fn set(layer: &Path, bytes: u64) -> Result<u32> {
    if bytes < LEAST {
        return Err(Error::invalid("--size", format!("must be {LEAST} bytes or more")));
    }
    let dir = File::open(layer).at("open", layer)?;
    match quota::enforces_projects(&dir) {
        Ok(true) => {}
        Ok(false) | Err(Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP | Errno::SRCH | Errno::NOTTY) => {
            return Err(unsupported("its file system does not keep project quotas"));
        }
        Err(e) => return Err(e).at("look for project quotas on", layer),
    }
    let project = free_project(&dir, layer)?;
    quota::limit(&dir, project, bytes).at("set the quota of", layer)?;
    for d in ["diff", "work"] {
        let path = layer.join(d);
        let fd = File::open(&path).at("open", &path)?;
        quota::assign(&fd, project).at("set the project of", &path)?;
    }
    Ok(project)
}

/// Takes the limit of a project away, of which nothing is left.
pub fn clear(store: &Path, project: u32) -> Result<()> {
    let dir = File::open(store).at("open", store)?;
    quota::limit(&dir, project, 0).at("clear a quota of", store)
}

/// A random one, as other programs and stores use the same file system's numbers.
fn free_project(dir: &File, layer: &Path) -> Result<u32> {
    for _ in 0..TRIES {
        let hex = durable::random_hex(4)?;
        // Not 0, which is everybody's, and not beyond what tools show as positive.
        let n = u32::from_str_radix(&hex, 16).unwrap_or(0) & 0x7fff_ffff | 0x1_0000;
        match quota::is_unused(dir, n) {
            Ok(true) => return Ok(n),
            Ok(false) => {}
            Err(Errno::PERM) => return Err(unsupported("only root can set quotas")),
            Err(e) => return Err(e).at("look up a quota of", layer),
        }
    }
    Err(unsupported("no project number is free"))
}

fn unsupported(why: &str) -> Error {
    Error::Unsupported(format!(
        "a size limit needs the store on XFS, or on ext4 made with -O quota,project, mounted with prjquota, and root: {why}"
    ))
}
