//! The device controller's rules: what `linux.resources.devices` means, and its two forms in the kernel.
//!
//! The spec's list is applied in order, the last rule that speaks of an access decides, and what none
//! speaks of is denied. To it runc appends the devices every container has ([`DEFAULT_RULES`]), and so do we.
//! cgroup v1 keeps a default and a set of exceptions ([`writes_v1`]); v2 runs a program on each access
//! ([`super::ebpf`]), which can express every list.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::Controller;
use super::limits::LimitError;
use super::writes::Write;

/// Which devices a rule speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Every device; numbers and access do not matter then, as in the kernel.
    All,
    /// Block devices.
    Block,
    /// Character devices.
    Char,
}

/// A set of r, w and m, with the values that an eBPF program is given (`BPF_DEVCG_ACC_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Access(u8);

impl Access {
    /// mknod(2).
    pub const MKNOD: Self = Self(1);
    /// Opening for reading.
    pub const READ: Self = Self(2);
    /// Opening for writing.
    pub const WRITE: Self = Self(4);
    /// All three.
    pub const ALL: Self = Self(7);

    /// The bits.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// From the spec's letters; None when there are none or others.
    pub fn parse(letters: &str) -> Option<Self> {
        let mut bits = 0;
        for letter in letters.chars() {
            bits |= match letter {
                'm' => Self::MKNOD.0,
                'r' => Self::READ.0,
                'w' => Self::WRITE.0,
                // "rwa" is found in the wild; to runc it means "rw".
                'a' => 0,
                _ => return None,
            };
        }
        (bits != 0).then_some(Self(bits))
    }

    pub(super) fn letters(self) -> String {
        [('r', Self::READ), ('w', Self::WRITE), ('m', Self::MKNOD)]
            .into_iter()
            .filter_map(|(letter, bit)| (self.0 & bit.0 != 0).then_some(letter))
            .collect()
    }
}

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Gives, or takes away.
    pub allow: bool,
    /// Which devices.
    pub kind: Kind,
    /// None: every number.
    pub major: Option<u32>,
    /// None: every number.
    pub minor: Option<u32>,
    /// Which accesses.
    pub access: Access,
}

impl Rule {
    /// The spec's list, checked.
    pub fn list(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Self>, LimitError> {
        rules.iter().enumerate().map(|(index, rule)| Self::from_spec(index, rule)).collect()
    }

    fn from_spec(index: usize, rule: &LinuxDeviceCgroup) -> Result<Self, LimitError> {
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => Kind::All,
            LinuxDeviceType::B => Kind::Block,
            LinuxDeviceType::C => Kind::Char,
            other => return Err(LimitError::DeviceType(index, other.as_str().to_owned())),
        };
        let letters = rule.access().as_deref().unwrap_or_default();
        if letters.is_empty() {
            return Err(LimitError::DeviceAccess(index));
        }
        let access = Access::parse(letters)
            .ok_or_else(|| LimitError::Text { field: "devices.access", value: letters.to_owned() })?;
        let number = |number: Option<i64>| match number {
            // -1 is how configurations made for runc write "every number".
            None | Some(-1) => Ok(None),
            Some(number) => u32::try_from(number).map(Some).map_err(|_| LimitError::Range {
                field: "devices",
                value: number.to_string(),
                expected: "a device number must fit 32 bits",
            }),
        };
        Ok(Self {
            allow: rule.allow(),
            kind,
            major: number(rule.major())?,
            minor: number(rule.minor())?,
            access,
        })
    }

    const fn device(major: u32, minor: u32) -> Self {
        Self { allow: true, kind: Kind::Char, major: Some(major), minor: Some(minor), access: Access::ALL }
    }

    /// As `devices.allow` and `devices.deny` read it.
    fn line(&self) -> String {
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        let kind = match self.kind {
            Kind::All => return "a".to_owned(),
            Kind::Block => 'b',
            Kind::Char => 'c',
        };
        format!("{kind} {}:{} {}", number(self.major), number(self.minor), self.access.letters())
    }

    /// Whether every device of `other` is one of ours.
    fn covers(&self, other: &Self) -> bool {
        self.kind == other.kind
            && (self.major.is_none() || self.major == other.major)
            && (self.minor.is_none() || self.minor == other.minor)
    }

    /// Whether any device is both ours and `other`'s.
    fn overlaps(&self, other: &Self) -> bool {
        let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind && meet(self.major, other.major) && meet(self.minor, other.minor)
    }
}

/// Every container's devices (config-linux.md, "Default Devices", and what runc adds): making any node; null,
/// zero, full, random, urandom, tty; pseudo-terminals; and tun.
pub const DEFAULT_RULES: [Rule; 11] = [
    Rule { allow: true, kind: Kind::Char, major: None, minor: None, access: Access::MKNOD },
    Rule { allow: true, kind: Kind::Block, major: None, minor: None, access: Access::MKNOD },
    Rule::device(1, 3),
    Rule::device(1, 8),
    Rule::device(1, 7),
    Rule::device(5, 0),
    Rule::device(1, 5),
    Rule::device(1, 9),
    Rule { allow: true, kind: Kind::Char, major: Some(136), minor: None, access: Access::ALL },
    Rule::device(5, 2),
    Rule::device(10, 200),
];

/// The rules of a container: the spec's in order, then the defaults.
pub fn with_defaults(rules: Option<&[Rule]>) -> Vec<Rule> {
    rules.unwrap_or_default().iter().copied().chain(DEFAULT_RULES).collect()
}

/// What v1 keeps: a default, and exceptions from it.
#[derive(Debug, PartialEq, Eq)]
struct Exceptions {
    default_allow: bool,
    list: Vec<Rule>,
}

/// Runs the list through. A rule that would leave a hole in a wider exception has no v1 form.
fn exceptions(rules: &[Rule]) -> Result<Exceptions, LimitError> {
    let mut now = Exceptions { default_allow: false, list: Vec::new() };
    for rule in rules {
        if rule.kind == Kind::All {
            now = Exceptions { default_allow: rule.allow, list: Vec::new() };
        } else if rule.allow == now.default_allow {
            // Back to the default: take these accesses out of the exceptions.
            for known in &mut now.list {
                let both = known.access.0 & rule.access.0;
                if both == 0 || !rule.overlaps(known) {
                    continue;
                }
                if !rule.covers(known) {
                    return Err(LimitError::DeviceHole(rule.line()));
                }
                known.access.0 &= !both;
            }
            now.list.retain(|known| known.access.0 != 0);
        } else if let Some(known) = now.list.iter_mut().find(|known| known.covers(rule) && rule.covers(known))
        {
            known.access.0 |= rule.access.0;
        } else {
            now.list.push(*rule);
        }
    }
    Ok(now)
}

/// What a list of rules comes to, for who only knows lists of what is allowed.
pub(super) enum Allowed {
    /// These devices and accesses, and nothing else.
    These(Vec<Rule>),
    /// Every device.
    Everything,
    /// No list says it.
    Otherwise,
}

/// See [`Allowed`].
pub(super) fn allowed(rules: &[Rule]) -> Allowed {
    match exceptions(rules) {
        Ok(Exceptions { default_allow: false, list }) => Allowed::These(list),
        Ok(Exceptions { default_allow: true, list }) if list.is_empty() => Allowed::Everything,
        _ => Allowed::Otherwise,
    }
}

/// What is written to `devices.allow` and `devices.deny` of a cgroup in any state: the default first, which clears the exceptions.
pub(crate) fn writes_v1(rules: &[Rule]) -> Result<Vec<Write>, LimitError> {
    let exceptions = exceptions(rules)?;
    let (default, exception) = if exceptions.default_allow {
        ("devices.allow", "devices.deny")
    } else {
        ("devices.deny", "devices.allow")
    };
    let first = Write::new(Controller::Devices, default, "a");
    let rest = exceptions.list.iter().map(|rule| Write::new(Controller::Devices, exception, rule.line()));
    Ok(std::iter::once(first).chain(rest).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: serde_json::Value) -> Vec<Rule> {
        Rule::list(&serde_json::from_value::<Vec<LinuxDeviceCgroup>>(json).unwrap()).unwrap()
    }

    fn written(json: serde_json::Value) -> Result<Vec<String>, LimitError> {
        let writes = writes_v1(&rules(json))?;
        Ok(writes.iter().map(|write| format!("{} {}", write.file, write.value)).collect())
    }

    #[test]
    fn the_usual_list() {
        let lines = written(serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "mw"},
            {"allow": true, "type": "b", "major": 8, "access": "r"},
        ]));
        assert_eq!(lines.unwrap(), ["devices.deny a", "devices.allow c 1:3 rwm", "devices.allow b 8:* r"]);
    }

    #[test]
    fn everything_but() {
        let lines = written(serde_json::json!([
            {"allow": true, "access": "rwm"},
            {"allow": false, "type": "c", "major": 10, "minor": 200, "access": "rw"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        ]));
        assert_eq!(lines.unwrap(), ["devices.allow a", "devices.deny c 10:200 rw"]);
    }

    #[test]
    fn a_wider_denial_takes_narrower_permissions() {
        let lines = written(serde_json::json!([
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"},
            {"allow": true, "type": "c", "major": 5, "minor": 0, "access": "w"},
            {"allow": false, "type": "c", "access": "w"},
        ]));
        assert_eq!(lines.unwrap(), ["devices.deny a", "devices.allow c 1:3 r"]);
    }

    #[test]
    fn a_hole_is_refused_not_ignored() {
        let lines = written(serde_json::json!([
            {"allow": true, "type": "c", "major": 1, "access": "rw"},
            {"allow": false, "type": "c", "major": 1, "minor": 3, "access": "w"},
        ]));
        assert!(matches!(lines, Err(LimitError::DeviceHole(_))));
    }

    #[test]
    fn defaults_come_last_so_that_a_list_cannot_take_them_away() {
        let all = with_defaults(Some(&rules(serde_json::json!([{"allow": false, "access": "rwm"}]))));
        assert_eq!(all.len(), 12);
        assert_eq!(writes_v1(&all).unwrap().len(), 12);
    }

    #[test]
    fn numbers_are_checked() {
        let list = |json| Rule::list(&serde_json::from_value::<Vec<LinuxDeviceCgroup>>(json).unwrap());
        let any =
            list(serde_json::json!([{"allow": true, "type": "c", "major": -1, "minor": -1, "access": "r"}]));
        assert_eq!(any.unwrap()[0].major, None);
        let huge = list(
            serde_json::json!([{"allow": true, "type": "c", "major": 4_294_967_296_i64, "access": "r"}]),
        );
        assert!(matches!(huge, Err(LimitError::Range { .. })));
        let odd = list(serde_json::json!([{"allow": true, "type": "c", "major": 1, "access": "rx"}]));
        assert!(matches!(odd, Err(LimitError::Text { .. })));
        let wild = list(serde_json::json!([{"allow": true, "type": "c", "major": 1, "access": "rwa"}]));
        assert_eq!(wild.unwrap()[0].access.letters(), "rw");
        let fifo = list(serde_json::json!([{"allow": true, "type": "p", "access": "r"}]));
        assert!(matches!(fifo, Err(LimitError::DeviceType(0, _))));
    }
}
