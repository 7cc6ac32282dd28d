//! rtnetlink(7): links, addresses, routes, of this network namespace or of a pod's. Blocks; the kernel answers at once.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long the kernel may take to answer. It answers before send(2) returns; this is against waiting for ever.
const DEADLINE: Duration = Duration::from_secs(10);

/// The longest answer, in bytes: what the kernel puts into one datagram of a dump.
const ANSWER_BYTES: usize = 64 * 1024;

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface {
    /// The address.
    pub address: IpAddr,
    /// The prefix's length in bits.
    pub prefix: u8,
}

/// A connection to the kernel.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// One about the caller's network namespace.
    pub fn here() -> io::Result<Self> {
        // NETLINK_ROUTE is 0, the default.
        Self::open(None)
    }

    pub(super) fn open(protocol: Option<rustix::net::Protocol>) -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            Some(DEADLINE),
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    /// One about the network namespace that is pinned on `path`. A socket stays in the namespace it was made in, and a thread
    /// of its own goes there for it.
    pub fn inside(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("netlink".to_owned()).stack_size(64 << 10);
            let thread = thread.spawn_scoped(scope, || {
                move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
                Self::here()
            })?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the netlink thread panicked")))
        })
    }

    /// Sends a request that is answered by success or an error.
    pub(super) fn order(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let sequence = self.next_sequence();
        let bytes = encode(request, NLM_F_REQUEST | NLM_F_ACK | flags, sequence);
        self.send(&bytes)?;
        for answer in self.receive::<RouteNetlinkMessage>()? {
            if let NetlinkPayload::Error(error) = answer.payload
                && answer.header.sequence_number == sequence
            {
                return outcome(error.raw_code());
            }
        }
        Err(io::Error::other("the kernel's answer is none"))
    }

    /// Sends a request that is answered by messages.
    fn ask(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let sequence = self.next_sequence();
        let bytes = encode(request, NLM_F_REQUEST | flags, sequence);
        self.send(&bytes)?;
        let mut answers = Vec::new();
        loop {
            for answer in self.receive::<RouteNetlinkMessage>()? {
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => {
                        outcome(error.raw_code())?;
                        return Ok(answers);
                    }
                    _ => {}
                }
            }
            if flags & NLM_F_DUMP == 0 && !answers.is_empty() {
                return Ok(answers);
            }
        }
    }

    pub(super) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.socket, bytes, SendFlags::empty(), &kernel)?;
        Ok(())
    }

    /// The messages of one datagram.
    pub(super) fn receive<T: NetlinkDeserializable>(&self) -> io::Result<Vec<NetlinkMessage<T>>> {
        let mut buffer = vec![0; ANSWER_BYTES];
        let (length, _) = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let message = NetlinkMessage::<T>::deserialize(rest)
                .map_err(|error| io::Error::other(format!("the kernel's answer cannot be read: {error}")))?;
            // Each starts at a multiple of four (NLMSG_ALIGN).
            let used = (message.header.length as usize).next_multiple_of(4).max(16);
            rest = rest.get(used..).unwrap_or_default();
            messages.push(message);
        }
        Ok(messages)
    }

    /// Makes a bridge that is up. `alias` says whose it is. One that exists with the same alias is fine, and so is one without any
    /// that has the address: a daemon was killed before it could say whose it was.
    pub fn ensure_bridge(&mut self, name: &str, alias: &str, mac: [u8; 6], mtu: u32) -> io::Result<u32> {
        if let Some(found) = self.look_up(name)? {
            match found.alias.as_deref().unwrap_or_default() {
                whose if whose == alias => {}
                "" if found.address == mac => self.set_alias(found.index, alias)?,
                whose => {
                    let whose = if whose.is_empty() { "somebody else" } else { whose };
                    return Err(io::Error::other(format!("the link {name} belongs to {whose}")));
                }
            }
            return Ok(found.index);
        }
        let mut message = LinkMessage::default();
        up(&mut message);
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            // A bridge without one takes that of a port, which would change as pods come and go.
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        if mtu != 0 {
            message.attributes.push(LinkAttribute::Mtu(mtu));
        }
        self.order(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?;
        let (index, _) = self.link(name)?.ok_or(io::ErrorKind::NotFound)?;
        // The kernel takes no alias with a new link.
        self.set_alias(index, alias)?;
        Ok(index)
    }

    fn set_alias(&mut self, index: u32, alias: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::IfAlias(alias.to_owned())];
        self.order(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Makes a cable: `name` here, up and at the bridge, which sends back through it what came from it (see [`hairpin`](Self::hairpin));
    /// `peer` in the namespace, still down: the kernel makes it before the other
    /// end, and without that it cannot be up.
    pub fn add_veth(&mut self, veth: &Veth<'_>) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(veth.peer.to_owned()),
            LinkAttribute::NetNsFd(veth.namespace.as_raw_fd()),
        ];
        let mut message = LinkMessage::default();
        up(&mut message);
        message.attributes =
            vec![LinkAttribute::IfName(veth.name.to_owned()), LinkAttribute::Controller(veth.bridge)];
        if veth.mtu != 0 {
            message.attributes.push(LinkAttribute::Mtu(veth.mtu));
            peer.attributes.push(LinkAttribute::Mtu(veth.mtu));
        }
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.order(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?;
        self.hairpin(veth.name)
    }

    /// Lets a bridge send a packet out by the port that it came in by: where br_netfilter has bridges apply rules, a pod's packet to
    /// its own host port never leaves the bridge.
    fn hairpin(&mut self, port: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(port.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
            ]),
        ];
        self.order(RouteNetlinkMessage::NewLink(message), 0)
    }

    /// Index and alias of a link. None: there is none of that name.
    pub fn link(&mut self, name: &str) -> io::Result<Option<(u32, Option<String>)>> {
        Ok(self.look_up(name)?.map(|found| (found.index, found.alias)))
    }

    fn look_up(&mut self, name: &str) -> io::Result<Option<Found>> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        let answers = match self.ask(RouteNetlinkMessage::GetLink(message), 0) {
            Err(error) if error.raw_os_error() == Some(libc_enodev()) => return Ok(None),
            other => other?,
        };
        Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => {
                let mut found = Found { index: link.header.index, alias: None, address: Vec::new() };
                for attribute in link.attributes {
                    match attribute {
                        LinkAttribute::IfAlias(alias) => found.alias = Some(alias),
                        LinkAttribute::Address(address) => found.address = address,
                        _ => {}
                    }
                }
                Some(found)
            }
            _ => None,
        }))
    }

    /// Removes a link, and with it the other end of its cable. What is not there is removed already.
    pub fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.order(RouteNetlinkMessage::DelLink(message), 0) {
            Err(error) if error.raw_os_error() == Some(libc_enodev()) => Ok(()),
            other => other,
        }
    }

    /// Takes a link into use.
    pub fn set_up(&mut self, link: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        up(&mut message);
        self.order(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Gives a link an address. One that it has is fine.
    pub fn add_address(&mut self, link: u32, interface: Interface) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.index = link;
        message.header.prefix_len = interface.prefix;
        message.header.family = family(interface.address);
        message.attributes =
            vec![AddressAttribute::Local(interface.address), AddressAttribute::Address(interface.address)];
        if interface.address.is_ipv6() {
            // The address was leased: nobody else has it, and waiting for that to be found out takes a second.
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        match self.order(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Leads everything that has no other way to `gateway`.
    pub fn add_default_route(&mut self, link: u32, gateway: IpAddr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(gateway);
        message.header.table = 254;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        let gateway = match gateway {
            IpAddr::V4(gateway) => RouteAddress::Inet(gateway),
            IpAddr::V6(gateway) => RouteAddress::Inet6(gateway),
        };
        message.attributes = vec![RouteAttribute::Gateway(gateway), RouteAttribute::Oif(link)];
        self.order(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Every link with its traffic.
    pub fn traffic(&mut self) -> io::Result<Vec<Traffic>> {
        let links = self.ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        let traffic = |message: RouteNetlinkMessage| {
            let RouteNetlinkMessage::NewLink(link) = message else { return None };
            let mut traffic = Traffic::default();
            for attribute in link.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => traffic.name = name,
                    LinkAttribute::Stats64(stats) => {
                        traffic.received = Direction { bytes: stats.rx_bytes, errors: stats.rx_errors };
                        traffic.sent = Direction { bytes: stats.tx_bytes, errors: stats.tx_errors };
                    }
                    _ => {}
                }
            }
            Some(traffic)
        };
        Ok(links.into_iter().filter_map(traffic).collect())
    }
}

/// A link that is there.
struct Found {
    index: u32,
    alias: Option<String>,
    /// Of its layer, six bytes for a bridge.
    address: Vec<u8>,
}

/// A cable to be made.
#[derive(Debug, Clone, Copy)]
pub struct Veth<'a> {
    /// Its end here.
    pub name: &'a str,
    /// The bridge that this end is at.
    pub bridge: u32,
    /// Its end in the namespace.
    pub peer: &'a str,
    /// The namespace.
    pub namespace: BorrowedFd<'a>,
    /// The longest packet in bytes; 0: the kernel's choice.
    pub mtu: u32,
}

/// What went through a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The link's name.
    pub name: String,
    /// In.
    pub received: Direction,
    /// Out.
    pub sent: Direction,
}

/// What went one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Direction {
    /// Bytes.
    pub bytes: u64,
    /// Packets that could not be handled.
    pub errors: u64,
}

/// Opens a pinned network namespace.
pub fn open_namespace(path: &Path) -> io::Result<OwnedFd> {
    // A FIFO in its place must not hang the daemon; whatever else it is, setns(2) refuses it.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?)
}

/// What went through the links of a pinned network namespace.
pub fn traffic(path: &Path) -> io::Result<Vec<Traffic>> {
    Netlink::inside(open_namespace(path)?.as_fd())?.traffic()
}

fn up(message: &mut LinkMessage) {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// ENODEV.
fn libc_enodev() -> i32 {
    rustix::io::Errno::NODEV.raw_os_error()
}

/// What an answer's code means: 0, or an errno with its sign changed.
pub(super) fn outcome(code: i32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}

/// A message as bytes.
pub(super) fn encode<T: NetlinkSerializable>(message: T, flags: u16, sequence: u32) -> Vec<u8>
where
    NetlinkPayload<T>: From<T>,
{
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
