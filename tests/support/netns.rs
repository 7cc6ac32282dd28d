//! Network namespaces as hosts: a node in one of its own makes bridges, rules and addresses that nobody else sees.

use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace with its loopback up. It is gone with the last of its processes.
#[derive(Debug)]
pub struct NetworkNamespace {
    namespace: OwnedFd,
    /// Whom `ip link set … netns PID` names it by.
    holder: Child,
}

impl NetworkNamespace {
    /// Makes one.
    pub fn new() -> Result<Self> {
        // Of the thread alone.
        let made = std::thread::scope(|scope| scope.spawn(enter_new).join());
        let (namespace, holder) = made.map_err(|_| anyhow::anyhow!("the thread panicked"))??;
        let made = Self { namespace, holder };
        made.ip(&["link", "set", "lo", "up"])?;
        Ok(made)
    }

    /// A process in it.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Runs `work` in a thread that is in the namespace; what it starts is in it too.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .context("enter the network namespace")?;
            work()
        };
        let done = std::thread::scope(|scope| scope.spawn(inside).join());
        done.unwrap_or_else(|_| bail!("the thread in the network namespace panicked"))
    }

    /// Runs a program in it.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        self.run(|| {
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::null()).output().with_context(|| format!("run {program}"))
        })
    }

    /// Runs a program in it that has to succeed, and returns its standard output.
    pub fn stdout(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.output(program, arguments)?;
        ensure!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `ip(8)` in it.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        self.stdout("ip", arguments)
    }

    /// Leads a cable from it to another, with these names and addresses at its ends.
    pub fn connect(&self, end: (&str, &str), other: &Self, other_end: (&str, &str)) -> Result<()> {
        let pid = other.pid().to_string();
        self.ip(&["link", "add", end.0, "type", "veth", "peer", "name", other_end.0, "netns", &pid])?;
        for (namespace, (name, address)) in [(self, end), (other, other_end)] {
            let family = if address.contains(':') {
                &["addr", "add", address, "dev", name, "nodad"][..]
            } else {
                &["addr", "add", address, "dev", name][..]
            };
            namespace.ip(family)?;
            namespace.ip(&["link", "set", name, "up"])?;
        }
        Ok(())
    }
}

impl Drop for NetworkNamespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn enter_new() -> Result<(OwnedFd, Child)> {
    unshare(CloneFlags::CLONE_NEWNET).context("unshare the network")?;
    let namespace = std::fs::File::open("/proc/thread-self/ns/net")?;
    let mut holder = Command::new("sleep");
    holder.arg("100000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok((namespace.into(), holder.spawn().context("start sleep")?))
}
