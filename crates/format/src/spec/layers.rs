//! How option strings and lists of layers are split, escaped and joined.
//!
//! The rules are the kernel's (`ovl_next_opt`, `ovl_unescape`, `ovl_parse_param_lowerdir`): a backslash makes the next
//! byte an ordinary one, and one at the very end is dropped. On top of them the value of a security context may stand in
//! double quotes, in which commas are ordinary, as the security modules read it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::error::LayerListError;

/// The options whose values may be quoted.
const QUOTABLE: [&[u8]; 4] = [b"context=\"", b"fscontext=\"", b"defcontext=\"", b"rootcontext=\""];

/// The merging and the data-only layers of a list.
type LayerLists = (Vec<PathBuf>, Vec<PathBuf>);

/// The elements of an option string, still escaped; empty ones are left out.
pub(super) fn split_options(string: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(string);
    std::iter::from_fn(move || {
        let (element, after) = next_element(rest?);
        rest = after;
        Some(element)
    })
    .filter(|element| !element.is_empty())
}

/// The first element, and what follows its comma.
fn next_element(string: &[u8]) -> (&[u8], Option<&[u8]>) {
    let quoted = QUOTABLE.iter().any(|start| string.starts_with(start));
    let (mut escaped, mut in_quotes) = (false, false);
    for (at, byte) in string.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' if quoted => in_quotes = !in_quotes,
            b',' if !in_quotes => {
                let (element, after) = string.split_at(at);
                return (element, after.get(1..));
            }
            _ => {}
        }
    }
    (string, None)
}

/// Joins elements that are escaped already.
pub(super) fn join_options(elements: &[Vec<u8>]) -> Vec<u8> {
    elements.join(&b',')
}

/// Takes the backslashes away.
pub(super) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => plain.extend(bytes.next()),
            _ => plain.push(*byte),
        }
    }
    plain
}

/// Puts a backslash before each byte of `special`, and before each backslash.
pub(super) fn escape(text: &[u8], special: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(text.len());
    for byte in text {
        if *byte == b'\\' || special.contains(byte) {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

/// Reads `A:B::DATA::DATA`. An empty list is allowed: it resets what was given before.
pub(super) fn split_lowerdir(list: &[u8]) -> Result<LayerLists, LayerListError> {
    let (mut lowers, mut data) = (Vec::new(), Vec::new());
    if list.is_empty() {
        return Ok((lowers, data));
    }
    let mut colons = 0;
    for (at, segment) in split_unescaped_colons(list).enumerate() {
        if segment.is_empty() {
            if at == 0 {
                return Err(LayerListError::LeadingColon);
            }
            colons += 1;
            continue;
        }
        let path = PathBuf::from(OsString::from_vec(unescape(segment)));
        if path.as_os_str().is_empty() {
            return Err(LayerListError::EmptyLayer);
        }
        match colons {
            0 if !data.is_empty() => return Err(LayerListError::LowerAfterData),
            0 => lowers.push(path),
            1 => data.push(path),
            _ => return Err(LayerListError::TooManyColons),
        }
        colons = 0;
    }
    if colons > 0 { Err(LayerListError::TrailingColon) } else { Ok((lowers, data)) }
}

/// Prints what [`split_lowerdir`] reads.
pub(super) fn join_lowerdir(lowers: &[PathBuf], data: &[PathBuf]) -> Vec<u8> {
    let mut list = lowers.iter().map(|path| join_path(path)).collect::<Vec<_>>().join(&b':');
    for path in data {
        list.extend_from_slice(b"::");
        list.extend(join_path(path));
    }
    list
}

/// A path as an option's value.
pub(super) fn join_path(path: &Path) -> Vec<u8> {
    escape(path.as_os_str().as_bytes(), b":,")
}

/// The parts between colons that no backslash precedes.
fn split_unescaped_colons(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut escaped = false;
    list.split(move |byte| {
        let separates = *byte == b':' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        separates
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(string: &str) -> Vec<&str> {
        split_options(string.as_bytes()).map(|element| std::str::from_utf8(element).unwrap()).collect()
    }

    fn lowerdir(list: &str) -> Result<(Vec<String>, Vec<String>), LayerListError> {
        let text = |paths: Vec<PathBuf>| paths.iter().map(|path| path.display().to_string()).collect();
        split_lowerdir(list.as_bytes()).map(|(lowers, data)| (text(lowers), text(data)))
    }

    #[test]
    fn empty_elements_and_a_final_comma_are_ignored() {
        assert_eq!(elements("a,,b,"), ["a", "b"]);
        assert_eq!(elements(",a"), ["a"]);
        assert!(elements("").is_empty() && elements(",,,").is_empty());
    }

    #[test]
    fn an_escaped_comma_does_not_separate() {
        assert_eq!(elements("lowerdir=/a\\,b,ro"), ["lowerdir=/a\\,b", "ro"]);
        assert_eq!(elements("x\\\\,ro"), ["x\\\\", "ro"]);
        assert_eq!(elements("x\\"), ["x\\"]);
    }

    #[test]
    fn quotes_protect_commas_in_security_contexts_only() {
        assert_eq!(elements("context=\"u:r:t:s0:c1,c2\",ro"), ["context=\"u:r:t:s0:c1,c2\"", "ro"]);
        assert_eq!(elements("upperdir=\"a,b\""), ["upperdir=\"a", "b\""]);
    }

    #[test]
    fn lists_of_layers_follow_the_kernels_grammar() {
        let ok = |lowers: &[&str], data: &[&str]| {
            let own = |paths: &[&str]| paths.iter().map(ToString::to_string).collect();
            Ok((own(lowers), own(data)))
        };
        assert_eq!(lowerdir(""), ok(&[], &[]));
        assert_eq!(lowerdir("/a"), ok(&["/a"], &[]));
        assert_eq!(lowerdir("a:b/c"), ok(&["a", "b/c"], &[]));
        assert_eq!(lowerdir("a:b::c::d"), ok(&["a", "b"], &["c", "d"]));
        assert_eq!(lowerdir("a\\:b:c\\,d:e\\\\f"), ok(&["a:b", "c,d", "e\\f"], &[]));
        assert_eq!(lowerdir("a\\1"), ok(&["a1"], &[]));
        assert_eq!(lowerdir("a\\\\:b"), ok(&["a\\", "b"], &[]));
        assert_eq!(lowerdir("a:b\\"), ok(&["a", "b"], &[]));
        assert_eq!(lowerdir("a:\\:"), ok(&["a", ":"], &[]));
    }

    #[test]
    fn malformed_lists_of_layers_are_refused_as_the_kernel_refuses_them() {
        for (list, reason) in [
            (":", LayerListError::LeadingColon),
            (":a", LayerListError::LeadingColon),
            ("::a", LayerListError::LeadingColon),
            ("a:", LayerListError::TrailingColon),
            ("a::", LayerListError::TrailingColon),
            ("a:::b", LayerListError::TooManyColons),
            ("a::b:c", LayerListError::LowerAfterData),
            ("\\", LayerListError::EmptyLayer),
            ("a:\\", LayerListError::EmptyLayer),
        ] {
            assert_eq!(lowerdir(list), Err(reason), "{list}");
        }
    }
}
