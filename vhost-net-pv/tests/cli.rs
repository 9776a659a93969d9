//! What the program prints, as others read it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use vhost::vhost_user::message::FrontendReq;
use vhost_net_pv::io::stats::StatsPage;
use vhost_net_pv::logic::features::BACKEND_ONLY;

use common::{FrontEnd, Shared};
use program::Backend;

mod common;
mod program;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vhost-net-pv")).args(arguments).output().unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn complaint(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn capabilities_are_told_as_qemu_wants_them_whatever_else_is_asked() {
    assert_eq!(json(&["--print-capabilities"]), serde_json::json!({"type": "net"}));
    let with_others = ["--print-capabilities", "--socket-path", "/nonexistent/s", "--port", "null"];
    assert_eq!(json(&with_others), serde_json::json!({"type": "net"}));
}

#[test]
fn features_that_are_printed_can_be_given_back() {
    let told = json(&["features", "--port", "null", "--queues", "2", "--json"]);
    let pinned = told["pinned"].as_str().unwrap();
    let again = ["features", "--port", "null", "--queues", "2", "--json", "--features", pinned];
    assert_eq!(json(&again), told);
    let backend = Backend::start_with(&["--port", "null", "--queues", "2", "--features", pinned]);
    assert!(backend.end());
}

#[test]
fn a_front_end_is_offered_what_was_pinned_and_standby_only_by_name() {
    let offered = |set: &[&str]| {
        let mut options = vec!["--port", "null"];
        options.extend(set);
        let backend = Backend::start_with(&options);
        let shared = Shared::new();
        let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
        let features = front_end.get(FrontendReq::GET_FEATURES);
        assert!(backend.end());
        features
    };
    let standby = 1 << 62;
    let pinned = 1 << 15 | 1 << 32 | BACKEND_ONLY;
    assert_eq!(offered(&["--features", "mrg_rxbuf"]), pinned);
    assert_eq!(offered(&["--features", "mrg_rxbuf,standby"]), pinned | standby);
    assert_eq!(offered(&["--features", "0x100008000"]), pinned);
    assert_eq!(offered(&[]) & standby, 0);
}

#[test]
fn a_host_that_lacks_a_pinned_feature_does_not_start() {
    let arguments = ["--socket", "/nonexistent/s", "--port", "null", "--features", "all,mq"];
    let error = complaint(&arguments);
    assert!(error.contains("--features: this host cannot offer mq"), "{error}");
}

#[test]
fn rates_are_lines_for_as_long_as_somebody_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stats");
    let _page = StatsPage::open(&path, 1).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_vhost-net-pv"))
        .arg("stats")
        .arg(&path)
        .args(["--watch", "0.1", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["restarted"], false);
        assert!(line["seconds"].as_f64().unwrap() >= 0.1);
        assert_eq!(line["rings"].as_array().unwrap().len(), 2);
        assert_eq!(line["total"]["frames_per_s"], 0.0);
    }
    drop(lines);
    assert!(child.wait().unwrap().success(), "a closed pipe is no failure");
}

#[test]
fn what_cannot_be_had_is_told_in_one_line() {
    let cases: [(&[&str], &str); 4] = [
        (&["stats", "/nonexistent/page"], "/nonexistent/page"),
        (&["--socket", "/nonexistent/s", "--port", "null"], "socket /nonexistent/s"),
        (&["--port", "null", "--fd", "77"], "descriptor 77 was not passed"),
        (&["--port", "null", "--socket", "s", "--cpus", "0,1"], "2 processors for 1 queue pairs"),
    ];
    for (arguments, words) in cases {
        let error = complaint(arguments);
        assert!(error.contains(words), "{arguments:?}: {error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    }
}
