//! A VM's registration file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use flexvf_protocol::{MacAddr, VmName};
use serde::Deserialize;
use toml::Spanned;

use super::text::Text;
use super::vf::{RawVf, Requirable};
use super::{ConfigError, VfOptions};
pub use crate::logic::policy::Pin;
use crate::logic::policy::Words;
use crate::logic::policy::tenant::{TenantName, Tenants};
use crate::logic::settings::VfLink;

/// A VM as its file registers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// The file's name without `.toml`.
    pub name: VmName,
    /// The file.
    pub file: PathBuf,
    /// `qmp = "/PATH"`: QEMU's QMP socket, for FlexVF alone.
    pub qmp: PathBuf,
    /// `agent = "/PATH"`: socket of the agent's port.
    pub agent: Option<PathBuf>,
    /// `stats = "/PATH"`: stats page of the PV NIC's backend.
    pub stats: Option<PathBuf>,
    /// `mac = "52:54:…"`: the MAC address that the guest is known by.
    pub mac: MacAddr,
    /// `pv_interface = "tap0"`: host interface of the PV NIC.
    pub pv_interface: Option<String>,
    /// `ports = ["rp1"]`: ids of QEMU's root ports that VFs may be plugged into; at least one.
    pub ports: Vec<String>,
    /// `pool = "default"`: which pool its VFs come from.
    pub pool: String,
    /// `weight = 1`: share of VF time or rate against other VMs, 1 to 1000; `priority = 0`: higher ones go
    /// before lower ones, 0 to 100; `min_percent = 0`: a VF in at least so many of the rounds in which it
    /// wants one, 0 to 100; `pin = "vf"` or `"pv"`: always on one path; `tenant = "NAME"`: whose it is.
    pub words: Words,
    /// `failover = "pv"`: QEMU's id of the PV NIC, a virtio-net device with `failover=on`. The guest's own
    /// net_failover takes the VF then, which has the PV NIC's address; there is no bond, and no agent is
    /// needed.
    pub failover: Option<String>,
    /// `numa_node = 1`: the node that it runs on, whose VFs suit it best. Without it, the one that
    /// QEMU's memory is bound to.
    pub numa_node: Option<u32>,
    /// How its VF is set; goes before its pool's settings, one by one.
    pub settings: VfOptions,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    qmp: Spanned<PathBuf>,
    agent: Option<Spanned<PathBuf>>,
    stats: Option<Spanned<PathBuf>>,
    mac: Spanned<MacAddr>,
    pv_interface: Option<Spanned<String>>,
    ports: Spanned<Vec<Spanned<String>>>,
    pool: Option<String>,
    weight: Option<Spanned<u32>>,
    priority: Option<Spanned<u8>>,
    min_percent: Option<Spanned<u8>>,
    tenant: Option<Spanned<TenantName>>,
    pin: Option<Pin>,
    failover: Option<Spanned<String>>,
    numa_node: Option<u32>,
    vlan: Option<Spanned<u16>>,
    qos: Option<Spanned<u8>>,
    spoof_check: Option<bool>,
    link_state: Option<VfLink>,
    min_tx_rate_mbps: Option<Spanned<u32>>,
    max_tx_rate_mbps: Option<u32>,
    required: Option<Vec<Requirable>>,
}

impl VmConfig {
    /// Reads and checks a registration file.
    ///
    /// # Errors
    /// [`ConfigError`] names the line and what to do.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = stem.parse().map_err(|_| ConfigError {
            file: path.into(),
            line: None,
            what: format!("{stem:?} is not a VM name"),
            remedy: "name the file by 1 to 64 letters, digits, '.', '_' or '-', then .toml".into(),
        })?;
        let text = Text::read(path)?;
        let raw: Raw = text.parse()?;
        if !raw.mac.get_ref().is_unicast() {
            let what = format!("{} is no interface's MAC address", raw.mac.get_ref());
            let remedy = "give the MAC address of the guest's PV NIC";
            return Err(text.refuse(&raw.mac, what, remedy));
        }
        let socket = |path: &Option<_>| path.as_ref().map(|p| text.socket(p)).transpose();
        let stats = raw.stats.as_ref().map(|p| text.path(p)).transpose()?;
        let pv_interface = raw.pv_interface.as_ref().map(|name| text.interface(name));
        let settings = RawVf {
            vlan: raw.vlan.as_ref(),
            qos: raw.qos.as_ref(),
            spoof_check: raw.spoof_check,
            link_state: raw.link_state,
            min_tx_rate_mbps: raw.min_tx_rate_mbps.as_ref(),
            max_tx_rate_mbps: raw.max_tx_rate_mbps,
            required: raw.required.as_ref(),
        };
        Ok(Self {
            name,
            file: path.into(),
            settings: VfOptions::of(&text, &settings)?,
            qmp: text.socket(&raw.qmp)?,
            agent: socket(&raw.agent)?,
            stats,
            mac: *raw.mac.get_ref(),
            pv_interface: pv_interface.transpose()?,
            ports: ports(&text, &raw.ports)?,
            pool: raw.pool.unwrap_or_else(|| "default".into()),
            words: Words {
                pin: raw.pin,
                weight: weight(&text, raw.weight.as_ref())?,
                priority: to_hundred(&text, raw.priority.as_ref(), "priority")?,
                min_percent: to_hundred(&text, raw.min_percent.as_ref(), "min_percent")?,
                tenant: raw.tenant.map(Spanned::into_inner),
            },
            failover: raw.failover.as_ref().map(|id| failover(&text, id)).transpose()?,
            numa_node: raw.numa_node,
        })
    }
}

impl VmConfig {
    /// The same, if its tenant is one of these and of its pool.
    ///
    /// # Errors
    /// [`ConfigError`] says what to do.
    pub fn of_known_tenant(self, tenants: &Tenants) -> Result<Self, ConfigError> {
        let Some(name) = &self.words.tenant else { return Ok(self) };
        let refuse = |what: String, remedy: &str| {
            let (file, remedy) = (self.file.clone(), remedy.to_owned());
            Err(ConfigError { file, line: None, what, remedy })
        };
        match tenants.get(name) {
            None => {
                let what = format!("tenant {name} is not in the daemon's configuration");
                refuse(what, "correct `tenant`, or add a section [tenant.NAME] there")
            }
            Some(tenant) if tenant.pool != self.pool => {
                let what = format!(
                    "tenant {name} is of pool {:?}, the VM of {:?}",
                    tenant.pool, self.pool
                );
                refuse(what, "make them the same, or make a tenant for each pool")
            }
            Some(_) => Ok(self),
        }
    }
}

fn ports(text: &Text, ports: &Spanned<Vec<Spanned<String>>>) -> Result<Vec<String>, ConfigError> {
    let remedy = "list the ids of the VM's empty pcie-root-port devices";
    let mut seen = BTreeSet::new();
    for port in ports.get_ref() {
        let id = port.get_ref();
        if !is_qemu_id(id) {
            return Err(text.refuse(port, format!("{id:?} is no id of QEMU's"), remedy));
        }
        if !seen.insert(id) {
            return Err(text.refuse(port, format!("port {id} is listed twice"), remedy));
        }
    }
    if seen.is_empty() {
        return Err(text.refuse(ports, "no root port for a VF", remedy));
    }
    if seen.len() > MAX_PORTS {
        let what = format!("more than {MAX_PORTS} root ports");
        return Err(text.refuse(ports, what, "list fewer"));
    }
    // In the order of the file: the first empty one is taken.
    Ok(ports.get_ref().iter().map(|p| p.get_ref().clone()).collect())
}

fn failover(text: &Text, id: &Spanned<String>) -> Result<String, ConfigError> {
    if is_qemu_id(id.get_ref()) {
        return Ok(id.get_ref().clone());
    }
    let what = format!("{:?} is no id of QEMU's", id.get_ref());
    Err(text.refuse(id, what, "give the id of the virtio-net device that has failover=on"))
}

pub(super) fn weight(text: &Text, weight: Option<&Spanned<u32>>) -> Result<u32, ConfigError> {
    match weight {
        None => Ok(1),
        Some(weight) if WEIGHTS.contains(weight.get_ref()) => Ok(*weight.get_ref()),
        Some(weight) => {
            let what = format!("weight {}", weight.get_ref());
            let (least, most) = WEIGHTS.into_inner();
            Err(text.refuse(weight, what, format!("give {least} to {most}")))
        }
    }
}

/// 0 where it is not said.
fn to_hundred(text: &Text, found: Option<&Spanned<u8>>, key: &str) -> Result<u8, ConfigError> {
    match found {
        None => Ok(0),
        Some(value) if *value.get_ref() <= 100 => Ok(*value.get_ref()),
        Some(value) => {
            Err(text.refuse(value, format!("{key} {}", value.get_ref()), "give 0 to 100"))
        }
    }
}

/// QEMU's rule for ids: a letter, then letters, digits, '-', '.', '_'.
fn is_qemu_id(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.len() <= MAX_ID_BYTES
        && text.chars().all(allowed)
}

/// Shares further apart than this starve a VM.
const WEIGHTS: std::ops::RangeInclusive<u32> = 1..=1000;
/// A q35's root bus has 32 slots of up to 8 ports each.
const MAX_PORTS: usize = 256;
const MAX_ID_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "qmp = \"/run/web/qmp\"\nmac = \"52:54:00:12:34:56\"\nports = [\"rp1\"]\n";

    fn load(name: &str, text: &str) -> Result<VmConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let folder = format!("{}/", dir.path().display());
        VmConfig::load(&path).map_err(|error| error.to_string().replace(&folder, ""))
    }

    #[test]
    fn three_keys_register_a_vm() {
        let vm = load("web-1.toml", GOOD).unwrap();
        assert_eq!(vm.name.as_str(), "web-1");
        assert_eq!((vm.pool.as_str(), vm.words.weight, vm.words.pin), ("default", 1, None));
        assert_eq!(vm.ports, ["rp1"]);
        let vm = load("web-1.toml", &format!("{GOOD}priority = 5\nmin_percent = 20\n")).unwrap();
        assert_eq!((vm.words.priority, vm.words.min_percent), (5, 20));
    }

    #[test]
    fn a_vm_may_have_settings_of_its_own() {
        let keys = "vlan = 7\nqos = 3\nspoof_check = true\nlink_state = \"enable\"\nmin_tx_rate_mbps = 10\nmax_tx_rate_mbps = 100\nrequired = [\"max_tx_rate_mbps\"]\n";
        let settings = load("web.toml", &format!("{GOOD}{keys}")).unwrap().settings;
        assert_eq!((settings.vlan, settings.qos), (Some(7), Some(3)));
        assert_eq!(settings.wishes().iter().filter(|wish| wish.required).count(), 1);
        assert_eq!(settings.wishes().len(), 5);
        for (key, error) in [
            ("qos = 8", "web.toml:4: priority 8; give 0 to 7"),
            (
                "max_tx_rate_mbps = 5\nmin_tx_rate_mbps = 6",
                "web.toml:5: a least send rate of 6 above the greatest, 5; give no more than max_tx_rate_mbps",
            ),
            (
                "required = [\"mac\"]",
                "web.toml:4: unknown variant `mac`, expected one of `vlan`, `spoof_check`, `link_state`, `min_tx_rate_mbps`, `max_tx_rate_mbps`; correct this line",
            ),
        ] {
            assert_eq!(load("web.toml", &format!("{GOOD}{key}\n")).unwrap_err(), error);
        }
    }

    #[test]
    fn a_failover_device_is_named_by_its_id() {
        let vm = load("web.toml", &format!("{GOOD}failover = \"pv\"\n")).unwrap();
        assert_eq!(vm.failover.as_deref(), Some("pv"));
        let error = load("web.toml", &format!("{GOOD}failover = \"a b\"\n")).unwrap_err();
        assert!(error.starts_with("web.toml:4: \"a b\" is no id"), "{error}");
    }

    #[test]
    fn ports_keep_the_order_of_the_file() {
        let text = GOOD.replace("[\"rp1\"]", "[\"z\", \"a\", \"m\"]");
        assert_eq!(load("web.toml", &text).unwrap().ports, ["z", "a", "m"]);
    }

    #[test]
    fn each_error_is_one_line_with_file_line_and_remedy() {
        let replaced = |from, to| GOOD.replace(from, to);
        for (text, error) in [
            (
                replaced("52:54:00:12:34:56", "52:54:00"),
                "web.toml:2: \"52:54:00\" is not a MAC address; write six hexadecimal octets such as 52:54:00:12:34:56",
            ),
            (
                replaced("52:54", "53:54"),
                "web.toml:2: 53:54:00:12:34:56 is no interface's MAC address; give the MAC address of the guest's PV NIC",
            ),
            (
                replaced("[\"rp1\"]", "[]"),
                "web.toml:3: no root port for a VF; list the ids of the VM's empty pcie-root-port devices",
            ),
            (
                replaced("rp1", "1 rp"),
                "web.toml:3: \"1 rp\" is no id of QEMU's; list the ids of the VM's empty pcie-root-port devices",
            ),
            (
                replaced("/run/web/qmp", "qmp.sock"),
                "web.toml:1: \"qmp.sock\" is a relative path; give it in full, from / on",
            ),
            (format!("{GOOD}weight = 0\n"), "web.toml:4: weight 0; give 1 to 1000"),
            (format!("{GOOD}priority = 101\n"), "web.toml:4: priority 101; give 0 to 100"),
            (format!("{GOOD}min_percent = 101\n"), "web.toml:4: min_percent 101; give 0 to 100"),
            (
                format!("{GOOD}pv_interface = \"a/b\"\n"),
                "web.toml:4: \"a/b\" is no interface name; give 1 to 15 letters, digits, '.', '_' or '-', as `ip link` shows it",
            ),
            (
                format!("{GOOD}pin = \"both\"\n"),
                "web.toml:4: unknown variant `both`, expected `vf` or `pv`; correct this line",
            ),
            (
                replaced("mac = \"52:54:00:12:34:56\"\n", ""),
                "web.toml:1: missing field `mac`; add the key",
            ),
            (
                "qmp = \n".into(),
                "web.toml:1: string values must be quoted, expected literal string; correct this line",
            ),
        ] {
            assert_eq!(load("web.toml", &text).unwrap_err(), error);
        }
    }

    #[test]
    fn an_unknown_key_is_refused_by_its_line() {
        let error = load("web.toml", &format!("{GOOD}\nwieght = 2\n")).unwrap_err();
        assert!(error.starts_with("web.toml:5: unknown field `wieght`"), "{error}");
        assert!(error.ends_with("; correct or remove the key"), "{error}");
    }

    #[test]
    fn a_file_name_that_is_no_vm_name_is_refused() {
        let error = load("a b.toml", GOOD).unwrap_err();
        assert!(error.starts_with("a b.toml: \"a b\" is not a VM name; "), "{error}");
    }

    #[test]
    fn an_endless_file_is_not_read_to_its_end() {
        let error = load("web.toml", &"#".repeat(1 << 20)).unwrap_err();
        assert_eq!(error, "web.toml: more than 64 KiB; shorten it");
    }
}
