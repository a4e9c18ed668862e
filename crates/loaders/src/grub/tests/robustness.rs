use super::Rig;

/// Configurations whose parts are mixed.
const SEEDS: [&str; 4] = [
    "set default=\"0\"\nif [ x$feature = xy ]; then\n  menuentry_id_option=\"--id\"\nelse menuentry_id_option=\"\"; fi\nexport menuentry_id_option\n",
    "function f {\n  for x in a \"b c\" $d; do echo $x ${y}; done\n  while [ $n -lt 3 ]; do n=3; done }\nf 1 '2 3'\n",
    "menuentry 'A' --class gnu $menuentry_id_option 'x' {\n\tload_video\n\tinsmod gzio\n\tsearch --no-floppy --set=root --label x\n\tlinux /vmlinuz root=/dev/sda1\n}\nsubmenu 'B' { menuentry 'C' { true; } }\n",
    "regexp -s 1:v '(.*)b' ab\nhexdump /a; ls -la (host)/\nset x=`cat\\\n a` # c\nsource /a; echo -e '\\n' \"\\$\"\n",
];

struct Random(u64);

impl Random {
    /// Xorshift, below `n`.
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

fn mutate(random: &mut Random) -> String {
    const TOKENS: [&str; 30] = [
        "{",
        "}",
        ";",
        "\n",
        "'",
        "\"",
        "\\",
        "$",
        "${",
        "#",
        "if ",
        "then ",
        "fi",
        "while ",
        "do ",
        "done",
        "for ",
        "in ",
        "function ",
        "menuentry ",
        "submenu ",
        "[ ",
        " ]",
        "! ",
        "break",
        "return",
        "source ",
        "$@",
        "*",
        "\u{0}",
    ];
    let mut bytes: Vec<u8> =
        (0..=random.below(3)).flat_map(|_| SEEDS[random.below(SEEDS.len())].bytes()).collect();
    for _ in 0..random.below(12) {
        if bytes.is_empty() {
            break;
        }
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => drop(bytes.splice(at..at, TOKENS[random.below(TOKENS.len())].bytes())),
            1 => drop(bytes.drain(at..(at + random.below(20)).min(bytes.len()))),
            2 => bytes[at] = random.below(256) as u8,
            3 => {
                let end = (at + random.below(60)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, part);
            }
            _ => bytes.truncate(at.max(1)),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn mutated_configurations_do_no_harm() {
    let rounds: u32 = std::env::var("GRUB_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let mut random = Random(0x1234_5678_9abc_def1);
    let files: &[(&str, &[u8])] = &[("/a", b"echo a\n"), ("/vmlinuz", b"x")];
    for round in 0..rounds {
        let text = mutate(&mut random);
        let mut rig = Rig::new(files, "");
        rig.with(|session| {
            // Long enough for everything but loops that mutation has left without an end.
            session.steps = 3000;
            session.run_text(&text, Some("/x"));
            assert!(session.depth == 0, "round {round}: {text}");
            for index in 0..session.menu.entries.len().min(3) {
                let body = session.menu.entries[index].body.clone();
                session.steps = 1000;
                session.run_text(&body, None);
            }
        });
    }
}

#[test]
fn functions_and_entries_are_bounded() {
    let mut rig = Rig::new(&[], "");
    let many: String =
        (0..30).map(|n| format!("function f{n} {{ {} }}\n", "x a b c d e f g;".repeat(1000))).collect();
    let output = rig.text(&many);
    assert!(output.contains("too many functions"), "{output}");
    let output = rig.text("while true; do menuentry a { true; }; done");
    assert!(output.contains("too many menu entries"), "{}", &output[..200]);
}

#[test]
fn loop_devices_do_not_pile_up() {
    let mut rig = Rig::new(&[("/a", b"abc")], "");
    let output = rig.text(
        "loopback l (host)/a; x=l; for n in 1 2 3 4 5 6 7 8 9 a b c d e f g h; do y=l$n; loopback $y ($x); x=$y; done\ncat (l3); loopback -d l3; loopback m /a; cat (m)",
    );
    assert!(output.ends_with("abcabc"), "{output}");
    assert_eq!(output.matches("there are 16 loop devices already").count(), 1, "{output}");
    // A device in its own place lies in the old one.
    let output = rig.text("loopback q (m); while loopback q (q)+0; do true; done; echo ended");
    assert!(output.ends_with("ended\n") && output.contains("loop devices"), "{output}");
}

#[test]
fn costly_patterns_are_refused() {
    let mut rig = Rig::new(&[], "");
    let output = rig.text("regexp '(((a{99}){99}){99})' aaa; echo $?; sleep 1000000; echo awake");
    assert!(output.contains("invalid regular expression") && output.ends_with("18\nawake\n"), "{output}");
}
