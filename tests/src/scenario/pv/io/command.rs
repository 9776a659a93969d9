//! Programs that do one thing and end: `ip`, `bridge`, `ethtool`.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Runs `line`, whose words have no spaces in them; what it printed.
pub fn run(line: &str) -> Result<String> {
    let words: Vec<_> = line.split_whitespace().collect();
    run_words(&words)
}

/// Has a shell in a network namespace run `line`.
pub fn run_in_shell(namespace: &str, line: &str) -> Result<String> {
    run_words(&["ip", "netns", "exec", namespace, "sh", "-c", line])
}

fn run_words(words: &[&str]) -> Result<String> {
    let (program, arguments) = words.split_first().context("no program named")?;
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("run {program}"))?;
    let (line, said) = (words.join(" "), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "'{line}' ended with {}: {}", output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
