//! Images out: docker-archive and OCI layouts, as a directory or a tar.
//!
//! Owns the files of both formats. Blobs go out as they came in, so digests stay; for docker-archive the
//! layers are decompressed, as `docker save` does. The same image gives the same archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde_json::json;

use crate::blob;
use crate::db::{Image, Name};
use crate::digest::{Digest, Hashing};
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::manifest::{self, Index};
use crate::progress::{Counted, Task};
use crate::store::{Store, find_image};
use crate::tar::{Entry, Kind, Time, Writer};

/// The format of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// An OCI image layout in a tar.
    #[default]
    OciArchive,
    /// An OCI image layout as a directory.
    OciDir,
    /// What `docker save` writes.
    DockerArchive,
    /// The same as a directory.
    DockerDir,
}

impl std::str::FromStr for Format {
    type Err = Error;

    fn from_str(s: &str) -> Result<Format> {
        Ok(match s {
            "oci-archive" => Format::OciArchive,
            "oci" | "oci-dir" => Format::OciDir,
            "docker-archive" => Format::DockerArchive,
            "docker-dir" => Format::DockerDir,
            _ => {
                return Err(Error::invalid(
                    format!("format \"{s}\""),
                    "expected oci-archive, oci-dir, docker-archive or docker-dir",
                ));
            }
        })
    }
}

impl Store {
    /// Writes images to `out` (`-` is standard output for the archives). A file appears by a rename;
    /// what is no regular file is written to.
    pub fn save(
        &self,
        names: &[String],
        format: Format,
        compression: blob::Compression,
        out: &Path,
    ) -> Result<()> {
        let images = self.read(|tx| {
            names.iter().map(|n| Ok((n.clone(), find_image(tx, n)?))).collect::<Result<Vec<_>>>()
        })?;
        let total: u64 = images.iter().flat_map(|(_, i)| &i.layers).map(|l| l.size).sum();
        let task = self.options.progress.task("saving", Some(total));
        let docker = matches!(format, Format::DockerArchive | Format::DockerDir);
        let mut fill = |sink: &mut dyn Sink| {
            if docker { self.docker(&images, sink, &*task) } else { self.oci(&images, sink, &*task) }
        };
        match format {
            Format::OciDir | Format::DockerDir => {
                std::fs::create_dir_all(out).at("create", out)?;
                fill(&mut DirSink(out))
            }
            _ if out == Path::new("-") => compressed(io::stdout().lock(), compression, &mut fill).map(drop),
            _ => self.save_archive(out, compression, &mut fill),
        }
    }

    /// A regular file is replaced as a whole; a device or a pipe is a place to write to.
    fn save_archive(&self, out: &Path, how: blob::Compression, fill: Fill<'_>) -> Result<()> {
        let out = &durable::behind_links(out)?;
        match std::fs::metadata(out) {
            Ok(found) if !found.is_file() => {
                let f = File::options().write(true).open(out).at("open", out)?;
                let w = compressed(io::BufWriter::with_capacity(256 << 10, f), how, fill)?;
                return w.into_inner().map_err(io::IntoInnerError::into_error).at("write", out).map(drop);
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).at("look at", out),
            _ => {}
        }
        let tmp = out.with_file_name(format!(
            ".{}.{}",
            out.file_name().unwrap_or_default().to_string_lossy(),
            std::process::id()
        ));
        match self.save_file(&tmp, how, fill) {
            Ok(()) => std::fs::rename(&tmp, out).at("rename", out),
            Err(e) => {
                durable::remove_file(&tmp)?;
                Err(e)
            }
        }
    }

    fn save_file(&self, tmp: &Path, how: blob::Compression, fill: Fill<'_>) -> Result<()> {
        durable::remove_file(tmp)?;
        let f = durable::new_file(tmp, 0o644)?;
        let w = compressed(io::BufWriter::with_capacity(256 << 10, f), how, fill)?;
        w.into_inner().map_err(io::IntoInnerError::into_error).at("write", tmp)?.sync_all().at("sync", tmp)
    }

    fn oci(&self, images: &[(String, Image)], out: &mut dyn Sink, task: &dyn Task) -> Result<()> {
        out.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let mut manifests = Vec::new();
        let mut blobs: BTreeMap<Digest, ()> = BTreeMap::new();
        for (name, i) in images {
            let mut d = manifest::descriptor(&i.media_type, i.manifest, i.manifest_size);
            if let Some(n) = self.full_name(name)? {
                d.annotations.insert("io.containerd.image.name".into(), json!(n));
                d.annotations.insert("org.opencontainers.image.ref.name".into(), json!(n));
            }
            manifests.push(d);
            blobs.extend(
                [i.manifest, i.config].into_iter().chain(i.layers.iter().map(|l| l.blob)).map(|d| (d, ())),
            );
        }
        let index = Index { schema_version: 2, media_type: manifest::INDEX.into(), manifests };
        out.file("index.json", &serde_json::to_vec(&index).at("encode", "index.json")?)?;
        out.dir("blobs")?;
        out.dir("blobs/sha256")?;
        for d in blobs.keys() {
            let path = self.layout.blob(d);
            let f = File::open(&path).at("open", &path)?;
            let size = f.metadata().at("stat", &path)?.len();
            self.verified(d, Counted { inner: f, task }, &mut |r| {
                out.stream(&format!("blobs/sha256/{}", d.hex()), size, r)
            })?;
        }
        Ok(())
    }

    fn docker(&self, images: &[(String, Image)], out: &mut dyn Sink, task: &dyn Task) -> Result<()> {
        let mut list = Vec::new();
        let mut written: BTreeMap<String, ()> = BTreeMap::new();
        for (name, i) in images {
            let config = durable::read_small(&self.layout.blob(&i.config), manifest::MAX_CONFIG)?;
            let config_name = format!("{}.json", i.config.hex());
            if written.insert(config_name.clone(), ()).is_none() {
                out.file(&config_name, &config)?;
            }
            let mut layers = Vec::new();
            for l in &i.layers {
                let file = format!("{}.tar", l.diff_id.hex());
                if written.insert(file.clone(), ()).is_none() {
                    self.docker_layer(&l.blob, &l.diff_id, &file, out, task)?;
                }
                layers.push(file);
            }
            let tags: Vec<String> = self.full_name(name)?.into_iter().collect();
            list.push(json!({"Config": config_name, "RepoTags": tags, "Layers": layers}));
        }
        out.file("manifest.json", &serde_json::to_vec(&list).at("encode", "manifest.json")?)
    }

    /// A layer uncompressed. Its length must stand before it, so it is decompressed twice.
    fn docker_layer(
        &self,
        blob: &Digest,
        diff_id: &Digest,
        name: &str,
        out: &mut dyn Sink,
        task: &dyn Task,
    ) -> Result<()> {
        let path = self.layout.blob(blob);
        let open = || -> Result<_> { blob::decoder(File::open(&path).at("open", &path)?).at("read", &path) };
        let size = io::copy(&mut open()?, &mut io::sink()).at("read", &path)?;
        self.verified(diff_id, Counted { inner: open()?, task }, &mut |r| out.stream(name, size, r))
    }

    /// Passes a stream on, and fails if it was not what its digest says.
    fn verified(
        &self,
        want: &Digest,
        from: impl Read,
        pass: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        let mut h = Hashing::new(from);
        pass(&mut h)?;
        let (_, found, _) = h.finish();
        if found == *want {
            return Ok(());
        }
        Err(Error::Digest {
            what: "a blob of the store".into(),
            expected: want.to_string(),
            found: found.to_string(),
        })
    }

    /// The name to write: the one asked for, unless the image was asked for by its id.
    fn full_name(&self, asked: &str) -> Result<Option<String>> {
        let Ok(full) = crate::reference::with_tag(asked) else { return Ok(None) };
        Ok(self.read(|tx| tx.has::<Name>(&full))?.then_some(full))
    }
}

type Fill<'a> = &'a mut dyn FnMut(&mut dyn Sink) -> Result<()>;

fn compressed<W: Write>(out: W, how: blob::Compression, fill: Fill<'_>) -> Result<W> {
    let here = Path::new("the archive");
    match how {
        blob::Compression::None => tar_to(out, fill),
        blob::Compression::Gzip => {
            tar_to(flate2::write::GzEncoder::new(out, flate2::Compression::new(5)), fill)?
                .finish()
                .at("write", here)
        }
        blob::Compression::Zstd => {
            tar_to(zstd::Encoder::new(out, 3).at("write", here)?, fill)?.finish().at("write", here)
        }
    }
}

fn tar_to<W: Write>(out: W, fill: Fill<'_>) -> Result<W> {
    let mut sink = TarSink(Writer::new(out));
    fill(&mut sink)?;
    sink.0.finish().at("write", "the archive")
}

/// Where an archive's files go.
trait Sink {
    fn dir(&mut self, name: &str) -> Result<()>;
    fn stream(&mut self, name: &str, size: u64, from: &mut dyn Read) -> Result<()>;

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.stream(name, bytes.len() as u64, &mut &bytes[..])
    }
}

struct TarSink<W: Write>(Writer<W>);

impl<W: Write> Sink for TarSink<W> {
    fn dir(&mut self, name: &str) -> Result<()> {
        self.0.entry(&plain(name, Kind::Dir, 0o755, 0)).at("write", name)
    }

    fn stream(&mut self, name: &str, size: u64, from: &mut dyn Read) -> Result<()> {
        self.0.entry(&plain(name, Kind::File, 0o644, size)).at("write", name)?;
        let mut buf = vec![0u8; 256 << 10];
        loop {
            match from.read(&mut buf).at("read", name)? {
                0 => return Ok(()),
                n => self.0.data(buf.get(..n).unwrap_or_default()).at("write", name)?,
            }
        }
    }
}

struct DirSink<'a>(&'a Path);

impl Sink for DirSink<'_> {
    fn dir(&mut self, name: &str) -> Result<()> {
        let p = self.0.join(name);
        std::fs::create_dir_all(&p).at("create", p)
    }

    fn stream(&mut self, name: &str, _size: u64, from: &mut dyn Read) -> Result<()> {
        let p = self.0.join(name);
        io::copy(from, &mut File::create(&p).at("create", &p)?).map(drop).at("write", p)
    }
}

fn plain(name: &str, kind: Kind, mode: u32, size: u64) -> Entry {
    let path = name.as_bytes().to_vec();
    Entry { path, kind, mode, uid: 0, gid: 0, mtime: Time::default(), size, xattrs: Vec::new(), sparse: None }
}
