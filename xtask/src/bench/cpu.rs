//! The same benchmark program natively, in our guest and in QEMU's.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use guest_tests::artifacts::{Cache, Flavour, Initramfs, Kernel, Script, run as output};
use guest_tests::{Guest, Machine, Result, Scratch, Vmm};
use lexopt::{Arg, Parser};

use super::contestants;
use crate::build;

/// How long the program may run in a guest.
const LIMIT: Duration = Duration::from_mins(5);

/// What the guest prints last.
const END: &str = "BENCH-END";

/// One test's time in nanoseconds an operation, and what it computed.
type Figures = BTreeMap<String, (f64, String)>;

/// Measures and prints.
pub fn run(parser: &mut Parser) -> Result<ExitCode> {
    let mut json = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => json = true,
            other => return Err(other.unexpected().into()),
        }
    }
    let binary = build::bhyve()?;
    let scratch = Scratch::new("cpu")?;
    let program = scratch.path().join("cpu-bench");
    let source = build::root().join("xtask/guest/cpu.c");
    output(Command::new("gcc").args(["-O2", "-static", "-o"]).arg(&program).arg(source))?;
    eprintln!("native");
    let (order, native) = parse(&String::from_utf8(output(&mut Command::new(&program))?)?)?;
    let cache = Cache::open()?;
    let kernel = Kernel::fetch(&cache, Flavour::Cloud)?;
    let [ours, peer, _] = contestants(binary);
    let mut results = Vec::new();
    for (name, vmm) in [&ours, &peer] {
        eprintln!("{name}");
        results.push(in_guest(&program, vmm, &kernel, &cache)?);
    }
    let [ours, peer] = results.as_slice() else { return Err("two guests give two results".into()) };
    let wrong = report(&order, &native, ours, peer, json);
    if wrong { Err("a guest computed something else than the host".into()) } else { Ok(ExitCode::SUCCESS) }
}

/// Runs the program as the only one in a guest.
fn in_guest(program: &Path, vmm: &Vmm, kernel: &Kernel, cache: &Cache) -> Result<Figures> {
    let lines = format!("dmesg -n 1; mount -t tmpfs tmp /tmp; /cpu-bench; echo {END} $?");
    let initrd = Initramfs::new(kernel, Script::Lines(lines))
        .file("cpu-bench", 0o755, std::fs::read(program)?)
        .build(cache)?;
    let machine = Machine::new("bench", &kernel.image, &initrd).cmdline("quiet");
    let mut guest = Guest::spawn(&machine, vmm)?;
    let text = guest.expect(&format!("{END} 0"), LIMIT)?;
    guest.wait_exit(LIMIT)?;
    Ok(parse(&text)?.1)
}

/// Reads `BENCH name ns result` lines; gives the names in their order too.
fn parse(text: &str) -> Result<(Vec<String>, Figures)> {
    let mut order = Vec::new();
    let mut figures = Figures::new();
    // A message of the kernel may stand before a result in its line.
    for line in text.lines().filter_map(|line| line.find("BENCH ").and_then(|start| line.get(start..))) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, name, time, result] = words.as_slice() else {
            return Err(format!("unexpected line {line:?}").into());
        };
        order.push((*name).to_owned());
        figures.insert((*name).to_owned(), (time.parse()?, (*result).to_owned()));
    }
    if order.is_empty() {
        return Err("the benchmark printed nothing".into());
    }
    Ok((order, figures))
}

/// Prints all ratios; tells whether any result differs from the host's.
fn report(order: &[String], native: &Figures, ours: &Figures, peer: &Figures, json: bool) -> bool {
    let nothing = (f64::NAN, String::new());
    let mut rows = Vec::new();
    let mut wins = 0;
    let mut wrong = false;
    if !json {
        println!(
            "{:12} {:>12} {:>12} {:>12} {:>8} {:>8}  winner",
            "ns/op", "native", "bhyve soft", "qemu tcg", "ours/n", "qemu/n"
        );
    }
    for name in order {
        let get = |figures: &Figures| figures.get(name).unwrap_or(&nothing).clone();
        let ((host, expected), (own, got), (other, _)) = (get(native), get(ours), get(peer));
        let same = got == expected;
        wrong |= !same;
        let won = same && own < other;
        wins += usize::from(won);
        if json {
            rows.push(format!(
                "{{\"name\":\"{name}\",\"native\":{host},\"bhyve\":{own},\"qemu\":{other},\"correct\":{same}}}"
            ));
        } else {
            let winner = if !same {
                "WRONG RESULT"
            } else if won {
                "bhyve"
            } else {
                "qemu"
            };
            println!(
                "{name:12} {host:12.2} {own:12.2} {other:12.2} {:8.2} {:8.2}  {winner}",
                own / host,
                other / host
            );
        }
    }
    if json {
        println!("{{\"bench\":\"cpu\",\"wins\":{wins},\"tests\":[{}]}}", rows.join(","));
    } else {
        println!("bhyve is faster in {wins} of {}", order.len());
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_results_count_among_what_a_console_says() {
        let text = "[ 0.1] Linux\n[ 0.2] hereBENCH sort 12.5 00ff\nnoise\nBENCH copy 1.0 01\n";
        let (order, figures) = parse(text).expect("two results");
        assert_eq!(order, ["sort", "copy"]);
        assert_eq!(figures.get("sort"), Some(&(12.5, "00ff".to_owned())));
        assert!(parse("nothing").is_err());
        assert!(parse("BENCH short\n").is_err());
    }

    #[test]
    fn a_wrong_result_never_wins() {
        let figures = |time, result: &str| Figures::from([("sort".to_owned(), (time, result.to_owned()))]);
        let order = ["sort".to_owned()];
        assert!(report(&order, &figures(1.0, "a"), &figures(1.0, "b"), &figures(9.0, "a"), false));
        assert!(!report(&order, &figures(1.0, "a"), &figures(1.0, "a"), &figures(9.0, "a"), true));
    }
}
