//! `wright delete`: takes away what a container left.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use runtime::cgroup::{Cgroup, CgroupPath, Hierarchies};
use runtime::spec;
use runtime::state::{StateDir, StateError, Status};
use rustix::io::Errno;

use crate::cli::{Command, Count, Parsed, switch};
use crate::container::Container;
use crate::globals::Globals;

/// The verb.
pub(crate) const COMMAND: Command = Command {
    name: "delete",
    usage: "delete any resources held by the container often used with detached container",
    arguments: "<container-id>",
    description: "",
    flags: &[switch(
        "force",
        Some("f"),
        "Forcibly deletes the container if it is still running (uses SIGKILL)",
    )],
    count: Count::Exactly(1),
    interspersed: true,
    run,
};

fn run(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    let id = parsed.id();
    let force = parsed.on("force");
    let container = match Container::open(globals, id) {
        Ok(container) => container,
        Err(error) if matches!(error.downcast_ref(), Some(StateError::NotFound)) => {
            // A making that was cut short leaves a directory without a record.
            if let Ok(dir) = StateDir::open(&globals.root, id)
                && force
            {
                if let Err(left) = remove_unrecorded_cgroup(globals, id, &dir) {
                    globals
                        .log
                        .warn(&format!("the cgroup of a container whose creation was cut short: {left:#}"));
                }
                dir.remove()?;
            }
            return if force { Ok(0) } else { Err(error) };
        }
        Err(error) => return Err(error),
    };
    match container.status() {
        Status::Stopped => {}
        Status::Created => container.kill()?,
        _ if force => container.kill()?,
        status => bail!("cannot delete container {id} that is not stopped: {status}"),
    }
    container.destroy(globals)?;
    Ok(0)
}

/// How long the processes of a creation that was cut short may take to be gone.
const GONE_TIMEOUT: Duration = Duration::from_secs(2);

/// Removes the cgroup that a creation made before it was cut short. Its processes end with it; what goes on in there is another's.
fn remove_unrecorded_cgroup(globals: &Globals, id: &str, dir: &StateDir) -> Result<()> {
    let Ok(text) = dir.read_config() else { return Ok(()) };
    let loaded = spec::parse(&text)?;
    let path = loaded.spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
    let path = CgroupPath::parse(path.filter(|path| !path.as_os_str().is_empty()), id, globals.driver)?;
    match Cgroup::open(&Hierarchies::detect()?, &path) {
        Ok(cgroup) => Ok(cgroup.remove(Instant::now() + GONE_TIMEOUT)?),
        Err(failure) if failure.errno() == Some(Errno::NOENT) => Ok(()),
        Err(failure) => Err(failure.into()),
    }
}
