//! The environment block: variables that outlive the loader.

use super::arguments::{Flag, Parsed, parse};
use super::{Command, command};
use crate::grub::error::{Error, Outcome, code};
use crate::grub::files;
use crate::grub::{Session, blscfg, write};

pub(super) const COMMANDS: &[Command] = &[
    command("load_env", "[-f FILE] [-s] [NAME...]", "Read variables from an environment block.", load_env),
    command("save_env", "[-f FILE] NAME...", "Write variables to an environment block.", save_env),
    command("list_env", "[-f FILE] [-s]", "Show an environment block.", list_env),
    command(
        "blscfg",
        "[DIRECTORY|FILE|default|non-default]",
        "Make menu entries of /loader/entries/*.conf.",
        blscfg::run,
    ),
];

const FLAGS: &[Flag] = &[Flag::value("file").short('f'), Flag::plain("skip-sig").short('s')];
/// The first line of a block.
const SIGNATURE: &str = "# GRUB Environment Block\n";
/// Largest block; `grub-editenv` makes 1024 bytes.
const MAX_BLOCK: u64 = 64 << 10;

/// The variables in a block, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::grub) struct Block {
    variables: Vec<(String, String)>,
}

impl Block {
    /// Understands the bytes of a block. What is no assignment is left out.
    pub fn parse(bytes: &[u8]) -> Outcome<Self> {
        let text = String::from_utf8_lossy(bytes);
        let rest = text
            .strip_prefix(SIGNATURE)
            .ok_or_else(|| Error::new(code::BAD_FILE_TYPE, "invalid environment block"))?;
        let mut variables = Vec::new();
        let mut chars = rest.chars();
        'lines: loop {
            let mut line = String::new();
            loop {
                match chars.next() {
                    // A backslash takes what follows as it is, the end of a line too.
                    Some('\\') => line.extend(chars.next()),
                    Some('\n') => break,
                    Some(c) => line.push(c),
                    // What fills the block, or a line without an end.
                    None => break 'lines,
                }
            }
            if line.starts_with('#') {
                continue;
            }
            if let Some((name, value)) = line.split_once('=')
                && !name.is_empty()
            {
                variables.push((name.to_owned(), value.to_owned()));
            }
        }
        Ok(Self { variables })
    }

    /// All variables.
    pub fn variables(&self) -> &[(String, String)] {
        &self.variables
    }

    /// Sets a variable, or removes it.
    fn set(&mut self, name: &str, value: Option<&str>) {
        let at = self.variables.iter().position(|(n, _)| n == name);
        match (at, value) {
            (Some(at), Some(value)) => {
                if let Some(variable) = self.variables.get_mut(at) {
                    value.clone_into(&mut variable.1);
                }
            }
            (Some(at), None) => drop(self.variables.remove(at)),
            (None, Some(value)) => self.variables.push((name.to_owned(), value.to_owned())),
            (None, None) => {}
        }
    }

    /// The block in `size` bytes.
    fn bytes(&self, size: usize) -> Outcome<Vec<u8>> {
        let mut text = SIGNATURE.to_owned();
        for (name, value) in &self.variables {
            text.push_str(name);
            text.push('=');
            for c in value.chars() {
                if matches!(c, '\\' | '\n') {
                    text.push('\\');
                }
                text.push(c);
            }
            text.push('\n');
        }
        let mut bytes = text.into_bytes();
        if bytes.len() > size {
            return Err(Error::new(code::OUT_OF_MEMORY, "environment block too small"));
        }
        bytes.resize(size, b'#');
        Ok(bytes)
    }
}

fn file(session: &Session, parsed: &Parsed) -> String {
    match parsed.value("file") {
        Some(file) => file.to_owned(),
        None => format!("{}/grubenv", session.env.get("prefix").unwrap_or_default()),
    }
}

/// Reads a block.
fn read(session: &Session, name: &str) -> Outcome<(Block, Vec<u8>)> {
    // What was written is not read again: the image's reader keeps what it has seen before.
    let bytes = match session.blocks.get(&key(session, name)?) {
        Some(written) => written.clone(),
        None => files::read(&session.open_as_it_is(name)?, name, MAX_BLOCK)?,
    };
    Ok((Block::parse(&bytes)?, bytes))
}

/// The device and the path of a file.
fn key(session: &Session, name: &str) -> Outcome<(String, String)> {
    let place = files::place(name, session.env.get("root"))?;
    let device = session.disks.device(&place.device).map_or(place.device, |device| device.name);
    Ok((device, place.path))
}

fn load_env(session: &mut Session, arguments: &[String]) -> Outcome {
    let parsed = parse(FLAGS, arguments)?;
    let (block, _) = read(session, &file(session, &parsed))?;
    for (name, value) in block.variables() {
        if parsed.rest.is_empty() || parsed.rest.contains(name) {
            session.env.set(name, value)?;
        }
    }
    Ok(())
}

fn list_env(session: &mut Session, arguments: &[String]) -> Outcome {
    let parsed = parse(FLAGS, arguments)?;
    parsed.none()?;
    let (block, _) = read(session, &file(session, &parsed))?;
    let text: String = block.variables().iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    session.print(&text);
    Ok(())
}

fn save_env(session: &mut Session, arguments: &[String]) -> Outcome {
    let parsed = parse(FLAGS, arguments)?;
    if parsed.rest.is_empty() {
        return Err(Error::argument("no variable is specified"));
    }
    let name = file(session, &parsed);
    let (mut block, before) = read(session, &name)?;
    for variable in &parsed.rest {
        block.set(variable, session.env.get(variable));
    }
    let after = block.bytes(before.len())?;
    if after == before {
        return Ok(());
    }
    let place = files::place(&name, session.env.get("root"))?;
    write::replace(session.disks, &session.images, &place, &before, &after)?;
    let key = key(session, &name)?;
    session.blocks.insert(key, after);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_go_both_ways() {
        let mut block = Block::default();
        block.set("saved_entry", Some("Debian>0"));
        block.set("odd", Some("a\\b\nc=d"));
        block.set("gone", Some("x"));
        block.set("gone", None);
        block.set("never", None);
        let bytes = block.bytes(1024).unwrap();
        assert_eq!(bytes.len(), 1024);
        assert!(bytes.ends_with(b"##"));
        assert_eq!(Block::parse(&bytes).unwrap(), block);
        assert!(block.bytes(40).is_err());
    }

    #[test]
    fn what_is_no_block_is_refused() {
        assert!(Block::parse(b"").is_err() && Block::parse(b"# GRUB Environment Bl").is_err());
        let block = Block::parse(b"# GRUB Environment Block\n# note\nno sign\n=x\na=1\nlast=cut").unwrap();
        assert_eq!(block.variables(), [("a".to_owned(), "1".to_owned())]);
    }

    #[test]
    fn damaged_blocks_do_no_harm() {
        let mut block = Block::default();
        block.set("a", Some("b\\c"));
        let good = block.bytes(256).unwrap();
        let mut state = 1u32;
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..4 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = 25 + (state >> 8) as usize % (bytes.len() - 25);
                bytes[at] = (state >> 24) as u8;
            }
            let parsed = Block::parse(&bytes).unwrap();
            // Names and values fit in what they came from.
            let total: usize = parsed.variables().iter().map(|(n, v)| n.len() + v.len()).sum();
            assert!(total <= 3 * bytes.len());
        }
    }
}
