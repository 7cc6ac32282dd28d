//! Whole roots on the real kernel. Each test runs itself again, alone, in namespaces of its own (unshare(1)), and enters the root there
//! for good.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::*;
use crate::cgroup::{Cgroup, CgroupRecord, Hierarchies, RecordedDirectory};
use crate::spec;

const INSIDE: &str = "PODWRIGHT_ROOTFS_TEST";

/// Runs test `name` of this module in new namespaces with a fresh directory; true: this is that run.
fn inside(name: &str, unshare: &[&str]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: {name}: needs root");
        return false;
    }
    let work = tempfile::tempdir().unwrap();
    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--pid", "--ipc", "--uts", "--fork", "--cgroup", "--propagation", "unchanged"])
        .args(unshare)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("rootfs::tests::{name}"), "--test-threads=1", "--nocapture"])
        .env(INSIDE, work.path())
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    print!("{text}");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(work.path().to_str().unwrap()), "a mount leaked to the host");
    false
}

/// The bundle of a test: a directory with an image-like `rootfs`.
fn bundle() -> PathBuf {
    let bundle = PathBuf::from(std::env::var_os(INSIDE).unwrap());
    fs::create_dir_all(bundle.join("rootfs")).unwrap();
    bundle
}

fn plan(bundle: &Path, patch: &Value) -> Plan {
    let mut document = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {"cwd": "/", "args": ["sh"]},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "cgroup"}]}
    });
    for (key, value) in patch.as_object().unwrap() {
        match (document.get_mut(key), value) {
            (Some(Value::Object(into)), Value::Object(from)) => into.extend(from.clone()),
            _ => document[key] = value.clone(),
        }
    }
    let loaded = spec::parse(document.to_string().as_bytes()).unwrap();
    Plan::from_spec(&loaded.spec, &loaded.raw, bundle).unwrap()
}

/// This process's own cgroup.
fn own_cgroup() -> Cgroup {
    let hierarchies = Hierarchies::detect().unwrap();
    let all = hierarchies.v1.iter().chain(&hierarchies.v2);
    let directories = all
        .map(|hierarchy| RecordedDirectory {
            hierarchy: hierarchy.label.clone(),
            path: hierarchy.mount.clone(),
        })
        .collect();
    Cgroup::open_record(&CgroupRecord { directories, ..CgroupRecord::default() }).unwrap()
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

/// The mounts of every container.
fn usual() -> Vec<Value> {
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ]
}

/// Enters the plan's root, says how long that took, and returns the console's master and peer.
fn enter(plan: &Plan, detached: Option<BorrowedFd<'_>>, user_namespace: bool) -> (OwnedFd, OwnedFd) {
    let cgroup = own_cgroup();
    let around = Surroundings { cgroup: &cgroup, user_namespace, cgroup_namespace: true, link: None };
    let started = std::time::Instant::now();
    let root = Root::prepare(plan, detached).unwrap();
    root.mount_all(plan, &around).unwrap();
    root.make_devices(plan, &around).unwrap();
    let terminal = root.console(plan).unwrap();
    root.pivot(plan).unwrap();
    finish(plan, &around).unwrap();
    println!("{} mounts in {:?}", plan.mounts.len(), started.elapsed());
    terminal
}

/// A user namespace in which 0 is 5000 (and group 6000) outside, and what holds it.
fn mapped_namespace() -> (Child, PathBuf) {
    let script = "read pid rest < /proc/self/stat; echo $pid; read nothing";
    let mut holder = Command::new("unshare")
        .args(["--user", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pid = String::new();
    BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut pid).unwrap();
    let proc = Path::new("/proc").join(pid.trim());
    fs::write(proc.join("uid_map"), "0 5000 10").unwrap();
    fs::write(proc.join("gid_map"), "0 6000 10").unwrap();
    (holder, proc.join("ns/user"))
}

/// The options of the topmost mount at `path`, and its type.
fn options(path: &str) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == Some(path));
    line.unwrap_or_else(|| panic!("{path} is not mounted:\n{table}")).to_owned()
}

fn has(path: &str, option: &str) -> bool {
    options(path).split(' ').nth(5).unwrap().split(',').any(|word| word == option)
}

fn readonly(path: &str) -> bool {
    fs::write(path, "x").unwrap_err().kind() == std::io::ErrorKind::ReadOnlyFilesystem
}

#[test]
fn a_whole_root() {
    if !inside("a_whole_root", &[]) {
        return;
    }
    let bundle = bundle();
    let rootfs = bundle.join("rootfs");
    for directory in
        ["data/below", "other", "rootfs/etc", "rootfs/run", "rootfs/tpl", "rootfs/var", "rootfs/secret"]
    {
        fs::create_dir_all(bundle.join(directory)).unwrap();
    }
    symlink("/run", rootfs.join("var/run")).unwrap();
    symlink("/../../../../outside", rootfs.join("escape")).unwrap();
    fs::write(rootfs.join("tpl/file"), "template").unwrap();
    fs::write(bundle.join("hosts"), "hosts").unwrap();
    fs::write(bundle.join("data/owned"), "").unwrap();
    let mut mounts = usual();
    let path = |name: &str| bundle.join(name).to_str().unwrap().to_owned();
    mounts.extend([
        mount("/etc/hosts", "bind", &path("hosts"), &["rbind", "ro", "rprivate"]),
        mount("/data", "bind", &path("data"), &["rbind", "rw", "rslave", "noexec"]),
        mount("/var/run/secrets", "bind", &path("other"), &["bind", "ro"]),
        mount("/escape", "bind", &path("other"), &["bind"]),
        mount("/tpl", "tmpfs", "tmpfs", &["tmpcopyup", "ro", "mode=0750"]),
        mount("/tpl/inner", "bind", &path("other"), &["bind"]),
        mount("/locked", "bind", &path("data"), &["rbind", "rro"]),
    ]);
    let mut mapped = plan(
        &bundle,
        &json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "user", "path": "/proc/self/ns/user"}]},
            "mounts": [mount("/mapped", "bind", &path("data"), &["bind", "idmap"])]}),
    );
    let (mut holder, namespace) = mapped_namespace();
    mapped.namespaces.join[0].1 = namespace;
    let mut plan = plan(
        &bundle,
        &json!({"mounts": mounts, "root": {"path": "rootfs", "readonly": true}, "linux": {
            "maskedPaths": ["/proc/timer_list", "/proc/kallsyms", "/proc/acpi", "/proc/scsi", "/secret", "/proc/nothing"],
            "readonlyPaths": ["/proc/sys", "/proc/bus", "/proc/sysrq-trigger"],
            "devices": [{"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "uid": 7, "gid": 8, "fileMode": 0o640}],
        }}),
    );
    // The spec above has no user namespace; its idmapped mount takes the one of the holder.
    plan.namespaces.join.append(&mut mapped.namespaces.join);
    plan.mounts.append(&mut mapped.mounts);
    let (_master, peer) = enter(&plan, None, false);
    drop(holder.stdin.take());
    holder.wait().unwrap();

    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let on_host = |line: &str| line.split(' ').nth(4).unwrap().starts_with("/tmp/");
    assert!(!table.lines().any(on_host), "{table}");
    assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
    assert_eq!(fs::read_to_string("/etc/hosts").unwrap(), "hosts");
    assert!(readonly("/etc/hosts") && readonly("/new") && readonly("/var/run/secrets/x"));
    assert!(has("/data", "noexec") && has("/run/secrets", "ro") && !has("/outside", "ro"));
    fs::write("/data/new", "").unwrap();
    assert_eq!(fs::read_to_string("/tpl/file").unwrap(), "template");
    assert_eq!(fs::metadata("/tpl").unwrap().mode() & 0o7777, 0o750);
    assert!(readonly("/tpl/new"));
    fs::write("/tpl/inner/new", "").unwrap();
    assert!(readonly("/locked/below/new"));
    let owned = fs::metadata("/mapped/owned").unwrap();
    assert_eq!((owned.uid(), owned.gid()), (5000, 6000));

    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        let device = fs::metadata(Path::new("/dev").join(name)).unwrap();
        assert!(device.file_type().is_char_device(), "{name}");
        assert_eq!(device.mode() & 0o7777, 0o666, "{name}");
    }
    let tun = fs::metadata("/dev/net/tun").unwrap();
    assert_eq!((tun.mode() & 0o7777, tun.uid(), tun.gid()), (0o640, 7, 8));
    assert_eq!(fs::read_link("/dev/ptmx").unwrap(), Path::new("pts/ptmx"));
    assert_eq!(fs::read_link("/dev/stderr").unwrap(), Path::new("/proc/self/fd/2"));
    let console = fs::metadata("/dev/console").unwrap();
    assert_eq!(console.rdev(), rustix::fs::fstat(&peer).unwrap().st_rdev);
    assert!(Path::new("/dev/pts/0").exists());

    assert_eq!(fs::read("/proc/kallsyms").unwrap(), b"");
    assert_eq!(fs::read_dir("/secret").unwrap().count(), 0);
    assert!(readonly("/secret/x") && readonly("/proc/sys/kernel/hostname"));
    assert!(has("/sys", "ro") && has("/sys", "nosuid") && has("/proc/sys", "ro"));
    assert!(has("/sys/fs/cgroup", "ro") || !options("/sys/fs/cgroup").contains("tmpfs"));
    assert!(fs::read_dir("/sys/fs/cgroup").unwrap().count() > 2);
}

#[test]
fn a_root_in_a_user_namespace() {
    if !inside("a_root_in_a_user_namespace", &["--user", "--map-root-user"]) {
        return;
    }
    let bundle = bundle();
    fs::create_dir_all(bundle.join("data")).unwrap();
    let mut mounts = usual();
    let data = bundle.join("data").to_str().unwrap().to_owned();
    mounts.push(mount("/data", "bind", &data, &["rbind", "ro", "rprivate"]));
    mounts.push(mount("/host-proc", "bind", "/proc", &["rbind", "ro"]));
    let plan = plan(
        &bundle,
        &json!({"mounts": mounts, "linux": {
            "maskedPaths": ["/proc/kallsyms", "/proc/scsi", "/proc/acpi"], "readonlyPaths": ["/proc/sys"]}}),
    );
    let _terminal = enter(&plan, None, true);
    assert!(readonly("/data/x"));
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    fs::write("/dev/null", "x").unwrap();
    assert!(has("/sys", "ro") && has("/proc/sys", "ro"));
    assert_eq!(fs::read("/proc/kallsyms").unwrap(), b"");
}

#[test]
fn what_an_image_may_not_do() {
    if !inside("what_an_image_may_not_do", &[]) {
        return;
    }
    let bundle = bundle();
    let rootfs = bundle.join("rootfs");
    for directory in ["rootfs/real", "rootfs/dev", "data"] {
        fs::create_dir_all(bundle.join(directory)).unwrap();
    }
    symlink("real", rootfs.join("proc")).unwrap();
    symlink("/etc/console", rootfs.join("dev/console")).unwrap();
    rustix::fs::mknodat(CWD, rootfs.join("fifo"), rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .unwrap();
    let data = bundle.join("data").to_str().unwrap().to_owned();
    let plan_of = |mounts: Vec<Value>| plan(&bundle, &json!({"mounts": mounts}));
    let empty = plan_of(vec![]);
    let root = Root::prepare(&empty, None).unwrap();
    let cgroup = own_cgroup();
    let around = Surroundings { cgroup: &cgroup, user_namespace: false, cgroup_namespace: true, link: None };
    let refused = |mounts: Vec<Value>| root.mount_all(&plan_of(mounts), &around).unwrap_err().to_string();

    let message = refused(vec![mount("/proc", "proc", "proc", &[])]);
    assert!(message.contains("must be mounted on ordinary directory"), "{message}");
    let message = refused(vec![mount("/fifo", "bind", &data, &["rbind"])]);
    assert!(message.contains("a directory cannot be mounted on a file"), "{message}");
    let message = refused(vec![mount("/x", "bind", "/nowhere/at/all", &["rbind"])]);
    assert!(
        message.contains("mount /x: bind source /nowhere/at/all: no such file or directory"),
        "{message}"
    );
    let message = refused(vec![mount("/x", "tmpfs", "tmpfs", &["size=many"])]);
    assert!(message.contains("size=many"), "{message}");
    let message = refused(vec![mount("/x", "nonsensefs", "none", &[])]);
    assert!(message.contains("unknown filesystem type nonsensefs"), "{message}");
    let message = root.console(&empty).unwrap_err();
    assert_eq!(message.path.as_deref(), Some("/dev/console"));
    assert_eq!(message.errno(), Some(Errno::LOOP));

    fs::remove_file(rootfs.join("proc")).unwrap();
    symlink("/proc/self/attr", rootfs.join("innocent")).unwrap();
    let proc = mount("/proc", "proc", "proc", &[]);
    for destination in ["/proc/self/attr", "/innocent"] {
        let message = refused(vec![proc.clone(), mount(destination, "bind", &data, &["rbind"])]);
        assert!(message.contains("inside /proc"), "{message}");
    }
    let message = refused(vec![mount("/proc", "bind", &data, &["rbind"])]);
    assert!(message.contains("not of type proc"), "{message}");
    fs::write(bundle.join("meminfo"), "lxcfs").unwrap();
    let meminfo = bundle.join("meminfo").to_str().unwrap().to_owned();
    root.mount_all(&plan_of(vec![mount("/proc/meminfo", "bind", &meminfo, &["bind"])]), &around).unwrap();
}

#[test]
fn a_detached_root_that_is_shared() {
    if !inside("a_detached_root_that_is_shared", &[]) {
        return;
    }
    let bundle = bundle();
    let detached = mounts::make(&mounts::New { fstype: "tmpfs", ..mounts::New::default() }).unwrap();
    let linux = json!({"rootfsPropagation": "rshared"});
    let plan = plan(&bundle, &json!({"mounts": usual(), "linux": linux}));
    let _terminal = enter(&plan, Some(detached.as_fd()), false);
    assert!(options("/").contains(" - tmpfs") && options("/").contains("shared:"));
    assert!(options("/proc").contains("shared:"));
    fs::write("/new", "").unwrap();
}

#[test]
fn a_root_that_is_moved_instead_of_pivoted() {
    if !inside("a_root_that_is_moved_instead_of_pivoted", &[]) {
        return;
    }
    let bundle = bundle();
    let mut plan = plan(&bundle, &json!({"mounts": usual()}));
    plan.rootfs.no_pivot = true;
    let _terminal = enter(&plan, None, false);
    assert!(!Path::new("/usr").exists());
    let views = fs::read_to_string("/proc/1/mountinfo").unwrap();
    assert_eq!(views.matches(" - proc ").count(), 1, "{views}");
}
