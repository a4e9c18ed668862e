//! Text to words and signs.

use super::{ParseError, Piece, Word};

/// A word or a sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    Word(Word),
    Newline,
    Semicolon,
    /// `{`
    Open,
    /// `}`
    Close,
    /// A sign that the language reserves but has no use for.
    Reserved(&'static str),
    End,
}

/// Takes a text apart.
pub struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

const RESERVED: [&str; 7] = ["||", "&&", ";;", "|", "&", "<", ">"];

/// Whether a character may be part of a word as it is.
fn is_plain(c: char) -> bool {
    !matches!(c, '{' | '}' | '|' | '&' | '$' | ';' | '<' | '>' | ' ' | '\t' | '\r' | '\n' | '\'' | '"' | '\\')
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0, line: 1 }
    }

    /// Where the next token is looked for.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The line of the last character that was read, counted from 1.
    pub fn line(&self) -> usize {
        self.line
    }

    pub fn text(&self) -> &'a str {
        self.text
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at..)?.chars().next()
    }

    fn next_char(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        if c == '\n' {
            self.line += 1;
        }
        Some(c)
    }

    fn skip(&mut self, wanted: &str) -> bool {
        let found = self.text.get(self.at..).is_some_and(|rest| rest.starts_with(wanted));
        for _ in 0..if found { wanted.chars().count() } else { 0 } {
            self.next_char();
        }
        found
    }

    /// Goes on after the end of this line, whatever is in it.
    pub fn skip_line(&mut self) {
        while self.next_char().is_some_and(|c| c != '\n') {}
    }

    fn bad(&self, near: impl Into<String>) -> ParseError {
        ParseError::Syntax(self.line, near.into())
    }

    pub fn next(&mut self) -> Result<Token, ParseError> {
        loop {
            // A line may end in CR LF.
            while self.skip(" ") || self.skip("\t") || self.skip("\r") {}
            if matches!(self.text.get(self.at..), Some("\\" | "\\\r")) {
                return Err(ParseError::Incomplete);
            }
            if !self.skip("\\\n") && !self.skip("\\\r\n") {
                break;
            }
        }
        let Some(c) = self.peek() else { return Ok(Token::End) };
        if c == '#' {
            while self.peek().is_some_and(|c| c != '\n') {
                self.next_char();
            }
            return self.next_after_comment();
        }
        if let Some(sign) = RESERVED.iter().find(|sign| self.skip(sign)) {
            return Ok(Token::Reserved(sign));
        }
        let token = match c {
            '\n' => Token::Newline,
            ';' => Token::Semicolon,
            '{' => Token::Open,
            '}' => Token::Close,
            _ => return self.word().map(Token::Word),
        };
        self.next_char();
        Ok(token)
    }

    fn next_after_comment(&mut self) -> Result<Token, ParseError> {
        Ok(if self.next_char().is_some() { Token::Newline } else { Token::End })
    }

    fn word(&mut self) -> Result<Word, ParseError> {
        let mut word = Word::default();
        while let Some(c) = self.peek() {
            match c {
                '\'' => {
                    self.next_char();
                    let mut text = String::new();
                    loop {
                        match self.next_char().ok_or(ParseError::Incomplete)? {
                            '\'' => break,
                            c => text.push(c),
                        }
                    }
                    push(&mut word, Piece::Quoted(text));
                }
                '"' => {
                    self.next_char();
                    self.double_quoted(&mut word, true)?;
                }
                '\\' => {
                    self.next_char();
                    match self.next_char().ok_or(ParseError::Incomplete)? {
                        '\n' => {}
                        '\r' if self.skip("\n") => {}
                        c => push(&mut word, Piece::Quoted(c.into())),
                    }
                }
                '$' => {
                    self.next_char();
                    // A text to be translated: there are no translations.
                    if self.skip("\"") {
                        self.double_quoted(&mut word, false)?;
                    } else {
                        let name = self.variable()?;
                        push(&mut word, Piece::Variable(name));
                    }
                }
                c if is_plain(c) => {
                    self.next_char();
                    push(&mut word, Piece::Text(c.into()));
                }
                _ => break,
            }
        }
        Ok(word)
    }

    fn double_quoted(&mut self, word: &mut Word, variables: bool) -> Result<(), ParseError> {
        // Quotes make a word even if nothing is in them.
        push(word, Piece::Quoted(String::new()));
        loop {
            match self.next_char().ok_or(ParseError::Incomplete)? {
                '"' => return Ok(()),
                '\\' => match self.next_char().ok_or(ParseError::Incomplete)? {
                    '\n' => {}
                    c @ ('\\' | '"' | '$') => push(word, Piece::Quoted(c.into())),
                    c => push(word, Piece::Quoted(format!("\\{c}"))),
                },
                '$' if variables => {
                    let name = self.variable()?;
                    push(word, Piece::QuotedVariable(name));
                }
                c => push(word, Piece::Quoted(c.into())),
            }
        }
    }

    /// The name after a `$`.
    fn variable(&mut self) -> Result<String, ParseError> {
        let braces = self.skip("{");
        let start = self.at;
        match self.peek() {
            Some('?' | '#' | '*' | '@') => {
                self.next_char();
            }
            Some(c) if c.is_ascii_digit() => {
                while self.peek().is_some_and(|c| c.is_ascii_digit()) {
                    self.next_char();
                }
            }
            Some(c) if c.is_ascii_alphabetic() || c == '_' => {
                while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
                    self.next_char();
                }
            }
            None if braces => return Err(ParseError::Incomplete),
            _ => return Err(self.bad("$")),
        }
        let name = self.text.get(start..self.at).unwrap_or_default().to_owned();
        if braces && !self.skip("}") {
            let error = if self.peek().is_none() { ParseError::Incomplete } else { self.bad("${") };
            return Err(error);
        }
        Ok(name)
    }
}

/// Adds a piece; text of one kind stays together.
fn push(word: &mut Word, piece: Piece) {
    match (word.pieces.last_mut(), piece) {
        (Some(Piece::Text(before)), Piece::Text(text))
        | (Some(Piece::Quoted(before)), Piece::Quoted(text)) => before.push_str(&text),
        (_, piece) => word.pieces.push(piece),
    }
}
