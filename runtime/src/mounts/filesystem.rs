//! New filesystems: made detached with fsopen(2), fsconfig(2) and fsmount(2), so that nothing is visible before it is complete.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::plan::options::superblock;

/// A filesystem to make.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct New<'a> {
    /// Its type, as in /proc/filesystems.
    pub(crate) fstype: &'a str,
    /// Shown in mountinfo; for filesystems on a device, the device.
    pub(crate) source: Option<&'a str>,
    /// Its own options, in order; a later one wins.
    pub(crate) options: &'a [(String, Option<String>)],
    /// Permission bits of its root, where `options` say nothing else. For tmpfs.
    pub(crate) mode: Option<u32>,
    /// [`superblock`] bits.
    pub(crate) superblock_flags: u64,
    /// Mount attributes.
    pub(crate) attributes: u64,
    /// SELinux label of every file in it.
    pub(crate) label: Option<&'a str>,
}

/// Why the kernel refused it.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) errno: Errno,
    /// The option, and what the filesystem said about it, where it said anything.
    pub(crate) message: Option<String>,
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self { errno, message: None }
    }
}

/// Flags of a superblock by the names that fsconfig(2) knows them by. `silent` is nothing here: what the kernel
/// has to say comes through the descriptor.
const FLAGS: [(u64, &str); 6] = [
    (superblock::RDONLY, "ro"),
    (superblock::SYNCHRONOUS, "sync"),
    (superblock::DIRSYNC, "dirsync"),
    (superblock::LAZYTIME, "lazytime"),
    (superblock::MANDLOCK, "mand"),
    (superblock::I_VERSION, "i_version"),
];

/// The longest value fsconfig(2) takes.
const VALUE_BYTES_MAX: usize = 255;

/// Makes it. The result is the root of a mount that is attached nowhere yet.
pub(crate) fn make(new: &New<'_>) -> Result<OwnedFd, Refused> {
    let context =
        rustix::mount::fsopen(new.fstype, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| match errno {
            Errno::NODEV => {
                Refused { errno, message: Some(format!("unknown filesystem type {}", new.fstype)) }
            }
            other => other.into(),
        })?;
    let context = context.as_fd();
    if let Some(source) = new.source {
        set(context, "source", Some(source))?;
    }
    if let Some(mode) = new.mode {
        set(context, "mode", Some(&format!("{mode:o}")))?;
    }
    for (_, name) in FLAGS.iter().filter(|(bit, _)| new.superblock_flags & bit != 0) {
        set(context, name, None)?;
    }
    for (key, value) in new.options {
        set(context, key, value.as_deref())?;
    }
    if let Some(label) = new.label {
        set(context, "context", Some(label))?;
    }
    rustix::mount::fsconfig_create(context)
        .map_err(|errno| Refused { errno, message: last_message(context) })?;
    // The attribute bits all fit: MOUNT_ATTR_* of fsmount(2) is a 32-bit argument.
    let attributes = MountAttrFlags::from_bits_retain(u32::try_from(new.attributes).unwrap_or(u32::MAX));
    rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|errno| Refused { errno, message: last_message(context) })
}

fn set(context: BorrowedFd<'_>, key: &str, value: Option<&str>) -> Result<(), Refused> {
    let result = match value {
        Some(value) => rustix::mount::fsconfig_set_string(context, key, value),
        None => rustix::mount::fsconfig_set_flag(context, key),
    };
    result.map_err(|errno| {
        let option = value.map_or_else(|| key.to_owned(), |value| format!("{key}={value}"));
        let message = match last_message(context) {
            Some(said) => format!("option {option}: {said}"),
            None if value.is_some_and(|value| value.len() > VALUE_BYTES_MAX) => {
                format!("option {key} is longer than {VALUE_BYTES_MAX} bytes")
            }
            None => format!("option {option}"),
        };
        Refused { errno, message: Some(message) }
    })
}

/// What the kernel logged about the context last (fsopen(2)): each read gives one line with a level before it.
fn last_message(context: BorrowedFd<'_>) -> Option<String> {
    let mut said = None;
    let mut line = [0_u8; 512];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut line) {
        said = message(&line[..length]).or(said);
    }
    said
}

/// `e tmpfs: Bad value for 'size'`, without its level.
fn message(line: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(line).ok()?.trim_end();
    let text = text.split_once(' ').map_or(text, |(_, text)| text);
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_lose_their_level() {
        assert_eq!(message(b"e tmpfs: Bad value\n").unwrap(), "tmpfs: Bad value");
        assert_eq!(message(b""), None);
    }
}
