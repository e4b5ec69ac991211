//! The process: socket, signals, and what systemd is told.
//!
//! Owns the runtime, the sockets and the orderly end. Never touches what is mounted: mounts belong to containerd and its
//! shims, so containers go on while the snapshotter is away, and a new one finds them by its database.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;

use crate::error::{Context, Error, Result};
use crate::metrics::{self, Metrics, MetricsAddress};
use crate::proto::snapshots::snapshots_server::SnapshotsServer;
use crate::service::Service;
use crate::snapshotter::{Options, Snapshotter};

/// How long requests under way may take once the end is asked for.
const GRACE: Duration = Duration::from_secs(10);
/// Labels of a snapshot may add up; a listing is sent in parts.
const MESSAGE_LIMIT: usize = 16 << 20;

/// What to serve, and where.
#[derive(Debug, Clone)]
pub struct Config {
    /// The Unix socket for containerd. With systemd's socket activation the socket comes from there.
    pub address: PathBuf,
    /// The directory of the snapshots.
    pub root: PathBuf,
    /// How the root is served.
    pub options: Options,
    /// Where Prometheus may ask, if anywhere.
    pub metrics: Option<MetricsAddress>,
}

/// Serves until SIGTERM or SIGINT.
pub fn serve(config: &Config) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| cannot_serve(&config.address, &e))?;
    let result = runtime.block_on(async {
        let server = Server::bind(config)?;
        let ended = termination().map_err(|e| cannot_serve(&config.address, &e))?;
        notify(&[NotifyState::Ready, NotifyState::Status(&format!("serving {}", config.root.display()))]);
        server.run(ended).await
    });
    runtime.shutdown_timeout(GRACE);
    result
}

/// A server that listens, but does not answer yet.
#[derive(Debug)]
pub struct Server {
    snapshotter: Arc<Snapshotter>,
    metrics: Arc<Metrics>,
    socket: Socket,
    page: Option<Page>,
}

#[derive(Debug)]
enum Page {
    Tcp(TcpListener),
    Unix(Socket),
}

impl Server {
    /// Opens the root and listens. Within a tokio runtime.
    pub fn bind(config: &Config) -> Result<Self> {
        let snapshotter = Arc::new(Snapshotter::open(&config.root, config.options)?);
        let socket =
            Socket::from_systemd(&config.address)?.map_or_else(|| Socket::bind(&config.address), Ok)?;
        let page = config.metrics.as_ref().map(bind_page).transpose()?;
        Ok(Self { snapshotter, metrics: Arc::new(Metrics::default()), socket, page })
    }

    /// Where metrics are served by TCP: the port may have been the kernel's choice.
    pub fn metrics_port(&self) -> Option<u16> {
        match &self.page {
            Some(Page::Tcp(listener)) => listener.local_addr().ok().map(|address| address.port()),
            _ => None,
        }
    }

    /// Answers until `ended`, and then until the requests under way are answered.
    pub async fn run(self, ended: impl Future<Output = ()>) -> Result<()> {
        let Self { snapshotter, metrics, socket, page } = self;
        let Socket { listener, path } = socket;
        let (stop, stopped) = watch::channel(false);
        let page = page.map(|page| {
            tokio::spawn(serve_page(page, Arc::clone(&metrics), Arc::clone(&snapshotter), stopped.clone()))
        });
        let service = SnapshotsServer::new(Service::new(snapshotter, metrics))
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        let mut until = stopped.clone();
        let serving = tonic::transport::Server::builder().serve_with_incoming_shutdown(
            service,
            UnixListenerStream::new(listener),
            async move {
                if until.wait_for(|stop| *stop).await.is_err() {
                    tracing::debug!("the server's owner is gone");
                }
            },
        );
        let ending = async {
            ended.await;
            notify(&[NotifyState::Stopping]);
            stop.send_replace(true);
            tokio::time::sleep(GRACE).await;
        };
        let result = tokio::select! {
            result = serving => result.map_err(|e| cannot_serve(&path.path, &e)),
            () = ending => {
                tracing::warn!("requests still under way after {} s are given up", GRACE.as_secs());
                Ok(())
            }
        };
        stop.send_replace(true);
        if let Some(page) = page {
            page.await.map_err(|e| cannot_serve(&path.path, &e))?;
        }
        result
    }
}

async fn serve_page(
    page: Page,
    metrics: Arc<Metrics>,
    snapshotter: Arc<Snapshotter>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = accept(&page, &metrics, &snapshotter) => accepted,
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        if let Err(e) = accepted {
            tracing::warn!("metrics: {e}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn accept(page: &Page, metrics: &Arc<Metrics>, snapshotter: &Arc<Snapshotter>) -> std::io::Result<()> {
    let (metrics, snapshotter) = (Arc::clone(metrics), Arc::clone(snapshotter));
    match page {
        Page::Tcp(listener) => {
            let (connection, _) = listener.accept().await?;
            tokio::spawn(metrics::answer(connection, metrics, snapshotter));
        }
        Page::Unix(socket) => {
            let (connection, _) = socket.listener.accept().await?;
            tokio::spawn(metrics::answer(connection, metrics, snapshotter));
        }
    }
    Ok(())
}

fn bind_page(address: &MetricsAddress) -> Result<Page> {
    match address {
        MetricsAddress::Unix(path) => Socket::bind(path).map(Page::Unix),
        MetricsAddress::Tcp(address) => {
            let bind = || {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener)
            };
            bind().map(Page::Tcp).map_err(|e| cannot_serve(Path::new(&address.to_string()), &e))
        }
    }
}

/// A listening Unix socket; one that was bound here goes with it.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    path: SocketPath,
}

impl Socket {
    /// The socket that systemd passed, if it did.
    fn from_systemd(address: &Path) -> Result<Option<Self>> {
        let passed = listenfd::ListenFd::from_env().take_unix_listener(0).at("take over", address)?;
        let Some(listener) = passed else { return Ok(None) };
        listener.set_nonblocking(true).at("take over", address)?;
        let listener = UnixListener::from_std(listener).at("take over", address)?;
        Ok(Some(Self { listener, path: SocketPath { path: address.to_owned(), inode: None } }))
    }

    /// Listens at `address`, for the owner only. A socket there on which nobody listens is replaced.
    fn bind(address: &Path) -> Result<Self> {
        refuse_occupied(address)?;
        if let Some(parent) = address.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).at("create", parent)?;
        }
        // Bound under another name and renamed once its mode is right: nobody connects before.
        let mut new = address.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        match fs::remove_file(&new) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).at("remove", &new),
            _ => {}
        }
        let listener = UnixListener::bind(&new).at("listen at", &new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).at("chmod", &new)?;
        let inode = fs::symlink_metadata(&new).at("stat", &new)?.ino();
        fs::rename(&new, address).at("rename", &new)?;
        Ok(Self { listener, path: SocketPath { path: address.to_owned(), inode: Some(inode) } })
    }
}

fn refuse_occupied(address: &Path) -> Result<()> {
    let Ok(found) = fs::symlink_metadata(address) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(cannot_serve(address, &"something else than a socket is there"));
    }
    if std::os::unix::net::UnixStream::connect(address).is_ok() {
        return Err(cannot_serve(address, &"another process listens there"));
    }
    Ok(())
}

/// The path of a socket, removed at the end if it is still the one that was bound.
#[derive(Debug)]
struct SocketPath {
    path: PathBuf,
    inode: Option<u64>,
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        let Some(inode) = self.inode else { return };
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == inode);
        if let Err(e) = if ours { fs::remove_file(&self.path) } else { Ok(()) } {
            tracing::warn!("cannot remove {}: {e}", self.path.display());
        }
    }
}

fn termination() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("ending: mounts stay as they are");
    })
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::warn!("cannot notify systemd: {e}");
    }
}

fn cannot_serve(address: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::Serve { address: address.display().to_string(), message: why.to_string() }
}
