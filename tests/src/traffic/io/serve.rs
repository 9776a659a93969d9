//! The guest's side: does what the last [`Want`] says and answers each with a report.

use std::net::SocketAddr;

use anyhow::Result;

use super::socket::{Sender, Socket};
use crate::sys::monotonic_us;
use crate::traffic::logic::message::{
    GuestReport, HOLES_PER_REPORT, Header, Kind, Want, decode_control, encode_control,
};
use crate::traffic::logic::tracker::Tracker;

/// Serves until the process is ended.
pub fn serve(bind: SocketAddr) -> Result<()> {
    let socket = Socket::bind(bind)?;
    super::tcp::serve(bind)?;
    println!("flexvf-traffic: serving on UDP and TCP {bind}");
    let mut guest = Guest::new(0);
    loop {
        let now_us = monotonic_us();
        socket.receive(|datagram, from| guest.take(&socket, datagram, from, now_us));
        guest.send_due(&socket, now_us);
        socket.wait(None, now_us, guest.next_due_us())?;
    }
}

/// One run's state.
#[derive(Debug)]
struct Guest {
    run: u32,
    peer: Option<SocketAddr>,
    want: Want,
    probe_out: Sender,
    load_out: Sender,
    send_errors: u64,
    probe_in: Tracker,
    load_in: Tracker,
}

impl Guest {
    fn new(run: u32) -> Self {
        Self {
            run,
            peer: None,
            want: Want::default(),
            probe_out: Sender::new(Kind::Probe),
            load_out: Sender::new(Kind::Load),
            send_errors: 0,
            probe_in: Tracker::default(),
            load_in: Tracker::default(),
        }
    }

    fn take(&mut self, socket: &Socket, datagram: &[u8], from: SocketAddr, now_us: u64) {
        let Some((header, payload)) = Header::decode(datagram) else {
            return;
        };
        match header.kind {
            Kind::Probe if header.run == self.run => self.probe_in.take(header.seq, now_us),
            Kind::Load if header.run == self.run => self.load_in.take(header.seq, now_us),
            Kind::Control => {
                if let Some(want) = decode_control(payload) {
                    self.obey(header.run, want, from, now_us);
                    let report = self.report(want.holes_from, now_us);
                    socket.send(&encode_control(self.run, &report), from);
                }
            }
            Kind::Probe | Kind::Load => {}
        }
    }

    fn obey(&mut self, run: u32, want: Want, from: SocketAddr, now_us: u64) {
        if run != self.run {
            *self = Self::new(run);
            println!("flexvf-traffic: run {run} of {from}");
        }
        if want.revision <= self.want.revision {
            return;
        }
        self.peer = Some(from);
        self.want = want;
        self.probe_out.set_rate(want.probe_pps, now_us);
        self.load_out.set_rate(want.load_pps, now_us);
    }

    fn report(&self, holes_from: usize, now_us: u64) -> GuestReport {
        GuestReport {
            revision: self.want.revision,
            now_ms: now_us / 1000,
            probe_sent: self.probe_out.sent(),
            load_sent: self.load_out.sent(),
            send_errors: self.send_errors,
            probe: self.probe_in.counts(),
            load: self.load_in.counts(),
            holes: self.probe_in.hole_count(),
            holes_from,
            losses: self.probe_in.losses(holes_from, HOLES_PER_REPORT),
        }
    }

    fn send_due(&mut self, socket: &Socket, now_us: u64) {
        if let Some(peer) = self.peer {
            for stream in [&mut self.probe_out, &mut self.load_out] {
                self.send_errors += stream.send_due(socket, peer, self.run, now_us);
            }
        }
    }

    fn next_due_us(&self) -> Option<u64> {
        let dues = [&self.probe_out, &self.load_out].map(Sender::next_due_us);
        dues.into_iter().flatten().min()
    }
}
