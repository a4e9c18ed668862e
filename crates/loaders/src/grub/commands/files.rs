//! Looking into files.

use std::fmt::Write as _;

use media::SourceRef;

use super::arguments::{Flag, parse};
use super::{Command, command};
use crate::grub::Session;
use crate::grub::error::{Error, Outcome};
use crate::grub::files::read;

pub(super) const COMMANDS: &[Command] = &[
    command("cat", "FILE", "Show a file.", cat),
    command("hexdump", "[-s OFFSET] [-n LENGTH] FILE", "Show the bytes of a file or device.", hexdump),
    command("cmp", "FILE1 FILE2", "Compare two files.", cmp),
    command("testload", "FILE", "Read a file in several ways and compare.", testload),
];

/// How much is read at once.
pub(super) const CHUNK: usize = 1 << 20;
/// Most bytes that `hexdump` shows unless it is told to show more.
const DUMPED: u64 = 256;
/// Largest file that `testload` keeps for its comparison.
const TESTLOAD_MAX: u64 = 64 << 20;

/// Reads a file piece by piece until `each` has seen enough or the user stops it.
pub(super) fn pieces(
    session: &mut Session,
    name: &str,
    source: &SourceRef,
    mut each: impl FnMut(&mut Session, &[u8]) -> bool,
) -> Outcome {
    let mut at = 0;
    while at < source.size() {
        let len = (source.size() - at).min(CHUNK as u64) as usize;
        let bytes = source.read_vec(at, len).map_err(|error| Error::media(name, &error))?;
        if session.console.interrupted() {
            return Err(Error::argument("interrupted"));
        }
        if !each(session, &bytes) {
            return Ok(());
        }
        at += len as u64;
    }
    Ok(())
}

fn cat(session: &mut Session, arguments: &[String]) -> Outcome {
    let parsed = parse(&[Flag::plain("dos")], arguments)?;
    let name = parsed.one("filename")?;
    let source = session.open(name)?;
    let dos = parsed.has("dos");
    let mut kept = Vec::new();
    pieces(session, name, &source, |session, bytes| {
        kept.extend_from_slice(bytes);
        // A character may go on in the next piece.
        let end = match std::str::from_utf8(&kept) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => kept.len(),
        };
        let text: Vec<u8> = kept.drain(..end).collect();
        let shown = printable(&text, dos);
        session.print(&shown);
        true
    })?;
    session.print(&printable(&kept, dos));
    Ok(())
}

/// Control characters other than ends of lines and tabs as `<xx>`: a file must not command the
/// terminal.
fn printable(bytes: &[u8], dos: bool) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\r' if dos => {}
                '\n' | '\t' => out.push(c),
                c if c.is_control() => drop(write!(out, "<{:x}>", u32::from(c))),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "<{byte:x}>");
        }
    }
    out
}

fn hexdump(session: &mut Session, arguments: &[String]) -> Outcome {
    const FLAGS: &[Flag] = &[Flag::value("skip").short('s'), Flag::value("length").short('n')];
    let parsed = parse(FLAGS, arguments)?;
    let name = parsed.one("filename")?;
    let source = session.open(name)?;
    let number = |flag: &str| parsed.value(flag).map(number).transpose();
    let skip = number("skip")?.unwrap_or(0);
    let length = number("length")?.unwrap_or(DUMPED);
    // 0 is all of it.
    let length = if length == 0 { u64::MAX } else { length };
    let end = skip.saturating_add(length).min(source.size());
    let mut at = skip;
    while at < end {
        if session.console.interrupted() {
            return Err(Error::argument("interrupted"));
        }
        let len = (end - at).min(4096) as usize;
        let bytes = source.read_vec(at, len).map_err(|error| Error::media(name, &error))?;
        let mut text = String::new();
        for (n, row) in bytes.chunks(16).enumerate() {
            text.push_str(&dump_row(at + n as u64 * 16, row));
        }
        session.print(&text);
        at += len as u64;
    }
    Ok(())
}

fn dump_row(at: u64, row: &[u8]) -> String {
    let mut out = format!("{at:08x} ");
    for n in 0..16 {
        if n % 8 == 0 {
            out.push(' ');
        }
        match row.get(n) {
            Some(byte) => drop(write!(out, "{byte:02x} ")),
            None => out.push_str("   "),
        }
    }
    let shown: String =
        row.iter().map(|b| if (0x20..0x7f).contains(b) { char::from(*b) } else { '.' }).collect();
    let _ = writeln!(out, " |{shown}|");
    out
}

/// A number with 0x or 0 in front, or decimal.
pub(super) fn number(text: &str) -> Outcome<u64> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None if text.len() > 1 && text.starts_with('0') => u64::from_str_radix(text, 8),
        None => text.parse(),
    };
    parsed.map_err(|_| Error::argument(format!("unrecognized number `{text}'")))
}

fn cmp(session: &mut Session, arguments: &[String]) -> Outcome {
    let [one, two] = arguments else { return Err(Error::expected("two arguments")) };
    session.print(&format!("Compare file `{one}' with `{two}':\n"));
    let (a, b) = (session.open(one)?, session.open(two)?);
    if a.size() != b.size() {
        session.print(&format!("Files differ in size: {} [{one}], {} [{two}]\n", a.size(), b.size()));
        return Err(Error::test_failure());
    }
    let mut at = 0;
    let mut differ = false;
    let mut failed = None;
    pieces(session, one, &a, |session, bytes| {
        match b.read_vec(at, bytes.len()) {
            Ok(other) => {
                if let Some(n) = bytes.iter().zip(&other).position(|(a, b)| a != b) {
                    let (x, y) = (bytes.get(n).copied().unwrap_or(0), other.get(n).copied().unwrap_or(0));
                    let place = at + n as u64;
                    session
                        .print(&format!("Differ at the offset {place}: 0x{x:x} [{one}], 0x{y:x} [{two}]\n"));
                    differ = true;
                }
            }
            Err(error) => failed = Some(Error::media(two, &error)),
        }
        at += bytes.len() as u64;
        !differ && failed.is_none()
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    if differ {
        return Err(Error::test_failure());
    }
    session.print("The files are identical.\n");
    Ok(())
}

fn testload(session: &mut Session, arguments: &[String]) -> Outcome {
    let parsed = parse(&[], arguments)?;
    let name = parsed.one("filename")?;
    let source = session.open(name)?;
    session.print(&format!("Reading {name} sequentially"));
    let whole = read(&source, name, TESTLOAD_MAX)?;
    session.print(" Done.\n");
    for (what, step) in [("in sectors", 512), ("backwards in odd pieces", 4097)] {
        session.print(&format!("Reading {name} {what}"));
        let mut starts: Vec<usize> = (0..whole.len()).step_by(step).collect();
        if step != 512 {
            starts.reverse();
        }
        for at in starts {
            let expected = whole.get(at..(at + step).min(whole.len())).unwrap_or_default();
            let got =
                source.read_vec(at as u64, expected.len()).map_err(|error| Error::media(name, &error))?;
            if got != expected {
                return Err(Error::argument(format!("`{name}' differs at {at} when it is read {what}")));
            }
            if session.console.interrupted() {
                return Err(Error::argument("interrupted"));
            }
        }
        session.print(" Done.\n");
    }
    Ok(())
}
