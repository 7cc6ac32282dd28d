//! nf_tables(7) rules of the built-in network: masquerading, and host ports.
//!
//! ```text
//! table inet <bridge>
//!   guard (filter)              iifname <bridge>, ip daddr 127.0.0.0/8                   -> drop
//!   prerouting, output (nat)    fib daddr type local  jump hostports
//!   hostports                   meta l4proto . ip daddr . th dport  in map host4, host6  -> dnat
//!                               meta l4proto . th dport             in map any4, any6    -> dnat
//!   postrouting (nat)           oifname <bridge>, ip saddr 127.0.0.0/8                   -> masquerade
//!                               oifname <bridge>, ct status dnat, ip saddr <range>       -> masquerade
//!                               oifname not <bridge>, ip saddr <range>                   -> masquerade
//! ```
//!
//! The guard is what makes route_localnet safe, without which the host's own 127.0.0.1 would not lead to host ports: no pod
//! reaches what listens there. A host port is an element of a map: made and taken back by its key, in one transaction, and no handle has to be kept.
//! The table as a whole is made anew when a daemon starts, with the host ports of the pods that live.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkPayload};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook,
    HookNumber, Immediate, InetHookNumber, ListAttribute, Lookup, Meta, MetaKey, NfTablesMessage, Operator,
    Payload, Register, RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute, SetElementList,
    SetElementMessage, SetFlags, SetMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::links::{Interface, Netlink, encode, outcome};

/// `NFNL_SUBSYS_NFTABLES`: whom a batch is for.
const SUBSYSTEM: u16 = 10;

/// A port of the host that leads to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// The IP protocol's number.
    pub protocol: u8,
    /// On which of the host's addresses; None: on all.
    pub host: Option<IpAddr>,
    /// There.
    pub host_port: u16,
    /// The pod's address.
    pub pod: IpAddr,
    /// There.
    pub pod_port: u16,
}

/// The rules of one bridge.
#[derive(Debug)]
pub struct Rules<'a> {
    /// The bridge, and the table's name.
    pub bridge: &'a str,
    /// The ranges of its pods.
    pub ranges: &'a [Interface],
    /// Whether what pods send elsewhere gets the host's address.
    pub masquerade: bool,
}

impl Rules<'_> {
    /// Makes the table anew, with these host ports and no other.
    pub fn rebuild(&self, forwards: &[Forward]) -> io::Result<()> {
        let mut batch = vec![
            // So that there is one to delete.
            self.table(),
            Change::Delete(NfTablesMessage::DeleteTable(TableMessage { attributes: self.table_name() })),
            self.table(),
        ];
        for (name, kind, hook, priority) in [
            ("guard", "filter", InetHookNumber::PreRouting, -300),
            ("prerouting", "nat", InetHookNumber::PreRouting, -100),
            ("output", "nat", InetHookNumber::LocalOut, -100),
            ("postrouting", "nat", InetHookNumber::PostRouting, 100),
        ] {
            batch.push(self.chain(name, Some((kind, hook, priority))));
        }
        batch.push(self.chain("hostports", None));
        for (id, map) in MAPS.iter().enumerate() {
            batch.push(self.map(map, u32::try_from(id).unwrap_or_default() + 1));
        }
        batch.push(self.rule("guard", self.guard()));
        for chain in ["prerouting", "output"] {
            batch.push(self.rule(chain, local_then_jump("hostports")));
        }
        for map in &MAPS {
            batch.push(self.rule("hostports", map.dnat()));
        }
        for expressions in self.masquerades() {
            batch.push(self.rule("postrouting", expressions));
        }
        batch.extend(forwards.iter().map(|forward| Change::New(self.element(forward))));
        commit(batch)
    }

    /// Adds host ports.
    pub fn add(&self, forwards: &[Forward]) -> io::Result<()> {
        if forwards.is_empty() {
            return Ok(());
        }
        commit(forwards.iter().map(|forward| Change::New(self.element(forward))).collect())
    }

    /// Takes host ports away; what is not there is away already.
    pub fn remove(&self, forwards: &[Forward]) -> io::Result<()> {
        for forward in forwards {
            match commit(vec![Change::Delete(delete(self.element(forward)))]) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn table_name(&self) -> Vec<TableAttribute> {
        vec![TableAttribute::Name(self.bridge.to_owned())]
    }

    fn table(&self) -> Change {
        Change::New(NfTablesMessage::NewTable(TableMessage { attributes: self.table_name() }))
    }

    fn chain(&self, name: &str, base: Option<(&str, InetHookNumber, i32)>) -> Change {
        let mut attributes =
            vec![ChainAttribute::Table(self.bridge.to_owned()), ChainAttribute::Name(name.to_owned())];
        if let Some((kind, hook, priority)) = base {
            attributes.push(ChainAttribute::Hook(vec![
                Hook::Number(HookNumber::Inet(hook)),
                Hook::Priority(priority.cast_unsigned()),
            ]));
            attributes.push(ChainAttribute::Type(kind.to_owned()));
        }
        Change::New(NfTablesMessage::NewChain(ChainMessage { attributes }))
    }

    fn rule(&self, chain: &str, expressions: Vec<Expressions>) -> Change {
        let attributes = vec![
            RuleAttribute::Table(self.bridge.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(
                expressions.into_iter().map(ListAttribute::<ExpressionAttribute>::from).collect(),
            ),
        ];
        Change::New(NfTablesMessage::NewRule(RuleMessage { attributes }))
    }

    fn map(&self, map: &Map, id: u32) -> Change {
        let key = map.key_types();
        let data = [map.address_type(), TYPE_INET_SERVICE];
        let attributes = vec![
            SetAttribute::Table(self.bridge.to_owned()),
            SetAttribute::Name(map.name.to_owned()),
            SetAttribute::Flags(SetFlags::Map),
            SetAttribute::KeyType(concatenated(&key)),
            SetAttribute::KeyLen(map.key_words() * 4),
            SetAttribute::DataType(concatenated(&data)),
            SetAttribute::DataLen(map.address_words() * 4 + 4),
            SetAttribute::Id(id),
        ];
        Change::New(NfTablesMessage::NewSet(SetMessage { attributes }))
    }

    fn element(&self, forward: &Forward) -> NfTablesMessage {
        let map = Map::of(forward);
        let word = |value: u16| [value.to_be_bytes(), [0, 0]].concat();
        let mut key = vec![forward.protocol, 0, 0, 0];
        if let Some(host) = forward.host {
            key.extend(octets(host));
        }
        key.extend(word(forward.host_port));
        let mut data = octets(forward.pod);
        data.extend(word(forward.pod_port));
        let element = ListAttribute::Element(vec![
            SetElementAttribute::Key(DataAttribute::Value(key)),
            SetElementAttribute::Data(DataAttribute::Value(data)),
        ]);
        NfTablesMessage::NewSetElement(SetElementMessage {
            attributes: vec![
                SetElementList::Table(self.bridge.to_owned()),
                SetElementList::Set(map.name.to_owned()),
                SetElementList::Elements(vec![element]),
            ],
        })
    }

    fn masquerades(&self) -> Vec<Vec<Expressions>> {
        let mut rules = Vec::new();
        let masquerade = || other("masq", Vec::new());
        // From the host's own loopback no answer would come back.
        let mut own = self.link(MetaKey::Oifname, Operator::Equal);
        own.extend(within(End::Source, LOOPBACK));
        own.push(masquerade());
        rules.push(own);
        for range in self.ranges {
            // From pod to pod by a host port: the answer has to come by the host again.
            let mut back = self.link(MetaKey::Oifname, Operator::Equal);
            back.extend(translated());
            back.extend(within(End::Source, *range));
            back.push(masquerade());
            rules.push(back);
            if self.masquerade {
                let mut away = self.link(MetaKey::Oifname, Operator::NotEqual);
                away.extend(within(End::Source, *range));
                away.push(masquerade());
                rules.push(away);
            }
        }
        rules
    }

    fn guard(&self) -> Vec<Expressions> {
        let mut guard = self.link(MetaKey::Iifname, Operator::Equal);
        guard.extend(within(End::Destination, LOOPBACK));
        // NF_DROP.
        guard.push(verdict(vec![VerdictAttribute::Code(Verdict::Other(0))]));
        guard
    }

    /// Whether the packet comes from or goes to the bridge.
    fn link(&self, key: MetaKey, operator: Operator) -> Vec<Expressions> {
        // IFNAMSIZ.
        let mut name = self.bridge.as_bytes().to_vec();
        name.resize(16, 0);
        vec![meta(key, Register::Reg1), compare(Register::Reg1, operator, name)]
    }
}

/// A map of host ports.
struct Map {
    name: &'static str,
    v6: bool,
    with_address: bool,
}

/// The special ones before the general ones.
const MAPS: [Map; 4] = [
    Map { name: "host4", v6: false, with_address: true },
    Map { name: "host6", v6: true, with_address: true },
    Map { name: "any4", v6: false, with_address: false },
    Map { name: "any6", v6: true, with_address: false },
];

/// nft(8)'s numbers of types, for who lists the rules.
const TYPE_IPADDR: u32 = 7;
const TYPE_IP6ADDR: u32 = 8;
const TYPE_INET_PROTOCOL: u32 = 12;
const TYPE_INET_SERVICE: u32 = 13;

impl Map {
    fn of(forward: &Forward) -> &'static Self {
        let (v6, with_address) = (forward.pod.is_ipv6(), forward.host.is_some());
        let place = usize::from(!with_address) * 2 + usize::from(v6);
        &MAPS[place]
    }

    fn address_type(&self) -> u32 {
        if self.v6 { TYPE_IP6ADDR } else { TYPE_IPADDR }
    }

    fn address_words(&self) -> u32 {
        if self.v6 { 4 } else { 1 }
    }

    fn key_types(&self) -> Vec<u32> {
        let mut types = vec![TYPE_INET_PROTOCOL];
        if self.with_address {
            types.push(self.address_type());
        }
        types.push(TYPE_INET_SERVICE);
        types
    }

    fn key_words(&self) -> u32 {
        2 + if self.with_address { self.address_words() } else { 0 }
    }

    /// Looks up protocol, address and port of a packet, and sends it where the map says.
    fn dnat(&self) -> Vec<Expressions> {
        let words = [
            Register::Reg32_00,
            Register::Reg32_01,
            Register::Reg32_02,
            Register::Reg32_03,
            Register::Reg32_04,
            Register::Reg32_05,
        ];
        let (family, nfproto) = if self.v6 { (10, 10) } else { (2, 2) };
        let mut expressions = vec![
            meta(MetaKey::Nfproto, Register::Reg1),
            compare(Register::Reg1, Operator::Equal, vec![nfproto]),
            meta(MetaKey::L4Proto, words[0]),
        ];
        let mut next = 1;
        if self.with_address {
            // The destination address in the network header: byte 16 of IPv4's, 24 of IPv6's.
            let (offset, length) = if self.v6 { (24, 16) } else { (16, 4) };
            expressions.push(payload(words[next], NETWORK_HEADER, offset, length));
            next += if self.v6 { 4 } else { 1 };
        }
        // TCP, UDP and SCTP all have the destination port there.
        expressions.push(payload(words[next], TRANSPORT_HEADER, 2, 2));
        // The found address and port go where the key is not needed any more.
        let (address, port) = if self.v6 {
            (Register::Reg32_08, Register::Reg32_12)
        } else {
            (Register::Reg32_08, Register::Reg32_09)
        };
        expressions.push(Expressions::Lookup(vec![
            Lookup::Set(self.name.to_owned()),
            Lookup::SourceRegister(words[0]),
            Lookup::DestinationRegister(address),
        ]));
        let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
        expressions.push(other(
            "nat",
            vec![
                // NFTA_NAT_TYPE: NFT_NAT_DNAT; NFTA_NAT_FAMILY; NFTA_NAT_REG_ADDR_MIN; NFTA_NAT_REG_PROTO_MIN.
                number(1, 1),
                number(2, family),
                number(3, address.into()),
                number(5, port.into()),
            ],
        ));
        expressions
    }
}

/// `NFT_PAYLOAD_NETWORK_HEADER` and `NFT_PAYLOAD_TRANSPORT_HEADER`.
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

fn meta(key: MetaKey, into: Register) -> Expressions {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(into)])
}

fn payload(into: Register, base: u32, offset: u32, length: u32) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(into),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

fn compare(register: Register, operator: Operator, value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(register),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}

fn masked(register: Register, mask: Vec<u8>) -> Expressions {
    let length = u32::try_from(mask.len()).unwrap_or_default();
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(register),
        Bitwise::DestinationRegister(register),
        Bitwise::Length(length),
        Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
        Bitwise::Mask(DataAttribute::Value(mask)),
    ])
}

/// An expression that the library has no type for.
fn other(name: &str, attributes: Vec<DefaultNla>) -> Expressions {
    Expressions::Other { expression_type: name.to_owned(), attributes }
}

/// 127.0.0.0/8.
const LOOPBACK: Interface = Interface { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), prefix: 8 };

/// Which of a packet's addresses.
#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// Packets of a family whose address is in a range.
fn within(end: End, range: Interface) -> Vec<Expressions> {
    let address = octets(range.address);
    // Offsets in the network header.
    let (nfproto, offset) = match (range.address, end) {
        (IpAddr::V4(_), End::Source) => (2, 12),
        (IpAddr::V4(_), End::Destination) => (2, 16),
        (IpAddr::V6(_), End::Source) => (10, 8),
        (IpAddr::V6(_), End::Destination) => (10, 24),
    };
    let mask: Vec<u8> = (0..address.len())
        .map(|index| {
            let bits = usize::from(range.prefix).saturating_sub(index * 8).min(8);
            u8::try_from(0xff00_u16 >> bits & 0xff).unwrap_or(u8::MAX)
        })
        .collect();
    let network = address.iter().zip(&mask).map(|(octet, mask)| octet & mask).collect();
    let length = u32::try_from(mask.len()).unwrap_or_default();
    vec![
        meta(MetaKey::Nfproto, Register::Reg1),
        compare(Register::Reg1, Operator::Equal, vec![nfproto]),
        payload(Register::Reg1, NETWORK_HEADER, offset, length),
        masked(Register::Reg1, mask),
        compare(Register::Reg1, Operator::Equal, network),
    ]
}

/// `ct status dnat`.
fn translated() -> Vec<Expressions> {
    const IPS_DST_NAT: u32 = 1 << 5;
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    vec![
        // NFTA_CT_DREG; NFTA_CT_KEY: NFT_CT_STATUS.
        other("ct", vec![number(1, Register::Reg1.into()), number(2, 2)]),
        masked(Register::Reg1, IPS_DST_NAT.to_ne_bytes().to_vec()),
        compare(Register::Reg1, Operator::NotEqual, vec![0; 4]),
    ]
}

/// `fib daddr type local jump CHAIN`.
fn local_then_jump(chain: &str) -> Vec<Expressions> {
    const RTN_LOCAL: u32 = 2;
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    vec![
        // NFTA_FIB_DREG; NFTA_FIB_RESULT: NFT_FIB_RESULT_ADDRTYPE; NFTA_FIB_FLAGS: NFTA_FIB_F_DADDR.
        other("fib", vec![number(1, Register::Reg1.into()), number(2, 3), number(3, 2)]),
        compare(Register::Reg1, Operator::Equal, RTN_LOCAL.to_ne_bytes().to_vec()),
        verdict(vec![VerdictAttribute::Code(Verdict::Jump), VerdictAttribute::Chain(chain.to_owned())]),
    ]
}

fn verdict(attributes: Vec<VerdictAttribute>) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(attributes)),
    ])
}

/// The number of a concatenation of types: six bits each.
fn concatenated(types: &[u32]) -> u32 {
    types.iter().fold(0, |number, kind| number << 6 | kind)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn delete(element: NfTablesMessage) -> NfTablesMessage {
    match element {
        NfTablesMessage::NewSetElement(element) => NfTablesMessage::DeleteSetElement(element),
        other => other,
    }
}

/// One message of a transaction.
enum Change {
    New(NfTablesMessage),
    Delete(NfTablesMessage),
}

/// Sends a transaction: all of it holds, or none.
fn commit(changes: Vec<Change>) -> io::Result<()> {
    let mut netlink = Netlink::open(Some(rustix::net::netlink::NETFILTER))?;
    let control = |message, sequence| {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM);
        encode(NetfilterMessage::new(header, message), NLM_F_REQUEST, sequence)
    };
    let mut bytes = control(ControlMessage::BatchBegin, netlink.next_sequence());
    let mut awaited = std::collections::BTreeSet::new();
    for change in changes {
        let (message, flags) = match change {
            // Rules in the order in which they are given.
            Change::New(message) => (message, NLM_F_CREATE | NLM_F_APPEND),
            Change::Delete(message) => (message, 0),
        };
        let sequence = netlink.next_sequence();
        awaited.insert(sequence);
        let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
        bytes.extend(encode(
            NetfilterMessage::new(header, message),
            NLM_F_REQUEST | NLM_F_ACK | flags,
            sequence,
        ));
    }
    bytes.extend(control(ControlMessage::BatchEnd, netlink.next_sequence()));
    netlink.send(&bytes)?;
    let mut result = Ok(());
    while !awaited.is_empty() {
        for answer in netlink.receive::<NetfilterMessage>()? {
            let NetlinkPayload::Error(error) = answer.payload else { continue };
            let known = awaited.remove(&answer.header.sequence_number);
            result = result.and(outcome(error.raw_code()));
            if !known && result.is_err() {
                // About the batch as a whole.
                return result;
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_forward_has_its_map() {
        let forward = |host: Option<&str>, pod: &str| Forward {
            protocol: 6,
            host: host.map(|host| host.parse().unwrap()),
            host_port: 80,
            pod: pod.parse().unwrap(),
            pod_port: 80,
        };
        let name = |host, pod| Map::of(&forward(host, pod)).name;
        assert_eq!(name(None, "10.0.0.1"), "any4");
        assert_eq!(name(None, "fd00::1"), "any6");
        assert_eq!(name(Some("192.0.2.1"), "10.0.0.1"), "host4");
        assert_eq!(name(Some("2001:db8::1"), "fd00::1"), "host6");
        assert_eq!(MAPS.iter().map(Map::key_words).collect::<Vec<_>>(), [3, 6, 2, 2]);
    }

    #[test]
    fn a_range_is_matched_by_its_prefix() {
        let range = Interface { address: "10.87.3.4".parse().unwrap(), prefix: 12 };
        let expressions = within(End::Source, range);
        let compared = vec![10, 80, 0, 0];
        assert_eq!(expressions[4], compare(Register::Reg1, Operator::Equal, compared));
        assert_eq!(expressions[3], masked(Register::Reg1, vec![255, 240, 0, 0]));
        assert_eq!(concatenated(&[12, 13]), 12 * 64 + 13);
    }
}
