//! Time from starting the VMM to the guest's first process.

use std::process::ExitCode;
use std::time::Duration;

use guest_tests::artifacts::{Cache, Flavour, Initramfs, Kernel, Script};
use guest_tests::{Guest, Machine, Result, Vmm};
use lexopt::{Arg, Parser, ValueExt};

use super::{contestants, json_numbers, median};
use crate::build;

/// Long enough for anything that works at all.
const LIMIT: Duration = Duration::from_mins(5);

/// What to measure.
struct Options {
    runs: u32,
    cpus: u32,
    memory: String,
    flavour: Flavour,
    json: bool,
}

/// What one VMM took, run by run, in seconds.
struct Figures {
    name: &'static str,
    wall: Vec<f64>,
    cpu: Vec<f64>,
    rss: f64,
}

/// Measures and prints.
pub fn run(parser: &mut Parser) -> Result<ExitCode> {
    let options = parse(parser)?;
    let binary = build::bhyve()?;
    let cache = Cache::open()?;
    let kernel = Kernel::fetch(&cache, options.flavour)?;
    let initrd = Initramfs::new(&kernel, Script::Marker).build(&cache)?;
    // Nobody's first run shall pay for the disk.
    std::fs::read(&kernel.image)?;
    let mut machine = Machine::new("bench", &kernel.image, &initrd).cmdline("quiet");
    machine.cpus = options.cpus;
    machine.memory.clone_from(&options.memory);
    machine.random = false;
    let contestants = contestants(binary);
    let mut figures =
        contestants.each_ref().map(|(name, _)| Figures { name, wall: Vec::new(), cpu: Vec::new(), rss: 0.0 });
    for round in 1..=options.runs {
        for ((name, vmm), figures) in contestants.iter().zip(&mut figures) {
            eprint!("\r\x1b[Krun {round} of {}: {name}", options.runs);
            measure(&machine, vmm, figures)?;
        }
    }
    eprint!("\r\x1b[K");
    if options.json {
        println!("{}", json(&figures, &options, &kernel.release));
    } else {
        print_table(&figures, &options, &kernel.release);
    }
    Ok(ExitCode::SUCCESS)
}

fn parse(parser: &mut Parser) -> Result<Options> {
    let mut options =
        Options { runs: 5, cpus: 1, memory: "512M".to_owned(), flavour: Flavour::Cloud, json: false };
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("runs") => options.runs = parser.value()?.parse()?,
            Arg::Long("cpus") => options.cpus = parser.value()?.parse()?,
            Arg::Long("memory") => options.memory = parser.value()?.string()?,
            Arg::Long("kernel") => {
                options.flavour = match parser.value()?.string()?.as_str() {
                    "cloud" => Flavour::Cloud,
                    "generic" => Flavour::Generic,
                    other => return Err(format!("--kernel {other}: neither cloud nor generic").into()),
                }
            }
            Arg::Long("json") => options.json = true,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

/// One boot to the marker and on to the end.
fn measure(machine: &Machine, vmm: &Vmm, figures: &mut Figures) -> Result<()> {
    let mut guest = Guest::spawn(machine, vmm)?;
    let wall = guest.wait_marker(LIMIT)?;
    let exit = guest.wait_exit(LIMIT)?;
    figures.wall.push(wall.as_secs_f64());
    figures.cpu.push(exit.cpu.as_secs_f64());
    figures.rss = figures.rss.max(exit.max_rss as f64);
    Ok(())
}

fn print_table(figures: &[Figures], options: &Options, release: &str) {
    println!(
        "Linux {release}, {} vCPU, {}: start to first process (wall), to power-off (CPU); medians of {}",
        options.cpus, options.memory, options.runs
    );
    println!("{:12} {:>9} {:>9} {:>10} {:>14}", "", "wall s", "CPU s", "RSS MiB", "wall, ours = 1");
    let ours = figures.first().map_or(f64::NAN, |figures| median(&figures.wall));
    for Figures { name, wall, cpu, rss } in figures {
        let (wall, cpu) = (median(wall), median(cpu));
        let rss = rss / f64::from(1 << 20);
        println!("{name:12} {wall:9.3} {cpu:9.3} {rss:10.0} {:14.2}", wall / ours);
    }
}

fn json(figures: &[Figures], options: &Options, release: &str) -> String {
    let ours = figures.first().map_or(f64::NAN, |figures| median(&figures.wall));
    let vmms: Vec<String> = figures
        .iter()
        .map(|Figures { name, wall, cpu, rss }| {
            format!(
                "{{\"name\":\"{name}\",\"wall\":{},\"cpu\":{},\"wall_median\":{:.6},\"cpu_median\":{:.6},\
                 \"wall_ratio\":{:.4},\"max_rss\":{rss:.0}}}",
                json_numbers(wall),
                json_numbers(cpu),
                median(wall),
                median(cpu),
                median(wall) / ours,
            )
        })
        .collect();
    format!(
        "{{\"bench\":\"boot\",\"kernel\":\"{release}\",\"cpus\":{},\"memory\":\"{}\",\"vmms\":[{}]}}",
        options.cpus,
        options.memory,
        vmms.join(",")
    )
}
