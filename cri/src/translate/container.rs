//! The checked container: `ContainerConfig`, parsed once against its pod.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::capabilities::CapabilityRequest;
use super::devices::DeviceRequest;
use super::mounts::MountRequest;
use super::namespaces::{self, ContainerPid};
use super::pod::Pod;
use super::resources::Resources;
use super::security::{self, AppArmor, SeLinux, Seccomp};
use super::signals::StopSignal;
use super::user::UserRequest;
use super::{devices, mounts};
use crate::check;
use crate::error::Error;
use crate::v1;

/// A container as the daemon works with it: every string checked, every number in range, every mode known.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    /// Name and attempt.
    pub metadata: ContainerMetadata,
    /// Reported back and selected by.
    pub labels: BTreeMap<String, String>,
    /// Reported back unchanged.
    pub annotations: BTreeMap<String, String>,
    /// What to run it from: an image id or a reference.
    pub image: String,
    /// What the pod spec called it; may be empty.
    pub user_specified_image: String,
    /// Replaces the image's entrypoint; empty: it does not.
    pub command: Vec<String>,
    /// Replaces the image's command; empty: it does not.
    pub args: Vec<String>,
    /// None: the image's.
    pub working_dir: Option<PathBuf>,
    /// `KEY=value`, over the image's, in the request's order.
    pub env: Vec<String>,
    /// Wants a pseudo-terminal.
    pub tty: bool,
    /// Keep standard input open.
    pub stdin: bool,
    /// Close it when the first attached client leaves.
    pub stdin_once: bool,
    /// Relative to the pod's log directory; None: no log file.
    pub log_path: Option<PathBuf>,
    /// None: the image's, then SIGTERM.
    pub stop_signal: Option<StopSignal>,
    /// Files and directories of the host, and images, in the request's order.
    pub mounts: Vec<MountRequest>,
    /// Devices of the host.
    pub devices: Vec<DeviceRequest>,
    /// Names of devices of the container device interface, of the field and of annotations, each once.
    pub cdi_devices: Vec<String>,
    /// Limits.
    pub resources: Resources,
    /// Whose PID namespace.
    pub pid: ContainerPid,
    /// Who it runs as and what it may do.
    pub security: ContainerSecurity,
}

/// What tells one container of a pod from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerMetadata {
    /// The container's name.
    pub name: String,
    /// Counts its restarts.
    pub attempt: u32,
}

impl std::fmt::Display for ContainerMetadata {
    /// `web (attempt 1)`, for messages.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (attempt {})", self.name, self.attempt)
    }
}

/// Who a container runs as and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSecurity {
    /// Everything allowed: the rest of this is ignored but for user, groups, the root's mode and an AppArmor profile by name.
    pub privileged: bool,
    /// Changes to the default capabilities.
    pub capabilities: CapabilityRequest,
    /// User and groups.
    pub user: UserRequest,
    /// No write to the root.
    pub readonly_rootfs: bool,
    /// No gain of privileges by execve(2).
    pub no_new_privs: bool,
    /// Hidden.
    pub masked_paths: Vec<String>,
    /// Not writable.
    pub readonly_paths: Vec<String>,
    /// System calls.
    pub seccomp: Seccomp,
    /// Profile.
    pub apparmor: AppArmor,
    /// Label; None: the pod's.
    pub selinux: Option<SeLinux>,
}

impl Container {
    /// Parses the configuration of `CreateContainer` for a pod.
    pub fn parse(config: v1::ContainerConfig, pod: &Pod) -> Result<Self, Error> {
        if config.windows.is_some() {
            return Err(Error::invalid("config.windows", "this is a Linux node"));
        }
        let metadata = config.metadata.ok_or_else(|| Error::invalid("config.metadata", "must be given"))?;
        let image = config.image.ok_or_else(|| Error::invalid("config.image", "must be given"))?;
        let linux = config.linux.unwrap_or_default();
        let field = "config.linux.security_context";
        let (security, options) = parse_security(field, linux.security_context, pod)?;
        let annotations = check::annotations("config.annotations", config.annotations)?;
        Ok(Self {
            metadata: ContainerMetadata {
                name: check::name("config.metadata.name", &metadata.name)?,
                attempt: metadata.attempt,
            },
            labels: check::labels("config.labels", config.labels)?,
            image: check::image("config.image.image", &image.image)?,
            user_specified_image: check::text(
                "config.image.user_specified_image",
                &image.user_specified_image,
                check::PATH_BYTES,
            )?
            .to_owned(),
            command: arguments("config.command", config.command)?,
            args: arguments("config.args", config.args)?,
            working_dir: match config.working_dir.as_str() {
                "" => None,
                path => Some(check::absolute_path("config.working_dir", path)?),
            },
            env: environment(config.envs)?,
            tty: config.tty,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            log_path: match config.log_path.as_str() {
                "" => None,
                path => Some(check::log_path("config.log_path", path)?),
            },
            stop_signal: StopSignal::from_request("config.stop_signal", config.stop_signal)?,
            mounts: mounts::parse("config.mounts", config.mounts)?,
            devices: devices::parse("config.devices", config.devices)?,
            cdi_devices: devices::parse_cdi("config.CDI_devices", config.cdi_devices, &annotations)?,
            annotations,
            resources: Resources::parse("config.linux.resources", linux.resources.unwrap_or_default())?,
            pid: namespaces::parse_container(
                &format!("{field}.namespace_options"),
                options,
                &pod.namespaces,
            )?,
            security,
        })
    }

    /// The signal that asks the container to stop: the request's, else the image's, else SIGTERM.
    pub fn stop_signal(&self, image: &super::ImageDefaults) -> StopSignal {
        self.stop_signal.or_else(|| StopSignal::from_image(&image.stop_signal)).unwrap_or_default()
    }
}

/// `command` or `args`.
fn arguments(field: &str, list: Vec<String>) -> Result<Vec<String>, Error> {
    let list = check::list(field, list)?;
    for (i, argument) in list.iter().enumerate() {
        check::argument(&format!("{field}[{i}]"), argument)?;
    }
    Ok(list)
}

/// `envs`.
fn environment(envs: Vec<v1::KeyValue>) -> Result<Vec<String>, Error> {
    let entry = |(i, pair): (usize, v1::KeyValue)| {
        check::environment(&format!("config.envs[{i}]"), &pair.key, pair.value)
    };
    check::list("config.envs", envs)?.into_iter().enumerate().map(entry).collect()
}

/// `linux.security_context`; gives the namespace options back, which are checked against the pod's.
///
/// Empty lists of masked and read-only paths mean none: that is how kubelet says procMount Unmasked. Only a
/// request without a security context at all gets the default lists.
fn parse_security(
    field: &str,
    raw: Option<v1::LinuxContainerSecurityContext>,
    pod: &Pod,
) -> Result<(ContainerSecurity, Option<v1::NamespaceOption>), Error> {
    let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    let raw = raw.unwrap_or_else(|| v1::LinuxContainerSecurityContext {
        masked_paths: owned(security::MASKED_PATHS),
        readonly_paths: owned(security::READONLY_PATHS),
        ..Default::default()
    });
    if raw.privileged && !pod.security.privileged {
        let reason = "needs a pod whose linux.security_context.privileged is set";
        return Err(Error::invalid(format!("{field}.privileged"), reason));
    }
    #[allow(deprecated, reason = "clients older than the typed fields still send the strings")]
    let (seccomp_path, apparmor_name) = (&raw.seccomp_profile_path, &raw.apparmor_profile);
    let security = ContainerSecurity {
        privileged: raw.privileged,
        seccomp: security::parse_seccomp(field, raw.seccomp, seccomp_path)?,
        apparmor: security::parse_apparmor(field, raw.apparmor, apparmor_name)?,
        capabilities: CapabilityRequest::parse(&format!("{field}.capabilities"), raw.capabilities)?,
        user: UserRequest::parse(
            field,
            raw.run_as_user,
            raw.run_as_group,
            &raw.run_as_username,
            raw.supplemental_groups,
        )?
        .with_policy(field, raw.supplemental_groups_policy)?,
        readonly_rootfs: raw.readonly_rootfs,
        no_new_privs: raw.no_new_privs,
        masked_paths: security::parse_paths(&format!("{field}.masked_paths"), raw.masked_paths)?,
        readonly_paths: security::parse_paths(&format!("{field}.readonly_paths"), raw.readonly_paths)?,
        selinux: security::parse_selinux(field, raw.selinux_options)?,
    };
    Ok((security, raw.namespace_options))
}
