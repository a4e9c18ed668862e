//! What a VM may be called.

use std::fmt;

use crate::Error;

/// Longest name in bytes, as FreeBSD's VM_MAX_NAMELEN.
const MAX_LEN: usize = 32;

/// A VM's name: one component of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// Takes `name` if a VM can be called so.
    pub fn new(name: &str) -> Result<Self, Error> {
        let refuse = |why: &'static str| Err(Error::Name { name: name.to_owned(), why });
        if name.is_empty() {
            return refuse("is empty");
        }
        if name.len() > MAX_LEN {
            return refuse("is longer than 32 characters");
        }
        if name.contains('/') || name == "." || name == ".." {
            return refuse("can't be the name of a file");
        }
        if name.starts_with('-') || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return refuse("begins with - or contains blanks");
        }
        Ok(Self(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_component_of_a_path() {
        let longest = "x".repeat(32);
        for good in ["a", "linux-guest", "vm.1", "...", longest.as_str()] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        let long = "x".repeat(33);
        for bad in ["", "a/b", "/", ".", "..", "a\0b", "a\nb", "-a", "a b", long.as_str()] {
            let error = Name::new(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }
}
