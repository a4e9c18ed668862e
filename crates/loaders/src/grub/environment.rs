//! Variables.

use std::collections::BTreeMap;

use super::error::{Error, Outcome, code};

/// Most bytes of names and values.
const MAX_BYTES: usize = 8 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Variable {
    value: String,
    exported: bool,
}

/// The variables of the nested contexts: a configuration file or a submenu starts with those that
/// are exported, and its changes end with it.
#[derive(Debug)]
pub struct Environment {
    contexts: Vec<BTreeMap<String, Variable>>,
    bytes: usize,
}

impl Default for Environment {
    fn default() -> Self {
        Self { contexts: vec![BTreeMap::new()], bytes: 0 }
    }
}

impl Environment {
    fn here(&self) -> Option<&BTreeMap<String, Variable>> {
        self.contexts.last()
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.here()?.get(name).map(|v| v.value.as_str())
    }

    /// Sets a variable.
    pub fn set(&mut self, name: &str, value: &str) -> Outcome {
        if name.is_empty() || name.contains(['=', '\n']) {
            return Err(Error::argument(format!("`{name}' is not a variable name")));
        }
        let old = self.here().and_then(|h| h.get(name)).map_or(0, |v| name.len() + v.value.len());
        let bytes = self.bytes - old + name.len() + value.len();
        if bytes > MAX_BYTES {
            return Err(Error::new(code::OUT_OF_MEMORY, "out of memory: too many variables"));
        }
        self.bytes = bytes;
        if let Some(here) = self.contexts.last_mut() {
            value.clone_into(&mut here.entry(name.to_owned()).or_default().value);
        }
        Ok(())
    }

    /// Removes a variable.
    pub fn unset(&mut self, name: &str) {
        if let Some(old) = self.contexts.last_mut().and_then(|h| h.remove(name)) {
            self.bytes -= name.len() + old.value.len();
        }
    }

    /// Lets nested contexts see a variable.
    pub fn export(&mut self, name: &str) -> Outcome {
        if self.get(name).is_none() {
            self.set(name, "")?;
        }
        if let Some(variable) = self.contexts.last_mut().and_then(|h| h.get_mut(name)) {
            variable.exported = true;
        }
        Ok(())
    }

    /// All variables by name, with whether they are exported.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str, bool)> {
        self.here().into_iter().flatten().map(|(name, v)| (name.as_str(), v.value.as_str(), v.exported))
    }

    /// Opens a context.
    pub fn push(&mut self) -> Outcome {
        let exported = self.here().into_iter().flatten().filter(|(_, v)| v.exported);
        let copy: BTreeMap<_, _> = exported.map(|(name, v)| (name.clone(), v.clone())).collect();
        let bytes = self.bytes + size(&copy);
        if bytes > MAX_BYTES {
            return Err(Error::new(code::OUT_OF_MEMORY, "out of memory: too many variables"));
        }
        self.bytes = bytes;
        self.contexts.push(copy);
        Ok(())
    }

    /// Closes a context; the first one stays.
    pub fn pop(&mut self) {
        if self.contexts.len() > 1
            && let Some(old) = self.contexts.pop()
        {
            self.bytes -= size(&old);
        }
    }
}

fn size(context: &BTreeMap<String, Variable>) -> usize {
    context.iter().map(|(name, v)| name.len() + v.value.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exported_variables_are_inherited() {
        let mut env = Environment::default();
        env.set("a", "1").unwrap();
        env.set("b", "2").unwrap();
        env.export("b").unwrap();
        env.push().unwrap();
        assert_eq!((env.get("a"), env.get("b")), (None, Some("2")));
        env.set("b", "3").unwrap();
        env.push().unwrap();
        assert_eq!(env.get("b"), Some("3"));
        env.pop();
        env.pop();
        env.pop();
        assert_eq!((env.get("a"), env.get("b")), (Some("1"), Some("2")));
        env.unset("a");
        env.unset("b");
        assert_eq!(env.bytes, 0);
    }

    #[test]
    fn memory_is_bounded() {
        let mut env = Environment::default();
        env.set("a", &"x".repeat(MAX_BYTES / 2)).unwrap();
        env.set("a", &"y".repeat(MAX_BYTES / 2)).unwrap();
        env.export("a").unwrap();
        assert_eq!(env.set("b", &"x".repeat(MAX_BYTES / 2)).unwrap_err().code, code::OUT_OF_MEMORY);
        assert!(env.push().is_err() || env.push().is_err());
        assert!(env.set("", "x").is_err());
    }
}
