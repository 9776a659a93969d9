//! What is encoded reads back; what is cut or garbled breaks nothing.

use proptest::prelude::*;

use super::decode::{Decoder, Item};
use super::encode::Encoder;
use super::gather::{Cut, Gathered, Gatherer};
use super::*;
use crate::logic::decision::tests::decision;
use crate::logic::policy::tenant::Tenants;
use crate::logic::policy::{Candidate, Pin, Rules, Strategy, rank};
use crate::logic::rate::{Count, RateMeter, Trust};
use crate::logic::simulate::Demand;
use crate::logic::simulate::play::{Host, as_decided, play as replay};

fn name(text: &str) -> VmName {
    text.parse().unwrap()
}

fn member() -> Member {
    Member { pool: "default".into(), words: Words::default() }
}

pub(crate) fn head(began_at_ms: u64) -> Head {
    Head {
        boot_id: "a".into(),
        booted_at_ms: 1_700_000_000_000,
        began_at_ms,
        interval: Duration::from_secs(10),
        strategy: Strategy::Activity,
        tuning: Tuning::default(),
        tenants: Tenants::default(),
    }
}

fn host(epoch: u64, packets: u64) -> Option<Count> {
    Some(Count { epoch, packets, trust: Trust::Host })
}

fn sample(vm: &str, ms: u64, pv: Option<Count>, vf: Option<Count>) -> Entry {
    Entry::Sample(name(vm), Sample { at: Duration::from_millis(ms), pv, vf })
}

fn encoded(entries: &[Entry]) -> Vec<u8> {
    let (mut encoder, mut bytes) = (Encoder::default(), Vec::new());
    encoder.begin(&head(0));
    entries.iter().for_each(|entry| encoder.add(entry, &mut bytes));
    bytes
}

/// As entries again, with names for numbers.
fn decoded(bytes: &[u8]) -> Vec<Entry> {
    let mut names: Vec<VmName> = Vec::new();
    let mut entries = Vec::new();
    let take = |item| {
        entries.push(match item {
            Item::Vm(number, vm, member) => {
                names.resize(names.len().max(number + 1), vm.clone());
                names[number] = vm.clone();
                Entry::Vm(vm, member)
            }
            Item::Gone(number) => Entry::Gone(names[number].clone()),
            Item::Sample(number, sample) => Entry::Sample(names[number].clone(), sample),
            Item::Decision(decision) => Entry::Decision(decision),
            Item::Memory(pool, memory) => Entry::Memory(pool, memory),
        });
    };
    Decoder::default().read(bytes, take).unwrap();
    entries
}

fn a_few() -> Vec<Entry> {
    vec![
        Entry::Vm(name("web"), member()),
        Entry::Vm(
            name("db"),
            Member {
                words: Words {
                    pin: Some(Pin::Vf),
                    weight: 3,
                    priority: 2,
                    min_percent: 10,
                    tenant: None,
                },
                ..member()
            },
        ),
        sample("web", 1_000, host(7, 100), None),
        sample("db", 1_001, None, Some(Count { epoch: u64::MAX, packets: 5, trust: Trust::Guest })),
        sample("web", 2_000, host(7, 400), host(1, 0)),
        sample("db", 1_999, None, Some(Count { epoch: u64::MAX, packets: 9, trust: Trust::Guest })),
        Entry::Decision(decision(&[("db", 4.0, true), ("web", 300.0, false)], 1)),
        Entry::Gone(name("db")),
        sample("web", 3_000, host(7, 3), host(2, u64::MAX)),
    ]
}

#[test]
fn what_is_written_reads_back() {
    assert_eq!(decoded(&encoded(&a_few())), a_few());
}

#[test]
fn a_sample_of_a_steady_vm_takes_eight_bytes() {
    let at = |second: u64| sample("web", second * 1000, host(7, second * 100_000), None);
    let first = encoded(&[Entry::Vm(name("web"), member()), at(1)]).len();
    let both = encoded(&[Entry::Vm(name("web"), member()), at(1), at(2)]).len();
    assert!(both - first <= 8, "{}", both - first);
}

#[test]
fn a_registration_that_is_told_again_takes_no_room() {
    let once = [Entry::Vm(name("web"), member())];
    let twice = [once.clone(), once.clone()].concat();
    assert_eq!(encoded(&twice), encoded(&once));
    let changed = Entry::Vm(
        name("web"),
        Member { words: Words { weight: 2, ..Words::default() }, ..member() },
    );
    let gone = [once[0].clone(), Entry::Gone(name("web")), once[0].clone(), changed];
    assert_eq!(decoded(&encoded(&gone)), gone);
}

#[test]
fn another_file_names_the_registered_vms_anew() {
    let (mut encoder, mut bytes) = (Encoder::default(), Vec::new());
    a_few().iter().for_each(|entry| encoder.add(entry, &mut bytes));
    bytes.clear();
    encoder.begin(&head(0));
    let web = sample("web", 4_000, host(7, 9), None);
    encoder.add(&sample("db", 4_000, host(7, 9), None), &mut bytes);
    encoder.add(&web, &mut bytes);
    assert_eq!(decoded(&bytes), [Entry::Vm(name("web"), member()), web]);
}

proptest! {
    #[test]
    fn any_samples_read_back(
        samples in proptest::collection::vec(
            (0..3usize, any::<u32>(), proptest::option::of((0..3u64, any::<u64>())), proptest::option::of((0..3u64, any::<u64>(), any::<bool>()))),
            0..40,
        )
    ) {
        let names = ["a", "b", "c"];
        let mut entries: Vec<Entry> = names.iter().map(|vm| Entry::Vm(name(vm), member())).collect();
        for (vm, ms, pv, vf) in samples {
            let pv = pv.and_then(|(epoch, packets)| host(epoch, packets));
            let vf = vf.map(|(epoch, packets, guest)| {
                Count { epoch, packets, trust: if guest { Trust::Guest } else { Trust::Host } }
            });
            entries.push(sample(names[vm], ms.into(), pv, vf));
        }
        prop_assert_eq!(decoded(&encoded(&entries)), entries);
    }

    #[test]
    fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut gatherer = Gatherer::new(CUT);
        gatherer.begin(head(0));
        let _ = Decoder::default().read(&bytes, |item| gatherer.take(item));
        gatherer.finish();
    }

    #[test]
    fn a_garbled_block_is_an_error_or_something_else_but_never_a_panic(
        at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<prop::sample::Index>()
    ) {
        let mut bytes = encoded(&a_few());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        bytes.truncate(cut.index(bytes.len() + 1));
        let mut gatherer = Gatherer::new(CUT);
        gatherer.begin(head(0));
        let _ = Decoder::default().read(&bytes, |item| gatherer.take(item));
        gatherer.finish();
    }
}

#[test]
fn what_is_cut_off_or_out_of_turn_is_told() {
    let error = |bytes: &[u8]| Decoder::default().read(bytes, drop).unwrap_err().to_string();
    let whole = encoded(&a_few());
    assert_eq!(
        error(&whole[..whole.len() - 1]).split(" at ").next(),
        Some("an entry that is cut off")
    );
    assert_eq!(error(&[9]), "an unknown kind of entry at byte 0 of the block");
    assert_eq!(error(&[0x81, 0]), "a VM that was not named at byte 0 of the block");
    assert_eq!(error(&[1, 1, 1, b'a', 0]), "a registration that is none at byte 0 of the block");
    let mut bytes = encoded(&[Entry::Vm(name("a"), member())]);
    let at = bytes.len();
    bytes.extend([0x81, 0, 0, 1]);
    assert_eq!(
        error(&bytes),
        format!("a count that goes on from nothing at byte {at} of the block")
    );
}

const CUT: Cut =
    Cut { interval: None, rate_time_constant: Duration::ZERO, vfs: None, link_mbps: 10_000 };

/// Two VMs on one VF, a sample a second; they change places every ten seconds, where a daemon decides.
fn play(gatherer: &mut Gatherer, seconds: std::ops::Range<u64>) {
    let (mut entries, mut sent) = (Vec::new(), [0, 0]);
    for vm in ["a", "b"] {
        entries.push(Entry::Vm(name(vm), member()));
    }
    for second in seconds {
        let busy = (second / 10 % 2) as usize;
        for (index, vm) in ["a", "b"].into_iter().enumerate() {
            entries.push(sample(vm, second * 1000 + index as u64, host(1, sent[index]), None));
            sent[index] += if index == busy { 1000 } else { 10 };
        }
        if second % 10 == 9 {
            let rates = [[1000.0, 10.0], [10.0, 1000.0]][busy];
            let told = decision(&[("a", rates[0], busy == 1), ("b", rates[1], busy == 0)], 1);
            entries.push(Entry::Decision(told));
        }
    }
    Decoder::default().read(&encoded(&entries), |item| gatherer.take(item)).unwrap();
}

fn gathered(cut: Cut, plays: &[(u64, std::ops::Range<u64>)]) -> Gathered {
    let mut gatherer = Gatherer::new(cut);
    for (began_at_ms, seconds) in plays {
        gatherer.begin(head(*began_at_ms));
        play(&mut gatherer, seconds.clone());
    }
    let [gathered] = gatherer.finish().try_into().unwrap();
    gathered
}

#[test]
fn intervals_end_where_the_daemon_decided_and_the_first_one_is_left_out() {
    let Gathered { pool, demand, interval } = gathered(CUT, &[(0, 0..40)]);
    assert_eq!(
        (pool.as_str(), interval, demand.vms.len()),
        ("default", Duration::from_secs(10), 2)
    );
    assert_eq!(demand.intervals.len(), 3);
    let chosen: Vec<_> = demand.intervals.iter().map(|it| it.chosen.clone().unwrap()).collect();
    assert_eq!(chosen, [[1], [0], [1]]);
    let first = &demand.intervals[0];
    assert_eq!((first.vfs, first.sent_pps.len()), (1, 2));
    // The second that the first sample of an interval ends was spent before the change.
    assert!((first.sent_pps[1] - 901.0).abs() < 1.0, "{first:?}");
    assert_eq!(first.seen_pps, [Some(first.sent_pps[0]), Some(first.sent_pps[1])]);
}

#[test]
fn while_no_daemon_ran_nothing_is_counted() {
    let demand = gathered(CUT, &[(0, 0..40), (500_000, 515..540)]).demand;
    // Of the second daemon only what lies between two decisions of its own.
    assert_eq!(demand.intervals.len(), 3 + 2);
    assert!(demand.intervals.iter().all(|it| it.sent_pps.iter().all(|pps| *pps < 1001.0)));
    // A file that goes on is no other daemon.
    let demand = gathered(CUT, &[(0, 0..20), (0, 20..40)]).demand;
    assert_eq!(demand.intervals.len(), 3);
}

#[test]
fn another_interval_and_other_vfs_can_be_asked_for() {
    let cut = Cut { interval: Some(Duration::from_secs(5)), vfs: Some(2), ..CUT };
    let Gathered { demand, interval, .. } = gathered(cut, &[(0, 0..41)]);
    assert_eq!((interval, demand.intervals.len()), (Duration::from_secs(5), 8));
    assert!(demand.intervals.iter().all(|it| it.vfs == 2 && it.chosen.is_none()));
}

#[test]
fn who_could_not_have_had_a_vf_is_not_asked_about() {
    let mut gatherer = Gatherer::new(CUT);
    gatherer.begin(head(0));
    let mut entries = vec![
        Entry::Vm(name("a"), member()),
        Entry::Vm(
            name("b"),
            Member { words: Words { pin: Some(Pin::Pv), ..Words::default() }, ..member() },
        ),
        Entry::Vm(name("stock"), member()),
    ];
    for second in 0..30 {
        for vm in ["a", "b", "stock"] {
            entries.push(sample(vm, second * 1000, host(1, second * 5), None));
        }
        if second % 10 == 9 {
            entries.push(Entry::Decision(decision(&[("a", 5.0, true)], 1)));
        }
    }
    Decoder::default().read(&encoded(&entries), |item| gatherer.take(item)).unwrap();
    let [gathered] = gatherer.finish().try_into().unwrap();
    for interval in gathered.demand.intervals {
        assert_eq!(interval.seen_pps, [Some(5.0), None, None]);
    }
}

#[test]
fn rates_are_those_that_the_daemon_went_by() {
    let constant = Duration::from_secs(20);
    let cut = Cut { rate_time_constant: constant, ..CUT };
    let mut mean = RateMeter::new(cut.link_mbps);
    let mut average = RateMeter::new(cut.link_mbps).with_time_constant(constant);
    let (mut entries, mut wanted) = (vec![Entry::Vm(name("a"), member())], Vec::new());
    let mut packets = 0;
    for step in 1..400u64 {
        // Uneven in time and number, with a reset, samples that failed, and a VF now and then.
        packets = if step == 150 { 0 } else { packets + step * 7919 % 1000 };
        let at = Duration::from_micros(step * 250_000 + step * 7_919 % 1_000);
        let pv = host(1, packets).filter(|_| step % 13 != 0);
        let vf = host(2 + step / 100, step * 31).filter(|_| step % 100 > 50);
        let sample = Sample { at, pv, vf };
        mean.on_sample(sample);
        average.on_sample(sample);
        entries.push(Entry::Sample(name("a"), sample));
        if step % 40 == 0 {
            entries.push(Entry::Decision(decision(&[("a", 0.0, false)], 1)));
            let of = |meter: &mut RateMeter| meter.end_interval().unwrap().pps;
            wanted.push((of(&mut mean), Some(of(&mut average))));
        }
    }
    let mut gatherer = Gatherer::new(cut);
    gatherer.begin(head(0));
    Decoder::default().read(&encoded(&entries), |item| gatherer.take(item)).unwrap();
    let [gathered] = gatherer.finish().try_into().unwrap();
    let intervals = gathered.demand.intervals.iter();
    let found: Vec<_> = intervals.map(|it| (it.sent_pps[0], it.seen_pps[0])).collect();
    assert_eq!(found, wanted[1..]);
}

/// A daemon that decides on three VMs, the rates of whom change, every ten seconds; and the files of its recorder.
fn daemon_of(strategy: Strategy, rounds: u64, file_every: u64) -> Vec<Vec<u8>> {
    let rules = Rules {
        strategy,
        tuning: Tuning { max_wait: Duration::from_secs(20), ..Tuning::default() },
        interval: Duration::from_secs(10),
        tenants: Tenants::default(),
    };
    let (mut memory, mut encoder, mut files) = (Memory::default(), Encoder::default(), Vec::new());
    let mut counts = [0; 3];
    let vms = ["a", "b", "c"];
    let words = |weight| Words { weight, ..Words::default() };
    for round in 0..rounds {
        if round % file_every == 0 {
            encoder.begin(&Head { strategy, ..head(0) });
            let mut file = Vec::new();
            encoder.resume(&mut file);
            files.push(file);
        }
        let mut entries: Vec<Entry> = Vec::new();
        for (vm, weight) in vms.iter().zip([1, 2, 4]) {
            entries.push(Entry::Vm(name(vm), Member { words: words(weight), ..member() }));
        }
        let rate = |vm: usize| (7 * (vm as u64 + 1) * (round + 3)) % 31 + 1;
        for second in 0..=9 {
            for (vm, count) in counts.iter_mut().enumerate() {
                *count += if second > 0 || round > 0 { rate(vm) } else { 0 };
                entries.push(sample(vms[vm], (round * 10 + second) * 1000, host(1, *count), None));
            }
        }
        let candidates: Vec<_> = (0..3)
            .map(|vm| Candidate {
                vm: name(vms[vm]),
                rate_pps: Some(rate(vm) as f64),
                holds_vf: false,
                words: words([1, 2, 4][vm]),
                switch_took: None,
            })
            .collect();
        let ranking = rank(&rules, &candidates, 1, &mut memory);
        let chosen = (&ranking.vms[..], ranking.winners);
        entries.push(Entry::Decision(Decision::new(
            "default",
            round,
            round * 10_000,
            strategy,
            1,
            &candidates,
            chosen,
        )));
        entries.push(Entry::Memory("default".into(), memory.clone()));
        let file = files.last_mut().unwrap();
        entries.iter().for_each(|entry| encoder.add(entry, file));
    }
    files
}

#[test]
fn a_replay_from_the_middle_decides_as_the_daemon_did() {
    for strategy in [Strategy::Fair, Strategy::Weighted, Strategy::Hybrid] {
        for file_every in 3..9 {
            let files = daemon_of(strategy, 60, file_every);
            let mut differs_without = false;
            for first in 1..files.len() {
                let mut gatherer = Gatherer::new(Cut {
                    interval: None,
                    rate_time_constant: Duration::ZERO,
                    vfs: None,
                    link_mbps: 100_000,
                });
                for file in &files[first..] {
                    gatherer.begin(Head { strategy, ..head(0) });
                    Decoder::default().read(file, |item| gatherer.take(item)).unwrap();
                }
                let gathered = gatherer.finish();
                let Some(Gathered { demand, interval, .. }) = gathered.first() else { continue };
                let host = Host { switch_s: 0.0, wants_pps: 1.0 };
                let rules = Rules {
                    strategy,
                    tuning: Tuning { max_wait: Duration::from_secs(20), ..Tuning::default() },
                    interval: *interval,
                    tenants: Tenants::default(),
                };
                let decided = as_decided(demand, &host, *interval).unwrap();
                assert_eq!(
                    replay(&rules, demand, &host),
                    decided,
                    "{strategy:?}, from file {first} on"
                );
                let forgetful = Demand { start: None, ..demand.clone() };
                differs_without |= replay(&rules, &forgetful, &host) != decided;
            }
            assert!(differs_without, "{strategy:?}: nothing was remembered");
        }
    }
}
