//! Where messages go: standard error in the foreground, a file or syslog from the daemon.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::args::MountArgs;
use crate::failure::{Context, Failure, Outcome};

/// The environment variable with a filter such as `debug` or `plyfs_core=trace`.
const FILTER: &str = "PLYFS_LOG";
/// syslog's facility for daemons.
const DAEMON: u8 = 3 << 3;

/// For whom is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A process that nobody watches.
    Daemon,
    /// A process on a terminal.
    Foreground,
}

/// Starts logging as the command line asks for it. Without syslog (in a container) and without a file the daemon's messages
/// are lost, as there is nowhere to put them.
pub fn start(args: &MountArgs, role: Role) -> Outcome<()> {
    let default = if args.debug { "trace" } else { "info" };
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    let started = if let Some(path) = &args.log {
        let file = File::options().create(true).append(true).open(path);
        let file = file.context(|| format!("{}: cannot write the log", path.display()))?;
        builder.with_writer(Mutex::new(file)).try_init()
    } else if role == Role::Daemon {
        builder.without_time().with_level(false).with_writer(Syslog::connect()).try_init()
    } else {
        builder.with_writer(io::stderr).try_init()
    };
    started.map_err(|error| Failure::new(format!("cannot start logging: {error}")))
}

/// The socket of syslog(3), if anything listens there.
struct Syslog {
    socket: Option<UnixDatagram>,
    pid: u32,
}

impl Syslog {
    fn connect() -> Self {
        let connect = || {
            let socket = UnixDatagram::unbound()?;
            socket.connect("/dev/log")?;
            // A logger that does not read must not stop a file system.
            socket.set_nonblocking(true)?;
            io::Result::Ok(socket)
        };
        Self { socket: connect().ok(), pid: std::process::id() }
    }
}

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = Message<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Message::new(self, Level::INFO)
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        Message::new(self, *metadata.level())
    }
}

/// One message, sent when it is complete.
struct Message<'a> {
    syslog: &'a Syslog,
    text: Vec<u8>,
}

impl<'a> Message<'a> {
    fn new(syslog: &'a Syslog, level: Level) -> Self {
        let severity = match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let text = format!("<{}>plyfs[{}]: ", DAEMON | severity, syslog.pid).into_bytes();
        Self { syslog, text }
    }
}

impl Write for Message<'_> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Message<'_> {
    fn drop(&mut self) {
        if let Some(socket) = &self.syslog.socket {
            // There is nobody to tell that the log cannot be written.
            drop(socket.send(self.text.trim_ascii_end()));
        }
    }
}
