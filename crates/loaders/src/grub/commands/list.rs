//! `ls`.

use std::ops::ControlFlow;

use media::{Kind, NodeRef};

use super::arguments::{Flag, parse};
use super::{Command, command};
use crate::grub::Session;
use crate::grub::error::{Error, Outcome};
use crate::grub::files;
use crate::grub::time::DateTime;

pub(super) const COMMANDS: &[Command] =
    &[command("ls", "[-l] [-h] [-a] [FILE...]", "List devices and files.", ls)];

/// Most names of a folder that are listed.
const MAX_NAMES: usize = 100_000;

#[derive(Clone, Copy)]
struct How {
    long: bool,
    human: bool,
    all: bool,
}

fn ls(session: &mut Session, arguments: &[String]) -> Outcome {
    const FLAGS: &[Flag] = &[
        Flag::plain("long").short('l'),
        Flag::plain("human-readable").short('h'),
        Flag::plain("all").short('a'),
    ];
    let parsed = parse(FLAGS, arguments)?;
    let how = How { long: parsed.has("long"), human: parsed.has("human-readable"), all: parsed.has("all") };
    if parsed.rest.is_empty() {
        return devices(session, how);
    }
    parsed.rest.iter().try_for_each(|name| files(session, name, how))
}

fn devices(session: &mut Session, how: How) -> Outcome {
    for name in session.disks.names() {
        if how.long {
            describe(session, &name);
        } else {
            session.print_word(&format!("({name})"));
        }
    }
    if !how.long {
        session.print("\n");
    }
    Ok(())
}

/// A line about a device: what is on it, where and how large it is.
fn describe(session: &mut Session, name: &str) {
    let mut line = format!("{} {name}:", if name.contains(',') { "\tPartition" } else { "Device" });
    match session.disks.filesystem(name) {
        Ok(fs) => {
            line.push_str(&format!(" Filesystem type {}", fs.kind()));
            if let Some(label) = fs.label().filter(|l| !l.is_empty()) {
                line.push_str(&format!(" - Label `{label}'"));
            }
            if let Some(time) = fs.modified() {
                line.push_str(&format!(" - Last modification time {}", DateTime::new(time).long()));
            }
            if let Some(uuid) = fs.uuid() {
                line.push_str(&format!(", UUID {uuid}"));
            }
        }
        Err(media::Error::UnknownFileSystem) => line.push_str(" No known filesystem detected"),
        Err(error) => line.push_str(&format!(" No filesystem detected ({error})")),
    }
    if let Ok(device) = session.disks.device(name) {
        if let Some(partition) = &device.partition {
            line.push_str(&format!(" - Partition start at {}KiB", partition.start >> 10));
        }
        line.push_str(&format!(" - Total size {}KiB", device.source.size() >> 10));
    }
    line.push('\n');
    session.print(&line);
}

fn files(session: &mut Session, name: &str, how: How) -> Outcome {
    let root = session.env.get("root").map(str::to_owned);
    let place = files::place(name, root.as_deref())?;
    if place.path.is_empty() {
        let device = session.disks.device(&place.device);
        let device =
            device.map(|d| d.name).or_else(|error| match session.disks.filesystem(&place.device) {
                Ok(_) => Ok(place.device.clone()),
                Err(_) => Err(files::device_error(&place.device, &error)),
            })?;
        describe(session, &device);
        return Ok(());
    }
    let node = files::node(session.disks, name, root.as_deref())?;
    let meta = node.metadata().map_err(|error| Error::media(&place.path, &error))?;
    if meta.kind != Kind::Directory {
        let shown = place.path.rsplit('/').next().unwrap_or_default();
        print_one(session, shown, Some(&node), false, how);
        if !how.long {
            session.print("\n");
        }
        return Ok(());
    }
    let mut names = Vec::new();
    let listed = node.entries(&mut |entry| {
        names.push(entry);
        if names.len() < MAX_NAMES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    if how.all {
        for dots in [".", ".."] {
            print_one(session, dots, Some(&node), true, how);
        }
    }
    for entry in names {
        if session.console.interrupted() {
            break;
        }
        let text = String::from_utf8_lossy(&entry.name).into_owned();
        if text.starts_with('.') && !how.all {
            continue;
        }
        let child = if how.long || !matches!(entry.kind, Some(Kind::File | Kind::Directory | Kind::Other)) {
            target(session, &place, &entry.name, &node)
        } else {
            None
        };
        let kind = child.as_ref().and_then(|c| c.metadata().ok()).map(|m| m.kind).or(entry.kind);
        print_one(session, &text, child.as_ref(), kind == Some(Kind::Directory), how);
    }
    if !how.long {
        session.print("\n");
    }
    listed.map_err(|error| Error::media(&place.path, &error))
}

/// What a name in a folder stands for; links are followed where they lead somewhere.
fn target(session: &Session, place: &files::Place, name: &[u8], folder: &NodeRef) -> Option<NodeRef> {
    let child = folder.lookup(name).ok()??;
    if child.metadata().ok()?.kind != Kind::Symlink {
        return Some(child);
    }
    let fs = session.disks.filesystem(&place.device).ok()?;
    let mut path = place.path.clone().into_bytes();
    path.push(b'/');
    path.extend(name);
    media::resolve(fs.as_ref(), &path).ok().or(Some(child))
}

fn print_one(session: &mut Session, name: &str, node: Option<&NodeRef>, folder: bool, how: How) {
    let name: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let slash = if folder { "/" } else { "" };
    if !how.long {
        session.print_word(&format!("{name}{slash}"));
        return;
    }
    let meta = node.and_then(|n| n.metadata().ok());
    let size = match meta {
        _ if folder => "DIR".to_owned(),
        Some(meta) if how.human => human(meta.size),
        Some(meta) => meta.size.to_string(),
        None => "????????????".to_owned(),
    };
    let time = match meta.and_then(|m| m.modified) {
        Some(time) if how.human => DateTime::new(time).long(),
        Some(time) => DateTime::new(time).digits(),
        None => String::new(),
    };
    let line = if how.human {
        format!("{size:<12} {time:<29} {name}{slash}\n")
    } else {
        format!("{size:<12} {time:<14} {name}{slash}\n")
    };
    session.print(&line);
}

/// A size with two digits after the point.
fn human(size: u64) -> String {
    const UNITS: [&str; 6] = ["", "K", "M", "G", "T", "P"];
    let mut unit = 0;
    let mut value = u128::from(size) * 100;
    while value >= 102_400 && unit + 1 < UNITS.len() {
        value = value.div_ceil(1024);
        unit += 1;
    }
    let unit = UNITS.get(unit).copied().unwrap_or_default();
    if value.is_multiple_of(100) {
        format!("{}{unit}", value / 100)
    } else {
        format!("{}.{:02}{unit}", value / 100, value % 100)
    }
}
