//! Loads a FreeBSD kernel into a VM, as FreeBSD's loader does.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use loaders::console::Terminal;
use loaders::freebsd::{self, Outcome};
use vm::{Directory, Loading, Name};

const USAGE: &str = "\
usage: bhyveload [-CS] [-c <console-device>] [-d <disk-path>] [-e <name=value>]
                 [-h <host-path>] [-m memsize[K|k|M|m|G|g|T|t]] <vmname>
";
/// sysexits(3): an option's value is wrong.
const EX_USAGE: u8 = 64;
/// What the loader's own ends mean (userboot.h): `quit` and `reboot`.
const EXIT_QUIT: u8 = 1;
const EXIT_REBOOT: u8 = 2;
/// Memory of a guest that says nothing.
const DEFAULT_MEMORY: u64 = 256 << 20;

/// The command line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Arguments {
    in_core: bool,
    wired: bool,
    console: Option<PathBuf>,
    disks: Vec<PathBuf>,
    environment: Vec<(String, String)>,
    host: Option<PathBuf>,
    memory: Option<u64>,
    name: String,
}

/// Why the program ends early: a line and the exit status; without a line the usage.
#[derive(Debug, PartialEq, Eq)]
struct Failure(u8, Option<String>);

fn wrong(text: impl Into<String>) -> Failure {
    Failure(EX_USAGE, Some(text.into()))
}

fn failed(text: &impl Display) -> Failure {
    Failure(1, Some(text.to_string()))
}

/// A reason without Rust's "(os error n)".
fn reason(error: &impl Display) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

fn main() -> ExitCode {
    match parse(std::env::args_os().skip(1)).and_then(|arguments| load(&arguments)) {
        Ok(status) => ExitCode::from(status),
        Err(Failure(status, text)) => {
            let text = text.map_or_else(|| USAGE.to_owned(), |text| format!("bhyveload: {text}\n"));
            let _ = std::io::stderr().write_all(text.as_bytes());
            ExitCode::from(status)
        }
    }
}

/// Reads options as getopt(3) does: bundled, with their values glued to them or behind them.
fn parse(words: impl Iterator<Item = OsString>) -> Result<Arguments, Failure> {
    let mut arguments = Arguments::default();
    let mut words = words.peekable();
    while let Some(word) = words.next_if(|w| w.len() > 1 && w.as_bytes().starts_with(b"-")) {
        if word == "--" {
            break;
        }
        let mut letters = word.as_bytes().get(1..).unwrap_or_default();
        while let Some((letter, rest)) = letters.split_first() {
            letters = rest;
            match letter {
                b'C' => arguments.in_core = true,
                b'S' => arguments.wired = true,
                b'c' | b'd' | b'e' | b'h' | b'l' | b'm' => {
                    let value = match std::mem::take(&mut letters) {
                        [] => words.next().ok_or(Failure(1, None))?,
                        glued => OsString::from_vec(glued.to_vec()),
                    };
                    arguments.take(*letter, value)?;
                }
                _ => return Err(Failure(1, None)),
            }
        }
    }
    let (Some(name), None) = (words.next(), words.next()) else { return Err(Failure(1, None)) };
    arguments.name = text(&name)?;
    Ok(arguments)
}

fn text(word: &OsStr) -> Result<String, Failure> {
    word.to_str().map(str::to_owned).ok_or_else(|| wrong(format!("{}: not UTF-8", word.display())))
}

impl Arguments {
    /// Takes an option's value.
    fn take(&mut self, letter: u8, value: OsString) -> Result<(), Failure> {
        match letter {
            b'c' => self.console = Some(value.into()).filter(|path: &PathBuf| path != Path::new("stdio")),
            b'd' => {
                if self.disks.len() == freebsd::MAX_DISKS {
                    let (path, most) = (value.display(), freebsd::MAX_DISKS);
                    return Err(wrong(format!("-d {path}: more than {most} disks")));
                }
                self.disks.push(value.into());
            }
            b'e' => {
                let value = text(&value)?;
                let Some((name, of)) = value.split_once('=') else {
                    return Err(wrong(format!("-e {value}: expected name=value")));
                };
                self.environment.push((name.to_owned(), of.to_owned()));
            }
            b'h' => self.host = Some(value.into()),
            b'l' => {
                return Err(wrong(format!(
                    "-l {}: a loader for FreeBSD's bhyveload can't run on Linux; this one has its own",
                    value.display()
                )));
            }
            _ => {
                let value = text(&value)?;
                let size = config::value::parse_memory_size(&value)
                    .ok_or_else(|| wrong(format!("-m {value}: expected a size, such as 512M or 2G")))?;
                self.memory = Some(size);
            }
        }
        Ok(())
    }
}

/// Opens the terminal of `-c`; a null-modem pair appears where it isn't there yet.
fn open_console(path: &Path) -> Result<Terminal, Failure> {
    let found = host::tty::nmdm::resolve(path).map_err(|e| wrong(format!("-c {}: {e}", path.display())))?;
    Terminal::open(&found)
        .map_err(|e| wrong(format!("-c {}: cannot open {}: {}", path.display(), found.display(), reason(&e))))
}

/// Loads the VM; the answer is the exit status.
fn load(arguments: &Arguments) -> Result<u8, Failure> {
    let mut devices = freebsd::open_disks(&arguments.disks)
        .map_err(|(path, why)| wrong(format!("-d {}: cannot open {why}", path.display())))?;
    if let Some(path) = &arguments.host {
        let added = devices.add_folder(path);
        added.map_err(|why| wrong(format!("-h {}: cannot open {why}", path.display())))?;
    }
    let name = Name::new(&arguments.name).map_err(|e| failed(&e))?;
    let directory = Directory::open().map_err(|e| failed(&e))?;
    let options = vm::Options {
        size: arguments.memory.unwrap_or(DEFAULT_MEMORY),
        wired: arguments.wired,
        in_core: arguments.in_core,
    };
    let vm = Loading::new(&directory, &name, &options).map_err(|e| failed(&e))?;
    let console = match &arguments.console {
        Some(path) => open_console(path)?,
        None => Terminal::stdio().map_err(|e| failed(&e))?,
    };
    let outcome = {
        // The terminal is itself again before anything else is said.
        let mut console = console;
        let options = freebsd::Options { environment: arguments.environment.clone() };
        freebsd::run(&mut console, devices, &options)
    };
    match outcome {
        Ok(Outcome::Boot(plan)) => {
            let entry = plan.load(vm.memory(), &vm.e820()).map_err(|e| failed(&e))?;
            vm.finish(&entry, "bhyveload").map_err(|e| failed(&e))?;
            Ok(0)
        }
        Ok(Outcome::Reboot) => Ok(EXIT_REBOOT),
        Ok(Outcome::Quit) => Ok(EXIT_QUIT),
        Err(why) => Err(failed(&why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Arguments, Failure> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn options_may_be_glued_and_bundled() {
        let arguments = read(&[
            "-SC",
            "-m512M",
            "-dguest.img",
            "-d",
            "a.iso",
            "-e",
            "a=b=c",
            "-cstdio",
            "-h",
            "/x",
            "vm0",
        ]);
        let expected = Arguments {
            in_core: true,
            wired: true,
            console: None,
            disks: vec!["guest.img".into(), "a.iso".into()],
            environment: vec![("a".into(), "b=c".into())],
            host: Some("/x".into()),
            memory: Some(512 << 20),
            name: "vm0".into(),
        };
        assert_eq!(arguments.unwrap(), expected);
        let arguments = read(&["-Sc", "/dev/nmdm0A", "-m", "1024", "--", "-odd"]).unwrap();
        assert_eq!((arguments.console.unwrap(), arguments.name), ("/dev/nmdm0A".into(), "-odd".into()));
        assert_eq!(arguments.memory, Some(1 << 30));
    }

    #[test]
    fn what_is_wrong_is_said_with_bhyveloads_status() {
        for words in [&[][..], &["a", "b"], &["-x", "a"], &["a", "-m"], &["-m"]] {
            assert_eq!(read(words).unwrap_err(), Failure(1, None), "{words:?}");
        }
        for (words, expected) in [
            (["-m", "lots", "a"], "-m lots: expected a size"),
            (["-e", "novalue", "a"], "-e novalue: expected name=value"),
            (
                ["-l", "/boot/userboot.so", "a"],
                "-l /boot/userboot.so: a loader for FreeBSD's bhyveload can't run",
            ),
        ] {
            let Failure(status, said) = read(&words).unwrap_err();
            assert!(status == 64 && said.as_ref().unwrap().starts_with(expected), "{said:?}");
        }
        let many: Vec<&str> = std::iter::repeat_n(["-d", "x"], 33).flatten().chain(["a"]).collect();
        assert_eq!(read(&many).unwrap_err().1.unwrap(), "-d x: more than 32 disks");
    }
}
