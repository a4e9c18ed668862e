//! Option syntax of bhyve(8) and the configuration key tree of bhyve_config(5).
//!
//! [`Command::parse`] turns a command line into a [`Tree`]; [`validate`] checks the tree against the
//! declarations of all keys ([`GLOBAL_KEYS`] and those of the devices); the machine is then built from
//! the tree alone.
#![forbid(unsafe_code)]

mod command;
mod error;
mod file;
mod global;
mod help;
mod key;
mod legacy;
mod slot;
mod topology;
mod tree;
mod validate;
/// The forms that values have.
pub mod value;

pub use command::Command;
pub use error::{EXIT_ERROR, EXIT_OPTION, EXIT_USAGE, Error, Origin, Problem};
pub use global::KEYS as GLOBAL_KEYS;
pub use help::{LPC_HELP, USAGE, help};
pub use key::{Key, Kind, nearest};
pub use slot::PciAddress;
pub use topology::Topology;
pub use tree::{Node, Tree};
pub use validate::{MAX_NAME, check_name, unsupported, validate};
