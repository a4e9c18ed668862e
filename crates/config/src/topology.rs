//! How many virtual CPUs there are and how they are grouped.

use crate::error::{Error, Problem};
use crate::tree::Tree;

/// Most vCPUs that the count of a VM can hold; the engine may allow fewer.
const MAX_CPUS: i64 = 65535;

/// The virtual CPUs of a VM. `cpus` is always the product of the other three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// All virtual CPUs.
    pub cpus: u32,
    /// Sockets.
    pub sockets: u32,
    /// Cores in each socket.
    pub cores: u32,
    /// Threads in each core.
    pub threads: u32,
}

impl Topology {
    /// Reads the topology. What is left out is completed as bhyve does: without `sockets` every vCPU is
    /// a socket of its own, without `cpus` there are as many as the product says.
    pub fn of(tree: &Tree) -> Result<Self, Error> {
        let count = |key: &str| -> Result<Option<i64>, Error> {
            if tree.raw(key).is_none() {
                return Ok(None);
            }
            let number = tree.integer(key)?;
            if number.is_some_and(|n| (1..=MAX_CPUS).contains(&n)) {
                return Ok(number);
            }
            let value = tree.get(key)?.unwrap_or_default();
            let expected = format!("expected an integer from 1 to {MAX_CPUS}");
            Err(Error::new(&tree.origin(key), Problem::Value { key: key.to_owned(), value, expected }))
        };
        let cpus = count("cpus")?;
        let cores = count("cores")?.unwrap_or(1);
        let threads = count("threads")?.unwrap_or(1);
        let sockets = count("sockets")?.or(cpus).unwrap_or(1);
        // Each factor is below 2^16, so the product of three fits.
        let product = sockets * cores * threads;
        let at = ["cpus", "sockets", "cores", "threads"].into_iter().find(|key| tree.raw(key).is_some());
        let error = |message: String| tree.error(at.unwrap_or("cpus"), message);
        if product > MAX_CPUS {
            return Err(error(format!("{product} virtual CPUs are more than {MAX_CPUS}")));
        }
        if let Some(cpus) = cpus.filter(|cpus| *cpus != product) {
            return Err(error(format!(
                "topology of {sockets} sockets, {cores} cores and {threads} threads makes {product} virtual CPUs, not {cpus}"
            )));
        }
        let narrow = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Self {
            cpus: narrow(product),
            sockets: narrow(sockets),
            cores: narrow(cores),
            threads: narrow(threads),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(pairs: &[(&str, &str)]) -> Result<Topology, Error> {
        let mut tree = Tree::new();
        for (key, value) in pairs {
            tree.set(key, value).unwrap();
        }
        Topology::of(&tree)
    }

    #[test]
    fn completed_as_bhyve_does() {
        let made = |cpus, sockets, cores, threads| Topology { cpus, sockets, cores, threads };
        for (pairs, expected) in [
            (&[][..], made(1, 1, 1, 1)),
            (&[("cpus", "4")], made(4, 4, 1, 1)),
            (&[("cores", "4"), ("threads", "2")], made(8, 1, 4, 2)),
            (&[("cpus", "8"), ("sockets", "2"), ("cores", "4")], made(8, 2, 4, 1)),
            (&[("sockets", "0x3")], made(3, 3, 1, 1)),
        ] {
            assert_eq!(topology(pairs), Ok(expected), "{pairs:?}");
        }
    }

    #[test]
    fn refused() {
        for pairs in [
            &[("cpus", "0")][..],
            &[("cpus", "-1")],
            &[("cpus", "65536")],
            &[("cpus", "two")],
            &[("cpus", "")],
            &[("cpus", "4"), ("cores", "4")],
            &[("cpus", "4"), ("sockets", "3")],
            &[("sockets", "65535"), ("cores", "65535"), ("threads", "65535")],
        ] {
            assert_eq!(topology(pairs).unwrap_err().exit_code(), 4, "{pairs:?}");
        }
    }
}
