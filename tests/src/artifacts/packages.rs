//! Debian packages, by name, unpacked into the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Cache, remove, run};
use crate::Result;

impl Cache {
    /// The folder with the unpacked content of the Debian package `name`, in the version that apt
    /// would install; without apt's lists, in the version that is cached.
    pub fn package(&self, name: &str) -> Result<PathBuf> {
        let file = match file_name(name) {
            Ok(file) => file,
            Err(error) => return self.cached(name).ok_or(error),
        };
        self.get_or_make(&format!("packages/{}", file.trim_end_matches(".deb")), |folder| {
            std::fs::create_dir(folder)?;
            let download = folder.with_extension("download");
            remove(&download)?;
            std::fs::create_dir(&download)?;
            eprintln!("fetching {name}");
            let fetched = run(apt_get().arg("download").arg(name).current_dir(&download))
                .and_then(|_| run(Command::new("dpkg").arg("-x").arg(download.join(&file)).arg(folder)));
            remove(&download)?;
            fetched.map(drop)
        })
    }

    /// The package on which the meta package `name` depends, such as the kernel of today.
    pub fn depends(&self, name: &str, prefix: &str) -> Result<String> {
        let output = run(Command::new("apt-cache").arg("depends").arg(name))?;
        let text = String::from_utf8_lossy(&output).into_owned();
        text.lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|package| package.starts_with(prefix))
            .map(str::to_owned)
            .ok_or_else(|| format!("apt knows no package on which {name} depends: run apt-get update").into())
    }

    /// An unpacked version of the package that is in the cache already.
    fn cached(&self, name: &str) -> Option<PathBuf> {
        let prefix = format!("{name}_");
        let entries = std::fs::read_dir(self.root().join("packages")).ok()?;
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| finished(path, &prefix))
            .max_by_key(|path| path.metadata().and_then(|metadata| metadata.modified()).ok())
    }
}

/// Whether this is the finished folder of a package whose file name starts like this.
fn finished(path: &Path, prefix: &str) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(prefix) && path.extension().is_none_or(|end| end != "partial" && end != "download")
}

/// The name of the file that apt would download.
fn file_name(package: &str) -> Result<String> {
    let output = run(apt_get().args(["download", "--print-uris", package]))?;
    let text = String::from_utf8_lossy(&output).into_owned();
    parse_uri_line(&text)
        .map(str::to_owned)
        .ok_or_else(|| format!("apt knows no package {package}: run apt-get update").into())
}

/// The file name in apt's `'URI' NAME SIZE HASH` line.
fn parse_uri_line(text: &str) -> Option<&str> {
    let name = text.lines().find(|line| line.starts_with('\''))?.split(' ').nth(1)?;
    (Path::new(name).extension()? == "deb" && !name.contains('/')).then_some(name)
}

/// apt-get, told not to complain that its unprivileged user can't write to our folder.
fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-q", "-o", "APT::Sandbox::User=root"]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_come_from_the_list_of_addresses() {
        let text = "Reading…\n'http://host/pool/b/x_1%3a2_amd64.deb' x_1%3a2_amd64.deb 928188 SHA256:3d3f\n";
        assert_eq!(parse_uri_line(text), Some("x_1%3a2_amd64.deb"));
        assert_eq!(parse_uri_line("'http://host/x' ../../x.deb 1 SHA256:0"), None);
        assert_eq!(parse_uri_line(""), None);
    }

    #[test]
    fn only_finished_packages_count() {
        assert!(finished(Path::new("/c/x_1.2_amd64"), "x_"));
        assert!(!finished(Path::new("/c/x_1.2_amd64.partial"), "x_"));
        assert!(!finished(Path::new("/c/x-extra_1.2_amd64"), "x_"));
    }
}
