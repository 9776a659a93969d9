//! What it takes to record a day of 100 VMs, a sample a second, and to replay it: `cargo bench -p qmp-allocator --bench replay`.
//!
//! The recording is the recorder's own, of made-up traffic, with a decision every 300 s. The bound for
//! a replay with all policies is 10 s. `FLEXVF_KEEP=DIR` keeps the recording there for `flexvf replay`.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use flexvf_protocol::VmName;
use qmp_allocator::config::RecorderConfig;
use qmp_allocator::io::recorder::Recorder;
use qmp_allocator::io::recording::read;
use qmp_allocator::logic::decision::Decision;
use qmp_allocator::logic::policy::tenant::Tenants;
use qmp_allocator::logic::policy::{Candidate, Memory, Rules, Strategy, Tuning, Words, rank};
use qmp_allocator::logic::rate::{Count, Sample, Trust};
use qmp_allocator::logic::recording::gather::{Cut, Gatherer};
use qmp_allocator::logic::recording::{Entry, Head, Member};
use qmp_allocator::logic::simulate::Source;
use qmp_allocator::logic::simulate::play::{Host, as_decided, play};
use qmp_allocator::logic::simulate::workload::{Shape, Workload};

const VMS: usize = 100;
const VFS: usize = 63;
const DAY_S: u64 = 86_400;
const INTERVAL: Duration = Duration::from_secs(300);
const RULES: fn(Strategy) -> Rules = |strategy| Rules {
    strategy,
    tuning: Tuning::default(),
    interval: INTERVAL,
    tenants: Tenants::default(),
};

fn main() {
    // `cargo test --benches` asks for no more than that it starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let folder = std::env::temp_dir().join(format!("flexvf-replay-{}", std::process::id()));
    let kept = std::env::var_os("FLEXVF_KEEP").map(PathBuf::from);
    let folder = kept.clone().unwrap_or(folder);
    let began = Instant::now();
    record(&folder);
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(Result::unwrap).collect();
    let bytes: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
    println!(
        "recorded in {:.1} s: {bytes} bytes in {} files, {:.2} a sample",
        began.elapsed().as_secs_f64(),
        files.len(),
        bytes as f64 / (VMS as u64 * DAY_S) as f64
    );
    for run in 1..=5 {
        let began = Instant::now();
        let samples = replay(&folder);
        println!("run {run}: {samples} samples replayed in {:.2} s", began.elapsed().as_secs_f64());
    }
    if kept.is_none() {
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

fn record(folder: &Path) {
    let head = Head {
        boot_id: "benchmark".into(),
        booted_at_ms: 0,
        began_at_ms: 0,
        interval: INTERVAL,
        strategy: Strategy::Activity,
        tuning: Tuning::default(),
        tenants: Tenants::default(),
    };
    let config = RecorderConfig { folder: folder.to_owned(), max_bytes: 1_000_000_000 };
    let mut recorder = Recorder::start(config, head).unwrap();
    let mut entries = 0;
    let mut source = Workload::new(Shape::Bursty, VMS, INTERVAL.as_secs(), 1);
    let names = source.names();
    for vm in &names {
        let member = Member { pool: "default".into(), words: Words::default() };
        recorder.add(Entry::Vm(vm.clone(), member));
        entries += 1;
    }
    let (mut pps, mut packets) = (vec![0.0; VMS], vec![0.0; VMS]);
    let mut decider = Decider { holders: BTreeSet::new(), memory: Memory::default() };
    let mut before = packets.clone();
    for second in 0..DAY_S {
        for (index, (vm, packets)) in names.iter().zip(&packets).enumerate() {
            let count = Count { epoch: 1, packets: *packets as u64, trust: Trust::Host };
            // As a daemon's tasks do: some milliseconds apart.
            let at = Duration::from_secs(second) + Duration::from_micros(97 * index as u64);
            recorder.add(Entry::Sample(vm.clone(), Sample { at, pv: Some(count), vf: None }));
            entries += 1;
        }
        if second > 0 && second % INTERVAL.as_secs() == 0 {
            let sent = packets.iter().zip(&before).map(|(now, then)| (now - then) / 300.0);
            recorder.add(Entry::Decision(decider.decide(
                second,
                &names,
                &sent.collect::<Vec<_>>(),
            )));
            before.clone_from(&packets);
            entries += 1;
        }
        if second % 30 == 0 {
            recorder.flush();
            // A daemon's day is longer: the disk is waited for.
            while recorder.status().entries < entries {
                assert_eq!(recorder.status().lost, 0);
                sleep(Duration::from_micros(100));
            }
        }
        source.rates_at(second, &mut pps);
        packets.iter_mut().zip(&pps).for_each(|(packets, pps)| *packets += pps);
    }
    drop(recorder);
}

struct Decider {
    holders: BTreeSet<VmName>,
    memory: Memory,
}

impl Decider {
    fn decide(&mut self, second: u64, names: &[VmName], pps: &[f64]) -> Decision {
        let candidates = names.iter().zip(pps).map(|(vm, pps)| Candidate {
            vm: vm.clone(),
            rate_pps: Some(*pps),
            holds_vf: self.holders.contains(vm),
            words: Words::default(),
            switch_took: None,
        });
        let mut candidates: Vec<Candidate> = candidates.collect();
        candidates.sort_by(|a, b| a.vm.cmp(&b.vm));
        let ranking = rank(&RULES(Strategy::Activity), &candidates, VFS, &mut self.memory);
        self.holders = ranking.chosen().cloned().collect();
        let round = second / INTERVAL.as_secs();
        let activity = Strategy::Activity;
        Decision::new(
            "default",
            round,
            second * 1000,
            activity,
            VFS,
            &candidates,
            (&ranking.vms, ranking.winners),
        )
    }
}

fn replay(folder: &Path) -> u64 {
    let mut gatherer = Gatherer::new(Cut {
        interval: None,
        rate_time_constant: Duration::ZERO,
        vfs: None,
        link_mbps: 100_000,
    });
    assert!(read(folder, &mut gatherer).unwrap().is_empty());
    let samples = gatherer.samples();
    assert_eq!(samples, VMS as u64 * DAY_S);
    let gathered = gatherer.finish();
    let pool = gathered.first().unwrap();
    let host = Host { switch_s: 4.0, wants_pps: 1.0 };
    let outcomes = Strategy::ALL.map(|strategy| play(&RULES(strategy), &pool.demand, &host));
    // What activity decided it decides again, but for equal rates: those keep VFs that a replay begins without.
    let decided = as_decided(&pool.demand, &host, INTERVAL).unwrap();
    assert!((decided.gain - outcomes[1].gain).abs() < 0.01, "{decided:?} {outcomes:?}");
    samples
}
