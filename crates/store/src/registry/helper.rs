//! Credential helpers: programs `docker-credential-NAME` that keep passwords elsewhere than in a file.
//!
//! Owns their protocol, which is docker's (github.com/docker/docker-credential-helpers): called with `get`, the
//! registry's address on standard input, and JSON with Username and Secret on standard output. Never prints a secret.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::error::{Error, Result};

/// More than any helper has to say.
const MAX: u64 = 1 << 20;
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

fn ask(program: &str, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    if let Some(mut to) = child.stdin.take() {
        match to.write_all(server.as_bytes()) {
            // It may know without reading.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
            r => r?,
        }
    }
    let mut text = Vec::new();
    if let Some(from) = child.stdout.take() {
        from.take(MAX).read_to_end(&mut text)?;
    }
    Ok((child.wait()?.success(), text))
}
