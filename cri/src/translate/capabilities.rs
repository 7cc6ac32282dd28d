//! Capabilities: what is added to and dropped from the default set. See `capabilities(7)`.

use std::collections::BTreeSet;
use std::str::FromStr as _;

use oci_spec::runtime::{Capability, LinuxCapabilities};

use super::inputs::HostFacts;
use crate::check;
use crate::error::Error;
use crate::v1;

/// What a container has unless it says otherwise: containerd's and Docker's set.
pub const DEFAULT: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Every capability there is, in the kernel's order: the number of each is its place.
pub const ALL: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The names of capabilities without `CAP_`, each one of [`ALL`].
pub type Names = BTreeSet<&'static str>;

/// The names of the capabilities in a bit mask as `/proc/self/status` shows it.
pub fn from_mask(mask: u64) -> Names {
    ALL.iter().enumerate().filter(|(bit, _)| mask & (1 << bit) != 0).map(|(_, name)| *name).collect()
}

/// The request's changes to the default set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CapabilityRequest {
    /// Start from every capability instead of the default set.
    pub add_all: bool,
    /// Start from none; wins over `add_all`.
    pub drop_all: bool,
    /// Added to what it starts from.
    pub add: Names,
    /// Taken from the result.
    pub drop: Names,
    /// Kept over execve(2) of any program, by any user; added as well.
    pub ambient: Names,
}

/// Capability sets of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Granted {
    /// Bounding, permitted and effective.
    pub bounding: Names,
    /// Ambient, and therefore inheritable.
    pub ambient: Names,
}

impl CapabilityRequest {
    /// Parses `capabilities`; names are upper or lower case, with or without `CAP_`.
    pub(super) fn parse(field: &str, raw: Option<v1::Capability>) -> Result<Self, Error> {
        let raw = raw.unwrap_or_default();
        let (add_all, add) = names(&format!("{field}.add_capabilities"), &raw.add_capabilities)?;
        let (drop_all, drop) = names(&format!("{field}.drop_capabilities"), &raw.drop_capabilities)?;
        let ambient_field = format!("{field}.add_ambient_capabilities");
        let (ambient_all, mut ambient) = names(&ambient_field, &raw.add_ambient_capabilities)?;
        if ambient_all {
            ambient = ALL.iter().copied().collect();
        }
        if let Some(both) = ambient.intersection(&drop).next()
            && !ambient_all
        {
            return Err(Error::invalid(ambient_field, format!("{both} is also dropped")));
        }
        Ok(Self { add_all, drop_all, add, drop, ambient })
    }

    /// What the container gets on this host. A capability that is asked for by name and that this host does not
    /// have is an error; of `ALL` and of the default set, what there is.
    pub fn granted(&self, privileged: bool, host: &HostFacts) -> Result<Granted, Error> {
        if privileged {
            return Ok(Granted { bounding: host.capabilities.clone(), ambient: Names::new() });
        }
        let start: &[&'static str] = match (self.drop_all, self.add_all) {
            (true, _) => &[],
            (false, true) => ALL,
            (false, false) => DEFAULT,
        };
        let mut bounding: Names =
            start.iter().copied().filter(|name| host.capabilities.contains(name)).collect();
        let all_ambient = self.ambient.len() == ALL.len();
        let ambient: Names = self
            .ambient
            .iter()
            .copied()
            .filter(|name| !all_ambient || host.capabilities.contains(name))
            .filter(|name| !self.drop.contains(name))
            .collect();
        let wanted: Names = self.add.difference(&self.drop).copied().collect();
        for name in wanted.union(&ambient) {
            if !host.capabilities.contains(name) {
                let reason = format!("CAP_{name} is not among the capabilities of this node's runtime");
                return Err(Error::invalid("config.linux.security_context.capabilities", reason));
            }
        }
        bounding.extend(wanted);
        bounding.retain(|name| !self.drop.contains(name));
        bounding.extend(&ambient);
        Ok(Granted { bounding, ambient })
    }
}

impl Granted {
    /// The five sets of the runtime-spec. Inheritable is empty unless something is ambient, so that no program
    /// gains from files' inheritable bits.
    pub fn to_oci(&self) -> LinuxCapabilities {
        let set = |names: &Names| names.iter().filter_map(|name| Capability::from_str(name).ok()).collect();
        let mut sets = LinuxCapabilities::default();
        sets.set_bounding(Some(set(&self.bounding)))
            .set_permitted(Some(set(&self.bounding)))
            .set_effective(Some(set(&self.bounding)))
            .set_inheritable(Some(set(&self.ambient)))
            .set_ambient(Some(set(&self.ambient)));
        sets
    }
}

/// Whether ALL is among the names, and the others as [`ALL`] spells them.
fn names(field: &str, raw: &[String]) -> Result<(bool, Names), Error> {
    let mut all = false;
    let mut names = Names::new();
    for (i, raw_name) in raw.iter().enumerate() {
        let upper = raw_name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if bare == "ALL" {
            all = true;
            continue;
        }
        if let Some(known) = ALL.iter().find(|known| **known == bare) {
            names.insert(known);
        } else {
            let reason = format!("{} is not a capability", check::shown(raw_name));
            return Err(Error::invalid(format!("{field}[{i}]"), reason));
        }
    }
    Ok((all, names))
}
