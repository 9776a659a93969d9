//! The rules of the house, held against this checkout.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flexvf_tests::tidy::{PRODUCTS, check_manifest, check_rust, check_script, check_unsafe, files};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

#[track_caller]
fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn every_rust_file_keeps_the_rules() {
    let files = files(&root(), is_rust).unwrap();
    assert!(files.len() > 10, "found only {} files", files.len());
    let complaints: Vec<_> = files.iter().flat_map(check_rust).collect();
    assert_none(&complaints);
}

#[test]
fn unsafe_code_sits_in_one_module_a_crate() {
    assert_none(&check_unsafe(&files(&root(), is_rust).unwrap()));
}

#[test]
fn products_do_not_depend_on_each_other() {
    for product in PRODUCTS {
        let manifest = fs::read_to_string(root().join(product).join("Cargo.toml")).unwrap();
        assert_none(&check_manifest(product, &manifest));
    }
}

#[test]
fn every_script_says_what_it_is_when_asked() {
    let is_program = |path: &Path| {
        let executable = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o111 != 0;
        // What a guest or an emulated host runs as its first process is asked by nobody.
        let is_init =
            path.file_name().is_some_and(|name| name.to_string_lossy().ends_with("-init"));
        executable(path) && !is_init && path.file_name().is_some_and(|name| name != "host-setup")
    };
    let scripts = files(&root().join("scripts"), is_program).unwrap();
    let complaints: Vec<_> = scripts.iter().filter_map(check_script).collect();
    assert_none(&complaints);
}
