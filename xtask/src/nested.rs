//! Stock Linux under a real KVM, on a host that has none: QEMU's TCG emulates a processor with SVM,
//! a Debian kernel with KVM runs on that, and our `bhyve` runs the same kernel once more.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::artifacts::{Cache, Flavour, Initramfs, Kernel, Script};
use guest_tests::{MARKER, Process, Result};
use lexopt::Parser;

use crate::{build, no_arguments};

/// All of it; a quiet host needs half a minute.
const PATIENCE: Duration = Duration::from_mins(8);

/// How long one inner guest may take, in seconds; a quiet host needs eight.
const GUEST_SECONDS: u32 = 120;

/// What the outer guest prints before a verdict.
const VERDICT: &str = "nested:";

/// What the inner guest writes to its disk.
const WORD: &str = "written-by-the-inner-guest";

/// Options of bhyve for each inner guest; all must end in power-off.
const CASES: &[(&str, &str)] = &[
    ("one vCPU", "-c 1 -o engine=kvm"),
    ("two vCPUs", "-c 2 -o engine=kvm"),
    ("disk and random numbers", "-c 1 -o engine=kvm -s 3:0,virtio-blk,/tmp/disk.img -s 4:0,virtio-rnd"),
    ("engine=auto", "-c 1 -o engine=auto"),
];

/// Builds, boots, judges.
pub fn run(parser: &mut Parser) -> Result<ExitCode> {
    no_arguments(parser)?;
    let binary = build::bhyve()?;
    let cache = Cache::open()?;
    let kernel = Kernel::fetch(&cache, Flavour::Cloud)?;
    let inner = inner(&kernel)?.build(&cache)?;
    let mut outer = Initramfs::new(&kernel, Script::Lines(outer_script(&binary, &kernel)?))
        .host_program(&binary)?
        .file("guest/vmlinuz", 0o644, fs::read(&kernel.image)?)
        .file("guest/initrd", 0o644, fs::read(&inner)?);
    for (name, content) in kernel.modules(&["kvm_amd"])? {
        outer = outer.file(&format!("lib/modules/{name}.ko"), 0o644, content);
    }
    let outer = outer.build(&cache)?;
    let transcript = boot(&kernel, &outer)?;
    let mut failed = false;
    for (number, (name, _)) in CASES.iter().enumerate() {
        let verdict = verdict(&transcript, number);
        failed |= verdict.is_err();
        match verdict {
            Ok(seconds) => println!("pass: {name}, {seconds} s"),
            Err(why) => println!("FAIL: {name}: {why}"),
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The inner guest: uses the devices that it finds, says so, and powers off.
fn inner(kernel: &Kernel) -> Result<Initramfs<'_>> {
    let mut lines = String::new();
    let modules = kernel.modules(&["virtio_pci", "virtio_blk", "virtio_rng"])?;
    for (name, _) in &modules {
        writeln!(lines, "insmod /lib/modules/{name}.ko")?;
    }
    write!(
        lines,
        "echo processors=$(nproc)\n\
         if [ -e /dev/vda ]; then\n\
         echo {WORD} | dd of=/dev/vda bs=512 seek=7 conv=sync,fsync 2>/dev/null && echo disk=written\n\
         dd if=/dev/hwrng of=/tmp/r bs=64 count=4 2>/dev/null && echo random=$(wc -c </tmp/r)\n\
         fi\n\
         echo {MARKER}"
    )?;
    let mut initramfs = Initramfs::new(kernel, Script::Lines(lines));
    for (name, content) in modules {
        initramfs = initramfs.file(&format!("lib/modules/{name}.ko"), 0o644, content);
    }
    Ok(initramfs)
}

/// What the outer guest does: loads KVM, runs the inner guests and reports on each how often
/// a look found a VM of KVM's, its status, and its time.
fn outer_script(binary: &Path, kernel: &Kernel) -> Result<String> {
    let binary = fs::canonicalize(binary)?;
    let binary = binary.display();
    let mut lines = String::new();
    for (name, _) in kernel.modules(&["kvm_amd"])? {
        writeln!(lines, "insmod /lib/modules/{name}.ko")?;
    }
    lines.push_str("ls -l /dev/kvm\n");
    for (number, (_, options)) in CASES.iter().enumerate() {
        write!(
            lines,
            "truncate -s 4M /tmp/disk.img\n\
             start=$(cut -d' ' -f1 /proc/uptime)\n\
             timeout -k 5 {GUEST_SECONDS} {binary} -AHP {options} -m 256M -s 0:0,hostbridge -s 31:0,lpc -l com1,stdio \
             -o kernel.path=/guest/vmlinuz -o kernel.initrd=/guest/initrd \
             -o 'kernel.cmdline=console=ttyS0 no_timer_check mitigations=off quiet' nested{number} \
             </dev/null >/tmp/log 2>&1 &\n\
             pid=$!\n\
             vm=0\n\
             while kill -0 $pid 2>/dev/null; do\n\
             vm=$((vm + $(ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c kvm-vm)))\n\
             sleep 0.4\n\
             done\n\
             wait $pid\n\
             status=$?\n\
             cat /tmp/log\n\
             echo {VERDICT} {number} status=$status kvm=$vm from=$start to=$(cut -d' ' -f1 /proc/uptime) \
             marker=$(grep -c {MARKER} /tmp/log) processors=$(grep -o 'processors=[0-9]*' /tmp/log | cut -d= -f2) \
             random=$(grep -o 'random=[0-9]*' /tmp/log | cut -d= -f2) \
             disk=$(dd if=/tmp/disk.img bs=512 skip=7 count=1 2>/dev/null | tr -d '\\000\\n') end\n\
             rm /tmp/disk.img\n"
        )?;
    }
    Ok(lines)
}

/// Runs the outer guest, shows its console, and gives what was on it.
fn boot(kernel: &Kernel, initrd: &Path) -> Result<String> {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "1", "-m", "768"])
        .args(["-nographic", "-no-reboot", "-vga", "none", "-net", "none"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initrd)
        // Without no_timer_check the kernel panics at times on a host under load.
        .args(["-append", "console=ttyS0 panic=-1 mitigations=off no_timer_check tsc=reliable quiet"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let started = Instant::now();
    let mut process = Process::spawn(&mut command)?;
    let mut output = process.child().stdout.take().ok_or("no pipe to QEMU")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = output.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut transcript = Vec::new();
    loop {
        match receiver.recv_timeout(PATIENCE.saturating_sub(started.elapsed())) {
            Ok(bytes) => {
                std::io::stdout().write_all(&bytes)?;
                transcript.extend(bytes);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                println!("\nthe outer guest still runs after {PATIENCE:?}");
                return Ok(String::from_utf8_lossy(&transcript).into_owned());
            }
        }
    }
    let exit = process.wait(Duration::from_secs(10))?;
    let (wall, cpu) = (started.elapsed().as_secs_f64(), exit.cpu.as_secs_f64());
    println!("\nQEMU: {}, {wall:.1} s, {cpu:.1} s of CPU", exit.status);
    Ok(String::from_utf8_lossy(&transcript).into_owned())
}

/// Reads what the outer guest found out about one inner guest: its time in seconds, or what is
/// wrong with it.
fn verdict(transcript: &str, number: usize) -> std::result::Result<String, String> {
    let start = format!("{VERDICT} {number} ");
    let line = transcript
        .lines()
        .find_map(|line| Some(line.split_once(&start)?.1))
        .ok_or("the outer guest reports nothing")?;
    let field = |name: &str| {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_default()
    };
    let options = CASES.get(number).map_or("", |case| case.1);
    let mut expected = vec![("status", "1"), ("marker", "1")];
    expected.push(("processors", if options.contains("-c 2") { "2" } else { "1" }));
    if options.contains("virtio") {
        expected.extend([("disk", WORD), ("random", "256")]);
    }
    for (name, value) in expected {
        if field(name) != value {
            return Err(format!("{name} is {:?}, not {value:?}", field(name)));
        }
    }
    // One look might have found the VM by which bhyve tries KVM out.
    if field("kvm").parse::<u32>().unwrap_or(0) < 3 {
        return Err("KVM was not used".into());
    }
    let time = |name: &str| field(name).parse::<f64>().unwrap_or(f64::NAN);
    Ok(format!("{:.1}", time("to") - time("from")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_complete_report_passes() {
        let good = "nested: 0 status=1 kvm=9 from=2.1 to=7.35 marker=1 processors=1 random= disk= end\r\n";
        assert_eq!(verdict(good, 0).as_deref(), Ok("5.2"));
        assert!(verdict(good, 1).is_err(), "no report");
        assert!(verdict(&good.replace("status=1", "status=4"), 0).is_err());
        assert!(verdict(&good.replace("kvm=9", "kvm=1"), 0).is_err());
        assert!(verdict(&good.replace(" 0 ", " 1 "), 1).is_err(), "one processor of two");
        let disk = good.replace(" 0 ", " 2 ").replace("random=", "random=256");
        assert!(verdict(&disk, 2).is_err(), "nothing on the disk");
        assert!(verdict(&disk.replace("disk=", &format!("disk={WORD}")), 2).is_ok());
    }
}
