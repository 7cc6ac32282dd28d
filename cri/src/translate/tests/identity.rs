//! Program, environment, user and capabilities.

use oci_spec::runtime::Capabilities;

use super::*;

#[test]
fn command_and_arguments_replace_what_the_image_has() {
    // command, args, entrypoint, cmd -> the whole
    let cases: &[[&[&str]; 5]] = &[
        [&[], &[], &["e"], &["c"], &["e", "c"]],
        [&[], &["a"], &["e"], &["c"], &["e", "a"]],
        [&["x"], &[], &["e"], &["c"], &["x"]],
        [&["x"], &["a"], &["e"], &["c"], &["x", "a"]],
        [&[], &[], &[], &["c"], &["c"]],
        [&[], &["a"], &[], &["c"], &["a"]],
        [&[], &[], &[""], &["c"], &["c"]],
        [&[], &[], &["e"], &[], &["e"]],
    ];
    for [command, args, entrypoint, cmd, whole] in cases {
        let mut f = fixture();
        f.container.command = strings(command);
        f.container.args = strings(args);
        f.image.entrypoint = strings(entrypoint);
        f.image.cmd = strings(cmd);
        assert_eq!(f.process().args().as_deref().unwrap(), *whole, "{command:?} {args:?}");
    }
    let mut f = fixture();
    f.image.cmd.clear();
    assert!(f.error().starts_with("config.command: must be given: image docker.io/library/busybox"));
}

#[test]
fn environment_is_merged_in_place() {
    let env = |f: &Fixture| f.process().env().clone().unwrap();
    let mut f = fixture();
    assert_eq!(
        env(&f),
        ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=node-1", "HOME=/"]
    );
    f.pod.hostname = "web-0".into();
    f.container.tty = true;
    f.user.home = Some("/home/u".into());
    f.image.env = strings(&["PATH=/image", "A=1", "B=2", "HOSTNAME", "=x", "nul\0=1"]);
    let pair = |key: &str, value: &[u8]| v1::KeyValue { key: key.into(), value: value.to_vec() };
    f.container.envs = vec![pair("A", b"3"), pair("C", b"x=y"), pair("A", b"4"), pair("E", b"")];
    assert_eq!(env(&f), ["PATH=/image", "TERM=xterm", "A=4", "B=2", "C=x=y", "E=", "HOME=/home/u"]);
    f.container.envs = vec![pair("HOME", b"/else"), pair("TERM", b"dumb"), pair("HOSTNAME", b"mine")];
    assert_eq!(env(&f), ["PATH=/image", "TERM=dumb", "HOSTNAME=mine", "A=1", "B=2", "HOME=/else"]);
}

#[test]
fn the_working_directory_is_the_requests_then_the_images() {
    let mut f = fixture();
    let cwd = |f: &Fixture| f.process().cwd().display().to_string();
    assert_eq!(cwd(&f), "/");
    f.image.working_dir = "srv/app".into();
    assert_eq!(cwd(&f), "/srv/app");
    f.container.working_dir = "/data/".into();
    assert_eq!(cwd(&f), "/data");
    f.container.working_dir.clear();
    f.image.working_dir = "../..".into();
    assert!(f.error().contains("WorkingDir"), "{}", f.error());
}

#[test]
fn terminal_and_no_new_privs_are_the_requests() {
    let mut f = fixture();
    f.container.tty = true;
    f.security().no_new_privs = true;
    f.security().readonly_rootfs = true;
    let spec = f.spec();
    let process = spec.process().as_ref().unwrap();
    assert_eq!((process.terminal(), process.no_new_privileges()), (Some(true), Some(true)));
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
}

#[test]
fn groups_follow_the_policy() {
    let mut f = fixture();
    f.user = ResolvedUser { uid: 1000, gid: 1000, groups: vec![50000, 4], home: None };
    f.security().run_as_user = int(1000);
    f.security().supplemental_groups = vec![1234, 4, 1234];
    let user = |f: &Fixture| f.process().user().clone();
    assert_eq!((user(&f).uid(), user(&f).gid()), (1000, 1000));
    assert_eq!(user(&f).additional_gids().as_deref().unwrap(), [4, 1000, 1234, 50000]);
    f.security().supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict.into();
    assert_eq!(user(&f).additional_gids().as_deref().unwrap(), [4, 1000, 1234]);
    f.security().run_as_group = int(7);
    assert_eq!(user(&f).gid(), 7);
    assert_eq!(user(&f).additional_gids().as_deref().unwrap(), [4, 7, 1234]);

    let (_, container) = f.parse().unwrap();
    let reported = v1::ContainerUser::from(&container.security.user.identity(&f.user));
    let reported = reported.linux.unwrap();
    assert_eq!((reported.uid, reported.gid), (1000, 7));
    assert_eq!(reported.supplemental_groups, [4, 7, 1234]);
}

#[test]
fn the_user_to_look_up_is_the_requests_then_the_images_then_root() {
    let mut f = fixture();
    let user = |f: &Fixture, image: &str| f.parse().unwrap().1.security.user.to_look_up(image).into_owned();
    assert_eq!(user(&f, ""), "0");
    assert_eq!(user(&f, "www-data:g"), "www-data:g");
    f.security().run_as_username = "nobody".into();
    assert_eq!(user(&f, "www-data:g"), "nobody");
    f.security().run_as_username.clear();
    f.security().run_as_user = int(4_294_967_294);
    assert_eq!(user(&f, "www-data:g"), "4294967294");
}

/// The names of one of the spec's sets, sorted.
fn names(set: Option<&Capabilities>) -> Vec<String> {
    let mut names: Vec<String> = set.unwrap().iter().map(ToString::to_string).collect();
    names.sort();
    names
}

fn capabilities(f: &Fixture) -> (Vec<String>, Vec<String>) {
    let process = f.process();
    let sets = process.capabilities().as_ref().unwrap();
    let bounding = names(sets.bounding().as_ref());
    assert_eq!(bounding, names(sets.permitted().as_ref()));
    assert_eq!(bounding, names(sets.effective().as_ref()));
    let ambient = names(sets.ambient().as_ref());
    assert_eq!(ambient, names(sets.inheritable().as_ref()));
    (bounding, ambient)
}

#[test]
fn capabilities_are_added_and_dropped_as_asked() {
    let table: &[(&[&str], &[&str], &[&str])] = &[
        // added, dropped, the whole
        (&[], &["ALL"], &[]),
        (&["NET_ADMIN"], &["ALL"], &["NET_ADMIN"]),
        (&["net_admin", "CAP_SYS_TIME", "cap_sys_time"], &["all"], &["NET_ADMIN", "SYS_TIME"]),
        (&["ALL"], &["ALL"], &[]),
        (&["ALL", "KILL"], &["ALL"], &["KILL"]),
        (&["KILL"], &["KILL", "ALL"], &[]),
    ];
    for (added, dropped, whole) in table {
        let mut f = fixture();
        f.security().capabilities = Some(v1::Capability {
            add_capabilities: strings(added),
            drop_capabilities: strings(dropped),
            ..Default::default()
        });
        assert_eq!(capabilities(&f), (strings(whole), Vec::new()), "{added:?} {dropped:?}");
    }
    let mut f = fixture();
    assert_eq!(capabilities(&f).0, super::super::capabilities::DEFAULT);
    f.security().capabilities =
        Some(v1::Capability { drop_capabilities: strings(&["CHOWN"]), ..Default::default() });
    assert_eq!(capabilities(&f).0.len(), 13);
    f.security().capabilities = Some(v1::Capability {
        add_capabilities: strings(&["ALL"]),
        drop_capabilities: strings(&["CHOWN"]),
        ..Default::default()
    });
    assert_eq!(capabilities(&f).0.len(), 40);
}

#[test]
fn every_capability_reaches_the_spec() {
    let mut f = fixture();
    f.privileged();
    let mut all = strings(super::super::capabilities::ALL);
    all.sort();
    assert_eq!(capabilities(&f), (all, Vec::new()));
    assert_eq!(super::super::capabilities::from_mask(1 << 21 | 1), ["CHOWN", "SYS_ADMIN"].into());
    assert_eq!(super::super::capabilities::from_mask(u64::MAX).len(), 41);
}

#[test]
fn ambient_capabilities_are_granted_in_full() {
    let mut f = fixture();
    f.security().capabilities = Some(v1::Capability {
        drop_capabilities: strings(&["ALL"]),
        add_ambient_capabilities: strings(&["NET_BIND_SERVICE"]),
        ..Default::default()
    });
    let expected = strings(&["NET_BIND_SERVICE"]);
    assert_eq!(capabilities(&f), (expected.clone(), expected));
    f.security().capabilities = Some(v1::Capability {
        drop_capabilities: strings(&["KILL"]),
        add_ambient_capabilities: strings(&["KILL"]),
        ..Default::default()
    });
    assert!(f.error().contains("KILL is also dropped"), "{}", f.error());
}

#[test]
fn a_capability_this_node_lacks_is_refused_by_name_only() {
    let mut f = fixture();
    f.host.capabilities.remove("SYS_RESOURCE");
    f.host.capabilities.remove("MKNOD");
    assert_eq!(capabilities(&f).0.len(), 13);
    f.security().capabilities =
        Some(v1::Capability { add_capabilities: strings(&["ALL"]), ..Default::default() });
    assert_eq!(capabilities(&f).0.len(), 39);
    f.security().capabilities =
        Some(v1::Capability { add_ambient_capabilities: strings(&["ALL"]), ..Default::default() });
    assert_eq!(capabilities(&f).1.len(), 39);
    f.security().capabilities =
        Some(v1::Capability { add_capabilities: strings(&["SYS_RESOURCE"]), ..Default::default() });
    assert!(f.error().contains("CAP_SYS_RESOURCE is not among"), "{}", f.error());
    f.privileged();
    assert_eq!(capabilities(&f).0.len(), 39);
}
