//! Synthetic workloads. A seed decides all of it.

use std::f64::consts::TAU;

use fastrand::Rng;
use flexvf_protocol::VmName;

use super::Source;

/// How traffic comes and goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Each VM at a rate of its own, within 5 % of it.
    Steady,
    /// Each VM between a tenth of its rate and nearly twice as much, once a day, each at another hour.
    Diurnal,
    /// Two minutes at full rate, then eighteen with next to nothing, on average, at random.
    Bursty,
    /// Half of the VMs half as busy again as the others, who change places right after each decision: what was seen is
    /// always wrong.
    FlipFlop,
    /// Next to nothing; once in a minute, on average, twenty VMs send all to one for half a minute.
    Incast,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Steady, Self::Diurnal, Self::Bursty, Self::FlipFlop, Self::Incast];

    /// The name as it stands on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Diurnal => "diurnal",
            Self::Bursty => "bursty",
            Self::FlipFlop => "flip-flop",
            Self::Incast => "incast",
        }
    }
}

/// VMs with a shape of traffic.
#[derive(Debug, Clone)]
pub struct Workload {
    shape: Shape,
    interval_s: u64,
    rng: Rng,
    vms: Vec<Vm>,
    /// When the next incast begins.
    next_incast: u64,
}

#[derive(Debug, Clone, Default)]
struct Vm {
    base_pps: f64,
    /// Of a day, from 0 to 1.
    phase: f64,
    is_on: bool,
    /// When its burst or pause ends, or its part in an incast.
    until: u64,
    burst_pps: f64,
}

/// Seconds.
const DAY: f64 = 86_400.0;
const ON: f64 = 120.0;
const OFF: f64 = 1080.0;
const BETWEEN_INCASTS: f64 = 60.0;
const INCAST: u64 = 30;
const SENDERS: usize = 20;
/// Packets per second.
const IDLE: f64 = 50.0;
const SENDER: f64 = 2_500.0;
const RATES: (f64, f64) = (100.0, 100_000.0);
const FLIP_FLOP: f64 = 1_000.0;

impl Workload {
    /// So many VMs; decisions are made once in an interval, which the adversary knows.
    pub fn new(shape: Shape, vms: usize, interval_s: u64, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let vms = (0..vms).map(|_| Vm::new(&mut rng)).collect();
        Self { shape, interval_s: interval_s.max(1), rng, vms, next_incast: 0 }
    }

    fn incast(&mut self, second: u64) {
        while self.next_incast <= second && !self.vms.is_empty() {
            self.next_incast = second + wait(&mut self.rng, BETWEEN_INCASTS);
            let sink = self.rng.usize(..self.vms.len());
            let mut received = 0.0;
            for _ in 0..SENDERS {
                let sender = self.rng.usize(..self.vms.len());
                if let Some(vm) = self.vms.get_mut(sender).filter(|_| sender != sink) {
                    (vm.until, vm.burst_pps) = (second + INCAST, SENDER);
                    received += SENDER;
                }
            }
            if let Some(vm) = self.vms.get_mut(sink) {
                (vm.until, vm.burst_pps) = (second + INCAST, received);
            }
        }
    }
}

impl Source for Workload {
    fn names(&self) -> Vec<VmName> {
        (1..=self.vms.len()).filter_map(|i| format!("vm{i}").parse().ok()).collect()
    }

    fn rates_at(&mut self, second: u64, pps: &mut [f64]) {
        if self.shape == Shape::Incast {
            self.incast(second);
        }
        let (shape, rng) = (self.shape, &mut self.rng);
        let round = second / self.interval_s;
        for (index, (vm, pps)) in self.vms.iter_mut().zip(pps).enumerate() {
            *pps = match shape {
                Shape::Steady => vm.base_pps * (0.95 + 0.1 * rng.f64()),
                Shape::Diurnal => {
                    vm.base_pps * (1.0 + 0.9 * (TAU * (second as f64 / DAY + vm.phase)).sin())
                }
                Shape::Bursty => vm.bursty(second, rng),
                Shape::FlipFlop if (index as u64 + round).is_multiple_of(2) => FLIP_FLOP * 1.5,
                Shape::FlipFlop => FLIP_FLOP,
                Shape::Incast if second < vm.until => vm.burst_pps,
                Shape::Incast => IDLE,
            };
        }
    }
}

impl Vm {
    fn new(rng: &mut Rng) -> Self {
        let (least, most) = RATES;
        let base_pps = least * (most / least).powf(rng.f64());
        Self { base_pps, phase: rng.f64(), ..Self::default() }
    }

    fn bursty(&mut self, second: u64, rng: &mut Rng) -> f64 {
        if second >= self.until {
            // The first ones begin with a pause, each a random part of it in.
            self.is_on = !self.is_on && self.until > 0;
            self.until = second + wait(rng, if self.is_on { ON } else { OFF });
        }
        if self.is_on { self.base_pps } else { IDLE.min(self.base_pps) }
    }
}

/// At least a second, exponentially distributed.
fn wait(rng: &mut Rng, mean_s: f64) -> u64 {
    (-(1.0 - rng.f64()).ln() * mean_s).ceil().max(1.0) as u64
}

#[cfg(test)]
mod tests {
    use super::super::{Times, measure};
    use super::*;

    const DAY: Times = Times { total_s: 86_400, interval_s: 300, sample_s: 10, time_constant_s: 0 };

    fn day(shape: Shape, seed: u64) -> Vec<Vec<f64>> {
        let demand = measure(&mut Workload::new(shape, 20, 300, seed), &DAY, 5, &[1]);
        demand.intervals.into_iter().map(|interval| interval.sent_pps).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_traffic_and_another_one_another() {
        for shape in Shape::ALL {
            assert_eq!(day(shape, 1), day(shape, 1));
            assert_eq!(day(shape, 1) == day(shape, 2), shape == Shape::FlipFlop);
        }
    }

    #[test]
    fn each_shape_is_what_it_is_called() {
        let of_first = |shape| -> Vec<f64> { day(shape, 3).iter().map(|pps| pps[0]).collect() };
        let least = |pps: &[f64]| pps.iter().copied().fold(f64::INFINITY, f64::min);
        let most = |pps: &[f64]| pps.iter().copied().fold(0.0, f64::max);
        let steady = of_first(Shape::Steady);
        assert!(most(&steady) / least(&steady) < 1.1);
        let diurnal = of_first(Shape::Diurnal);
        assert!((15.0..20.0).contains(&(most(&diurnal) / least(&diurnal))));
        let idle = day(Shape::Bursty, 3).concat().iter().filter(|pps| **pps <= IDLE).count();
        assert!((0.5..0.9).contains(&(idle as f64 / (20.0 * 288.0))), "{idle}");
        let flip_flop = of_first(Shape::FlipFlop);
        assert!(flip_flop.windows(2).all(|pair| pair[0] != pair[1]));
        let incast = of_first(Shape::Incast);
        assert!(most(&incast) > SENDER && least(&incast) < SENDER);
    }
}
