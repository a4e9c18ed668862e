//! A terminal to ask on: output, keys, a line editor with history and completion, a pager.
//!
//! Everything that asks works on a [`Console`], so that a test can be the user.

// Text is made by what reads best.
#![allow(clippy::format_push_string)]

mod keys;
mod line;
mod pager;
mod restore;
mod terminal;
#[cfg(test)]
pub mod testing;
mod width;

use std::time::Duration;

pub use keys::{Decoder, Key};
pub use line::{Candidate, Complete, Completion, Line, LineEditor, NoCompletion, secret};
pub use pager::Pager;
pub use restore::terminated;
pub use terminal::Terminal;
pub use width::{char_width, clip, text_width};

/// What came from the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A key.
    Key(Key),
    /// Nothing, for as long as was asked for.
    Timeout,
    /// Nothing will ever come again: the end of a file or pipe, or the terminal is gone.
    End,
}

/// Where a loader speaks with its user.
pub trait Console {
    /// Writes text; `\n` starts a new line. What can't be written is lost, as on a real terminal.
    fn write(&mut self, text: &str);

    /// The next key; without a time-out as long as that takes.
    fn key(&mut self, timeout: Option<Duration>) -> Input;

    /// Whether the user asked to stop what is going on (Ctrl-C). Other keys wait for
    /// [`Console::key`].
    fn interrupted(&mut self) -> bool;

    /// Whether a person at a terminal sees the output and types: else no control sequences are
    /// written and nothing is echoed.
    fn is_terminal(&self) -> bool;

    /// Columns and rows.
    fn size(&self) -> (usize, usize);
}
