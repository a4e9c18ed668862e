//! Checksums.

use sha2::Digest;

use super::arguments::{Flag, parse};
use super::files::pieces;
use super::{Command, command};
use crate::grub::Session;
use crate::grub::error::{Error, Outcome};
use crate::grub::files;

pub(super) const COMMANDS: &[Command] = &[
    command("hashsum", "-h HASH [-k] [-c FILE [-p PREFIX]] [FILE...]", "Show or check hashes.", hashsum),
    command("md5sum", "[-k] [-c FILE [-p PREFIX]] [FILE...]", "Show or check MD5 hashes.", |s, a| {
        sum(s, a, "md5")
    }),
    command("sha1sum", "[-k] [-c FILE [-p PREFIX]] [FILE...]", "Show or check SHA-1 hashes.", |s, a| {
        sum(s, a, "sha1")
    }),
    command("sha256sum", "[-k] [-c FILE [-p PREFIX]] [FILE...]", "Show or check SHA-256 hashes.", |s, a| {
        sum(s, a, "sha256")
    }),
    command("sha512sum", "[-k] [-c FILE [-p PREFIX]] [FILE...]", "Show or check SHA-512 hashes.", |s, a| {
        sum(s, a, "sha512")
    }),
    command("crc", "FILE", "Show the CRC-32 of a file.", crc),
];

/// Largest list of hashes.
const MAX_LIST: u64 = 16 << 20;

enum Hasher {
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
    Crc(u32),
}

impl Hasher {
    fn new(name: &str) -> Option<Self> {
        Some(match name {
            "md5" => Self::Md5(md5::Digest::new()),
            "sha1" => Self::Sha1(sha1::Sha1::new()),
            "sha256" => Self::Sha256(sha2::Sha256::new()),
            "sha512" => Self::Sha512(sha2::Sha512::new()),
            "crc32" => Self::Crc(!0),
            _ => return None,
        })
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Md5(hash) => md5::Digest::update(hash, bytes),
            Self::Sha1(hash) => hash.update(bytes),
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
            Self::Crc(crc) => *crc = bytes.iter().fold(*crc, |crc, b| crc32(crc, *b)),
        }
    }

    fn finish(self) -> String {
        let bytes = match self {
            Self::Md5(hash) => md5::Digest::finalize(hash).to_vec(),
            Self::Sha1(hash) => hash.finalize().to_vec(),
            Self::Sha256(hash) => hash.finalize().to_vec(),
            Self::Sha512(hash) => hash.finalize().to_vec(),
            Self::Crc(crc) => (!crc).to_be_bytes().to_vec(),
        };
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// One byte more of the CRC-32 of ISO 3309, half a byte at a time.
fn crc32(crc: u32, byte: u8) -> u32 {
    /// The polynomial EDB88320h, reflected, for each half byte.
    const TABLE: [u32; 16] = [
        0,
        0x1db7_1064,
        0x3b6e_20c8,
        0x26d9_30ac,
        0x76dc_4190,
        0x6b6b_51f4,
        0x4db2_6158,
        0x5005_713c,
        0xedb8_8320,
        0xf00f_9344,
        0xd6d6_a3e8,
        0xcb61_b38c,
        0x9b64_c2b0,
        0x86d3_d2d4,
        0xa00a_e278,
        0xbdbd_f21c,
    ];
    let half = |crc: u32| TABLE.get((crc & 15) as usize).copied().unwrap_or(0) ^ (crc >> 4);
    half(half(crc ^ u32::from(byte)))
}

fn hash_file(session: &mut Session, name: &str, hash: &str) -> Outcome<String> {
    let mut hasher = Hasher::new(hash).ok_or_else(|| Error::argument(format!("unknown hash `{hash}'")))?;
    let source = session.open(name)?;
    pieces(session, name, &source, |_, bytes| {
        hasher.update(bytes);
        true
    })?;
    Ok(hasher.finish())
}

const FLAGS: &[Flag] = &[
    Flag::value("hash").short('h'),
    Flag::value("check").short('c'),
    Flag::value("prefix").short('p'),
    Flag::plain("keep-going").short('k'),
];

fn hashsum(session: &mut Session, arguments: &[String]) -> Outcome {
    let parsed = parse(FLAGS, arguments)?;
    let hash = parsed.value("hash").ok_or_else(|| Error::expected("hash"))?.to_owned();
    sum(session, arguments, &hash)
}

fn sum(session: &mut Session, arguments: &[String], hash: &str) -> Outcome {
    let parsed = parse(FLAGS, arguments)?;
    let keep_going = parsed.has("keep-going");
    if let Some(list) = parsed.value("check") {
        parsed.none()?;
        return check(session, list, parsed.value("prefix").unwrap_or_default(), hash, keep_going);
    }
    if parsed.rest.is_empty() {
        return Err(Error::expected("one argument"));
    }
    let mut failed = 0;
    for name in &parsed.rest {
        match hash_file(session, name, hash) {
            Ok(value) => session.print(&format!("{value}  {name}\n")),
            Err(error) if keep_going => {
                session.complain(&error);
                failed += 1;
            }
            Err(error) => return Err(error),
        }
    }
    if failed > 0 { Err(Error::argument(format!("{failed} files couldn't be read"))) } else { Ok(()) }
}

/// Compares with a list as sha256sum(1) and others write them.
fn check(session: &mut Session, list: &str, prefix: &str, hash: &str, keep_going: bool) -> Outcome {
    let source = session.open(list)?;
    let text = files::read(&source, list, MAX_LIST)?;
    let (mut bad, mut unread) = (0, 0);
    for line in String::from_utf8_lossy(&text).lines() {
        let Some((wanted, name)) = line.split_once(' ') else {
            return Err(Error::argument("invalid hash list"));
        };
        let name = format!("{prefix}{}", name.strip_prefix([' ', '*']).unwrap_or(name));
        match hash_file(session, &name, hash) {
            Ok(value) if value.eq_ignore_ascii_case(wanted) => session.print(&format!("{name}: OK\n")),
            Ok(_) => {
                session.print(&format!("{name}: HASH MISMATCH\n"));
                bad += 1;
            }
            Err(error) => {
                session.print(&format!("{name}: READ ERROR: {}\n", error.message));
                unread += 1;
            }
        }
        if bad + unread > 0 && !keep_going {
            break;
        }
    }
    match (bad, unread) {
        (0, 0) => Ok(()),
        (0, _) => Err(Error::argument(format!("{unread} files couldn't be read"))),
        _ => Err(Error::new(crate::grub::error::code::TEST_FAILURE, format!("{bad} hashes don't match"))),
    }
}

fn crc(session: &mut Session, arguments: &[String]) -> Outcome {
    let parsed = parse(&[], arguments)?;
    let value = hash_file(session, parsed.one("filename")?, "crc32")?;
    session.print(&format!("{value}\n"));
    Ok(())
}
