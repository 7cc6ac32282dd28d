//! The library over real directories: names, ids, registration, version switches, and what must not be reachable.
// Helpers of tests are tests too; clippy's own exception ends at #[test].
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use imageless::{Config, Image, Library, ResolveError};

/// Two roots and a state directory of their own.
struct Node {
    temp: tempfile::TempDir,
    aliases: BTreeMap<String, String>,
}

impl Node {
    fn new() -> Self {
        let temp = tempfile::Builder::new().prefix("podwright-imageless-").tempdir().unwrap();
        fs::create_dir(temp.path().join("roots")).unwrap();
        fs::create_dir(temp.path().join("more")).unwrap();
        Self { temp, aliases: BTreeMap::new() }
    }

    fn alias(mut self, reference: &str, target: &str) -> Self {
        self.aliases.insert(reference.to_owned(), target.to_owned());
        self
    }

    fn root(&self) -> PathBuf {
        self.temp.path().join("roots")
    }

    fn bare(&self, path: &str) -> PathBuf {
        let dir = self.root().join(path);
        fs::create_dir_all(dir.join("etc")).unwrap();
        fs::write(dir.join("etc/name"), path).unwrap();
        dir
    }

    fn sidecar(&self, path: &str, json: &str) -> PathBuf {
        let dir = self.root().join(path);
        fs::create_dir_all(dir.join("rootfs/bin")).unwrap();
        fs::write(dir.join("image.json"), json).unwrap();
        dir
    }

    fn open(&self) -> Library {
        Library::open(&Config {
            roots: vec![self.root(), self.temp.path().join("more")],
            aliases: self.aliases.clone(),
            state: self.temp.path().join("state/images"),
        })
        .unwrap()
    }
}

fn tags(library: &Library) -> Vec<Vec<String>> {
    let mut tags: Vec<_> = library.list(None).unwrap().into_iter().map(|image| image.repo_tags).collect();
    tags.sort();
    tags
}

fn status(library: &Library, name: &str) -> Image {
    library.status(name).unwrap().unwrap_or_else(|| panic!("{name} is there"))
}

fn is_absent(library: &Library, name: &str) -> bool {
    library.status(name).unwrap().is_none()
}

#[test]
fn an_entry_is_found_by_its_path_and_by_its_id() {
    let node = Node::new();
    node.bare("busybox");
    node.bare("registry.k8s.io/e2e/nginx/1.2");
    node.bare("team/app");
    let library = node.open();
    assert_eq!(
        tags(&library),
        [
            ["docker.io/library/busybox:latest"],
            ["docker.io/team/app:latest"],
            ["registry.k8s.io/e2e/nginx:1.2"]
        ]
    );
    let image = status(&library, "busybox");
    let digits = image.id.strip_prefix("sha256:").unwrap();
    assert_eq!(digits.len(), 64);
    for name in [
        "docker.io/library/busybox",
        "busybox:latest",
        "rootfs.local/busybox",
        "rootfs.local/busybox:latest",
        &image.id,
        digits,
        &digits[..13],
        &format!("sha256:{}", &digits[..13]),
        &format!("busybox@{}", image.id),
    ] {
        assert_eq!(status(&library, name).id, image.id, "{name}");
        assert_eq!(library.resolve(name).unwrap().id, image.id, "{name}");
    }
    assert!(image.size_bytes > 0 && image.pinned && !image.pulled);
    assert!(is_absent(&library, "busybox:1.2"));
    assert!(is_absent(&library, &format!("busybox@sha256:{}", "0".repeat(64))), "another content");
    assert!(is_absent(&library, &format!("sha256:{}", "0".repeat(64))));
    let error = library.resolve("registry.k8s.io/nothing:1").unwrap_err();
    assert!(error.is_not_found());
    let text = error.to_string();
    assert!(text.contains("roots/registry.k8s.io/nothing/1") && text.contains("more/"), "{text}");
    for bad in ["", "../etc", "a\0", "a\nb", "UPPER", "rootfs.local/../x", "rootfs.local//etc"] {
        assert!(library.resolve(bad).unwrap_err().is_invalid(), "{bad:?}");
        assert!(library.status(bad).is_err() && library.remove(bad).is_err());
    }
}

#[test]
fn ids_are_stable_over_restarts_and_differ_between_entries() {
    let node = Node::new();
    node.bare("a");
    node.bare("b");
    let (a, b) = {
        let library = node.open();
        (status(&library, "a").id, status(&library, "b").id)
    };
    assert_ne!(a, b);
    let library = node.open();
    assert_eq!(status(&library, "a").id, a);
    assert_eq!(status(&library, &b).id, b);
}

#[test]
fn aliases_give_exactly_their_names() {
    let digest = format!("gcr.io/x/test-image-digest@sha256:{}", "97".repeat(32));
    let node = Node::new()
        .alias("registry.k8s.io/pause:3.9", "pause")
        .alias("k8s.gcr.io/pause:3.9", "pause")
        .alias("gcr.io/x/test-image-latest", "test-image-latest")
        .alias("gcr.io/x/test-image-tags:1", "test-image-tags")
        .alias("gcr.io/x/test-image-tags:2", "test-image-tags")
        .alias("gcr.io/x/test-image-tags:3", "test-image-tags")
        .alias("gcr.io/x/missing:1", "missing")
        .alias(&digest, "test-image-digest");
    for name in ["pause", "test-image-latest", "test-image-tags", "test-image-digest"] {
        node.sidecar(name, r#"{"config":{"Cmd":["sh"]}}"#);
    }
    let library = node.open();
    assert_eq!(
        status(&library, "k8s.gcr.io/pause:3.9").repo_tags,
        ["k8s.gcr.io/pause:3.9", "registry.k8s.io/pause:3.9"]
    );
    assert_eq!(status(&library, "pause").id, status(&library, "registry.k8s.io/pause:3.9").id);
    assert_eq!(
        status(&library, "gcr.io/x/test-image-latest").repo_tags,
        ["gcr.io/x/test-image-latest:latest"]
    );
    assert_eq!(status(&library, "gcr.io/x/test-image-tags:2").repo_tags.len(), 3);
    let image = status(&library, &digest);
    assert_eq!((image.repo_tags.len(), image.repo_digests.as_slice()), (0, [digest].as_slice()));
    assert_eq!(library.list(None).unwrap().len(), 4);
    let error = library.resolve("gcr.io/x/missing:1").unwrap_err();
    assert!(error.to_string().contains("roots/missing"), "{error}");
}

#[test]
fn a_configuration_may_name_its_entry_but_take_no_name_away() {
    let node = Node::new();
    let label = |names: &str| {
        format!(r#"{{"config":{{"Labels":{{"org.opencontainers.image.ref.name":"{names}"}}}}}}"#)
    };
    node.bare("nginx");
    node.sidecar("evil", &label("docker.io/library/nginx:latest quay.io/own/name:1"));
    node.sidecar("second", &label("quay.io/own/name:1,quay.io/own/other:2"));
    node.sidecar("only-a-tag", &label("1.2"));
    let library = node.open();
    assert!(status(&library, "nginx").location.ends_with("roots/nginx"));
    assert!(status(&library, "quay.io/own/other:2").location.ends_with("second/rootfs"));
    assert_eq!(status(&library, "only-a-tag").repo_tags, ["docker.io/library/only-a-tag:latest"]);
    let owners = ["evil", "second"].map(|name| status(&library, name).repo_tags);
    assert_eq!(owners.iter().flatten().filter(|tag| *tag == "quay.io/own/name:1").count(), 1);
    assert_eq!(status(&library, "quay.io/own/name:1").repo_tags.len(), 1 + usize::from(owners[1].len() == 2));

    // The name goes with the label.
    node.sidecar("second", &label("quay.io/own/third:3"));
    assert!(is_absent(&library, "quay.io/own/other:2"));
    assert!(!is_absent(&library, "quay.io/own/third:3"));
}

#[test]
fn removal_hides_every_name_until_the_next_pull_and_over_restarts() {
    let node = Node::new().alias("a.io/x:1", "x").alias("a.io/x:2", "x");
    node.bare("x");
    node.bare("y");
    let library = node.open();
    let id = library.pull("a.io/x:1").unwrap().id;
    assert!(status(&library, &id).pulled);
    library.remove(&id).unwrap();
    library.remove(&id).unwrap();
    library.remove("a.io/never-there:1").unwrap();
    let gone = |library: &Library| {
        for name in ["a.io/x:1", "a.io/x:2", "x", &id] {
            assert!(is_absent(library, name), "{name}");
        }
        assert!(matches!(library.resolve(&id), Err(ResolveError::Removed { .. })));
        assert_eq!(library.list(None).unwrap().len(), 1);
        assert!(library.list(Some("a.io/x:1")).unwrap().is_empty());
    };
    gone(&library);
    drop(library);
    let library = node.open();
    gone(&library);
    assert!(node.root().join("x/etc/name").exists(), "the directory stays");
    assert_eq!(library.pull("a.io/x:2").unwrap().id, id);
    assert_eq!(status(&library, "a.io/x:1").repo_tags, ["a.io/x:1", "a.io/x:2"]);
    assert!(library.pull("a.io/never-there:1").unwrap_err().is_not_found());
}

#[test]
fn a_version_switch_is_another_image() {
    let node = Node::new();
    node.bare("versions/app-1");
    node.bare("versions/app-2");
    let link = node.root().join("app");
    symlink("versions/app-1", &link).unwrap();
    let library = node.open();
    let first = library.resolve("app").unwrap();
    assert!(first.location().ends_with("versions/app-1"));
    assert_eq!(status(&library, "app").id, first.id);
    assert_eq!(status(&library, "app").repo_tags.len(), 2, "its own path and the link");

    // Absolute, and back into the root: as good as relative.
    let next = node.root().join("app.next");
    symlink(node.root().join("versions/app-2"), &next).unwrap();
    fs::rename(&next, &link).unwrap();
    let second = library.resolve("app").unwrap();
    assert_ne!(first.id, second.id);
    assert_eq!(status(&library, &first.id).id, first.id, "the old one is still there");
    assert_eq!(
        status(&library, &second.id).repo_tags,
        ["docker.io/library/app:latest", "docker.io/versions/app-2:latest"]
    );
    // What was opened before stays what it was.
    let name =
        rustix::fs::openat(first.tree(), "etc/name", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
    assert_eq!(std::io::read_to_string(fs::File::from(name.unwrap())).unwrap(), "versions/app-1");
}

#[test]
fn nothing_outside_the_roots_is_reachable() {
    let node = Node::new().alias("a.io/out:1", "out");
    let outside = node.temp.path().join("outside");
    fs::create_dir_all(outside.join("etc")).unwrap();
    for (name, target) in [
        ("out", outside.to_str().unwrap()),
        ("up", "../outside"),
        ("host", "/"),
        ("proc", "/proc/self/root"),
        ("self", "."),
        ("parent", ".."),
        ("loop", "loop"),
        ("dangling", "nowhere"),
    ] {
        symlink(target, node.root().join(name)).unwrap();
    }
    let library = node.open();
    for name in ["out", "up", "host", "proc", "loop", "a.io/out:1"] {
        let error = library.resolve(name).unwrap_err();
        assert!(matches!(error, ResolveError::Refused { .. }), "{name}: {error:?}");
    }
    for name in ["self", "dangling", "host/etc", "rootfs.local/dangling/x"] {
        assert!(library.resolve(name).is_err(), "{name}");
    }
    assert!(library.list(None).unwrap().is_empty());
    assert!(library.resolve("nix:0/nix/store/x").unwrap_err().is_not_found());
    assert!(library.resolve(&format!("nix:0{}", outside.to_str().unwrap())).is_err());
}

#[test]
fn a_link_that_is_switched_while_it_is_followed_never_leads_out() {
    let node = Node::new();
    node.bare("inside");
    let outside = node.temp.path().join("outside");
    fs::create_dir_all(outside.join("etc")).unwrap();
    let (link, other) = (node.root().join("app"), node.root().join("other"));
    symlink("inside", &link).unwrap();
    symlink(&outside, &other).unwrap();
    let library = node.open();
    let inside = library.resolve("inside").unwrap().id;
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let (from, to) = (rustix::fs::CWD, rustix::fs::CWD);
                rustix::fs::renameat_with(from, &link, to, &other, rustix::fs::RenameFlags::EXCHANGE)
                    .unwrap();
            }
        });
        let (mut found, mut refused) = (0, 0);
        for _ in 0..3000 {
            match library.resolve("app") {
                Ok(entry) => {
                    assert_eq!(entry.id, inside);
                    found += 1;
                }
                Err(_) => refused += 1,
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        println!("{found} found, {refused} refused");
    });
}

#[test]
fn a_tree_s_own_directories_are_no_entries() {
    let node = Node::new();
    node.bare("debian");
    fs::create_dir_all(node.root().join("debian/usr/bin")).unwrap();
    fs::create_dir_all(node.root().join("debian/registry.k8s.io/app/etc")).unwrap();
    node.sidecar("app", r#"{"config":{}}"#);
    let library = node.open();
    for name in
        ["debian/usr", "debian:usr", "rootfs.local/debian/registry.k8s.io/app", "rootfs.local/app/rootfs"]
    {
        assert!(is_absent(&library, name), "{name}");
    }
    assert_eq!(library.list(None).unwrap().len(), 2);
}

#[test]
fn what_appears_and_disappears_is_noticed() {
    let node = Node::new();
    let library = node.open();
    assert!(library.list(None).unwrap().is_empty());
    let dir = node.bare("later");
    let id = status(&library, "later").id;
    assert_eq!(library.list(None).unwrap().len(), 1);
    assert_eq!(status(&library, &id).id, id);
    fs::remove_dir_all(&dir).unwrap();
    assert!(is_absent(&library, &id) && is_absent(&library, "later"));
    assert!(library.list(None).unwrap().is_empty());
    library.remove(&id).unwrap();
    fs::remove_dir_all(node.root()).unwrap();
    assert!(library.list(None).unwrap().is_empty());
}

#[test]
fn a_broken_sidecar_is_told_and_does_not_hide_the_others() {
    let node = Node::new();
    node.bare("good");
    node.sidecar("broken", r#"{"config":{"User":"99999999999"}}"#);
    let library = node.open();
    assert_eq!(library.list(None).unwrap().len(), 1);
    let error = library.resolve("broken").unwrap_err();
    assert!(matches!(error, ResolveError::Unusable { .. }) && !error.is_not_found(), "{error:?}");
    node.sidecar("broken", r#"{"config":{"User":"9"}}"#);
    assert_eq!(status(&library, "broken").uid, Some(9));
}

#[test]
fn a_store_is_used_by_path_and_not_listed_until_pulled() {
    let mut node = Node::new();
    let temp = node.temp.path().to_owned();
    fs::create_dir_all(temp.join("nix/store/abc-hello-2.12/bin")).unwrap();
    fs::create_dir_all(temp.join("nix/store/def-other/bin")).unwrap();
    symlink(temp.join("nix/store/abc-hello-2.12"), node.root().join("hello")).unwrap();
    node.aliases.clear();
    let open = || {
        Library::open(&Config {
            roots: vec![node.root(), temp.join("nix/store")],
            aliases: BTreeMap::new(),
            state: temp.join("state/images"),
        })
        .unwrap()
    };
    let library = open();
    let store = temp.join("nix/store");
    let name = format!("nix:0{}/def-other", store.display());
    assert_eq!(
        tags(&library),
        [["docker.io/library/hello:latest"]],
        "a link into another root is an entry there"
    );
    let id = library.pull(&name).unwrap().id;
    let library = open();
    assert_eq!(status(&library, &id).repo_tags, [format!("{name}:latest")]);
    assert_eq!(library.list(None).unwrap().len(), 2);
}

#[test]
fn configurations_that_cannot_work_are_refused() {
    let open = |roots: &[&str], aliases: &[(&str, &str)]| {
        let temp = tempfile::tempdir().unwrap();
        Library::open(&Config {
            roots: roots.iter().map(PathBuf::from).collect(),
            aliases: aliases.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
            state: temp.path().join("images"),
        })
        .map(drop)
    };
    assert!(open(&["/srv//podwright-none/"], &[("a", "b/c")]).is_ok());
    assert!(open(&["relative"], &[]).is_err());
    assert!(open(&["/a/../etc"], &[]).is_err());
    assert!(open(&["/"], &[]).is_err());
    assert!(open(&[], &[("UPPER", "x")]).is_err());
    for target in ["", "/etc", "../x", "a/../b", "."] {
        assert!(open(&[], &[("a", target)]).is_err(), "{target:?}");
    }
    assert!(open(&[], &[("a", "x"), ("a:latest", "y")]).is_err());
}

#[test]
fn a_size_is_measured_once_and_kept() {
    let node = Node::new();
    let dir = node.bare("sized");
    fs::write(dir.join("etc/large"), vec![0; 300_000]).unwrap();
    fs::hard_link(dir.join("etc/large"), dir.join("etc/same")).unwrap();
    let library = node.open();
    let size = library.measure("sized").unwrap().unwrap();
    assert_eq!((size.bytes, size.objects, size.complete), (300_005, 4, true));
    let library = node.open();
    assert_eq!(status(&library, "sized").size_bytes, 300_005);
}

#[test]
fn many_threads_share_a_library() {
    let node = Node::new();
    for index in 0..20 {
        node.bare(&format!("app-{index}"));
    }
    let library = node.open();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (library, node) = (&library, &node);
            scope.spawn(move || {
                for index in 0..20 {
                    let name = format!("app-{index}");
                    let id = library.pull(&name).unwrap().id;
                    assert_eq!(library.resolve(&id).unwrap().id, id);
                    node.bare(&format!("thread-{thread}-{index}"));
                    assert!(library.list(None).unwrap().len() >= 20);
                }
            });
        }
    });
    assert_eq!(library.list(None).unwrap().len(), 100);
}

#[test]
fn a_seal_notices_every_change() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::new();
    let dir = node.bare("sealed");
    symlink("name", dir.join("etc/link")).unwrap();
    let library = node.open();
    let verify = || library.verify("sealed").unwrap();
    assert_eq!(verify(), imageless::seal::Verification::NotSealed);
    let seal = library.seal("sealed").unwrap();
    assert_eq!(verify(), imageless::seal::Verification::Intact(seal.clone()));
    assert_eq!(status(&library, "sealed").seal, Some(seal.clone()));
    assert_eq!(status(&library, "sealed").size_bytes, 6);
    let copy = node.bare("copy");
    fs::write(copy.join("etc/name"), "sealed").unwrap();
    symlink("name", copy.join("etc/link")).unwrap();
    assert_eq!(library.seal("copy").unwrap().digest, seal.digest, "equal trees, equal digests");

    let changed = |what: &str| {
        assert!(matches!(verify(), imageless::seal::Verification::Changed { .. }), "{what}");
    };
    let restore = |path: &Path, bytes: &str| fs::write(path, bytes).unwrap();
    let name = dir.join("etc/name");
    fs::write(&name, "Sealed").unwrap();
    changed("a byte");
    restore(&name, "sealed");
    let mode = fs::metadata(&name).unwrap().permissions();
    fs::set_permissions(&name, fs::Permissions::from_mode(0o4755)).unwrap();
    changed("a mode");
    fs::set_permissions(&name, mode).unwrap();
    fs::write(dir.join("extra"), "").unwrap();
    changed("a new file");
    fs::remove_file(dir.join("extra")).unwrap();
    fs::remove_file(dir.join("etc/link")).unwrap();
    symlink("other", dir.join("etc/link")).unwrap();
    changed("a link's target");
    fs::remove_file(dir.join("etc/link")).unwrap();
    symlink("name", dir.join("etc/link")).unwrap();
    assert_eq!(verify(), imageless::seal::Verification::Intact(seal));
    match rustix::fs::setxattr(&name, "user.podwright", b"x", rustix::fs::XattrFlags::empty()) {
        Ok(()) => changed("an extended attribute"),
        Err(errno) => println!("skip: no extended attributes on this filesystem: {errno}"),
    }
}
