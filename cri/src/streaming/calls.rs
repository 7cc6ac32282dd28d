//! Exec, Attach and PortForward: what is asked for is checked, and answered with a URL.

use super::forward;
use super::tickets::{Streams, Ticket, Urls};
use crate::check;
use crate::container::{attachable_monitor, find, running_monitor};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::exec::check_command;
use crate::v1::{AttachRequest, ExecRequest, PortForwardRequest};

/// Exec.
#[tracing::instrument(name = "exec", level = "debug", skip_all, fields(id = request.container_id))]
pub(crate) fn exec(daemon: &Daemon, urls: &Urls, request: ExecRequest) -> Result<String, Error> {
    let streams = checked(Streams {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    })?;
    let found = find(daemon, &request.container_id)?;
    running_monitor(&found)?;
    check_command(&request.cmd)?;
    urls.issue(Ticket::Exec { container: found.container.record.id.clone(), command: request.cmd, streams })
}

/// Attach.
#[tracing::instrument(name = "attach", level = "debug", skip_all, fields(id = request.container_id))]
pub(crate) fn attach(daemon: &Daemon, urls: &Urls, request: &AttachRequest) -> Result<String, Error> {
    let streams = checked(Streams {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    })?;
    let found = find(daemon, &request.container_id)?;
    attachable_monitor(&found)?;
    let record = &found.container.record;
    if streams.tty != record.config.tty {
        let has = if record.config.tty { "has a terminal" } else { "has none" };
        return Err(Error::invalid("tty", format!("container {} {has}", record.id)));
    }
    urls.issue(Ticket::Attach { container: record.id.clone(), streams })
}

/// PortForward.
#[tracing::instrument(name = "port_forward", level = "debug", skip_all, fields(id = request.pod_sandbox_id))]
pub(crate) fn port_forward(
    daemon: &Daemon,
    urls: &Urls,
    request: &PortForwardRequest,
) -> Result<String, Error> {
    let target = forward::target(daemon, &request.pod_sandbox_id)?;
    check::list("port", request.port.clone())?;
    let port = |(i, port): (usize, &i32)| match check::port(&format!("port[{i}]"), *port) {
        Ok(0) => Err(Error::invalid(format!("port[{i}]"), "must be 1 to 65535")),
        port => port,
    };
    let ports = request.port.iter().enumerate().map(port).collect::<Result<_, _>>()?;
    urls.issue(Ticket::PortForward { pod: target.id().to_owned(), ports })
}

fn checked(streams: Streams) -> Result<Streams, Error> {
    let Streams { stdin, stdout, stderr, tty } = streams;
    if tty && stderr {
        return Err(Error::invalid("stderr", "cannot be had beside a terminal, which carries both outputs"));
    }
    if !(stdin || stdout || stderr) {
        return Err(Error::invalid("stdout", "one of stdin, stdout and stderr must be asked for"));
    }
    Ok(streams)
}
