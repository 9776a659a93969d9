//! The tables of `docs/tested.md` are whole: nothing that is offered is left out, no cell is empty, and
//! every test that they name is there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use vhost_net_pv::logic::feature_names::FEATURES;
use vhost_net_pv::logic::features::protocol_features;

const TABLES: &str = include_str!("../docs/tested.md");
/// What is tried, with QEMU, with DPDK, and by itself.
const COLUMNS: usize = 4;

/// The cells of each row, heads and lines left out.
fn rows() -> Vec<Vec<&'static str>> {
    let rows = TABLES.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'));
    let rows = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    rows.filter(|cells| !cells[1].starts_with("---") && cells[1] != "QEMU guest").collect()
}

/// What stands between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The first thing in backticks of each row.
fn tried() -> Vec<&'static str> {
    rows().into_iter().filter_map(|cells| code(cells[0]).next()).collect()
}

#[test]
fn every_feature_has_a_row() {
    let tried = tried();
    let protocol = protocol_features().iter_names().map(|(name, _)| name);
    let wanted = protocol.chain(FEATURES.iter().map(|feature| feature.name));
    let missing: Vec<_> = wanted.filter(|name| !tried.contains(name)).collect();
    assert!(missing.is_empty(), "docs/tested.md has no row for {missing:?}");
}

#[test]
fn no_cell_is_empty_and_no_row_untested() {
    let rows = rows();
    assert!(rows.len() > FEATURES.len());
    for cells in rows {
        assert_eq!(cells.len(), COLUMNS, "{cells:?}");
        assert!(cells.iter().all(|cell| cell.chars().any(char::is_alphabetic)), "{cells:?}");
        let named = cells[1..].iter().flat_map(|cell| code(cell)).filter(|word| is_test(word));
        assert!(named.count() > 0, "{}: nobody tests it", cells[0]);
    }
}

fn is_test(word: &str) -> bool {
    word.contains("::") || word.starts_with("pv ")
}

#[test]
fn every_test_that_is_named_exists() {
    let cells = rows().into_iter().flat_map(|cells| cells.into_iter().skip(1));
    let named: Vec<_> = cells.flat_map(code).filter(|word| is_test(word)).collect();
    let missing: Vec<_> = named.iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "docs/tested.md names tests that are not there: {missing:?}");
}

fn exists(name: &str) -> bool {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    if let Some(step) = name.strip_prefix("pv ") {
        let steps = std::fs::read_to_string(here.join("../tests/src/scenario/pv/mod.rs")).unwrap();
        let variant = step[..1].to_uppercase() + &step[1..];
        return steps.contains(&format!("            Play::{variant} => "));
    }
    let (file, test) = name.rsplit_once("::").unwrap();
    let file: PathBuf = match file.contains('/') {
        true => here.join("src").join(file),
        false => here.join("tests").join(file),
    };
    let text = std::fs::read_to_string(file.with_extension("rs")).unwrap_or_default();
    let head = format!("fn {test}(");
    let heads = text.match_indices(&head).map(|(at, _)| text[..at].trim_end());
    heads.into_iter().any(|before| before.ends_with("#[test]"))
}
