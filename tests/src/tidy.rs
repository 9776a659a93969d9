//! The rules of the house that a machine can check, over the text of the tree.
//!
//! Text, not syntax: each rule looks at lines with strings and comments taken out. `tests/tidy.rs`
//! runs them all over this checkout.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Lines of a Rust file above its tests.
pub const MAX_LINES: usize = 400;

/// What `logic/` must not touch: it is given the time, and does no I/O.
/// Addresses of `std::net` are only numbers.
const NOT_IN_LOGIC: [&str; 7] =
    ["::now()", "tokio", "std::fs", "std::process", "TcpStream", "UdpSocket", "UnixStream"];

/// Crates that are shipped, which never depend on each other.
pub const PRODUCTS: [&str; 3] = ["vhost-net-pv", "qmp-allocator", "qga-extension"];

/// A text file of the tree.
#[derive(Debug, Clone)]
pub struct File {
    /// Relative to the tree's root.
    pub path: PathBuf,
    /// All of it.
    pub text: String,
}

/// Reads the files of `root` that `wanted` likes; build results and hidden folders are passed over.
pub fn files(root: &Path, wanted: impl Fn(&Path) -> bool) -> io::Result<Vec<File>> {
    let (mut folders, mut files) = (vec![root.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && !name.starts_with('.') && name != "target" && name != "out" {
                folders.push(path);
            } else if path.is_file() && wanted(&path) {
                let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
                let path = path.strip_prefix(root).unwrap_or(&path).to_owned();
                files.push(File { path, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Everything that is wrong with a Rust file by itself.
pub fn check_rust(file: &File) -> Vec<String> {
    // A module of tests with a file of its own is all tests.
    let all_tests = file.path.ends_with("tests.rs");
    let own = if all_tests { 0 } else { above_tests(&file.text).count() };
    let mut complaints = Vec::new();
    if own > MAX_LINES {
        let path = file.path.display();
        complaints.push(format!(
            "{path}: {own} lines above the tests; split it, {MAX_LINES} are allowed"
        ));
    }
    let is_logic = file.path.iter().any(|part| part == "logic");
    for (number, line) in file.text.lines().enumerate() {
        let code = code_of(line);
        let mut complain = |what: &str, remedy: &str| {
            let (path, line) = (file.path.display(), number + 1);
            complaints.push(format!("{path}:{line}: {what}; {remedy}"));
        };
        for (unfinished, remedy) in UNFINISHED {
            if code.contains(unfinished) {
                complain(unfinished, remedy);
            }
        }
        let in_tests = number >= own;
        for word in NOT_IN_LOGIC {
            if is_logic && !in_tests && code.contains(word) {
                complain(word, "logic is given the time and does no I/O");
            }
        }
    }
    complaints
}

const UNFINISHED: [(&str, &str); 3] = [
    ("todo!(", "finish it"),
    ("unimplemented!(", "finish it"),
    ("#[ignore", "a test that does not run proves nothing"),
];

/// Crates, by their folder, that have `unsafe` code in more than one module.
pub fn check_unsafe(files: &[File]) -> Vec<String> {
    let mut by_crate = std::collections::BTreeMap::<_, std::collections::BTreeSet<_>>::new();
    for file in files.iter().filter(|file| has_unsafe(&file.text)) {
        let folder = file.path.iter().next().unwrap_or_default();
        by_crate.entry(folder).or_default().insert(unsafe_module(&file.path));
    }
    let more = by_crate.into_iter().filter(|(_, modules)| modules.len() > 1);
    more.map(|(folder, modules)| {
        let (folder, modules) = (folder.display(), Vec::from_iter(modules).join(", "));
        format!("{folder}: unsafe in more than one module: {modules}; bring it together")
    })
    .collect()
}

/// The module that a file counts for: all of a folder `sys` is one.
fn unsafe_module(path: &Path) -> String {
    let sys = path.ancestors().find(|folder| folder.ends_with("sys"));
    sys.unwrap_or(path).display().to_string()
}

/// Products that a product's Cargo.toml names as dependencies.
pub fn check_manifest(product: &str, manifest: &str) -> Vec<String> {
    let others = PRODUCTS.into_iter().filter(|other| *other != product);
    let mut section = "";
    let mut complaints = Vec::new();
    let others: Vec<_> = others.collect();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        }
        let key = line.split(['.', '=', ' ']).next().unwrap_or_default();
        let in_header = |other: &&&str| {
            line.starts_with('[') && line.contains(&format!("dependencies.{other}"))
        };
        let in_section = |other: &&&str| section.contains("dependencies") && key == **other;
        for other in others.iter().filter(|other| in_header(other) || in_section(other)) {
            complaints.push(format!(
                "{product}/Cargo.toml: depends on {other}; products never depend on each other"
            ));
        }
    }
    complaints
}

/// A program for people says what it is when asked.
pub fn check_script(file: &File) -> Option<String> {
    let asked = file.text.contains("--help");
    (!asked).then(|| format!("{}: knows no --help", file.path.display()))
}

/// Lines up to the module of tests.
fn above_tests(text: &str) -> impl Iterator<Item = &str> {
    let mut lines = text.lines().peekable();
    std::iter::from_fn(move || {
        let line = lines.next()?;
        let next = lines.peek().copied().unwrap_or_default();
        let tests = line == "#[cfg(test)]" && next.starts_with("mod ");
        (!tests).then_some(line)
    })
}

fn has_unsafe(text: &str) -> bool {
    const FORMS: [&str; 4] = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"];
    let is_unsafe = |line: &str| FORMS.iter().any(|form| code_of(line).contains(form));
    text.lines().any(is_unsafe)
}

/// A line without its comment and the contents of its strings.
fn code_of(line: &str) -> String {
    let (mut code, mut rest) = (String::new(), line);
    loop {
        let comment = rest.find("//").unwrap_or(rest.len());
        // A quote in a character literal opens no string.
        let quote = rest.find('"').filter(|&at| !rest[..at].ends_with('\'') && at < comment);
        let Some(quote) = quote else {
            code.push_str(&rest[..comment]);
            return code;
        };
        code.push_str(&rest[..quote]);
        rest = &rest[quote + 1..];
        let mut escaped = false;
        let end = rest.find(|character| {
            let ends = character == '"' && !escaped;
            escaped = character == '\\' && !escaped;
            ends
        });
        rest = end.map_or("", |end| &rest[end + 1..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.into(), text: text.into() }
    }

    #[test]
    fn strings_and_comments_are_no_code() {
        assert_eq!(code_of(r#"a("x // \" y", b) // c"#), "a(, b) ");
        assert_eq!(code_of("it's '\"' // \"c\""), "it's '\"' ");
    }

    #[test]
    fn lines_are_counted_up_to_the_tests() {
        let long = "x\n".repeat(MAX_LINES);
        let with_tests = format!("{long}#[cfg(test)]\nmod tests {{\n{long}");
        assert!(check_rust(&file("a/src/b.rs", &with_tests)).is_empty());
        assert_eq!(check_rust(&file("a/src/b.rs", &(long + "x\n"))).len(), 1);
    }

    #[test]
    fn logic_that_asks_for_the_time_is_found_outside_tests_only() {
        let text = "let a = Instant::now();\n#[cfg(test)]\nmod tests {\nInstant::now();\n";
        assert_eq!(check_rust(&file("a/src/logic/b.rs", text)).len(), 1);
        assert!(check_rust(&file("a/src/io/b.rs", text)).is_empty());
    }

    #[test]
    fn unfinished_work_is_found() {
        let text = format!("    {}!()\n#[{}]\n", "todo", "ignore");
        assert_eq!(check_rust(&file("a/src/b.rs", &text)).len(), 2);
    }

    #[test]
    fn unsafe_code_sits_in_one_module_a_crate() {
        let text = "unsafe { a() }";
        let files = [file("a/src/b.rs", text), file("b/src/b.rs", text)];
        assert!(check_unsafe(&files).is_empty());
        let files = [file("a/src/sys/b.rs", text), file("a/src/sys/c.rs", text)];
        assert!(check_unsafe(&files).is_empty());
        let files = [file("a/src/b.rs", text), file("a/src/c.rs", text)];
        assert_eq!(check_unsafe(&files).len(), 1);
    }

    #[test]
    fn a_product_that_needs_another_is_found() {
        let manifest = |line: &str| format!("[package]\nname = \"x\"\n[dependencies]\n{line}\n");
        let check = |line: &str| check_manifest("vhost-net-pv", &manifest(line)).len();
        assert_eq!(check("qmp-allocator.workspace = true"), 1);
        assert_eq!(check("qga-extension = { path = \"..\" }"), 1);
        assert_eq!(check("[target.x.dev-dependencies.qmp-allocator]"), 1);
        assert_eq!(check("flexvf-protocol.workspace = true"), 0);
    }
}
