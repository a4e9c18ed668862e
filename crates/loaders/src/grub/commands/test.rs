//! `test` and `[`.

use media::Kind;

use super::{Command, command};
use crate::grub::Session;
use crate::grub::error::{Error, Outcome};
use crate::grub::files;

pub(super) const COMMANDS: &[Command] = &[
    command("true", "", "Succeed.", |_, _| Ok(())),
    command("false", "", "Fail.", |_, _| Err(Error::test_failure())),
    command("test", "EXPRESSION", "Test an expression.", test),
    command("[", "EXPRESSION ]", "Test an expression.", bracket),
];

/// How deeply parentheses and negations may be nested.
const MAX_DEPTH: usize = 32;

fn bracket(session: &mut Session, arguments: &[String]) -> Outcome {
    match arguments.split_last() {
        Some((last, rest)) if last == "]" => test(session, rest),
        _ => Err(Error::argument("missing `]'")),
    }
}

fn test(session: &mut Session, arguments: &[String]) -> Outcome {
    let mut expression = Expression { session, arguments, at: 0 };
    let value = expression.either(MAX_DEPTH)?;
    if expression.at < arguments.len() {
        return Err(Error::argument(format!("unexpected `{}' in a test", expression.peek(0))));
    }
    if value { Ok(()) } else { Err(Error::test_failure()) }
}

struct Expression<'a, 'b> {
    session: &'a Session<'b>,
    arguments: &'a [String],
    at: usize,
}

impl<'a> Expression<'a, '_> {
    fn peek(&self, ahead: usize) -> &'a str {
        self.arguments.get(self.at + ahead).map(String::as_str).unwrap_or_default()
    }

    fn left(&self) -> usize {
        self.arguments.len().saturating_sub(self.at)
    }

    fn either(&mut self, depth: usize) -> Outcome<bool> {
        let mut value = self.both(depth)?;
        while self.left() > 0 && self.peek(0) == "-o" {
            self.at += 1;
            value |= self.both(depth)?;
        }
        Ok(value)
    }

    fn both(&mut self, depth: usize) -> Outcome<bool> {
        let mut value = self.primary(depth)?;
        while self.left() > 0 && self.peek(0) == "-a" {
            self.at += 1;
            value &= self.primary(depth)?;
        }
        Ok(value)
    }

    fn primary(&mut self, depth: usize) -> Outcome<bool> {
        if depth == 0 {
            return Err(Error::argument("a test is nested too deeply"));
        }
        if self.left() >= 3
            && let Some(value) = self.binary(self.peek(0), self.peek(1), self.peek(2))?
        {
            self.at += 3;
            return Ok(value);
        }
        if self.left() >= 2
            && let Some(value) = self.unary(self.peek(0), self.peek(1))
        {
            self.at += 2;
            return Ok(value);
        }
        match self.peek(0) {
            "" if self.left() == 0 => Ok(false),
            "!" => {
                self.at += 1;
                Ok(!self.primary(depth - 1)?)
            }
            "(" => {
                self.at += 1;
                let value = self.either(depth - 1)?;
                if self.peek(0) != ")" {
                    return Err(Error::argument("missing `)' in a test"));
                }
                self.at += 1;
                Ok(value)
            }
            text => {
                self.at += 1;
                Ok(!text.is_empty())
            }
        }
    }

    fn binary(&self, a: &str, operator: &str, b: &str) -> Outcome<Option<bool>> {
        let numbers = || Ok::<_, Error>((number(a)?, number(b)?));
        Ok(Some(match operator {
            "=" | "==" => a == b,
            "!=" => a != b,
            "<" => a < b,
            "<=" => a <= b,
            ">" => a > b,
            ">=" => a >= b,
            "-eq" => numbers().map(|(a, b)| a == b)?,
            "-ne" => numbers().map(|(a, b)| a != b)?,
            "-lt" => numbers().map(|(a, b)| a < b)?,
            "-le" => numbers().map(|(a, b)| a <= b)?,
            "-gt" => numbers().map(|(a, b)| a > b)?,
            "-ge" => numbers().map(|(a, b)| a >= b)?,
            "-pgt" | "-plt" => {
                // A common prefix that is no number is left out.
                let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b && !a.is_ascii_digit());
                let skip: usize = same.map(|(c, _)| c.len_utf8()).sum();
                let value = |text: &str| leading_number(text.get(skip..).unwrap_or_default());
                if operator == "-pgt" { value(a) > value(b) } else { value(a) < value(b) }
            }
            _ => {
                let Some((newer, bias)) = operator
                    .strip_prefix("-nt")
                    .map(|bias| (true, bias))
                    .or_else(|| operator.strip_prefix("-ot").map(|bias| (false, bias)))
                else {
                    return Ok(None);
                };
                let bias = if bias.is_empty() { 0 } else { number(bias)? };
                match (self.modified(a), self.modified(b)) {
                    (Some(a), Some(b)) if newer => a.saturating_add(bias) > b,
                    (Some(a), Some(b)) => a.saturating_sub(bias) < b,
                    _ => false,
                }
            }
        }))
    }

    fn unary(&self, operator: &str, argument: &str) -> Option<bool> {
        let kind = |wanted: Kind| self.metadata(argument).is_some_and(|m| m.kind == wanted);
        Some(match operator {
            "-n" => !argument.is_empty(),
            "-z" => argument.is_empty(),
            "-d" => kind(Kind::Directory),
            "-f" => kind(Kind::File),
            "-e" => self.metadata(argument).is_some(),
            "-s" => self.metadata(argument).is_some_and(|m| m.size > 0),
            _ => return None,
        })
    }

    fn metadata(&self, name: &str) -> Option<media::Metadata> {
        files::node(self.session.disks, name, self.session.env.get("root")).ok()?.metadata().ok()
    }

    fn modified(&self, name: &str) -> Option<i64> {
        self.metadata(name)?.modified
    }
}

/// A number, decimal, hexadecimal or octal.
fn number(text: &str) -> Outcome<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => i64::from_str_radix(hex, 16),
        None if digits.len() > 1 && digits.starts_with('0') => i64::from_str_radix(digits, 8),
        None => digits.parse(),
    };
    let value = value.map_err(|_| Error::argument(format!("unrecognized number `{text}'")))?;
    Ok(if negative { -value } else { value })
}

fn leading_number(text: &str) -> u64 {
    let digits = text.chars().map_while(|c| c.to_digit(10));
    digits.fold(0u64, |n, d| n.saturating_mul(10).saturating_add(u64::from(d)))
}
