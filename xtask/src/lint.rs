//! Formatting, clippy, and the rules of the house.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use guest_tests::Result;
use lexopt::Parser;

use crate::build::{cargo, root, succeed};
use crate::no_arguments;

/// The longest file, in lines.
const FILE: usize = 1000;

/// The longest function, in lines from `fn` to its closing brace.
const FUNCTION: usize = 80;

/// Crates that forbid unsafe code.
const SAFE: &[&str] = &["config", "bus", "devices", "firmware", "boot"];

/// Checks everything.
pub fn run(parser: &mut Parser) -> Result<ExitCode> {
    no_arguments(parser)?;
    let complaints = house_rules(root())?;
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    let mut clean = complaints.is_empty();
    for words in [
        &["fmt", "--all", "--check"][..],
        &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
    ] {
        // All that is wrong is shown in one go.
        if let Err(error) = succeed(cargo().args(words)) {
            eprintln!("cargo {}: {error}", words.join(" "));
            clean = false;
        }
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What breaks the rules that clippy doesn't know.
fn house_rules(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for folder in ["crates", "tests", "xtask"] {
        collect(&root.join(folder), &mut files)?;
    }
    let mut complaints = Vec::new();
    let mut functions = BTreeSet::new();
    for path in files {
        let text = fs::read_to_string(&path)?;
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        let lines = text.lines().count();
        if lines > FILE {
            complaints.push(format!("{name}: {lines} lines, more than {FILE}"));
        }
        functions.extend(text.lines().filter_map(function_name).map(str::to_owned));
        for (line, length) in long_functions(&text) {
            complaints.push(format!("{name}:{line}: a function of {length} lines, more than {FUNCTION}"));
        }
    }
    let specification = fs::read_to_string(root.join("SPECIFICATION.md"))?;
    for test in named_tests(&specification).filter(|&test| !functions.contains(test)) {
        complaints.push(format!("SPECIFICATION.md: there is no test {test}"));
    }
    for name in SAFE {
        let path = root.join("crates").join(name).join("src/lib.rs");
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        if !text.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]") {
            complaints.push(format!("crates/{name}/src/lib.rs: must forbid unsafe_code"));
        }
    }
    Ok(complaints)
}

/// Every Rust file below a folder.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

/// The functions that are too long: their first line and their length. In formatted code the
/// closing brace is the next line that is indented as the first one and is only a brace.
fn long_functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        // A body of nothing ends where it starts.
        if !is_function(line.trim_start()) || line.ends_with('}') {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let end = lines.iter().skip(index).position(|line| {
            let rest = line.get(indent..).unwrap_or_default();
            let outer = line.get(..indent).is_some_and(|start| start.trim().is_empty());
            // A declaration in a trait ends with a semicolon, a body with a brace.
            outer && (rest == "}" || (rest.ends_with(';') && !rest.starts_with(' ')))
        });
        if let Some(length) = end.map(|end| end + 1).filter(|&length| length > FUNCTION) {
            found.push((index + 1, length));
        }
    }
    found
}

/// The tests in a text: each is written as `crate: test`.
fn named_tests(text: &str) -> impl Iterator<Item = &str> {
    let code = text.split('`').skip(1).step_by(2);
    code.filter_map(|code| code.split_once(": "))
        .filter(|(_, test)| {
            !test.is_empty() && test.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
        .map(|(_, test)| test)
}

/// The name of the function that a line starts.
fn function_name(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let (_, rest) = line.split_once("fn ").filter(|_| is_function(line))?;
    rest.split(['(', '<']).next()
}

/// Whether a line starts a function: qualifiers, then `fn`.
fn is_function(line: &str) -> bool {
    let qualifiers = ["pub", "const", "async", "unsafe", "extern"];
    for word in line.split_whitespace() {
        if word == "fn" {
            return true;
        }
        let qualifier = qualifiers.contains(&word) || word.starts_with("pub(") || word.starts_with('"');
        if !qualifier {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_measured_from_fn_to_brace() {
        let body = "        let x = 1;\n".repeat(79);
        let text =
            format!("impl A {{\n    pub(crate) unsafe fn long() {{\n{body}    }}\n}}\nfn short() {{\n}}\n");
        assert_eq!(long_functions(&text), [(2, 81)]);
        let body = "        let x = 1;\n".repeat(78);
        assert!(long_functions(&format!("    fn fits() {{\n{body}    }}\n")).is_empty());
        assert!(long_functions(&format!("fn empty() {{}}\n{}}}\n", "x\n".repeat(100))).is_empty());
        assert!(long_functions(&format!("fn declared();\n{}", "x\n".repeat(100))).is_empty());
    }

    #[test]
    fn tests_are_named_in_code() {
        let text = "| a `b` | `config: lines`, `boot: x_1` | `bhyve: NAME`";
        assert_eq!(named_tests(text).collect::<Vec<_>>(), ["lines", "x_1"]);
        assert_eq!(function_name("    fn x_1() {"), Some("x_1"));
        assert_eq!(function_name("// fn x"), None);
    }

    #[test]
    fn words_that_only_look_like_functions() {
        assert!(is_function("pub const fn f() {"));
        assert!(is_function("extern \"C\" fn f() {"));
        assert!(!is_function("let f: fn() = g;"));
        assert!(!is_function("// fn"));
    }
}
