//! The home directory of a user, from the container's own /etc/passwd. See passwd(5).
//!
//! The file is the image's, or the container's users': it may be a FIFO, endless, or nonsense. None of that may hang or fail a
//! container, whose `HOME` is then `/`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The most of the file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The home directory of `uid` according to the passwd file at `path`; `/` where it tells none.
pub(super) fn home(path: &Path, uid: u32) -> String {
    let passwd = match read(path) {
        Ok(passwd) => passwd,
        Err(errno) => {
            tracing::debug!(%errno, path = %path.display(), "no home directories");
            Vec::new()
        }
    };
    find(&passwd, uid).unwrap_or_else(|| "/".to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>, Errno> {
    // Asked before it is opened, as opening a device may have effects; and again after, as it may have been exchanged.
    require_regular(rustix::fs::stat(path)?.st_mode)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
    require_regular(rustix::fs::fstat(&file)?.st_mode)?;
    let mut bytes = Vec::new();
    File::from(file)
        .take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
    Ok(bytes)
}

fn require_regular(mode: u32) -> Result<(), Errno> {
    if FileType::from_raw_mode(mode) == FileType::RegularFile { Ok(()) } else { Err(Errno::INVAL) }
}

/// The sixth field of the first line whose third is `uid`; None: no such line, or its home is not an absolute path.
fn find(passwd: &[u8], uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let mut fields = passwd
        .split(|byte| *byte == b'\n')
        .map(|line| line.split(|byte| *byte == b':').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&uid.as_bytes()))?
        .into_iter();
    let home = std::str::from_utf8(fields.nth(5)?).ok()?;
    (home.starts_with('/') && !home.contains(char::is_control)).then(|| home.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_user_tells() {
        let passwd =
            b"root:x:0:0:root:/root:/bin/sh\n\n#:\nu:x:1000:1000::/home/u:\nv:x:1000:1:::\nw:x:7:7::home:\n";
        assert_eq!(find(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(find(passwd, 1000).as_deref(), Some("/home/u"));
        assert_eq!(find(passwd, 7), None);
        assert_eq!(find(passwd, 100), None);
        assert_eq!(find(b"a:x:0:0::/a\tb:\n", 0), None);
        assert_eq!(find(b"a:x:0:0", 0), None);
    }

    #[test]
    fn what_is_no_file_neither_hangs_nor_fails() {
        let top = tempfile::tempdir().unwrap();
        let fifo = top.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        for path in [&fifo, top.path(), &top.path().join("none"), Path::new("/dev/zero")] {
            assert_eq!(home(path, 0), "/");
        }
        let link = top.path().join("link");
        std::os::unix::fs::symlink("passwd", &link).unwrap();
        std::fs::write(top.path().join("passwd"), "r:x:0:0::/r:\n").unwrap();
        assert_eq!(home(&link, 0), "/r");
    }

    #[test]
    fn only_its_start_is_read() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("passwd");
        let mut text = "#\n".repeat(1 << 20);
        text.push_str("r:x:0:0::/r:\n");
        std::fs::write(&path, text).unwrap();
        assert_eq!(home(&path, 0), "/");
    }
}
