//! The boot loaders' user side: console and line editor, GRUB's shell and menu, FreeBSD's loader.
#![forbid(unsafe_code)]

pub mod console;
pub mod freebsd;
pub mod grub;
