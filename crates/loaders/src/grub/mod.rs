//! GRUB's shell, menu and script language, as grub-bhyve has them.
//!
//! A [`Session`] is everything between the start and a kernel that is ready to run. It knows the
//! devices ([`media::disks::Disks`]), the user ([`Console`]) and a [`Target`], which is what `boot`
//! hands the kernel to.

// Commands have one signature, whether they can fail or not; and text is made by what reads best.
#![allow(clippy::unnecessary_wraps, clippy::format_push_string, clippy::format_collect)]

mod auth;
mod blscfg;
mod commands;
mod complete;
mod environment;
mod error;
mod expand;
mod files;
mod kernel;
mod menu;
mod options;
mod program;
mod run;
mod script;
#[cfg(test)]
mod tests;
mod time;
mod write;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;

use media::disks::Disks;

pub use kernel::Kernel;
pub use options::{Options, Parsed, USAGE, parse};
pub use program::main;

use crate::console::{Console, LineEditor, Pager};
use auth::Users;
use environment::Environment;
use error::{Error, Outcome};
use menu::Menu;
use script::List;

/// What kernels are handed to.
pub trait Target {
    /// Puts the kernel into the guest's memory, ready to run. After an error another one may come.
    fn boot(&mut self, kernel: &Kernel) -> Result<(), String>;
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A kernel is ready to run.
    Booted,
    /// `exit`, `halt` or `reboot`.
    Left,
    /// The input ended.
    InputEnd,
}

/// Where `save_env` finds the images: name of the disk and file of the host.
pub type ImagePaths = HashMap<String, PathBuf>;

/// A shell at work.
pub struct Session<'a> {
    console: &'a mut dyn Console,
    disks: &'a Disks,
    target: &'a mut dyn Target,
    images: ImagePaths,
    /// Environment blocks that were written, by device and path.
    blocks: HashMap<(String, String), Vec<u8>>,
    settings: Settings,
    env: Environment,
    functions: HashMap<String, Rc<List>>,
    /// Words and statements in them.
    functions_weight: usize,
    modules: HashSet<String>,
    /// Loop devices.
    loops: HashSet<String>,
    loops_made: usize,
    /// `$1`, `$2`, … of each function, file and menu entry that is running.
    arguments: Vec<Vec<String>>,
    menu: Menu,
    kernel: Option<Kernel>,
    users: Users,
    editor: LineEditor,
    pager: Pager,
    /// How far the output is on its line.
    column: usize,
    status: u32,
    stop: Option<Stop>,
    /// Errors that were shown.
    complaints: usize,
    /// Those that the user has had time to read.
    read_complaints: usize,
    /// Statements that may still be run before this takes too long.
    steps: u64,
    depth: usize,
    /// Whether the running menu entry was chosen by its time-out or as a fallback.
    automatic: bool,
}

/// What the command line of the program decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `console=ttyS0` is put in front of Linux's command line.
    pub serial_console: bool,
    /// Linux is told of a VGA text screen.
    pub text_screen: bool,
}

/// Variables that generated configurations test before they use what newer GRUBs have, and the
/// platform: scripts for a PC with a BIOS fit best.
const VARIABLES: [(&str, &str); 11] = [
    ("cmdpath", ""),
    ("color_normal", "light-gray/black"),
    ("color_highlight", "black/light-gray"),
    ("feature_200_final", "y"),
    ("feature_all_video_module", "y"),
    ("feature_default_font_path", "y"),
    ("feature_menuentry_id", "y"),
    ("feature_menuentry_options", "y"),
    ("feature_platform_search_hint", "y"),
    ("feature_timeout_style", "y"),
    ("grub_cpu", "i386"),
];

impl<'a> Session<'a> {
    /// A session whose files are in `directory` on the device `root`.
    pub fn new(
        console: &'a mut dyn Console,
        disks: &'a Disks,
        target: &'a mut dyn Target,
        settings: Settings,
    ) -> Self {
        let mut session = Self {
            console,
            disks,
            target,
            images: ImagePaths::new(),
            blocks: HashMap::new(),
            settings,
            env: Environment::default(),
            functions: HashMap::new(),
            functions_weight: 0,
            modules: HashSet::new(),
            loops: HashSet::new(),
            loops_made: 0,
            arguments: Vec::new(),
            menu: Menu::default(),
            kernel: None,
            users: Users::default(),
            editor: LineEditor::default(),
            pager: Pager::default(),
            column: 0,
            status: 0,
            stop: None,
            complaints: 0,
            read_complaints: 0,
            steps: 0,
            depth: 0,
            automatic: false,
        };
        for (name, value) in VARIABLES.into_iter().chain([("grub_platform", "pc"), ("pager", "")]) {
            session.set_exported(name, value);
        }
        session
    }

    /// Where `save_env` may write.
    pub fn set_images(&mut self, images: ImagePaths) {
        self.images = images;
    }

    /// Sets `root`, and `prefix` to the folder there.
    pub fn set_root(&mut self, root: &str, directory: &str) {
        let slash = if directory.starts_with('/') { "" } else { "/" };
        let prefix = format!("({root}){slash}{}", directory.trim_end_matches('/'));
        self.set_exported("root", root);
        self.set_exported("prefix", &prefix);
        self.set_exported("cmdpath", &prefix);
    }

    fn set_exported(&mut self, name: &str, value: &str) {
        // Only bad names and too many of them are refused.
        if self.env.set(name, value).is_ok() {
            let _ = self.env.export(name);
        }
    }

    /// Runs the configuration file if there is one, then asks for commands until the end.
    pub fn run(&mut self, config: &str) -> Stop {
        let prefix = self.env.get("prefix").unwrap_or_default();
        let file = format!("{prefix}/{config}");
        if self.exists(&file) {
            self.refill();
            if let Err(error) = self.configfile(&file) {
                self.complain(&error);
            }
        }
        self.prompt(false);
        self.stop.unwrap_or(Stop::InputEnd)
    }

    /// `$1` and so on.
    fn arguments(&self) -> &[String] {
        self.arguments.last().map(Vec::as_slice).unwrap_or_default()
    }

    /// `$?`
    fn status(&self) -> u32 {
        self.status
    }

    /// Opens a file, a device or blocks by GRUB's spelling, as the bytes that are there.
    fn open_as_it_is(&self, name: &str) -> Outcome<media::SourceRef> {
        files::open(self.disks, name, self.env.get("root"))
    }

    /// As [`Session::open_as_it_is`]; compressed files are what they hold.
    fn open(&self, name: &str) -> Outcome<media::SourceRef> {
        let source = self.open_as_it_is(name)?;
        let content = media::decompress::open(source.clone()).map_err(|error| Error::media(name, &error))?;
        Ok(content.unwrap_or(source))
    }

    /// Writes to the user, a page at a time if `pager` is set.
    fn print(&mut self, text: &str) {
        self.pager.enabled = self.env.get("pager") == Some("1");
        let after = text.rfind('\n').map(|n| n + 1);
        let width = crate::console::text_width(text.get(after.unwrap_or(0)..).unwrap_or_default());
        self.column = if after.is_some() { width } else { self.column + width };
        self.pager.write(self.console, text);
    }

    /// Writes words, each with a blank after it, and starts a new line where one doesn't fit.
    fn print_word(&mut self, word: &str) {
        // The last column stays free, as on GRUB's terminals.
        let columns = self.console.size().0.saturating_sub(1);
        let width = crate::console::text_width(word);
        if self.console.is_terminal() && self.column > 0 && self.column + width > columns {
            self.print("\n");
        }
        self.print(word);
        self.print(" ");
    }

    fn complain(&mut self, error: &Error) {
        if !error.message.is_empty() {
            self.complaints += 1;
            if self.column > 0 {
                self.print("\n");
            }
            self.print(&format!("error: {}.\n", error.message.trim_end_matches('.')));
        }
    }
}
