//! GRUB's shell language: text to statements. What they do is in `run`.

mod lex;
mod parse;
#[cfg(test)]
mod tests;

use std::rc::Rc;

pub use parse::Parser;

/// A part of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text in which `*` and `?` are wildcards.
    Text(String),
    /// Quoted text.
    Quoted(String),
    /// A variable whose value is split at blanks.
    Variable(String),
    /// A variable in double quotes.
    QuotedVariable(String),
}

/// A word before expansion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// Its parts.
    pub pieces: Vec<Piece>,
}

impl Word {
    /// Bytes of its text.
    pub fn len(&self) -> usize {
        let piece = |piece: &Piece| match piece {
            Piece::Text(s) | Piece::Quoted(s) | Piece::Variable(s) | Piece::QuotedVariable(s) => s.len(),
        };
        self.pieces.iter().map(piece).sum()
    }

    /// The text, if the word is made of nothing else and has no quotes.
    pub fn plain(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }
}

/// Statements one after another.
pub type List = Vec<Statement>;

/// A statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// A command with its arguments, and the text of the block that follows it.
    Command {
        /// The name and the arguments.
        words: Vec<Word>,
        /// What stood between the braces.
        block: Option<Rc<str>>,
    },
    /// `if`.
    If {
        /// Conditions of `if` and `elif` with what follows them.
        branches: Vec<(List, List)>,
        /// What follows `else`.
        otherwise: Option<List>,
    },
    /// `while` and `until`.
    While {
        /// The condition.
        condition: List,
        /// The loop.
        body: List,
        /// Whether it goes on as long as the condition fails.
        until: bool,
    },
    /// `for`.
    For {
        /// The variable.
        name: String,
        /// Its values.
        words: Vec<Word>,
        /// The loop.
        body: List,
    },
    /// `function`.
    Function {
        /// Its name.
        name: String,
        /// What it does.
        body: Rc<List>,
    },
}

/// Why a text has no meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// More lines are needed.
    Incomplete,
    /// It has none, in this line (counted from 1) and about here.
    Syntax(usize, String),
    /// Statements are nested too deeply, in this line.
    Depth(usize),
}
