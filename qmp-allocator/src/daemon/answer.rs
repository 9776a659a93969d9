//! Answers to who asks at the control socket.

use super::clock::now;
use super::{Daemon, Event};
use crate::config::PoolKind;
use crate::control::Query;
use crate::logic::explain::Asked;
use crate::logic::status::{Problem, Status};

impl Daemon {
    /// What the engine is to hear of it. Whoever asked may have gone.
    pub(super) fn answer(&self, query: Query) -> Vec<Event> {
        match query {
            Query::Status(reply) => {
                let _ = reply.send(self.status());
                Vec::new()
            }
            Query::Ask(reply) => {
                let _ = reply.send(self.asked());
                Vec::new()
            }
            Query::Clear(vf, reply) => {
                let may = self.engine.status(now()).may_clear(&vf);
                let events = may.iter().map(|()| Event::Clear(vf.clone())).collect();
                let _ = reply.send(may);
                events
            }
        }
    }

    /// Copies only: what follows from them is found out elsewhere.
    fn asked(&self) -> Asked {
        let at = now();
        Asked {
            status: self.status(),
            decisions: self.engine.decisions(),
            questions: self.engine.questions(at),
            at_ms: u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn status(&self) -> Status {
        let mut status = self.engine.status(now());
        for pool in &mut status.pools {
            pool.kind = match self.config.pool(&pool.name).map(|pool| &pool.kind) {
                Some(PoolKind::Emulated(_)) => "emulated",
                _ => "sriov",
            };
            pool.pfs = self.shared.host.pfs(&pool.name);
        }
        status.problems.clone_from(&self.problems);
        let pools = self.pool_problems.iter();
        status.problems.extend(
            pools.map(|(pool, text)| Problem { subject: pool.clone(), text: text.clone() }),
        );
        status.problems.extend(self.shared.host.notes());
        status.dry_run = self.shared.host.is_dry_run();
        if status.dry_run {
            // What was answered as if it were done.
            status.switches.clear();
        }
        status.recorder = self.recorder.as_ref().map(|recorder| recorder.status());
        let untold = status.recorder.iter().filter_map(|recorder| recorder.problem.clone());
        let untold = untold.map(|text| Problem { subject: "recorder".to_owned(), text });
        status.problems.extend(untold.collect::<Vec<_>>());
        status
    }
}
