//! Passwords: `superusers`, `password`, `password_pbkdf2`.

use std::collections::HashMap;

use sha2::Sha512;

use super::Session;
use super::error::{Error, Outcome, code};
use crate::console::{Line, NoCompletion, secret};

/// Longest salt and hash in a configuration file; `grub-mkpasswd-pbkdf2` makes 64 bytes.
const MAX_BYTES: usize = 1024;
/// Most rounds: `grub-mkpasswd-pbkdf2` takes 10000; this many take seconds.
const MAX_ROUNDS: u32 = 10_000_000;

/// What a user has to know.
enum Password {
    Plain(String),
    Pbkdf2 { rounds: u32, salt: Vec<u8>, hash: Vec<u8> },
}

/// Who may do more than boot.
#[derive(Default)]
pub(super) struct Users {
    passwords: HashMap<String, Password>,
    /// Who has shown that they are.
    known: Option<String>,
}

impl Users {
    /// `password NAME TEXT`
    pub fn plain(&mut self, name: &str, password: &str) {
        self.passwords.insert(name.to_owned(), Password::Plain(password.to_owned()));
    }

    /// `password_pbkdf2 NAME grub.pbkdf2.sha512.ROUNDS.SALT.HASH`
    pub fn pbkdf2(&mut self, name: &str, text: &str) -> Outcome {
        let bad = || Error::argument("invalid PBKDF2 password");
        let rest = text.strip_prefix("grub.pbkdf2.sha512.").ok_or_else(bad)?;
        let mut fields = rest.split('.');
        let mut field = || fields.next().ok_or_else(bad);
        let rounds: u32 = field()?.parse().map_err(|_| bad())?;
        let salt = hex(field()?).ok_or_else(bad)?;
        let hash = hex(field()?).ok_or_else(bad)?;
        if rounds == 0
            || rounds > MAX_ROUNDS
            || salt.len() > MAX_BYTES
            || !(1..=MAX_BYTES).contains(&hash.len())
        {
            return Err(bad());
        }
        self.passwords.insert(name.to_owned(), Password::Pbkdf2 { rounds, salt, hash });
        Ok(())
    }

    fn is_right(&self, name: &str, password: &str) -> bool {
        match self.passwords.get(name) {
            Some(Password::Plain(right)) => same(right.as_bytes(), password.as_bytes()),
            Some(Password::Pbkdf2 { rounds, salt, hash }) => {
                let mut got = vec![0; hash.len()];
                pbkdf2::pbkdf2_hmac::<Sha512>(password.as_bytes(), salt, *rounds, &mut got);
                same(hash, &got)
            }
            None => false,
        }
    }
}

/// Compares in a time that doesn't depend on where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |n, (a, b)| n | (a ^ b)) == 0
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: &u8| char::from(*c).to_digit(16).map(|d| d as u8);
    text.as_bytes().chunks(2).map(|pair| Some(digit(pair.first()?)? << 4 | digit(pair.get(1)?)?)).collect()
}

/// Names in a list as GRUB splits them.
fn names(list: &str) -> impl Iterator<Item = &str> {
    list.split([' ', ',', ';', '|', '&', '\t']).filter(|n| !n.is_empty())
}

impl Session<'_> {
    /// Makes sure that the user is a superuser or one of `users`. Without superusers everybody may
    /// do everything.
    pub(super) fn authenticate(&mut self, users: &str) -> Outcome {
        let Some(superusers) = self.env.get("superusers").map(str::to_owned) else { return Ok(()) };
        let allowed = |name: &str| names(&superusers).chain(names(users)).any(|n| n == name);
        if self.users.known.as_deref().is_some_and(allowed) {
            return Ok(());
        }
        let denied = || Error::new(code::ACCESS_DENIED, "access denied");
        let line = self.editor_free_line("Enter username: ");
        let Some(name) = line else { return Err(denied()) };
        let Some(password) = secret(self.console, "Enter password: ") else { return Err(denied()) };
        if !allowed(&name) || !self.users.is_right(&name, &password) {
            return Err(denied());
        }
        self.users.known = Some(name);
        Ok(())
    }

    /// Asks for a line that is not remembered.
    fn editor_free_line(&mut self, prompt: &str) -> Option<String> {
        match crate::console::LineEditor::default().read(self.console, prompt, &mut NoCompletion) {
            Line::Text(text) => Some(text),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords() {
        let mut users = Users::default();
        users.plain("a", "secret");
        // Password "test", by Python's hashlib.pbkdf2_hmac.
        let text = "grub.pbkdf2.sha512.1000.0102030405060708.0B787D0CB0939CE9CFD978C453355031";
        users.pbkdf2("b", text).unwrap();
        assert!(users.is_right("a", "secret") && users.is_right("b", "test"));
        assert!(!users.is_right("a", "secre") && !users.is_right("c", "") && !users.is_right("b", "x"));
        for bad in [
            "x",
            "grub.pbkdf2.sha512.0.01.02",
            "grub.pbkdf2.sha512.1.0.02",
            "grub.pbkdf2.sha512.99999999999.00.02",
            "grub.pbkdf2.sha512.1.zz.02",
            "grub.pbkdf2.sha512.1.00.",
        ] {
            assert!(users.pbkdf2("d", bad).is_err(), "{bad}");
        }
    }
}
