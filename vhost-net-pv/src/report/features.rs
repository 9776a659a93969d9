//! What a host offers, with the names that others give to it.

use std::fmt::Write;

use crate::logic::feature_names::{FEATURES, Feature, names};
use crate::logic::features::BACKEND_ONLY;

/// A line a feature, and how to pin what was chosen.
pub fn features_table(offered: u64, chosen: u64) -> String {
    let mut text = format!(
        "{:>3}  {:<18} {:<9} {:<19} {:<15} {}\n",
        "bit", "feature", "here", "QEMU", "virtio-user", "virtio, DPDK"
    );
    for feature in &FEATURES {
        let _ = writeln!(
            text,
            "{:>3}  {:<18} {:<9} {:<19} {:<15} {}",
            feature.bit,
            feature.name,
            word(feature, offered, chosen),
            feature.qemu().unwrap_or("-"),
            feature.virtio_user().unwrap_or("-"),
            feature.constant(),
        );
    }
    let _ = writeln!(text, "\nmask {chosen:#x}\n--features {}", pinned(chosen));
    text
}

/// One object.
pub fn features_json(offered: u64, chosen: u64) -> String {
    let mut text = format!(
        "{{\"mask\":\"{chosen:#x}\",\"pinned\":\"{}\",\"offered\":\"{offered:#x}\",\"features\":[",
        pinned(chosen)
    );
    for (index, feature) in FEATURES.iter().enumerate() {
        let separator = if index == 0 { "" } else { "," };
        let text_or_null =
            |text: Option<&str>| text.map_or("null".to_owned(), |text| format!("\"{text}\""));
        let _ = write!(
            text,
            "{separator}{{\"bit\":{},\"name\":\"{}\",\"can\":{},\"offered\":{},\"qemu\":{},\
             \"virtio_user\":{},\"constant\":\"{}\"}}",
            feature.bit,
            feature.name,
            feature.is_in(offered),
            feature.is_in(chosen),
            text_or_null(feature.qemu()),
            text_or_null(feature.virtio_user()),
            feature.constant(),
        );
    }
    text.push_str("]}\n");
    text
}

/// The set as `--features` takes it.
fn pinned(chosen: u64) -> String {
    names(chosen & !BACKEND_ONLY).replace(' ', "")
}

const fn word(feature: &Feature, offered: u64, chosen: u64) -> &'static str {
    match (feature.is_in(offered), feature.is_in(chosen)) {
        (_, true) => "offered",
        (true, false) => "left out",
        (false, false) => "cannot",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::feature_names::FeatureSet;
    use crate::logic::features::{DEFAULT_MASK, Offloads, offered};

    #[test]
    fn what_is_printed_pins_what_is_offered() {
        let here = offered(2, Offloads::ALL);
        let chosen = here & DEFAULT_MASK;
        let table = features_table(here, chosen);
        let set = table.lines().last().unwrap().strip_prefix("--features ").unwrap();
        assert_eq!(set.parse::<FeatureSet>().unwrap().resolve(here), Ok(chosen));
    }

    #[test]
    fn a_feature_is_offered_left_out_or_beyond_this_host() {
        let here = offered(1, Offloads::ALL);
        let table = features_table(here, here & DEFAULT_MASK);
        let line = |name: &str| {
            let line = table.lines().find(|line| line.contains(&format!(" {name} "))).unwrap();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            line("mrg_rxbuf"),
            "15 mrg_rxbuf offered mrg_rxbuf mrg_rxbuf=0|1 VIRTIO_NET_F_MRG_RXBUF"
        );
        assert_eq!(line("standby"), "62 standby left out failover=on - VIRTIO_NET_F_STANDBY");
        assert_eq!(line("mq"), "22 mq cannot mq queues=N VIRTIO_NET_F_MQ");
    }

    #[test]
    fn the_json_says_the_same() {
        let here = offered(1, Offloads::ALL);
        let json = features_json(here, here & DEFAULT_MASK);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        let features = value["features"].as_array().unwrap();
        assert_eq!(features.len(), FEATURES.len());
        let standby = features.iter().find(|feature| feature["name"] == "standby").unwrap();
        assert_eq!((&standby["can"], &standby["offered"]), (&true.into(), &false.into()));
    }
}
