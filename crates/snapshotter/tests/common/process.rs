//! A snapshotter in a process of its own, which can be killed: the test program, started again.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use plyfs_snapshotter::{Backend, Config, Options, serve};

/// Tells the started test program what to serve.
const DIRECTORY: &str = "PLYFS_SNAPSHOTTER_TEST_DIRECTORY";
const BACKEND: &str = "PLYFS_SNAPSHOTTER_TEST_BACKEND";
/// The name of the test that does nothing but serve, if it is told what.
pub const SERVING_TEST: &str = "serves_in_a_process_of_its_own";
const START_LIMIT: Duration = Duration::from_secs(30);

/// The body of the test named [`SERVING_TEST`].
pub fn serve_if_told() {
    let Some(dir) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let backend = match std::env::var(BACKEND).as_deref() {
        Ok("fuse") => Backend::Fuse,
        _ => Backend::Kernel,
    };
    let config = Config {
        address: dir.join("s.sock"),
        root: dir.join("root"),
        options: Options { backend, sync: true },
        metrics: None,
    };
    serve(&config).unwrap();
}

/// A running snapshotter; killed when dropped.
pub struct Process(Child);

impl Process {
    /// Starts one that serves `dir`, and waits until its socket answers.
    pub fn start(dir: &Path, backend: &str) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", SERVING_TEST, "--nocapture"])
            .env(DIRECTORY, dir)
            .env(BACKEND, backend)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut process = Self(child);
        let start = Instant::now();
        while std::os::unix::net::UnixStream::connect(dir.join("s.sock")).is_err() {
            if process.0.try_wait().unwrap().is_some() || start.elapsed() > START_LIMIT {
                process.0.kill().unwrap();
                let mut text = String::new();
                process.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
                panic!("the snapshotter did not start: {text}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        process
    }

    /// Kills it as the kernel does when memory is short.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Asks it to end, and expects that it does so well.
    pub fn end(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.0.try_wait().unwrap().is_none() {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }
}
