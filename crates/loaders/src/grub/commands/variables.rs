//! Variables.

use super::arguments::{Flag, parse};
use super::{Command, command};
use crate::grub::Session;
use crate::grub::error::{Error, Outcome};

pub(super) const COMMANDS: &[Command] = &[
    command("set", "[NAME=VALUE]", "Set a variable, or show all.", set),
    command("unset", "NAME...", "Remove variables.", unset),
    command("export", "[NAME...]", "Let configurations and submenus see variables.", export),
    command("read", "[NAME]", "Read a line from the user.", read),
    command(
        "regexp",
        "[--set [N:]NAME] PATTERN TEXT",
        "Test whether a text matches, and keep parts of it.",
        regexp,
    ),
];

/// Longest pattern and text, and memory of the pattern: matching takes their product in steps.
const MAX_PATTERN: usize = 4096;
const PATTERN_MEMORY: usize = 64 << 10;
/// What a byte of text counts for, in bytes that are just copied.
const TEXT_COST: usize = 1024;

fn set(session: &mut Session, arguments: &[String]) -> Outcome {
    let Some(argument) = arguments.first() else {
        let lines: String = session.env.all().map(|(name, value, _)| format!("{name}={value}\n")).collect();
        session.print(&lines);
        return Ok(());
    };
    if let Some((name, value)) = argument.split_once('=') {
        session.env.set(name, value)
    } else {
        let line = format!("{argument}={}\n", session.env.get(argument).unwrap_or_default());
        session.print(&line);
        Ok(())
    }
}

fn unset(session: &mut Session, arguments: &[String]) -> Outcome {
    if arguments.is_empty() {
        return Err(Error::expected("one argument"));
    }
    for name in arguments {
        session.env.unset(name);
    }
    Ok(())
}

fn export(session: &mut Session, arguments: &[String]) -> Outcome {
    if arguments.is_empty() {
        let exported = session.env.all().filter(|(.., exported)| *exported);
        let lines: String = exported.map(|(name, value, _)| format!("{name}={value}\n")).collect();
        session.print(&lines);
    }
    for argument in arguments {
        let name = match argument.split_once('=') {
            Some((name, value)) => {
                session.env.set(name, value)?;
                name
            }
            None => argument,
        };
        session.env.export(name)?;
    }
    Ok(())
}

fn read(session: &mut Session, arguments: &[String]) -> Outcome {
    use crate::console::{Line, LineEditor, NoCompletion};
    let text = match LineEditor::default().read(session.console, "", &mut NoCompletion) {
        Line::Text(text) => text,
        Line::Interrupted | Line::Escape | Line::End => return Err(Error::test_failure()),
    };
    session.column = 0;
    match arguments.first() {
        Some(name) => session.env.set(name, &text),
        None => Ok(()),
    }
}

fn regexp(session: &mut Session, arguments: &[String]) -> Outcome {
    const FLAGS: &[Flag] = &[Flag::many("set").short('s')];
    let parsed = parse(FLAGS, arguments)?;
    let [pattern, text] = parsed.rest.as_slice() else { return Err(Error::expected("two arguments")) };
    if pattern.len() > MAX_PATTERN || text.len() > MAX_PATTERN {
        return Err(Error::argument("the pattern or the text is too long"));
    }
    session.charge(text.len() * TEXT_COST);
    let regex = regex_lite::RegexBuilder::new(pattern)
        .size_limit(PATTERN_MEMORY)
        .build()
        .map_err(|error| Error::argument(format!("invalid regular expression: {error}")))?;
    let found = regex.captures(text).ok_or_else(Error::test_failure)?;
    for (index, target) in parsed.values("set").enumerate() {
        // Without a number the first variable gets the first part in parentheses, and so on.
        let (number, name) = match target.split_once(':') {
            Some((number, name)) => {
                let bad = || Error::argument(format!("invalid variable name format `{target}'"));
                (number.parse::<usize>().map_err(|_| bad())?, name)
            }
            None => (index + 1, target),
        };
        match found.get(number) {
            Some(part) => session.env.set(name, part.as_str())?,
            None => session.env.unset(name),
        }
    }
    Ok(())
}
