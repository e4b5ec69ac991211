//! Random numbers from the kernel.

use rustix::rand::GetRandomFlags;

use crate::{Errno, Result, raw};

/// A random UUID (RFC 9562, version 4), its bytes in the order they are written in (getrandom(2)).
pub fn uuid() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    // Up to 256 bytes are never given in part.
    if raw::retry(|| rustix::rand::getrandom(&mut bytes[..], GetRandomFlags::empty()))? != bytes.len() {
        return Err(Errno::IO);
    }
    let [.., version, _, variant, _, _, _, _, _, _, _] = &mut bytes;
    *version = *version & 0x0f | 0x40;
    *variant = *variant & 0x3f | 0x80;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_differ_and_say_their_version() {
        let (one, other) = (uuid().expect("getrandom"), uuid().expect("getrandom"));
        assert_ne!(one, other);
        for uuid in [one, other] {
            assert_eq!((uuid[6] >> 4, uuid[8] >> 6), (4, 0b10));
        }
    }
}
