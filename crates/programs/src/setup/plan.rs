//! What is to be done, so that it can be shown before it is done.

use std::fmt;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The first line of files that are ours to replace.
pub const HEADER: &str = "# Written by bhyve-host persist.";

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Runs a program.
    Run(Vec<String>),
    /// Writes a file, which may replace one of ours.
    Write {
        /// Where.
        path: PathBuf,
        /// Its text, without the header.
        text: String,
    },
    /// Makes a symbolic link.
    Link {
        /// Where.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// Something to know.
    Note(String),
}

/// Everything to do, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
    /// Replaces files of others, too.
    pub force: bool,
}

impl Plan {
    /// Adds a command.
    pub fn command(&mut self, words: &[&str]) {
        self.steps.push(Step::Run(words.iter().map(|word| (*word).to_owned()).collect()));
    }

    /// Adds a file.
    pub fn file(&mut self, path: PathBuf, text: String) {
        self.steps.push(Step::Write { path, text });
    }

    /// Adds something to know.
    pub fn note(&mut self, text: impl Into<String>) {
        self.steps.push(Step::Note(text.into()));
    }

    /// Does it.
    pub fn run(&self) -> Result<(), String> {
        // Nothing is written if something can't be.
        for step in &self.steps {
            if let Step::Write { path, text } = step {
                self.check(path, text)?;
            }
        }
        self.steps.iter().try_for_each(|step| match step {
            Step::Run(words) => execute(words),
            Step::Write { path, text } => write(path, &content(text)),
            Step::Link { path, target } => link(path, target),
            Step::Note(text) => {
                eprintln!("{text}");
                Ok(())
            }
        })
    }

    fn check(&self, path: &Path, text: &str) -> Result<(), String> {
        match fs::read_to_string(path) {
            Ok(old) if self.force || old.starts_with(HEADER) || old == content(text) => Ok(()),
            Ok(_) => Err(format!("{}: is there already and not ours: --force replaces it", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }
}

fn content(text: &str) -> String {
    format!("{HEADER}\n{text}")
}

fn execute(words: &[String]) -> Result<(), String> {
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    let shown = words.join(" ");
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{shown}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{shown}: {}", said.trim().lines().next_back().unwrap_or("failed")))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("{}: {error}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(fail)?;
    }
    fs::write(path, text).map_err(fail)
}

fn link(path: &Path, target: &Path) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("{}: {error}", path.display());
    if fs::read_link(path).is_ok_and(|old| old == target) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(fail)?;
    }
    symlink(target, path).map_err(fail)
}

/// As a script that a person could run.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            match step {
                Step::Run(words) => {
                    writeln!(f, "{}", words.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(" "))?;
                }
                Step::Write { path, text } => {
                    writeln!(f, "cat >{} <<'EOF'\n{}EOF", quoted(&path.to_string_lossy()), content(text))?;
                }
                Step::Link { path, target } => writeln!(f, "ln -s {} {}", target.display(), path.display())?,
                Step::Note(text) => writeln!(f, "# {text}")?,
            }
        }
        Ok(())
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@+,%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_reads_as_a_script() {
        let mut plan = Plan::default();
        plan.command(&["ip", "link", "add", "a b"]);
        plan.file("/x".into(), "k=v\n".into());
        plan.note("done");
        assert_eq!(
            plan.to_string(),
            format!("ip link add 'a b'\ncat >/x <<'EOF'\n{HEADER}\nk=v\nEOF\n# done\n")
        );
    }

    #[test]
    fn files_of_others_stay_and_nothing_else_is_done_then() {
        let folder = std::env::temp_dir().join(format!("plan-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("b"), "mine\n").unwrap();
        let mut plan = Plan::default();
        plan.file(folder.join("a"), "1\n".into());
        plan.file(folder.join("b"), "2\n".into());
        let error = plan.run().unwrap_err();
        assert!(error.contains("/b: is there already"), "{error}");
        assert!(!folder.join("a").exists());
        plan.force = true;
        plan.run().unwrap();
        plan.force = false;
        // Now they are ours.
        plan.run().unwrap();
        assert_eq!(fs::read_to_string(folder.join("b")).unwrap(), content("2\n"));
        fs::remove_dir_all(&folder).unwrap();
        let error = execute(&["false".into()]).unwrap_err();
        assert_eq!(error, "false: failed");
    }
}
