//! The commands of the prompt (loader(8)).

// All commands have one type.
#![allow(clippy::unnecessary_wraps)]

use std::time::{Duration, Instant};

use media::Kind;

use super::loader::{Done, Loader, Outcome, Stop};
use crate::console::{Input, Key};

/// A command: what it does with the words behind its name.
type Run = fn(&mut Loader, &[String]) -> Done;

/// All commands: name, arguments, what it does for `help`, and the code.
const COMMANDS: &[(&str, &str, &str, Run)] = &[
    ("?", "", "list the commands", help),
    ("autoboot", "[seconds [prompt]]", "boot after a delay", autoboot),
    ("boot", "[kernel] [-flags]", "boot the kernel that is loaded, or another", boot),
    ("boot-conf", "[kernel] [-flags]", "load kernel and modules again, and boot", boot_conf),
    ("disable-module", "module", "don't load a module", disable_module),
    ("echo", "[-n] [text …]", "write a text", echo),
    ("enable-module", "module", "load a module, even if it is on the black list", enable_module),
    ("help", "[command]", "list the commands, or describe one", help),
    ("include", "file …", "run the commands in a file", include),
    ("load", "[-t type] file [arguments …]", "load a kernel, a module or another file", load),
    ("ls", "[-l] [path]", "list a folder", ls),
    ("lsdev", "", "list the devices", lsdev),
    ("lsmod", "[-v]", "list what is loaded", lsmod),
    ("menu", "", "show the menu", menu),
    ("more", "file …", "show files", more),
    ("quit", "", "leave the loader; nothing is loaded", quit),
    ("read", "[-t seconds] [-p prompt] [variable]", "read a line", read),
    ("reboot", "", "leave the loader; nothing is loaded", reboot),
    ("set", "variable=value", "set a variable", set),
    ("show", "[variable]", "show variables", show),
    ("show-module", "[module]", "show what loader.conf says of a module", show_module),
    ("toggle-module", "module", "load a module, or don't", toggle_module),
    ("unload", "", "forget what is loaded", unload),
    ("unset", "variable …", "forget variables", unset),
];

impl Loader<'_> {
    /// Runs a command.
    pub fn run(&mut self, words: &[String]) -> Done {
        let Some((name, rest)) = words.split_first() else { return Ok(()) };
        // `name=value` sets a variable, as in loader.conf.
        if name.contains('=') && rest.is_empty() {
            return set(self, words);
        }
        match COMMANDS.iter().find(|(n, ..)| n == name) {
            Some((.., run)) => run(self, rest),
            None => Err(format!("unknown command '{name}'").into()),
        }
    }

    /// The names of all commands.
    pub fn command_names() -> impl Iterator<Item = &'static str> {
        COMMANDS.iter().map(|(name, ..)| *name)
    }

    /// Boots what is loaded.
    pub fn boot_now(&mut self, flags: &[String]) -> Done {
        if self.preload.is_none() {
            self.load_all()?;
        }
        if !flags.is_empty() {
            self.kernel_args = flags.join(" ");
        }
        let Some(preload) = self.preload.take() else { return Err("no bootable kernel".into()) };
        self.say("Booting...");
        let plan = self.plan(preload);
        Err(Stop::End(Outcome::Boot(Box::new(plan))))
    }

    /// Counts the seconds down; the answer is the key that was pressed meanwhile. Input that has
    /// ended presses none.
    pub fn count_down(&mut self, seconds: u64, text: &dyn Fn(u64) -> String) -> Option<Key> {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut shown = None;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.console.write("\n");
                return None;
            }
            let whole = left.as_millis().div_ceil(1000) as u64;
            if shown != Some(whole) && (self.console.is_terminal() || shown.is_none()) {
                let start = if self.console.is_terminal() { "\r" } else { "" };
                self.console.write(&format!("{start}{} ", text(whole)));
                shown = Some(whole);
            }
            let wait = left.min(Duration::from_millis(left.subsec_millis().max(1).into()));
            match self.console.key(Some(wait)) {
                Input::Key(key) => {
                    self.console.write("\n");
                    return Some(key);
                }
                Input::Timeout => {}
                Input::End => std::thread::sleep(wait),
            }
        }
    }
}

/// One argument, and no more.
fn one<'a>(words: &'a [String], what: &str) -> Result<&'a str, Stop> {
    match words {
        [one] => Ok(one),
        [] => Err(format!("{what} expected").into()),
        _ => Err("too many arguments".into()),
    }
}

fn none(words: &[String]) -> Done {
    if words.is_empty() { Ok(()) } else { Err("too many arguments".into()) }
}

fn help(loader: &mut Loader, words: &[String]) -> Done {
    let found: Vec<_> =
        COMMANDS.iter().filter(|(name, ..)| words.is_empty() || words.iter().any(|w| w == name)).collect();
    if found.is_empty() {
        return Err(format!("no help for '{}'", words.join(" ")).into());
    }
    for (name, arguments, text, _) in found {
        loader.say(&format!("{:<44} {text}", format!("{name} {arguments}")));
    }
    Ok(())
}

fn autoboot(loader: &mut Loader, words: &[String]) -> Done {
    let (delay, prompt) = match words {
        [] => (None, None),
        [delay] => (Some(delay), None),
        [delay, prompt] => (Some(delay), Some(prompt.clone())),
        _ => return Err("too many arguments".into()),
    };
    let delay: i64 = match delay {
        Some(delay) => delay.parse().map_err(|_| format!("bad delay '{delay}'"))?,
        None => loader.env.get("autoboot_delay").and_then(|d| d.parse().ok()).unwrap_or(10),
    };
    loader.load_all()?;
    if delay > 0 {
        let hint = "Hit [Enter] to boot immediately, or any other key for command prompt.";
        loader.say(prompt.as_deref().unwrap_or(hint));
        let name = loader.env.get("kernelname").unwrap_or_default().to_owned();
        let text =
            |left: u64| format!("Booting [{name}] in {left} second{}...", if left == 1 { "" } else { "s" });
        let key = loader.count_down(delay.unsigned_abs(), &text);
        if key.is_some_and(|key| key != Key::Enter) {
            return Ok(());
        }
    }
    loader.boot_now(&[])
}

fn boot(loader: &mut Loader, words: &[String]) -> Done {
    match words.split_first() {
        Some((kernel, flags)) if !kernel.starts_with('-') => {
            if loader.preload.is_some() {
                return Err(format!("can't boot '{kernel}', kernel module already loaded").into());
            }
            loader.load_kernel(Some(kernel))?;
            loader.load_modules()?;
            loader.boot_now(flags)
        }
        _ => loader.boot_now(words),
    }
}

fn boot_conf(loader: &mut Loader, words: &[String]) -> Done {
    let (kernel, flags) = match words.split_first() {
        Some((kernel, flags)) if !kernel.starts_with('-') => (Some(kernel.as_str()), flags),
        _ => (None, words),
    };
    loader.unload();
    loader.load_kernel(kernel)?;
    loader.load_modules()?;
    loader.boot_now(flags)
}

fn enable(loader: &mut Loader, name: &str, on: bool) -> Done {
    let Some(module) = loader.modules.entry(name) else { return Err("too many modules".into()) };
    (module.load, module.force) = (on, on);
    loader.say(&format!("{name} will {}be loaded.", if on { "" } else { "not " }));
    Ok(())
}

fn enable_module(loader: &mut Loader, words: &[String]) -> Done {
    enable(loader, one(words, "a module")?, true)
}

fn disable_module(loader: &mut Loader, words: &[String]) -> Done {
    enable(loader, one(words, "a module")?, false)
}

fn toggle_module(loader: &mut Loader, words: &[String]) -> Done {
    let name = one(words, "a module")?;
    let on = loader.modules.0.iter().any(|(n, m)| n == name && m.load);
    enable(loader, name, !on)
}

fn show_module(loader: &mut Loader, words: &[String]) -> Done {
    for (name, module) in loader.modules.0.clone() {
        if !words.is_empty() && !words.contains(&name) {
            continue;
        }
        loader.say(&format!("{name}: {}", if module.load { "load" } else { "don't load" }));
        let facts = [
            ("file", module.name),
            ("type", module.kind),
            ("flags", module.flags),
            ("before", module.before),
            ("after", module.after),
            ("error", module.error),
        ];
        for (what, value) in facts {
            if let Some(value) = value {
                loader.say(&format!("    {what}: {value}"));
            }
        }
    }
    Ok(())
}

fn echo(loader: &mut Loader, words: &[String]) -> Done {
    match words {
        [first, rest @ ..] if first == "-n" => {
            let text = rest.join(" ");
            loader.pager.write(loader.console, &text);
        }
        words => loader.say(&words.join(" ")),
    }
    Ok(())
}

fn include(loader: &mut Loader, words: &[String]) -> Done {
    if words.is_empty() {
        return Err("a file expected".into());
    }
    for path in words {
        let text = loader.text(path)?;
        for (n, line) in text.lines().enumerate() {
            // `@` in front: the line is not shown; `-`: a failure does not end the file.
            let line = line.trim_start().trim_start_matches('@');
            let (line, go_on) = line.strip_prefix('-').map_or((line, false), |line| (line, true));
            match loader.run_line(line) {
                Err(Stop::Error(why)) if go_on => loader.say(&why),
                Err(Stop::Error(why)) => return Err(format!("{path}:{}: {why}", n + 1).into()),
                result => result?,
            }
        }
    }
    Ok(())
}

fn load(loader: &mut Loader, words: &[String]) -> Done {
    let mut words = words;
    let mut kind = None;
    if let [flag, of, rest @ ..] = words
        && flag == "-t"
    {
        (kind, words) = (Some(of), rest);
    }
    let Some((file, args)) = words.split_first() else { return Err("a file expected".into()) };
    let args = args.join(" ");
    match kind {
        Some(kind) => loader.load_raw(file, kind, &args),
        None => loader.load(file, &args),
    }
}

fn ls(loader: &mut Loader, words: &[String]) -> Done {
    let (long, words) = match words {
        [first, rest @ ..] if first == "-l" => (true, rest),
        words => (false, words),
    };
    let path = match words {
        [] => "/",
        words => one(words, "a path")?,
    };
    if !loader.is_directory(path) {
        let node = loader.node(path)?;
        let line = entry_line(path, &node, long);
        loader.say(&line);
        return Ok(());
    }
    loader.say(path);
    let folder = loader.node(path)?;
    for name in loader.names(path)? {
        // What can't be looked at is listed all the same.
        let line = match folder.lookup(name.as_bytes()) {
            Ok(Some(node)) => entry_line(&name, &node, long),
            Ok(None) => continue,
            Err(why) => format!(" ? {name}: {why}"),
        };
        if !loader.pager.write(loader.console, &format!("{line}\n")) {
            break;
        }
    }
    Ok(())
}

fn entry_line(name: &str, node: &media::NodeRef, long: bool) -> String {
    let Ok(meta) = node.metadata() else { return format!(" ? {name}") };
    let (letter, target) = match meta.kind {
        Kind::Directory => ('d', None),
        Kind::Symlink => ('l', node.link().ok()),
        Kind::File => (' ', None),
        Kind::Other => ('?', None),
    };
    let target = target.map(|t| format!(" -> {}", String::from_utf8_lossy(&t))).unwrap_or_default();
    if long {
        format!(" {letter} {:>11} {name}{target}", meta.size)
    } else {
        format!(" {letter} {name}{target}")
    }
}

fn lsdev(loader: &mut Loader, words: &[String]) -> Done {
    none(words)?;
    let text = loader.devices.describe();
    loader.pager.write(loader.console, &text);
    Ok(())
}

fn lsmod(loader: &mut Loader, words: &[String]) -> Done {
    loader.list_files(words.iter().any(|w| w == "-v"));
    Ok(())
}

fn menu(loader: &mut Loader, words: &[String]) -> Done {
    none(words)?;
    loader.menu()
}

fn more(loader: &mut Loader, words: &[String]) -> Done {
    if words.is_empty() {
        return Err("a file expected".into());
    }
    for path in words {
        let text = loader.text(path)?;
        let end = if text.ends_with('\n') { "" } else { "\n" };
        if !loader.pager.write(loader.console, &format!("{text}{end}")) {
            break;
        }
    }
    Ok(())
}

fn quit(_: &mut Loader, words: &[String]) -> Done {
    none(words)?;
    Err(Stop::End(Outcome::Quit))
}

fn reboot(_: &mut Loader, words: &[String]) -> Done {
    none(words)?;
    Err(Stop::End(Outcome::Reboot))
}

fn read(loader: &mut Loader, words: &[String]) -> Done {
    let mut words = words;
    let (mut seconds, mut prompt) = (None, String::new());
    while let [flag, value, rest @ ..] = words {
        match flag.as_str() {
            "-t" => seconds = Some(value.parse::<u64>().map_err(|_| format!("bad delay '{value}'"))?),
            "-p" => prompt.clone_from(value),
            _ => break,
        }
        words = rest;
    }
    let name = match words {
        [] => None,
        words => Some(one(words, "a variable")?.to_owned()),
    };
    loader.console.write(&prompt);
    let end = seconds.map(|s| Instant::now() + Duration::from_secs(s));
    let mut text = String::new();
    // The time counts until the first key, as in loader(8).
    loop {
        let timeout = end.filter(|_| text.is_empty()).map(|e| e.saturating_duration_since(Instant::now()));
        match loader.console.key(timeout) {
            Input::Key(Key::Enter) | Input::Timeout | Input::End => break,
            Input::Key(Key::Char(c)) if text.len() < 1024 => {
                text.push(c);
                let mut bytes = [0; 4];
                loader.console.write(c.encode_utf8(&mut bytes));
            }
            Input::Key(Key::Backspace) if text.pop().is_some() => loader.console.write("\x08 \x08"),
            Input::Key(_) => {}
        }
    }
    loader.console.write("\n");
    match name {
        Some(name) => Ok(loader.set(&name, &text)?),
        None => Ok(()),
    }
}

fn set(loader: &mut Loader, words: &[String]) -> Done {
    let text = one(words, "variable=value")?;
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    Ok(loader.set(name, value)?)
}

fn show(loader: &mut Loader, words: &[String]) -> Done {
    if words.is_empty() {
        let all: Vec<String> = loader.env.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        for line in all {
            if !loader.pager.write(loader.console, &line) {
                break;
            }
        }
        return Ok(());
    }
    let name = one(words, "a variable")?;
    let Some(value) = loader.env.get(name).map(str::to_owned) else {
        return Err(format!("variable '{name}' not found").into());
    };
    loader.say(&value);
    Ok(())
}

fn unload(loader: &mut Loader, words: &[String]) -> Done {
    none(words)?;
    loader.unload();
    Ok(())
}

fn unset(loader: &mut Loader, words: &[String]) -> Done {
    if words.is_empty() {
        return Err("a variable expected".into());
    }
    for name in words {
        if !loader.env.unset(name) {
            return Err(format!("variable '{name}' not found").into());
        }
    }
    Ok(())
}
