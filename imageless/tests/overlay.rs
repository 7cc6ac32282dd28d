//! Container roots on the real kernel: what is mounted, where writes go, and that the entry never changes.
// Helpers of tests are tests too; clippy's own exception ends at #[test].
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use imageless::rootfs::{OverlayOptions, RootError, RootMount, discard, mount_overlay, remove_dir};
use imageless::users::{self, UserSpec};
use imageless::{Config, Library, seal};
use rustix::fs::{AtFlags, Mode, OFlags};

/// A temporary directory, or the printed reason why no overlay can be mounted here.
fn workplace(test: &str) -> Option<tempfile::TempDir> {
    let temp = tempfile::Builder::new().prefix("podwright-imageless-").tempdir().unwrap();
    let (lower, container) = (temp.path().join("probe"), temp.path().join("probe-container"));
    fs::create_dir(&lower).unwrap();
    fs::create_dir(&container).unwrap();
    match mount_overlay(open(&lower).as_fd(), &container, OverlayOptions::default()) {
        Ok(mount) => drop(mount),
        Err(error) => {
            println!("skip {test}: no overlay here: {error:?}");
            return None;
        }
    }
    Some(temp)
}

fn open(path: &Path) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).unwrap()
}

fn read(root: &RootMount, path: &str) -> String {
    let file = rustix::fs::openat(&root.mount, path, OFlags::RDONLY, Mode::empty()).unwrap();
    let mut text = String::new();
    fs::File::from(file).read_to_string(&mut text).unwrap();
    text
}

fn write(root: &RootMount, path: &str, text: &str) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    let file = rustix::fs::openat(&root.mount, path, flags, Mode::RUSR | Mode::WUSR).unwrap();
    fs::File::from(file).write_all(text.as_bytes()).unwrap();
}

fn digest(path: &Path) -> String {
    seal::digest(open(path).as_fd()).unwrap().digest
}

#[test]
fn writes_stay_in_the_container_and_the_entry_never_changes() {
    let Some(temp) = workplace("writes_stay_in_the_container") else { return };
    // Characters that mount options would need to escape; by descriptor they mean nothing.
    let lower = temp.path().join("entry, with: odd\\name");
    let container = temp.path().join("container");
    fs::create_dir_all(lower.join("etc")).unwrap();
    fs::create_dir(&container).unwrap();
    fs::write(lower.join("etc/name"), "entry").unwrap();
    fs::write(lower.join("gone"), "soon").unwrap();
    fs::set_permissions(&lower, fs::Permissions::from_mode(0o1751)).unwrap();
    std::os::unix::fs::chown(&lower, Some(1234), Some(5678)).unwrap();
    let before = digest(&lower);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();

    let root = mount_overlay(open(&lower).as_fd(), &container, OverlayOptions::default()).unwrap();
    let stat = rustix::fs::fstat(&root.mount).unwrap();
    assert_eq!((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid), (0o1751, 1234, 5678));
    assert_eq!(read(&root, "etc/name"), "entry");
    write(&root, "etc/name", "container");
    write(&root, "new", "container");
    rustix::fs::unlinkat(&root.mount, "gone", AtFlags::empty()).unwrap();
    rustix::fs::mkdirat(&root.mount, "mnt", Mode::RWXU).unwrap();
    rustix::fs::chmodat(&root.mount, "etc", Mode::RWXU, AtFlags::empty()).unwrap();
    assert_eq!(read(&root, "etc/name"), "container");
    assert_eq!(fs::read_to_string(root.upper.join("new")).unwrap(), "container");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts, "attached nowhere");
    assert!(container.join("work").join("work/incompat/volatile").exists(), "without syncs");
    assert_eq!(digest(&lower), before);

    // Two containers of one entry see nothing of each other.
    let second = temp.path().join("second");
    fs::create_dir(&second).unwrap();
    let other = mount_overlay(
        open(&lower).as_fd(),
        &second,
        OverlayOptions { volatile: false, ..Default::default() },
    )
    .unwrap();
    assert_eq!(read(&other, "gone"), "soon");
    assert!(!second.join("work").join("work/incompat").exists());

    drop((root, other));
    for dir in [&container, &second] {
        discard(dir).unwrap();
        discard(dir).unwrap();
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
        remove_dir(dir).unwrap();
        remove_dir(dir).unwrap();
        assert!(!dir.exists());
    }
    assert_eq!(digest(&lower), before);
}

#[test]
fn a_second_mount_is_refused_and_a_failed_one_leaves_nothing() {
    let Some(temp) = workplace("a_second_mount_is_refused") else { return };
    let (lower, container) = (temp.path().join("lower"), temp.path().join("container"));
    fs::create_dir(&lower).unwrap();
    fs::create_dir(&container).unwrap();
    let root = mount_overlay(open(&lower).as_fd(), &container, OverlayOptions::default()).unwrap();
    write(&root, "mine", "1");
    let again = mount_overlay(open(&lower).as_fd(), &container, OverlayOptions::default());
    assert!(matches!(again, Err(RootError::Layer { source: rustix::io::Errno::EXIST, .. })));
    assert_eq!(fs::read_to_string(root.upper.join("mine")).unwrap(), "1", "the first one's layer stays");
    drop(root);
    discard(&container).unwrap();

    let file = temp.path().join("file");
    fs::write(&file, "").unwrap();
    let lower = rustix::fs::open(&file, OFlags::PATH, Mode::empty()).unwrap();
    let error = mount_overlay(lower.as_fd(), &container, OverlayOptions::default()).unwrap_err();
    assert!(matches!(error, RootError::Mount { .. }), "{error:?}");
    assert_eq!(fs::read_dir(&container).unwrap().count(), 0);
    let gone = temp.path().join("gone");
    let error = mount_overlay(open(temp.path()).as_fd(), &gone, OverlayOptions::default()).unwrap_err();
    assert!(matches!(error, RootError::ContainerDir { .. }));
    discard(&gone).unwrap();
}

/// One hostile shape of a path inside a root.
#[derive(Debug, Clone, Copy)]
enum Shape {
    LinkOut,
    LinkAbsolute,
    LinkLoop,
    Dangling,
    File,
    Fifo,
    Directory,
    Absent,
    Sparse,
}

const SHAPES: [Shape; 9] = [
    Shape::LinkOut,
    Shape::LinkAbsolute,
    Shape::LinkLoop,
    Shape::Dangling,
    Shape::File,
    Shape::Fifo,
    Shape::Directory,
    Shape::Absent,
    Shape::Sparse,
];

fn make(path: &Path, shape: Shape) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    match shape {
        Shape::LinkOut => symlink("../../../../../../../../../../../etc/passwd", path).unwrap(),
        Shape::LinkAbsolute => symlink("/etc", path).unwrap(),
        Shape::LinkLoop => symlink(path.file_name().unwrap(), path).unwrap(),
        Shape::Dangling => symlink("/nowhere/at/all", path).unwrap(),
        Shape::File => fs::write(path, "root:x:0:0::/:\n").unwrap(),
        Shape::Fifo => rustix::fs::mkfifoat(rustix::fs::CWD, path, Mode::RUSR | Mode::WUSR).unwrap(),
        Shape::Directory => fs::create_dir(path).unwrap(),
        Shape::Absent => {}
        Shape::Sparse => fs::File::create(path).unwrap().set_len(4 << 30).unwrap(),
    }
}

#[test]
fn hostile_roots_neither_hang_nor_escape() {
    let Some(temp) = workplace("hostile_roots") else { return };
    // The host has this user; no root below has it.
    let canary = "podwright-canary";
    let outside = temp.path().join("etc");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("passwd"), format!("{canary}:x:4242:4242::/:\n")).unwrap();
    let roots = temp.path().join("roots");
    let paths =
        ["dev", "proc", "sys", "etc", "run", "etc/passwd", "etc/group", "dev/null", "dev/pts", "dev/console"];
    let mut names = Vec::new();
    for path in paths {
        for shape in SHAPES {
            let name = format!("{}-{shape:?}", path.replace('/', "-")).to_lowercase();
            let root = roots.join(&name).join("rootfs");
            fs::create_dir_all(root.join("usr")).unwrap();
            make(&root.join(path), shape);
            fs::write(roots.join(&name).join("image.json"), r#"{"config":{}}"#).unwrap();
            names.push(name);
        }
    }
    let config =
        Config { roots: vec![roots.clone()], aliases: [].into(), state: temp.path().join("state/images") };
    let library = Library::open(&config).unwrap();
    let start = Instant::now();
    for name in &names {
        let entry = library.resolve(&format!("rootfs.local/{name}")).unwrap();
        let before = digest_small(entry.tree());
        let container = temp.path().join(format!("container-{name}"));
        fs::create_dir(&container).unwrap();
        let root = mount_overlay(entry.tree(), &container, OverlayOptions::default()).unwrap();
        for place in [entry.tree(), root.mount.as_fd()] {
            for spec in [canary, "4242", "root", "0:adm", "0"] {
                if let Ok(user) = users::lookup(place, &UserSpec::parse(spec).unwrap()) {
                    assert_ne!(user.username.as_deref(), Some(canary), "{name} {spec}");
                }
            }
        }
        assert_eq!(digest_small(entry.tree()), before, "{name}");
        drop(root);
        remove_dir(&container).unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    assert_eq!(library.list(None).unwrap().len(), names.len());
}

/// The digest of a tree, but for the roots with a sparse file, whose 4 GiB nobody wants to read: those are compared by
/// their listing.
fn digest_small(tree: BorrowedFd<'_>) -> String {
    let sparse =
        ["etc/passwd", "etc/group", "dev", "proc", "sys", "etc", "run", "dev/null", "dev/pts", "dev/console"]
            .iter()
            .find_map(|path| {
                let stat = rustix::fs::statat(tree, *path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
                (stat.st_size >= 4 << 30)
                    .then(|| format!("{} {} {}", stat.st_mode, stat.st_mtime, stat.st_blocks))
            });
    sparse.unwrap_or_else(|| seal::digest(tree).unwrap().digest)
}

#[test]
fn a_layer_that_a_container_filled_with_malice_is_removed() {
    let Some(temp) = workplace("a_layer_filled_with_malice") else { return };
    let (lower, container) = (temp.path().join("lower"), temp.path().join("container"));
    fs::create_dir_all(lower.join("a/b")).unwrap();
    fs::create_dir(&container).unwrap();
    let root = mount_overlay(open(&lower).as_fd(), &container, OverlayOptions::default()).unwrap();
    rustix::fs::unlinkat(&root.mount, "a/b", AtFlags::REMOVEDIR).unwrap();
    let mut dir = rustix::io::fcntl_dupfd_cloexec(&root.mount, 3).unwrap();
    for _ in 0..400 {
        rustix::fs::mkdirat(&dir, "deep", Mode::RWXU).unwrap();
        rustix::fs::mkfifoat(&dir, "fifo", Mode::RUSR).unwrap();
        rustix::fs::symlinkat("/etc", &dir, "link").unwrap();
        dir = rustix::fs::openat(&dir, "deep", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    drop((root, dir));
    remove_dir(&container).unwrap();
    assert!(!container.exists());
    assert!(fs::metadata("/etc").unwrap().is_dir() && fs::metadata(&lower).unwrap().nlink() > 0);
}
