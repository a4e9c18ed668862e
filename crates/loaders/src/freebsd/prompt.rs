//! The `OK` prompt.

use super::loader::{Done, Loader, Outcome, Stop};
use crate::console::{Candidate, Complete, Completion, Line, LineEditor};

/// Most candidates of a completion.
const MAX_CANDIDATES: usize = 500;

impl Loader<'_> {
    /// Asks for commands until one ends the loader.
    pub fn prompt(&mut self) -> Done {
        self.say("Type '?' for a list of commands, 'help' for more detailed help.");
        self.pager.enabled = self.console.is_terminal();
        let mut editor = LineEditor::default();
        loop {
            self.pager.reset();
            let prompt = match self.env.get("prompt") {
                // The default, and what Forth's prompt means.
                None | Some("" | "${interpret}") => "OK ".to_owned(),
                Some(prompt) => format!("{prompt} "),
            };
            let mut words = Words(self.words());
            let line = match editor.read(self.console, &prompt, &mut words) {
                Line::Text(line) => line,
                Line::Interrupted | Line::Escape => continue,
                Line::End => return Err(Stop::End(Outcome::Quit)),
            };
            self.pager.reset();
            match self.run_line(&line) {
                Err(Stop::Error(why)) => self.say(&why),
                result => result?,
            }
        }
    }

    /// What a word may be: a command, a variable, a file in a folder where modules are.
    fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = Self::command_names().map(str::to_owned).collect();
        words.extend(self.env.iter().map(|(name, _)| name.to_owned()));
        for folder in ["/", "/boot", "/boot/kernel"] {
            for name in self.names(folder).unwrap_or_default() {
                words.push(format!("{}/{name}", folder.trim_end_matches('/')));
            }
        }
        words
    }
}

/// Completes the word before the cursor.
struct Words(Vec<String>);

impl Complete for Words {
    fn complete(&mut self, before: &str) -> Completion {
        let start = before.rfind([' ', '=', '$']).map_or(0, |at| at + 1);
        let word = before.get(start..).unwrap_or_default();
        let fits = self.0.iter().filter(|w| w.starts_with(word)).take(MAX_CANDIDATES);
        let candidates = fits.map(|w| Candidate { text: w.clone(), shown: w.clone(), suffix: " " }).collect();
        Completion { start, title: "words", candidates }
    }
}
