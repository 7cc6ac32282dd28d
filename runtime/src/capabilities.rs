//! The names of capabilities and their bits. See capabilities(7).
//!
//! A capability set is a `u64` in which bit N stands for capability N, as the kernel's own
//! `/proc/PID/status` shows it.

use oci_spec::runtime::Capabilities as Names;

/// Every name, in the order of the kernel's numbers.
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Every capability of [`NAMES`].
pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// The number of a capability. The name may be in any case and with or without its `CAP_`; None: unknown.
pub fn number(name: &str) -> Option<u32> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let index = NAMES.iter().position(|known| known.strip_prefix("CAP_") == Some(bare))?;
    u32::try_from(index).ok()
}

/// The name of capability `number`; None: the kernel's, but not ours.
pub fn name(number: u32) -> Option<&'static str> {
    NAMES.get(usize::try_from(number).ok()?).copied()
}

/// The set of the named capabilities and the names that are unknown.
pub fn set<'a>(names: impl IntoIterator<Item = &'a str>) -> (u64, Vec<&'a str>) {
    let mut bits = 0;
    let mut unknown = Vec::new();
    for name in names {
        match number(name) {
            Some(number) => bits |= 1 << number,
            None => unknown.push(name),
        }
    }
    (bits, unknown)
}

/// The set the spec's list stands for; an absent list is the empty set.
pub fn from_spec(names: Option<&Names>) -> u64 {
    names.into_iter().flatten().filter_map(|name| number(&name.to_string())).fold(0, |bits, n| bits | 1 << n)
}

/// The names in a set, in the kernel's order.
pub fn names(bits: u64) -> Vec<&'static str> {
    (0..64).filter(|number| bits & (1 << number) != 0).filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree_with_the_kernel() {
        assert_eq!(number("CAP_CHOWN"), Some(0));
        assert_eq!(number("sys_admin"), Some(21));
        assert_eq!(number("CAP_CHECKPOINT_RESTORE"), Some(40));
        assert_eq!(number("CAP_CAP_CHOWN"), None);
        assert_eq!(name(41), None);
    }

    #[test]
    fn unknown_names_are_told_apart() {
        assert_eq!(set(["CAP_KILL", "CAP_FLY"]), (1 << 5, vec!["CAP_FLY"]));
        assert_eq!(names(1 << 5 | 1 << 29 | 1 << 63), ["CAP_KILL", "CAP_AUDIT_WRITE"]);
    }

    #[test]
    fn every_name_of_the_spec_is_known() {
        for name in NAMES {
            let capability: oci_spec::runtime::Capability =
                serde_json::from_value(serde_json::Value::from(name)).unwrap();
            assert_eq!(number(&capability.to_string()), number(name));
        }
    }
}
