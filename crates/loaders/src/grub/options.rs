//! The command line of `grub-bhyve`.

use std::ffi::OsString;
use std::path::PathBuf;

/// What `--help` prints.
pub const USAGE: &str = "\
Usage: grub-bhyve [OPTION...] VMNAME
Loads a kernel from disk images into the virtual machine VMNAME, for bhyve to run.

  -r, --root=DEVICE      first value of `root': hd0,msdos1, cd0, host [host]
  -m, --device-map=FILE  which image is which disk [/boot/grub/device.map]
  -d, --directory=DIR    where the configuration is on the root device [/boot/grub]
  -g, --grub-cfg=FILE    name of the configuration there [grub.cfg]
  -M, --memory=SIZE      memory of the machine; MiB without K, M, G or T [256]
  -c, --cons-dev=TTY     terminal to ask on, such as /dev/nmdm0A [standard input and output]
  -n, --ncons            don't put `console=ttyS0' in front of Linux's command line
  -e, --evga             don't tell Linux of a VGA text screen
  -S                     allocate all of the memory now
  -v, --verbose          say what is found and done
  -h, --help             print this
  -V, --version          print the version
";

/// What the user asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `-r`, without parentheses.
    pub root: String,
    /// `-m`; `None`: the default map, if it is there.
    pub device_map: Option<PathBuf>,
    /// `-d`
    pub directory: String,
    /// `-g`
    pub config: String,
    /// `-M` in bytes.
    pub memory: u64,
    /// `-c`
    pub console: Option<PathBuf>,
    /// `-n` was not given.
    pub serial_console: bool,
    /// `-e` was not given.
    pub text_screen: bool,
    /// `-S`
    pub wired: bool,
    /// `-v`
    pub verbose: bool,
    /// The VM.
    pub name: String,
}

/// What a command line means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Go.
    Run(Options),
    /// `--help`
    Help,
    /// `--version`
    Version,
}

/// Understands the arguments after the program's name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed, String> {
    use lexopt::prelude::*;

    let mut options = Options {
        root: "host".into(),
        device_map: None,
        directory: "/boot/grub".into(),
        config: "grub.cfg".into(),
        memory: 256 << 20,
        console: None,
        serial_console: true,
        text_screen: true,
        wired: false,
        verbose: false,
        name: String::new(),
    };
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut name = None;
    while let Some(argument) = parser.next().map_err(|e| e.to_string())? {
        let text = |parser: &mut lexopt::Parser| {
            parser.value().and_then(lexopt::ValueExt::string).map_err(|e| e.to_string())
        };
        match argument {
            Short('r') | Long("root") => {
                let root = text(&mut parser)?;
                let bare = root.strip_prefix('(').and_then(|r| r.strip_suffix(')')).unwrap_or(&root);
                if bare.is_empty()
                    || bare.contains(['(', ')', '/']) && !bare.starts_with("lvm/") && !bare.starts_with("md/")
                {
                    return Err(format!("-r {root}: not a device"));
                }
                bare.clone_into(&mut options.root);
            }
            Short('m') | Long("device-map") => options.device_map = Some(text(&mut parser)?.into()),
            Short('d') | Long("directory") => options.directory = text(&mut parser)?,
            Short('g') | Long("grub-cfg") => options.config = text(&mut parser)?,
            Short('M') | Long("memory") => {
                let value = text(&mut parser)?;
                options.memory = size(&value).ok_or_else(|| format!("-M {value}: not a size of memory"))?;
            }
            Short('c') | Long("cons-dev") => {
                let path = text(&mut parser)?;
                options.console = (path != "stdio").then(|| path.into());
            }
            Short('n') | Long("ncons") => options.serial_console = false,
            Short('e') | Long("evga") => options.text_screen = false,
            Short('S') => options.wired = true,
            Short('v') | Long("verbose") => options.verbose = true,
            Short('H') | Long("hold") => {
                return Err("-H: waiting for a debugger is not supported".into());
            }
            Short('h') | Long("help") => return Ok(Parsed::Help),
            Short('V') | Long("version") => return Ok(Parsed::Version),
            Value(value) if name.is_none() => {
                name = Some(value.into_string().map_err(|v| format!("{}: not a name", v.to_string_lossy()))?);
            }
            Value(value) => return Err(format!("{}: unexpected argument", value.to_string_lossy())),
            other => return Err(other.unexpected().to_string()),
        }
    }
    options.name = name.ok_or("the VM name is missing")?;
    Ok(Parsed::Run(options))
}

/// Bytes of memory; a bare number is MiB.
fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (text.get(..at)?, 10),
        (at, 'm' | 'M') => (text.get(..at)?, 20),
        (at, 'g' | 'G') => (text.get(..at)?, 30),
        (at, 't' | 'T') => (text.get(..at)?, 40),
        _ => (text, 20),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|n| *n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<Options, String> {
        match parse(text.split_whitespace().map(OsString::from))? {
            Parsed::Run(options) => Ok(options),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn command_lines() {
        let options = run("-m device.map -r cd0 -M 1024M linuxguest").unwrap();
        assert_eq!((options.root.as_str(), options.memory), ("cd0", 1 << 30));
        assert_eq!(options.device_map, Some("device.map".into()));
        assert_eq!((options.name.as_str(), options.directory.as_str()), ("linuxguest", "/boot/grub"));
        let options = run("--root=(hd0,msdos1) -M512 -nSe -c /dev/nmdm0A -d/grub2 -g g.cfg vm -v").unwrap();
        assert_eq!((options.root.as_str(), options.memory), ("hd0,msdos1", 512 << 20));
        assert!(!options.serial_console && !options.text_screen && options.wired && options.verbose);
        assert_eq!(options.console, Some("/dev/nmdm0A".into()));
        let defaults = run("vm").unwrap();
        assert_eq!((defaults.root.as_str(), defaults.memory, defaults.console), ("host", 256 << 20, None));
        assert_eq!(run("-c stdio -r lvm/vg-lv vm").unwrap().root, "lvm/vg-lv");
    }

    #[test]
    fn bad_command_lines() {
        for (text, why) in [
            ("", "VM name"),
            ("-M x vm", "-M x: not a size"),
            ("-M 0 vm", "-M 0"),
            ("-M 99999999999999T vm", "not a size"),
            ("-M +5 vm", "not a size"),
            ("-H vm", "-H: waiting"),
            ("vm more", "more: unexpected"),
            ("-z vm", "-z"),
            ("-r", "missing argument"),
            ("-r ../x vm", "not a device"),
        ] {
            assert!(run(text).unwrap_err().contains(why), "{text}: {:?}", run(text));
        }
        assert_eq!(parse(["--help".into()]), Ok(Parsed::Help));
        assert_eq!(parse(["--version".into()]), Ok(Parsed::Version));
    }
}
