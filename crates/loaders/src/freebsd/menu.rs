//! The boot menu.

use std::fmt::Write;

use super::loader::{Done, Loader, Outcome, Stop};
use crate::console::{Input, Key, secret};

/// How many wrong passwords end the loader's patience.
const TRIES: usize = 3;
/// Kernels are counted with one look; more is a folder of something else.
const MAX_KERNELS: usize = 64;

/// What a line of the menu does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Multi,
    Single,
    Prompt,
    Reboot,
    Console,
    Kernel,
    Environment,
    Options,
    Back,
    Defaults,
    Acpi,
    Safe,
    SingleUser,
    Verbose,
}

/// What safe mode sets.
const SAFE: [(&str, &str); 4] = [
    ("kern.smp.disabled", "1"),
    ("hw.ata.ata_dma", "0"),
    ("kern.eventtimer.periodic", "1"),
    ("kern.geom.part.check_integrity", "0"),
];
const ACPI_OFF: &str = "hint.acpi.0.disabled";

impl Loader<'_> {
    /// The menu, until it boots, ends the loader, or leads to the prompt.
    pub fn menu(&mut self) -> Done {
        let delay = self.env.get("autoboot_delay").unwrap_or("10").to_owned();
        if delay.trim() == "-1" {
            self.unlock("bootlock_password")?;
            return self.boot_now(&[]);
        }
        let never = delay.eq_ignore_ascii_case("no");
        let seconds = delay.trim().parse::<u64>().unwrap_or(10);
        self.unlock("bootlock_password")?;
        let mut options = false;
        self.draw(options);
        let mut first = None;
        if !never {
            let text = |left: u64| format!("   Autoboot in {left} seconds. [Space] to pause");
            match self.count_down(seconds, &text) {
                None => return self.boot_now(&[]),
                key => first = key,
            }
            // Whoever stops the countdown has to know the password.
            self.unlock("password")?;
        }
        loop {
            let key = match first.take() {
                Some(key) => key,
                None => match self.console.key(None) {
                    Input::Key(key) => key,
                    Input::Timeout => continue,
                    Input::End => return Err(Stop::End(Outcome::Quit)),
                },
            };
            let Some(action) = self.action(key, options) else { continue };
            match action {
                Action::Prompt => return Ok(()),
                Action::Reboot => return Err(Stop::End(Outcome::Reboot)),
                Action::Options => options = true,
                Action::Back => options = false,
                _ => self.act(action)?,
            }
            self.draw(options);
        }
    }

    /// What a key means.
    fn action(&self, key: Key, options: bool) -> Option<Action> {
        match key {
            Key::Enter if self.env.is_flag("boot_single") => Some(Action::Single),
            Key::Enter => Some(Action::Multi),
            Key::Escape if options => Some(Action::Back),
            Key::Escape => Some(Action::Prompt),
            Key::Backspace | Key::Delete if options => Some(Action::Back),
            Key::Char(c) => {
                let c = c.to_ascii_lowercase();
                let by_number =
                    |(n, _): &(usize, &(char, Action, String))| c.to_digit(10) == Some(*n as u32 + 1);
                let lines = self.lines(options);
                let found = lines.iter().enumerate().find(by_number).map(|(_, line)| line.1);
                found.or_else(|| lines.iter().find(|(letter, ..)| *letter == c).map(|line| line.1))
            }
            _ => None,
        }
    }

    fn act(&mut self, action: Action) -> Done {
        match action {
            Action::Multi => {
                self.env.unset("boot_single");
                self.try_boot()
            }
            Action::Single => {
                self.env.set("boot_single", "YES")?;
                self.try_boot()
            }
            Action::Console => Ok(self.next_console()?),
            Action::Kernel => {
                let kernels = self.kernels();
                let at = self.chosen_index(&kernels);
                self.chosen = kernels.get((at + 1) % kernels.len().max(1)).cloned();
                self.unload();
                Ok(())
            }
            Action::Environment => self.next_environment(),
            Action::Defaults => {
                self.set_acpi(true)?;
                self.set_safe(false)?;
                self.env.unset("boot_single");
                self.env.unset("boot_verbose");
                Ok(())
            }
            Action::Acpi => Ok(self.set_acpi(self.env.get(ACPI_OFF) == Some("1"))?),
            Action::Safe => Ok(self.set_safe(self.env.get(SAFE[0].0).is_none())?),
            Action::SingleUser => Ok(self.toggle("boot_single")?),
            Action::Verbose => Ok(self.toggle("boot_verbose")?),
            Action::Prompt | Action::Reboot | Action::Options | Action::Back => Ok(()),
        }
    }

    /// Boots; if that fails, the reason stays to be read until a key is pressed.
    fn try_boot(&mut self) -> Done {
        match self.boot_now(&[]) {
            Err(Stop::Error(why)) => {
                self.say(&why);
                self.say("Press any key for the menu.");
                match self.console.key(None) {
                    Input::End => Err(Stop::End(Outcome::Quit)),
                    _ => Ok(()),
                }
            }
            result => result,
        }
    }

    fn toggle(&mut self, name: &str) -> Result<(), String> {
        if self.env.is_flag(name) {
            self.env.unset(name);
            return Ok(());
        }
        self.env.set(name, "YES")
    }

    fn set_acpi(&mut self, on: bool) -> Result<(), String> {
        if on {
            self.env.unset(ACPI_OFF);
            self.env.unset("loader.acpi_disabled_by_user");
            return Ok(());
        }
        self.env.set(ACPI_OFF, "1")?;
        self.env.set("loader.acpi_disabled_by_user", "1")
    }

    fn set_safe(&mut self, on: bool) -> Result<(), String> {
        for (name, value) in SAFE {
            if on {
                self.env.set(name, value)?;
            } else {
                self.env.unset(name);
            }
        }
        Ok(())
    }

    /// Serial line, both with the serial line first, both with the screen first, screen.
    fn next_console(&mut self) -> Result<(), String> {
        let (serial, both) =
            (self.env.get("boot_serial").is_some(), self.env.get("boot_multicons").is_some());
        let (serial, both) = match (serial, both) {
            (true, true) => (false, true),
            (false, true) => (true, false),
            (true, false) => (false, false),
            (false, false) => (true, true),
        };
        for (name, on) in [("boot_serial", serial), ("boot_multicons", both)] {
            if on {
                self.env.set(name, "YES")?;
            } else {
                self.env.unset(name);
            }
        }
        Ok(())
    }

    /// The kernels to choose from: `kernel`, `kernels`, and every folder in /boot with a kernel.
    pub fn kernels(&self) -> Vec<String> {
        let mut names: Vec<String> = self.env.get("kernel").map(str::to_owned).into_iter().collect();
        let listed = self.env.get("kernels").unwrap_or_default();
        names.extend(listed.split([';', ',', ' ']).filter(|n| !n.is_empty()).map(str::to_owned));
        if self.env.is_yes("kernels_autodetect") {
            let found = self.names("/boot").unwrap_or_default();
            names.extend(found.into_iter().filter(|name| self.is_file(&format!("/boot/{name}/kernel"))));
        }
        let mut kernels: Vec<String> = Vec::new();
        for name in names {
            if !kernels.contains(&name) && kernels.len() < MAX_KERNELS {
                kernels.push(name);
            }
        }
        kernels
    }

    /// Takes the next of the systems on this pool, with its own configuration.
    fn next_environment(&mut self) -> Done {
        let at = self.environments.iter().position(|e| self.env.get("currdev") == Some(&format!("{e}:")));
        let next = at.map_or(0, |at| (at + 1) % self.environments.len());
        let Some(system) = self.environments.get(next).cloned() else { return Ok(()) };
        self.set("currdev", &system)?;
        self.set("vfs.root.mountfrom", &system)?;
        self.unload();
        self.chosen = None;
        self.read_config()
    }

    fn chosen_index(&self, kernels: &[String]) -> usize {
        self.chosen.as_ref().and_then(|c| kernels.iter().position(|k| k == c)).unwrap_or(0)
    }

    /// The lines: letter, what it does, text.
    fn lines(&self, options: bool) -> Vec<(char, Action, String)> {
        let on = |yes: bool| if yes { "On" } else { "off" };
        let flag = |name: &str| on(self.env.is_flag(name));
        let line = |letter, action, text: String| (letter, action, text);
        if options {
            return vec![
                line('\x08', Action::Back, "Back to main menu [Backspace]".into()),
                line('d', Action::Defaults, "Load System [D]efaults".into()),
                line(
                    'a',
                    Action::Acpi,
                    format!("[A]CPI       : {}", on(self.env.get(ACPI_OFF) != Some("1"))),
                ),
                line('m', Action::Safe, format!("Safe [M]ode  : {}", on(self.env.get(SAFE[0].0).is_some()))),
                line('s', Action::SingleUser, format!("[S]ingle user: {}", flag("boot_single"))),
                line('v', Action::Verbose, format!("[V]erbose    : {}", flag("boot_verbose"))),
            ];
        }
        let single = self.env.is_flag("boot_single");
        let enter = |here: bool| if here { " [Enter]" } else { "" };
        let user = self.env.get("loader_menu_multi_user_prompt").unwrap_or("Multi user");
        let multi = line('b', Action::Multi, format!("[B]oot {user}{}", enter(!single)));
        let alone = line('s', Action::Single, format!("Boot [S]ingle user{}", enter(single)));
        let (first, second) = if single { (alone, multi) } else { (multi, alone) };
        let consoles = (self.env.get("boot_serial").is_some(), self.env.get("boot_multicons").is_some());
        let console = match consoles {
            (true, true) => "Dual (Serial primary)",
            (false, true) => "Dual (Video primary)",
            (true, false) => "Serial",
            (false, false) => "Video",
        };
        let kernels = self.kernels();
        let at = self.chosen_index(&kernels);
        let name = kernels.get(at).map_or("none", String::as_str);
        let default = if at == 0 { "default/" } else { "" };
        let kernel = format!("[K]ernel: {default}{name} ({} of {})", at + 1, kernels.len().max(1));
        let mut lines = vec![
            first,
            second,
            line('\x1b', Action::Prompt, "[Esc]ape to loader prompt".into()),
            line('r', Action::Reboot, "[R]eboot".into()),
            line('c', Action::Console, format!("[C]ons: {console}")),
            line('k', Action::Kernel, kernel),
            line('o', Action::Options, "Boot [O]ptions".into()),
        ];
        if self.environments.len() > 1 {
            let device = self.env.get("currdev").unwrap_or_default().trim_end_matches(':');
            let at = self.environments.iter().position(|e| e == device).map_or(0, |at| at + 1);
            let name = device.rsplit('/').next().unwrap_or_default();
            let count = self.environments.len();
            lines.push(line(
                'e',
                Action::Environment,
                format!("Boot [E]nvironment: {name} ({at} of {count})"),
            ));
        }
        lines
    }

    fn draw(&mut self, options: bool) {
        self.pager.reset();
        if self.console.is_terminal() {
            self.console.write("\x1b[2J\x1b[H");
        }
        let title = if options { "Boot Options" } else { "Welcome to FreeBSD" };
        let mut text = format!("\n   --------- {title} ---------\n\n");
        for (n, (_, _, line)) in self.lines(options).iter().enumerate() {
            let _ = writeln!(text, "    {}. {line}", n + 1);
        }
        text.push('\n');
        self.console.write(&text);
    }

    /// Asks for a password if one is set.
    fn unlock(&mut self, variable: &str) -> Done {
        let Some(password) = self.env.get(variable).map(str::to_owned).filter(|p| !p.is_empty()) else {
            return Ok(());
        };
        for _ in 0..TRIES {
            match secret(self.console, "Password: ") {
                Some(answer) if answer == password => return Ok(()),
                Some(_) => self.say("loader: incorrect password"),
                None => break,
            }
        }
        Err(Stop::End(Outcome::Quit))
    }
}
