//! Ids of pods, containers and exec'd processes: 64 hexadecimal digits of the kernel's randomness.

use std::fmt::Write as _;

use rustix::rand::GetRandomFlags;

use crate::error::Error;

/// A new id.
pub fn random() -> Result<String, Error> {
    let mut bytes = [0; 32];
    let filled = rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty());
    match filled {
        Ok(length) if length == bytes.len() => {}
        Ok(length) => {
            return Err(Error::internal("make an id", format!("the kernel gave {length} random bytes")));
        }
        Err(errno) => return Err(Error::internal("make an id", errno)),
    }
    Ok(bytes.iter().fold(String::with_capacity(64), |mut id, byte| {
        // Writing to a String cannot fail.
        let _ = write!(id, "{byte:02x}");
        id
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_64_digits_and_differ() {
        let (a, b) = (random().unwrap(), random().unwrap());
        assert_eq!(a.len(), 64);
        assert!(a.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(a, b);
    }
}
