//! One blob from a registry to a staged file: resumed where it stopped, within a command and from one command
//! to the next, and digested before anyone believes it.
//!
//! Owns `staging/.partial/HEX`, locked while a command fills it. Two commands that want the same blob: the
//! second downloads into its own directory.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use super::client::Client;
use crate::blob::{Compression, Staged};
use crate::digest::Digest;
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::journal::Work;
use crate::layout::Layout;
use crate::manifest::Descriptor;
use crate::progress::Task;
use crate::unpack::Unpacking;

/// How often a connection that broke off is taken up again without a byte of progress.
const TRIES: u32 = 4;

/// Downloads a blob; the staged file has the digest asked for. `ahead` unpacks it meanwhile, and is given back complete; not
/// if the download had to begin anew.
pub fn blob(
    layout: &Layout,
    work: &Work,
    client: &Client,
    d: &Descriptor,
    ahead: Option<Unpacking>,
    task: &dyn Task,
) -> Result<(Staged, Option<Unpacking>)> {
    let (path, file) = partial(layout, work, &d.digest)?;
    let mut p = Partial { file, path, hash: Sha256::new(), have: 0, ahead };
    p.rehash(d, task)?;
    fetch(client, d, &mut p, task)?;
    let found = Digest::from_bytes(p.hash.finalize().into());
    if found != d.digest {
        durable::remove_file(&p.path)?;
        return Err(Error::Digest {
            what: "blob from the registry".into(),
            expected: d.digest.to_string(),
            found: found.to_string(),
        });
    }
    let mut head = [0u8; 4];
    p.file.seek(SeekFrom::Start(0)).at("seek", &p.path)?;
    let n = p.file.read(&mut head).at("read", &p.path)?;
    let staged = work.path(&format!("blob-{}", d.digest.hex()));
    // A second name, so that the blob is still to be had if unpacking is cut off.
    if staged != p.path {
        fs::hard_link(&p.path, &staged).at("link", &staged)?;
    }
    let compression = Compression::detect(head.get(..n).unwrap_or_default());
    Ok((Staged { path: staged, digest: d.digest, size: d.size, compression }, p.ahead))
}

/// Forgets finished downloads: their blobs are in the store.
pub fn discard<'a>(layout: &Layout, blobs: impl Iterator<Item = &'a Digest>) -> Result<()> {
    for b in blobs {
        durable::remove_file(&directory(layout).join(b.hex()))?;
    }
    Ok(())
}

/// Removes downloads that nobody is at work on; says how many bytes they had.
pub fn sweep(layout: &Layout) -> Result<u64> {
    let dir = directory(layout);
    let entries = match fs::read_dir(&dir) {
        Ok(e) => e,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e).at("open", &dir),
    };
    let mut bytes = 0;
    for e in entries {
        let p = e.at("read", &dir)?.path();
        let f = File::open(&p).at("open", &p)?;
        if flock(&f, FlockOperation::NonBlockingLockExclusive).is_ok() {
            bytes += f.metadata().at("stat", &p)?.len();
            durable::remove_file(&p)?;
        }
    }
    Ok(bytes)
}

fn directory(layout: &Layout) -> PathBuf {
    layout.staging().join(".partial")
}

struct Partial {
    file: File,
    path: PathBuf,
    hash: Sha256,
    have: u64,
    ahead: Option<Unpacking>,
}

impl Partial {
    /// Takes up what an earlier command left.
    fn rehash(&mut self, d: &Descriptor, task: &dyn Task) -> Result<()> {
        if self.file.metadata().at("stat", &self.path)?.len() > d.size {
            self.restart()?;
        }
        let mut buf = vec![0u8; 256 << 10];
        loop {
            let n = self.file.read(&mut buf).at("read", &self.path)?;
            if n == 0 {
                return Ok(());
            }
            self.take(buf.get(..n).unwrap_or_default());
            task.add(n as u64);
        }
    }

    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).at("truncate", &self.path)?;
        self.file.seek(SeekFrom::Start(0)).at("seek", &self.path)?;
        (self.hash, self.have) = (Sha256::new(), 0);
        // What was fed to it cannot be taken back; the blob is unpacked from its file.
        self.ahead = None;
        Ok(())
    }

    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).at("write", &self.path)?;
        self.take(bytes);
        Ok(())
    }

    /// Digests bytes that are in the file, and passes them on.
    fn take(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.have += bytes.len() as u64;
        if let Some(u) = &mut self.ahead {
            // A failure is told once the blob has the digest it should have.
            u.feed(bytes);
        }
    }
}

fn partial(layout: &Layout, work: &Work, digest: &Digest) -> Result<(PathBuf, File)> {
    durable::ensure_dir(&directory(layout), 0o700)?;
    let open = |p: &PathBuf| {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(p).at("open", p)
    };
    let shared = directory(layout).join(digest.hex());
    let f = open(&shared)?;
    match flock(&f, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok((shared, f)),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let own = work.path(&format!("blob-{}", digest.hex()));
            let f = open(&own)?;
            Ok((own, f))
        }
        Err(e) => Err(e).at("lock", shared),
    }
}

/// Reads until all is there; goes on after a break as long as there is progress.
fn fetch(client: &Client, d: &Descriptor, p: &mut Partial, task: &dyn Task) -> Result<()> {
    let mut tries = 0;
    while p.have < d.size || d.size == 0 && tries == 0 {
        let before = p.have;
        match stream(client, d, p, task) {
            Ok(()) if p.have == d.size => return Ok(()),
            Ok(()) if p.have == before || tries >= TRIES => {
                return Err(
                    client.fail(format!("blob {} ends after {} of {} bytes", d.digest, p.have, d.size))
                );
            }
            Ok(()) => {}
            // What the registry said, or the disk, is no broken connection.
            Err(e @ (Error::Io { .. } | Error::Invalid { .. } | Error::NotFound { .. })) => return Err(e),
            Err(e) if tries >= TRIES => return Err(e),
            Err(e) => tracing::debug!("{e}: trying again from byte {}", p.have),
        }
        tries = if p.have > before { 1 } else { tries + 1 };
        std::thread::sleep(Duration::from_millis(100 << tries));
    }
    Ok(())
}

fn stream(client: &Client, d: &Descriptor, p: &mut Partial, task: &dyn Task) -> Result<()> {
    let (start, mut r) = client.blob(&d.digest, p.have)?;
    if start != p.have {
        p.restart()?;
    }
    if let Some(n) = r.body().content_length()
        && start + n > d.size
    {
        return Err(Error::invalid(
            format!("blob {}", d.digest),
            format!("the registry announces {} bytes, the manifest {}", start + n, d.size),
        ));
    }
    let mut body = r.body_mut().as_reader();
    let mut buf = vec![0u8; 256 << 10];
    loop {
        let n = match body.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) => return Err(client.fail(e.to_string())),
        };
        if p.have + n as u64 > d.size {
            return Err(Error::invalid(
                format!("blob {}", d.digest),
                format!("the registry sends more than the manifest's {} bytes", d.size),
            ));
        }
        p.add(buf.get(..n).unwrap_or_default())?;
        task.add(n as u64);
    }
}
