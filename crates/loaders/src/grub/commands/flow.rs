//! Commands that decide what runs next.

use super::{Command, command};
use crate::grub::error::{Error, Outcome};
use crate::grub::run::Flow;
use crate::grub::{Session, Stop};

pub(super) const COMMANDS: &[Command] = &[
    command("source", "FILE [ARG...]", "Run the commands of a file.", source),
    command(".", "FILE [ARG...]", "Run the commands of a file.", source),
    command(
        "configfile",
        "FILE",
        "Run a configuration in a context of its own and show its menu.",
        configfile,
    ),
    command("normal", "[FILE]", "Run a configuration, $prefix/grub.cfg by default.", normal),
    command("eval", "TEXT...", "Run a text.", eval),
    command("setparams", "[ARG...]", "Set the positional parameters.", setparams),
    command("shift", "[N]", "Drop positional parameters.", shift),
    command("boot", "", "Start the kernel that was loaded.", boot),
    command("exit", "", "Leave without a kernel.", leave),
    command("normal_exit", "", "Leave without a kernel.", leave),
    command("halt", "", "Leave without a kernel.", leave),
    command("reboot", "", "Leave without a kernel.", leave),
];

/// `break`, `continue` and `return`: how it goes on, and the new `$?` if it changes.
pub(in crate::grub) fn control(name: &str, arguments: &[String]) -> Option<Outcome<(Flow, Option<u32>)>> {
    let number = |default: u32| match arguments {
        [] => Ok(default),
        [number] => number.parse().map_err(|_| Error::argument(format!("unrecognized number `{number}'"))),
        [_, extra, ..] => Err(Error::argument(format!("unexpected argument `{extra}'"))),
    };
    Some(match name {
        "break" => number(1).map(|n| (Flow::Break(n), Some(0))),
        "continue" => number(1).map(|n| (Flow::Continue(n), Some(0))),
        "return" if arguments.is_empty() => Ok((Flow::Return, None)),
        "return" => number(0).map(|n| (Flow::Return, Some(n))),
        _ => return None,
    })
}

fn source(session: &mut Session, arguments: &[String]) -> Outcome {
    let (file, rest) = arguments.split_first().ok_or_else(|| Error::expected("filename"))?;
    session.source(file, rest)
}

fn eval(session: &mut Session, arguments: &[String]) -> Outcome {
    session.eval(&arguments.join(" "))
}

fn configfile(session: &mut Session, arguments: &[String]) -> Outcome {
    let file = arguments.first().ok_or_else(|| Error::expected("filename"))?;
    session.configfile(file)
}

fn normal(session: &mut Session, arguments: &[String]) -> Outcome {
    if let Some(file) = arguments.first() {
        session.configfile(file)
    } else {
        let file = format!("{}/grub.cfg", session.env.get("prefix").unwrap_or_default());
        session.configfile(&file)
    }
}

fn setparams(session: &mut Session, arguments: &[String]) -> Outcome {
    match session.arguments.last_mut() {
        Some(now) => *now = arguments.to_vec(),
        None => session.arguments.push(arguments.to_vec()),
    }
    Ok(())
}

fn shift(session: &mut Session, arguments: &[String]) -> Outcome {
    let count: usize = match arguments.first() {
        None => 1,
        Some(n) => n.parse().map_err(|_| Error::argument(format!("unrecognized number `{n}'")))?,
    };
    match session.arguments.last_mut() {
        Some(now) if count <= now.len() => drop(now.drain(..count)),
        _ => return Err(Error::argument("there are fewer parameters")),
    }
    Ok(())
}

fn boot(session: &mut Session, arguments: &[String]) -> Outcome {
    match arguments.first() {
        Some(extra) => Err(Error::argument(format!("unexpected argument `{extra}'"))),
        None => session.boot(),
    }
}

fn leave(session: &mut Session, _: &[String]) -> Outcome {
    session.stop = Some(Stop::Left);
    Ok(())
}
