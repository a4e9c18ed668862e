use super::run;

#[test]
fn what_scripts_print() {
    let cases = [
        // Words, quotes, variables.
        ("echo a  b 'c  d' \"e  f\"", "a b c  d e  f\n"),
        ("set x='1 2'; echo $x \"$x\" ${x}3 '$x' \\$x", "1 2 1 2 1 23 $x $x\n"),
        ("set x='a   b'; echo $x; echo \"$x\"", "a b\na   b\n"),
        ("echo $nothing\"\"x; echo [$nothing]", "x\n[]\n"),
        ("x=5; echo $x; y=a=b; echo $y", "5\na=b\n"),
        ("set a=1 b=2; echo $a$b", "1\n"),
        ("echo -n a; echo -e 'b\\tc\\n\\\\d\\ce'; echo", "ab\tc\n\\d\n"),
        // Conditions.
        ("if true; then echo y; else echo n; fi", "y\n"),
        ("if false; then echo 1; elif [ a = b ]; then echo 2; elif test 2 -gt 1; then echo 3; fi", "3\n"),
        ("if ! false; then echo y; fi; ! true; echo $?", "y\n1\n"),
        ("false; echo $?; true; echo $?", "1\n0\n"),
        ("if false; then echo x; fi; echo $?", "0\n"),
        ("[ -n '' -o -z '' ]; echo $?; [ a = a -a b = c ]; echo $?", "0\n1\n"),
        ("[ ( a = b ) -o ! ( a = b ) ]; echo $?", "0\n"),
        ("[ \"$unset\" ]; echo $?; [ x$unset = x ]; echo $?; [ ! x ]; echo $?", "1\n0\n1\n"),
        ("[ 0x10 -eq 16 -a -5 -lt 3 -a abc '<' abd ]; echo $?", "0\n"),
        ("[ vmlinuz-9 -plt vmlinuz-10 ]; echo $?; [ a2 -pgt a10 ]; echo $?", "0\n1\n"),
        ("[ -e /a.txt -a -f /a.txt -a -d /boot -a -s /a.txt ]; echo $?", "0\n"),
        ("[ -e /none -o -d /a.txt -o -f /boot -o -s /empty ]; echo $?", "1\n"),
        // Loops.
        ("for x in a 'b c' $none d; do echo -n \"<$x>\"; done; echo", "<a><b c><d>\n"),
        (
            "i=0; while [ $i -lt 3 ]; do if [ $i = 0 ]; then i=1; elif [ $i = 1 ]; then i=2; else i=3; fi; echo $i; done",
            "1\n2\n3\n",
        ),
        ("i=; until [ x$i = xaaa ]; do i=a$i; done; echo $i", "aaa\n"),
        ("for x in 1 2 3; do if [ $x = 2 ]; then continue; fi; echo $x; done", "1\n3\n"),
        (
            "for x in 1 2; do for y in a b; do if [ $y = b ]; then break 2; fi; echo $x$y; done; done; echo end",
            "1a\nend\n",
        ),
        ("for x in 1 2; do for y in a b; do continue 2; done; echo no; done; echo end", "end\n"),
        ("while true; do break; done; echo $?", "0\n"),
        // Functions and parameters.
        ("function f { echo $# $1 $2; shift; echo $1; return 7; echo no; }; f a b; echo $?", "2 a b\nb\n7\n"),
        (
            "function f { for x in \"$@\"; do echo \"<$x>\"; done; echo \"$*\"; }; f 'a b' c",
            "<a b>\n<c>\na b c\n",
        ),
        ("function f { echo $@; }; f; f 1 2", "\n1 2\n"),
        ("function f { g $1; echo $1; }; function g { echo g$1; }; f x", "gx\nx\n"),
        ("function f { setparams a b; echo $2; }; f", "b\n"),
        ("function e { echo mine; }; e; echo still", "mine\nstill\n"),
        // Files.
        ("x='echo a; y=b'; eval $x; echo $y", "a\nb\n"),
        (". /lib.cfg; echo $from_lib; lib 1", "yes\nlib 1\n"),
        ("source /args.cfg a b; echo $?", "2 a b\n3\n"),
        ("configfile /lib.cfg; echo \"<$from_lib>\"", "<>\n"),
        // Wildcards.
        ("echo /boot/vmlinuz-*", "/boot/vmlinuz-1 /boot/vmlinuz-2\n"),
        (
            "echo (host)/boot/vmlinuz-? '/boot/v*' /none* x*",
            "(host)/boot/vmlinuz-1 (host)/boot/vmlinuz-2 /boot/v* /none* x*\n",
        ),
        ("echo (ho*)/a.t* (ho?t) /*/vmlinuz-1", "(host)/a.txt (host) /boot/vmlinuz-1\n"),
        ("for k in /boot/vmlinuz-*; do regexp --set 1:v 'vmlinuz-(.*)' $k; echo $v; done", "1\n2\n"),
        ("p='/boot/vm*'; echo $p; echo \"$p\"", "/boot/vmlinuz-1 /boot/vmlinuz-2\n/boot/vm*\n"),
        // Variables of contexts.
        ("set x=1; export x; export y=2; echo $x$y; unset x y; echo \"<$x$y>\"", "12\n<>\n"),
    ];
    for (text, expected) in cases {
        assert_eq!(run(text), expected, "{text}");
    }
}

#[test]
fn errors_are_shown_and_the_rest_goes_on() {
    let cases = [
        ("nothere a; echo $?", "error: can't find command `nothere'.\n16\n"),
        ("cat /x; echo $?", "error: file `/x' not found.\n5\n"),
        ("cat (hd7)/x; echo $?", "error: no such device: hd7.\n12\n"),
        ("cat (hd0,1)/x", "error: no such partition: hd0,1.\n"),
        ("cat (hd0", "error: missing `)'.\n"),
        ("cat /boot", "error: `/boot' is not a regular file.\n"),
        ("echo a && echo b\necho c", "error: syntax error at `&&'.\nc\n"),
        ("if cat /x; then echo y; else echo n; fi", "error: file `/x' not found.\nn\n"),
        (
            "chainloader +1",
            "error: `chainloader' is not supported: there is no BIOS to run boot sectors with.\n",
        ),
        (
            "multiboot2 /x",
            "error: `multiboot2' is not supported: Multiboot 2 kernels can't be loaded; Multiboot 1 kernels can.\n",
        ),
        ("echo -n a; nothere", "a\nerror: can't find command `nothere'.\n"),
        ("set '=x'", "error: `' is not a variable name.\n"),
        ("[ a -eq b ]", "error: unrecognized number `a'.\n"),
        ("[ a", "error: missing `]'.\n"),
        ("[ a b ]", "error: unexpected `b' in a test.\n"),
        ("!", "error: no command is specified.\n"),
        ("echo x { echo y }", "error: `echo' takes no block.\n"),
        ("break 1 2", "error: unexpected argument `2'.\n"),
        ("boot", "error: you need to load the kernel first.\n"),
        ("initrd /boot/initrd", "error: you need to load the kernel first.\n"),
        ("source /none.cfg", "error: file `/none.cfg' not found.\n"),
        ("insmod nothing", "error: file `(host)/boot/grub/nothing.mod' not found.\n"),
        ("ls --wrong", "error: unknown argument `--wrong'.\n"),
        ("if true; then", "error: syntax error: the text ends too early.\n"),
        ("regexp '(' a", "error: invalid regular expression: found open group without closing ')'.\n"),
    ];
    for (text, expected) in cases {
        assert_eq!(run(text), expected, "{text}");
    }
}

#[test]
fn loops_without_end_end() {
    let output = run("while true; do x=1; done; echo after");
    assert!(output.starts_with("error: gave up after"), "{output}");
    assert!(!output.contains("after\n"), "the rest is left out: {output}");
    let output = run("function f { f; }; f");
    assert!(output.contains("nested too deeply"), "{output}");
    let output = run("function f { for x in a; do if true; then f; fi; done; }; f");
    assert!(output.contains("nested too deeply"), "{output}");
    // Doubles until there is no more room.
    let output = run("x=aaaaaaaa; while true; do x=$x$x || true; x=\"$x$x\"; done");
    assert!(output.contains("error: "), "{output}");
    let output = run("x=aaaaaaaa; while true; do x=\"$x$x\"; done");
    assert!(output.contains("too many arguments"), "{output}");
}

#[test]
fn an_interrupt_ends_a_loop() {
    let mut rig = super::Rig::terminal(super::FILES, "");
    rig.console.interrupt = true;
    let output = rig.text("while true; do true; done");
    assert_eq!(output, "error: interrupted.\n");
}
