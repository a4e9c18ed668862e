//! Tests of the command line: tables, the command lines of the handbook, and noise.

use super::*;
use crate::{EXIT_ERROR, EXIT_OPTION, EXIT_USAGE, validate};

/// Splits as a shell would where nothing is quoted.
fn parse(line: &str) -> Result<Command, Error> {
    Command::parse(line.split_whitespace().map(OsString::from))
}

fn tree(line: &str) -> Tree {
    match parse(line) {
        Ok(Command::Run(tree)) => tree,
        other => panic!("{line}: {other:?}"),
    }
}

fn dump(line: &str) -> String {
    tree(line).dump().trim_end().replace('\n', " ")
}

#[test]
fn options_become_keys() {
    for (line, expected) in [
        ("vm", "name=vm"),
        ("-AHP vm", "acpi_tables=true name=vm x86.vmexit_on_hlt=true x86.vmexit_on_pause=true"),
        ("-I -a -- -vm", "name=-vm x86.x2apic=false"),
        (
            "-aexYwu vm",
            "name=vm rtc.use_localtime=false x86.mptable=false x86.strictio=true x86.strictmsr=false x86.x2apic=true",
        ),
        (
            "-CDSW vm",
            "destroy_on_poweroff=true memory.guest_in_core=true memory.wired=true name=vm virtio_msix=false",
        ),
        ("-m1024M vm", "memory.size=1024M name=vm"),
        ("-HPm 2G vm", "memory.size=2G name=vm x86.vmexit_on_hlt=true x86.vmexit_on_pause=true"),
        ("-c 4 vm", "cpus=4 name=vm"),
        ("-c cpus=8,sockets=2,cores=2,threads=2 vm", "cores=2 cpus=8 name=vm sockets=2 threads=2"),
        ("-c4,sockets=1 -c 2 vm", "cpus=2 name=vm sockets=1"),
        ("-o cpus=2 -c 3 -o cpus=4 vm", "cpus=4 name=vm"),
        ("-o name=a", "name=a"),
        ("-o name=a b", "name=b"),
        ("-o kernel.cmdline=console=ttyS0 vm", "kernel.cmdline=console=ttyS0 name=vm"),
        ("-G 1234 vm", "gdb.port=1234 name=vm"),
        ("-G w[::1]:1234 vm", "gdb.address=[::1] gdb.port=1234 gdb.wait=true name=vm"),
        ("-K us -U 123 -r file vm", "keyboard.layout=us name=vm restore.path=file uuid=123"),
        ("-p 0:1 -p 0:3 -p 1:2 vm", "name=vm vcpu.0.cpuset=1,3 vcpu.1.cpuset=2"),
        (
            "-f opt/a,string=x,y -f name=opt/b,file=/f vm",
            "fwcfg.0.name=opt/a fwcfg.0.string=x,y fwcfg.1.file=/f fwcfg.1.name=opt/b name=vm",
        ),
        (
            "-n id=1,size=1G,cpus=0,2-3,domain_policy=prefer:1 vm",
            "domains.1.cpus=0,2-3 domains.1.domain_policy=prefer:1 domains.1.size=1G name=vm",
        ),
        ("-s3,virtio-rnd vm", "name=vm pci.0.3.0.device=virtio-rnd"),
        ("-s 1:2:3,virtio-rnd -s 2:1,uart vm", "name=vm pci.0.2.1.device=uart pci.1.2.3.device=virtio-rnd"),
        ("-lcom1,stdio vm", "lpc.com1.path=stdio name=vm"),
        ("-s 3,unheard-of,a,b=c vm", "name=vm pci.0.3.0.a=true pci.0.3.0.b=c pci.0.3.0.device=unheard-of"),
    ] {
        assert_eq!(dump(line), expected, "{line}");
    }
    let empty = Command::parse(["-c", "", "vm"].map(OsString::from)).unwrap();
    let Command::Run(tree) = empty else { panic!("{empty:?}") };
    assert_eq!(tree.dump(), "cores=1\ncpus=1\nname=vm\nsockets=1\nthreads=1\n");
}

#[test]
fn help_ends_the_reading() {
    assert_eq!(parse("-h"), Ok(Command::Help));
    assert_eq!(parse("-AHh -Z"), Ok(Command::Help));
    assert_eq!(parse("-s help"), Ok(Command::DeviceHelp));
    assert_eq!(parse("-shelp"), Ok(Command::DeviceHelp));
    assert_eq!(parse("-m 1 -l help"), Ok(Command::LpcHelp));
}

#[test]
fn refusals_and_their_exit_codes() {
    for (line, code, message) in [
        ("", EXIT_USAGE, "VM name is missing"),
        ("-AHP", EXIT_USAGE, "VM name is missing"),
        ("vm other", EXIT_USAGE, "other: unexpected"),
        ("vm -c 2", EXIT_USAGE, "unexpected"),
        ("-Z vm", EXIT_USAGE, "-Z: unknown option"),
        ("-AZ vm", EXIT_USAGE, "-Z: unknown option"),
        ("-g 1 vm", EXIT_USAGE, "no longer"),
        ("-Aä vm", EXIT_USAGE, "unknown option"),
        ("--help", EXIT_USAGE, "--: unknown option"),
        ("-m", EXIT_USAGE, "-m: its argument is missing"),
        ("-c 2,bores=2 vm", EXIT_OPTION, "-c 2,bores=2: \"bores\" is none of"),
        ("-o cpus vm", EXIT_OPTION, "-o cpus: expected key=value"),
        ("-l com9,stdio vm", EXIT_OPTION, "-l com9,stdio: unknown LPC device \"com9\""),
        ("-p 0 vm", EXIT_OPTION, "expected vcpu:hostcpu"),
        ("-p 0:1024 vm", EXIT_OPTION, "expected vcpu:hostcpu"),
        ("-p -1:0 vm", EXIT_OPTION, "expected vcpu:hostcpu"),
        ("-f x vm", EXIT_OPTION, "expected [name=]"),
        ("-f x,data=y vm", EXIT_OPTION, "expected [name=]"),
        ("-f name=,file=y vm", EXIT_OPTION, "expected [name=]"),
        ("-n id=0,size=1G vm", EXIT_OPTION, "are needed"),
        ("-n 0 vm", EXIT_OPTION, "is none of"),
        ("-s 3:0 vm", EXIT_ERROR, "-s 3:0: expected slot,device"),
        ("-s 3:0, vm", EXIT_ERROR, "expected slot,device"),
        ("-s 32,virtio-rnd vm", EXIT_ERROR, "slot 32 is not in the range 0 to 31"),
        ("-s 0:8,virtio-rnd vm", EXIT_ERROR, "function 8"),
        ("-s 256:0:0,virtio-rnd vm", EXIT_ERROR, "bus 256"),
        ("-s x,virtio-rnd vm", EXIT_ERROR, "invalid slot"),
        (
            "-s 3,virtio-rnd -s 0:3:0,uart vm",
            EXIT_ERROR,
            "-s 0:3:0,uart: slot 0:3:0 is already occupied by -s 3,virtio-rnd",
        ),
        ("-k /nonexistent vm", EXIT_ERROR, "-k /nonexistent: can't open it"),
        ("-o a..b=c vm", EXIT_ERROR, "empty component"),
    ] {
        let error = parse(line).expect_err(line);
        assert!(error.to_string().contains(message), "{line}: {error}");
        assert_eq!(error.exit_code(), code, "{line}: {error}");
    }
    let name = Command::parse(["-o", "name= x", "vm"].map(OsString::from)).unwrap_err();
    assert_eq!(name.exit_code(), EXIT_ERROR);
}

#[test]
fn values_are_refused_by_validation_with_the_option_as_typed() {
    for (line, code, message) in [
        ("-c 0 vm", EXIT_ERROR, "-c 0: cpus=0: expected an integer from 1 to 65535"),
        ("-c 2,cores=2,sockets=2 vm", EXIT_ERROR, "makes 4 virtual CPUs, not 2"),
        ("-m 0 vm", EXIT_OPTION, "-m 0: memory size \"0\""),
        ("-m x vm", EXIT_OPTION, "-m x: "),
        ("-U x vm", EXIT_ERROR, "-U x: uuid=x: expected a UUID"),
        ("-s 3:0,virtio-blkk,x vm", EXIT_ERROR, "-s 3:0,virtio-blkk,x: "),
        ("a/b", EXIT_ERROR, "a/b: "),
    ] {
        let error = validate(&tree(line), |_| None).expect_err(line);
        assert!(
            error.to_string().starts_with(message) || error.to_string().contains(message),
            "{line}: {error}"
        );
        assert_eq!(error.exit_code(), code, "{line}: {error}");
    }
    assert!(validate(&Tree::new(), |_| None).is_ok());
}

#[test]
fn files_and_options_apply_in_order() {
    let directory = std::env::temp_dir().join(format!("bhyve-config-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("vm.conf");
    std::fs::write(&file, "name=vm\ncpus=2\npci.0.3.0.device=virtio-rnd\n").unwrap();
    let file = file.to_str().unwrap();
    let line = |text: &str| parse(&text.replace("FILE", file));
    let expect = |text: &str, cpus: &str| match line(text) {
        Ok(Command::Run(tree)) => assert_eq!(tree.raw("cpus"), Some(cpus), "{text}"),
        other => panic!("{text}: {other:?}"),
    };
    expect("-k FILE", "2");
    expect("-c 3 -k FILE", "2");
    expect("-k FILE -c 3", "3");
    expect("-kFILE -o cpus=4 other", "4");
    let error = line("-k FILE -s 3,uart").unwrap_err();
    assert!(error.to_string().contains("occupied") && error.to_string().contains("vm.conf:3"), "{error}");
    std::fs::remove_dir_all(&directory).unwrap();
}

/// The command lines of the FreeBSD handbook, section 23.6.
const HANDBOOK: &[&str] = &[
    "-A -H -P -s 0:0,hostbridge -s 1:0,lpc -s 2:0,virtio-net,tap0 -s 3:0,virtio-blk,./linux.img \
     -s 4:0,ahci-cd,./somelinux.iso -l com1,stdio -c 4 -m 1024M linuxguest",
    "-A -H -P -s 0:0,hostbridge -s 1:0,lpc -s 2:0,virtio-net,tap0 -s 3:0,virtio-blk,./linux.img \
     -l com1,stdio -c 4 -m 1024M linuxguest",
    "-AHP -s 0:0,hostbridge -s 1:0,lpc -s 2:0,virtio-net,tap1 -s 3:0,virtio-blk,./disk.img \
     -s 4:0,ahci-cd,./install.iso -c 4 -m 1024M -l bootrom,/usr/local/share/uefi-firmware/BHYVE_UEFI.fd guest",
    "-AHP -s 0:0,hostbridge -s 1:0,lpc -s 2:0,virtio-net,tap1 -s 3:0,virtio-blk,./disk.img \
     -s 4:0,ahci-cd,./install.iso -c 4 -m 1024M -l bootrom,/usr/local/share/uefi-firmware/BHYVE_UEFI_CSM.fd guest",
    "-AHP -s 0:0,hostbridge -s 31:0,lpc -s 2:0,virtio-net,tap1 -s 3:0,virtio-blk,./disk.img \
     -s 4:0,ahci-cd,./install.iso -c 4 -m 1024M -s 29,fbuf,tcp=0.0.0.0:5900,w=800,h=600,wait -s 30,xhci,tablet \
     -l bootrom,/usr/local/share/uefi-firmware/BHYVE_UEFI.fd guest",
    "-A -H -P -s 0:0,hostbridge -s 1:0,lpc -s 2:0,virtio-net,tap0 -s3:0,virtio-blk,/dev/zvol/zroot/linuxdisk0 \
     -l com1,stdio -c 4 -m 1024M linuxguest",
    "-A -H -P -s 0:0,hostbridge -s 1:0,lpc -s 2:0,virtio-net,tap0 -s 3:0,virtio-blk,./linux.img \
     -l com1,/dev/nmdm0A -c 4 -m 1024M linuxguest",
];

#[test]
fn the_handbook() {
    for line in HANDBOOK {
        let tree = tree(line);
        for (key, value) in [
            ("cpus", "4"),
            ("memory.size", "1024M"),
            ("acpi_tables", "true"),
            ("x86.vmexit_on_hlt", "true"),
            ("x86.vmexit_on_pause", "true"),
            ("pci.0.0.0.device", "hostbridge"),
            ("pci.0.2.0.device", "virtio-net"),
            ("pci.0.3.0.device", "virtio-blk"),
        ] {
            assert_eq!(tree.raw(key), Some(value), "{line}: {key}");
        }
        let slots = line.matches("-s").count();
        assert_eq!(tree.pci_functions().unwrap().len(), slots, "{line}");
        assert!(tree.raw("pci.0.3.0.path").is_some_and(|path| line.contains(path)));
    }
    let first = tree(HANDBOOK[0]);
    assert_eq!(
        first.dump().replace('\n', " ").trim_end(),
        "acpi_tables=true cpus=4 lpc.com1.path=stdio memory.size=1024M name=linuxguest pci.0.0.0.device=hostbridge \
         pci.0.1.0.device=lpc pci.0.2.0.backend=tap0 pci.0.2.0.device=virtio-net pci.0.3.0.device=virtio-blk \
         pci.0.3.0.path=./linux.img pci.0.4.0.device=ahci pci.0.4.0.port.0.path=./somelinux.iso \
         pci.0.4.0.port.0.type=cd x86.vmexit_on_hlt=true x86.vmexit_on_pause=true"
    );
    assert_eq!(tree(HANDBOOK[5]).raw("pci.0.3.0.path"), Some("/dev/zvol/zroot/linuxdisk0"));
    assert_eq!(tree(HANDBOOK[4]).raw("pci.0.29.0.rfb"), Some("0.0.0.0:5900"));
    assert_eq!(
        tree(HANDBOOK[3]).raw("lpc.bootrom"),
        Some("/usr/local/share/uefi-firmware/BHYVE_UEFI_CSM.fd")
    );
}

/// A small deterministic generator (xorshift64*); the seed is in every message.
struct Noise(u64);

impl Noise {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % below
    }

    fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.next(words.len())]
    }
}

/// Reads the dump back and compares; a tree always survives this.
fn round_trip(tree: &Tree, what: &str) {
    let mut copy = Tree::new();
    copy.read_lines("dump", tree.dump().as_bytes()).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(&copy, tree, "{what}");
}

#[test]
fn what_is_dumped_can_be_read_back() {
    for line in HANDBOOK {
        round_trip(&tree(line), line);
    }
    let pieces = ["a", "b", "0", "03", "10", ".", ".", "=", "%", "%(a)", "#", " ", "\t", "ü", "-", "_", "\r"];
    for seed in 1..2000 {
        let mut noise = Noise(seed);
        let mut tree = Tree::new();
        for _ in 0..20 {
            let mut word = || (0..noise.next(6)).map(|_| noise.pick(&pieces)).collect::<String>();
            let (key, value) = (word(), word());
            let _ = tree.set(&key, &value);
        }
        round_trip(&tree, &format!("seed {seed}"));
    }
}

/// Words that command lines are made of.
const PIECES: &str = "- -- -s -l -c -m -o -k -G -p -n -f -U -AHP 3 : 0 , = virtio-blk virtio-net \
                      virtio-console virtio-scsi target= ahci hd: cd: fbuf xhci passthru pci / ppt0 \
                      lpc nvme ram= com1 bootrom tpm cpus sockets=2 w %( ) %(name) %% name= id=1 \
                      size=1G cpus=0-1 4294967296 -1 0x ü vm . engine=soft pci.0.3.0.device=virtio-blk \
                      memory.size=";

#[test]
fn noise_never_panics() {
    let pieces: Vec<&str> = PIECES.split(' ').chain([" ", "\u{0}"]).collect();
    let mut good = 0;
    for seed in 1..20_000 {
        let mut noise = Noise(seed);
        let words: Vec<String> = (0..noise.next(8))
            .map(|_| (0..=noise.next(5)).map(|_| noise.pick(&pieces)).collect::<String>())
            .collect();
        // A file named by noise must not be read: it could be a device.
        if words.iter().any(|word| word.starts_with('-') && word.contains('k')) {
            continue;
        }
        match Command::parse(words.iter().map(OsString::from)) {
            Ok(Command::Run(tree)) => {
                good += 1;
                round_trip(&tree, &format!("seed {seed}: {words:?}"));
                let _ = validate(&tree, |_| Some(&[]));
                let _ = crate::unsupported(&tree, |_| Some(&[]));
            }
            Ok(_) => {}
            Err(error) => assert!(matches!(error.exit_code(), 1 | 4 | 64) && !error.to_string().is_empty()),
        }
    }
    assert!(good > 100, "the noise hardly ever makes a command line: {good}");
}
