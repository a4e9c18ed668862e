//! Speaking with the user.

use std::time::{Duration, Instant};

use super::arguments::{Flag, parse};
use super::{Command, command};
use crate::console::{Input, Key};
use crate::grub::error::{Error, Outcome, code};
use crate::grub::time::DateTime;
use crate::grub::{Session, Stop};

pub(super) const COMMANDS: &[Command] = &[
    command("echo", "[-n] [-e] TEXT...", "Show a text.", echo),
    command("clear", "", "Clear the screen.", clear),
    command("sleep", "[-v] [-i] SECONDS", "Wait; with -i until ESC.", sleep),
    command("date", "", "Show the date (UTC).", date),
    command("help", "[NAME...]", "Show what commands there are, and what they take.", help),
    command("terminal_input", "[NAME...]", "Show or choose the input terminal.", terminal_input),
    command("terminal_output", "[NAME...]", "Show or choose the output terminal.", terminal_output),
    command("serial", "[--unit=N] [--speed=N] ...", "Take the console for the serial line.", serial),
    command("loadfont", "FILE...", "Fail: there is no graphics screen.", no_screen),
    command("background_image", "[FILE]", "Fail: there is no graphics screen.", no_screen),
    command("background_color", "COLOR", "Fail: there is no graphics screen.", no_screen),
    command("gettext", "TEXT", "Show a text; there are no translations.", gettext),
    command("password", "USER PASSWORD", "Set a user's password.", password),
    command("password_pbkdf2", "USER HASH", "Set the hash of a user's password.", password_pbkdf2),
    command("authenticate", "[USERS]", "Ask for a user and a password.", authenticate),
];

/// What a configuration may call the one terminal that there is.
const TERMINALS: [&str; 14] = [
    "console",
    "serial",
    "serial_com0",
    "serial_com1",
    "gfxterm",
    "vga_text",
    "vga",
    "mda_text",
    "ofconsole",
    "at_keyboard",
    "usb_keyboard",
    "cbmemc",
    "morse",
    "spkmodem",
];

fn echo(session: &mut Session, arguments: &[String]) -> Outcome {
    let (mut newline, mut escapes) = (true, false);
    let mut rest = arguments;
    while let Some((first, more)) = rest.split_first() {
        match first.as_str() {
            "-n" => newline = false,
            "-e" => escapes = true,
            "-ne" | "-en" => (newline, escapes) = (false, true),
            _ => break,
        }
        rest = more;
    }
    let mut text = rest.join(" ");
    if escapes {
        (text, newline) = unescape(&text, newline);
    }
    if newline {
        text.push('\n');
    }
    session.print(&text);
    Ok(())
}

/// `\c` ends the text, without a new line.
fn unescape(text: &str, newline: bool) -> (String, bool) {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('a') => out.push('\u{7}'),
            Some('c') => return (out, false),
            Some('f') => out.push('\u{c}'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('v') => out.push('\u{b}'),
            Some('\\') => out.push('\\'),
            Some(other) => {
                out.push('\\');
                out.push(other);
            }
            None => out.push('\\'),
        }
    }
    (out, newline)
}

fn clear(session: &mut Session, _: &[String]) -> Outcome {
    if session.console.is_terminal() {
        session.console.write("\x1b[H\x1b[2J");
        session.column = 0;
    }
    Ok(())
}

fn sleep(session: &mut Session, arguments: &[String]) -> Outcome {
    const FLAGS: &[Flag] = &[Flag::plain("verbose").short('v'), Flag::plain("interruptible").short('i')];
    let parsed = parse(FLAGS, arguments)?;
    let text = parsed.one("number of seconds")?;
    let seconds: u32 = text.parse().map_err(|_| Error::argument(format!("unrecognized number `{text}'")))?;
    let escapes = parsed.has("interruptible");
    let deadline = Instant::now() + Duration::from_secs(seconds.into());
    let mut shown = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let whole = left.as_secs_f64().ceil() as u64;
        if parsed.has("verbose") && shown != Some(whole) && session.console.is_terminal() {
            shown = Some(whole);
            session.console.write(&format!("\r{whole}    \r"));
        }
        if left.is_zero() {
            return Ok(());
        }
        match session.console.key(Some(left.min(Duration::from_millis(500)))) {
            Input::Key(Key::Escape) if escapes => return Err(Error::new(code::TIMEOUT, "")),
            Input::Key(Key::Ctrl('c')) => return Err(Error::argument("interrupted")),
            Input::End if session.console.is_terminal() => {
                session.stop = Some(Stop::InputEnd);
                return Ok(());
            }
            // Pauses are for readers, and nobody is there.
            Input::End => return Ok(()),
            Input::Key(_) | Input::Timeout => {}
        }
    }
}

fn date(session: &mut Session, arguments: &[String]) -> Outcome {
    if !arguments.is_empty() {
        return Err(Error::new(code::NOT_IMPLEMENTED, "the host's clock can't be set"));
    }
    session.print(&format!("{}\n", DateTime::now().long()));
    Ok(())
}

fn help(session: &mut Session, arguments: &[String]) -> Outcome {
    if arguments.is_empty() {
        let mut text = String::new();
        let width = (session.console.size().0 / 2).saturating_sub(1).max(20);
        let names: Vec<String> = super::names()
            .into_iter()
            .map(|name| match super::find(name) {
                Some(command) => format!("{name} {}", command.usage),
                None => name.to_owned(),
            })
            .collect();
        let half = names.len().div_ceil(2);
        for (n, left) in names.iter().take(half).enumerate() {
            let left = crate::console::clip(left, width - 1);
            let right = names.get(n + half).map(|r| crate::console::clip(r, width)).unwrap_or_default();
            text.push_str(format!("{left:<width$}{right}").trim_end());
            text.push('\n');
        }
        session.print(&text);
        return Ok(());
    }
    for argument in arguments {
        let found: Vec<_> = super::names()
            .into_iter()
            .filter(|name| name.starts_with(argument.as_str()))
            .filter_map(super::find)
            .collect();
        if found.is_empty() {
            return Err(Error::argument(format!("there is no command `{argument}'")));
        }
        for command in found {
            let text = format!("Usage: {} {}\n{}\n\n", command.name, command.usage, command.summary);
            session.print(&text);
        }
    }
    Ok(())
}

/// There is one terminal, whatever a configuration calls it: it may be a serial line, and text of
/// a graphics terminal has to appear somewhere.
fn terminals(session: &mut Session, arguments: &[String], kind: &str) -> Outcome {
    let mut arguments = arguments;
    if let Some((first, rest)) = arguments.split_first()
        && matches!(first.as_str(), "--append" | "--remove")
    {
        arguments = rest;
    } else if arguments.is_empty() {
        session.print(&format!("Active {kind} terminals:\nconsole\nAvailable {kind} terminals:\n"));
        return Ok(());
    }
    match arguments.iter().find(|name| !TERMINALS.contains(&name.as_str())) {
        Some(name) => Err(Error::argument(format!("terminal `{name}' isn't found"))),
        None => Ok(()),
    }
}

fn terminal_input(session: &mut Session, arguments: &[String]) -> Outcome {
    terminals(session, arguments, "input")
}

fn terminal_output(session: &mut Session, arguments: &[String]) -> Outcome {
    terminals(session, arguments, "output")
}

/// The console is the guest's first serial line; another one can't be had here.
fn serial(_: &mut Session, arguments: &[String]) -> Outcome {
    const FLAGS: &[Flag] = &[
        Flag::value("unit"),
        Flag::value("port"),
        Flag::value("speed"),
        Flag::value("word"),
        Flag::value("parity"),
        Flag::value("stop"),
    ];
    let parsed = parse(FLAGS, arguments)?;
    match parsed.value("unit") {
        None | Some("0") => Ok(()),
        Some(unit) => Err(Error::argument(format!("serial port `com{unit}' isn't found"))),
    }
}

/// Configurations ask by this whether they can go on to graphics: no, which is no error to show.
fn no_screen(_: &mut Session, _: &[String]) -> Outcome {
    Err(Error::test_failure())
}

fn gettext(session: &mut Session, arguments: &[String]) -> Outcome {
    let text = arguments.first().ok_or_else(|| Error::expected("text"))?;
    session.print(text);
    Ok(())
}

fn password(session: &mut Session, arguments: &[String]) -> Outcome {
    let [name, password] = arguments else { return Err(Error::expected("two arguments")) };
    session.users.plain(name, password);
    Ok(())
}

fn password_pbkdf2(session: &mut Session, arguments: &[String]) -> Outcome {
    let [name, hash] = arguments else { return Err(Error::expected("two arguments")) };
    session.users.pbkdf2(name, hash)
}

fn authenticate(session: &mut Session, arguments: &[String]) -> Outcome {
    session.authenticate(arguments.first().map(String::as_str).unwrap_or_default())
}
