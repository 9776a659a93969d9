//! The twin of the daemon's task for one VM (`qmp-allocator/src/daemon/vm.rs`): orders one at a time
//! and in their order, before QEMU's events, before its own timers.
//!
//! This file keeps what a task remembers and says what it does next; [`super::jobs`] does it.

use std::collections::VecDeque;
use std::time::Duration;

use qmp_allocator::logic::switch::Action;
use qmp_allocator::logic::vf::VfId;

/// See the module's text.
#[derive(Debug)]
pub struct Task {
    /// Orders on their way, at most [`MAX_ORDERS`].
    pub orders: VecDeque<Order>,
    /// QEMU's events on their way, at most `MAX_NEWS`.
    pub news: VecDeque<News>,
    /// Some were lost.
    pub missed: bool,
    /// The connection to QEMU.
    pub link: Link,
    /// The process at the other end of the last connection.
    pub process: Option<u32>,
    /// The VF that it samples and listens for.
    pub holds: Option<VfId>,
    /// The agent was ready when last looked at.
    pub ready: bool,
    /// The agent may have changed.
    pub look_due: bool,
    /// Of the switch under way.
    pub epoch: Option<u64>,
    /// The agent has answered all it was asked.
    pub synced: bool,
    /// Frames for it were not pointed to its PV port.
    pub complains: bool,
    /// Counts holds.
    pub tenure: u64,
    /// What it is at.
    pub job: Option<Job>,
    /// Only the newest wake-up counts.
    pub wake: u64,
    /// Nothing it says overtakes what it said before.
    pub last_said: Duration,
    /// Nobody can give it orders any more.
    pub ending: bool,
    timers: Timers,
    look_period: Duration,
}

/// The connection to QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// None; the next try is then.
    Down(Duration),
    /// To this process.
    Up(u32),
    /// It has ended; not noticed yet.
    Ended,
}

/// What a task is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// An action, with its VF and root port.
    Act(VfId, String, Action),
    /// A look at QEMU.
    Observe,
}

/// What QEMU tells by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// DEVICE_DELETED.
    Deleted(VfId),
    /// RESET.
    Reset,
    /// VSERPORT_CHANGE.
    AgentPort,
    /// Some were lost.
    Missed,
}

/// What it is at, and how far.
#[derive(Debug, Clone, PartialEq)]
pub enum Job {
    /// A connection.
    Connect,
    /// What has QEMU? And then, if it must be known, the agent's bond.
    Observe {
        /// The agent, too.
        guest: bool,
    },
    /// A VF was deleted: to be told.
    TellDeleted(VfId),
    /// The guest was reset: to be told.
    TellReset,
    /// The counters.
    Sample,
    /// The agent.
    Look,
    /// An action, and its next stage.
    Act(VfId, String, Action, u8),
}

#[derive(Debug, Default)]
struct Timers {
    observe: Duration,
    soon: Duration,
    sample: Duration,
    look: Duration,
}

/// As in the daemon.
pub const MAX_ORDERS: usize = 8;
/// As in the QMP client.
const MAX_NEWS: usize = 64;
/// As in the daemon.
pub const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
const LOOK_PERIOD: Duration = Duration::from_secs(60);
const SOON_LOOK: Duration = Duration::from_secs(10);
const AGENT_LOOK: Duration = Duration::from_secs(1);

impl Task {
    /// A task that has seen nothing, of a daemon that decides once in this interval.
    pub fn new(now: Duration, interval: Duration) -> Self {
        Self {
            orders: VecDeque::new(),
            news: VecDeque::new(),
            missed: false,
            link: Link::Down(now),
            process: None,
            holds: None,
            ready: false,
            look_due: true,
            epoch: None,
            synced: true,
            complains: false,
            tenure: 0,
            job: None,
            wake: 0,
            last_said: now,
            ending: false,
            timers: Timers::default(),
            look_period: interval.max(LOOK_PERIOD),
        }
    }

    /// False when it has too much to do.
    pub fn order(&mut self, order: Order) -> bool {
        let fits = self.orders.len() < MAX_ORDERS;
        if fits {
            self.orders.push_back(order);
        }
        fits
    }

    /// QEMU tells something.
    pub fn hear(&mut self, news: News) {
        if !matches!(self.link, Link::Up(_)) {
            return;
        }
        if self.news.len() < MAX_NEWS && !self.missed {
            self.news.push_back(news);
        } else {
            self.missed = true;
        }
    }

    /// QEMU or the network between has closed the connection.
    pub fn cut(&mut self) {
        if matches!(self.link, Link::Up(_)) {
            self.link = Link::Ended;
        }
    }

    /// A connection stands.
    pub fn connected(&mut self, now: Duration, process: u32) {
        self.link = Link::Up(process);
        self.process = Some(process);
        self.disconnect_agent();
        self.timers = Timers { observe: now, soon: now, sample: now, look: now };
    }

    /// Forgets what it knew of the agent.
    pub fn disconnect_agent(&mut self) {
        (self.epoch, self.ready, self.synced) = (None, false, true);
    }

    /// What it does now; `None` until [`Self::wake_at`].
    pub fn choose(&mut self, now: Duration, sample_interval: Duration) -> Option<Job> {
        if let Some(order) = self.orders.pop_front() {
            self.timers.soon = now + SOON_LOOK;
            return match (order, self.link) {
                (Order::Act(vf, port, action), _) => Some(Job::Act(vf, port, action, 0)),
                (Order::Observe, Link::Up(_)) => Some(Job::Observe { guest: false }),
                (Order::Observe, _) => self.choose(now, sample_interval),
            };
        }
        match self.link {
            Link::Down(at) if at <= now => return Some(Job::Connect),
            Link::Down(_) => return None,
            Link::Ended if self.news.is_empty() => {
                self.missed = false;
                self.link = Link::Down(now + RECONNECT_PAUSE);
                return None;
            }
            Link::Ended | Link::Up(_) => {}
        }
        while let Some(news) = self.next_news() {
            match news {
                News::Deleted(vf) if self.holds.as_ref() == Some(&vf) => {
                    return Some(Job::TellDeleted(vf));
                }
                News::Deleted(_) | News::Missed => return Some(Job::Observe { guest: false }),
                News::Reset => {
                    self.look_due = true;
                    return Some(Job::TellReset);
                }
                News::AgentPort => self.look_due = true,
            }
        }
        self.timer(now, sample_interval)
    }

    /// When it wants to be asked again, with nothing to do now.
    pub fn wake_at(&self, now: Duration) -> Duration {
        let at = match self.link {
            _ if !self.orders.is_empty() || !self.news.is_empty() => now,
            Link::Down(at) => at,
            Link::Ended => now,
            Link::Up(_) => {
                let Timers { observe, soon, sample, look } = self.timers;
                let wants_look = self.look_due || !self.ready;
                let look = if wants_look { look } else { observe };
                let soon = if self.may_change_unseen() { soon } else { observe };
                observe.min(soon).min(sample).min(look)
            }
        };
        at.max(now)
    }

    fn may_change_unseen(&self) -> bool {
        self.complains || self.holds.is_some() && self.ready
    }

    fn next_news(&mut self) -> Option<News> {
        let news = self.news.pop_front();
        if news.is_none() && std::mem::take(&mut self.missed) {
            return Some(News::Missed);
        }
        news
    }

    fn timer(&mut self, now: Duration, sample_interval: Duration) -> Option<Job> {
        if self.timers.observe <= now {
            self.timers.observe = now + self.look_period;
            return Some(Job::Observe { guest: true });
        }
        if self.timers.soon <= now && self.may_change_unseen() {
            self.timers.soon = now + SOON_LOOK;
            return Some(if self.complains { Job::Observe { guest: true } } else { Job::Look });
        }
        if self.timers.sample <= now {
            self.timers.sample = now + sample_interval;
            return Some(Job::Sample);
        }
        if self.timers.look <= now && (self.look_due || !self.ready) {
            self.timers.look = now + AGENT_LOOK;
            if std::mem::take(&mut self.look_due) {
                self.disconnect_agent();
            }
            return Some(Job::Look);
        }
        None
    }
}
