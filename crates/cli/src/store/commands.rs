//! Each command: call the library, print what it says.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use plyfs_store::{
    Changes, CheckOptions, Context, Error, Image, Limits, Options, RegistryOptions, State, Store,
    default_root,
};
use serde_json::json;

use super::args::{
    ChangeArgs, LimitArgs, PullArgs, PushArgs, RegistryArgs, SaveArgs, StoreCli, StoreCommand,
};
use super::show::{self, short};
use super::{absent, bars, running};

/// Why a command ends early.
pub enum Failure {
    /// The reader of our output went away (`plyfs images | head -1`): nothing to say.
    Quiet,
    /// An error to print.
    Store(Error),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        match e {
            Error::Io { ref source, .. } if source.kind() == io::ErrorKind::BrokenPipe => Failure::Quiet,
            e => Failure::Store(e),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(source: io::Error) -> Failure {
        Failure::from(Error::Io { op: "write", path: "standard output".into(), source })
    }
}

/// What a command returns: an exit code.
pub type Done = Result<u8, Failure>;

/// Runs the command; returns the exit code.
pub fn run(cli: StoreCli) -> Done {
    // Deep trees are removed and copied with a descriptor for each level.
    if let Err(e) = plyfs_sys::process::raise_descriptor_limit() {
        tracing::debug!("the limit of open files stays: {e}");
    }
    let root = match &cli.root {
        Some(r) => r.clone(),
        None => default_root()?,
    };
    if let Some(failure) = absent::failure(&root, &cli.command) {
        return Err(Failure::Store(failure));
    }
    let options =
        Options { limits: limits(&cli.limits), progress: bars::progress(cli.quiet), fuse_program: None };
    let store = Store::open(&root, options)?;
    Ctx { store, json: cli.json, backend: cli.backend }.command(cli.command)
}

fn limits(a: &LimitArgs) -> Limits {
    let d = Limits::default();
    Limits {
        entries: a.max_entries.unwrap_or(d.entries),
        bytes: a.max_bytes.unwrap_or(d.bytes),
        ratio: a.max_ratio.unwrap_or(d.ratio),
        ..d
    }
}

/// What every command has at hand.
pub struct Ctx {
    /// The store.
    pub store: Store,
    /// Whether JSON is wanted.
    pub json: bool,
    /// Who shows merged views.
    pub backend: plyfs_store::Backend,
}

impl Ctx {
    fn command(&self, command: StoreCommand) -> Done {
        match command {
            StoreCommand::Import(a) => {
                self.made(&self.store.import(&a.from, &a.name, &changes(a.changes))?)
            }
            StoreCommand::Commit(a) => {
                self.made(&self.store.commit(&a.container, &a.name, &changes(a.changes))?)
            }
            StoreCommand::Pull(a) => self.pull(&a),
            StoreCommand::Push(a) => self.push(&a),
            StoreCommand::Load { from } => self.load(&from),
            StoreCommand::Save(a) => self.save(&a),
            StoreCommand::Images => self.images(),
            StoreCommand::Inspect { names } => self.inspect(&names),
            StoreCommand::Tag { image, name } => done(self.store.tag(&image, &name)),
            StoreCommand::Rmi { force, images } => self.rmi(&images, force),
            StoreCommand::History { image } => self.history(&image),
            StoreCommand::Create { size, image, name } => self.create(&image, name.as_deref(), size),
            StoreCommand::Mount { container } => self.mount(&container),
            StoreCommand::Umount { force, container } => self.umount(&container, force),
            StoreCommand::Ps { all: _ } => self.ps(),
            StoreCommand::Diff { container } => self.diff(&container),
            StoreCommand::Export { output, name } => self.export(&name, output.as_deref()),
            StoreCommand::Run(a) => running::run(self, &a),
            StoreCommand::Exec(a) => running::exec(self, &a),
            StoreCommand::Stop { time, containers } => running::stop(self, &containers, time),
            StoreCommand::Logs { follow, container } => running::logs(self, &container, follow),
            StoreCommand::Supervise { container } => running::supervise(self, &container),
            StoreCommand::Cp { from, to } => done(self.store.copy(&from, &to)),
            StoreCommand::Info => self.info(),
            StoreCommand::Df => self.df(),
            StoreCommand::Gc => self.gc(),
            StoreCommand::Check { repair, quick } => self.check(CheckOptions { repair, quick }),
            StoreCommand::Rm { force, containers } => self.rm(&containers, force),
        }
    }

    fn made(&self, i: &Image) -> Done {
        self.say(&json!({"id": i.config, "digest": i.manifest}), &i.config.to_string())
    }

    /// One line for people, or an object.
    pub fn say(&self, value: &serde_json::Value, text: &str) -> Done {
        if self.json {
            show::json(value)?
        } else {
            show::line(text)?
        }
        Ok(0)
    }

    fn load(&self, from: &Path) -> Done {
        let loaded = self.store.load(from)?;
        if self.json {
            show::json(
                &loaded.iter().map(|i| json!({"id": i.config, "digest": i.manifest})).collect::<Vec<_>>(),
            )?;
            return Ok(0);
        }
        let listed = self.store.images()?;
        for i in loaded {
            let names = listed
                .iter()
                .find(|l| l.digest == i.manifest)
                .map(|l| l.names.join(", "))
                .unwrap_or_default();
            show::line(if names.is_empty() {
                i.config.to_string()
            } else {
                format!("{}  {names}", i.config)
            })?;
        }
        Ok(0)
    }

    fn pull(&self, a: &PullArgs) -> Done {
        let options = registry(&a.registry);
        for name in &a.images {
            self.made(&self.store.pull(name, &options)?)?;
        }
        Ok(0)
    }

    fn push(&self, a: &PushArgs) -> Done {
        let digest = self.store.push(&a.image, a.to.as_ref().unwrap_or(&a.image), &registry(&a.registry))?;
        self.say(&json!({"digest": digest}), &digest.to_string())
    }

    fn save(&self, a: &SaveArgs) -> Done {
        done(self.store.save(&a.images, a.format, a.compression, &a.output))
    }

    fn images(&self) -> Done {
        let all = self.store.images()?;
        if self.json {
            show::json(&all)?;
            return Ok(0);
        }
        let mut rows = Vec::new();
        for i in &all {
            let created = i.created.as_deref().map(|c| c.chars().take(10).collect()).unwrap_or_default();
            let none = ["<none>".to_owned()];
            for n in if i.names.is_empty() { &none[..] } else { &i.names[..] } {
                rows.push(vec![
                    n.clone(),
                    short(&i.id.hex()),
                    i.layers.to_string(),
                    show::bytes(i.size),
                    String::clone(&created),
                ]);
            }
        }
        show::table(&["NAME", "ID", "LAYERS", "SIZE", "CREATED"], &rows)?;
        Ok(0)
    }

    fn inspect(&self, names: &[String]) -> Done {
        let all = names.iter().map(|n| self.store.inspect(n)).collect::<Result<Vec<_>, _>>()?;
        show::json(&all)?;
        Ok(0)
    }

    fn rmi(&self, images: &[String], force: bool) -> Done {
        for i in images {
            let r = self.store.remove_image(i, force)?;
            if self.json {
                show::json(&r)?;
                continue;
            }
            for n in &r.names {
                show::line(format!("untagged {n}"))?;
            }
            if let Some(id) = r.image {
                show::line(format!("deleted {id}"))?;
            }
        }
        Ok(0)
    }

    fn history(&self, image: &str) -> Done {
        let steps = self.store.history(image)?;
        if self.json {
            show::json(&steps)?;
            return Ok(0);
        }
        let row = |s: &plyfs_store::Step| {
            let layer = s.diff_id.map_or_else(|| "-".to_owned(), |d| short(&d.hex()));
            let when = s.created.chars().take(19).collect();
            vec![
                when,
                layer,
                s.size.map_or_else(|| "-".to_owned(), show::bytes),
                s.created_by.replace(['\t', '\n'], " "),
            ]
        };
        show::table(&["CREATED", "LAYER", "SIZE", "BY"], &steps.iter().map(row).collect::<Vec<_>>())?;
        Ok(0)
    }

    fn create(&self, image: &str, name: Option<&str>, size: Option<u64>) -> Done {
        let c = self.store.create(image, name, size)?;
        self.say(&json!({"id": c.id, "name": c.name}), &c.name)
    }

    fn mount(&self, container: &str) -> Done {
        let path = self.store.mount(container, self.backend)?;
        if self.json {
            show::json(&json!({"path": path.display().to_string()}))?;
        } else {
            show::line(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))?;
        }
        Ok(0)
    }

    fn umount(&self, container: &str, force: bool) -> Done {
        let gone = self.store.unmount(container, force)?;
        if self.json {
            show::json(&json!({"unmounted": gone}))?;
        }
        Ok(0)
    }

    fn ps(&self) -> Done {
        let mut rows = Vec::new();
        let mut list = Vec::new();
        for c in self.store.containers()? {
            let mounted = self.store.is_mounted(&c)?;
            let status = match self.store.state(&c)? {
                State::Running(pid) => format!("running ({pid})"),
                State::Exited(code) => format!("exited ({code})"),
                State::Created if mounted => "mounted".into(),
                State::Created => "created".into(),
            };
            let backend = c.backend.clone().filter(|_| mounted).unwrap_or_else(|| "-".into());
            list.push(json!({"id": c.id, "name": c.name, "image": c.image_name, "created": c.created, "status": status, "backend": backend}));
            rows.push(vec![
                short(&c.id),
                c.name,
                c.image_name,
                status.to_owned(),
                backend,
                c.created.chars().take(19).collect(),
            ]);
        }
        if self.json {
            show::json(&list)?;
        } else {
            show::table(&["ID", "NAME", "IMAGE", "STATUS", "BACKEND", "CREATED"], &rows)?;
        }
        Ok(0)
    }

    fn diff(&self, container: &str) -> Done {
        let changes = self.store.diff(container)?;
        if self.json {
            let list: Vec<_> = changes
                .iter()
                .map(|c| json!({"kind": c.kind, "path": String::from_utf8_lossy(&c.path)}))
                .collect();
            show::json(&list)?;
            return Ok(0);
        }
        for c in changes {
            show::line([&[c.kind.letter() as u8, b' '][..], &c.path].concat())?;
        }
        Ok(0)
    }

    fn export(&self, name: &str, output: Option<&Path>) -> Done {
        let Some(path) = output.filter(|p| *p != Path::new("-")) else {
            let mut out = BufWriter::with_capacity(256 << 10, io::stdout().lock());
            self.store.export(name, &mut out)?;
            out.flush()?;
            return Ok(0);
        };
        let file = std::fs::File::create(path).at("create", path)?;
        let mut out = BufWriter::with_capacity(256 << 10, file);
        self.store.export(name, &mut out)?;
        out.flush().at("write", path)?;
        Ok(0)
    }

    fn info(&self) -> Done {
        let i = self.store.info()?;
        if self.json {
            show::json(&i)?;
            return Ok(0);
        }
        let mut lines = vec![
            ("Root", i.root),
            ("Backend", i.backend.name().to_owned()),
            ("Backing Filesystem", i.backing_filesystem),
            ("Supports d_type", i.supports_d_type.to_string()),
            ("Using metacopy", i.using_metacopy.to_string()),
            ("Native Overlay Diff", i.native_overlay_diff.to_string()),
            ("Xattr namespace", i.xattr_namespace),
            ("Owners", i.owners),
            ("Images", i.images.to_string()),
            ("Layers", i.layers.to_string()),
            ("Containers", i.containers.to_string()),
        ];
        if i.nodev_or_nosuid {
            lines.push((
                "Warning",
                "the file system is mounted nodev or nosuid; so are the containers".into(),
            ));
        }
        for (k, v) in lines {
            show::line(format!("{k}: {v}"))?;
        }
        for (b, why) in i.not {
            show::line(format!("Not {b}: {why}"))?;
        }
        Ok(0)
    }

    fn df(&self) -> Done {
        let u = self.store.df()?;
        if self.json {
            show::json(&u)?;
            return Ok(0);
        }
        let image = |i: &plyfs_store::ImageUsage| {
            let sizes = [i.size, i.shared, i.unique, i.blobs].map(show::bytes);
            [vec![i.name.clone()], sizes.to_vec(), vec![i.inodes.to_string(), i.containers.to_string()]]
                .concat()
        };
        let head = ["IMAGE", "SIZE", "SHARED", "UNIQUE", "BLOBS", "INODES", "CONTAINERS"];
        show::table(&head, &u.images.iter().map(image).collect::<Vec<_>>())?;
        let container =
            |c: &plyfs_store::ContainerUsage| vec![c.name.clone(), show::bytes(c.size), c.inodes.to_string()];
        show::table(
            &["CONTAINER", "SIZE", "INODES"],
            &u.containers.iter().map(container).collect::<Vec<_>>(),
        )?;
        let [layers, blobs, reclaimable] = [u.layers, u.blobs, u.reclaimable].map(show::bytes);
        show::line(format!(
            "layers {layers}, blobs {blobs}, reclaimable {reclaimable}, inodes {}",
            u.inodes
        ))?;
        Ok(0)
    }

    fn gc(&self) -> Done {
        let c = self.store.gc()?;
        if self.json {
            show::json(&c)?;
            return Ok(0);
        }
        let count = c.layers.len() + c.blobs.len() + c.containers.len() + c.links.len();
        show::line(format!("removed {count}, {} given back", show::bytes(c.bytes)))?;
        Ok(0)
    }

    fn check(&self, options: CheckOptions) -> Done {
        let problems = self.store.check(options)?;
        let bad = problems.iter().any(|p| !p.harmless && !p.repaired);
        if self.json {
            show::json(&problems)?;
            return Ok(bad.into());
        }
        for p in &problems {
            let fate = match (p.harmless, p.repaired) {
                (true, _) => "note: ",
                (false, true) => "repaired: ",
                (false, false) => "",
            };
            let harms =
                if p.harms.is_empty() { String::new() } else { format!(" (harms {})", p.harms.join(", ")) };
            show::line(format!("{fate}{}: {}{harms}", p.what, p.why))?;
        }
        if problems.is_empty() {
            show::line("no damage")?;
        }
        Ok(bad.into())
    }

    fn rm(&self, containers: &[String], force: bool) -> Done {
        for c in containers {
            let c = self.store.remove_container(c, force)?;
            self.say(&json!({"id": c.id, "name": c.name}), &c.name)?;
        }
        Ok(0)
    }
}

/// Nothing to print.
pub fn done(r: Result<(), Error>) -> Done {
    r?;
    Ok(0)
}

fn registry(a: &RegistryArgs) -> RegistryOptions {
    RegistryOptions {
        tls_verify: a.tls_verify,
        jobs: a.jobs,
        auth_file: a.authfile.clone(),
        stall: a.stall_timeout,
    }
}

fn changes(a: ChangeArgs) -> Changes {
    Changes {
        compression: a.compression,
        message: a.message,
        cmd: a.cmd.map(|w| w.0),
        entrypoint: a.entrypoint.map(|w| w.0),
        env: a.env,
        user: a.user,
        workdir: a.workdir,
    }
}
