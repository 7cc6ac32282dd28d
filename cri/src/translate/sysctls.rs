//! The kernel parameters of a pod: an allow list by namespace.
//!
//! Only parameters that the kernel keeps per namespace are accepted, and only where the pod has that namespace
//! for itself: anything else would be set on the host.

use std::collections::{BTreeMap, HashMap};

use runtime::plan::sysctl_path;

use super::namespaces::{PodNamespaces, Shared, Userns};
use super::pod::Defaults;
use crate::check;
use crate::error::Error;

/// Parameters of the IPC namespace. See `ipc_namespaces(7)`.
const IPC: &[&str] = &[
    "kernel.auto_msgmni",
    "kernel.msg_next_id",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.sem_next_id",
    "kernel.shm_next_id",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];
/// POSIX message queues, of the IPC namespace too.
const MESSAGE_QUEUES: &str = "fs.mqueue.";
/// Everything below /proc/sys/net that a network namespace has.
const NETWORK: &str = "net.";
/// Longest value, in bytes: what one write to /proc/sys takes.
const VALUE_BYTES: usize = 4095;

/// The checked parameters by dotted name, with the node's defaults for those not given.
pub(super) fn parse(
    field: &str,
    raw: HashMap<String, String>,
    namespaces: &PodNamespaces,
    defaults: &Defaults,
) -> Result<BTreeMap<String, String>, Error> {
    let mut sysctls = BTreeMap::new();
    for (name, value) in raw {
        let field = format!("{field}[{}]", check::shown(&name));
        let name = canonical(&field, &name)?;
        permitted(&field, &name, namespaces)?;
        check::text(&field, &value, VALUE_BYTES)?;
        if sysctls.insert(name, value).is_some() {
            return Err(Error::invalid(field, "is given twice, in two spellings"));
        }
    }
    if namespaces.network == Shared::Pod {
        let mut default = |name: &str, value: &str| {
            sysctls.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        };
        if defaults.unprivileged_ports {
            default("net.ipv4.ip_unprivileged_port_start", "0");
        }
        // The range is in the group ids of the namespace's owner, so it cannot be this wide in a mapped one.
        if defaults.unprivileged_icmp && namespaces.userns == Userns::None {
            default("net.ipv4.ping_group_range", "0 2147483647");
        }
    }
    Ok(sysctls)
}

/// The dotted spelling of a name, which has to stay below /proc/sys.
fn canonical(field: &str, name: &str) -> Result<String, Error> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '_' | '-' | '@' | ':');
    let path = sysctl_path(name);
    let parts_legal = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if name.len() > check::COMPONENT_BYTES || !name.chars().all(legal) || !parts_legal {
        return Err(Error::invalid(field, "is not the name of a kernel parameter"));
    }
    // Back to dots: the table below is written that way, and two spellings of one name must not pass as two.
    Ok(path
        .chars()
        .map(|c| match c {
            '/' => '.',
            '.' => '/',
            other => other,
        })
        .collect())
}

/// Whether the pod has the namespace that keeps this parameter.
fn permitted(field: &str, name: &str, namespaces: &PodNamespaces) -> Result<(), Error> {
    let (kind, has) = if name.starts_with(NETWORK) {
        ("network", namespaces.network)
    } else if IPC.contains(&name) || name.starts_with(MESSAGE_QUEUES) {
        ("IPC", namespaces.ipc)
    } else {
        let reason =
            "is not a parameter of a namespace: net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*";
        return Err(Error::invalid(field, reason));
    };
    if has == Shared::Node {
        return Err(Error::invalid(
            field,
            format!("would change the host: the pod uses its {kind} namespace"),
        ));
    }
    Ok(())
}
