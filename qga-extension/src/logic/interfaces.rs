//! `guest-network-get-interfaces`: the guest's links and addresses in qemu-ga's schema.
//!
//! Interfaces come in the kernel's order, the first ones of the guest's life first, and only as many
//! as fit the longest answer: a guest with a thousand containers still shows its bond and NICs.

use std::net::IpAddr;

use flexvf_protocol::frame::MAX_AGENT_LINE;
use serde_json::{Value, json};

use super::links::Link;

/// An address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The link's index.
    pub link: u32,
    /// The address.
    pub ip: IpAddr,
    /// Length of the network's prefix in bits.
    pub prefix: u8,
}

/// The command's answer.
pub fn interfaces(links: &[Link], addresses: &[Address]) -> Value {
    let mut room = MAX_AGENT_LINE - MAX_ENVELOPE;
    let mut shown = Vec::new();
    for link in links {
        let interface = interface(link, addresses);
        let Some(left) = room.checked_sub(interface.to_string().len() + 1) else {
            break;
        };
        room = left;
        shown.push(interface);
    }
    Value::Array(shown)
}

fn interface(link: &Link, addresses: &[Address]) -> Value {
    let mut interface = json!({"name": link.name, "statistics": statistics(link)});
    if let Value::Object(members) = &mut interface {
        if let Some(mac) = link.mac {
            members.insert("hardware-address".into(), json!(mac.to_string()));
        }
        let ips: Vec<Value> = addresses
            .iter()
            .filter(|address| address.link == link.index)
            .take(MAX_ADDRESSES)
            .map(ip_address)
            .collect();
        if !ips.is_empty() {
            members.insert("ip-addresses".into(), Value::Array(ips));
        }
    }
    interface
}

fn ip_address(address: &Address) -> Value {
    let kind = if address.ip.is_ipv4() { "ipv4" } else { "ipv6" };
    json!({"ip-address": address.ip, "ip-address-type": kind, "prefix": address.prefix})
}

fn statistics(link: &Link) -> Value {
    let (counters, stats) = (link.stats.counters, link.stats);
    json!({
        "rx-bytes": counters.rx_bytes,
        "rx-packets": counters.rx_packets,
        "rx-errs": stats.rx_errors,
        "rx-dropped": counters.rx_dropped,
        "tx-bytes": counters.tx_bytes,
        "tx-packets": counters.tx_packets,
        "tx-errs": stats.tx_errors,
        "tx-dropped": counters.tx_dropped,
    })
}

/// Addresses shown of one interface.
const MAX_ADDRESSES: usize = 16;

/// Room left for what stands around the interfaces, with an id of up to 1 KiB.
const MAX_ENVELOPE: usize = 2 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_looks_as_in_qemu_gas_schema() {
        let link = Link {
            index: 2,
            name: "eth0".into(),
            mac: "02:f1:00:00:00:01".parse().ok(),
            ..Link::default()
        };
        let address = Address { link: 2, ip: [10, 0, 0, 2].into(), prefix: 24 };
        let elsewhere = Address { link: 3, ..address };
        let zero = json!({
            "rx-bytes": 0, "rx-packets": 0, "rx-errs": 0, "rx-dropped": 0,
            "tx-bytes": 0, "tx-packets": 0, "tx-errs": 0, "tx-dropped": 0,
        });
        let expected = json!([{
            "name": "eth0",
            "hardware-address": "02:f1:00:00:00:01",
            "ip-addresses": [
                {"ip-address": "10.0.0.2", "ip-address-type": "ipv4", "prefix": 24}
            ],
            "statistics": zero,
        }]);
        assert_eq!(interfaces(&[link], &[address, elsewhere]), expected);
    }

    #[test]
    fn ten_thousand_interfaces_fit_one_answer() {
        let links: Vec<Link> = (1..=10_000)
            .map(|index| Link { index, name: format!("veth{index}"), ..Link::default() })
            .collect();
        let answer = interfaces(&links, &[]);
        assert!(answer.to_string().len() < MAX_AGENT_LINE);
        assert!(answer.as_array().unwrap().len() > 100);
    }
}
