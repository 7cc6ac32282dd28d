//! The few requests of rtnetlink(7) that the engine makes, over one socket, one at a time.
//!
//! ```text
//! message     nlmsghdr (16 bytes: length, type, flags, sequence, port), a family's own header, attributes
//! attribute   rtattr (length, type), value, padding to 4 bytes
//! answer      NLMSG_ERROR with 0 or -errno; to a dump: messages up to NLMSG_DONE
//! ```

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::namespaces;
use crate::plan::NamespaceKind;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
/// `NLM_F_CREATE | NLM_F_EXCL`.
const NLM_F_NEW: u16 = 0x600;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;

const IFF_UP: u32 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;
const IFA_F_PERMANENT: u32 = 0x80;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
const RT_SCOPE_UNIVERSE: u8 = 0;

const HEADER: usize = 16;
/// Larger than any datagram of a dump, which the kernel fills up to 32 KiB.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// How many addresses of one device are kept.
const MAX_ADDRESSES: usize = 4096;

/// A socket in one network namespace.
#[derive(Debug)]
pub(crate) struct Rtnetlink(OwnedFd);

/// An address of a device, as much of it as is true in any namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    family: u8,
    prefix_length: u8,
    flags: u32,
    /// Attributes: (type, value).
    values: Vec<(u16, Vec<u8>)>,
}

impl Rtnetlink {
    /// In the caller's namespace.
    pub(crate) fn open() -> Result<Self, Errno> {
        let kind = (AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC);
        // NETLINK_ROUTE is 0, the default.
        rustix::net::socket_with(kind.0, kind.1, kind.2, None).map(Self)
    }

    /// In the network namespace of `namespace`, a namespace file: a socket stays in the one it was made in. The calling thread is there
    /// just for that.
    pub(crate) fn open_in(namespace: impl AsFd) -> Result<Self, Errno> {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let own = rustix::fs::open("/proc/thread-self/ns/net", flags, rustix::fs::Mode::empty())?;
        namespaces::enter(namespace.as_fd(), NamespaceKind::Network.flag())?;
        let socket = Self::open();
        // Whoever could come here can also go back.
        namespaces::enter(own.as_fd(), NamespaceKind::Network.flag())?;
        socket
    }

    /// The index of the device with this name. ENODEV: there is none.
    pub(crate) fn index(&self, name: &str) -> Result<u32, Errno> {
        name_to_index(&self.0, name)
    }

    /// Takes a device up.
    pub(crate) fn up(&self, index: u32) -> Result<(), Errno> {
        self.ask(Message::link(index, IFF_UP, IFF_UP))
    }

    /// Gives a device that is down another name, or one that the kernel makes of a template such as `eth%d`.
    pub(crate) fn rename(&self, index: u32, name: &str) -> Result<(), Errno> {
        let named = [name.as_bytes(), &[0]].concat();
        self.ask(Message::link(index, 0, 0).with(IFLA_IFNAME, &named))
    }

    /// Moves a device into another network namespace and renames it, in one step: neither name is taken on the way. The kernel takes
    /// it down for that, once it knows that it can be moved.
    pub(crate) fn move_to(&self, index: u32, name: &str, namespace: impl AsFd) -> Result<(), Errno> {
        use std::os::fd::AsRawFd;
        let fd = namespace.as_fd().as_raw_fd();
        let named = [name.as_bytes(), &[0]].concat();
        self.ask(Message::link(index, 0, 0).with(IFLA_IFNAME, &named).with(IFLA_NET_NS_FD, &fd.to_ne_bytes()))
    }

    /// The addresses of a device that were given to it for good and are valid anywhere: neither those that autoconfiguration or
    /// DHCP lent, nor link-local ones, which belong to the link.
    pub(crate) fn permanent_addresses(&self, index: u32) -> Result<Vec<Address>, Errno> {
        self.send(Message::new(RTM_GETADDR, NLM_F_DUMP, &[0; 8]))?;
        let mut addresses = Vec::new();
        let mut buffer = vec![0; MAX_ANSWER_BYTES];
        loop {
            let datagram = self.receive(&mut buffer)?;
            for (kind, body) in messages(datagram) {
                match kind {
                    NLMSG_DONE => return Ok(addresses),
                    NLMSG_ERROR => return Err(error(body).err().unwrap_or(Errno::PROTO)),
                    RTM_NEWADDR => addresses.extend(permanent_address(body, index)),
                    _ => {}
                }
            }
            if addresses.len() > MAX_ADDRESSES {
                return Err(Errno::TOOBIG);
            }
        }
    }

    /// Gives a device an address.
    pub(crate) fn add_address(&self, index: u32, address: &Address) -> Result<(), Errno> {
        let mut head = vec![address.family, address.prefix_length, 0, RT_SCOPE_UNIVERSE];
        head.extend(index.to_ne_bytes());
        let mut message = Message::new(RTM_NEWADDR, NLM_F_ACK | NLM_F_NEW, &head);
        for (kind, value) in &address.values {
            message = message.with(*kind, value);
        }
        self.ask(message.with(IFA_FLAGS, &address.flags.to_ne_bytes()))
    }

    /// Sends a request and waits for its acknowledgement.
    fn ask(&self, message: Message) -> Result<(), Errno> {
        self.send(message)?;
        let mut buffer = [0; 4096];
        match messages(self.receive(&mut buffer)?).next() {
            Some((NLMSG_ERROR, body)) => error(body),
            _ => Err(Errno::PROTO),
        }
    }

    fn send(&self, message: Message) -> Result<(), Errno> {
        rustix::net::send(&self.0, &message.finish(), SendFlags::empty()).map(|_| ())
    }

    fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<&'a [u8], Errno> {
        let (length, _) = rustix::net::recv(&self.0, &mut *buffer, RecvFlags::empty())?;
        Ok(&buffer[..length.min(buffer.len())])
    }
}

/// A request that is being put together.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, head: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend(head);
        Self(bytes)
    }

    /// A change of a device: those of its flags that are in `mask` become what they are in `flags`.
    fn link(index: u32, flags: u32, mask: u32) -> Self {
        // struct ifinfomsg: family, padding, type, index, flags, mask.
        let words = [0, index, flags, mask];
        Self::new(RTM_NEWLINK, NLM_F_ACK, &words.map(u32::to_ne_bytes).concat())
    }

    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        // Names, addresses and numbers are far below 64 KiB.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// The messages of a datagram: their types and what follows their headers. Ends at the first that is cut short.
fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        let kind = u16_at(rest, 4)?;
        let body = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The attributes after a message's own header.
fn attributes(body: &[u8], head: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(head..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)?;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// What an NLMSG_ERROR says: 0 is success.
fn error(body: &[u8]) -> Result<(), Errno> {
    match u32_at(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(Errno::from_raw_os_error(code.wrapping_neg())),
        None => Err(Errno::PROTO),
    }
}

/// An RTM_NEWADDR as an address worth keeping; None: it is another device's, or not worth it.
fn permanent_address(body: &[u8], index: u32) -> Option<Address> {
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    let [family, prefix_length, short_flags, scope] = *body.first_chunk()?;
    if u32_at(body, 4)? != index || scope != RT_SCOPE_UNIVERSE {
        return None;
    }
    let mut flags = u32::from(short_flags);
    let mut values = Vec::new();
    for (kind, value) in attributes(body, 8) {
        match kind {
            IFA_FLAGS => flags = u32_at(value, 0)?,
            IFA_ADDRESS | IFA_LOCAL | IFA_BROADCAST => values.push((kind, value.to_vec())),
            _ => {}
        }
    }
    let kept = flags & (IFA_F_NODAD | IFA_F_NOPREFIXROUTE);
    (flags & IFA_F_PERMANENT != 0).then_some(Address { family, prefix_length, flags: kept, values })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_lengths_are_not() {
        let bytes = Message::link(7, 0, 0).with(IFLA_IFNAME, b"lan\0").with(9, b"x").finish();
        assert_eq!(bytes.len(), HEADER + 16 + 8 + 8);
        let (kind, body) = messages(&bytes).next().unwrap();
        assert_eq!((kind, u32_at(body, 4)), (RTM_NEWLINK, Some(7)));
        assert_eq!(attributes(body, 16).collect::<Vec<_>>(), [(IFLA_IFNAME, &b"lan\0"[..]), (9, b"x")]);
    }

    #[test]
    fn only_permanent_addresses_of_the_device_that_hold_anywhere_are_kept() {
        let address = |index: u32, scope: u8, flags: u32| {
            let mut head = vec![2, 24, 0, scope];
            head.extend(index.to_ne_bytes());
            let message = Message::new(RTM_NEWADDR, 0, &head)
                .with(IFA_ADDRESS, &[10, 0, 0, 1])
                .with(3, b"eth0\0")
                .with(IFA_FLAGS, &flags.to_ne_bytes())
                .finish();
            let (_, body) = messages(&message).next().unwrap();
            permanent_address(body, 7)
        };
        let kept = address(7, 0, IFA_F_PERMANENT).unwrap();
        assert_eq!((kept.family, kept.prefix_length, kept.flags), (2, 24, 0));
        assert_eq!(kept.values, [(IFA_ADDRESS, vec![10, 0, 0, 1])]);
        assert_eq!(address(8, 0, IFA_F_PERMANENT), None);
        assert_eq!(address(7, 253, IFA_F_PERMANENT), None);
        assert_eq!(address(7, 0, 0), None);
    }

    #[test]
    fn what_is_cut_short_ends_the_list() {
        let whole = Message::link(1, 0, 0).with(9, b"value").finish();
        for length in 0..whole.len() {
            let cut = &whole[..length];
            for (_, body) in messages(cut) {
                assert!(body.len() <= length);
            }
            let _ = attributes(cut, 0).count();
            let _ = permanent_address(cut, 1);
        }
        assert_eq!(error(&[]), Err(Errno::PROTO));
    }

    #[test]
    fn a_device_that_is_not_there_is_told() {
        let socket = Rtnetlink::open().unwrap();
        assert_eq!(socket.index("no-such-dev"), Err(Errno::NODEV));
        assert!(socket.index("lo").unwrap() > 0);
    }
}
