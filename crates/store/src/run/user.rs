//! Whom a container runs as. Owns reading the image's /etc/passwd and /etc/group, which may be anything
//! (CVE-2024-9676): opened beneath the root, regular files only, never blocking, bounded.

use std::io::Read;

use crate::beneath::{self, Root};
use crate::error::{Context, Error, Result};

/// The longest passwd or group file read.
const MAX: u64 = 1 << 20;

/// Numbers of a user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: Option<String>,
}

/// Resolves `USER[:GROUP]`, names or numbers; empty is root.
pub fn resolve(root: &Root, text: &str) -> Result<User> {
    let (user, group) = match text.split_once(':') {
        Some((u, g)) => (u, Some(g)),
        None => (text, None),
    };
    let passwd = read(root, b"etc/passwd")?;
    let groups = read(root, b"etc/group")?;
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    let entry = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| match (number, f.get(2)) {
        (Some(n), Some(id)) => id.parse() == Ok(n),
        _ => f.first() == Some(&user),
    });
    let field = |i: usize| entry.as_ref().and_then(|f| f.get(i)).copied();
    let uid = number.or_else(|| field(2)?.parse().ok()).ok_or_else(|| missing("user", user))?;
    let mut out = User {
        uid,
        gid: field(3).and_then(|g| g.parse().ok()).unwrap_or(0),
        groups: Vec::new(),
        home: field(5).map(str::to_owned),
    };
    if let Some(g) = group {
        out.gid = gid(&groups, g)?;
    } else if let Some(name) = field(0) {
        out.groups = member_of(&groups, name);
    }
    Ok(out)
}

fn gid(groups: &str, name: &str) -> Result<u32> {
    if let Ok(n) = name.parse() {
        return Ok(n);
    }
    let mut fields = groups.lines().map(|l| l.split(':').collect::<Vec<_>>());
    let found = fields.find(|f| f.first() == Some(&name));
    found.and_then(|f| f.get(2)?.parse().ok()).ok_or_else(|| missing("group", name))
}

fn member_of(groups: &str, user: &str) -> Vec<u32> {
    let fields = groups.lines().map(|l| l.split(':').collect::<Vec<_>>());
    let mine = fields.filter(|f| f.get(3).is_some_and(|m| m.split(',').any(|u| u == user)));
    mine.filter_map(|f| f.get(2)?.parse().ok()).take(1024).collect()
}

fn missing(what: &str, name: &str) -> Error {
    Error::invalid("image", format!("has no {what} \"{name}\""))
}

fn read(root: &Root, rel: &[u8]) -> Result<String> {
    let Some(f) = beneath::open_regular(root, rel)? else { return Ok(String::new()) };
    let mut v = Vec::new();
    f.take(MAX + 1).read_to_end(&mut v).at("read", root.show(rel))?;
    if v.len() as u64 > MAX {
        return Err(Error::invalid("image", format!("/{} is larger than {MAX} bytes", rel.escape_ascii())));
    }
    Ok(String::from_utf8_lossy(&v).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn root() -> (tempfile::TempDir, Root) {
        let t = tempfile::tempdir().unwrap();
        fs::create_dir(t.path().join("etc")).unwrap();
        let r = Root::open(t.path()).unwrap();
        (t, r)
    }

    #[test]
    fn names_and_numbers_are_looked_up_in_the_image() {
        let (t, r) = root();
        fs::write(t.path().join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nwww:x:33:34::/var/www:\n")
            .unwrap();
        fs::write(t.path().join("etc/group"), "root:x:0:\nwww:x:34:\nextra:x:50:a,www,b\n").unwrap();
        assert_eq!(
            resolve(&r, "www").unwrap(),
            User { uid: 33, gid: 34, groups: vec![50], home: Some("/var/www".into()) }
        );
        assert_eq!(resolve(&r, "33").unwrap().gid, 34);
        assert_eq!(resolve(&r, "33:extra").unwrap().gid, 50);
        assert_eq!(resolve(&r, "77:88").unwrap(), User { uid: 77, gid: 88, ..User::default() });
        assert_eq!(resolve(&r, "").unwrap().uid, 0);
        assert!(resolve(&r, "nobody-here").is_err());
        assert!(resolve(&r, "0:nogroup-here").is_err());
    }

    /// Case 16, CVE-2024-9676.
    #[test]
    fn a_passwd_that_is_a_link_a_fifo_or_huge_is_harmless() {
        let (t, r) = root();
        let p = t.path().join("etc/passwd");
        let secret = t.path().join("secret");
        fs::write(&secret, "evil:x:7:7::/:\n").unwrap();
        std::os::unix::fs::symlink(&secret, &p).unwrap();
        assert!(resolve(&r, "evil").is_err());
        fs::remove_file(&p).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &p,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        assert!(resolve(&r, "evil").is_err());
        fs::remove_file(&p).unwrap();
        fs::File::create(&p).unwrap().set_len(10 << 30).unwrap();
        assert!(resolve(&r, "evil").unwrap_err().to_string().contains("larger"));
        fs::remove_file(&p).unwrap();
        fs::remove_dir(t.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc", t.path().join("etc")).unwrap();
        assert!(resolve(&r, "daemon").is_err(), "the machine's own is not read");
    }
}
