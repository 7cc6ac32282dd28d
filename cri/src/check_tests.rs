//! One table per rule: what it accepts, and what it refuses with a part of the reason.

use std::collections::HashMap;

use super::*;

/// Runs a rule over what it must accept and what it must refuse; each refusal has to name the field.
fn rule<T: std::fmt::Debug>(
    check: impl Fn(&str, &str) -> Result<T, Error>,
    accepted: &[&str],
    refused: &[(&str, &str)],
) {
    for value in accepted {
        assert!(check("f.x", value).is_ok(), "{value:?} refused: {:?}", check("f.x", value));
    }
    for (value, part) in refused {
        let error = check("f.x", value).expect_err(value);
        let Error::InvalidArgument { field, reason } = &error else { panic!("{value:?}: {error:?}") };
        assert!(field.starts_with("f.x"), "{value:?}: {field}");
        assert!(reason.contains(part), "{value:?}: {reason}");
        assert!(!error.to_string().contains(['\0', '\n', '\u{1b}']), "{value:?}: {error}");
    }
}

#[test]
fn names() {
    let long = "n".repeat(254);
    rule(
        name,
        &["web", "web-1.example", "PodSandbox-for-x", "a".repeat(253).as_str(), "..."],
        &[
            ("", "empty"),
            (".", "path"),
            ("..", "path"),
            ("a/b", "path"),
            ("../../etc", "path"),
            ("a b", "white space"),
            ("a\nb", "control"),
            ("a\0b", "control"),
            ("\u{1b}[2J", "control"),
            ("a\u{7f}", "control"),
            (&long, "254 bytes"),
        ],
    );
    rule(optional_name, &["", "kube-system"], &[("a/b", "path")]);
}

#[test]
fn ids() {
    let hex = "0123456789abcdef".repeat(4);
    let image = format!("sha256:{hex}");
    let long = "a".repeat(129);
    rule(
        |f, v| id(f, v).map(str::to_owned),
        &[&hex, &image, "abc123"],
        &[("", "empty"), ("..", "not an id"), ("a/b", "not an id"), ("a\nb", "not an id"), (&long, "129")],
    );
}

#[test]
fn images() {
    rule(
        image,
        &["busybox", "registry.k8s.io/pause:3.10", "x@sha256:00", "nix:0/nix/store/abc"],
        &[("", "name an image"), ("a b", "white space"), ("a\0", "control")],
    );
}

#[test]
fn absolute_paths() {
    let long = format!("/{}", "c".repeat(256));
    let deep = "/a".repeat(2048);
    rule(
        absolute_path,
        &["/", "/var/log", "/a/./b//c/", "/..data", "/a..b"],
        &[
            ("", "empty"),
            ("var/log", "absolute"),
            ("/a/../b", ".."),
            ("/..", ".."),
            ("/a\nb", "control"),
            ("/a\0", "control"),
            (&long, "component"),
            (&deep, "4096 bytes"),
        ],
    );
    assert_eq!(absolute_path("f", "//a/./b//c/").unwrap(), PathBuf::from("/a/b/c"));
}

#[test]
fn relative_paths_and_log_paths() {
    rule(
        relative_path,
        &["a", "a/b", "./a", "a/"],
        &[("", "name a file"), (".", "name a file"), ("/a", "relative"), ("a/../b", ".."), ("../a", "..")],
    );
    rule(
        log_path,
        &["web/0.log", "web_0.log"],
        &[
            ("/etc/cron.d/x", "relative"),
            ("../../../etc/x", ".."),
            ("web/", "directory"),
            ("a\nb.log", "control"),
            ("a\0", "control"),
        ],
    );
    assert_eq!(log_path("f", "web//./0.log").unwrap(), PathBuf::from("web/0.log"));
}

#[test]
fn hostnames() {
    let long = "h".repeat(65);
    rule(
        hostname,
        &["web", "web-1.ns.svc", "UPPER", "a_b", "h".repeat(64).as_str()],
        &[
            ("", "not a host name"),
            ("-a", "not a host name"),
            ("a-", "not a host name"),
            ("a..b", "not a host name"),
            ("a.", "not a host name"),
            ("a b", "not a host name"),
            ("a\nb", "not a host name"),
            ("a\0", "not a host name"),
            ("a/b", "not a host name"),
            (&long, "65 bytes"),
        ],
    );
}

#[test]
fn labels_and_annotations() {
    let map = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
    let label = |f: &str, v: &str| labels(f, map("k", v));
    rule(label, &["", "v"], &[("a\nb", "control"), ("a\0", "control")]);
    let annotation = |f: &str, v: &str| annotations(f, map("k", v));
    rule(annotation, &["", "several\nlines\tof json"], &[("a\0", "NUL")]);
    let key = |f: &str, k: &str| annotations(f, map(k, "v"));
    let long = "k".repeat(600);
    rule(
        key,
        &["io.kubernetes.pod.name", "example.com/x_Y.z"],
        &[("", "empty key"), ("a\nb", "control"), (&long, "600 bytes")],
    );
    let big = "v".repeat(MAP_BYTES + 1);
    rule(annotation, &[], &[(&big, "bytes; 1048576 are allowed")]);
    rule(label, &[], &[(&big, "bytes")]);
}

#[test]
fn arguments_and_environment() {
    let long = "a".repeat(ARGUMENT_BYTES + 1);
    rule(argument, &["", "a b\nc", "ünïcode"], &[("a\0b", "NUL"), (&long, "the kernel allows")]);
    rule(
        |f, v| environment(f, "KEY", v.as_bytes().to_vec()),
        &["", "a=b", "two\nlines"],
        &[("\0", "NUL"), (&long, "the kernel allows")],
    );
    rule(
        |f, key| environment(f, key, b"v".to_vec()),
        &["PATH", "with.dots-and spaces"],
        &[("", "name"), ("A=B", "name"), ("A\0", "control"), ("A\nB", "control")],
    );
    assert!(environment("f", "KEY", vec![0xff]).is_err());
    assert_eq!(environment("f", "K", b"a=b".to_vec()).unwrap(), "K=a=b");
}

#[test]
fn lists_have_a_bound() {
    assert_eq!(list("f", vec![0; LIST_ITEMS]).unwrap().len(), LIST_ITEMS);
    assert!(list("f", vec![0; LIST_ITEMS + 1]).unwrap_err().to_string().contains("4097 elements"));
}

#[test]
fn numbers() {
    let number = |text: &str| text.parse::<i64>().unwrap();
    rule(
        |f, v| user_id(f, number(v)),
        &["0", "65534", "4294967294"],
        &[
            ("-1", "not an id"),
            ("4294967295", "not an id"),
            ("4294967296", "not an id"),
            ("9223372036854775807", "not an id"),
            ("-9223372036854775808", "not an id"),
        ],
    );
    rule(
        |f, v| port(f, i32::try_from(number(v)).unwrap()),
        &["0", "1", "65535"],
        &[("-1", "not a port"), ("65536", "not a port"), ("2147483647", "not a port")],
    );
    rule(
        |f, v| within(f, number(v), -1000, 1000),
        &["-1000", "0", "1000"],
        &[("-1001", "outside"), ("1001", "outside")],
    );
}

#[test]
fn addresses_and_resolver_words() {
    rule(
        ip,
        &["10.0.0.1", "::1", "fd00::2"],
        &[("", "not an IP"), ("10.0.0", "not an IP"), ("a b", "not an IP")],
    );
    rule(
        resolver_word,
        &["svc.cluster.local", "ndots:5", "10.0.0.10", "fe80::1%eth0"],
        &[("", "one word"), ("a b", "one word"), ("a\nnameserver 6.6.6.6", "control")],
    );
}

#[test]
fn cpu_lists() {
    rule(
        cpu_list,
        &["0", "0-3", "0-3,8,10-11"],
        &[
            ("", "not a list"),
            ("a", "not a list"),
            ("3-1", "not a list"),
            ("0,", "not a list"),
            ("-1", "not a list"),
            ("+1", "not a list"),
            ("0-65536", "not a list"),
            ("0\n1", "not a list"),
            ("99999999999", "not a list"),
        ],
    );
}

#[test]
fn shown_values_are_short_and_escaped() {
    assert_eq!(shown("a\n"), "\"a\\n\"");
    assert!(shown(&"x".repeat(1000)).chars().count() < 70);
}
