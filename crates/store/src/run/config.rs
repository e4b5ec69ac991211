//! The runtime's `config.json` (runtime-spec): what a container sees and may do. Pure: from the image's
//! configuration and the options to JSON. The defaults are docker's.

use std::path::Path;

use serde_json::{Value, json};

use super::user::{self, User};
use super::{Network, RunOptions};
use crate::beneath::Root;
use crate::db::Container;
use crate::error::{Error, Result};
use crate::manifest::Config;

const CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The specification for a container whose root is mounted at `merged`.
pub fn spec(c: &Container, image: &Config, o: &RunOptions, merged: &Path) -> Result<Value> {
    let root = rustix::process::geteuid().is_root();
    let asked = o
        .user
        .clone()
        .or_else(|| image.run("User").and_then(Value::as_str).map(str::to_owned))
        .unwrap_or_default();
    let user = user::resolve(&Root::open(merged)?, &asked)?;
    if !root && (user.uid, user.gid) != (0, 0) {
        return Err(Error::Unsupported(format!(
            "without root only the container's root can be run, not user \"{asked}\""
        )));
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let map = |id: u32| if root { json!([]) } else { json!([{"containerID": 0, "hostID": id, "size": 1}]) };
    // A user has no device cgroup to set; root's containers get the runtime's list of harmless devices.
    let resources = if root { json!({"devices": [{"allow": false, "access": "rwm"}]}) } else { json!({}) };
    let linux = json!({
        "namespaces": namespaces(o.network, root), "maskedPaths": MASKED, "readonlyPaths": READ_ONLY,
        "resources": resources, "uidMappings": map(uid), "gidMappings": map(gid),
    });
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": {"path": merged, "readonly": o.read_only},
        "hostname": c.id.chars().take(12).collect::<String>(),
        "process": process(image, o, &user, root)?,
        "mounts": mounts(o, root),
        "linux": linux,
    }))
}

fn process(image: &Config, o: &RunOptions, user: &User, root: bool) -> Result<Value> {
    let entrypoint = o.entrypoint.clone().unwrap_or_else(|| image.run_list("Entrypoint"));
    // An entrypoint given here puts the image's command out of use, as docker has it.
    let cmd = match (o.cmd.is_empty(), o.entrypoint.is_some()) {
        (false, _) => o.cmd.clone(),
        (true, true) => Vec::new(),
        (true, false) => image.run_list("Cmd"),
    };
    let args = [entrypoint, cmd].concat();
    if args.is_empty() {
        return Err(Error::invalid("image", "names no command: give one"));
    }
    let cwd =
        o.workdir.clone().or_else(|| image.run("WorkingDir").and_then(Value::as_str).map(str::to_owned));
    let cwd = cwd.filter(|d| !d.is_empty()).unwrap_or_else(|| "/".into());
    if !cwd.starts_with('/') {
        return Err(Error::invalid(format!("working directory \"{cwd}\""), "not an absolute path"));
    }
    let groups: &[u32] = if root { &user.groups } else { &[] };
    let caps = json!(CAPABILITIES);
    let none = json!([]);
    // Only root begins with capabilities; others can gain the bounding set's by set-uid programs, as in docker.
    let held = if user.uid == 0 { &caps } else { &none };
    Ok(json!({
        "terminal": o.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": groups},
        "args": args,
        "env": environment(image, o, user),
        "cwd": cwd,
        "capabilities": {"bounding": caps, "effective": held, "permitted": held, "inheritable": none, "ambient": none},
        "noNewPrivileges": false,
    }))
}

/// The image's, then the options', then what a program may expect; a later one of a name replaces an earlier.
fn environment(image: &Config, o: &RunOptions, user: &User) -> Vec<String> {
    let key = |e: &str| e.split('=').next().unwrap_or_default().to_owned();
    let mut env: Vec<String> = Vec::new();
    for e in image.run_list("Env").into_iter().chain(o.env.iter().cloned()) {
        env.retain(|x| key(x) != key(&e));
        env.push(e);
    }
    let defaults = [
        Some("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        user.home.as_ref().map(|h| format!("HOME={h}")),
        o.tty.then(|| "TERM=xterm".to_owned()),
    ];
    for d in defaults.into_iter().flatten() {
        if !env.iter().any(|e| key(e) == key(&d)) {
            env.push(d);
        }
    }
    env
}

fn namespaces(network: Network, root: bool) -> Vec<Value> {
    let mut kinds = vec!["pid", "ipc", "uts", "mount"];
    if network == Network::None {
        kinds.push("network");
    }
    if !root {
        kinds.push("user");
    }
    kinds.into_iter().map(|k| json!({"type": k})).collect()
}

fn mounts(o: &RunOptions, root: bool) -> Vec<Value> {
    let m = |to: &str, kind: &str, from: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": from, "options": options});
    // A user's own namespace has no group 5 (tty).
    let pts: &[&str] = if root {
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    } else {
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    };
    let mut v = vec![
        m("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        m("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        m("/dev/pts", "devpts", "devpts", pts),
        m("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        m("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    // sysfs belongs to the network's namespace: who does not own it can only be shown the machine's.
    if root || o.network == Network::None {
        v.push(m("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]));
    } else {
        v.push(m("/sys", "none", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"]));
    }
    if o.network == Network::Host {
        for f in ["/etc/resolv.conf", "/etc/hosts"].into_iter().filter(|f| Path::new(f).exists()) {
            v.push(m(f, "bind", f, &["bind", "ro", "nosuid", "nodev"]));
        }
    }
    for x in &o.volumes {
        let mode = if x.read_only { "ro" } else { "rw" };
        v.push(json!({"destination": x.target, "type": "bind", "source": x.source, "options": ["rbind", "rprivate", mode]}));
    }
    v
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(config: &Value) -> Config {
        let v = json!({"architecture": "amd64", "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": []}});
        Config::read(v.to_string().as_bytes()).unwrap()
    }

    fn args(config: &Value, o: &RunOptions) -> Value {
        process(&image(config), o, &User::default(), true).unwrap()["args"].clone()
    }

    #[test]
    fn entrypoint_and_command_combine_as_in_docker() {
        let c = json!({"Entrypoint": ["/e"], "Cmd": ["c", "d"]});
        let words = |v: &[&str]| v.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(args(&c, &RunOptions::default()), json!(["/e", "c", "d"]));
        assert_eq!(args(&c, &RunOptions { cmd: words(&["x"]), ..RunOptions::default() }), json!(["/e", "x"]));
        assert_eq!(
            args(&c, &RunOptions { entrypoint: Some(words(&["/f"])), ..RunOptions::default() }),
            json!(["/f"])
        );
        assert!(process(&image(&json!({})), &RunOptions::default(), &User::default(), true).is_err());
    }

    #[test]
    fn later_environment_replaces_earlier_and_users_have_no_capabilities() {
        let i = image(&json!({"Env": ["A=1", "PATH=/p"], "Cmd": ["x"]}));
        let o = RunOptions { env: vec!["A=2".into()], ..RunOptions::default() };
        let u = User { uid: 5, gid: 5, groups: Vec::new(), home: Some("/h".into()) };
        let p = process(&i, &o, &u, true).unwrap();
        assert_eq!(p["env"], json!(["PATH=/p", "A=2", "HOME=/h"]));
        assert_eq!(p["capabilities"]["effective"], json!([]));
        assert_eq!(p["cwd"], "/");
    }
}
