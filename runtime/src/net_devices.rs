//! `linux.netDevices`: devices of the host moved into the container (runtime-spec `config-linux.md#network-devices`).
//!
//! The move and the new name are one request, so that neither name is seen where it does not belong. The kernel takes a moved device
//! down and forgets its addresses; those that were given to it for good come along. MTU and hardware address are the device's own.
//! Who owns the namespace owns the device from then on: when the namespace goes, a physical device is back on the host, a
//! virtual one is gone with it.

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
    for (name, new_name) in devices {
        move_one(&host, &inside, namespace.as_fd(), (name, new_name))
            .map_err(|(what, errno)| Failure::at(Step::Network, errno, name).with_message(what))?;
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
    let index = host.index(name).map_err(what("linux.netDevices: no such device on the host"))?;
    // Before it goes down, which costs it its IPv6 addresses.
    let addresses = host.permanent_addresses(index).map_err(what("list its addresses"))?;
    host.down(index).map_err(what("take it down"))?;
    host.move_to(index, new_name, namespace).map_err(what("move it into the network namespace"))?;
    let index = inside.index(new_name).map_err(what("find it in the network namespace"))?;
    for address in &addresses {
        inside.add_address(index, address).map_err(what("give it its addresses back"))?;
    }
    inside.up(index).map_err(what("take it up"))
}
