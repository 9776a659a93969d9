//! A front-end that means harm: any messages, in any order, with any descriptors, cut anywhere,
//! while it changes the memory it has shared, or takes it away.
//!
//! The device lives on from one input to the next, as in the program; what it must hold to:
//! nothing panics, every connection comes to its end, descriptors and mappings of one are gone when
//! it has ended, and an honest front-end is served next.
#![no_main]

use std::cell::RefCell;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use vhost_net_pv::io::port::{Loopback, Null, Port};
use vhost_net_pv::io::stats::StatsPage;
use vhost_net_pv::logic::features::Offloads;
use vhost_net_pv::{Device, DeviceParts, FrontEnds, Stopper, Tuning, survive_cut_memory};

use front_end::FrontEnd;
use script::Step;

mod front_end;
mod script;

/// Longer than any deadline of the device's.
const DEADLINE: Duration = Duration::from_secs(30);
const MAX_STEPS: usize = 48;
/// An honest front-end comes after each so many inputs, and after the first.
const HONEST_EVERY: u64 = 16;

fuzz_target!(|steps: Vec<Step>| {
    BACKEND.with_borrow_mut(|backend| backend.get_or_insert_with(Backend::start).try_out(&steps));
});

thread_local! {
    static BACKEND: RefCell<Option<Backend>> = const { RefCell::new(None) };
}

/// A device in a thread of its own, which serves the connections given to it.
struct Backend {
    connections: Sender<UnixStream>,
    ended: Receiver<()>,
    inputs: u64,
    /// Descriptors that are open between two inputs.
    files: usize,
}

impl Backend {
    fn start() -> Self {
        // Not before libFuzzer's own handler, which is for every other fault.
        survive_cut_memory().unwrap();
        let ports: Vec<Box<dyn Port>> = vec![Box::new(Loopback::new().unwrap()), Box::new(Null)];
        let mut device = Device::new(DeviceParts {
            offloads: Offloads::ALL,
            features: u64::MAX,
            tuning: Tuning::default(),
            stats: StatsPage::private(ports.len()).unwrap(),
            set_mtu: Box::new(|_mtu| Ok(())),
            ports,
        })
        .unwrap();
        let stopper = Stopper::new().unwrap();
        let (connections, to_serve) = channel();
        let (served, ended) = channel();
        std::thread::spawn(move || {
            for stream in to_serve {
                device.serve(FrontEnds::One(stream), &stopper).unwrap();
                served.send(()).unwrap();
            }
        });
        Self { connections, ended, inputs: 0, files: open_files() }
    }

    fn try_out(&mut self, steps: &[Step]) {
        let mut front_end = FrontEnd::new(self.connect());
        for step in steps.iter().take(MAX_STEPS) {
            front_end.play(step);
        }
        drop(front_end);
        self.end();
        assert_eq!(open_files(), self.files, "descriptors are left open");
        if self.inputs.is_multiple_of(HONEST_EVERY) {
            assert_eq!(guest_mappings(), 0, "guest memory is left mapped");
            let mut honest = FrontEnd::new(self.connect());
            honest.exchange_frames();
            drop(honest);
            self.end();
        }
        self.inputs += 1;
    }

    fn connect(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.connections.send(theirs).unwrap();
        ours
    }

    fn end(&self) {
        self.ended.recv_timeout(DEADLINE).expect("the connection does not end");
    }
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn guest_mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(front_end::MEMORY_NAME)).count()
}
