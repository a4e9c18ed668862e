use super::super::Stop;
use super::{Rig, bzimage};

const CONFIG: &str = "
set default=1
set timeout=5
function load { linux /vmlinuz $1; }
menuentry 'First' --id one { load first; }
menuentry 'Second' --class x --hotkey=s { load second; }
submenu 'More' --id more {
    menuentry 'Third' { load third; }
    menuentry 'Fourth' --unrestricted arg { echo $1; load fourth$1; }
}
menuentry 'Broken' --hotkey=b { linux /none; }
";

/// Runs a configuration on a terminal; gives what was booted and the session.
fn run(config: &str, keys: &str, timeouts: usize) -> (String, super::Ended) {
    let kernel = bzimage();
    let files: &[(&str, &[u8])] = &[("/vmlinuz", &kernel), ("/boot/grub/grub.cfg", config.as_bytes())];
    let mut rig = Rig::terminal(files, keys);
    rig.console.timeouts = timeouts;
    let ended = rig.run();
    let booted =
        ended.booted.join("|").replace("linux console=ttyS0 BOOT_IMAGE=/vmlinuz ", "").replace(" []", "");
    (booted, ended)
}

#[test]
fn keys_choose() {
    let cases = [
        ("\r", "second"),
        ("\x1b[A\r", "first"),
        ("\x1b[A\x1b[A\r", "first"),
        ("s", "second"),
        ("\x1b[H\x1b[B\x1b[B\r\r", "third"),
        ("\x1b[B\r\x1b[B\x1b[C", "fourtharg"),
        // Into the submenu, back out, to the first.
        ("\x1b[B\r\x1b\x1b[H\r", "first"),
        // The broken one fails; a key brings back the menu.
        ("bx\x1b[H\r", "first"),
        // Esc at the top stays.
        ("\x1b\x1b[H\r", "first"),
        // The prompt and back.
        ("cecho hi\r\x1b\x1b[H\r", "first"),
        ("clinux /vmlinuz typed\rboot\r", "typed"),
        // The editor: adds to the only line, runs it.
        ("\x1b[He\x05\x08\x08\x08X\x18", "firsX"),
        // Changes are forgotten with Esc.
        ("\x1b[He\x05\x08\x08x\x1b\r", "first"),
    ];
    for (keys, booted) in cases {
        let (got, ended) = run(CONFIG, keys, 0);
        assert_eq!(got, booted, "{keys:?}: {}", ended.output);
        assert_eq!(ended.stop, Stop::Booted, "{keys:?}");
    }
}

#[test]
fn the_menu_on_the_screen() {
    let (_, ended) = run(CONFIG, "\x1b[B", 0);
    let rows: Vec<&str> = ended.screen.iter().map(String::as_str).collect();
    let at = rows.iter().position(|r| r.starts_with(" +--")).unwrap();
    assert_eq!(rows[at].len(), 79, "{rows:?}");
    assert!(rows[at + 1].starts_with(" | First") && rows[at + 3].starts_with(" |*More"), "{rows:?}");
    assert!(ended.output.contains("The marked entry runs in 5 s."), "{}", ended.output);
    assert!(rows.len() <= 24);
    // The countdown goes when a key is pressed.
    assert!(!rows.iter().any(|r| r.contains("runs in")), "{rows:?}");
    assert_eq!(ended.stop, Stop::InputEnd);
}

#[test]
fn more_entries_than_rows() {
    let config: String =
        (0..100).map(|n| format!("menuentry 'Entry {n}' {{ linux /vmlinuz n{n}; }}\n")).collect();
    let (_, ended) = run(&config, &"\x1b[B".repeat(50), 0);
    assert!(ended.screen.iter().any(|r| r.contains("*Entry 50")), "{:?}", ended.screen);
    assert!(ended.screen.len() <= 24);
    assert_eq!(run(&config, "\x1b[6~\x1b[6~\r", 0).0, "n28");
    assert_eq!(run(&config, "\x1b[F\r", 0).0, "n99");
}

#[test]
fn defaults() {
    let entries = CONFIG.replace("set default=1", "").replace("timeout=5", "timeout=0");
    for (default, booted) in [
        ("", "first"),
        ("set default=1", "second"),
        ("set default=one", "first"),
        ("set default=Second", "second"),
        ("set default='more>1'", "fourtharg"),
        ("set default='More>Third'", "third"),
        ("set default=2", "third"),
        ("set saved_entry=Second; set default=saved", "second"),
        ("set default=nothing", "first"),
        ("set default=3; set fallback='3 Second'", "second"),
        ("set default=3; set fallback='more>1'", "fourtharg"),
    ] {
        let (got, ended) = run(&format!("{default}\n{entries}"), "", 0);
        assert_eq!(got, booted, "{default}: {}", ended.output);
    }
}

#[test]
fn styles_of_waiting() {
    let hidden = |style: &str, keys: &str| {
        let config = CONFIG.replace("timeout=5", &format!("timeout=1; set timeout_style={style}"));
        run(&config, keys, 0)
    };
    // Escape shows the menu, a hotkey runs its entry.
    let (booted, ended) = hidden("hidden", "\x1b\x1b[H\r");
    assert_eq!(booted, "first");
    assert!(ended.output.contains(" +---"));
    let (booted, ended) = hidden("countdown", "s");
    assert_eq!(booted, "second");
    assert!(!ended.output.contains(" +---") && ended.output.contains("\r1 "), "{}", ended.output);
    let config = CONFIG.replace("timeout=5", "timeout=0; set timeout_style=hidden");
    assert_eq!(run(&config, "", 1).0, "second");
}

#[test]
fn without_a_terminal_the_list_is_lines() {
    let kernel = bzimage();
    let files: &[(&str, &[u8])] = &[("/vmlinuz", &kernel), ("/boot/grub/grub.cfg", CONFIG.as_bytes())];
    for (input, booted) in
        [("0\n", "first"), ("", "second"), ("\n", "second"), ("Broken\none\n", ""), ("2\n1\n", "fourtharg")]
    {
        let mut rig = Rig::new(files, input);
        let ended = rig.run();
        assert!(!ended.output.contains('\x1b'), "{:?}", ended.output);
        assert!(ended.output.contains(" 0  First\n*1  Second\n 2  More ->\n"), "{}", ended.output);
        let got = ended.booted.join("|");
        match booted {
            "" => assert!(
                ended.output.contains("`/none' not found") && got.contains("first"),
                "{input:?} {got} {}",
                ended.output
            ),
            booted => {
                assert!(got.contains(&format!("/vmlinuz {booted} ")), "{input:?}: {got} {}", ended.output);
            }
        }
    }
}

#[test]
fn a_refused_kernel_leads_back_to_the_menu() {
    let kernel = bzimage();
    let files: &[(&str, &[u8])] = &[("/vmlinuz", &kernel), ("/boot/grub/grub.cfg", CONFIG.as_bytes())];
    let mut rig = Rig::terminal(files, "\rx\x1b[H");
    rig.target.refuse = Some("out of guest memory");
    let ended = rig.run();
    assert!(ended.output.contains("error: out of guest memory.\n"), "{}", ended.output);
    assert!(ended.booted.is_empty() && ended.stop == Stop::InputEnd);
    assert!(ended.screen.iter().any(|r| r.contains("*First")), "{:?}", ended.screen);
}

#[test]
fn superusers() {
    let config = format!(
        "set superusers=root\nexport superusers\npassword root secret\npassword joe joe\n{}",
        CONFIG.replace("'First'", "'First' --users joe").replace("'Second'", "'Second' --unrestricted")
    );
    for (keys, booted) in [
        ("s", "second"),
        ("\x1b[H\rroot\rsecret\r", "first"),
        ("\x1b[H\rjoe\rjoe\r", "first"),
        ("\x1b[H\rroot\rwrong\rx\rs", ""),
        // joe may not open the prompt, but what he typed is not run either.
        ("cjoe\rjoe\rx\x1b[B\x1b[Bs", "second"),
        ("eroot\rsecret\r\x05\x08\x08\x08X\x18", "seconX"),
        ("croot\rsecret\rlinux /vmlinuz typed\rboot\r", "typed"),
    ] {
        let (got, ended) = run(&config, keys, 0);
        if booted.is_empty() {
            assert!(ended.output.contains("error: access denied."), "{}", ended.output);
        } else {
            assert_eq!(got, booted, "{keys:?}: {}", ended.output);
        }
        assert!(!ended.output.contains("secret"), "{keys:?}");
    }
}

#[test]
fn chosen_and_nested_configurations() {
    let config = "menuentry outer { configfile /inner.cfg; }\nset timeout=0\n";
    let inner = "submenu s --id sub { menuentry t --id leaf { echo \"<$chosen>\"; linux /vmlinuz; } }\nset timeout=0\n";
    let kernel = bzimage();
    let files: &[(&str, &[u8])] = &[
        ("/vmlinuz", &kernel),
        ("/boot/grub/grub.cfg", config.as_bytes()),
        ("/inner.cfg", inner.as_bytes()),
    ];
    let ended = Rig::new(files, "").run();
    assert!(ended.output.contains("<sub>leaf>"), "{}", ended.output);
    assert_eq!(ended.booted.len(), 1);
}
