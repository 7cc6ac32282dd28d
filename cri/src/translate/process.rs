//! `process` of the spec: program, environment, directory, credentials.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{Process, User};

use super::inputs::{ContainerInputs, ImageDefaults};
use super::{Container, security};
use crate::check;
use crate::error::Error;

/// The PATH of a container whose image and request give none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The TERM of a container with a terminal.
pub(crate) const DEFAULT_TERM: &str = "TERM=xterm";

/// The container's own process.
pub(super) fn to_oci(inputs: &ContainerInputs<'_>) -> Result<Process, Error> {
    let ContainerInputs { container, image, host, .. } = inputs;
    let security = &container.security;
    let identity = security.user.identity(inputs.user);
    let mut user = User::default();
    user.set_uid(identity.uid).set_gid(identity.gid).set_additional_gids(Some(identity.groups));

    let mut process = Process::default();
    process
        .set_terminal(Some(container.tty))
        .set_user(user)
        .set_args(Some(args(container, image)?))
        .set_env(Some(env(inputs)))
        .set_cwd(cwd(container, image)?)
        .set_capabilities(Some(security.capabilities.granted(security.privileged, host)?.to_oci()))
        .set_no_new_privileges(Some(security.no_new_privs))
        .set_rlimits(None)
        .set_apparmor_profile(security::apparmor(inputs)?)
        .set_selinux_label(security::selinux(inputs).map(|(process, _)| process))
        .set_oom_score_adj(Some(container.resources.oom_score_adj));
    Ok(process)
}

/// Program and arguments. A command replaces the image's entrypoint and, with it, the image's command; arguments
/// alone replace the image's command only.
fn args(container: &Container, image: &ImageDefaults) -> Result<Vec<String>, Error> {
    let mut args = container.command.clone();
    let mut rest = &container.args;
    if container.command.is_empty() {
        // An entrypoint of one empty string is how Dockerfiles take away an inherited one.
        if image.entrypoint != [""] {
            args.clone_from(&image.entrypoint);
        }
        if container.args.is_empty() {
            rest = &image.cmd;
        }
    }
    args.extend_from_slice(rest);
    if args.is_empty() {
        let reason = format!("must be given: image {} has neither entrypoint nor command", image.reference);
        return Err(Error::invalid("config.command", reason));
    }
    for (i, argument) in args.iter().enumerate() {
        check::argument(&format!("image {}: argument {i}", image.reference), argument)?;
    }
    Ok(args)
}

/// The environment: defaults, then the image's, then the request's. A later entry takes the place of an earlier
/// one of the same name, where that stood.
fn env(inputs: &ContainerInputs<'_>) -> Vec<String> {
    let mut env = Environment::default();
    env.set(DEFAULT_PATH);
    if inputs.container.tty {
        env.set(DEFAULT_TERM);
    }
    env.set(&format!("HOSTNAME={}", inputs.pod.hostname));
    for entry in &inputs.image.env {
        env.set(entry);
    }
    for entry in &inputs.container.env {
        env.set(entry);
    }
    if !env.has("HOME") {
        env.set(&format!("HOME={}", inputs.user.home.as_deref().unwrap_or("/")));
    }
    env.entries.into_iter().flatten().collect()
}

/// Entries in the order their names first came, and where each name stands.
#[derive(Default)]
struct Environment {
    entries: Vec<Option<String>>,
    places: HashMap<String, usize>,
}

impl Environment {
    /// Sets `KEY=value`. A bare name unsets; an entry the kernel could not carry is left out (only images give
    /// such: requests were checked).
    fn set(&mut self, entry: &str) {
        let (name, value) = entry.split_once('=').map_or((entry, None), |(name, value)| (name, Some(value)));
        if name.is_empty() || entry.contains('\0') || entry.len() > check::ARGUMENT_BYTES {
            return;
        }
        let place = *self.places.entry(name.to_owned()).or_insert_with(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.entries[place] = value.map(|_| entry.to_owned());
    }

    /// Whether a name is set.
    fn has(&self, name: &str) -> bool {
        self.places.get(name).is_some_and(|place| self.entries[*place].is_some())
    }
}

/// The working directory: the request's, else the image's, else the root.
fn cwd(container: &Container, image: &ImageDefaults) -> Result<PathBuf, Error> {
    match (&container.working_dir, image.working_dir.as_str()) {
        (Some(path), _) => Ok(path.clone()),
        (None, "") => Ok("/".into()),
        // Image builders take a relative one as below the root.
        (None, path) => check::absolute_path(
            &format!("image {}: WorkingDir", image.reference),
            &format!("/{}", path.trim_start_matches('/')),
        ),
    }
}
