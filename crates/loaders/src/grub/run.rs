//! Runs statements.

use std::rc::Rc;

use super::commands;
use super::error::{Error, Outcome, code};
use super::files;
use super::menu::Menu;
use super::script::{ParseError, Parser, Statement, Word};
use super::{Session, Stop};
use crate::console::Line;

/// Statements that may be run from one command, menu entry or configuration file: more than any
/// of them needs, and still only seconds. Long arguments and files count for more.
const MAX_STEPS: u64 = 1_000_000;
/// So many bytes count as much as a statement.
const BYTES_PER_STEP: u64 = 256;
/// What a command counts for, in bytes: most of them read something.
const COMMAND: usize = 1 << 10;
/// Most words and statements of all functions together.
const MAX_FUNCTIONS: usize = 200_000;
/// How deeply functions, files and statements may call each other.
const MAX_DEPTH: usize = 200;
/// Largest configuration file.
const MAX_FILE: u64 = 1 << 20;
/// How often a long run looks whether the user wants it to end.
const LOOK_EVERY: u64 = 64;
/// Longest command over several lines.
const MAX_TYPED: usize = 1 << 20;

/// How it goes on after a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// With the next one.
    Next,
    /// Behind so many loops.
    Break(u32),
    /// With the next turn of the loop that is so many out.
    Continue(u32),
    /// Behind the function or file.
    Return,
    /// Not at all: the user or a limit stopped it, or the session is over.
    Abort,
}

impl Session<'_> {
    /// A new command starts: it may take its time.
    pub(super) fn refill(&mut self) {
        self.steps = MAX_STEPS;
        self.pager.reset();
    }

    /// Runs a text. Errors are shown; `name` is what they call it.
    pub(super) fn run_text(&mut self, text: &str, name: Option<&str>) -> Flow {
        let mut parser = Parser::new(text);
        loop {
            match parser.next() {
                Ok(None) => return Flow::Next,
                Ok(Some(statement)) => match self.statement(&statement) {
                    Flow::Next => {}
                    flow => return flow,
                },
                Err(error) => {
                    self.complain_syntax(&error, name, parser.line());
                    if error == ParseError::Incomplete || !self.step() {
                        return Flow::Next;
                    }
                }
            }
        }
    }

    fn complain_syntax(&mut self, error: &ParseError, name: Option<&str>, line: usize) {
        let place = |line: usize| name.map(|name| format!("{name}:{line}: ")).unwrap_or_default();
        let message = match error {
            ParseError::Incomplete => format!("{}syntax error: the text ends too early", place(line)),
            ParseError::Syntax(line, near) => format!("{}syntax error at `{near}'", place(*line)),
            ParseError::Depth(line) => format!("{}statements are nested too deeply", place(*line)),
        };
        self.status = code::BAD_ARGUMENT;
        self.complain(&Error::argument(message));
    }

    /// Counts a statement. False: this run has to end.
    fn step(&mut self) -> bool {
        if self.stop.is_some() {
            return false;
        }
        if self.steps == 0 {
            return false;
        }
        self.steps -= 1;
        if self.steps == 0 {
            self.complain(&Error::argument(format!("gave up after {MAX_STEPS} statements")));
            return false;
        }
        if self.steps.is_multiple_of(LOOK_EVERY) && self.console.interrupted() {
            self.steps = 0;
            self.complain(&Error::argument("interrupted"));
            return false;
        }
        true
    }

    /// Counts bytes that were worked on.
    pub(super) fn charge(&mut self, bytes: usize) {
        // The last step is for the complaint.
        self.steps = self.steps.saturating_sub(bytes as u64 / BYTES_PER_STEP).max(self.steps.min(1));
    }

    pub(super) fn list(&mut self, list: &[Statement]) -> Flow {
        for statement in list {
            match self.statement(statement) {
                Flow::Next => {}
                flow => return flow,
            }
        }
        Flow::Next
    }

    fn statement(&mut self, statement: &Statement) -> Flow {
        if !self.step() {
            return Flow::Abort;
        }
        if self.depth >= MAX_DEPTH {
            self.complain(&Error::argument("functions, files and statements are nested too deeply"));
            self.steps = 0;
            return Flow::Abort;
        }
        self.depth += 1;
        let flow = match statement {
            Statement::Command { words, block } => match self.expand(words) {
                Ok(arguments) => self.command(&arguments, block.as_ref()),
                Err(error) => self.finish(Err(error)),
            },
            Statement::If { branches, otherwise } => self.conditional(branches, otherwise.as_deref()),
            Statement::While { condition, body, until } => self.repeat(condition, body, *until),
            Statement::For { name, words, body } => match self.expand(words) {
                Ok(values) => self.each(name, &values, body),
                Err(error) => self.finish(Err(error)),
            },
            Statement::Function { name, body } => {
                let result = self.define(name, body);
                self.finish(result)
            }
        };
        self.depth -= 1;
        flow
    }

    /// Notes how a command ended, and shows its error.
    fn finish(&mut self, result: Outcome) -> Flow {
        match result {
            Ok(()) => self.status = 0,
            Err(error) => {
                self.status = error.code;
                self.complain(&error);
            }
        }
        if self.stop.is_some() { Flow::Abort } else { Flow::Next }
    }

    fn conditional(
        &mut self,
        branches: &[(Vec<Statement>, Vec<Statement>)],
        otherwise: Option<&[Statement]>,
    ) -> Flow {
        for (condition, body) in branches {
            match self.list(condition) {
                Flow::Next => {}
                flow => return flow,
            }
            if self.status == 0 {
                return self.list(body);
            }
        }
        self.status = 0;
        otherwise.map_or(Flow::Next, |list| self.list(list))
    }

    fn repeat(&mut self, condition: &[Statement], body: &[Statement], until: bool) -> Flow {
        let mut status = 0;
        loop {
            match self.list(condition) {
                Flow::Next => {}
                Flow::Break(1) => break,
                flow => return flow,
            }
            if (self.status == 0) == until {
                break;
            }
            let flow = self.list(body);
            status = self.status;
            match turn(flow) {
                Turn::Again => {}
                Turn::Done => break,
                Turn::Leave(flow) => return flow,
            }
        }
        self.status = status;
        Flow::Next
    }

    fn each(&mut self, name: &str, values: &[String], body: &[Statement]) -> Flow {
        for value in values {
            if !self.step() {
                return Flow::Abort;
            }
            if let Err(error) = self.env.set(name, value) {
                return self.finish(Err(error));
            }
            match turn(self.list(body)) {
                Turn::Again => {}
                Turn::Done => break,
                Turn::Leave(flow) => return flow,
            }
        }
        Flow::Next
    }

    /// Runs a command, a function or an assignment.
    pub(super) fn command(&mut self, arguments: &[String], block: Option<&Rc<str>>) -> Flow {
        let Some((name, rest)) = arguments.split_first() else {
            self.status = 0;
            return Flow::Next;
        };
        if name == "!" {
            if rest.is_empty() {
                return self.finish(Err(Error::argument("no command is specified")));
            }
            let flow = self.command(rest, block);
            self.status = if self.status == 0 { code::TEST_FAILURE } else { 0 };
            return flow;
        }
        if let Some(block) = block {
            let result = match name.as_str() {
                "menuentry" => self.add_entry(rest, block, false),
                "submenu" => self.add_entry(rest, block, true),
                _ => Err(Error::argument(format!("`{name}' takes no block"))),
            };
            return self.finish(result);
        }
        match commands::control(name, rest) {
            Some(Ok((flow, status))) => {
                self.status = status.unwrap_or(self.status);
                return flow;
            }
            Some(Err(error)) => return self.finish(Err(error)),
            None => {}
        }
        if let Some(command) = commands::find(name) {
            self.charge(COMMAND);
            let result = (command.run)(self, rest);
            return self.finish(result);
        }
        if let Some(body) = self.functions.get(name).cloned() {
            return self.call(&body, rest);
        }
        if let Some((variable, value)) = name.split_once('=') {
            let result = self.assign(variable, value);
            return self.finish(result);
        }
        let error = match commands::refused(name) {
            Some(why) => Error::new(code::NOT_IMPLEMENTED, format!("`{name}' is not supported: {why}")),
            None => Error::new(code::UNKNOWN_COMMAND, format!("can't find command `{name}'")),
        };
        self.finish(Err(error))
    }

    fn define(&mut self, name: &str, body: &Rc<Vec<Statement>>) -> Outcome {
        let old = self.functions.get(name).map_or(0, |body| weight(body));
        let all = self.functions_weight - old + weight(body);
        if all > MAX_FUNCTIONS {
            return Err(Error::new(code::OUT_OF_MEMORY, "out of memory: too many functions"));
        }
        self.functions_weight = all;
        self.functions.insert(name.to_owned(), Rc::clone(body));
        Ok(())
    }

    fn call(&mut self, body: &[Statement], arguments: &[String]) -> Flow {
        self.arguments.push(arguments.to_vec());
        let flow = self.list(body);
        self.arguments.pop();
        match flow {
            Flow::Abort => Flow::Abort,
            // A break or continue outside of a loop ends the function, as a return does.
            _ => Flow::Next,
        }
    }

    /// Sets a variable from the shell.
    pub(super) fn assign(&mut self, name: &str, value: &str) -> Outcome {
        self.env.set(name, value)
    }

    /// `source`: runs a file as if it stood here.
    pub(super) fn source(&mut self, name: &str, arguments: &[String]) -> Outcome {
        let source = self.open(name)?;
        let text = files::read(&source, name, MAX_FILE)?;
        self.charge(text.len());
        let text = String::from_utf8_lossy(&text).into_owned();
        if self.depth >= MAX_DEPTH {
            return Err(Error::argument("functions, files and statements are nested too deeply"));
        }
        self.depth += 1;
        let pushed = !arguments.is_empty();
        if pushed {
            self.arguments.push(arguments.to_vec());
        }
        self.status = 0;
        self.run_text(&text, Some(name));
        if pushed {
            self.arguments.pop();
        }
        self.depth -= 1;
        match self.status {
            0 => Ok(()),
            // It has been shown already.
            status => Err(Error::new(status, "")),
        }
    }

    /// `eval`: runs a text as if it stood here.
    pub(super) fn eval(&mut self, text: &str) -> Outcome {
        self.status = 0;
        self.run_text(text, None);
        match self.status {
            0 => Ok(()),
            // It has been shown already.
            status => Err(Error::new(status, "")),
        }
    }

    /// `configfile`: runs a file in a context of its own, and shows the menu that it makes.
    pub(super) fn configfile(&mut self, name: &str) -> Outcome {
        self.env.push()?;
        let menu = std::mem::take(&mut self.menu);
        let result = self.source(name, &[]);
        let result = if self.stop.is_none() && !self.menu.is_empty() {
            self.show_menu(true);
            Ok(())
        } else {
            result
        };
        self.menu = menu;
        self.env.pop();
        result
    }

    /// Runs `body` as the entry of a menu: errors are shown, and a kernel that was loaded starts.
    pub(super) fn run_body(&mut self, body: &str, arguments: Vec<String>) {
        self.refill();
        self.kernel = None;
        self.status = 0;
        self.arguments.push(arguments);
        self.run_text(body, None);
        self.arguments.pop();
        if self.status == 0 && self.stop.is_none() && self.kernel.is_some() && self.steps > 0 {
            let result = self.boot();
            self.finish(result);
        }
    }

    /// Asks for commands and runs them until the session ends or, if there is a menu to go back to,
    /// the user leaves.
    pub(super) fn prompt(&mut self, from_menu: bool) {
        if self.stop.is_none() && self.console.is_terminal() {
            self.print("\n   TAB completes commands, devices and files; `help' lists the commands.");
            self.print(if from_menu { " ESC goes back to the menu.\n\n" } else { "\n\n" });
        }
        while self.stop.is_none() {
            match self.ask("grub> ") {
                Line::Text(text) => self.typed(text),
                Line::Interrupted => {}
                Line::Escape if from_menu => return,
                Line::Escape => {}
                Line::End => self.stop = Some(Stop::InputEnd),
            }
        }
    }

    fn ask(&mut self, prompt: &str) -> Line {
        if self.column > 0 {
            self.print("\n");
        }
        // The editor is taken out while it works, as completion needs the rest of the session.
        let mut editor = std::mem::take(&mut self.editor);
        let mut complete = super::complete::Completer { disks: self.disks, root: self.env.get("root") };
        let line = editor.read(self.console, prompt, &mut complete);
        self.editor = editor;
        self.column = 0;
        line
    }

    /// Runs a command, of several lines if it needs them.
    fn typed(&mut self, mut text: String) {
        while incomplete(&text) && text.len() < MAX_TYPED {
            match self.ask("> ") {
                Line::Text(more) => {
                    text.push('\n');
                    text.push_str(&more);
                }
                Line::End => {
                    self.stop = Some(Stop::InputEnd);
                    return;
                }
                Line::Interrupted | Line::Escape => return,
            }
        }
        self.refill();
        self.run_text(&text, None);
    }

    /// The menu that is being made.
    pub(super) fn menu_mut(&mut self) -> &mut Menu {
        &mut self.menu
    }
}

/// How many words and statements there are; long words count for more.
fn weight(list: &[Statement]) -> usize {
    let words = |words: &[Word]| words.iter().map(|word| 1 + word.len() / 64).sum::<usize>();
    let one = |statement: &Statement| match statement {
        Statement::Command { words: w, .. } => 1 + words(w),
        Statement::If { branches, otherwise } => {
            let branches = branches.iter().map(|(a, b)| weight(a) + weight(b));
            1 + branches.sum::<usize>() + otherwise.as_deref().map_or(0, weight)
        }
        Statement::While { condition, body, .. } => 1 + weight(condition) + weight(body),
        Statement::For { words: w, body, .. } => 1 + words(w) + weight(body),
        Statement::Function { body, .. } => 1 + weight(body),
    };
    list.iter().map(one).sum()
}

fn incomplete(text: &str) -> bool {
    let mut parser = Parser::new(text);
    loop {
        match parser.next() {
            Ok(None) => return false,
            Ok(Some(_)) => {}
            Err(error) => return error == ParseError::Incomplete,
        }
    }
}

enum Turn {
    Again,
    Done,
    Leave(Flow),
}

/// What a loop does after a turn that ended so.
fn turn(flow: Flow) -> Turn {
    match flow {
        Flow::Next | Flow::Continue(0 | 1) => Turn::Again,
        Flow::Break(0 | 1) => Turn::Done,
        Flow::Break(n) => Turn::Leave(Flow::Break(n - 1)),
        Flow::Continue(n) => Turn::Leave(Flow::Continue(n - 1)),
        Flow::Return | Flow::Abort => Turn::Leave(flow),
    }
}
