//! Addresses of the built-in network. A pod's network record is its lease: it is on disk from before the address is used
//! until after the last use, so a lease cannot outlive its pod nor be forgotten. In memory is only what the records say.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::links::Interface;

/// A range of addresses, as the configuration writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    network: u128,
    prefix: u8,
    v6: bool,
}

impl Range {
    /// Parses `10.87.0.0/16`. The error says what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no range such as 10.87.0.0/16 or fd87::/64");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        if prefix > bits {
            return Err(wrong());
        }
        if !(8..=bits - 2).contains(&prefix) {
            return Err(format!("{text:?} has room for too few or too many addresses: /8 to /{}", bits - 2));
        }
        let range = Self { network: number(address), prefix, v6: address.is_ipv6() };
        if !range.network.is_multiple_of(range.size()) {
            return Err(format!("{text:?} does not start where a /{prefix} starts"));
        }
        Ok(range)
    }

    fn size(self) -> u128 {
        1 << (if self.v6 { 128 } else { 32 } - self.prefix)
    }

    fn at(self, offset: u128) -> IpAddr {
        let number = self.network + offset;
        if self.v6 {
            IpAddr::V6(Ipv6Addr::from(number))
        } else {
            IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)))
        }
    }

    /// The bridge's own address, the first one, with the prefix.
    pub fn gateway(self) -> Interface {
        self.interface(self.at(1))
    }

    /// One of its addresses with the prefix.
    pub fn interface(self, address: IpAddr) -> Interface {
        Interface { address, prefix: self.prefix }
    }

    /// Whether the address is one of its.
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv6() == self.v6
            && number(address).checked_sub(self.network).is_some_and(|offset| offset < self.size())
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.at(0), self.prefix)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// Addresses in use.
#[derive(Debug, Default)]
pub struct Leases {
    taken: BTreeSet<IpAddr>,
    /// Where the last search of each family ended: what was given back last is given out last.
    last: [u128; 2],
}

impl Leases {
    /// Takes a free address. None: all are taken.
    pub fn take(&mut self, range: Range) -> Option<IpAddr> {
        // The first is the network's and the second the bridge's; the last is for broadcasts.
        let (first, count) = (2, range.size() - 3);
        let last = &mut self.last[usize::from(range.v6)];
        // More than so many need not be looked at: one of them is free.
        for _ in 0..count.min(self.taken.len() as u128 + 1) {
            let offset = if *last < first || *last >= first + count - 1 { first } else { *last + 1 };
            *last = offset;
            let address = range.at(offset);
            if self.taken.insert(address) {
                return Some(address);
            }
        }
        None
    }

    /// Notes an address that is in use.
    pub fn restore(&mut self, address: IpAddr) {
        self.taken.insert(address);
    }

    /// Takes an address back.
    pub fn give_back(&mut self, address: IpAddr) {
        self.taken.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_read_strictly() {
        let range = Range::parse("10.87.0.0/16").unwrap();
        assert_eq!(range.to_string(), "10.87.0.0/16");
        assert_eq!(range.gateway().address.to_string(), "10.87.0.1");
        assert!(
            range.contains("10.87.255.255".parse().unwrap()) && !range.contains("10.88.0.0".parse().unwrap())
        );
        assert!(!range.contains("fd00::1".parse().unwrap()));
        assert_eq!(Range::parse("fd87::/64").unwrap().gateway().address.to_string(), "fd87::1");
        for wrong in [
            "",
            "10.87.0.0",
            "10.87.0.0/33",
            "10.87.0.0/31",
            "10.87.0.5/16",
            "10.0.0.0/4",
            "x/16",
            "fd87::/127",
        ] {
            Range::parse(wrong).unwrap_err();
        }
    }

    #[test]
    fn a_full_range_gives_nothing_and_what_came_back_comes_last() {
        let range = Range::parse("10.0.0.0/29").unwrap();
        let mut leases = Leases::default();
        let all: Vec<IpAddr> = std::iter::from_fn(|| leases.take(range)).collect();
        let texts: Vec<String> = all.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        leases.give_back(all[1]);
        leases.give_back(all[3]);
        assert_eq!(leases.take(range), Some(all[1]));
        leases.give_back(all[1]);
        assert_eq!(leases.take(range), Some(all[3]));
        let mut fresh = Leases::default();
        fresh.restore(all[0]);
        assert_eq!(fresh.take(range), Some(all[1]));
    }

    proptest! {
        #[test]
        fn no_address_is_given_out_twice(prefix in 24_u8..=30, steps in proptest::collection::vec(any::<bool>(), 0..400)) {
            let range = Range::parse(&format!("192.168.4.0/{prefix}")).unwrap();
            let mut leases = Leases::default();
            let mut held: Vec<IpAddr> = Vec::new();
            for take in steps {
                if take {
                    if let Some(address) = leases.take(range) {
                        prop_assert!(!held.contains(&address) && range.contains(address));
                        prop_assert!(address != range.gateway().address);
                        held.push(address);
                    } else {
                        prop_assert_eq!(held.len() as u128, range.size() - 3);
                    }
                } else if let Some(address) = held.pop() {
                    leases.give_back(address);
                }
            }
        }

        #[test]
        fn no_text_is_too_strange(text in "\\PC{0,30}") {
            let _ = Range::parse(&text);
        }
    }
}
