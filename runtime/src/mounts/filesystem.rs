//! New filesystems: made detached with fsopen(2), fsconfig(2) and fsmount(2), so that nothing is visible before it is complete.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags};

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
    let _layers = configure(context, new.fstype, new.options, new.superblock_flags)?;
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

/// Changes options and flags of the filesystem whose mount's root `mount` is.
pub(crate) fn reconfigure(
    mount: BorrowedFd<'_>,
    options: &[(String, Option<String>)],
    superblock_flags: u64,
) -> Result<(), Refused> {
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    let context = rustix::mount::fspick(mount, c"", flags).map_err(|errno| match errno {
        Errno::INVAL => Refused { errno, message: Some("remount: nothing is mounted there".to_owned()) },
        other => other.into(),
    })?;
    let context = context.as_fd();
    let _layers = configure(context, "", options, superblock_flags)?;
    rustix::mount::fsconfig_reconfigure(context)
        .map_err(|errno| Refused { errno, message: last_message(context) })
}

/// Gives a context its flags and options. What is returned must live until the filesystem is made.
fn configure(
    context: BorrowedFd<'_>,
    fstype: &str,
    options: &[(String, Option<String>)],
    superblock_flags: u64,
) -> Result<Vec<OwnedFd>, Refused> {
    for (_, name) in FLAGS.iter().filter(|(bit, _)| superblock_flags & bit != 0) {
        set(context, name, None)?;
    }
    let mut layers = Vec::new();
    for (key, value) in options {
        match value.as_deref() {
            Some(value) if value.len() > VALUE_BYTES_MAX && fstype == "overlay" => {
                let short = by_descriptor(value, &mut layers)
                    .map_err(|(errno, path)| Refused { errno, message: Some(format!("{key} {path}")) })?;
                set(context, key, Some(&short))?;
            }
            value => set(context, key, value)?,
        }
    }
    Ok(layers)
}

/// An overlay's layers, separated by colons, by descriptors instead of paths that fsconfig(2) finds too long; mount(2) takes a page of them.
/// The error names the path. One with a backslash may hold a colon, and stays.
fn by_descriptor(value: &str, layers: &mut Vec<OwnedFd>) -> Result<String, (Errno, String)> {
    if value.contains('\\') {
        return Ok(value.to_owned());
    }
    let mut short = Vec::new();
    for path in value.split(':') {
        if path.is_empty() {
            // `::` begins data-only layers.
            short.push(String::new());
            continue;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let layer = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| (errno, path.to_owned()))?;
        short.push(format!("/proc/self/fd/{}", layer.as_raw_fd()));
        layers.push(layer);
    }
    Ok(short.join(":"))
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
