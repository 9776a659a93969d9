//! PCI addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A PCI function's address as Linux writes it: `domain:bus:device.function`, `0000:01:10.0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PciAddress {
    domain: u16,
    bus: u8,
    device: u8,
    function: u8,
}

/// Why a text is no PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a PCI address; write domain:bus:device.function such as 0000:01:10.0")]
pub struct ParsePciAddressError(String);

impl PciAddress {
    /// The bus number within the domain.
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// Bus, device and function as one number: functions of a domain are counted by it.
    pub const fn routing_id(self) -> u16 {
        (self.bus as u16) << 8 | (self.device as u16) << 3 | self.function as u16
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    fn from_str(text: &str) -> Result<Self, ParsePciAddressError> {
        parse(text).ok_or_else(|| ParsePciAddressError(text.chars().take(32).collect()))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let number = |digits: &str, width: usize| {
        let hex = digits.len() == width && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
    };
    let address = PciAddress {
        domain: number(domain, 4)?,
        bus: number(bus, 2)?.try_into().ok()?,
        device: number(device, 2)?.try_into().ok()?,
        function: number(function, 1)?.try_into().ok()?,
    };
    (address.device < 32 && address.function < 8).then_some(address)
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for PciAddress {
    type Error = ParsePciAddressError;

    fn try_from(text: String) -> Result<Self, ParsePciAddressError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn short_and_impossible_addresses_are_refused() {
        for text in ["01:10.0", "0000:01:10", "0000:01:20.0", "0000:01:10.8", "0000:1:10.0", ""] {
            assert!(text.parse::<PciAddress>().is_err(), "{text:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn every_address_reads_back_as_written(domain: u16, bus: u8, device in 0u8..32, function in 0u8..8) {
            let address = PciAddress { domain, bus, device, function };
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<PciAddress>();
        }
    }
}
