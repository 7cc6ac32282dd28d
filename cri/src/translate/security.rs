//! Confinement: seccomp, AppArmor, SELinux, masked and read-only paths.

use std::path::PathBuf;

use oci_spec::runtime::LinuxSeccomp;
use serde::{Deserialize, Serialize};

use super::inputs::ContainerInputs;
use crate::check;
use crate::error::Error;
use crate::seccomp_default;
use crate::v1::{self, security_profile::ProfileType};

/// Paths hidden from a container that says nothing about them. What kubelet sends for procMount Default.
pub const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that such a container can read and not write.
pub const READONLY_PATHS: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Which system calls are allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// All of them.
    Unconfined,
    /// [`crate::seccomp_default`].
    RuntimeDefault,
    /// A profile in the runtime-spec's JSON at this absolute path of the host.
    Localhost(PathBuf),
}

/// Which AppArmor profile applies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppArmor {
    /// The request says nothing: the default one where it can be had.
    Unset,
    /// None.
    Unconfined,
    /// The default one, and an error where the host lacks AppArmor.
    RuntimeDefault,
    /// A profile of this name that the host has loaded.
    Localhost(String),
}

/// The parts of an SELinux label that the request gives; empty ones are chosen here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeLinux {
    /// SELinux user.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type.
    pub label_type: String,
    /// Level: sensitivity and categories.
    pub level: String,
}

/// `seccomp`, or the string that clients sent before it.
pub(super) fn parse_seccomp(
    field: &str,
    profile: Option<v1::SecurityProfile>,
    path: &str,
) -> Result<Seccomp, Error> {
    let (field, kind, reference) = if let Some(profile) = profile {
        let field = format!("{field}.seccomp");
        (field.clone(), profile_type(&field, &profile)?, profile.localhost_ref)
    } else {
        let field = format!("{field}.seccomp_profile_path");
        match path {
            "" | "unconfined" => return Ok(Seccomp::Unconfined),
            "runtime/default" | "docker/default" => return Ok(Seccomp::RuntimeDefault),
            _ => {
                if let Some(path) = path.strip_prefix("localhost/") {
                    (field, ProfileType::Localhost, path.to_owned())
                } else {
                    let reason = format!("{} is not a profile", check::shown(path));
                    return Err(Error::invalid(field, reason));
                }
            }
        }
    };
    Ok(match kind {
        ProfileType::Unconfined => Seccomp::Unconfined,
        ProfileType::RuntimeDefault => Seccomp::RuntimeDefault,
        ProfileType::Localhost => {
            let field = format!("{field}.localhost_ref");
            Seccomp::Localhost(check::absolute_path(&field, &reference)?)
        }
    })
}

/// `apparmor`, or the string that clients sent before it.
pub(super) fn parse_apparmor(
    field: &str,
    profile: Option<v1::SecurityProfile>,
    name: &str,
) -> Result<AppArmor, Error> {
    let localhost = |field: String, name: &str| -> Result<AppArmor, Error> {
        check::text(&field, name, check::NAME_BYTES)?;
        // Kernel interfaces take the rest of a line: no white space, and no `exec` or `//` tricks with it.
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(Error::invalid(field, format!("{} is not a profile's name", check::shown(name))));
        }
        Ok(AppArmor::Localhost(name.to_owned()))
    };
    match profile {
        Some(profile) => {
            let field = format!("{field}.apparmor");
            match profile_type(&field, &profile)? {
                ProfileType::Unconfined => Ok(AppArmor::Unconfined),
                ProfileType::RuntimeDefault => Ok(AppArmor::RuntimeDefault),
                ProfileType::Localhost => {
                    let name = &profile.localhost_ref;
                    localhost(
                        format!("{field}.localhost_ref"),
                        name.strip_prefix("localhost/").unwrap_or(name),
                    )
                }
            }
        }
        None => match name {
            "" => Ok(AppArmor::Unset),
            "unconfined" => Ok(AppArmor::Unconfined),
            "runtime/default" => Ok(AppArmor::RuntimeDefault),
            other => {
                let field = format!("{field}.apparmor_profile");
                match other.strip_prefix("localhost/") {
                    Some(name) => localhost(field, name),
                    None => Err(Error::invalid(field, format!("{} is not a profile", check::shown(other)))),
                }
            }
        },
    }
}

/// The type of a profile, which alone decides whether a reference goes with it.
fn profile_type(field: &str, profile: &v1::SecurityProfile) -> Result<ProfileType, Error> {
    let kind = ProfileType::try_from(profile.profile_type).map_err(|_| {
        let reason = format!("{} is not a type of profile", profile.profile_type);
        Error::invalid(format!("{field}.profile_type"), reason)
    })?;
    let reference = !profile.localhost_ref.is_empty();
    if reference != (kind == ProfileType::Localhost) {
        let reason = if reference { "must be empty unless the type is Localhost" } else { "must be given" };
        return Err(Error::invalid(format!("{field}.localhost_ref"), reason));
    }
    Ok(kind)
}

/// `selinux_options`; None when nothing is given.
pub(super) fn parse_selinux(
    field: &str,
    options: Option<v1::SeLinuxOption>,
) -> Result<Option<SeLinux>, Error> {
    let Some(options) = options else { return Ok(None) };
    let part = |kind: &str, value: String, colons: bool| -> Result<String, Error> {
        let field = format!("{field}.selinux_options.{kind}");
        let legal = |c: char| {
            c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') || (colons && matches!(c, ':' | ','))
        };
        if value.len() > check::NAME_BYTES || !value.chars().all(legal) {
            return Err(Error::invalid(field, format!("{} is not part of a label", check::shown(&value))));
        }
        Ok(value)
    };
    let label = SeLinux {
        user: part("user", options.user, false)?,
        role: part("role", options.role, false)?,
        label_type: part("type", options.r#type, false)?,
        level: part("level", options.level, true)?,
    };
    Ok((label != SeLinux::default()).then_some(label))
}

/// Absolute container paths for masking or making read-only.
pub(super) fn parse_paths(field: &str, paths: Vec<String>) -> Result<Vec<String>, Error> {
    let paths = check::list(field, paths)?;
    for (i, path) in paths.iter().enumerate() {
        check::absolute_path(&format!("{field}[{i}]"), path)?;
    }
    Ok(paths)
}

/// The filter of the spec; None: unconfined.
pub(super) fn seccomp(inputs: &ContainerInputs<'_>) -> Result<Option<LinuxSeccomp>, Error> {
    let security = &inputs.container.security;
    if security.privileged {
        return Ok(None);
    }
    match &security.seccomp {
        Seccomp::Unconfined => Ok(None),
        Seccomp::RuntimeDefault => {
            let granted = security.capabilities.granted(false, inputs.host)?;
            Ok(Some(seccomp_default::profile(&granted.bounding, inputs.host.arch, inputs.host.kernel)))
        }
        Seccomp::Localhost(path) => match inputs.localhost_seccomp {
            Some(profile) => Ok(Some(profile.clone())),
            None => Err(Error::FailedPrecondition {
                what: "container",
                id: inputs.container.metadata.name.clone(),
                reason: format!("the seccomp profile {} was not loaded", path.display()),
            }),
        },
    }
}

/// The AppArmor profile of the spec; None: unconfined.
pub(super) fn apparmor(inputs: &ContainerInputs<'_>) -> Result<Option<String>, Error> {
    let security = &inputs.container.security;
    let default = inputs.defaults.apparmor_profile.clone();
    let refused = |reason: String| Error::FailedPrecondition {
        what: "container",
        id: inputs.container.metadata.name.clone(),
        reason,
    };
    match &security.apparmor {
        AppArmor::Unconfined => Ok(None),
        AppArmor::Unset if security.privileged || !inputs.host.apparmor => Ok(None),
        // Who asks for nothing is not refused for what the node lacks.
        AppArmor::Unset => Ok(inputs.apparmor_missing.is_none().then_some(default)),
        AppArmor::RuntimeDefault | AppArmor::Localhost(_) if !inputs.host.apparmor => {
            Err(refused("asks for an AppArmor profile, but AppArmor is off on this node".to_owned()))
        }
        // The default profile would take away what a privileged container is for; one by name is meant.
        AppArmor::RuntimeDefault if security.privileged => Ok(None),
        AppArmor::RuntimeDefault => match inputs.apparmor_missing {
            Some(reason) => Err(refused(format!(
                "asks for the default AppArmor profile, but {default} is not loaded on this node: {reason}"
            ))),
            None => Ok(Some(default)),
        },
        AppArmor::Localhost(name) => Ok(Some(name.clone())),
    }
}

/// The labels of the process and of its mounts; None where SELinux is off, nobody asks for it, or the container is privileged.
pub(super) fn selinux(inputs: &ContainerInputs<'_>) -> Option<(String, String)> {
    let security = &inputs.container.security;
    if !inputs.host.selinux || security.privileged {
        return None;
    }
    // As with containerd as it is installed: who asks for nothing has the daemon's domain, and files keep their labels.
    let given = security.selinux.as_ref().or(inputs.pod.security.selinux.as_ref())?.clone();
    let or = |part: String, default: &str| if part.is_empty() { default.to_owned() } else { part };
    let level = or(given.level, inputs.selinux_level.unwrap_or("s0"));
    let user = or(given.user, "system_u");
    let process =
        format!("{user}:{}:{}:{level}", or(given.role, "system_r"), or(given.label_type, "container_t"));
    Some((process, format!("{user}:object_r:container_file_t:{level}")))
}
