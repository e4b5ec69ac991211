//! A registry on loopback that can misbehave: enough of the distribution-spec for pull and push.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests; each binary uses its part"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What goes wrong with a blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// Half of it, then silence.
    Stall,
    /// Half of it, then the connection closes; every time, from wherever it is asked.
    Drop,
    /// The connection closes once in the middle, the next request goes well.
    DropOnce,
    /// A longer length than the manifest's.
    Longer,
    /// A shorter one, and as many bytes.
    Shorter,
    /// Other bytes of the same length.
    Other,
}

pub struct Registry {
    pub address: String,
    pub state: Arc<Mutex<State>>,
}

pub struct State {
    pub blobs: BTreeMap<String, Vec<u8>>,
    pub manifests: BTreeMap<String, (String, Vec<u8>)>,
    pub fault: Fault,
    /// Base64 of user and password that is asked for; none for an open registry.
    pub auth: Option<String>,
    /// Method, path and range of each request.
    pub log: Vec<String>,
    dropped: bool,
}

impl Registry {
    pub fn start() -> Registry {
        let l = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = l.local_addr().unwrap().to_string();
        let state = State {
            blobs: BTreeMap::new(),
            manifests: BTreeMap::new(),
            fault: Fault::None,
            auth: None,
            log: Vec::new(),
            dropped: false,
        };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for c in l.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(c, &state));
            }
        });
        Registry { address, state }
    }

    pub fn set(&self, fault: Fault) {
        let mut s = self.state.lock().unwrap();
        (s.fault, s.dropped) = (fault, false);
        s.log.clear();
    }
}

/// One request; the connection closes after it. A client that goes away is no failure of the registry's.
fn serve(c: TcpStream, state: &Mutex<State>) {
    let mut r = BufReader::new(c.try_clone().unwrap());
    let mut line = String::new();
    if r.read_line(&mut line).is_err() || line.is_empty() {
        return;
    }
    let mut headers = BTreeMap::new();
    loop {
        let mut h = String::new();
        if r.read_line(&mut h).is_err() || h.trim().is_empty() {
            break;
        }
        if let Some((k, v)) = h.split_once(':') {
            headers.insert(k.to_lowercase(), v.trim().to_owned());
        }
    }
    let words: Vec<&str> = line.split(' ').collect();
    let (method, path) = (words[0].to_owned(), words[1].to_owned());
    let range = headers.get("range").cloned().unwrap_or_default();
    let mut body = vec![0u8; headers.get("content-length").and_then(|v| v.parse().ok()).unwrap_or(0)];
    if r.read_exact(&mut body).is_err() {
        return;
    }
    let mut s = state.lock().unwrap();
    s.log.push(format!("{method} {path} {range}").trim().to_owned());
    if let Some(a) = &s.auth
        && headers.get("authorization") != Some(&format!("Basic {a}"))
    {
        return answer(c, "401 Unauthorized", &["WWW-Authenticate: Basic realm=\"r\""], b"");
    }
    let header = |k: &str| headers.get(k).cloned().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap().to_owned();
    match (method.as_str(), path.contains("/manifests/"), path.contains("/blobs/uploads")) {
        ("PUT", true, _) => {
            let digest = plyfs_store::Digest::of(&body).to_string();
            s.manifests.insert(digest, (header("content-type"), body.clone()));
            s.manifests.insert(last, (header("content-type"), body));
            answer(c, "201 Created", &[], b"");
        }
        ("GET", true, _) => match s.manifests.get(&last).cloned() {
            Some((t, b)) => answer(c, "200 OK", &[&format!("Content-Type: {t}")], &b),
            None => answer(c, "404 Not Found", &[], b""),
        },
        ("POST", _, true) => answer(c, "202 Accepted", &["Location: /v2/x/blobs/uploads/1?state=a"], b""),
        ("PUT", _, true) => {
            let digest = path.split("digest=").nth(1).unwrap().to_owned();
            if plyfs_store::Digest::of(&body).to_string() == digest {
                s.blobs.insert(digest, body);
                answer(c, "201 Created", &[], b"");
            } else {
                answer(c, "400 Bad Request", &[], b"");
            }
        }
        ("HEAD", _, _) if s.blobs.contains_key(&last) => answer(c, "200 OK", &[], b""),
        ("GET", _, _) if path == "/v2/" => answer(c, "200 OK", &[], b"{}"),
        ("GET", _, _) if s.blobs.contains_key(&last) => {
            let b = s.blobs[&last].clone();
            // Configurations are small; the faults are for layers.
            let fault =
                if b.len() < 2000 || s.fault == Fault::DropOnce && s.dropped { Fault::None } else { s.fault };
            s.dropped |= b.len() >= 2000;
            drop(s);
            blob(c, &b, &range, fault);
        }
        _ => answer(c, "404 Not Found", &[], b""),
    }
}

fn blob(mut c: TcpStream, b: &[u8], range: &str, fault: Fault) {
    let start: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0);
    let part = &b[start..];
    let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
    let content_range = format!("Content-Range: bytes {start}-{}/{}", b.len() - 1, b.len());
    let half = part.len() / 2;
    let head = |n: usize| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {n}\r\n{content_range}\r\nConnection: close\r\n\r\n")
    };
    let send = |c: &mut TcpStream, n: usize, bytes: &[u8]| {
        c.write_all(head(n).as_bytes()).and_then(|()| c.write_all(bytes)).is_ok()
    };
    match fault {
        Fault::None => send(&mut c, part.len(), part),
        Fault::Drop | Fault::DropOnce => send(&mut c, part.len(), &part[..half]),
        Fault::Stall => {
            let sent = send(&mut c, part.len(), &part[..half]);
            std::thread::sleep(Duration::from_secs(6));
            sent
        }
        Fault::Longer => send(&mut c, part.len() + 512, &[part, &[0; 512]].concat()),
        Fault::Shorter => send(&mut c, half, &part[..half]),
        Fault::Other => send(&mut c, part.len(), &part.iter().map(|x| x ^ 1).collect::<Vec<_>>()),
    };
}

fn answer(mut c: TcpStream, status: &str, headers: &[&str], body: &[u8]) {
    let more: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{more}Connection: close\r\n\r\n", body.len());
    if c.write_all(head.as_bytes()).and_then(|()| c.write_all(body)).is_err() {
        eprintln!("the client went away");
    }
}
