//! Finds and loads kernels and modules.

use boot::freebsd::{Depend, Preload, TYPE_MODULE};

use super::hints;
use super::loader::{Done, Loader};

/// Where files are looked for if the user did not say.
const MODULE_PATH: &str = "/boot/kernel;/boot/modules";
/// Most files beside the kernel.
const MAX_FILES: usize = 256;

/// A file that was found.
struct Found {
    /// Its path as the kernel will see it.
    name: String,
    /// Where it is.
    path: String,
}

impl Loader<'_> {
    /// The folders where files are looked for: those that the user names, and the kernel's own.
    fn module_path(&self) -> Vec<String> {
        let path = self.env.get("module_path").unwrap_or(MODULE_PATH);
        let mut folders: Vec<String> = path
            .split([';', ','])
            .map(|p| p.trim_end_matches('/').to_owned())
            .filter(|p| !p.is_empty())
            .collect();
        let loaded = self.preload.as_ref().and_then(|p| p.files().first());
        let own = match loaded.and_then(|kernel| kernel.name().rsplit_once('/')) {
            Some((folder, _)) => folder.to_owned(),
            None => format!("/boot/{}", self.env.get("kernel").unwrap_or("kernel")),
        };
        if !own.is_empty() && !folders.contains(&own) {
            folders.push(own);
        }
        folders
    }

    /// A file: where the user says, else in the folders, with an ending tried first. A compressed
    /// file stands for what it holds, as with FreeBSD's gzipfs.
    fn find_file(&self, name: &str, endings: &[&str]) -> Result<Found, String> {
        let try_path = |path: String| {
            let packed = format!("{path}.gz");
            if self.is_file(&path) {
                return Some(Found { name: path.clone(), path });
            }
            self.is_file(&packed).then_some(Found { name: path, path: packed })
        };
        let found = if name.contains(['/', ':']) {
            try_path(name.into())
        } else {
            let folders = self.module_path();
            let mut paths = folders
                .iter()
                .flat_map(|folder| endings.iter().map(move |ending| format!("{folder}/{name}{ending}")));
            paths.find_map(try_path)
        };
        found.ok_or_else(|| format!("can't find '{name}'"))
    }

    /// Loads the kernel, or a module with what it needs, by name or path.
    pub fn load(&mut self, name: &str, args: &str) -> Done {
        let file = self.find_file(name, &[".ko", ""])?;
        let args = Some(args).filter(|args| !args.is_empty());
        if self.preload.is_none() {
            let preload = Preload::kernel(self.image(&file.path, true)?, &file.name, args)?;
            self.env.set("kernelname", &file.name)?;
            self.kernel_args = args.unwrap_or_default().into();
            self.report(&preload, 0);
            self.preload = Some(preload);
            return Ok(());
        }
        self.load_module(&file, args)
    }

    /// Loads a file that is neither a kernel nor a module.
    pub fn load_raw(&mut self, name: &str, kind: &str, args: &str) -> Done {
        let file = self.find_file(name, &[""])?;
        let image = self.image(&file.path, file.path != file.name)?;
        let Some(preload) = &mut self.preload else { return Err("can't load file before kernel".into()) };
        let args = Some(args).filter(|args| !args.is_empty());
        preload.raw(image, &file.name, kind, args)?;
        let last = preload.files().len() - 1;
        self.report_last(last);
        Ok(())
    }

    /// Loads a module and, after it, what it needs. If anything is missing, nothing stays.
    fn load_module(&mut self, file: &Found, args: Option<&str>) -> Done {
        if self.is_loaded(&file.name) {
            self.say(&format!("warning: KLD '{}' already loaded", file.name));
            return Ok(());
        }
        let before = self.preload.as_ref().map_or(0, |p| p.files().len());
        let mut next = before;
        let mut result = self.add_module(file, args);
        // What a file needs is loaded after it, and looked at in its turn.
        while let (Ok(()), Some(wanted)) = (&result, self.depends_of(next)) {
            result = wanted.iter().try_for_each(|depend| self.require(depend));
            next += 1;
        }
        if result.is_err()
            && let Some(preload) = &mut self.preload
        {
            preload.truncate(before);
        }
        result
    }

    fn add_module(&mut self, file: &Found, args: Option<&str>) -> Done {
        let image = self.image(&file.path, true)?;
        let Some(preload) = &mut self.preload else { return Err("can't load module before kernel".into()) };
        if preload.files().len() > MAX_FILES {
            return Err(format!("{}: more than {MAX_FILES} files", file.path).into());
        }
        preload.module(image, &file.name, args)?;
        let last = preload.files().len() - 1;
        self.report_last(last);
        Ok(())
    }

    /// What the file with this number needs, if there is such a file.
    fn depends_of(&self, number: usize) -> Option<Vec<Depend>> {
        self.preload.as_ref()?.files().get(number).map(|file| file.depends().to_vec())
    }

    /// Loads the file with a module, unless it is there.
    fn require(&mut self, wanted: &Depend) -> Done {
        if self.provides(wanted) {
            return Ok(());
        }
        self.say(&format!("loading required module '{}'", wanted.name));
        let file = self.find_module(wanted)?;
        if !self.is_loaded(&file.name) {
            self.add_module(&file, None)?;
        }
        if self.provides(wanted) {
            return Ok(());
        }
        Err(format!("module '{}' exists but with wrong version", wanted.name).into())
    }

    /// The file that has a module: by the hints of a folder, else by its name.
    fn find_module(&self, wanted: &Depend) -> Result<Found, String> {
        let name = &wanted.name;
        for folder in self.module_path() {
            let hints = self.node(&format!("{folder}/linker.hints"));
            let hints = hints.ok().and_then(|node| media::read_all(node.as_ref(), hints::MAX_SIZE).ok());
            let hinted = hints.and_then(|hints| hints::find(&hints, name, wanted));
            let named = [hinted, Some(format!("{name}.ko")), Some(name.clone())];
            for file in named.into_iter().flatten() {
                if let Ok(found) = self.find_file(&format!("{folder}/{file}"), &[""]) {
                    return Ok(found);
                }
            }
        }
        Err(format!("can't find '{name}'"))
    }

    fn is_loaded(&self, path: &str) -> bool {
        self.preload.as_ref().is_some_and(|p| p.files().iter().any(|f| f.name() == path))
    }

    /// Whether a file that is loaded has a module. A file that says nothing of its modules has one
    /// of its own name.
    fn provides(&self, wanted: &Depend) -> bool {
        let Some(preload) = &self.preload else { return false };
        preload.files().iter().any(|file| {
            let provided = file.provides().iter().any(|p| p.name == wanted.name && wanted.takes(p.version));
            let stem = file.name().rsplit('/').next().unwrap_or_default();
            let stem = stem.strip_suffix(".ko").unwrap_or(stem);
            provided || file.kind() == TYPE_MODULE && file.provides().is_empty() && stem == wanted.name
        })
    }

    fn report_last(&mut self, number: usize) {
        if let Some(preload) = self.preload.take() {
            self.report(&preload, number);
            self.preload = Some(preload);
        }
    }

    /// Says where a file went.
    fn report(&mut self, preload: &Preload, number: usize) {
        if let Some(file) = preload.files().get(number) {
            let line = format!("{} size {:#x} at {:#x}", file.name(), file.size(), file.address());
            self.say(&line);
        }
    }

    /// Forgets all files.
    pub fn unload(&mut self) {
        self.preload = None;
        self.kernel_args.clear();
        self.env.unset("kernelname");
    }

    /// What is loaded, for people.
    pub fn list_files(&mut self, verbose: bool) {
        let Some(preload) = self.preload.take() else { return };
        for file in preload.files() {
            self.say(&format!(
                " {:#x}: {} ({}, {:#x})",
                file.address(),
                file.name(),
                file.kind(),
                file.size()
            ));
            let modules = file.provides();
            // A kernel has hundreds of modules.
            if !modules.is_empty() && (verbose || file.kind() == TYPE_MODULE) {
                let list: Vec<String> = modules.iter().map(|p| format!("{}.{}", p.name, p.version)).collect();
                self.say(&format!("  modules: {}", list.join(" ")));
            }
        }
        self.preload = Some(preload);
    }
}
