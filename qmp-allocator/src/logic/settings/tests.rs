use super::*;
use proptest::prelude::*;

const OWN: MacAddr = MacAddr::new([2, 0xf1, 0, 0, 0, 1]);

/// A driver that has all settings and, as real ones do, takes no least rate above the greatest.
fn set(settings: &mut VfSettings, setting: Setting) -> Result<(), Setting> {
    let mut next = settings.clone();
    setting.put_into(&mut next);
    let (least, most) = (next.min_tx_rate_mbps.unwrap_or(0), next.max_tx_rate_mbps.unwrap_or(0));
    if most != 0 && least > most {
        return Err(setting);
    }
    *settings = next;
    Ok(())
}

fn play(settings: &mut VfSettings, wishes: &[Wish]) -> Result<(), Setting> {
    steps(wishes, settings).iter().try_for_each(|wish| set(settings, wish.setting))
}

prop_compose! {
    fn settings()(
        mac in any::<[u8; 6]>(),
        vlan in 0u16..4095,
        qos in 0u8..8,
        flags in any::<(bool, bool)>(),
        link in 0usize..3,
        rates in (0u32..50, 0u32..50),
    ) -> VfSettings {
        let (least, most) = rates;
        VfSettings {
            mac: Some(MacAddr::new(mac)),
            vlan: Some(vlan),
            qos: Some(qos),
            spoof_check: Some(flags.0),
            trust: Some(flags.1),
            link_state: Some([VfLink::Auto, VfLink::Enable, VfLink::Disable][link]),
            min_tx_rate_mbps: Some(if most == 0 { least } else { least.min(most) }),
            max_tx_rate_mbps: Some(most),
        }
    }
}

const KINDS: [Kind; 7] = [
    Kind::Trust,
    Kind::Mac,
    Kind::Vlan,
    Kind::SpoofCheck,
    Kind::LinkState,
    Kind::MinTxRateMbps,
    Kind::MaxTxRateMbps,
];

fn wishes(wished: &VfSettings, kinds: &[Kind]) -> Vec<Wish> {
    kinds.iter().filter_map(|kind| Setting::of(*kind, wished)).map(Wish::required).collect()
}

proptest! {
    /// Over any number of holders, and with the record read back from disk in between.
    #[test]
    fn a_vf_is_put_back_as_it_was_found(
        found in settings(),
        holders in prop::collection::vec((settings(), prop::sample::subsequence(&KINDS[..], 0..=7)), 1..4),
    ) {
        let mut vf = found.clone();
        let mut original = Original::default();
        for (wished, mut kinds) in holders {
            // One rate alone may contradict what is there, and then the driver refuses it.
            if kinds.contains(&Kind::MinTxRateMbps) != kinds.contains(&Kind::MaxTxRateMbps) {
                kinds.retain(|kind| !matches!(kind, Kind::MinTxRateMbps | Kind::MaxTxRateMbps));
            }
            let wishes = wishes(&wished, &kinds);
            original.note(&wishes, &vf);
            prop_assert_eq!(play(&mut vf, &wishes), Ok(()));
            prop_assert_eq!(steps(&wishes, &vf), []);
            let text = serde_json::to_string(&original).unwrap();
            original = serde_json::from_str(&text).unwrap();
        }
        prop_assert_eq!(play(&mut vf, &original.undo()), Ok(()));
        prop_assert_eq!(vf, found);
    }
}

#[test]
fn only_what_differs_is_set_and_trust_comes_first() {
    let found = VfSettings {
        mac: Some(MacAddr::new([0; 6])),
        vlan: Some(7),
        qos: Some(3),
        spoof_check: Some(true),
        trust: Some(false),
        ..VfSettings::default()
    };
    let wishes = [
        Setting::Vlan(7, 3),
        Setting::LinkState(VfLink::Enable),
        Setting::Mac(OWN),
        Setting::SpoofCheck(false),
        Setting::Trust(true),
    ]
    .map(Wish::required);
    let told: Vec<_> = steps(&wishes, &found).iter().map(|w| w.setting.to_string()).collect();
    assert_eq!(
        told,
        ["trust on", "MAC address 02:f1:00:00:00:01", "spoof check off", "link state enable"]
    );
}

#[test]
fn what_the_driver_does_not_tell_is_not_put_back() {
    let wishes = [Wish::required(Setting::LinkState(VfLink::Enable))];
    let mut original = Original::default();
    assert!(original.is_untouched());
    original.note(&wishes, &VfSettings::default());
    assert_eq!((original.undo(), original.is_untouched()), (Vec::new(), false));
}

#[test]
fn an_address_that_the_driver_does_not_take_back_is_no_obstacle() {
    let mut original = Original::default();
    let found =
        VfSettings { mac: Some(MacAddr::new([0; 6])), trust: Some(false), ..VfSettings::default() };
    let wishes = [Setting::Mac(OWN), Setting::Trust(true)].map(Wish::required);
    original.note(&wishes, &found);
    let required: Vec<_> = original.undo().iter().map(|wish| wish.required).collect();
    assert_eq!(required, [true, false]);
}
