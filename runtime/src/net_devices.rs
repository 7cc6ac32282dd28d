//! `linux.netDevices`: devices of the host moved into the container (runtime-spec `config-linux.md#network-devices`).
//!
//! The move and the new name are one request, so that neither name is seen where it does not belong. Nothing is moved before every
//! device is known to be movable: a virtual one that was moved already would go with the container that cannot be created. The kernel
//! takes a moved device down and forgets its addresses; those that were given to it for good come along. MTU and hardware address are
//! the device's own. Who owns the namespace owns the device from then on: when the namespace goes, a physical device is back on the
//! host, a virtual one is gone with it.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::io::Errno;

use crate::namespaces::Join;
use crate::plan::NamespaceKind;
use crate::rtnetlink::Rtnetlink;
use crate::{Failure, Step};

/// Moves `devices`, (host name, name inside), into the network namespace of process `pid`.
pub(crate) fn move_into(pid: i32, devices: &[(String, String)]) -> Result<(), Failure> {
    if devices.is_empty() {
        return Ok(());
    }
    let path = format!("/proc/{pid}/ns/net");
    let namespace = Join::open(NamespaceKind::Network, Path::new(&path))?.file;
    let failed = |errno| Failure::os(Step::Network, errno).with_message("rtnetlink");
    let host = Rtnetlink::open().map_err(failed)?;
    let inside = Rtnetlink::open_in(&namespace).map_err(failed)?;
    let told = |name: &str| {
        let name = name.to_owned();
        move |(what, errno): (&str, Errno)| {
            Failure::at(Step::Network, errno, &name).with_message(format!("linux.netDevices: {what}"))
        }
    };
    for (name, new_name) in devices {
        check(&host, &inside, (name, new_name)).map_err(told(name))?;
    }
    for (name, new_name) in devices {
        move_one(&host, &inside, namespace.as_fd(), (name, new_name)).map_err(told(name))?;
    }
    Ok(())
}

/// Whether the kernel is to make a unique name of it (`eth%d`).
fn is_template(name: &str) -> bool {
    name.contains("%d")
}

fn check(
    host: &Rtnetlink,
    inside: &Rtnetlink,
    (name, new_name): (&str, &str),
) -> Result<(), (&'static str, Errno)> {
    host.index(name).map_err(|errno| ("no such device on the host", errno))?;
    if !is_template(new_name) && inside.index(new_name).is_ok() {
        return Err(("the network namespace has a device of its new name already", Errno::EXIST));
    }
    Ok(())
}

fn move_one(
    host: &Rtnetlink,
    inside: &Rtnetlink,
    namespace: BorrowedFd<'_>,
    (name, new_name): (&str, &str),
) -> Result<(), (&'static str, Errno)> {
    let what = |what| move |errno| (what, errno);
    let index = host.index(name).map_err(what("no such device on the host"))?;
    // Before the move takes it down, which costs it its IPv6 addresses.
    let addresses = host.permanent_addresses(index).map_err(what("list its addresses"))?;
    // What the kernel makes of a template it does not tell, nor need the index stay: so it is found by a name of ours first.
    let on_the_way = if is_template(new_name) { format!("pw-{index:x}") } else { new_name.to_owned() };
    host.move_to(index, &on_the_way, namespace).map_err(what("move it into the network namespace"))?;
    let index = inside.index(&on_the_way).map_err(what("find it in the network namespace"))?;
    if is_template(new_name) {
        inside.rename(index, new_name).map_err(what("give it a name of the template"))?;
    }
    for address in &addresses {
        inside.add_address(index, address).map_err(what("give it its addresses back"))?;
    }
    inside.up(index).map_err(what("take it up"))
}
