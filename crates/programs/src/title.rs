//! The process title.
//!
//! bhyve calls itself `bhyve: NAME`, and tools find a VM's process by exactly that (`pgrep -fx`). Linux
//! has no setproctitle(3): ps(1) shows the memory in which the kernel left the arguments, so the title is
//! written there. The kernel supports this: where the last byte of the arguments is not NUL any more, it
//! reads on into the environment, which follows them (`get_mm_cmdline` in fs/proc/base.c).

use std::io;
use std::ops::Range;

/// What the kernel says of this process.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    threads: usize,
    /// Where it left the strings of the arguments and the environment.
    arguments: Range<usize>,
    environment: Range<usize>,
}

impl Process {
    /// Reads fields 20 and 48 to 51 of /proc/self/stat, see proc_pid_stat(5).
    fn parse(stat: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, which may itself contain any of them.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<usize>().ok();
        let process = Self {
            threads: field(20)?,
            arguments: field(48)?..field(49)?,
            environment: field(50)?..field(51)?,
        };
        (process.arguments.start != 0 && !process.arguments.is_empty()).then_some(process)
    }
}

/// Makes `title` the command line that other processes see.
///
/// To be called before the first thread is started, and once [`std::env::args`] is no longer needed, which
/// returns nonsense afterwards.
///
/// # Errors
/// If there is no room for the title, if the room can't be found, or if other threads run: the environment
/// may have to move, and they could be reading it.
pub fn set(title: &str) -> io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let process =
        Process::parse(&stat).ok_or_else(|| io::Error::other("unexpected content of /proc/self/stat"))?;
    if process.threads != 1 {
        return Err(io::Error::other("other threads run already"));
    }
    // SAFETY: this is the only thread.
    unsafe { write(title, process) }
}

/// Writes the title over the arguments, and over the environment if it takes that.
///
/// # Safety
/// No other thread may use the environment meanwhile.
unsafe fn write(title: &str, process: Process) -> io::Result<()> {
    let mut room = process.arguments;
    if title.len() >= room.len() {
        if process.environment.start != room.end || process.environment.end < room.end {
            return Err(io::Error::other("the environment does not follow the arguments"));
        }
        room.end = process.environment.end;
        if title.len() >= room.len() {
            return Err(io::Error::other("the command line is too short to hold the title"));
        }
        for (name, value) in std::env::vars_os() {
            // SAFETY: no other thread uses the environment. setenv(3) puts a copy of each variable on the
            // heap, so that nothing refers to the strings that are overwritten below.
            unsafe { std::env::set_var(name, value) };
        }
    }
    let start = std::ptr::with_exposed_provenance_mut::<u8>(room.start);
    // SAFETY: the kernel says that the strings are there, in the writable memory of the initial stack. What
    // refers to them: argv, which is only read again by env::args() (each string then still ends at a NUL, as
    // all of the room behind the title becomes NUL), and the environment if the title fits no other way, which
    // has just been moved. There is room for the title and at least one NUL.
    unsafe {
        std::ptr::copy_nonoverlapping(title.as_ptr(), start, title.len());
        std::ptr::write_bytes(start.add(title.len()), 0, room.len() - title.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    const TITLE: &str = "BHYVE_TEST_TITLE";

    #[test]
    fn stat_fields() {
        let fields: Vec<String> = (4..=52).map(|n| (n * 10).to_string()).collect();
        let stat = format!("1 (a ) S (b) S {}", fields.join(" "));
        let expected = Process { threads: 200, arguments: 480..490, environment: 500..510 };
        assert_eq!(Process::parse(&stat), Some(expected));
        for stat in ["", "1 (a) S 1 2", "1 (a S", &format!("1 (a) S {}", "0 ".repeat(49))] {
            assert_eq!(Process::parse(stat), None, "{stat}");
        }
    }

    #[test]
    fn refused_once_threads_run() {
        let error = std::thread::spawn(|| set("x").unwrap_err()).join().unwrap();
        assert!(error.to_string().contains("threads"), "{error}");
    }

    /// Not a test of its own: what the process does that `other_processes_see_it` starts.
    #[test]
    fn child() {
        let Ok(title) = std::env::var(TITLE) else { return };
        let process = Process::parse(&std::fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        // SAFETY: this is the only test; the other thread of the harness just waits for it.
        unsafe { write(&title, process) }.unwrap();
        assert_eq!(std::env::var(TITLE).as_deref(), Ok(title.as_str()), "the environment survives");
        let seen = std::fs::read("/proc/self/cmdline").unwrap();
        println!("seen <{}>", String::from_utf8_lossy(&seen).trim_end_matches('\0'));
    }

    #[test]
    fn other_processes_see_it() {
        let arguments = ["--exact", "title::tests::child", "--nocapture", "--test-threads=1"];
        // Shorter than the arguments, just as long, and longer, into the environment.
        let room = 1 + 1 + arguments.iter().map(|argument| argument.len() + 1).sum::<usize>();
        for length in [12, room - 2, room - 1, room, room + 1, room + 30] {
            let title = format!("bhyve: {}", "x".repeat(length - 7));
            let output = Command::new(std::env::current_exe().unwrap())
                .arg0("b")
                .args(arguments)
                .env(TITLE, &title)
                .env("BHYVE_TEST_PADDING", "y".repeat(100))
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{length}: {text}");
            assert!(text.contains(&format!("seen <{title}>")), "{length}: {text}");
        }
    }
}
