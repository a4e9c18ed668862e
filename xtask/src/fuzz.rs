//! Fuzzing of everything that reads foreign bytes, with libFuzzer and the compiler's own coverage counters.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use guest_tests::artifacts::{Cache, run as output};
use guest_tests::{Result, Scratch, is_root};
use lexopt::{Arg, Parser, ValueExt};

use crate::build::{cargo, succeed};

/// Targets that damage sound images; each word is a kind of image.
const IMAGES: &[&str] = &[
    "ext2", "xfs", "btrfs", "squash4", "iso9660", "ufs", "fat", "exfat", "ntfs", "zfs", "tar", "cpio",
    "volumes",
];
/// Targets that take bytes as they are.
const BYTES: &[&str] = &["decompress", "kernels", "device_map", "loader_conf", "grub_cfg"];

/// What makes the compiler count which way the program went (LLVM's SanitizerCoverage).
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                        -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
                        -Ccodegen-units=1 --cfg fuzzing";
/// Seconds for one input; memory for the target and the fuzzer itself, and for one allocation, in MiB.
const LIMITS: [&str; 3] = ["-timeout=10", "-rss_limit_mb=384", "-malloc_limit_mb=256"];

/// Builds the targets and runs one of them, or all.
pub fn run(parser: &mut Parser) -> Result<ExitCode> {
    let (mut targets, mut minutes) = (Vec::new(), 1.0_f64);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("minutes") => minutes = parser.value()?.parse()?,
            Arg::Value(word) => targets.push(word.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let known = || IMAGES.iter().chain(BYTES);
    if let Some(bad) = targets.iter().find(|target| !known().any(|name| name == target)) {
        let names: Vec<&str> = known().copied().collect();
        return Err(format!("fuzz {bad}: not one of {}", names.join(", ")).into());
    }
    if targets.is_empty() {
        targets = known().map(|name| (*name).to_owned()).collect();
    }
    let cache = Cache::open()?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let built = cache.root().join("fuzz/target");
    let mut build = cargo();
    // A target must be named, or build scripts would get the counters too.
    build.current_dir(&folder).args(["build", "--release", "--target", "x86_64-unknown-linux-gnu"]);
    succeed(build.env("RUSTFLAGS", COVERAGE).env("CARGO_TARGET_DIR", &built))?;
    let binaries = built.join("x86_64-unknown-linux-gnu/release");
    for target in &targets {
        fuzz(&cache, &binaries, target, minutes)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn fuzz(cache: &Cache, binaries: &Path, target: &str, minutes: f64) -> Result<()> {
    let work = cache.root().join("fuzz").join(target);
    let corpus = work.join("corpus");
    std::fs::create_dir_all(&corpus)?;
    let program = match target {
        "volumes" => "volumes",
        _ if IMAGES.contains(&target) => "filesystem",
        other => other,
    };
    let mut command = Command::new(binaries.join(program));
    if IMAGES.contains(&target) {
        command.env("FUZZ_IMAGES", images(cache, target)?);
    }
    let mut prefix = OsString::from("-artifact_prefix=");
    prefix.push(&work);
    prefix.push("/");
    command.arg(&corpus).args(LIMITS).arg(prefix).arg("-print_final_stats=1").arg("-verbosity=0");
    command.arg(format!("-max_total_time={}", (minutes * 60.0).ceil()));
    println!("{target}:");
    succeed(&mut command)
        .map_err(|error| format!("{target}: {error}; the input is in {}", work.display()).into())
}

/// Sound images of one kind, small, from the cache if they were made before.
fn images(cache: &Cache, kind: &str) -> Result<PathBuf> {
    cache.get_or_make(&format!("fuzz/images/{kind}"), |folder| {
        std::fs::create_dir(folder)?;
        let scratch = Scratch::new("fuzz")?;
        let tree = scratch.path().join("tree");
        plant(&tree)?;
        make(cache, kind, folder, &tree)?;
        if std::fs::read_dir(folder)?.next().is_none() {
            return Err(format!("{kind}: there is no tool here that makes an image").into());
        }
        Ok(())
    })
}

/// A few of everything.
fn plant(tree: &Path) -> Result<()> {
    let sub = tree.join("sub/deeper");
    std::fs::create_dir_all(&sub)?;
    std::fs::write(tree.join("empty"), "")?;
    std::fs::write(tree.join("small"), "a small file\n")?;
    std::fs::write(sub.join("a rather long name, to fill some directory block.text"), "x".repeat(5000))?;
    let noise: Vec<u8> = (0..150_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(tree.join("noise"), noise)?;
    std::os::unix::fs::symlink("small", tree.join("link"))?;
    std::os::unix::fs::symlink(
        "/sub/deeper/very/far/away/so/that/it/does/not/fit/into/an/inode/of/any/kind",
        tree.join("far"),
    )?;
    for n in 0..60 {
        std::fs::write(sub.join(format!("file-{n:03}")), format!("{n}\n"))?;
    }
    let sparse = std::fs::File::create(tree.join("sparse"))?;
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 700_000)?;
    Ok(())
}

fn tool(program: &str, arguments: &[&str], paths: &[&Path]) -> Result<()> {
    let search = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    output(Command::new(program).args(arguments).args(paths).env("PATH", search)).map(drop)
}

fn blank(path: &Path, size: u64) -> Result<()> {
    Ok(std::fs::File::create(path)?.set_len(size)?)
}

/// Images that a tool makes out of the tree.
fn make(cache: &Cache, kind: &str, folder: &Path, tree: &Path) -> Result<()> {
    let image = |name: &str| folder.join(name);
    match kind {
        "ext2" => {
            for (name, arguments) in [
                ("ext2", &["-q", "-F", "-t", "ext2", "-b", "1024"][..]),
                ("ext4", &["-q", "-F", "-t", "ext4"]),
                ("inline", &["-q", "-F", "-t", "ext4", "-O", "inline_data", "-I", "256"]),
            ] {
                blank(&image(name), 4 << 20)?;
                let arguments = [arguments, &["-d"]].concat();
                tool("mke2fs", &arguments, &[tree, &image(name)])?;
            }
        }
        "xfs" => {
            blank(&image("v5"), 320 << 20)?;
            tool("mkfs.xfs", &["-q"], &[&image("v5")])?;
            fill(&image("v5"), tree)?;
            // Today's kernels don't mount version 4: mkfs fills it from a list (mkfs.xfs(8), -p).
            let list = tree.with_extension("proto");
            let at = |name: &str| tree.join(name).display().to_string();
            let text = format!(
                "/\n0 0\nd--755 0 0\nsmall ---644 0 0 {}\nnoise ---644 0 0 {}\nsub d--755 0 0\nlink l--777 0 0 ../small\n\
                 file ---644 0 0 {}\n$\n$\n",
                at("small"),
                at("noise"),
                at("sub/deeper/file-001")
            );
            std::fs::write(&list, text)?;
            blank(&image("v4"), 320 << 20)?;
            tool("mkfs.xfs", &["-q", "-m", "crc=0", "-p"], &[&list, &image("v4")])?;
        }
        "btrfs" => {
            blank(&image("single"), 120 << 20)?;
            tool("mkfs.btrfs", &["-q", "--rootdir"], &[tree, &image("single")])?;
        }
        "squash4" => {
            for compressor in ["gzip", "zstd", "xz", "lz4", "lzo"] {
                tool(
                    "mksquashfs",
                    &[],
                    &[
                        tree,
                        &image(compressor),
                        Path::new("-quiet"),
                        Path::new("-comp"),
                        Path::new(compressor),
                    ],
                )?;
            }
        }
        _ => return make_other(cache, kind, folder, tree),
    }
    Ok(())
}

fn make_other(cache: &Cache, kind: &str, folder: &Path, tree: &Path) -> Result<()> {
    let image = |name: &str| folder.join(name);
    match kind {
        "iso9660" => {
            tool("xorriso", &["-as", "mkisofs", "-quiet", "-R", "-J", "-o"], &[&image("rr"), tree])?;
            tool("xorriso", &["-as", "mkisofs", "-quiet", "-o"], &[&image("plain"), tree])?;
        }
        "ufs" => {
            for version in ["1", "2"] {
                let option = format!("version={version}");
                tool("makefs", &["-t", "ffs", "-o", &option], &[&image(version), tree])?;
            }
        }
        "fat" => {
            for (bits, size) in [("12", 2u64 << 20), ("16", 16 << 20), ("32", 40 << 20)] {
                blank(&image(bits), size)?;
                tool("mkfs.fat", &["-F", bits], &[&image(bits)])?;
                tool(
                    "mcopy",
                    &["-s", "-i"],
                    &[&image(bits), &tree.join("sub"), &tree.join("noise"), Path::new("::/")],
                )?;
            }
        }
        // The tools can't fill them from a folder; those of the readers' own tests do.
        "exfat" | "ntfs" => {
            for entry in std::fs::read_dir(cache.root().join("images"))?.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with(kind) && !name.contains("full") {
                    std::fs::copy(entry.path(), image(&name))?;
                }
            }
        }
        "zfs" => zfs(folder)?,
        "tar" => {
            for format in ["gnu", "pax", "ustar"] {
                let option = format!("--format={format}");
                tool("tar", &[&option, "-cf"], &[&image(format), Path::new("-C"), tree, Path::new("sub")])?;
            }
        }
        "cpio" => {
            for format in ["newc", "crc", "odc"] {
                let script = format!(
                    "cd {} && find . | cpio --quiet -o -H {format} >{}",
                    tree.display(),
                    image(format).display()
                );
                output(Command::new("sh").args(["-c", &script])).map(drop)?;
            }
        }
        _ => volumes(folder)?,
    }
    Ok(())
}

/// Copies the tree into a file system that has no tool for it.
fn fill(image: &Path, tree: &Path) -> Result<()> {
    if !is_root() {
        eprintln!("{}: only root can mount and fill it", image.display());
        return Ok(());
    }
    let scratch = Scratch::new("mount")?;
    tool("mount", &["-o", "loop"], &[image, scratch.path()])?;
    let copied = tool("cp", &["-a"], &[&tree.join("."), scratch.path()]);
    tool("umount", &[], &[scratch.path()])?;
    copied
}

/// The pools of one disk that lie with the reader's tests, unpacked.
fn zfs(folder: &Path) -> Result<()> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/media/tests/images");
    for name in ["codecs", "gang", "grub", "old"] {
        let packed = images.join(format!("zfs-{name}.0.xz"));
        let plain = output(Command::new("xz").arg("-dc").arg(&packed))?;
        std::fs::write(folder.join(name), plain)?;
    }
    Ok(())
}

/// Partition maps, and what Debian's tools make without the kernel's help.
fn volumes(folder: &Path) -> Result<()> {
    for (name, script) in [
        ("msdos", "label: dos\nsize=1MiB\nsize=1MiB\ntype=5\nsize=1MiB\nsize=1MiB\n"),
        ("gpt", "label: gpt\nsize=1MiB\nsize=1MiB\nsize=1MiB\n"),
    ] {
        let image = folder.join(name);
        blank(&image, 8 << 20)?;
        let shell =
            format!("printf '{}' | /usr/sbin/sfdisk -q {}", script.replace('\n', "\\n"), image.display());
        output(Command::new("sh").args(["-c", &shell]))?;
    }
    for (name, kind) in [("luks1", "luks1"), ("luks2", "luks2")] {
        let image = folder.join(name);
        blank(&image, 20 << 20)?;
        let shell = format!(
            "printf x | /usr/sbin/cryptsetup -q luksFormat --type {kind} --pbkdf pbkdf2 \
             --pbkdf-force-iterations 1000 {} -",
            image.display()
        );
        if let Err(error) = output(Command::new("sh").args(["-c", &shell])) {
            eprintln!("{name}: {error}");
            std::fs::remove_file(image)?;
        }
    }
    Ok(())
}
