//! Against a real kernel, in a network namespace of the test's own.

use super::*;
use rtnetlink::{LinkBridge, LinkUnspec, LinkVeth};
use std::process::Command;

const SHARED: MacAddr = MacAddr::new([2, 0xf1, 0, 0, 0, 1]);

/// Runs this very test again within a new network namespace; true in there.
fn in_own_namespace(test: &str) -> bool {
    const MARK: &str = "FLEXVF_TEST_IN_NETNS";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let possible = Command::new("unshare").args(["--net", "true"]).status();
    if !possible.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED {test}: needs root, for a network namespace of its own");
        return false;
    }
    let this = std::env::current_exe().unwrap();
    let name = format!("io::netlink::tests::{test}");
    let status = Command::new("unshare")
        .arg("--net")
        .arg(this)
        .args(["--exact", &name, "--nocapture"])
        .env(MARK, "1")
        .status();
    assert!(status.unwrap().success());
    false
}

fn run<F: Future<Output = ()>>(body: impl FnOnce(Netlink) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        body(Netlink::new(Duration::from_secs(5)).unwrap()).await;
    });
}

/// What the kernel has for the address, as (interface index, flags, state).
async fn entries(netlink: &Netlink, mac: MacAddr) -> Vec<(u32, NeighbourFlags, NeighbourState)> {
    let request = netlink.handle.neighbours().get();
    let request = request.set_address_family(AddressFamily::Bridge).execute();
    let all: Vec<NeighbourMessage> = request.try_collect().await.unwrap();
    let wanted = NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec());
    all.into_iter()
        .filter(|entry| entry.attributes.contains(&wanted))
        .map(|entry| (entry.header.ifindex, entry.header.flags, entry.header.state))
        .collect()
}

#[test]
fn a_filter_is_added_and_removed_once_however_often_it_is_asked() {
    if !in_own_namespace("a_filter_is_added_and_removed_once_however_often_it_is_asked") {
        return;
    }
    run(|netlink| async move {
        let links = netlink.handle.link();
        links.add(LinkVeth::new("nic", "wire").build()).execute().await.unwrap();
        let index = netlink.link("nic").await.unwrap().index;
        for _ in 0..2 {
            netlink.filter_add("nic", SHARED).await.unwrap();
            assert_eq!(
                entries(&netlink, SHARED).await,
                [(index, NeighbourFlags::Own, NeighbourState::Permanent)]
            );
        }
        for _ in 0..2 {
            netlink.filter_remove("nic", SHARED).await.unwrap();
            assert_eq!(entries(&netlink, SHARED).await, []);
        }
    });
}

#[test]
fn a_bridge_is_pointed_to_one_port_then_another_then_learns_again() {
    if !in_own_namespace("a_bridge_is_pointed_to_one_port_then_another_then_learns_again") {
        return;
    }
    run(|netlink| async move {
        let links = netlink.handle.link();
        links.add(LinkBridge::new("br").up().build()).execute().await.unwrap();
        let bridge = netlink.link("br").await.unwrap().index;
        for (port, peer) in [("a", "a-peer"), ("b", "b-peer")] {
            links.add(LinkVeth::new(port, peer).build()).execute().await.unwrap();
            let index = netlink.link(port).await.unwrap().index;
            let change = LinkUnspec::new_with_index(index).controller(bridge).up().build();
            links.change(change).execute().await.unwrap();
        }
        let a = netlink.link("a").await.unwrap();
        let b = netlink.link("b").await.unwrap();
        assert_eq!((a.master, a.up), (Some(bridge), true));
        // The kernel tells a bridge's entries by an attribute and not by a flag.
        let pointed = |index| [(index, NeighbourFlags::Sticky, NeighbourState::Noarp)];
        netlink.bridge_point("a", SHARED).await.unwrap();
        assert_eq!(entries(&netlink, SHARED).await, pointed(a.index));
        for _ in 0..2 {
            netlink.bridge_point("b", SHARED).await.unwrap();
            assert_eq!(entries(&netlink, SHARED).await, pointed(b.index));
        }
        for itself in [false, false, true] {
            netlink.bridge_port("b", itself, !itself).await.unwrap();
        }
        // Another port's entry is not taken away.
        netlink.bridge_unpoint("a", SHARED).await.unwrap();
        assert_eq!(entries(&netlink, SHARED).await, pointed(b.index));
        for _ in 0..2 {
            netlink.bridge_unpoint("b", SHARED).await.unwrap();
            assert_eq!(entries(&netlink, SHARED).await, []);
        }
    });
}

#[test]
fn what_an_interface_has_carried_is_counted() {
    if !in_own_namespace("what_an_interface_has_carried_is_counted") {
        return;
    }
    run(|netlink| async move {
        let lo = index_of("lo").unwrap();
        netlink
            .handle
            .link()
            .set(LinkUnspec::new_with_index(lo).up().build())
            .execute()
            .await
            .unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let before = netlink.counters("lo").await.unwrap();
        for _ in 0..3 {
            socket.send_to(&[0; 100], socket.local_addr().unwrap()).unwrap();
        }
        let after = netlink.counters("lo").await.unwrap();
        assert_eq!(after.tx_packets - before.tx_packets, 3);
        assert_eq!(after.rx_bytes - before.rx_bytes, after.tx_bytes - before.tx_bytes);
        let error = netlink.counters("nosuch").await.unwrap_err();
        assert!(matches!(&error, NetlinkError::NoLink(found) if found == "nosuch"), "{error}");
    });
}

#[test]
fn what_is_not_there_is_named() {
    if !in_own_namespace("what_is_not_there_is_named") {
        return;
    }
    run(|netlink| async move {
        for name in ["nosuch", "a-name-longer-than-the-kernel-takes", ""] {
            let error = netlink.link(name).await.unwrap_err();
            assert!(matches!(&error, NetlinkError::NoLink(found) if found == name), "{error}");
        }
        let links = netlink.handle.link();
        links.add(LinkVeth::new("nic", "wire").build()).execute().await.unwrap();
        assert_eq!(netlink.vfs("nic").await.unwrap(), []);
        let error = netlink.set_vf("nic", 3, &[]).await.unwrap_err();
        assert_eq!(error.to_string(), "interface nic has no VF 3; see `ip link show nic`");
        // Only a bridge's port can be pointed to.
        let error = netlink.bridge_point("nic", SHARED).await.unwrap_err();
        assert!(matches!(error, NetlinkError::Refused { .. }), "{error}");
        assert!(error.to_string().starts_with("nic: pointing its bridge here for"), "{error}");
    });
}
