//! Words and signs to statements.

use std::rc::Rc;

use super::lex::{Lexer, Token};
use super::{List, ParseError, Statement, Word};

/// How deeply statements may be nested.
const MAX_DEPTH: usize = 64;

/// Words that begin or end statements where a command could stand.
const KEYWORDS: [&str; 17] = [
    "if", "then", "elif", "else", "fi", "while", "until", "do", "done", "for", "in", "function", "case",
    "esac", "select", "[[", "]]",
];

/// Takes statements out of a text, one after another: what comes before an error is run.
pub struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The next token, if it was looked at, and where it starts.
    peeked: Option<(Token, usize)>,
    depth: usize,
}

/// How a list ends.
enum Until {
    Words(&'static [&'static str]),
    Brace,
}

impl<'a> Parser<'a> {
    /// A parser for this text.
    pub fn new(text: &'a str) -> Self {
        Self { lexer: Lexer::new(text), peeked: None, depth: 0 }
    }

    /// The next statement; `None` at the end. After an error the rest of the line is left out.
    pub fn next(&mut self) -> Result<Option<Statement>, ParseError> {
        let result = self.top();
        if let Err(error) = &result
            && *error != ParseError::Incomplete
        {
            self.recover();
        }
        result
    }

    /// The line in which the parser is, counted from 1.
    pub fn line(&self) -> usize {
        self.lexer.line()
    }

    fn top(&mut self) -> Result<Option<Statement>, ParseError> {
        self.depth = 0;
        self.delimiters()?;
        if *self.peek()? == Token::End {
            return Ok(None);
        }
        let statement = self.statement()?;
        // Two statements need something between them.
        match self.peek()? {
            Token::Newline | Token::Semicolon | Token::End => Ok(Some(statement)),
            _ => Err(self.unexpected()),
        }
    }

    fn recover(&mut self) {
        match self.peeked.take() {
            Some((Token::Newline, _)) => {}
            _ => self.lexer.skip_line(),
        }
    }

    fn peek(&mut self) -> Result<&Token, ParseError> {
        if self.peeked.is_none() {
            let at = self.lexer.position();
            self.peeked = Some((self.lexer.next()?, at));
        }
        // Filled above.
        self.peeked.as_ref().map(|(token, _)| token).ok_or(ParseError::Incomplete)
    }

    fn take(&mut self) -> Result<Token, ParseError> {
        self.peek()?;
        self.peeked.take().map(|(token, _)| token).ok_or(ParseError::Incomplete)
    }

    /// The next token if it is a bare word.
    fn keyword(&mut self) -> Result<Option<&str>, ParseError> {
        Ok(match self.peek()? {
            Token::Word(word) => word.plain(),
            _ => None,
        })
    }

    fn unexpected(&mut self) -> ParseError {
        let near = match &self.peeked {
            Some((Token::End, _)) | None => return ParseError::Incomplete,
            Some((Token::Word(word), at)) => match word.plain() {
                Some(text) => text.to_owned(),
                None => {
                    self.lexer.text().get(*at..self.lexer.position()).unwrap_or_default().trim().to_owned()
                }
            },
            Some((Token::Newline, _)) => "end of line".to_owned(),
            Some((Token::Semicolon, _)) => ";".to_owned(),
            Some((Token::Open, _)) => "{".to_owned(),
            Some((Token::Close, _)) => "}".to_owned(),
            Some((Token::Reserved(sign), _)) => (*sign).to_owned(),
        };
        let newline = matches!(self.peeked, Some((Token::Newline, _)));
        ParseError::Syntax(self.lexer.line() - usize::from(newline), near)
    }

    /// Takes a word that must come, after any delimiters.
    fn expect(&mut self, wanted: &str) -> Result<(), ParseError> {
        self.delimiters()?;
        if self.keyword()? == Some(wanted) { self.take().map(drop) } else { Err(self.unexpected()) }
    }

    fn delimiters(&mut self) -> Result<(), ParseError> {
        while matches!(self.peek()?, Token::Newline | Token::Semicolon) {
            self.take()?;
        }
        Ok(())
    }

    fn statement(&mut self) -> Result<Statement, ParseError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ParseError::Depth(self.lexer.line()));
        }
        let statement = match self.keyword()? {
            Some("if") => self.conditional(),
            Some("while") => self.repeat(false),
            Some("until") => self.repeat(true),
            Some("for") => self.each(),
            Some("function") => self.function(),
            Some(word) if KEYWORDS.contains(&word) => Err(self.unexpected()),
            _ => self.command(),
        };
        self.depth -= 1;
        statement
    }

    /// Statements up to one of the given ends, which stays.
    fn list(&mut self, until: &Until) -> Result<List, ParseError> {
        let mut list = List::new();
        loop {
            self.delimiters()?;
            match until {
                Until::Brace if *self.peek()? == Token::Close => return Ok(list),
                Until::Words(ends) if self.keyword()?.is_some_and(|w| ends.contains(&w)) => {
                    if list.is_empty() {
                        return Err(self.unexpected());
                    }
                    return Ok(list);
                }
                _ => {}
            }
            if *self.peek()? == Token::End {
                return Err(ParseError::Incomplete);
            }
            list.push(self.statement()?);
            match self.peek()? {
                Token::Newline | Token::Semicolon => {}
                Token::Close if matches!(until, Until::Brace) => {}
                Token::End => return Err(ParseError::Incomplete),
                // A compound statement's end may be followed by that of the one around it.
                Token::Word(word) if matches!(until, Until::Words(ends) if word.plain().is_some_and(|w| ends.contains(&w))) =>
                    {}
                _ => return Err(self.unexpected()),
            }
        }
    }

    fn conditional(&mut self) -> Result<Statement, ParseError> {
        self.take()?;
        let mut branches = Vec::new();
        loop {
            let condition = self.list(&Until::Words(&["then"]))?;
            self.expect("then")?;
            let body = self.list(&Until::Words(&["elif", "else", "fi"]))?;
            branches.push((condition, body));
            if self.keyword()? != Some("elif") {
                break;
            }
            self.take()?;
        }
        let otherwise = if self.keyword()? == Some("else") {
            self.take()?;
            Some(self.list(&Until::Words(&["fi"]))?)
        } else {
            None
        };
        self.expect("fi")?;
        Ok(Statement::If { branches, otherwise })
    }

    fn repeat(&mut self, until: bool) -> Result<Statement, ParseError> {
        self.take()?;
        let condition = self.list(&Until::Words(&["do"]))?;
        let body = self.body()?;
        Ok(Statement::While { condition, body, until })
    }

    fn body(&mut self) -> Result<List, ParseError> {
        self.expect("do")?;
        let body = self.list(&Until::Words(&["done"]))?;
        self.expect("done")?;
        Ok(body)
    }

    /// A name of a variable or a function.
    fn name(&mut self) -> Result<String, ParseError> {
        match self.keyword()? {
            Some(name) => {
                let name = name.to_owned();
                self.take()?;
                Ok(name)
            }
            None => Err(self.unexpected()),
        }
    }

    fn each(&mut self) -> Result<Statement, ParseError> {
        self.take()?;
        let name = self.name()?;
        self.expect("in")?;
        let words = self.words()?;
        if !matches!(self.peek()?, Token::Newline | Token::Semicolon) {
            return Err(self.unexpected());
        }
        let body = self.body()?;
        Ok(Statement::For { name, words, body })
    }

    fn function(&mut self) -> Result<Statement, ParseError> {
        self.take()?;
        let name = self.name()?;
        self.delimiters()?;
        if *self.peek()? != Token::Open {
            return Err(self.unexpected());
        }
        self.take()?;
        let body = self.list(&Until::Brace)?;
        self.take()?;
        Ok(Statement::Function { name, body: Rc::new(body) })
    }

    fn words(&mut self) -> Result<Vec<Word>, ParseError> {
        let mut words = Vec::new();
        while matches!(self.peek()?, Token::Word(_)) {
            if let Token::Word(word) = self.take()? {
                words.push(word);
            }
        }
        Ok(words)
    }

    fn command(&mut self) -> Result<Statement, ParseError> {
        let words = self.words()?;
        if words.is_empty() {
            return Err(self.unexpected());
        }
        let block = if *self.peek()? == Token::Open { Some(self.block()?) } else { None };
        Ok(Statement::Command { words, block })
    }

    /// The text of a block. What is in it must be statements.
    fn block(&mut self) -> Result<Rc<str>, ParseError> {
        self.take()?;
        let start = self.lexer.position();
        self.list(&Until::Brace)?;
        self.take()?;
        let end = self.lexer.position().saturating_sub(1);
        Ok(self.lexer.text().get(start..end).unwrap_or_default().into())
    }
}
