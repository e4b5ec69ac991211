//! A registry on the loopback device, for as long as a step needs it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::scene::Scene;

const START_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// A running registry; ends with this value.
pub struct Registry {
    process: Child,
    /// `127.0.0.1:PORT`, the first part of its images' names.
    pub address: String,
}

impl Registry {
    /// Starts an empty registry and waits until it answers.
    pub fn start(scene: &Scene) -> Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let data = scene.path(&format!("registry-{port}"));
        fs::create_dir_all(&data)?;
        let configuration = data.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {address}}}\n",
            data.display()
        );
        fs::write(&configuration, text).context("the registry's configuration")?;
        let log = File::create(data.join("log")).context("the registry's log")?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&configuration)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("docker-registry")?;
        let registry = Self { process, address };
        registry.wait(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        Ok(registry)
    }

    fn wait(&self, address: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while TcpStream::connect(address).is_err() {
            if Instant::now() > deadline {
                bail!("the registry does not answer on {address}");
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait()) {
            eprintln!("xtask: ending the registry: {error}");
        }
    }
}
