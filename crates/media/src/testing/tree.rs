//! A tree of files with whatever a reader could trip over.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A small deterministic generator (xorshift64*).
pub struct Random(u64);

impl Random {
    /// The same seed, the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, which isn't 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.word() % end
    }

    /// That many bytes. Every 16th part of them is repetitive, so that compressors find something.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            let word = self.word();
            let times = if word.is_multiple_of(16) { 16 } else { 1 };
            for _ in 0..times {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
        bytes.truncate(len);
        bytes
    }
}

/// Which tree to write. The same values give the same tree.
#[derive(Clone, Copy, Debug)]
pub struct Tree {
    /// About how many files in all; three tenths of them are in one directory.
    pub files: usize,
    /// Whether symbolic links can be stored.
    pub symlinks: bool,
    /// Whether names differ if only their case does.
    pub case: bool,
    /// Whether names outside ASCII can be stored.
    pub unicode: bool,
    /// Most bytes in a name.
    pub longest_name: usize,
    /// Apparent size of each of the files with holes; 0 leaves them out.
    pub sparse: u64,
    /// Size of the pseudo kernel `boot/vmlinuz` and, half of it, of the fragmented file.
    pub kernel: usize,
    /// How deep directories are nested.
    pub depth: usize,
}

impl Tree {
    /// 10,000 files, 3,000 of them in one directory.
    pub const FULL: Self = Self {
        files: 10_000,
        symlinks: true,
        case: true,
        unicode: true,
        longest_name: 255,
        sparse: 40 << 20,
        kernel: 9 << 20,
        depth: 40,
    };
    /// 300 files, less than 4 MB: for images that are made again in each test.
    pub const QUICK: Self = Self { files: 300, sparse: 3 << 20, kernel: 1 << 20, depth: 12, ..Self::FULL };

    /// Writes the tree into the existing folder `to`.
    pub fn write(&self, to: &Path) -> io::Result<()> {
        let mut random = Random::new(1);
        let folder = |name: &str| -> io::Result<PathBuf> {
            let path = to.join(name);
            fs::create_dir_all(&path)?;
            Ok(path)
        };
        let boot = folder("boot")?;
        fs::write(boot.join("vmlinuz"), random.bytes(self.kernel))?;
        fs::write(boot.join("grub.cfg"), "menuentry test {\n linux /boot/vmlinuz quiet\n}\n")?;
        folder("empty")?;
        let mut left = self.files.saturating_sub(2);
        for number in 0..self.files * 3 / 10 {
            let content =
                if number.is_multiple_of(7) { String::new() } else { format!("file number {number}\n") };
            fs::write(folder_entry(to, "many", number)?, content)?;
            left = left.saturating_sub(1);
        }
        left = left.saturating_sub(Self::sizes(&folder("sizes")?, &mut random)?);
        left = left.saturating_sub(self.names(&folder("names")?, &mut random)?);
        left = left.saturating_sub(self.sparse(&folder("sparse")?, &mut random)?);
        if self.symlinks {
            Self::links(&folder("links")?)?;
        }
        let mut deep = folder("deep")?;
        for level in 0..self.depth {
            deep.push(format!("d{level}"));
            fs::create_dir(&deep)?;
            fs::write(deep.join("file"), format!("level {level}\n"))?;
            left = left.saturating_sub(1);
        }
        for number in 0..left {
            let parent = folder(&format!("tree/a{}/b{}", number % 10, number / 10 % 20))?;
            let size = random.below(64) * random.below(128);
            fs::write(parent.join(format!("f{number}")), random.bytes(size as usize))?;
        }
        Ok(())
    }

    /// Files that end at, before and after the ends of sectors, blocks and clusters.
    fn sizes(to: &Path, random: &mut Random) -> io::Result<usize> {
        let mut files = 0;
        for shift in [0u32, 5, 6, 9, 10, 11, 12, 13, 14, 15, 16, 17] {
            for size in [(1usize << shift) - 1, 1 << shift, (1 << shift) + 1] {
                fs::write(to.join(format!("s{size}")), random.bytes(size))?;
                files += 1;
            }
        }
        Ok(files)
    }

    fn names(&self, to: &Path, random: &mut Random) -> io::Result<usize> {
        let mut names: Vec<String> =
            vec!["with space".into(), ".hidden".into(), "two.dots.txt".into(), "a".into()];
        for len in [8, 9, 12, 13, 31, 63, 64, 100, 127, 128, 200, 254, 255] {
            if len <= self.longest_name {
                names.push("x".repeat(len - 3) + &format!("{len:03}"));
            }
        }
        if self.unicode {
            names.extend(["grüße".into(), "日本語の名前".into(), "Привет".into(), "emoji-🦀".into()]);
            if self.longest_name >= 255 {
                names.push("ä".repeat(127));
            }
        }
        if self.case {
            names.extend(["Case".into(), "case".into(), "CASE".into()]);
        }
        // Long names fill directory blocks quickly.
        for number in 0..(self.files / 50) {
            names.push(
                format!("{number:04}")
                    + &"n".repeat((number * 7 % 246).min(self.longest_name.saturating_sub(4))),
            );
        }
        names.retain(|name| name.len() <= self.longest_name);
        for name in &names {
            let size = random.below(200) as usize;
            fs::write(to.join(name), random.bytes(size))?;
        }
        Ok(names.len())
    }

    /// Holes at the start, in the middle, at the end and everywhere.
    fn sparse(&self, to: &Path, random: &mut Random) -> io::Result<usize> {
        let half = self.kernel / 2;
        let mut file = File::create(to.join("fragmented"))?;
        for (index, piece) in random.bytes(half).chunks(8192).enumerate() {
            if self.sparse > 0 {
                // One extent for each piece.
                file.seek(SeekFrom::Start(index as u64 * 3 * 8192))?;
            }
            file.write_all(piece)?;
        }
        if self.sparse == 0 {
            return Ok(1);
        }
        let size = self.sparse;
        let places: [(&str, &[u64]); 5] = [
            ("start", &[size - 70_000]),
            ("middle", &[0, size - 70_000]),
            ("end", &[0]),
            ("all", &[]),
            ("islands", &[4096, 50_000, 300_000, 1 << 20, size / 2 + 123]),
        ];
        for (name, places) in places {
            let mut file = File::create(to.join(name))?;
            for &place in places {
                file.seek(SeekFrom::Start(place))?;
                file.write_all(&random.bytes(69_999))?;
            }
            file.set_len(size)?;
        }
        Ok(6)
    }

    fn links(to: &Path) -> io::Result<()> {
        symlink("../boot/vmlinuz", to.join("relative"))?;
        symlink("/boot/grub.cfg", to.join("absolute"))?;
        symlink("../many", to.join("folder"))?;
        symlink("nowhere/at/all", to.join("dangling"))?;
        symlink("loop2", to.join("loop1"))?;
        symlink("loop1", to.join("loop2"))?;
        symlink("itself", to.join("itself"))?;
        symlink("relative", to.join("chain0"))?;
        for number in 1..30 {
            symlink(format!("chain{}", number - 1), to.join(format!("chain{number}")))?;
        }
        // Around the lengths at which file systems move a target out of the inode.
        for len in [1usize, 38, 58, 59, 60, 61, 100, 155, 156, 400, 1000, 1023] {
            symlink("../".repeat(len / 3) + &"y".repeat(len % 3), to.join(format!("target{len}")))?;
        }
        Ok(())
    }
}

fn folder_entry(to: &Path, folder: &str, number: usize) -> io::Result<PathBuf> {
    let folder = to.join(folder);
    if number == 0 {
        fs::create_dir_all(&folder)?;
    }
    Ok(folder.join(format!("entry-{number:05}.txt")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    fn count(folder: &Path) -> usize {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        entries
            .map(|entry| match entry.file_type().unwrap() {
                kind if kind.is_dir() => count(&entry.path()),
                kind => usize::from(kind.is_file()),
            })
            .sum()
    }

    #[test]
    fn a_tree_has_the_promised_number_of_files() {
        let scratch = Scratch::new("tree");
        Tree::QUICK.write(scratch.path()).unwrap();
        assert_eq!(count(scratch.path()), 300);
        assert_eq!(fs::metadata(scratch.join("links/chain29")).unwrap().len(), 1 << 20);
    }
}
