//! What links have counted.

use futures_util::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::Stats64;
use netlink_packet_route::stats::{StatsAttribute, StatsFilterMask, StatsMessage};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};

use super::{Netlink, NetlinkError, index_of};

/// Counters of a link or of a VF.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Received packets dropped.
    pub rx_dropped: u64,
    /// Packets to send that were dropped.
    pub tx_dropped: u64,
}

impl Netlink {
    /// An interface's counters, from the host's side: a TAP's rx is what the guest sent. Nothing else
    /// is asked for, which spares most of [`Self::link`]'s answer.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn counters(&self, name: &str) -> Result<Counters, NetlinkError> {
        let what = format!("{name}: asking for the counters");
        let mut message = StatsMessage::default();
        message.header.ifindex = index_of(name)?;
        message.header.filter_mask = StatsFilterMask::Link64;
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetStats(message));
        request.header.flags = NLM_F_REQUEST;
        let mut handle = self.handle.clone();
        let answer = async { Ok(handle.request(request)?.next().await) };
        let answer = self.within(&what, answer).await?.map(|message| message.payload);
        match answer {
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewStats(stats))) => {
                let found = stats.attributes.iter().find_map(|attribute| match attribute {
                    StatsAttribute::Link64(stats) => Some(Counters::from(stats)),
                    _ => None,
                });
                found.ok_or_else(|| NetlinkError::Protocol { what, found: "no counters".into() })
            }
            Some(NetlinkPayload::Error(error)) => {
                Err(NetlinkError::Refused { what, cause: error.to_io() })
            }
            other => Err(NetlinkError::Protocol { what, found: format!("{other:?}") }),
        }
    }
}

impl From<&Stats64> for Counters {
    fn from(stats: &Stats64) -> Self {
        Self {
            rx_packets: stats.rx_packets,
            tx_packets: stats.tx_packets,
            rx_bytes: stats.rx_bytes,
            tx_bytes: stats.tx_bytes,
            rx_dropped: stats.rx_dropped,
            tx_dropped: stats.tx_dropped,
        }
    }
}
