//! Reads the configuration, and loads what it says.

use super::conf::{self, Setting};
use super::loader::{Done, Loader, MAX_DEPTH, Stop};
use super::words::{expand, split};

const DEFAULTS: &str = "/boot/defaults/loader.conf";
/// What the defaults say, for a system without that file.
const FILES: &str = "/boot/device.hints /boot/loader.conf /boot/loader.conf.local";
const FOLDERS: &str = "/boot/loader.conf.d";
/// Most files that are read.
const MAX_FILES: usize = 512;
/// Variables that name further files; the kernel does not get them.
const FURTHER: [&str; 2] = ["loader_conf_files", "local_loader_conf_files"];

impl Loader<'_> {
    /// Reads all configuration files. What is wrong in them is said, and the rest counts.
    pub fn read_config(&mut self) -> Done {
        self.modules = conf::Modules::default();
        let mut done = Vec::new();
        if self.is_file(DEFAULTS) {
            self.read_file(DEFAULTS, &mut done)?;
        } else {
            for (name, value) in
                [("kernel", "kernel"), ("module_path", "/boot/modules"), ("loader_conf_dirs", FOLDERS)]
            {
                if self.env.get(name).is_none() {
                    self.env.set(name, value)?;
                }
            }
            for file in FILES.split(' ') {
                self.read_file(file, &mut done)?;
            }
        }
        let folders = self.env.get("loader_conf_dirs").unwrap_or_default().to_owned();
        for folder in folders.split_whitespace() {
            // A folder that isn't there is as good as an empty one.
            let names = self.names(folder).unwrap_or_default();
            for name in names.iter().filter(|n| n.strip_suffix(".conf").is_some()) {
                self.read_file(&format!("{folder}/{name}"), &mut done)?;
            }
        }
        self.next_boot(&mut done)
    }

    /// nextboot(8): a file for one boot. The loader of a VM only reads disks, so that the system
    /// itself has to take the file away.
    fn next_boot(&mut self, done: &mut Vec<String>) -> Done {
        let Some(path) = self.env.get("nextboot_conf").map(str::to_owned) else { return Ok(()) };
        match self.text(&path) {
            Ok(text) if !text.starts_with("nextboot_enable=\"NO\"") => {
                self.say(&format!("{path} is in force until the guest removes it"));
                self.read_file(&path, done)
            }
            _ => Ok(()),
        }
    }

    fn read_file(&mut self, path: &str, done: &mut Vec<String>) -> Done {
        if done.iter().any(|d| d == path) || done.len() == MAX_FILES {
            return Ok(());
        }
        done.push(path.to_owned());
        let text = match self.text(path) {
            Ok(text) => text,
            Err(why) => {
                if self.is_file(path) {
                    self.say(&why);
                }
                return Ok(());
            }
        };
        let mut further = Vec::new();
        for (number, setting) in conf::parse(&text) {
            let result = setting.map_err(Stop::Error).and_then(|s| self.apply(s, &mut further));
            match result {
                Err(Stop::Error(why)) => self.say(&format!("{path}:{number}: {why}")),
                result => result?,
            }
        }
        // The deepest nesting is that of the files, each of which is read once.
        for file in further {
            if self.depth < MAX_DEPTH {
                self.depth += 1;
                let result = self.read_file(&file, done);
                self.depth -= 1;
                result?;
            }
        }
        Ok(())
    }

    fn apply(&mut self, setting: Setting, further: &mut Vec<String>) -> Done {
        match setting {
            Setting::Module(name, property, value) => {
                self.modules.set(&name, property, &value);
                Ok(())
            }
            Setting::Exec(command) => self.run_line(&command),
            Setting::Variable(name, value) => {
                let value = expand(&value, &self.env)?;
                if FURTHER.contains(&name.as_str()) {
                    further.extend(value.split_whitespace().map(str::to_owned));
                    return Ok(());
                }
                Ok(self.set(&name, &value)?)
            }
        }
    }

    /// Loads the kernel and all modules that are to be loaded. Nothing happens if a kernel is there.
    pub fn load_all(&mut self) -> Done {
        if self.preload.is_some() {
            return Ok(());
        }
        self.say("Loading kernel...");
        self.load_kernel(None)?;
        self.say("Loading configured modules...");
        self.load_modules()
    }

    /// Loads a kernel: the one that is named, that the menu chose, or that `kernel` says; a folder
    /// in /boot, a folder, or a file.
    pub fn load_kernel(&mut self, named: Option<&str>) -> Done {
        let options = self.env.get("kernel_options").unwrap_or_default().to_owned();
        let kernel = named.map(str::to_owned).or_else(|| self.chosen.clone());
        let Some(kernel) = kernel.or_else(|| self.env.get("kernel").map(str::to_owned)) else {
            return self
                .load_boot_file(&options)
                .map_err(|_| "no kernel is set, and module_path has none".into());
        };
        // A folder in front of the search path from an earlier kernel goes.
        let path = self.env.get("module_path").unwrap_or_default().to_owned();
        let old = self.env.get("kernel_path").map(|old| format!("{old};")).unwrap_or_default();
        let path = path.strip_prefix(old.as_str()).unwrap_or(&path).to_owned();
        let mut why = None;
        for folder in [format!("/boot/{kernel}"), kernel.clone()] {
            if !self.is_directory(&folder) {
                continue;
            }
            self.env.set("module_path", &folder)?;
            match self.load_boot_file(&options) {
                Ok(()) => {
                    self.env.set("module_path", &format!("{folder};{path}"))?;
                    self.env.set("kernel_path", &folder)?;
                    return Ok(());
                }
                Err(Stop::Error(error)) => {
                    why.get_or_insert(error);
                }
                end => return end,
            }
        }
        self.env.set("module_path", &path)?;
        match self.load(&kernel, &options) {
            Err(Stop::Error(error)) => {
                let why = why.unwrap_or(error);
                Err(format!("can't load kernel '{kernel}': {why}").into())
            }
            result => result,
        }
    }

    /// Loads the first of the files in `bootfile` that can be loaded.
    fn load_boot_file(&mut self, options: &str) -> Done {
        let names = format!("{};kernel", self.env.get("bootfile").unwrap_or_default());
        let mut why = None;
        for name in names.split(';').filter(|n| !n.is_empty()) {
            match self.load(name, options) {
                Err(Stop::Error(error)) => {
                    why.get_or_insert(error);
                }
                result => return result,
            }
        }
        Err(why.unwrap_or_else(|| "no kernel".into()).into())
    }

    /// Loads the modules; one that can't be loaded is said, and the others are loaded.
    pub fn load_modules(&mut self) -> Done {
        let list = self.modules.0.clone();
        let blocked = self.env.get("module_blacklist").unwrap_or_default().to_owned();
        for (key, module) in list {
            let name = module.name.as_deref().unwrap_or(&key);
            if !module.load {
                continue;
            }
            if !module.force && blocked.split([' ', ',', ';']).any(|b| b == name) {
                self.say(&format!("not loading blacklisted module '{name}'"));
                continue;
            }
            if let Some(command) = &module.before {
                self.attempt(command, &key)?;
            }
            let flags = module.flags.as_deref().unwrap_or_default();
            let result = match &module.kind {
                Some(kind) => self.load_raw(name, kind, flags),
                None => self.load(name, flags),
            };
            match result {
                Ok(()) => {
                    if let Some(command) = &module.after {
                        self.attempt(command, &key)?;
                    }
                }
                Err(Stop::Error(why)) => {
                    // The seeds that a fresh system has not written yet are no cause for worry.
                    if module.kind.is_none() || self.env.is_yes("verbose_loading") {
                        self.say(&format!("{key}: {why}"));
                    }
                    if let Some(command) = &module.error {
                        self.attempt(command, &key)?;
                    }
                }
                end => return end,
            }
        }
        Ok(())
    }

    /// Runs a command of a module; its failure is said and that is all.
    fn attempt(&mut self, command: &str, key: &str) -> Done {
        match self.run_line(command) {
            Err(Stop::Error(why)) => {
                self.say(&format!("{key}: {command}: {why}"));
                Ok(())
            }
            result => result,
        }
    }

    /// Runs a line of commands.
    pub fn run_line(&mut self, line: &str) -> Done {
        if self.depth >= MAX_DEPTH {
            return Err("commands are nested too deeply".into());
        }
        let words = split(line, &self.env)?;
        self.depth += 1;
        let result = self.run(&words);
        self.depth -= 1;
        result
    }
}
