//! The README names every option, every counter and every field that there is.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use clap::CommandFactory;
use flexvf_protocol::stats_page::{Counter, Direction, Header};
use vhost_net_pv::config::Cli;
use vhost_net_pv::io::stats::{StatsPage, read};
use vhost_net_pv::report;

const README: &str = include_str!("../README.md");

#[test]
fn every_option_is_there() {
    let command = Cli::command();
    let options = command.get_arguments().filter_map(|argument| argument.get_long());
    let missing: Vec<_> = options
        .filter(|option| !["help", "version"].contains(option))
        .filter(|option| !README.contains(&format!("--{option}")))
        .collect();
    assert!(missing.is_empty(), "the README lacks {missing:?}");
}

#[test]
fn counters_are_told_in_the_order_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page");
    let page = StatsPage::open(&path, 1).unwrap();
    let (mut block, mut counters) = page.ring(0, Direction::Rx);
    // Every counter is shown by its name once it is not zero.
    Counter::ALL.into_iter().for_each(|counter| counters.add(counter, 1));
    block.publish(&counters);
    let table = report::table(&read(&path).unwrap());
    let names: Vec<_> = table.lines().skip(2).filter_map(|l| l.split_whitespace().next()).collect();
    assert_eq!(names.len(), Counter::ALL.len());
    let section = README.split_once("| `stats` |").unwrap().1;
    let places: Vec<_> = names
        .iter()
        .map(|name| section.find(&format!("`{name}`")).unwrap_or_else(|| panic!("no {name}")))
        .collect();
    assert!(places.is_sorted(), "{names:?}");
}

#[test]
fn the_headers_words_are_all_told() {
    let section = README.split_once("| word | header |").unwrap().1;
    for word in 0..=Header::Refused as usize {
        assert!(section.contains(&format!("\n| {word} | ")), "word {word}");
    }
}
