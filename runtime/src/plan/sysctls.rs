//! Sysctls: only those that a namespace of the container's own keeps from the host. See sysctl(8), namespaces(7).

use std::path::Path;

use serde_json::{Map, Value};

use super::error::{PlanError, no_nul};
use super::{NamespaceKind, Namespaces};

/// Those of the IPC namespace, besides all of `fs.mqueue`.
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// The sysctls of a spec as (path below /proc/sys, value), in the spec's order.
pub(super) fn from_spec(
    sysctls: Option<&Map<String, Value>>,
    namespaces: &Namespaces,
) -> Result<Vec<(String, String)>, PlanError> {
    let mut checked = Vec::new();
    for (name, value) in sysctls.into_iter().flatten() {
        let field = || format!("linux.sysctl.{name}");
        let Value::String(value) = value else {
            return Err(PlanError::invalid(field(), "not a string"));
        };
        no_nul(field, value)?;
        let path = path(name).ok_or_else(|| PlanError::invalid(field(), "not the name of a sysctl"))?;
        permitted(&path, namespaces).map_err(|problem| PlanError::conflict(field(), problem))?;
        checked.push((path, value.clone()));
    }
    Ok(checked)
}

/// The path of a sysctl below /proc/sys. Whichever of `.` and `/` comes first separates, and the other is then an ordinary
/// character: `net.ipv4.conf.eno2/100.rp_filter` and `net/ipv4/conf/eno2.100/rp_filter` are one. See sysctl(8). It may be none that is
/// safe to use.
#[must_use]
pub fn sysctl_path(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name[first..].starts_with('.') => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

/// The path of a sysctl, if the name can be one's.
fn path(name: &str) -> Option<String> {
    let path = sysctl_path(name);
    let sound = path.split('/').count() >= 2
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && !path.contains(|c: char| c.is_control() || c.is_whitespace());
    sound.then_some(path)
}

/// Whether the namespace the sysctl belongs to is the container's own; otherwise why it must not be written.
fn permitted(path: &str, namespaces: &Namespaces) -> Result<(), String> {
    let dotted = path.replace('/', ".");
    if IPC.contains(&path) || path.starts_with("fs/mqueue/") {
        return if namespaces.contains(NamespaceKind::Ipc) {
            Ok(())
        } else {
            Err(format!("sysctl {dotted:?} is not allowed in the hosts ipc namespace"))
        };
    }
    if path.starts_with("net/") {
        let own = namespaces.is_new(NamespaceKind::Network)
            || namespaces.joined(NamespaceKind::Network).is_some_and(|path| !is_ours(path));
        return if own {
            Ok(())
        } else {
            Err(format!("sysctl {dotted:?} not allowed in host network namespace"))
        };
    }
    if path.starts_with("user/") {
        return if namespaces.contains(NamespaceKind::User) {
            Ok(())
        } else {
            Err(format!("setting ucounts without a user namespace not allowed: {dotted}"))
        };
    }
    match path {
        "kernel/domainname" if namespaces.contains(NamespaceKind::Uts) => Ok(()),
        "kernel/hostname" => {
            Err(format!("sysctl {dotted:?} is not allowed as it conflicts with the OCI \"hostname\" field"))
        }
        _ => Err(format!("sysctl {dotted:?} is not in a separate kernel namespace")),
    }
}

/// Paths that name the caller's own network namespace however they are resolved. A path that only turns out to be the
/// host's when it is opened is init's to refuse.
fn is_ours(path: &Path) -> bool {
    ["/proc/1/ns/net", "/proc/self/ns/net", "/proc/thread-self/ns/net"]
        .iter()
        .any(|own| path == Path::new(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, kinds: &[NamespaceKind]) -> Result<Vec<(String, String)>, PlanError> {
        let namespaces = Namespaces { new: kinds.to_vec(), ..Namespaces::default() };
        let sysctls = Map::from_iter([(name.to_owned(), Value::from("1"))]);
        from_spec(Some(&sysctls), &namespaces)
    }

    #[test]
    fn either_separator_works() {
        assert_eq!(path("net.ipv4.conf.eno2/100.rp_filter").unwrap(), "net/ipv4/conf/eno2.100/rp_filter");
        assert_eq!(path("net/ipv4/conf/eno2.100/rp_filter").unwrap(), "net/ipv4/conf/eno2.100/rp_filter");
    }

    #[test]
    fn no_name_leaves_proc_sys() {
        for name in [
            "",
            "net",
            "net..ipv4",
            "net/../kernel/core_pattern",
            "../../etc/passwd",
            "net.ipv4.a\nb",
            "/net/x",
        ] {
            assert!(path(name).is_none(), "{name:?}");
        }
        // With dots as separators `/` turns into a dot, so this is a file of that odd name.
        assert_eq!(path("net.ipv4.//x"), Some("net/ipv4/..x".into()));
    }

    #[test]
    fn each_needs_its_namespace() {
        assert!(check("kernel.shmmax", &[NamespaceKind::Ipc]).is_ok());
        assert!(check("kernel.shmmax", &[]).is_err());
        assert!(check("fs.mqueue.msg_max", &[NamespaceKind::Ipc]).is_ok());
        assert!(check("net.ipv4.ip_forward", &[NamespaceKind::Network]).is_ok());
        assert!(check("net.ipv4.ip_forward", &[NamespaceKind::Ipc]).is_err());
        assert!(check("kernel.domainname", &[NamespaceKind::Uts]).is_ok());
        assert!(check("kernel.hostname", &[NamespaceKind::Uts]).is_err());
        assert!(check("kernel.core_pattern", &[NamespaceKind::Uts, NamespaceKind::Ipc]).is_err());
        assert!(check("user.max_user_namespaces", &[]).is_err());
    }

    #[test]
    fn the_hosts_network_namespace_by_path_is_the_hosts() {
        let join = |path: &str| Namespaces {
            join: vec![(NamespaceKind::Network, path.into())],
            ..Namespaces::default()
        };
        let sysctls = Map::from_iter([("net.ipv4.ip_forward".to_owned(), Value::from("1"))]);
        assert!(from_spec(Some(&sysctls), &join("/proc/1/ns/net")).is_err());
        assert!(from_spec(Some(&sysctls), &join("/run/netns/pod")).is_ok());
    }
}
