//! Credential helpers: programs `docker-credential-NAME` that keep passwords elsewhere than in a file.
//!
//! Owns their protocol, which is docker's (github.com/docker/docker-credential-helpers): called with `get`, the
//! registry's address on standard input, and JSON with Username and Secret on standard output. Never prints a secret.

use std::io::{self, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::error::{Error, Result};

/// More than any helper has to say.
const MAX: u64 = 1 << 20;
/// How long a helper may take: some ask the user to unlock a key ring.
const PATIENCE: Duration = Duration::from_secs(30);
/// What helpers print, and exit with 1, for a registry that they know nothing of.
const UNKNOWN: &str = "credentials not found";
/// In place of a user's name: the secret is an OAuth2 token.
const TOKEN: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// `USER:PASSWORD` for `server`; none if the helper `name` has nothing for it.
pub fn get(name: &str, server: &str) -> Result<Option<String>> {
    let program = format!("docker-credential-{name}");
    let fail = |why: String| Error::Program { program: program.clone(), why };
    if name.is_empty() || name.contains('/') {
        return Err(Error::invalid(format!("credential helper \"{}\"", name.escape_default()), "is no name"));
    }
    let (ok, text) = ask(&program, server).map_err(|e| fail(e.to_string()))?;
    if !ok {
        // A helper's message is on its standard output, too.
        let said = String::from_utf8_lossy(&text).trim().to_owned();
        return if said.to_ascii_lowercase().contains(UNKNOWN) { Ok(None) } else { Err(fail(said)) };
    }
    // Not the parser's message: it may quote a secret.
    let a: Answer = serde_json::from_slice(&text).map_err(|_| fail("did not answer with JSON".into()))?;
    if a.username == TOKEN {
        return Err(fail(format!(
            "has an identity token for {server}, which cannot be used here: log in with a password"
        )));
    }
    Ok((!a.username.is_empty() || !a.secret.is_empty()).then(|| format!("{}:{}", a.username, a.secret)))
}

fn ask(program: &str, server: &str) -> io::Result<(bool, Vec<u8>)> {
    let child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    hear(child, server, PATIENCE)
}

/// What a helper answers, and whether it succeeded. It is gone after this, whatever happened.
fn hear(mut child: Child, server: &str, patience: Duration) -> io::Result<(bool, Vec<u8>)> {
    let heard = hear_until(&mut child, server, Instant::now() + patience);
    if heard.is_err()
        && let Err(e) = child.kill().and_then(|()| child.wait())
    {
        tracing::warn!("a credential helper was not ended: {e}");
    }
    match heard {
        Err(e) if e.kind() == io::ErrorKind::TimedOut => {
            Err(io::Error::other(format!("no answer within {} s", patience.as_secs_f32())))
        }
        r => r,
    }
}

fn hear_until(child: &mut Child, server: &str, until: Instant) -> io::Result<(bool, Vec<u8>)> {
    let (stdin, stdout, server) = (child.stdin.take(), child.stdout.take(), server.to_owned());
    let (tell, told) = mpsc::channel();
    // A thread that nobody waits for: what the helper started may keep its end of the pipe after it.
    std::thread::Builder::new().name("credentials".into()).spawn(move || {
        if tell.send(talk(stdin, stdout, &server)).is_err() {
            tracing::debug!("a credential helper answered too late");
        }
    })?;
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    let text = told.recv_timeout(until.saturating_duration_since(Instant::now())).map_err(|_| late())??;
    loop {
        match child.try_wait()? {
            Some(status) => return Ok((status.success(), text)),
            None if Instant::now() >= until => return Err(late()),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn talk(stdin: Option<ChildStdin>, stdout: Option<ChildStdout>, server: &str) -> io::Result<Vec<u8>> {
    if let Some(mut to) = stdin {
        match to.write_all(server.as_bytes()) {
            // It may know without reading.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
            r => r?,
        }
    }
    let mut text = Vec::new();
    if let Some(from) = stdout {
        from.take(MAX).read_to_end(&mut text)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(script: &str) -> Child {
        let mut c = Command::new("sh");
        c.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn a_helper_that_hangs_is_ended_and_leaves_no_zombie() {
        // Silent; silent with its output closed; and one whose own child keeps the output.
        for script in ["exec sleep 600", "exec sleep 600 >&-", "sleep 3 & exec sleep 600"] {
            let c = child(script);
            let process = std::path::PathBuf::from(format!("/proc/{}", c.id()));
            let e = hear(c, "s", Duration::from_millis(300)).unwrap_err();
            assert_eq!(e.to_string(), "no answer within 0.3 s", "{script}");
            assert!(!process.exists(), "{script}");
        }
    }

    #[test]
    fn a_helper_is_heard_to_its_end() {
        let (ok, text) = hear(child("read -r s; echo $s; exit 1"), "s", Duration::from_secs(60)).unwrap();
        assert_eq!((ok, &text[..]), (false, &b"s\n"[..]));
        assert_eq!(hear(child(":"), "s", Duration::from_secs(60)).unwrap(), (true, Vec::new()));
    }
}
