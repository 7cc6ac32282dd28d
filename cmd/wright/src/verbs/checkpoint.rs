//! `wright checkpoint`: a container's processes as files.

use anyhow::{Context, Result, bail};
use runtime::checkpoint::{DumpOptions, Target, dump, status_descriptor};
use runtime::state::Status;

use crate::cli::{Command, Count, Parsed, switch, text};
use crate::container::Container;
use crate::criu::{
    AUTO_DEDUP, CGROUPS_MODE, EMPTY_NS, EXT_UNIX_SK, FILE_LOCKS, LAZY_PAGES, SHELL_JOB, TCP_ESTABLISHED,
    WORK_PATH, images, options, page_server, parent, warn_unprivileged,
};
use crate::globals::Globals;

/// The verb.
pub(crate) const COMMAND: Command = Command {
    name: "checkpoint",
    usage: "checkpoint a running container",
    arguments: "<container-id>",
    description: "The processes are saved by criu, which is found on the PATH, and end, unless they are to go on.",
    flags: &[
        text("image-path", None, "path for saving criu image files"),
        WORK_PATH,
        text("parent-path", None, "path for previous criu image files in pre-dump"),
        switch("leave-running", None, "leave the process running after checkpointing"),
        TCP_ESTABLISHED,
        switch("tcp-skip-in-flight", None, "skip in-flight tcp connections"),
        switch("link-remap", None, "allow one to link unlinked files back when possible"),
        EXT_UNIX_SK,
        SHELL_JOB,
        LAZY_PAGES,
        text("status-fd", None, "a \\0 is written to this descriptor once lazy pages are served").or("-1"),
        text("page-server", None, "ADDRESS:PORT of the page server"),
        FILE_LOCKS,
        switch(
            "pre-dump",
            None,
            "dump container's memory information only, leave the container running after this",
        ),
        CGROUPS_MODE,
        EMPTY_NS,
        AUTO_DEDUP,
    ],
    count: Count::Exactly(1),
    interspersed: true,
    run,
};

fn run(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    run_inner(globals, parsed).context("checkpoint failed")
}

fn run_inner(globals: &Globals, parsed: &Parsed) -> Result<u8> {
    warn_unprivileged(globals, "checkpoint");
    let container = Container::open(globals, parsed.id())?;
    match container.status() {
        Status::Running | Status::Paused => {}
        status => bail!("Container cannot be checkpointed in {status} state"),
    }
    let plan = container.plan()?;
    let images = images(parsed)?;
    let status = parsed.number::<i32>("status-fd")?.filter(|number| *number != -1);
    let dump_options = DumpOptions {
        common: options(parsed, |name| plan.annotations.get(name).map(String::as_str))?,
        leave_running: parsed.on("leave-running"),
        pre_dump: parsed.on("pre-dump"),
        parent: parent(parsed, &images.path)?,
        tcp_skip_in_flight: parsed.on("tcp-skip-in-flight"),
        link_remap: parsed.on("link-remap"),
        page_server: parsed
            .text("page-server")
            .filter(|text| !text.is_empty())
            .map(page_server)
            .transpose()?,
        unlocked_network: false,
        status: status.map(status_descriptor).transpose()?,
    };
    let stays = dump_options.leave_running || dump_options.pre_dump;
    let cgroup = container.needed_cgroup()?;
    let target = Target { pid: container.record.pid.unwrap_or(0), plan: &plan, cgroup: &cgroup };
    dump(target, &images, dump_options, None, &mut || Ok(()))?;
    if !stays {
        drop(cgroup);
        let gone = container.kill().and_then(|()| container.destroy(globals));
        // Whoever stays with it (`wright run`) sees its end too, and may be quicker: then there is nothing left to clean up.
        if let Err(error) = gone
            && container.dir.path().exists()
        {
            globals.log.warn(&format!("clean up: {error:#}"));
        }
    }
    Ok(0)
}
