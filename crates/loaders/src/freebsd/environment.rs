//! The loader's variables, which become the kernel's environment.

use std::collections::BTreeMap;

use boot::freebsd::howto;

/// Room for all names and values.
const MAX_SIZE: usize = 512 << 10;

/// Variables by name.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    size: usize,
}

/// Variables that stand for a flag of boot(8).
const FLAGS: [(&str, char, u32); 12] = [
    ("boot_askname", 'a', howto::ASKNAME),
    ("boot_cdrom", 'C', howto::CDROM),
    ("boot_userconfig", 'c', howto::CONFIG),
    ("boot_ddb", 'd', howto::KDB),
    ("boot_dfltroot", 'r', howto::DFLTROOT),
    ("boot_gdb", 'g', howto::GDB),
    ("boot_multicons", 'D', howto::MULTIPLE),
    ("boot_mute", 'm', howto::MUTE),
    ("boot_pause", 'p', howto::PAUSE),
    ("boot_serial", 'h', howto::SERIAL),
    ("boot_single", 's', howto::SINGLE),
    ("boot_verbose", 'v', howto::VERBOSE),
];

impl Environment {
    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// Sets a variable.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let bad = |c: char| c == '=' || c.is_control() || c.is_whitespace();
        if name.is_empty() || name.chars().any(bad) {
            return Err(format!("{name:?} is no name of a variable"));
        }
        if value.contains('\0') {
            return Err(format!("the value of {name} has a NUL in it"));
        }
        self.unset(name);
        let size = self.size + name.len() + value.len() + 2;
        if size > MAX_SIZE {
            return Err(format!("no room for {name}: all variables have {MAX_SIZE} bytes"));
        }
        self.size = size;
        self.variables.insert(name.into(), value.into());
        Ok(())
    }

    /// Forgets a variable; whether there was one.
    pub fn unset(&mut self, name: &str) -> bool {
        let Some(old) = self.variables.remove(name) else { return false };
        self.size -= name.len() + old.len() + 2;
        true
    }

    /// All variables in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether a variable says yes.
    pub fn is_yes(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("yes"))
    }

    /// Whether a `boot_` variable is set: anything but `no`.
    pub fn is_flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !value.eq_ignore_ascii_case("no"))
    }

    /// The flags for the kernel: of the variables, of its arguments, and of `console`.
    pub fn howto(&self, args: &str) -> u32 {
        let mut bits = 0;
        for word in args.split_whitespace() {
            let Some(letters) = word.strip_prefix('-') else { continue };
            // A letter that means nothing ends the word.
            for letter in letters.chars() {
                match FLAGS.iter().find(|(_, l, _)| *l == letter) {
                    Some((_, _, bit)) => bits |= bit,
                    None => break,
                }
            }
        }
        for (name, _, bit) in FLAGS {
            if self.is_flag(name) {
                bits |= bit;
            }
        }
        let consoles: Vec<&str> =
            self.get("console").unwrap_or_default().split([' ', ',']).filter(|c| !c.is_empty()).collect();
        if consoles.contains(&"comconsole") {
            bits |= howto::SERIAL;
        }
        if consoles.contains(&"nullconsole") {
            bits |= howto::MUTE;
        }
        if consoles.contains(&"vidconsole") && bits & howto::SERIAL != 0 {
            bits |= howto::MULTIPLE;
        }
        if consoles == ["vidconsole"] {
            bits &= !howto::SERIAL;
        }
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_come_from_variables_arguments_and_consoles() {
        let mut env = Environment::default();
        for (name, value) in [("boot_serial", "1"), ("boot_verbose", "NO"), ("boot_single", "YES")] {
            env.set(name, value).unwrap();
        }
        assert_eq!(env.howto(""), 0x1002);
        assert_eq!(env.howto("-v -aX -xs plain"), 0x1803);
        env.set("console", "comconsole,vidconsole").unwrap();
        assert_eq!(env.howto(""), 0x2000_1002);
        env.set("console", "vidconsole").unwrap();
        assert_eq!(env.howto(""), 0x2000_0002);
    }

    #[test]
    fn there_is_an_end_to_what_it_holds() {
        let mut env = Environment::default();
        assert!(env.set("a b", "").is_err() && env.set("", "x").is_err() && env.set("x", "a\0b").is_err());
        let big = "x".repeat(MAX_SIZE);
        assert!(env.set("x", &big).unwrap_err().starts_with("no room for x"));
        for _ in 0..10 {
            env.set("x", &big[..MAX_SIZE - 3]).unwrap();
        }
        assert!(env.set("y", "").is_err());
        assert!(env.unset("x") && !env.unset("x"));
        assert!(env.set("y", "").is_ok());
    }
}
